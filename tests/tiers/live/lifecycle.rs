//! How the agent ends: everything finished is stored, whoever ends it.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use dprof_tests::agent::Agent;
use dprof_tests::{cli, poll, subject};

use super::counts::benchmark;
use crate::harness::resp::Resp;
use crate::harness::{Live, stored};

/// Runs commands, ends the agent by `signal`; everything is stored, the counters are printed, the exit code is 0.
fn check_ends_by(signal: i32) -> Result<()> {
    const COMMANDS: u64 = 500;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = live.agent_on(redis.port)?;
    let mut client = Resp::connect(redis.address())?;
    for _ in 0..COMMANDS {
        client.call(&["INCR", "counter"])?;
    }
    let store = agent.store.clone();
    let socket = agent.socket.clone();
    let ended = agent.program.stop(signal)?.success()?;
    assert_eq!(cli::count(&store, "server", "INCR")?, COMMANDS, "{}", ended.stderr);
    assert_eq!(stored(&store)?.len() as u64, COMMANDS, "{}", ended.stderr);
    let report = ended.stderr.to_lowercase();
    assert!(report.contains("spans") && report.contains("lost"), "no counters in: {}", ended.stderr);
    assert!(!socket.exists(), "the control socket was left behind");
    Ok(())
}

#[test]
fn sigterm_stores_everything_and_exits_with_0() -> Result<()> {
    check_ends_by(libc::SIGTERM)
}

#[test]
fn ctrl_c_stores_everything_and_exits_with_0() -> Result<()> {
    check_ends_by(libc::SIGINT)
}

#[test]
fn after_the_end_no_program_of_ours_is_loaded() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = live.agent_on(redis.port)?;
    let pid = agent.program.pid();
    let links = fs::read_dir(format!("/proc/{pid}/fd"))?
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().contains("bpf"))
        .count();
    ensure!(links > 0, "the agent holds no kernel program");
    agent.stop()?;
    // Programs live as long as a descriptor or a pin holds them: the process is gone, and nothing is pinned.
    let pinned = fs::read_dir("/sys/fs/bpf").map_or(0, |entries| {
        entries
            .filter_map(Result::ok)
            .filter(|entry| entry.file_name().to_string_lossy().contains("dprof"))
            .count()
    });
    assert_eq!(pinned, 0);
    Ok(())
}

#[test]
fn after_kill_9_the_store_opens_and_has_what_was_flushed() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = live.agent_on(redis.port)?;
    let store = agent.store.clone();
    let mut load = benchmark(&live, redis.port, &["-l", "-n", "100000", "-t", "set"])?;
    // Spans are in the store while the agent writes more.
    let before = poll::until(Duration::from_secs(30), "spans are stored under load", || {
        let rows = cli::json(&store, &["slowest-spans", "--since", "all", "--limit", "1000"]).ok()?;
        (rows.len() == 1000).then_some(rows.len())
    })?;
    let ended = agent.program.stop(libc::SIGKILL)?;
    ensure!(!ended.status.success());
    ensure!(load.is_running(), "the load ended early");
    load.signal(libc::SIGTERM);
    let after = stored(&store)?;
    assert!(after.len() >= before, "{} spans, {before} before the kill", after.len());
    // The next agent uses the same store: no lock is left behind.
    let folder = live.path().join("again");
    fs::create_dir(&folder)?;
    let mut command = std::process::Command::new(dprof_tests::agent::binary("dprof-agent"));
    let agent = Agent::start_with(&folder, &store, &mut command, &["--port", &redis.port.to_string()])?;
    Resp::connect(redis.address())?.call(&["GET", "again"])?;
    agent.stop()?;
    assert!(stored(&store)?.len() > after.len());
    Ok(())
}

#[test]
fn it_stops_by_itself_after_the_time_given_and_prints_a_summary() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let mut command = std::process::Command::new(dprof_tests::agent::binary("dprof-agent"));
    let socket = live.path().join("agent.sock");
    command.args(["--for", "2s", "--summary", "--port", &redis.port.to_string(), "--socket"]).arg(&socket);
    let mut program = dprof_tests::program::Program::start("dprof-agent", live.path(), &mut command)?;
    program.wait_until(Duration::from_secs(30), "is ready", |program| {
        program.stderr().contains("ready").then_some(())
    })?;
    Resp::connect(redis.address())?.call(&["INCR", "counter"])?;
    let ended = program.wait(Duration::from_secs(30))?.success()?;
    assert!(ended.stdout.contains("INCR"), "no table of operations in {:?}", ended.stdout);
    Ok(())
}

#[test]
fn requests_in_flight_are_listed_by_the_running_agent() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = live.agent_on(redis.port)?;
    let mut client = Resp::connect(redis.address())?;
    let request = crate::harness::resp::command(&["BLPOP", "nothing-comes", "0"]);
    std::io::Write::write_all(client.stream(), &request)?;
    let socket = agent.socket.display().to_string();
    let row = poll::until(Duration::from_secs(10), "tail --open lists BLPOP", || {
        let rows = cli::json(&agent.store, &["tail", "--open", "--socket", &socket]).ok()?;
        rows.into_iter().find(|row| row["operation"] == "BLPOP")
    })?;
    assert!(row["duration_ns"].as_u64().is_some(), "{row}");
    agent.stop()?;
    Ok(())
}
