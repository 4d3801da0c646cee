//! The capture window: whole requests inside it are exact, whatever passed outside.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use dprof_common::model::Status;
use dprof_tests::{clock, subject};

use crate::harness::resp::{Resp, command};
use crate::harness::{Live, check_order, finish};

/// Load goes on for this long: some ten windows.
const LOAD: Duration = Duration::from_secs(3);

/// Commands in one write: one that succeeds, one that fails, and again.
const PIPELINE: usize = 6;

#[test]
fn requests_seen_in_windows_are_paired_with_their_own_answers() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let options = ["--port", &redis.port.to_string(), "--duty-cycle", "1/3", "--window", "100ms", "--alone"];
    let agent = dprof_tests::agent::Agent::start(live.path(), &options)?;
    let (mut alternating, mut pipelined) = (Resp::connect(redis.address())?, Resp::connect(redis.address())?);
    alternating.call(&["SET", "word", "x"])?;
    let batch: Vec<u8> = (0..PIPELINE)
        .flat_map(|n| if n % 2 == 0 { command(&["STRLEN", "word"]) } else { command(&["INCR", "word"]) })
        .collect();
    let until = clock::now() + LOAD;
    let mut n_calls = 0;
    while clock::now() < until {
        alternating.call(&["STRLEN", "word"])?;
        alternating.call(&["INCR", "word"])?;
        pipelined.stream().write_all(&batch)?;
        for _ in 0..PIPELINE {
            pipelined.reply()?;
        }
        n_calls += 2 + PIPELINE;
    }
    let (spans, ended) = finish(agent)?;
    ensure!(ended.stderr.contains("captured: "), "the report says what was outside:\n{}", ended.stderr);
    // An answer given to another request would show: every second one is an error.
    for half in spans.iter().flat_map(|span| span.client.iter().chain(&span.server)) {
        let expected = match half.operation.as_str() {
            "STRLEN" | "SET" => Status::Ok,
            "INCR" => Status::Error,
            other => panic!("nobody asked for {other}"),
        };
        assert_eq!(half.status, expected, "{half:#?}");
        assert!(half.times.duration_ns() < 1_000_000_000, "it crosses a pause: {half:#?}");
    }
    check_order(&spans);
    // A third of the time, less what the edges cost.
    let part = spans.len() as f64 / n_calls as f64;
    assert!((0.1..0.6).contains(&part), "{} spans of {n_calls} calls\n{}", spans.len(), ended.stderr);
    Ok(())
}
