//! What linking costs per RPC: a request read, the call that it causes, the call's reply, the answer. One process,
//! one core, so many in flight.
//!
//! `link_speed [IN_FLIGHT [RPCS [STEP_NS]]]` prints a JSON object per workload. What a reader would get wrong: times are this
//! thread's CPU time of the best of [`ROUNDS`] rounds; for instructions run it under `valgrind --tool=callgrind
//! --toggle-collect='*rounds_of*'` or `perf stat -e instructions:u` with two values of RPCS and take the difference.
#![expect(clippy::print_stdout, reason = "a measurement prints what it found")]

use std::collections::VecDeque;

use dprof_agent::clock::process_cpu;
use dprof_agent::link::linker::Linker;
use dprof_agent::link::{LinkOptions, Observation};
use dprof_common::model::SpanId;

/// The best of fewer moves by more than a few per cent.
const ROUNDS: usize = 7;
/// In flight when nothing is said.
const IN_FLIGHT: u64 = 300;
/// RPCs per round when nothing is said.
const RPCS: u64 = 1_000_000;
/// From one to the next when nothing is said: answered requests are kept for 100 ms, here 100,000 of them.
const STEP_NS: u64 = 1_000;

/// What is linked.
#[derive(Clone, Copy)]
enum Workload {
    /// Every command differs.
    Unique,
    /// All are the same.
    Identical,
    /// Content is not known.
    Unknown,
}

fn observation(workload: Workload, n: u64, is_call: bool, step_ns: u64) -> Observation<'static> {
    let content = match workload {
        Workload::Unique => Some(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        Workload::Identical => Some(1),
        Workload::Unknown => None,
    };
    Observation {
        span_id: SpanId((n * 2 + u64::from(is_call)).wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1),
        tgid: 7,
        tid: 7,
        sock: if is_call { n % 3 } else { 100 + n % 300 },
        peer: if is_call { n % 3 } else { 100 + n % 300 },
        protocol: "redis",
        operation: 1,
        time_ns: n * step_ns,
        batch: 1,
        start: n * 40,
        content,
        parts: &[],
        explicit_id: None,
        request_id: None,
    }
}

#[inline(never)]
fn rounds_of(workload: Workload, in_flight: u64, n_rpcs: u64, step_ns: u64) -> u64 {
    let mut linker = Linker::new(LinkOptions::default(), 300_000_000);
    let mut n_links = 0;
    let mut open = VecDeque::new();
    for n in 0..n_rpcs + in_flight {
        let now_ns = n * step_ns;
        let observation = |workload, n, is_call| observation(workload, n, is_call, step_ns);
        if n < n_rpcs {
            let request = linker.request_read(&observation(workload, n, false));
            let (call, _) = linker.call_made(&observation(workload, n, true), now_ns);
            open.push_back((request, call));
        }
        if let Some(n) = n.checked_sub(in_flight)
            && let Some((request, call)) = open.pop_front()
        {
            linker.reply_read(call, &observation(workload, n, true));
            linker.request_done(request, Some(&observation(workload, n, false)), now_ns);
        }
        linker.expire(now_ns);
        linker.take_detached(|_| {});
        linker.take_decided(|decided| n_links += u64::from(decided.link.is_some()));
    }
    n_links
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|text| text.parse().ok());
    let in_flight = numbers.next().unwrap_or(IN_FLIGHT);
    let n_rpcs = numbers.next().unwrap_or(RPCS);
    let step_ns = numbers.next().unwrap_or(STEP_NS);
    for (name, workload) in
        [("unique", Workload::Unique), ("identical", Workload::Identical), ("unknown", Workload::Unknown)]
    {
        let mut best_ns = f64::INFINITY;
        let mut n_links = 0;
        for _ in 0..ROUNDS {
            let started = process_cpu();
            n_links = rounds_of(workload, in_flight, n_rpcs, step_ns);
            best_ns = best_ns.min(process_cpu().saturating_sub(started).as_nanos() as f64);
        }
        let line = serde_json::json!({
            "workload": name,
            "in_flight": in_flight,
            "rpcs": n_rpcs,
            "step_ns": step_ns,
            "links": n_links,
            "best_ns_per_rpc": best_ns / n_rpcs as f64,
        });
        println!("{line}");
    }
}
