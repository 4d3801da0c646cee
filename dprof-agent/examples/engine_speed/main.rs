//! What the engine costs, from the bytes of events to linked spans, in memory and on one thread. Built and run by
//! `cargo xtask bench engine`, which also counts its instructions by stage.
//!
//! `engine_speed WORKLOAD|RECORDING.dprof [ROUNDS [TURNS]]` prints one JSON object. What a reader would get wrong: times are
//! this thread's CPU time, so that other programs on the machine disturb little; the best round is what the code
//! costs, the median what it cost here. Dropping the spans is part of it.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a measurement prints what it found")]

mod counting;
#[path = "../../tests/replay/traffic.rs"]
#[expect(dead_code, reason = "the tests' machine can do more than the benchmark needs")]
mod traffic;
mod workload;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use dprof_agent::clock::process_cpu;
use dprof_agent::engine::{Engine, EngineConfig, EngineCounters, Output};
use dprof_agent::link::LinkOptions;
use dprof_agent::run::{CONNECTIONS_MAX, HELD_MAX, HOLD_NS, OPEN_REQUESTS_MAX};
use dprof_agent::source::replay::Replay;
use dprof_agent::source::{Block, Source as _};
use dprof_common::model::{HostInfo, RunId};

/// Rounds when none are given: the median of fewer moves by more than a few per cent.
const ROUNDS_DEFAULT: usize = 15;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(name) = args.next() else {
        eprintln!(
            "engine_speed WORKLOAD|RECORDING [ROUNDS [TURNS]]; workloads: {}",
            workload::NAMES.join(" ")
        );
        return ExitCode::from(2);
    };
    let mut number =
        |default: usize| args.next().and_then(|text| text.parse().ok()).unwrap_or(default).max(1);
    let (rounds, turns) = (number(ROUNDS_DEFAULT), number(workload::TURNS));
    match blocks(&name, turns) {
        Ok(blocks) => {
            println!("{}", measure(&name, &blocks, rounds));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("engine_speed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn blocks(name: &str, turns: usize) -> anyhow::Result<Vec<Block>> {
    if let Some(blocks) = workload::blocks(name, turns) {
        return Ok(blocks);
    }
    let mut replay = Replay::open(Path::new(name))?;
    let mut blocks = Vec::new();
    while let Some(block) = replay.next_block(Duration::ZERO)? {
        blocks.push(block);
    }
    Ok(blocks)
}

/// The agent's own limits.
fn engine() -> Engine {
    Engine::new(EngineConfig {
        host: Arc::new(HostInfo {
            host: "bench".into(),
            run_id: RunId(1),
            labels: std::collections::BTreeMap::default(),
        }),
        unknown: false,
        max_open_ns: 60_000_000_000,
        hold_ns: HOLD_NS,
        open_requests_max: OPEN_REQUESTS_MAX,
        held_max: HELD_MAX,
        connections_max: CONNECTIONS_MAX,
        clock_offset_ns: 0,
        clock_drift_ppm: 0.0,
        link: LinkOptions::default(),
    })
}

/// What a round did: counted by whoever takes the spans.
#[derive(Default)]
struct Taken {
    spans: u64,
    linked: u64,
    whole: u64,
}

/// The part that callgrind counts (`--toggle-collect`).
#[inline(never)]
fn engine_round(engine: &mut Engine, blocks: &[Block]) -> Taken {
    let (mut out, mut taken) = (Output::default(), Taken::default());
    for block in blocks {
        engine.push(block, &mut out);
        give_out(&mut out, &mut taken);
    }
    engine.finish(&mut out);
    give_out(&mut out, &mut taken);
    taken
}

/// What the writer's thread would do with spans it has stored.
#[inline(never)]
fn give_out(out: &mut Output, taken: &mut Taken) {
    for span in out.spans.drain(..) {
        taken.spans += 1;
        taken.linked += u64::from(span.link.is_some());
        taken.whole += u64::from(span.client.is_some() && span.server.is_some());
    }
    out.rollups.clear();
    out.payload_limits.clear();
}

fn measure(name: &str, blocks: &[Block], rounds: usize) -> serde_json::Value {
    let (mut times_ns, mut last) = (Vec::new(), None);
    for _ in 0..rounds {
        let mut engine = engine();
        let (before, started) = (counting::allocations(), process_cpu());
        let taken = engine_round(&mut engine, blocks);
        times_ns.push(process_cpu().saturating_sub(started).as_nanos() as f64);
        last = Some((taken, counting::allocations() - before, engine.counters()));
    }
    times_ns.sort_unstable_by(f64::total_cmp);
    let (best_ns, median_ns) = (times_ns[0], times_ns[times_ns.len() / 2]);
    let (taken, allocations, counters) = last.expect("at least one round");
    let events = data_events(&counters, blocks) as f64;
    let messages = counters.messages as f64;
    serde_json::json!({
        "workload": name,
        "rounds": rounds,
        "events": events,
        "bytes": blocks.iter().map(|block| block.0.len()).sum::<usize>(),
        "messages": counters.messages,
        "spans": taken.spans,
        "spans_whole": taken.whole,
        "spans_linked": taken.linked,
        "best_ns_per_event": best_ns / events,
        "median_ns_per_event": median_ns / events,
        "best_events_per_s": events / best_ns * 1e9,
        "median_events_per_s": events / median_ns * 1e9,
        "best_ns_per_message": best_ns / messages,
        "allocations_per_event": allocations as f64 / events,
    })
}

/// Records of every kind but the clock's, which come with time and not with traffic.
fn data_events(counters: &EngineCounters, blocks: &[Block]) -> u64 {
    let clocks = blocks
        .iter()
        .flat_map(Block::records)
        .flatten()
        .filter(|record| record[0] == dprof_common::event::EventKind::Clock as u8)
        .count();
    counters.records - clocks as u64
}
