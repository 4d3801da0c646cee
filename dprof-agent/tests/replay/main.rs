//! Recordings replayed: the same spans, whatever lies between the events and the engine.

mod binary;
mod links;
mod proxy;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dprof_agent::engine::{Engine, EngineConfig, EngineCounters, Output};
use dprof_agent::keep::KeepOptions;
use dprof_agent::link::LinkOptions;
use dprof_agent::source::recording::{Recorder, RecordingHeader};
use dprof_agent::source::replay::Replay;
use dprof_agent::source::{Block, BlockBuilder, Source};
use dprof_common::model::{HostInfo, RunId, Span, SpanId, Status, TraceId};
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// What a recording of the made-up machine says of itself.
pub(crate) fn header(redacted: bool) -> RecordingHeader {
    RecordingHeader {
        host: "shop1".into(),
        labels: [("dc".to_owned(), "eu".to_owned())].into(),
        kernel: "6.18".into(),
        dprof: "0.1.0".into(),
        backend: "tp_btf".into(),
        redacted,
        started_unix_ns: 7,
    }
}

/// Records in blocks of as many as `cut` says.
pub(crate) fn blocks(records: &[Vec<u8>], mut cut: impl FnMut() -> usize) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut rest = records;
    while !rest.is_empty() {
        let (part, after) = rest.split_at(cut().clamp(1, rest.len()));
        let mut builder = BlockBuilder::default();
        for record in part {
            builder.push(&[record]);
        }
        blocks.push(builder.take());
        rest = after;
    }
    blocks
}

/// Writes a recording of these blocks.
pub(crate) fn record(path: &Path, redacted: bool, blocks: &[Block]) {
    let recorder = Recorder::start(path, &header(redacted), true).expect("start");
    for block in blocks {
        recorder.offer(block);
    }
    let counters = recorder.finish();
    assert_eq!((counters.lost_queue_full, counters.lost_write_failed), (0, 0));
}

fn run(blocks: impl IntoIterator<Item = Block>) -> (Output, EngineCounters) {
    run_keeping(KeepOptions::default(), blocks)
}

fn run_keeping(keep: KeepOptions, blocks: impl IntoIterator<Item = Block>) -> (Output, EngineCounters) {
    let engine = Engine::new(EngineConfig {
        host: Arc::new(HostInfo { host: "shop1".into(), run_id: RunId(1), labels: header(false).labels }),
        unknown: true,
        max_open_ns: 1_000_000_000,
        hold_ns: 200_000_000,
        open_requests_max: 1000,
        held_max: 1000,
        connections_max: 1000,
        clock_offset_ns: 0,
        clock_drift_ppm: 0.0,
        link: LinkOptions::default(),
    });
    let mut engine = engine.with_keep(keep);
    let mut out = Output::default();
    for block in blocks {
        engine.push(&block, &mut out);
    }
    engine.finish(&mut out);
    (out, engine.counters())
}

fn replay(path: &Path) -> Vec<Block> {
    let mut replay = Replay::open(path).expect("open");
    std::iter::from_fn(|| replay.next_block(Duration::ZERO).expect("no damage")).collect()
}

#[track_caller]
fn assert_same(found: &(Output, EngineCounters), expected: &(Output, EngineCounters)) {
    assert_eq!(found.0.spans.len(), expected.0.spans.len());
    for (found, expected) in found.0.spans.iter().zip(&expected.0.spans) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.0.rollups, expected.0.rollups);
    assert_eq!(found.0.payload_limits, expected.0.payload_limits);
    assert_eq!(found.1, expected.1);
}

#[test]
fn the_made_up_machine_shows_what_it_should() {
    let (out, counters) = run(blocks(&traffic::everything(), || 1000));
    let count = |operation: &str| {
        out.spans.iter().filter(|span| span.nearest().is_some_and(|half| half.operation == operation)).count()
    };
    assert_eq!((count("GET"), count("SET"), count("HGETALL"), count("PING")), (100, 21, 5, 1));
    let status = |operation: &str| {
        out.spans
            .iter()
            .filter_map(|span| span.server.as_ref())
            .find(|half| half.operation == operation)
            .map(|half| half.status)
    };
    assert_eq!(status("AUTH"), Some(Status::Error));
    assert_eq!(status("BLPOP"), Some(Status::Reset));
    assert_eq!(status("BRPOP"), Some(Status::Timeout));
    assert!(out.spans.iter().all(|span| span.client.is_some() && span.server.is_some()), "both ends meet");
    assert_eq!((counters.records_refused, counters.events_lost), (0, 3));
}

#[test]
fn the_cuts_of_a_stream_do_not_matter() {
    let records = traffic::everything();
    let expected = run(blocks(&records, || usize::MAX));
    assert_same(&run(blocks(&records, || 1)), &expected);
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    for _ in 0..20 {
        assert_same(&run(blocks(&records, || 1 + rng.next_u32() as usize % 50)), &expected);
    }
}

#[test]
fn a_sample_has_whole_traces_and_every_count() {
    let records = traffic::everything();
    let (all, _) = run(blocks(&records, || usize::MAX));
    let traces = |spans: &[Span]| {
        let mut traces: BTreeMap<TraceId, BTreeSet<SpanId>> = BTreeMap::new();
        for span in spans {
            traces.entry(span.trace_id).or_default().insert(span.span_id);
        }
        traces
    };
    let every = traces(&all.spans);
    let failed: BTreeSet<TraceId> =
        all.spans.iter().filter(|span| span.is_error()).map(|span| span.trace_id).collect();
    for ratio in [0.0, 0.1, 0.5] {
        let keep = KeepOptions { ratio, slow: false, budget_per_s: 1000.0, ..KeepOptions::default() };
        let sample = run_keeping(keep.clone(), blocks(&records, || usize::MAX));
        let kept = traces(&sample.0.spans);
        assert!(kept.iter().all(|(trace, spans)| every[trace] == *spans), "{ratio}");
        assert!(failed.iter().all(|trace| kept.contains_key(trace)), "{ratio}");
        let n_sampled = kept.len() - failed.len();
        assert!(n_sampled as f64 <= ratio * 2.0 * every.len() as f64, "{n_sampled} of {}", every.len());
        assert!(ratio < 0.5 || n_sampled > every.len() / 4, "{n_sampled} of {}", every.len());
        assert_eq!(sample.0.rollups, all.rollups);
        assert_eq!(sample.1.not_kept + sample.1.spans, all.spans.len() as u64);
        assert_same(&run_keeping(keep, blocks(&records, || 7)), &sample);
    }
}

#[test]
fn a_replay_gives_the_spans_of_the_live_stream() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("r.dprof");
    let live = blocks(&traffic::everything(), || 17);
    record(&path, false, &live);
    assert_same(&run(replay(&path)), &run(live));
}

#[test]
fn a_redacted_recording_gives_the_same_spans_and_holds_no_values() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("r.dprof");
    let live = blocks(&traffic::everything(), || 17);
    record(&path, true, &live);
    let masked = replay(&path);
    assert_same(&run(masked.clone()), &run(live));
    let bytes: Vec<u8> = masked.iter().flat_map(|block| block.0.iter().copied()).collect();
    assert!(!bytes.windows(6).any(|window| window == b"secret"));
}
