//! The keep ratio: its share of traces, each whole, what failed besides, and counts of everything.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use dprof_common::model::{KeepReason, Span, TraceId};
use dprof_tests::agent::Agent;
use dprof_tests::{cli, subject};

use crate::harness::resp::Resp;
use crate::harness::{Live, finish};
use crate::live::counts::{LOAD_WITHIN, benchmark};

const REQUESTS: u64 = 20_000;
const RATIO: f64 = 0.1;
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
    let mut traces: BTreeMap<TraceId, Vec<&Span>> = BTreeMap::new();
    for span in &spans {
        traces.entry(span.trace_id).or_default().push(span);
    }
    let (mut n_sampled, mut n_failed) = (0, 0);
    for spans in traces.values() {
        let operation = &spans[0].nearest().expect("an end").operation;
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
    let expected = REQUESTS as f64 * RATIO;
    let deviation = (f64::from(n_sampled) - expected).abs() / (expected * (1.0 - RATIO)).sqrt();
    assert!(deviation < 4.5, "{n_sampled} of {REQUESTS}: {said}");
    // Counts and percentiles are of everything seen: the client's requests and the proxy's.
    let rows = cli::json(&store, &["stats", "--since", "all", "--kind", "server", "--operation", "GET"])?;
    let counted: u64 = rows.iter().filter_map(|row| row["count"].as_u64()).sum();
    assert_eq!(counted, 2 * REQUESTS, "{rows:?} {said}");
    Ok(())
}
