//! Tells one peer: connects, and connects again, and sends what waits in batches.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dprof_common::model::RunId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::frame::{GREETING_BYTES, Greeting, Sealer, Secret, WORDS_MAX};
use super::{Shared, count};
use crate::keep::Word;

/// Words are gathered for this long: a fraction of the time that the others hold their spans.
const GATHER: Duration = Duration::from_millis(20);
/// Connecting, greeting and sending take this long at most.
const WITHIN: Duration = Duration::from_secs(2);
/// Pauses between attempts, doubled up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// After this long nobody holds the spans any more.
const USEFUL: Duration = Duration::from_secs(5);

/// A word and since when it waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    word: Word,
    since: Instant,
}

impl Waiting {
    pub(super) fn new(word: Word) -> Self {
        Self { word, since: Instant::now() }
    }
}

/// Another agent.
#[derive(Clone, Debug)]
pub(super) struct Whom {
    /// For people.
    pub(super) name: String,
    /// Where it listens: the first that leads to it is taken.
    pub(super) listens: Vec<SocketAddr>,
    /// Its run, where that is known.
    pub(super) run: Option<RunId>,
    /// The run of the one who tells.
    pub(super) own: RunId,
}

/// Tells another agent until `words` ends.
pub(super) async fn tell(
    whom: Whom,
    secret: Secret,
    mut words: mpsc::Receiver<Waiting>,
    is_there: Arc<AtomicBool>,
    counters: Arc<Shared>,
) {
    let mut pause = PAUSE.0;
    let mut was_there = true;
    loop {
        if let Some((mut stream, mut sealer)) = reach(&whom, &secret).await {
            if !was_there {
                log::info!("the agent {} is there again", whom.name);
            }
            (pause, was_there) = (PAUSE.0, true);
            is_there.store(true, Ordering::Relaxed);
            if send_all(&mut stream, &mut sealer, &mut words, &counters).await {
                return;
            }
            is_there.store(false, Ordering::Relaxed);
        }
        if was_there {
            log::warn!(
                "no word goes to the agent {}: parts of traces that it sees may be missing",
                whom.name
            );
        }
        was_there = false;
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
        // What waited too long is of no use; and whoever ended the queue waits for nothing.
        if words.is_closed() {
            return;
        }
    }
}

/// By the first of its addresses that leads to it.
async fn reach(whom: &Whom, secret: &Secret) -> Option<(TcpStream, Sealer)> {
    for address in &whom.listens {
        match timeout(WITHIN, connect(*address, whom, secret)).await {
            Ok(Ok(reached)) => return Some(reached),
            Ok(Err(error)) => log::debug!("agent {} at {address}: {error}", whom.name),
            Err(_) => log::debug!("agent {} at {address}: no answer", whom.name),
        }
    }
    None
}

async fn connect(address: SocketAddr, whom: &Whom, secret: &Secret) -> std::io::Result<(TcpStream, Sealer)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut bytes = [0; GREETING_BYTES];
    stream.read_exact(&mut bytes).await?;
    let Some(greeting) = Greeting::of(&bytes) else {
        return Err(std::io::Error::other("not an agent of this version"));
    };
    if greeting.run == whom.own {
        return Err(std::io::Error::other("that is this agent itself"));
    }
    if whom.run.is_some_and(|run| run != greeting.run) {
        return Err(std::io::Error::other("another agent listens there"));
    }
    Ok((stream, Sealer::new(secret.clone(), greeting)))
}

/// Sends until the queue ends (true) or the connection does, which is noticed at once: what is said to nobody is lost.
async fn send_all(
    stream: &mut TcpStream,
    sealer: &mut Sealer,
    words: &mut mpsc::Receiver<Waiting>,
    counters: &Shared,
) -> bool {
    let (mut reader, mut writer) = stream.split();
    let mut batch = Vec::new();
    loop {
        batch.clear();
        let first = tokio::select! {
            word = words.recv() => word,
            // It has nothing to say: that is its end.
            _ = reader.read_u8() => return false,
        };
        let Some(first) = first else { return true };
        batch.push(first);
        sleep(GATHER).await;
        while batch.len() < WORDS_MAX
            && let Ok(word) = words.try_recv()
        {
            batch.push(word);
        }
        let n_waited = batch.len();
        batch.retain(|waiting| waiting.since.elapsed() < USEFUL);
        count(&counters.unsent, (n_waited - batch.len()) as u64);
        if batch.is_empty() {
            continue;
        }
        let frame = sealer.seal(&batch.iter().map(|waiting| waiting.word).collect::<Vec<_>>());
        if !matches!(timeout(WITHIN, writer.write_all(&frame)).await, Ok(Ok(()))) {
            count(&counters.unsent, batch.len() as u64);
            return false;
        }
        count(&counters.sent, batch.len() as u64);
        count(&counters.sent_bytes, frame.len() as u64);
    }
}
