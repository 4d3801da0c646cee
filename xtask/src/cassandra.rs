//! `cargo xtask cassandra up | down | status | cql`: a real ring on this machine, from the artifacts of Maven Central.
//!
//! The jars are fetched once by the ordinary `mvn`, into the cache folder, never into the repository. The ring
//! itself is in `dprof_tests::cassandra`, which the tests use too.

use std::fs;
use std::io::{self, Write as _};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use dprof_tests::cassandra::{self, NODES_MAX, Options, Ring, VERSION, VERSION_OLD, address};
use dprof_tests::clock;

use crate::paths;
use crate::setup::{self, Need};
use crate::step::{Steps, say};

/// Names the file with user, password and TLS, for agent and command line.
const CREDENTIALS: &str = "DPROF_STORE_CREDENTIALS";

/// What to do with the ring.
#[derive(Subcommand)]
pub(crate) enum Task {
    /// Start a ring on 127.0.0.1, .2, .3 and wait until it answers
    Up(Up),
    /// End every node and remove its data; the logs stay
    Down,
    /// Show whether it runs, and where its logs are
    Status,
    /// Run one CQL statement and print its rows
    Cql {
        /// The statement
        statement: String,
    },
}

/// How the ring is started.
#[derive(Args)]
pub(crate) struct Up {
    /// How many nodes, 1 to 3
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=i64::from(NODES_MAX)))]
    nodes: u8,
    /// Version of Cassandra
    #[arg(long, default_value = VERSION)]
    version: String,
    /// Heap of each node, MB [default: 512 for one node, 256 for more]
    #[arg(long)]
    heap_mb: Option<u32>,
    /// Acknowledge a write only when it is on disk
    #[arg(long)]
    sync_every_write: bool,
    /// Ask clients for a password and a certificate; one node
    #[arg(long)]
    secure: bool,
}

/// Runs it.
pub(crate) fn run(task: Task) -> Result<()> {
    match task {
        Task::Up(up) => {
            let steps = Steps::new()?;
            let mut options = Options { version: up.version, ..Options::new(up.nodes) };
            options.heap_mb = up.heap_mb.unwrap_or(options.heap_mb);
            options.sync_every_write = up.sync_every_write;
            options.secure = up.secure;
            let ring = start(&steps, options)?;
            say(&format!("store: cassandra://{}/dprof", ring.hosts()));
            if ring.options.secure {
                say(&format!("credentials: export {CREDENTIALS}={}", ring.keys().credentials().display()));
            }
            Ok(())
        }
        Task::Down => {
            let Some(ring) = Ring::find()? else {
                say("no ring is up");
                return Ok(());
            };
            ring.stop()?;
            say(&format!("ended; its logs: {}", ring.log(1).with_file_name("").display()));
            Ok(())
        }
        Task::Status => status(),
        Task::Cql { statement } => cql(&statement),
    }
}

/// Fetches what is missing, starts a ring and waits for it.
pub(crate) fn start(steps: &Steps, options: Options) -> Result<Ring> {
    fetch(steps, &options.version)?;
    let started = clock::now();
    let nodes = if options.n_nodes == 1 { "1 node".to_owned() } else { format!("{} nodes", options.n_nodes) };
    let ring = Ring::start(options, &|| steps.interrupt().check())?;
    steps.say(&format!(
        "Cassandra {}, {nodes}: up in {:.1} s",
        ring.options.version,
        started.elapsed().as_secs_f64()
    ));
    Ok(ring)
}

/// A ring that ends with whoever started it, however that ends.
pub(crate) struct RunningRing(Option<Ring>);

impl RunningRing {
    /// Three nodes. A write is acknowledged only when it is on disk, so that nodes that are killed lose nothing.
    pub(crate) fn start(steps: &Steps) -> Result<Self> {
        let options = Options { sync_every_write: true, ..Options::new(NODES_MAX) };
        start(steps, options).map(|ring| Self(Some(ring)))
    }

    /// One node of the oldest version that is supported.
    pub(crate) fn start_old(steps: &Steps) -> Result<Self> {
        let options =
            Options { version: VERSION_OLD.to_owned(), warm: false, heap_mb: 256, ..Options::new(1) };
        start(steps, options).map(|ring| Self(Some(ring)))
    }

    /// One node that asks for a password and a certificate.
    pub(crate) fn start_secure(steps: &Steps) -> Result<Self> {
        let options = Options { secure: true, warm: false, heap_mb: 256, ..Options::new(1) };
        start(steps, options).map(|ring| Self(Some(ring)))
    }

    /// Contact points.
    pub(crate) fn hosts(&self) -> String {
        self.0.as_ref().map_or_else(String::new, Ring::hosts)
    }

    /// Ends it and removes its data.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.0.take().map_or(Ok(()), |ring| ring.stop())
    }
}

impl Drop for RunningRing {
    fn drop(&mut self) {
        if let Some(ring) = self.0.take()
            && let Err(error) = ring.stop()
        {
            say(&format!("{error:#}"));
        }
    }
}

/// Fetches the jars of a version and makes the archive of their classes, if that was not done before.
pub(crate) fn fetch(steps: &Steps, version: &str) -> Result<()> {
    setup::ensure(steps, Need::CASSANDRA)?;
    let folder = cassandra::jars(version)?;
    if !folder.join("lib").is_dir() {
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        fs::write(folder.join("pom.xml"), pom("org.apache.cassandra", "cassandra-all", version))?;
        let mut mvn = Command::new("mvn");
        mvn.current_dir(&folder).args([
            "-B",
            "-q",
            "dependency:copy-dependencies",
            "-DoutputDirectory=lib.tmp",
        ]);
        steps.run(&format!("Cassandra {version} from Maven Central"), &mut mvn)?;
        fs::rename(folder.join("lib.tmp"), folder.join("lib")).context("mvn copied no jars")?;
    }
    let started = clock::now();
    let is_new = !cassandra::has_archive(version)?;
    cassandra::make_archive(version, &|| steps.interrupt().check())?;
    if is_new && cassandra::has_archive(version)? {
        steps.say(&format!("archive of its classes: done in {:.1} s", started.elapsed().as_secs_f64()));
    }
    Ok(())
}

/// A project that depends on one artifact.
fn pom(group: &str, artifact: &str, version: &str) -> String {
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">
  <modelVersion>4.0.0</modelVersion><groupId>dprof</groupId><artifactId>ring</artifactId><version>1</version>
  <dependencies><dependency>
    <groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>
  </dependency></dependencies>
</project>
"
    )
}

fn status() -> Result<()> {
    let Some(ring) = Ring::find()? else {
        say("no ring is up");
        return Ok(());
    };
    for node in 1..=ring.options.n_nodes {
        let state = ring.pid(node).map_or_else(|| "ended".to_owned(), |pid| format!("runs, pid {pid}"));
        say(&format!("node {node}, {}: {state}, log {}", address(node), ring.log(node).display()));
    }
    if ring.n_running() > 0 {
        let node = (1..=ring.options.n_nodes).find(|node| ring.pid(*node).is_some()).unwrap_or(1);
        say(ring.nodetool(node, &["status"])?.trim());
    }
    Ok(())
}

/// Through the driver, in a program of the store's: xtask itself stays small.
fn cql(statement: &str) -> Result<()> {
    let ring = Ring::find()?.context("no ring is up: cargo xtask cassandra up")?;
    for row in cql_rows(&ring, statement)? {
        writeln!(io::stdout(), "{row}")?;
    }
    Ok(())
}

/// The names of the columns and the rows of a statement.
pub(crate) fn cql_rows(ring: &Ring, statement: &str) -> Result<Vec<String>> {
    let mut command = Command::new("cargo");
    command.current_dir(paths::root()).args(["run", "-q", "-p", "dprof-store", "--example", "cql", "--"]);
    if ring.options.secure {
        command.env(CREDENTIALS, ring.keys().credentials());
    }
    let output = command.args([&ring.hosts(), statement]).output().context("start cargo")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::pom;

    #[test]
    fn the_project_names_its_one_artifact() {
        let text = pom("org.apache.cassandra", "cassandra-all", "5.0.9");
        assert!(
            text.contains("<groupId>org.apache.cassandra</groupId><artifactId>cassandra-all</artifactId>")
        );
        assert!(text.contains("<version>5.0.9</version>"));
    }
}
