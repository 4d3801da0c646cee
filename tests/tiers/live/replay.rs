//! A recording gives the same spans again.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use dprof_common::model::{HostInfo, RunId, Span};
use dprof_tests::agent::{Agent, binary};
use dprof_tests::subject;

use super::counts::{LOAD_WITHIN, benchmark};
use crate::harness::resp::Resp;
use crate::harness::{Live, finish, stored};

/// Spans without the run that made them, in an order of their own.
fn comparable(mut spans: Vec<Span>) -> Vec<Span> {
    for half in spans.iter_mut().flat_map(|span| span.client.iter_mut().chain(span.server.iter_mut())) {
        half.host = HostInfo { run_id: RunId(0), ..(*half.host).clone() }.into();
    }
    spans.sort_by_key(|span| span.span_id);
    spans
}

fn replay(recording: &Path, folder: &Path) -> Result<Vec<Span>> {
    let store = format!("sqlite:{}", folder.display());
    replay_into(recording, &store, &[])?;
    stored(&store)
}

/// Has an agent with these options work through a recording.
pub(super) fn replay_into(recording: &Path, store: &str, options: &[&str]) -> Result<()> {
    let output = Command::new(binary("dprof-agent"))
        .args(["--store", store, "--replay"])
        .arg(recording)
        .args(options)
        .output()
        .context("start dprof-agent --replay")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn a_replay_gives_exactly_the_same_spans() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let proxy = subject::nutcracker(live.path(), &[&redis])?;
    let recording = live.path().join("load.dprof");
    let ports = format!("{},{}", redis.port, proxy.port);
    let file = recording.display().to_string();
    let agent = Agent::start(live.path(), &["--port", &ports, "--record", &file, "--record-payload"])?;
    let said = agent.program.stderr();
    benchmark(&live, proxy.port, &["-P", "4", "-c", "10", "-n", "5000", "-t", "set,get"])?
        .wait(LOAD_WITHIN)?
        .success()?;
    let (spans, ended) = finish(agent)?;
    ensure!(spans.len() >= 20_000, "{} spans", spans.len());
    assert!(said.contains(&file), "the agent did not say that it records: {said}");
    assert_eq!(fs::metadata(&recording)?.permissions().mode() & 0o777, 0o600);
    let again = comparable(replay(&recording, &live.path().join("again"))?);
    let spans = comparable(spans);
    assert_eq!(again.len(), spans.len(), "{}", ended.stderr);
    let difference = again.iter().zip(&spans).find(|(again, once)| again != once);
    assert!(difference.is_none(), "{difference:#?}");
    Ok(())
}

#[test]
fn a_redacted_recording_gives_the_same_spans_without_the_values() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let recording = live.path().join("redacted.dprof");
    let file = recording.display().to_string();
    let port = redis.port.to_string();
    let agent = Agent::start(live.path(), &["--port", &port, "--record", &file, "--record-redacted"])?;
    let mut client = Resp::connect(redis.address())?;
    let secret = "correct-horse-battery-staple";
    client.call(&["SET", "key", secret])?;
    client.call(&["GET", "key"])?;
    let (spans, _) = finish(agent)?;
    assert_eq!(spans.len(), 2);
    assert_eq!(comparable(replay(&recording, &live.path().join("again"))?), comparable(spans));
    Ok(())
}
