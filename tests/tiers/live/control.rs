//! What a fleet is told while it runs: obeyed on every machine within ten seconds, refused where it is bad, kept where
//! the store is away; and nothing of the load is missed meanwhile.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dprof_common::settings::Scope;
use dprof_store::StoreUrl;
use dprof_store::control::{AgentState, ConfigStatus, Control, Document, open_control};
use dprof_tests::agent::{Agent, binary};
use dprof_tests::client::DONE;
use dprof_tests::netns::{Netns, Network};
use dprof_tests::program::Program;
use dprof_tests::steady::Steady;
use dprof_tests::wire::Protocol;
use dprof_tests::{cli, clock, poll, subject};

use crate::harness::{Live, stored};

/// What the issue of a change may take, agents' looks and reports included.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks at the agents' rows: each opens the store.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a load may take beyond its time.
const END_WITHIN: Duration = Duration::from_secs(30);
/// The port of each machine's own Redis.
const PORT: u16 = 6379;

/// Asks the control side of a store.
fn ask<T>(store: &str, what: impl AsyncFnOnce(&dyn Control) -> Result<T>) -> Result<T> {
    let url: StoreUrl = store.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { what(&*open_control(&url, false).await?).await })
}

/// The newest rows of all agents.
pub(crate) fn agents(store: &str) -> Result<Vec<AgentState>> {
    let now_ns = clock::unix_us() * 1_000;
    ask(store, async move |control| Ok(control.agents(now_ns).await?))
}

/// Waits until the agents of these hosts say so.
pub(super) fn wait_for(
    store: &str,
    hosts: &[&str],
    what: &str,
    holds: impl Fn(&AgentState) -> bool,
) -> Result<()> {
    let mut last = Vec::new();
    let waited = poll::until(IN_FORCE_WITHIN, what, || {
        thread::sleep(LOOK_EVERY);
        last = agents(store).unwrap_or_default();
        let says = |host: &&str| last.iter().find(|agent| agent.host == **host).is_some_and(&holds);
        hosts.iter().all(says).then_some(())
    });
    waited.with_context(|| format!("{last:#?}"))
}

pub(super) fn in_force(version: u64) -> impl Fn(&AgentState) -> bool {
    move |agent| {
        let config = &agent.config;
        config.status == ConfigStatus::InForce && config.in_force.get("cluster") == Some(&version)
    }
}

/// Sets keys as a user does.
pub(super) fn set(store: &str, pairs: &[&str]) -> Result<()> {
    let output = cli::run(store, &[&["config", "set"], pairs].concat())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Writes a version as no command line would.
fn write_past(store: &str, version: u64, body: &str) -> Result<()> {
    let document = Document { version, body: body.to_owned(), ..Document::none(Scope::Cluster) };
    let written = ask(store, async move |control| Ok(control.append(&document).await?))?;
    ensure!(written, "version {version} follows the last");
    Ok(())
}

/// Some hundred requests a second from this machine to its own Redis.
fn load(folder: &Path, machine: &Netns, name: &str, seconds: u64) -> Result<Program> {
    let load = Steady {
        targets: vec![([127, 0, 0, 1], PORT).into()],
        protocol: Protocol::Redis,
        connections: 4,
        per_second: 100,
        seconds,
        keys: 1_000,
        commands: vec!["GET {key}".to_owned()],
        seed: 7,
        dial: folder.join("no.dial"),
    };
    let file = folder.join(format!("{name}.json"));
    fs::write(&file, serde_json::to_string(&load)?).context("write the load")?;
    Program::start(name, folder, machine.command(binary("test-steady")).arg(file))
}

/// How many answers came.
pub(super) fn end(load: Program, seconds: u64) -> Result<u64> {
    let ended = load.wait(Duration::from_secs(seconds) + END_WITHIN)?.success()?;
    let done = ended.stdout.lines().find_map(|line| line.strip_prefix(DONE)?.trim().parse().ok());
    done.with_context(|| format!("the load says how much it did: {} {}", ended.stdout, ended.stderr))
}

/// A folder under a name that can be given to another folder: a store that is there, or is not.
struct Switch {
    link: PathBuf,
    store: PathBuf,
    away: PathBuf,
}

impl Switch {
    fn new(folder: &Path) -> Result<Self> {
        let (store, away) = (folder.join("store"), folder.join("away"));
        fs::create_dir_all(&store)?;
        fs::create_dir_all(&away)?;
        fs::write(away.join("control.db"), "this is no database, whatever its name says")?;
        let switch = Self { link: folder.join("link"), store, away };
        switch.turn(true)?;
        Ok(switch)
    }

    fn turn(&self, there: bool) -> Result<()> {
        let new = self.link.with_extension("new");
        symlink(if there { &self.store } else { &self.away }, &new)?;
        fs::rename(&new, &self.link).context("turn the switch")
    }
}

#[test]
fn three_agents_obey_within_ten_seconds_refuse_what_is_bad_and_lose_nothing() -> Result<()> {
    const SECONDS: u64 = 30;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let hosts = ["node-0", "node-1", "node-2"];
    let addresses = [1, 2, 3].map(|n| [10, 77, 0, n].into());
    let network = Network::new(live.path(), &addresses)?;
    let mut servers = Vec::new();
    for (host, machine) in hosts.iter().zip(network.machines()) {
        let folder = live.path().join(host);
        fs::create_dir_all(&folder)?;
        let server = &mut machine.command(subject::find("redis-server"));
        servers.push(subject::redis_on(&folder, server, &["127.0.0.1"], PORT)?);
    }
    let switch = Switch::new(live.path())?;
    let store = format!("sqlite:{}", switch.store.display());
    let linked = format!("sqlite:{}", switch.link.display());
    let start = |number: usize, store: &str| {
        let state = live.path().join(hosts[number]).join("state").display().to_string();
        let options = ["--port", "6379", "--state", &state, "-v"].map(str::to_owned);
        Agent::on_machine(live.path(), store, network.machine(number), hosts[number], &options)
    };
    let (first, second) = (start(0, &store)?, start(1, &store)?);
    let third = start(2, &linked)?;
    let loads = hosts.iter().zip(network.machines());
    let loads = loads.map(|(host, machine)| load(live.path(), machine, &format!("load-{host}"), SECONDS));
    let loads = loads.collect::<Result<Vec<_>>>()?;

    set(&store, &["trace.keep_ratio=1/8", "--comment", "less"])?;
    wait_for(&store, &hosts, "the ratio is in force on every agent", in_force(1))?;
    wait_for(&store, &hosts, "what every agent does shows", |agent| {
        agent.events_per_s > 0.0 && agent.cpu_share > 0.0
    })?;
    write_past(&store, 2, r#"{"trace.keep_ratio": "12", "trace.keep_slow": "false"}"#)?;
    wait_for(&store, &hosts, "a bad value is refused and the last good stays", |agent| {
        let config = &agent.config;
        config.status == ConfigStatus::Refused
            && config.reason.contains("trace.keep_ratio")
            && config.versions.get("cluster") == Some(&2)
            && config.in_force.get("cluster") == Some(&1)
    })?;
    set(&store, &["trace.keep_ratio=1/4", "trace.keep_slow=true"])?;
    wait_for(&store, &hosts, "the next good one is in force", in_force(3))?;
    let others = ["filter.ports=6379,6380", "capture.protocols=redis", "limits.hold=2s", "limits.held=50000"];
    set(&store, &others)?;
    wait_for(&store, &hosts, "ports, protocols and limits are in force", |agent| {
        in_force(4)(agent) && agent.config.at_restart.is_empty()
    })?;
    switch.turn(false)?;
    set(&store, &["trace.keep_ratio=1/2"])?;
    wait_for(&store, &hosts[..2], "those that see the store obey", in_force(5))?;
    poll::until(IN_FORCE_WITHIN, "the one that is cut off says so", || {
        third.program.stderr().contains("configuration cannot be asked for").then_some(())
    })?;
    switch.turn(true)?;
    wait_for(&store, &hosts, "the one that was cut off catches up", in_force(5))?;

    let mut answers = 0;
    for load in loads {
        answers += end(load, SECONDS)?;
    }
    for agent in agents(&store)? {
        assert!(agent.lost.is_empty() && !agent.addresses.is_empty(), "{agent:#?}");
    }
    let said = [first.stop()?, second.stop()?, third.stop()?].map(|ended| ended.stderr).join("\n");
    assert_eq!(cli::count(&store, "server", "GET")?, answers, "{said}");
    let rows = agents(&store)?;
    assert!(rows.len() == hosts.len() && rows.iter().all(|agent| agent.ended), "{rows:#?}");

    // Without the store the copy is in force from the first span on.
    switch.turn(false)?;
    let third = start(2, &linked)?;
    let said = third.program.stderr();
    ensure!(said.contains("configuration in force: cluster 5"), "{said}");
    let load = load(live.path(), network.machine(2), "load-again", 2)?;
    end(load, 2)?;
    third.stop()?;
    let spans = stored(&format!("sqlite:{}", switch.away.display()))?;
    let by_ratio = spans.iter().filter(|span| span.reason == dprof_common::model::KeepReason::Ratio);
    let probabilities: Vec<f64> = by_ratio.map(|span| span.probability).collect();
    assert!(!probabilities.is_empty(), "{said}");
    assert!(probabilities.iter().all(|probability| (probability - 0.5).abs() < 1e-9), "{probabilities:?}");
    drop(servers);
    Ok(())
}

#[test]
fn a_capture_window_opens_and_closes_as_it_is_configured() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let port = redis.port.to_string();
    let agent = Agent::start(live.path(), &["--port", &port, "--alone", "--host", "lone", "-v"])?;
    let store = agent.store.clone();
    let ask_for = |seconds: u64| -> Result<u64> {
        let load = Steady {
            targets: vec![redis.address()],
            protocol: Protocol::Redis,
            connections: 4,
            per_second: 200,
            seconds,
            keys: 1_000,
            commands: vec!["GET {key}".to_owned()],
            seed: 7,
            dial: live.path().join("no.dial"),
        };
        let file = live.path().join("load.json");
        fs::write(&file, serde_json::to_string(&load)?)?;
        end(Program::start("load", live.path(), Command::new(binary("test-steady")).arg(file))?, seconds)
    };
    let whole = ask_for(1)?;
    set(&store, &["capture.duty_cycle=1/4", "capture.window=100ms"])?;
    wait_for(&store, &["lone"], "the window is in force", in_force(1))?;
    let windows = ask_for(3)?;
    ensure!(cli::run(&store, &["config", "unset", "capture.duty_cycle"])?.status.success());
    wait_for(&store, &["lone"], "everything is captured again", in_force(2))?;
    let again = ask_for(1)?;
    let ended = agent.stop()?;
    let counted = cli::count(&store, "server", "GET")?;
    let seen = counted.checked_sub(whole + again).context("what came outside of the time of windows")?;
    let part = seen as f64 / windows as f64;
    // A quarter of the time, less what the edges cost.
    assert!((0.05..0.5).contains(&part), "{seen} of {windows}: {}", ended.stderr);
    Ok(())
}
