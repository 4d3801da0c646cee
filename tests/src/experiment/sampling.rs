//! Keep ratios: what an agent costs at each, how many traces it keeps, whether they are whole, and how near the
//! estimates from them are to the truth.
//!
//! The truth of counts is the load client's own record. That of percentiles is what the agent counted of everything
//! before it sampled: the client measures around its system calls, the agent at the socket, so their percentiles
//! differ whatever the ratio.
//! What a reader would get wrong: traces kept because they were slow or failed are besides the share. They are
//! examples, and no estimate stands on them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::agent::{Agent, binary};
use crate::program::{Ended, cpu_ns};
use crate::topology::{Running, Topology};
use crate::truth::Asked;
use crate::{cli, clock};

pub(super) const SYSTEM: &str = "nutcracker-redis";
const IN_FLIGHT: usize = 10;

/// RPCs of a request: the client's and the proxy's.
const RPCS: usize = 2;

/// Requests that nobody counts: programs and caches warm up.
pub(super) const WARM_UP: u64 = 2_000;

/// One run of the load.
#[derive(Clone, Copy, Debug, Default)]
pub struct Came {
    /// Requests a second.
    pub per_s: f64,
    /// CPU time of proxy and servers per request, nanoseconds.
    pub subject_ns: f64,
    /// CPU time of the agent per request; 0 without one.
    pub agent_ns: f64,
}

/// An estimate with its interval, and the truth.
#[derive(Clone, Debug)]
pub struct Estimate {
    /// What it is of.
    pub name: String,
    /// Estimated.
    pub value: u64,
    /// At least.
    pub low: u64,
    /// At most; nothing if the sample cannot tell.
    pub high: Option<u64>,
    /// True.
    pub truth: u64,
}

/// What came of one ratio.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Requests made.
    pub requests: u64,
    /// Traces kept by the ratio.
    pub kept: u64,
    /// Of those the ones with every RPC, seen at both ends.
    pub whole: u64,
    /// Traces kept as examples besides: slow ones.
    pub examples: u64,
    /// Runs without and with the agent, in turn.
    pub pairs: Vec<[Came; 2]>,
    /// Estimates.
    pub estimates: Vec<Estimate>,
}

impl Estimate {
    /// Whether the truth is in the interval.
    pub fn is_within(&self) -> bool {
        self.low <= self.truth && self.high.is_none_or(|high| self.truth <= high)
    }
}

/// Runs one ratio in a folder of its own: `pairs` of loads without and with an agent.
pub fn run(ratio: &str, requests: u64, pairs: usize, folder: &Path) -> Result<Outcome> {
    let topology = Topology::named(SYSTEM).context(SYSTEM)?;
    let mut running = Running::start(topology, folder)?;
    load(&mut running, WARM_UP, None)?;
    let mut outcome = Outcome {
        requests: requests * pairs as u64,
        kept: 0,
        whole: 0,
        examples: 0,
        pairs: Vec::new(),
        estimates: Vec::new(),
    };
    let store = format!("sqlite:{}", folder.join("store").display());
    for pair in 0..pairs {
        let folder = folder.join(format!("agent{pair}"));
        outcome.pairs.push(watch(&mut running, requests, &folder, &store, &["--keep-ratio", ratio])?.came);
    }
    drop(running);
    count_traces(&cli::spans(&store)?, &mut outcome);
    outcome.estimates = estimates(&store, outcome.requests)?;
    Ok(outcome)
}

/// A pair of loads.
pub(super) struct Watched {
    /// Without and with the agent.
    pub(super) came: [Came; 2],
    /// What the client asked while the agent was there.
    pub(super) asked: Vec<Asked>,
    /// What the agent said.
    pub(super) ended: Ended,
}

/// Puts the load on without an agent, and then with one that writes to `store`, in a folder of its own.
pub(super) fn watch(
    running: &mut Running,
    requests: u64,
    folder: &Path,
    store: &str,
    options: &[&str],
) -> Result<Watched> {
    let (without, _) = load(running, requests, None)?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let options = running.watch.iter().map(String::as_str).chain(options.iter().copied());
    let options: Vec<&str> = options.collect();
    let mut command = Command::new(binary("dprof-agent"));
    let agent = Agent::start_with(folder, store, &mut command, &options)?;
    let (with, asked) = load(running, requests, Some(agent.program.pid()))?;
    Ok(Watched { came: [without, with], asked, ended: agent.stop()? })
}

/// Puts the load on; what it came to, and what the client asked.
pub(super) fn load(running: &mut Running, requests: u64, agent: Option<u32>) -> Result<(Came, Vec<Asked>)> {
    let load = running.load(IN_FLIGHT, requests, false);
    let subjects = running.program_pids();
    let cpu = || subjects.iter().map(|pid| cpu_ns(*pid)).sum::<u64>();
    let agent_cpu = || agent.map_or(0, cpu_ns);
    let (before, agent_before, started) = (cpu(), agent_cpu(), clock::now());
    let asked = running.put_on(&load)?;
    let (first, last) =
        (asked.iter().map(|asked| asked.sent_ns).min(), asked.iter().map(|asked| asked.done_ns).max());
    let took = match (first, last) {
        (Some(first), Some(last)) => Duration::from_nanos(last.saturating_sub(first)),
        _ => started.elapsed(),
    };
    let per_request = |ns: u64| ns as f64 / requests as f64;
    let came = Came {
        per_s: requests as f64 / took.as_secs_f64(),
        subject_ns: per_request(cpu() - before),
        agent_ns: per_request(agent_cpu() - agent_before),
    };
    Ok((came, asked))
}

/// Whether a row is of the load, and not of what the proxy asks its servers by itself.
fn is_of_load(row: &Value) -> bool {
    ["SET", "GET"].iter().any(|operation| row["operation"] == *operation)
}

/// RPCs of the load, by trace.
pub(super) fn traces_of_load(spans: &[Value]) -> BTreeMap<&str, Vec<&Value>> {
    let mut traces: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for span in spans.iter().filter(|span| is_of_load(span)) {
        traces.entry(span["trace_id"].as_str().unwrap_or_default()).or_default().push(span);
    }
    traces
}

/// Whether a trace has every RPC of a request, seen at both ends.
pub(super) fn is_whole(trace: &[&Value]) -> bool {
    let seen_by_both =
        |span: &&Value| span["client_duration_ns"].is_u64() && span["server_duration_ns"].is_u64();
    trace.len() == RPCS && trace.iter().all(seen_by_both)
}

fn count_traces(spans: &[Value], outcome: &mut Outcome) {
    for spans in traces_of_load(spans).values() {
        if spans.iter().any(|span| span["reason"] == "ratio") {
            outcome.kept += 1;
            outcome.whole += u64::from(is_whole(spans));
        } else {
            outcome.examples += 1;
        }
    }
}

/// Count and percentiles of each operation: estimated from the traces kept, and true.
fn estimates(store: &str, requests: u64) -> Result<Vec<Estimate>> {
    let sampled = cli::json(store, &["stats", "--traces", "--since", "all"])?;
    let counted = cli::json(store, &["stats", "--kind", "client", "--since", "all"])?;
    let mut estimates = Vec::new();
    for row in sampled.iter().filter(|row| row["root"] == "edge" && is_of_load(row)) {
        let operation = row["operation"].as_str().unwrap_or_default();
        let of_client = |other: &&Value| other["operation"] == operation && other["service"] == "test-client";
        let everything = counted.iter().find(of_client).context("the client's calls are counted")?;
        for field in ["count", "p50_ns", "p90_ns", "p99_ns"] {
            let number = |value: &Value| value.as_u64();
            let value = number(&row[field]).with_context(|| format!("{field} of {row}"))?;
            let interval = &row["confidence"][field];
            // The two commands are taken in turn.
            let truth = if field == "count" { Some(requests / 2) } else { number(&everything[field]) };
            estimates.push(Estimate {
                name: format!("{operation} {}", field.trim_end_matches("_ns")),
                value,
                // Everything was kept: the estimate is a count, within a percent for a percentile.
                low: number(&interval["low"]).unwrap_or_else(|| value - value / 100),
                high: if interval.is_null() { Some(value + value / 100) } else { number(&interval["high"]) },
                truth: truth.with_context(|| format!("{field} of {everything}"))?,
            });
        }
    }
    Ok(estimates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_kept_trace_is_whole_with_both_rpcs_seen_at_both_ends() {
        let span = |trace: &str, reason: &str, server: Option<u64>| {
            json!({
                "trace_id": trace, "operation": "GET", "reason": reason,
                "client_duration_ns": 5, "server_duration_ns": server,
            })
        };
        let spans = [
            span("a", "ratio", Some(1)),
            span("a", "ratio", Some(1)),
            span("b", "ratio", Some(1)),
            span("c", "ratio", Some(1)),
            span("c", "ratio", None),
            span("d", "slow", Some(1)),
            json!({ "trace_id": "e", "operation": "INFO", "reason": "ratio" }),
        ];
        let mut outcome =
            Outcome { requests: 0, kept: 0, whole: 0, examples: 0, pairs: Vec::new(), estimates: Vec::new() };
        count_traces(&spans, &mut outcome);
        assert_eq!((outcome.kept, outcome.whole, outcome.examples), (3, 1, 1));
    }

    #[test]
    fn the_truth_is_within_an_interval_or_not() {
        for (low, high, truth, expected) in [
            (5, Some(9), 5, true),
            (5, Some(9), 9, true),
            (5, Some(9), 10, false),
            (5, None, 10, true),
            (5, None, 4, false),
        ] {
            let estimate = Estimate { name: String::new(), value: 7, low, high, truth };
            assert_eq!(estimate.is_within(), expected, "{estimate:?}");
        }
    }
}
