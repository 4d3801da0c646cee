//! A real Cassandra ring on this machine: one process per node on 127.0.0.1, .2, .3, from the jars that
//! `cargo xtask cassandra` fetched. It starts in about 20 s with three nodes of 256 MB heap each.
//!
//! What a reader would get wrong: the nodes outlive the process that started them, so that a ring can be used from
//! several terminals and tests; [`Ring::stop`] ends them by their ids, which lie beside their data. A process is
//! taken for a node only if its command line names the node's folder.

mod config;
mod handshake;
mod secure;

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, io};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

pub use self::secure::Keys;
use crate::poll;
use crate::subject::installed;

/// The version that everything is made for.
pub const VERSION: &str = "5.0.9";
/// The oldest version that is supported: the conformance suite runs on it too.
pub const VERSION_OLD: &str = "4.1.10";

/// How long a ring may take to answer: 20 s on two idle cores, several times that while they compile.
const READY_WITHIN: Duration = Duration::from_mins(2);
/// How long a node may take to end: it writes the archive of its classes then, 10 s on idle cores.
const STOP_WITHIN: Duration = Duration::from_mins(3);
/// The port of a node that was ended is free after this long.
const FREE_WITHIN: Duration = Duration::from_secs(10);
/// Lines of a node's log that an error shows.
const LINES_SHOWN: usize = 15;
/// Nodes at most: each takes half a gigabyte.
pub const NODES_MAX: u8 = 3;
const CAP_IPC_LOCK: libc::c_ulong = 14;

/// What a ring is started with; kept beside it, so that a node can be started again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Version of Cassandra: names the folder of its jars.
    pub version: String,
    /// How many nodes.
    pub n_nodes: u8,
    /// Heap of each node, MB.
    pub heap_mb: u32,
    /// Whether the virtual machine optimises fully: for measurements, not for tests.
    pub warm: bool,
    /// Whether a write is acknowledged only when it is on disk.
    pub sync_every_write: bool,
    /// Whether SASI indexes are allowed (Zipkin's schema has some).
    pub sasi: bool,
    /// Whether clients need a password and a certificate. One node only: it is asked over its log whether it is ready.
    pub secure: bool,
}

impl Options {
    /// Three small nodes, or one that may take its time.
    pub fn new(n_nodes: u8) -> Self {
        Self {
            version: VERSION.to_owned(),
            n_nodes,
            heap_mb: if n_nodes == 1 { 512 } else { 256 },
            warm: n_nodes == 1,
            sync_every_write: false,
            sasi: false,
            secure: false,
        }
    }

    fn to_text(&self) -> String {
        let Self { version, n_nodes, heap_mb, warm, sync_every_write, sasi, secure } = self;
        format!("{version} {n_nodes} {heap_mb} {warm} {sync_every_write} {sasi} {secure}\n")
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        Some(Self {
            version: words.next()?.to_owned(),
            n_nodes: words.next()?.parse().ok()?,
            heap_mb: words.next()?.parse().ok()?,
            warm: words.next()?.parse().ok()?,
            sync_every_write: words.next()?.parse().ok()?,
            sasi: words.next()?.parse().ok()?,
            secure: words.next()?.parse().ok()?,
        })
    }
}

/// Address of node `node`, from 1.
pub fn address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, node)
}

/// Where rings and jars lie: outside every checkout, since addresses are shared by all.
pub fn home() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: set one, Cassandra is kept there")?;
    Ok(base.join("dprof/cassandra"))
}

/// Folder of a version's jars.
pub fn jars(version: &str) -> Result<PathBuf> {
    Ok(home()?.join(version))
}

/// A ring, running or not.
#[derive(Clone, Debug)]
pub struct Ring {
    folder: PathBuf,
    jars: PathBuf,
    /// What it was started with.
    pub options: Options,
}

impl Ring {
    /// The ring that was started last, if it was not ended.
    pub fn find() -> Result<Option<Self>> {
        let folder = home()?.join("ring");
        let Ok(text) = fs::read_to_string(folder.join("options")) else { return Ok(None) };
        let Some(options) = Options::from_text(&text) else {
            bail!("{} is not readable: remove the folder", folder.join("options").display());
        };
        Ok(Some(Self { jars: jars(&options.version)?, folder, options }))
    }

    /// Starts a ring and waits until every node answers and knows all others. Fails if one is there already.
    pub fn start(options: Options, interrupted: &dyn Fn() -> Result<()>) -> Result<Self> {
        ensure!((1..=NODES_MAX).contains(&options.n_nodes), "1 to {NODES_MAX} nodes");
        if Self::find()?.is_some_and(|ring| ring.n_running() > 0) {
            bail!("a ring is up already: cargo xtask cassandra down");
        }
        for node in 1..=options.n_nodes {
            let address = SocketAddr::from((address(node), handshake::PORT));
            // Threads of a node that was ended a moment ago may still hold it.
            poll::until(FREE_WITHIN, "port", || TcpStream::connect(address).is_err().then_some(()))
                .map_err(|_| anyhow!("something else listens on {address}"))?;
        }
        let folder = home()?.join("ring");
        if let Err(error) = fs::remove_dir_all(&folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("remove {}", folder.display()));
        }
        fs::create_dir_all(folder.join("log")).with_context(|| format!("create {}", folder.display()))?;
        fs::write(folder.join("options"), options.to_text())?;
        let ring = Self { jars: jars(&options.version)?, folder, options };
        if ring.options.secure {
            ensure!(ring.options.n_nodes == 1, "a ring with passwords and certificates has one node");
            ring.keys().make()?;
        }
        let started = ring.start_all().and_then(|()| ring.wait_ready(interrupted));
        if let Err(error) = started {
            ring.stop()?;
            return Err(error);
        }
        Ok(ring)
    }

    fn start_all(&self) -> Result<()> {
        (1..=self.options.n_nodes).try_for_each(|node| self.start_node(node))
    }

    /// Starts one node, with the data that it has.
    pub fn start_node(&self, node: u8) -> Result<()> {
        let folder = self.node_folder(node);
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        fs::write(folder.join("cassandra.yaml"), config::yaml(node, &folder, &self.options))?;
        fs::write(folder.join("logback.xml"), config::LOGBACK)?;
        let log = File::options().create(true).append(true).open(self.log(node))?;
        let mut command = Command::new(java()?);
        command.args(config::machine_options(&self.options, &self.jars));
        let archive = archive(&self.jars);
        if archive.is_file() {
            command.arg(format!("-XX:SharedArchiveFile={}", archive.display())).arg("-Xshare:auto");
        }
        command.args(config::node_options(node, &folder));
        let pid = spawn(command, &self.jars, &folder, log)?;
        fs::write(folder.join("pid"), format!("{pid}\n"))?;
        Ok(())
    }

    /// Waits until every node answers and knows all others.
    pub fn wait_ready(&self, interrupted: &dyn Fn() -> Result<()>) -> Result<()> {
        for node in 1..=self.options.n_nodes {
            self.wait_node(node, interrupted)?;
        }
        Ok(())
    }

    /// Waits until one node answers and knows all others.
    pub fn wait_node(&self, node: u8, interrupted: &dyn Fn() -> Result<()>) -> Result<()> {
        let others = u32::from(self.options.n_nodes) - 1;
        poll::until(READY_WITHIN, &format!("node {node} answers and knows {others} others"), || {
            if let Err(error) = interrupted() {
                return Some(Err(error));
            }
            if self.pid(node).is_none() {
                return Some(Err(anyhow::anyhow!("node {node} ended:\n{}", self.last_lines(node))));
            }
            // A look costs the node a connection; 20 in a second are enough.
            std::thread::sleep(Duration::from_millis(50));
            self.is_ready(node, others).then_some(Ok(()))
        })?
    }

    /// Keys and credentials of a ring with passwords and certificates.
    pub fn keys(&self) -> Keys {
        Keys::at(&secure::keys_folder(&self.node_folder(1)))
    }

    /// A node that asks for certificates is not asked: it says itself when it listens and has its first user.
    fn is_ready(&self, node: u8, others: u32) -> bool {
        if !self.options.secure {
            return handshake::n_peers(address(node)).is_ok_and(|peers| peers >= others);
        }
        let log = fs::read(self.log(node)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        ["Starting listening for CQL clients", "Created default superuser role"]
            .iter()
            .all(|words| log.contains(words))
    }

    /// Process id of a running node.
    pub fn pid(&self, node: u8) -> Option<i32> {
        let folder = self.node_folder(node);
        let pid = self.written_pid(node)?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let config = format!("file://{}/cassandra.yaml", folder.display());
        command.windows(config.len()).any(|window| window == config.as_bytes()).then_some(pid)
    }

    fn written_pid(&self, node: u8) -> Option<i32> {
        fs::read_to_string(self.node_folder(node).join("pid")).ok()?.trim().parse().ok()
    }

    /// Sends a signal to a node.
    pub fn signal(&self, node: u8, signal: i32) -> Result<()> {
        let pid = self.pid(node).with_context(|| format!("node {node} does not run"))?;
        // SAFETY: plain system call; the process was a node of ours just now.
        let result = unsafe { libc::kill(pid, signal) };
        ensure!(result == 0, "signal node {node}: {}", io::Error::last_os_error());
        Ok(())
    }

    /// Waits until a node has ended.
    pub fn wait_ended(&self, node: u8) -> Result<()> {
        poll::until(STOP_WITHIN, &format!("node {node} ends"), || {
            let running = self.pid(node);
            if let Some(pid) = self.written_pid(node) {
                reap(pid);
            }
            running.is_none().then_some(())
        })
    }

    /// How many nodes run.
    pub fn n_running(&self) -> usize {
        (1..=self.options.n_nodes).filter(|node| self.pid(*node).is_some()).count()
    }

    /// Ends every node and removes its data; the logs stay.
    pub fn stop(&self) -> Result<()> {
        // Without ado: nothing that a node would still write is kept. Asked to end, it takes 13 s.
        for node in 1..=self.options.n_nodes {
            if self.pid(node).is_some() {
                self.signal(node, libc::SIGKILL)?;
            }
        }
        for node in 1..=self.options.n_nodes {
            self.wait_ended(node)?;
            let folder = self.node_folder(node);
            fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        fs::remove_file(self.folder.join("options")).context("forget the ring")
    }

    /// Contact points, for a store's URL.
    pub fn hosts(&self) -> String {
        let hosts: Vec<String> = (1..=self.options.n_nodes).map(|node| address(node).to_string()).collect();
        hosts.join(",")
    }

    /// A node's log.
    pub fn log(&self, node: u8) -> PathBuf {
        self.folder.join(format!("log/node{node}.log"))
    }

    /// A node's files.
    pub fn node_folder(&self, node: u8) -> PathBuf {
        self.folder.join(format!("node{node}"))
    }

    /// Runs Cassandra's own `nodetool` against a node; what it prints.
    pub fn nodetool(&self, node: u8, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(java()?);
        command.args(config::module_options());
        command.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m"]);
        let folder = self.node_folder(node);
        command.arg(format!("-Duser.home={}", folder.display()));
        command.arg(format!("-Dlogback.configurationFile=file:{}/logback.xml", folder.display()));
        command.arg("-cp").arg(class_path(&self.jars)?).arg("org.apache.cassandra.tools.NodeTool");
        command.args(["-h", "127.0.0.1", "-p", &config::jmx_port(node).to_string()]).args(arguments);
        let output = command.output().context("start nodetool")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "nodetool {}: {said}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn last_lines(&self, node: u8) -> String {
        let text = fs::read(self.log(node)).map(|text| String::from_utf8_lossy(&text).into_owned());
        let text = text.unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
    }
}

/// Makes an archive of the classes that a node loads, which halves its start: runs one node once. None for a version
/// whose virtual machine has an agent, which allows none.
pub fn make_archive(version: &str, interrupted: &dyn Fn() -> Result<()>) -> Result<()> {
    let jars = jars(version)?;
    let made = archive(&jars);
    if made.is_file() || config::agent(&jars).is_some() {
        return Ok(());
    }
    let options = Options { version: version.to_owned(), warm: false, heap_mb: 256, ..Options::new(1) };
    let ring = Ring { folder: home()?.join("archive"), jars: jars.clone(), options };
    fs::create_dir_all(ring.folder.join("log"))?;
    let folder = ring.node_folder(1);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("cassandra.yaml"), config::yaml(1, &folder, &ring.options))?;
    fs::write(folder.join("logback.xml"), config::LOGBACK)?;
    let unfinished = jars.join("classes.tmp");
    let mut command = Command::new(java()?);
    command.args(config::machine_options(&ring.options, &jars));
    command.arg(format!("-XX:ArchiveClassesAtExit={}", unfinished.display()));
    command.args(config::node_options(1, &folder));
    let pid = spawn(command, &jars, &folder, File::create(ring.log(1))?)?;
    fs::write(folder.join("pid"), format!("{pid}\n"))?;
    let ran = ring.wait_ready(interrupted).and_then(|()| ring.signal(1, libc::SIGTERM));
    if ran.is_err() && ring.pid(1).is_some() {
        ring.signal(1, libc::SIGKILL)?;
    }
    let ended = ring.wait_ended(1);
    if ended.is_err() && ring.pid(1).is_some() {
        ring.signal(1, libc::SIGKILL)?;
    }
    ran.and(ended).with_context(|| format!("see {}", ring.log(1).display()))?;
    fs::remove_dir_all(&ring.folder).context("remove the folder of the archive's node")?;
    fs::rename(&unfinished, &made).context("the virtual machine wrote no archive of classes")
}

/// Whether there is an archive of the classes of a version.
pub fn has_archive(version: &str) -> Result<bool> {
    Ok(archive(&jars(version)?).is_file())
}

fn archive(jars: &Path) -> PathBuf {
    jars.join("classes.jsa")
}

fn class_path(jars: &Path) -> Result<String> {
    let mut files: Vec<String> = fs::read_dir(jars.join("lib"))
        .with_context(|| format!("no jars in {}: cargo xtask cassandra up fetches them", jars.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "jar"))
        .map(|path| path.display().to_string())
        .collect();
    // The archive of classes holds only for the same order.
    files.sort();
    Ok(files.join(":"))
}

/// A Java that runs Cassandra: 17 where Debian puts it, else the one on the path.
fn java() -> Result<PathBuf> {
    let debian = Path::new("/usr/lib/jvm/java-17-openjdk-amd64/bin/java");
    if debian.is_file() {
        return Ok(debian.to_owned());
    }
    installed("java").context("no java: on Debian, apt-get install openjdk-17-jdk-headless")
}

/// Starts a node as a process group of its own, with nothing of ours.
fn spawn(mut command: Command, jars: &Path, folder: &Path, log: File) -> Result<u32> {
    command.arg("-cp").arg(class_path(jars)?).arg("org.apache.cassandra.service.CassandraDaemon");
    command.current_dir(folder).stdin(Stdio::null()).stderr(log.try_clone()?).stdout(log).process_group(0);
    // SAFETY: between fork and exec only async-signal-safe system calls are made.
    unsafe {
        command.pre_exec(|| {
            // With the right to lock memory the whole heap becomes resident; refused without privilege, and then
            // there is nothing to give up.
            let _ = libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0);
            Ok(())
        });
    }
    Ok(command.spawn().context("start a node")?.id())
}

/// Takes the exit status of a node that this process started, so that it leaves the process table.
fn reap(pid: i32) {
    // SAFETY: plain system call without memory; a process that is not our child is refused.
    let _ = unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
}

#[cfg(test)]
mod tests {
    use super::Options;

    #[test]
    fn options_survive_their_file() {
        let options = Options { sync_every_write: true, secure: true, ..Options::new(3) };
        assert_eq!(Options::from_text(&options.to_text()), Some(options));
        assert_eq!(Options::from_text("5.0.9 x"), None);
    }
}
