//! Words between agents about traces that are kept: each agent listens, and tells its peers in small batches.
//!
//! What a reader would get wrong: nothing here is reliable, and nothing needs to be. A word that is lost leaves a part
//! of a trace to be forgotten, or kept under its own name; one that comes twice changes nothing. So every queue drops
//! what it has no room for, and counts it; the agent itself never waits.

mod directory;
mod frame;
mod listener;
mod peer;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail, ensure};
use dprof_common::model::RunId;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use self::directory::Directory;
pub use self::directory::{Meeting, Met};
pub use self::frame::Secret;
use crate::fleet::addresses;
use crate::keep::Word;

/// Port on which agents listen, if only an address is given.
pub const PORT_DEFAULT: u16 = 4717;
/// Words that wait for one peer; at 200 bytes a word and a batch every 20 ms more than any link carries.
const QUEUE_MAX: usize = 8_192;
/// Peers told; a fleet beyond that needs a rule of who tells whom.
const PEERS_MAX: usize = 256;
/// Longest secret file, bytes.
const SECRET_BYTES_MAX: u64 = 4_096;
/// Shortest secret, bytes.
const SECRET_BYTES_MIN: usize = 16;

/// Whom to tell and hear.
#[derive(Clone, Debug)]
pub struct WordOptions {
    /// Where to listen.
    pub listen: Option<SocketAddr>,
    /// Agents to tell.
    pub peers: Vec<SocketAddr>,
    /// The run of this agent.
    pub run: RunId,
    /// What every agent of the fleet knows.
    pub secret: Secret,
}

/// Reads a secret: the file's bytes without white space at the end. It must not be readable by others.
pub fn read_secret(path: &Path) -> Result<Secret> {
    use std::os::unix::fs::PermissionsExt as _;
    let name = path.display();
    let metadata = std::fs::metadata(path).with_context(|| format!("read the secret {name}"))?;
    ensure!(metadata.len() <= SECRET_BYTES_MAX, "the secret {name} is longer than {SECRET_BYTES_MAX} bytes");
    if metadata.permissions().mode() & 0o077 != 0 {
        bail!("the secret {name} can be read by others: chmod 600 {name}");
    }
    let bytes = std::fs::read(path).with_context(|| format!("read the secret {name}"))?;
    let secret = bytes.trim_ascii_end();
    ensure!(
        secret.len() >= SECRET_BYTES_MIN,
        "the secret {name} is shorter than {SECRET_BYTES_MIN} bytes: openssl rand -hex 32 > {name}"
    );
    Ok(Secret::new(secret))
}

/// What was said and heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WordCounters {
    /// Words sent, one for each peer that got it.
    pub sent: u64,
    /// Bytes of the frames that carried them.
    pub sent_bytes: u64,
    /// Words that found no room, or waited until nobody could use them.
    pub unsent: u64,
    /// Words received.
    pub received: u64,
    /// Words received faster than a peer may speak, or than the engine hears.
    pub ignored: u64,
    /// Connections ended because what came was no frame or not sealed with the secret.
    pub refused: u64,
}

macro_rules! shared {
    ($($name:ident),*) => {
        #[derive(Debug, Default)]
        pub(super) struct Shared { $(pub(super) $name: AtomicU64,)* }
        impl Shared {
            fn read(&self) -> WordCounters {
                WordCounters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}
shared!(sent, sent_bytes, unsent, received, ignored, refused);

fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// The thread that talks. Dropped, it ends.
#[derive(Debug)]
pub struct Exchange {
    directory: Arc<Directory>,
    counters: Arc<Shared>,
    /// Where it listens.
    listens: Option<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Exchange {
    /// Listens and connects. Words of others go to `heard`.
    pub fn start(options: &WordOptions, heard: SyncSender<Word>) -> Result<Self> {
        ensure!(options.peers.len() <= PEERS_MAX, "{} peers: give at most {PEERS_MAX}", options.peers.len());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime of the peers")?;
        let counters = Arc::new(Shared::default());
        let listener = match options.listen {
            None => None,
            Some(address) => {
                Some(bind(address).with_context(|| format!("listen for other agents on {address}"))?)
            }
        };
        let listens = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let directory = Arc::new(Directory::new(
            &options.peers,
            options.run,
            options.secret.clone(),
            Arc::clone(&counters),
            runtime.handle().clone(),
        ));
        let (stop, stopped) = oneshot::channel();
        let (own, secret, shared) = (options.run, options.secret.clone(), Arc::clone(&counters));
        let run = move || {
            runtime.block_on(async move {
                match listener.map(TcpListener::from_std) {
                    Some(Ok(listener)) => {
                        tokio::spawn(listener::listen(listener, own, secret, heard, shared));
                    }
                    Some(Err(error)) => log::error!("no agent is heard: {error}"),
                    None => {}
                }
                // Either way it is over.
                let _ = stopped.await;
            });
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new()
            .name("dprof-words".to_owned())
            .spawn(run)
            .context("start thread dprof-words")?;
        Ok(Self { directory, counters, listens, stop: Some(stop), thread: Some(thread) })
    }

    /// Tells the agents that watch `to`, or all of them if it is not known which those are.
    pub fn say(&self, to: IpAddr, word: Word) {
        self.directory.say(to, word);
    }

    /// For whoever learns who there is.
    pub fn meeting(&self) -> Meeting {
        let hears = self.listens.map(announced).unwrap_or_default();
        Meeting { directory: Arc::clone(&self.directory), hears }
    }

    /// What was said and heard so far.
    pub fn counters(&self) -> WordCounters {
        self.counters.read()
    }

    /// Where it listens.
    pub const fn listens(&self) -> Option<SocketAddr> {
        self.listens
    }
}

/// Where others reach a listener at `address`: there, or at every address of this host, loopback last.
fn announced(address: SocketAddr) -> Vec<SocketAddr> {
    if !address.ip().is_unspecified() {
        return vec![address];
    }
    let all = addresses::own().into_iter().chain([Ipv4Addr::LOCALHOST.into()]);
    all.map(|ip| SocketAddr::new(ip, address.port())).collect()
}

/// Not tokio's: whoever starts an exchange may itself run in a runtime. Where there is no IPv6, IPv4 does for all
/// addresses.
fn bind(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let without = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
    let listener = match std::net::TcpListener::bind(address) {
        Err(error) if address.ip().is_unspecified() && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            std::net::TcpListener::bind(without)?
        }
        bound => bound?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have ended.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
