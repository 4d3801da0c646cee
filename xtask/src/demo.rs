//! `cargo xtask demo`: real Redis behind real nutcracker under real load, watched by the agent; then what the
//! command line answers. All in a temporary folder; everything is ended and removed, also when interrupted.
//!
//! Where capturing is not possible (no root, another distribution, a kernel that lacks something) it says why and
//! shows the same answers on a recording of this very demo.

use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::{env, io};

use anyhow::{Context as _, Result, bail, ensure};
use dprof_tests::agent::{Agent, binary};
use dprof_tests::program::Program;
use dprof_tests::subject::{self, Subject, find};
use dprof_tests::{cli, poll};

use crate::cassandra::RunningRing;
use crate::interrupt::Interrupt;
use crate::setup::{self, Missing, Need};
use crate::step::{Steps, say};
use crate::{build, paths};

/// How long the load may take: some seconds on an idle machine.
const LOAD_WITHIN: Duration = Duration::from_mins(2);

/// How the demo was recorded is in `tests/data/README.md`.
const RECORDING: &str = "tests/data/demo.dprof";

/// What the load does through the proxy: `redis-benchmark` options.
const LOAD: [&str; 6] = ["-n", "20000", "-c", "8", "-t", "set,get"];

/// Runs the demo, or replays it; on a Cassandra ring of its own if that is asked for.
pub(crate) fn run(on_cassandra: bool) -> Result<()> {
    let steps = Steps::new()?;
    let folder = tempfile::Builder::new().prefix("dprof-demo-").tempdir().context("create a folder")?;
    let can_capture = match prepare(&steps) {
        Ok(()) => true,
        Err(error) => {
            let missing = error.downcast::<Missing>()?;
            say(&format!("{missing}\nInstead, a recording of this demo is replayed."));
            build::workspace(&steps)?;
            false
        }
    };
    let ring = if on_cassandra { Some(RunningRing::start(&steps)?) } else { None };
    let store = match &ring {
        Some(ring) => {
            let store = format!("cassandra://{}/dprof", ring.hosts());
            shown(&store, &["store", "init"])?;
            store
        }
        None => format!("sqlite:{}", folder.path().join("store").display()),
    };
    if can_capture {
        capture(&steps, folder.path(), &store)?;
    } else {
        replay(folder.path(), &store)?;
    }
    steps.interrupt().check()?;
    show(&store)?;
    if on_cassandra {
        shown(&store, &["store", "info"])?;
    }
    if let Some(ring) = ring {
        ring.stop()?;
    }
    what_next();
    Ok(())
}

/// Sets up and builds, if this machine can capture.
fn prepare(steps: &Steps) -> Result<()> {
    if !setup::is_root() {
        return Err(Missing(
            "missing: the right to load kernel programs. Run this command as root.".to_owned(),
        )
        .into());
    }
    build::everything(steps, Need::DEMO)?;
    let doctor = Command::new(binary("dprof-agent")).arg("doctor").output().context("start dprof-agent")?;
    if !doctor.status.success() {
        let said = String::from_utf8_lossy(&doctor.stdout);
        return Err(Missing(format!("missing: what dprof-agent doctor says of this kernel:\n{said}")).into());
    }
    Ok(())
}

/// Runs the programs, the load and the agent in `folder`.
fn capture(steps: &Steps, folder: &Path, store: &str) -> Result<()> {
    let redis = subject::redis(folder)?;
    let proxy = subject::nutcracker(folder, &[&redis])?;
    let ports = format!("{},{}", redis.port, proxy.port);
    say(&format!(
        "redis-server on port {}, nutcracker before it on port {}, dprof-agent watches both",
        redis.port, proxy.port
    ));
    let spool = folder.join("spool").display().to_string();
    let mut options = vec!["--port", &ports, "--spool", &spool];
    let record = env::var(RECORD_VARIABLE).ok();
    if let Some(file) = &record {
        options.extend(["--record", file, "--record-redacted"]);
    }
    let agent = Agent::start_with(folder, store, &mut Command::new(binary("dprof-agent")), &options)?;
    put_under_load(steps.interrupt(), folder, &redis, &proxy, record.is_some())?;
    let ended = agent.stop()?;
    say(ended.stderr.trim_end());
    Ok(())
}

/// Names a file into which the demo is recorded, with less load: for those who renew the checked-in one.
const RECORD_VARIABLE: &str = "DPROF_DEMO_RECORD";

/// Many ordinary requests through the proxy, and a few that are slow each in its own way.
fn put_under_load(
    interrupt: &Interrupt,
    folder: &Path,
    redis: &Subject,
    proxy: &Subject,
    few: bool,
) -> Result<()> {
    say("load: redis-benchmark through the proxy, and a few slow commands");
    let (redis, proxy) = (redis.port.to_string(), proxy.port.to_string());
    let mut list = vec!["RPUSH", "orders"];
    list.resize(300, "an order of one of our customers");
    redis_cli(&proxy, &list)?;
    redis_cli(&proxy, &["LRANGE", "orders", "0", "-1"])?;
    let mut options = LOAD;
    if few {
        options[1] = "300";
    }
    let mut benchmark = Command::new(find("redis-benchmark"));
    benchmark.args(["-p", &proxy, "-q"]).args(options);
    let mut load = Program::start("redis-benchmark", folder, &mut benchmark)?;
    // One reads all of a list, one makes Redis stop for everybody, one goes through all keys.
    redis_cli(&proxy, &["LRANGE", "orders", "0", "-1"])?;
    redis_cli(&redis, &["DEBUG", "SLEEP", "0.05"])?;
    redis_cli(&proxy, &["LRANGE", "orders", "0", "-1"])?;
    redis_cli(&redis, &["KEYS", "*"])?;
    redis_cli(&proxy, &["GET", "customer:42"])?;
    poll::until(LOAD_WITHIN, "the load ends", || {
        interrupt.check().map(|()| (!load.is_running()).then_some(())).transpose()
    })??;
    load.wait(LOAD_WITHIN)?.success()?;
    Ok(())
}

/// One command; the reply does not matter, an error does.
fn redis_cli(port: &str, words: &[&str]) -> Result<()> {
    let mut command = Command::new(find("redis-cli"));
    let output = command.args(["-e", "-p", port]).args(words).output().context("start redis-cli")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "redis-cli {}: {said}", words[0]);
    Ok(())
}

/// Replays the checked-in recording into the store.
fn replay(folder: &Path, store: &str) -> Result<()> {
    let recording = paths::root().join(RECORDING);
    let mut agent = Command::new(binary("dprof-agent"));
    agent.args(["--store", store, "--spool"]).arg(folder.join("spool"));
    let output = agent.arg("--replay").arg(&recording).output().context("start dprof-agent")?;
    if !output.status.success() {
        bail!("replay {RECORDING}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The answers.
fn show(store: &str) -> Result<()> {
    shown(store, &["slowest-spans", "--since", "all", "--limit", "8"])?;
    if let Some(trace) = slowest_tree(store)? {
        shown(store, &["trace", &trace])?;
    }
    shown(store, &["stats", "--since", "all"])
}

/// Trace of the slowest request to the proxy: it has a call to Redis below it.
fn slowest_tree(store: &str) -> Result<Option<String>> {
    let question =
        ["slowest-spans", "--since", "all", "--service", "nutcracker", "--kind", "server", "--limit", "1"];
    let rows = cli::json(store, &question)?;
    Ok(rows.first().and_then(|row| row["trace_id"].as_str()).map(str::to_owned))
}

/// Runs a command as a reader would type it, its output straight to the terminal.
fn shown(store: &str, arguments: &[&str]) -> Result<()> {
    say(&format!("\n$ dprof-cli {}", arguments.join(" ")));
    let status = cli::command(store, arguments).stdout(io::stdout()).status().context("start dprof-cli")?;
    ensure!(status.success(), "dprof-cli {} ended with {status}", arguments[0]);
    Ok(())
}

fn what_next() {
    let folder = binary("");
    let folder = folder.display();
    say(&format!(
        "\nThe demo's programs are ended and its store is removed. On your own programs, as they run:\n  \
         sudo {folder}dprof-agent --for 30s --summary     # a table of all operations, nothing stored\n  \
         sudo {folder}dprof-agent                         # watch and store, until Ctrl-C\n  \
         {folder}dprof-cli slowest-spans                  # at the same time, in another terminal\n  \
         {folder}dprof-cli trace ID                       # an id that the line above printed"
    ));
}
