//! Zipkin's own server reads what we export, and we read what it gives back.
//!
//! What a reader would get wrong: Zipkin keeps whole microseconds and lower-cases names, so ids, parents, kinds,
//! starts and durations are what must come back, not the text of every field. It puts a span together from all that
//! was posted of it, so nothing may be posted twice.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dprof_tests::agent::binary;
use dprof_tests::subject::free_port;
use dprof_tests::zipkin::Server;
use dprof_tests::{cli, poll};
use serde_json::Value;

/// Turns the tier on.
const VARIABLE: &str = "DPROF_TEST_ZIPKIN";

/// Spans of one request: a megabyte.
const SPANS_PER_POST: usize = 500;
/// Traces of one question: their ids are in its first line.
const TRACES_PER_QUESTION: usize = 50;
/// How long the server may take to store what it has accepted.
const STORED_WITHIN: Duration = Duration::from_mins(1);

/// What must come back of a span, by trace and id: parent, kind, start and duration in microseconds.
type Kept = BTreeMap<(String, String), (Option<String>, String, u64, u64)>;

fn text(span: &Value, field: &str) -> Option<String> {
    Some(span[field].as_str()?.to_owned())
}

/// 128-bit ids whose upper half is zero may come back in 16 digits.
fn padded(id: &str) -> String {
    format!("{id:0>32}")
}

fn kept<'a>(spans: impl IntoIterator<Item = &'a Value>) -> Result<Kept> {
    let mut kept = Kept::new();
    for span in spans {
        let key = (padded(&text(span, "traceId").context("traceId")?), text(span, "id").context("an id")?);
        let number = |field: &str| span[field].as_u64().with_context(|| format!("{field} of {span}"));
        let kind = text(span, "kind").context("kind")?;
        let value = (text(span, "parentId"), kind, number("timestamp")?, number("duration")?);
        ensure!(kept.insert(key.clone(), value).is_none(), "{key:?} came twice");
    }
    Ok(kept)
}

/// RPCs by id: trace, parent, start and duration.
type Rpcs = BTreeMap<String, (String, Option<String>, String, u64)>;

/// RPCs of a store.
fn rpcs(store: &str) -> Result<Rpcs> {
    let mut rpcs = Rpcs::new();
    for row in cli::spans(store)? {
        let field = |name: &str| text(&row, name).with_context(|| format!("{name} of {row}"));
        let duration_ns = row["duration_ns"].as_u64().context("a duration")?;
        let value = (field("trace_id")?, text(&row, "parent_span_id"), field("start_time")?, duration_ns);
        rpcs.insert(field("span_id")?, value);
    }
    Ok(rpcs)
}

#[test]
fn zipkins_server_reads_our_export_and_we_read_its_answer() -> Result<()> {
    if std::env::var_os(VARIABLE).is_none() {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let server = Server::start(folder.path(), free_port()?, &[("STORAGE_TYPE", "mem")], || false)?;
    let store = format!("sqlite:{}", folder.path().join("store").display());
    let recording = format!("{}/data/demo.dprof", env!("CARGO_MANIFEST_DIR"));
    let output =
        Command::new(binary("dprof-agent")).args(["--store", &store, "--replay", &recording]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = cli::run(&store, &["export", "--since", "all", "--format", "zipkin-json", "--out", "-"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let exported: Vec<Value> = serde_json::from_slice(&output.stdout)?;
    let sent = kept(&exported)?;
    ensure!(sent.len() > 1_000, "{} spans", sent.len());

    for few in exported.chunks(SPANS_PER_POST) {
        server.post(&serde_json::to_string(few)?)?;
    }
    let mut ids: Vec<String> = sent.keys().map(|(trace, _)| trace.clone()).collect();
    ids.dedup();
    let mut traces = Vec::new();
    for few in ids.chunks(TRACES_PER_QUESTION) {
        // One alone is no question to ask of many.
        let few = if few.len() == 1 { [few, few].concat() } else { few.to_vec() };
        let expected = sent.keys().filter(|(trace, _)| few.contains(trace)).count();
        let spans = |traces: &[Value]| traces.iter().filter_map(Value::as_array).map(Vec::len).sum::<usize>();
        let found = poll::until(STORED_WITHIN, "zipkin has stored what it has", || {
            server.traces(&few).map(|found| (spans(&found) >= expected).then_some(found)).transpose()
        })??;
        traces.extend(found);
    }
    let received = kept(traces.iter().filter_map(Value::as_array).flatten())?;
    let difference = sent.iter().zip(&received).find(|(ours, theirs)| ours != theirs);
    assert!(difference.is_none(), "{difference:#?}");
    assert_eq!(sent.len(), received.len());

    let answer = folder.path().join("zipkin.json");
    fs::write(&answer, serde_json::to_string(&traces)?)?;
    let imported = format!("sqlite:{}", folder.path().join("imported").display());
    let output = cli::run(&store, &["import", &answer.display().to_string(), "--into", &imported])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (ours, theirs) = (rpcs(&store)?, rpcs(&imported)?);
    let difference = ours.iter().zip(&theirs).find(|(ours, theirs)| ours != theirs);
    assert!(difference.is_none(), "{difference:#?}");
    assert_eq!(ours.len(), theirs.len());
    Ok(())
}
