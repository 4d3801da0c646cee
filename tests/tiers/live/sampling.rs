//! The keep ratio: its share of traces, each whole, what failed besides, and counts of everything; on one machine, and
//! on a ring whose machines have an agent each.

use anyhow::{Result, ensure};
use dprof_common::model::KeepReason;
use dprof_tests::agent::Agent;
use dprof_tests::{cli, subject};

use crate::harness::fleet::{RATIO, by_trace, check_ring, check_share};
use crate::harness::resp::Resp;
use crate::harness::{Live, finish};
use crate::live::counts::{LOAD_WITHIN, benchmark};

const REQUESTS: u64 = 20_000;
const FAILURES: usize = 5;

#[test]
fn a_tenth_of_the_traces_is_stored_whole_and_every_failure() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let proxy = subject::nutcracker(live.path(), &[&redis])?;
    let ports = format!("{},{}", redis.port, proxy.port);
    let agent = Agent::start(live.path(), &["--port", &ports, "--keep-ratio", "1/10"])?;
    let requests = REQUESTS.to_string();
    let options = ["-c", "20", "-n", &requests, "-r", "1000000", "-t", "get"];
    benchmark(&live, proxy.port, &options)?.wait(LOAD_WITHIN)?.success()?;
    let mut client = Resp::connect(proxy.address())?;
    client.call(&["SET", "word", "x"])?;
    for _ in 0..FAILURES {
        ensure!(client.call(&["INCR", "word"])?.starts_with(b"-"), "a word is no number");
    }
    let store = agent.store.clone();
    let (spans, ended) = finish(agent)?;
    let said = &ended.stderr;
    ensure!(said.contains("sampled: kept_ratio "), "{said}");
    let traces = by_trace(&spans);
    let (mut n_sampled, mut n_failed) = (0, 0);
    for spans in traces.values() {
        let operation = &spans[0].nearest().expect("an end").operation;
        // What the benchmark asks first is not for Redis.
        if !["GET", "SET", "INCR"].contains(&operation.as_str()) {
            continue;
        }
        let to = |port| {
            spans
                .iter()
                .filter(|span| span.server.as_ref().is_some_and(|half| half.local.port() == port))
                .count()
        };
        assert_eq!(
            (to(proxy.port), to(redis.port)),
            (1, 1),
            "client and proxy ask once each: {spans:#?}\n{said}"
        );
        assert!(spans.iter().all(|span| span.reason == spans[0].reason), "{spans:#?}");
        if spans[0].reason == KeepReason::Ratio && operation == "GET" {
            n_sampled += 1;
            assert!(spans.iter().all(|span| (span.probability - RATIO).abs() < 1e-9), "{spans:#?}");
        }
        n_failed += usize::from(spans.iter().any(|span| span.is_error()));
    }
    assert_eq!(n_failed, FAILURES, "{said}");
    check_share(n_sampled, REQUESTS, said);
    // Counts and percentiles are of everything seen: the client's requests and the proxy's.
    let rows = cli::json(&store, &["stats", "--since", "all", "--kind", "server", "--operation", "GET"])?;
    let counted: u64 = rows.iter().filter_map(|row| row["count"].as_u64()).sum();
    assert_eq!(counted, 2 * REQUESTS, "{rows:?} {said}");
    Ok(())
}

#[test]
fn agents_of_a_ring_keep_the_same_traces_whole() -> Result<()> {
    const RING_REQUESTS: u64 = 3_000;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let store = format!("sqlite:{}", live.path().join("store").display());
    check_ring(&live, &store, RING_REQUESTS, |_| Vec::new(), |_| Ok(()))
}
