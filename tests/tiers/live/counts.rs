//! Every command one RPC: none lost, none invented, none before its cause.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use dprof_common::model::{Side, Span};
use dprof_tests::cli;
use dprof_tests::program::Program;
use dprof_tests::subject::{self, find};

use crate::harness::exchange::timed;
use crate::harness::memory::peak_during;
use crate::harness::resp::{Resp, calls};
use crate::harness::{Live, check_order, finish, stored};

/// How long a load may take on a busy machine.
pub(super) const LOAD_WITHIN: Duration = Duration::from_mins(2);

/// Memory of the agent in a burst of about a million commands a second, kB: its queues fill to their limits.
const AGENT_KB_MAX: u64 = 80 * 1024;

/// `redis-benchmark` against a port, with further options.
pub(super) fn benchmark(live: &Live, port: u16, options: &[&str]) -> Result<Program> {
    let mut command = Command::new(find("redis-benchmark"));
    command.args(["-p", &port.to_string(), "-q"]).args(options);
    Program::start("redis-benchmark", live.path(), &mut command)
}

#[test]
#[expect(clippy::print_stdout, reason = "a figure for whoever runs it with --nocapture")]
fn every_pipelined_command_of_redis_benchmark_is_one_rpc() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = live.agent_on(redis.port)?;
    let options = ["-P", "16", "-c", "50", "-n", "100000", "-t", "set,get"];
    let load = || benchmark(&live, redis.port, &options)?.wait(LOAD_WITHIN)?.success();
    let (_, peak) = peak_during(agent.program.pid(), load)?;
    let store = agent.store.clone();
    let ended = agent.stop()?;
    for operation in ["SET", "GET"] {
        let expected = calls(redis.address(), |name| name == operation.to_lowercase())?;
        assert_eq!(cli::count(&store, "server", operation)?, expected, "{operation}: {}", ended.stderr);
    }
    let spans = stored(&store)?;
    let all = calls(redis.address(), |name| name != "info")?;
    let servers = spans.iter().filter(|span| span.kind() == Side::Server).count();
    assert_eq!(
        (servers as u64, spans.len() as u64),
        (all, all),
        "spans of kind server and all: {}",
        ended.stderr
    );
    check_order(&spans);
    println!("{peak:?}");
    assert!(peak.total_kb() <= AGENT_KB_MAX, "{peak:?}");
    Ok(())
}

#[test]
fn each_latency_is_within_what_the_client_measured_itself() -> Result<()> {
    const CALLS: usize = 2000;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = live.agent_on(redis.port)?;
    let mut client = Resp::connect(redis.address())?;
    let mut measured = Vec::new();
    for _ in 0..CALLS {
        let (_, when) = timed(|| client.call(&["INCR", "counter"]).map_err(std::io::Error::other))?;
        measured.push(when);
    }
    let (spans, _) = finish(agent)?;
    assert_eq!(spans.len(), CALLS);
    check_order(&spans);
    for (span, when) in spans.iter().zip(measured) {
        assert!(span.client.is_some() && span.server.is_some(), "one half is missing: {span:#?}");
        assert!(span.duration_ns() > 0 && span.duration_ns() <= when.length_ns(), "{when:?}: {span:#?}");
    }
    Ok(())
}

#[test]
fn both_halves_of_an_rpc_are_one_span_and_its_json_says_what_is_promised() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = live.agent_on(redis.port)?;
    let mut client = Resp::connect(redis.address())?;
    client.call(&["SET", "a", "secret-value"])?;
    client.call(&["DEBUG", "SLEEP", "0.05"])?;
    let store = agent.store.clone();
    let (spans, _) = finish(agent)?;
    let whole = |span: &Span| span.client.is_some() && span.server.is_some();
    assert!(spans.len() == 2 && spans.iter().all(whole), "{spans:#?}");
    let rows = cli::json(&store, &["slowest-spans", "--since", "all"])?;
    ensure!(rows.len() == 2, "{rows:?}");
    for name in
        ["trace_id", "span_id", "parent_span_id", "service", "operation", "kind", "start_time", "duration_ns"]
    {
        assert!(rows[0].get(name).is_some(), "{name} is missing in {}", rows[0]);
    }
    assert!(
        rows[0]["operation"].as_str().is_some_and(|operation| operation.contains("DEBUG")),
        "{}",
        rows[0]
    );
    assert_eq!(rows[0]["kind"], "server");
    assert!(rows[0]["duration_ns"].as_u64() >= Some(50_000_000), "{}", rows[0]);
    let everything = format!("{spans:?}");
    assert!(!everything.contains("secret-value"), "a value was stored: {everything}");
    Ok(())
}
