//! Capture windows: what an agent costs that sees a part of the time, how many requests it sees whole, and how near the
//! percentiles of those are to the percentiles of all.
//!
//! Both are of the load client's own times: which requests were stored is dprof's word, how long each took is the
//! client's. So they differ by what was seen and by nothing else.
//! What a reader would get wrong: requests of one window are no sample of independent ones. What a percentile may be
//! off by is seen in how far the windows' own percentiles lie apart, and in a run of few windows it is not seen.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::sampling::{Came, SYSTEM, WARM_UP, Watched, is_whole, load, traces_of_load, watch};
use crate::cli;
use crate::program::Ended;
use crate::topology::{Running, Topology};
use crate::truth::Asked;

/// Length of a window, milliseconds: twenty times the p99 of the load's requests.
const WINDOW_MS: u64 = 40;

/// So many windows each duty cycle gets at least, if not more come in the time of the load.
const WINDOWS_MIN: f64 = 3.0;

/// Percentiles that are compared, per cent.
pub const PERCENTILES: [usize; 3] = [50, 90, 99];

/// A percentile of those that were seen, and of all; nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Percentile {
    /// Which, per cent.
    pub percent: usize,
    /// Of those that were seen whole.
    pub seen_ns: u64,
    /// The least and the largest of the windows' own; nothing with one window.
    pub of_windows_ns: Option<[u64; 2]>,
    /// Of all.
    pub truth_ns: u64,
}

/// What came of one duty cycle.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Requests made.
    pub requests: u64,
    /// Times that the window was open.
    pub windows: u64,
    /// Of the time, per cent.
    pub open_percent: f64,
    /// Requests stored with every RPC, seen at both ends.
    pub whole: u64,
    /// Traces stored in part: a call of a request that began before the window.
    pub parts: u64,
    /// Requests that crossed an edge, or came before order was certain, at any end: dropped, and counted.
    pub cut: u64,
    /// Runs without and with the agent, in turn.
    pub pairs: Vec<[Came; 2]>,
    /// Percentiles; nothing if no request was seen.
    pub percentiles: Vec<Percentile>,
    /// Of the shorter half, of the longest tenth, and of the longest hundredth: the part that was seen, per cent.
    pub seen_by_duration: [f64; 3],
}

/// A request: how long it took, and in which window it was seen.
#[derive(Clone, Copy, Debug)]
struct Request {
    ns: u64,
    window: Option<(usize, u64)>,
}

/// A part of the whole: `0.1` or `1/16`.
fn part_of(text: &str) -> Option<f64> {
    match text.split_once('/') {
        Some((part, whole)) => Some(part.parse::<f64>().ok()? / whole.parse::<f64>().ok()?),
        None => text.parse().ok(),
    }
}

/// Runs one duty cycle, `duty` of the time, in a folder of its own: `pairs` of loads without and with an agent, of
/// `requests` or of as many as it takes to have some windows.
pub fn run(duty: &str, requests: u64, pairs: usize, folder: &Path) -> Result<Outcome> {
    let part = part_of(duty).with_context(|| format!("'{duty}' is no part of the time"))?;
    let topology = Topology::named(SYSTEM).context(SYSTEM)?;
    let mut running = Running::start(topology, folder)?;
    let (warm, _) = load(&mut running, WARM_UP, None)?;
    let period_s = WINDOW_MS as f64 / 1e3 / part;
    let enough = if part < 1.0 { warm.per_s * period_s * WINDOWS_MIN / pairs as f64 } else { 0.0 };
    let requests = requests.max(enough as u64);
    let mut outcome = Outcome { requests: requests * pairs as u64, ..Outcome::default() };
    let mut all = Vec::new();
    for pair in 0..pairs {
        let folder = folder.join(format!("agent{pair}"));
        let store = format!("sqlite:{}", folder.join("store").display());
        let options = ["--duty-cycle", duty, "--window", &format!("{WINDOW_MS}ms"), "--alone"];
        let Watched { came, asked, ended } = watch(&mut running, requests, &folder, &store, &options)?;
        outcome.captured(&ended);
        outcome.pairs.push(came);
        let seen = outcome.seen(&cli::spans(&store)?, (period_s * 1e9) as u64);
        all.extend(asked.iter().map(|asked| request(asked, pair, &seen)));
    }
    outcome.open_percent = outcome.open_percent(requests);
    outcome.compare(&all);
    Ok(outcome)
}

fn request(asked: &Asked, pair: usize, seen: &HashMap<String, u64>) -> Request {
    Request {
        ns: asked.done_ns.saturating_sub(asked.sent_ns),
        window: seen.get(&asked.key).map(|window| (pair, *window)),
    }
}

impl Outcome {
    /// What an agent says at its end; one that captured all the time says nothing.
    fn captured(&mut self, ended: &Ended) {
        let number = |words| ended.number_before(words).unwrap_or(0.0) as u64;
        self.windows += number(" windows of ");
        self.cut += number(" requests cut at edges");
    }

    /// The part of the load's time that windows were open, per cent. The agents' own word is from edge to edge, which
    /// says nothing where there is one window.
    fn open_percent(&self, requests: u64) -> f64 {
        let load_s: f64 = self.pairs.iter().map(|[_, with]| requests as f64 / with.per_s).sum();
        if self.windows == 0 { 100.0 } else { (self.windows * WINDOW_MS) as f64 / 10.0 / load_s }
    }

    /// The keys of requests that were stored whole, with the number of their window.
    fn seen(&mut self, spans: &[Value], period_ns: u64) -> HashMap<String, u64> {
        let mut seen = HashMap::new();
        for spans in traces_of_load(spans).values() {
            let key = spans[0]["query_text"].as_str().and_then(|text| text.split(' ').nth(1));
            let Some(key) = key.filter(|_| is_whole(spans)) else {
                self.parts += 1;
                continue;
            };
            self.whole += 1;
            seen.insert(key.to_owned(), spans[0]["start_time"].as_u64().unwrap_or(0) / period_ns.max(1));
        }
        seen
    }

    fn compare(&mut self, all: &[Request]) {
        let durations = |of: &dyn Fn(&Request) -> bool| {
            let mut durations: Vec<u64> =
                all.iter().filter(|request| of(request)).map(|request| request.ns).collect();
            durations.sort_unstable();
            durations
        };
        let (truth, seen) = (durations(&|_| true), durations(&|request| request.window.is_some()));
        let mut windows: BTreeMap<(usize, u64), Vec<u64>> = BTreeMap::new();
        for request in all {
            if let Some(window) = request.window {
                windows.entry(window).or_default().push(request.ns);
            }
        }
        windows.values_mut().for_each(|window| window.sort_unstable());
        for percent in PERCENTILES {
            let (Some(truth_ns), Some(seen_ns)) = (percentile(&truth, percent), percentile(&seen, percent))
            else {
                continue;
            };
            let own = || windows.values().filter_map(|window| percentile(window, percent));
            let of_windows_ns = own().min().zip(own().max()).map(|(least, most)| [least, most]);
            let of_windows_ns = of_windows_ns.filter(|_| windows.len() > 1);
            self.percentiles.push(Percentile { percent, seen_ns, of_windows_ns, truth_ns });
        }
        let part = |of: &dyn Fn(u64) -> bool| {
            let (n_seen, n) =
                (seen.iter().filter(|ns| of(**ns)).count(), truth.iter().filter(|ns| of(**ns)).count());
            n_seen as f64 / n.max(1) as f64 * 100.0
        };
        let from = |percent| percentile(&truth, percent).unwrap_or(0);
        let (half, tenth, hundredth) = (from(50), from(90), from(99));
        self.seen_by_duration =
            [part(&|ns| ns <= half), part(&|ns| ns >= tenth), part(&|ns| ns >= hundredth)];
    }
}

/// By the nearest rank; the values are sorted.
fn percentile(sorted: &[u64], percent: usize) -> Option<u64> {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_are_written_in_two_ways() {
        assert_eq!([part_of("0.1"), part_of("1/16"), part_of("x/2")], [Some(0.1), Some(0.0625), None]);
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let hundred: Vec<u64> = (1..=100).collect();
        let of = |percent| percentile(&hundred, percent);
        assert_eq!([of(50), of(90), of(99)], [Some(50), Some(90), Some(99)]);
        assert_eq!((percentile(&[7], 99), percentile(&[], 50)), (Some(7), None));
    }

    #[test]
    fn what_was_seen_is_compared_with_all_by_window_and_by_duration() {
        let all: Vec<Request> = (1..=1_000)
            .map(|n| Request { ns: n, window: (n % 10 == 0 && n <= 900).then_some((0, n / 500)) })
            .collect();
        let mut outcome = Outcome::default();
        outcome.compare(&all);
        assert_eq!(
            outcome.percentiles[0],
            Percentile { percent: 50, seen_ns: 450, of_windows_ns: Some([250, 700]), truth_ns: 500 }
        );
        let [half, tenth, hundredth] = outcome.seen_by_duration;
        assert!((half - 10.0).abs() < 0.01 && tenth < 1.0 && hundredth == 0.0, "{outcome:?}");
        let one: Vec<Request> =
            all.iter().map(|request| Request { window: Some((0, 1)), ..*request }).collect();
        let mut outcome = Outcome::default();
        outcome.compare(&one);
        assert!(outcome.percentiles.iter().all(|found| found.of_windows_ns.is_none()), "{outcome:?}");
    }

    #[test]
    fn a_request_counts_as_seen_with_both_rpcs_at_both_ends() {
        let span = |trace: &str, key: &str, start: u64, server: Option<u64>| {
            json!({
                "trace_id": trace, "operation": "GET", "query_text": format!("GET {key}"), "start_time": start,
                "client_duration_ns": 5, "server_duration_ns": server,
            })
        };
        let spans = [
            span("a", "k1", 2_500, Some(1)),
            span("a", "k1", 2_510, Some(1)),
            span("b", "k2", 2_600, Some(1)),
            span("c", "k3", 2_600, Some(1)),
            span("c", "k3", 2_600, None),
        ];
        let mut outcome = Outcome::default();
        let seen = outcome.seen(&spans, 1_000);
        assert_eq!((seen, outcome.whole, outcome.parts), ([("k1".to_owned(), 2)].into(), 1, 2));
    }
}
