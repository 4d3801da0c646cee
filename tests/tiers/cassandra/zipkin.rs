//! Zipkin's own server reads what `dprof-cli export` writes, and `dprof-cli import` what the server gives back.
//!
//! It is in this tier because it needs a virtual machine of Java too; the ring it does not use.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dprof_common::model::{Half, Span, SpanId, split};
use dprof_tests::agent::binary;
use dprof_tests::program::{Ended, Program};
use dprof_tests::subject::free_port;
use dprof_tests::zipkin::{Server, jar};
use dprof_tests::{cli, poll};
use serde_json::Value;

use super::VARIABLE;
use crate::harness::stored;

/// Ids in one question: its line may have 4 kB.
const IDS_AT_ONCE: usize = 50;

/// Spans in one post.
const SPANS_AT_ONCE: usize = 1000;

/// How long the server may take to store what it took.
const STORED_WITHIN: Duration = Duration::from_secs(30);

/// What must be the same of a span: trace, id and parent as numbers, kind, start and duration.
type Told = (u128, u64, Option<u64>, String, u64, u64);

fn told(span: &Value) -> Result<Told> {
    let text = |field: &str| span[field].as_str();
    let number = |field: &str| span[field].as_u64().with_context(|| format!("{field} of {span}"));
    Ok((
        u128::from_str_radix(text("traceId").context("a trace id")?, 16)?,
        u64::from_str_radix(text("id").context("an id")?, 16)?,
        text("parentId").map(|id| u64::from_str_radix(id, 16)).transpose()?,
        text("kind").unwrap_or_default().to_owned(),
        number("timestamp")?,
        number("duration")?,
    ))
}

/// What must come back of an RPC.
fn rpcs(spans: &[Span]) -> BTreeMap<SpanId, String> {
    let half = |half: &Option<Half>| {
        half.as_ref().map(|half| {
            let name = (half.process.service.to_lowercase(), half.operation.to_lowercase());
            (name, half.host.host.clone(), half.times, half.status)
        })
    };
    spans
        .iter()
        .map(|span| {
            let parent = span.link.map(|link| link.parent);
            let ends = (half(&span.client), half(&span.server));
            (span.span_id, format!("{} {parent:?} {ends:?} {:?}", span.trace_id, split(span)))
        })
        .collect()
}

#[test]
fn zipkins_server_reads_our_json_and_we_read_its_own() -> Result<()> {
    if std::env::var_os(VARIABLE).is_none() {
        return Ok(());
    }
    let jar = jar()?;
    ensure!(jar.is_file(), "{} is missing: cargo xtask test fetches it", jar.display());
    let folder = tempfile::tempdir()?;
    let store = format!("sqlite:{}", folder.path().join("store").display());
    let recording = format!("{}/data/demo.dprof", env!("CARGO_MANIFEST_DIR"));
    let mut agent = Command::new(binary("dprof-agent"));
    agent.args(["--store", &store, "--replay", &recording]);
    let agent = Program::start("dprof-agent", folder.path(), &mut agent)?;
    agent.wait(Duration::from_mins(1)).and_then(Ended::success)?;
    let file = folder.path().join("ours.json").display().to_string();
    let exported =
        cli::run(&store, &["export", "--since", "all", "--format", "zipkin-json", "--out", &file])?;
    ensure!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let ours: Vec<Value> = serde_json::from_str(&fs::read_to_string(&file)?)?;
    let expected: BTreeSet<Told> = ours.iter().map(told).collect::<Result<_>>()?;
    ensure!(expected.len() == ours.len() && ours.len() > 1000, "{} spans", ours.len());

    let settings = [("STORAGE_TYPE", "mem"), ("MEM_MAX_SPANS", "100000")];
    let server = Server::start(folder.path(), free_port()?, &settings, || false)?;
    for few in ours.chunks(SPANS_AT_ONCE) {
        server.post(&serde_json::to_string(few)?)?;
    }
    // With all digits: the server takes an id of 16 for another one than the same with zeros before it.
    let ids: BTreeSet<String> =
        ours.iter().filter_map(|span| span["traceId"].as_str().map(str::to_owned)).collect();
    let ids: Vec<String> = ids.into_iter().collect();
    ensure!(ids.len() > 2 && ids.iter().all(|id| id.len() == 32), "{} traces", ids.len());
    let ask = || -> Result<Vec<Value>> {
        let mut traces = Vec::new();
        let mut from = 0;
        while from < ids.len() {
            // A question is for two at least.
            let until = if ids.len() - from <= IDS_AT_ONCE + 1 { ids.len() } else { from + IDS_AT_ONCE };
            traces.extend(server.traces(&ids[from..until])?);
            from = until;
        }
        Ok(traces)
    };
    let count = |traces: &[Value]| traces.iter().filter_map(Value::as_array).map(Vec::len).sum::<usize>();
    let theirs = poll::until(STORED_WITHIN, "the server has stored all spans", || match ask() {
        Ok(traces) if count(&traces) < ours.len() => None,
        asked => Some(asked),
    })??;
    let found: BTreeSet<Told> =
        theirs.iter().filter_map(Value::as_array).flatten().map(told).collect::<Result<_>>()?;
    let missing: Vec<&Told> = expected.symmetric_difference(&found).take(3).collect();
    ensure!(missing.is_empty(), "told otherwise: {missing:?}");

    let file = folder.path().join("theirs.json").display().to_string();
    fs::write(&file, serde_json::to_string(&theirs)?)?;
    let back = format!("sqlite:{}", folder.path().join("back").display());
    let imported = cli::run(&back, &["import", &file, "--into", &back])?;
    ensure!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let (ours, theirs) = (rpcs(&stored(&store)?), rpcs(&stored(&back)?));
    ensure!(ours.len() == theirs.len(), "{} RPCs, {} came back", ours.len(), theirs.len());
    for (id, rpc) in &ours {
        ensure!(theirs.get(id) == Some(rpc), "{id}: {rpc}\ncame back as {:?}", theirs.get(id));
    }
    Ok(())
}
