//! The longest and shortest spans of each window: which rows of a batch enter `duration_index`.
//!
//! The problem: "the slowest spans" asked of a week must not read a week. An index row per span costs as much as
//! the span and cannot be read hour by hour (Zipkin gave its own up for that). The idea: an agent sees all of its
//! spans, so per window of ten minutes it writes only those that are among its longest or shortest *so far*, about
//! K (1 + ln(n / K)) of n.
//!
//! What a reader would get wrong: a reader must know what it does *not* see. Every row says the run's floor when it
//! was written: all spans of the run that are not in the index are at most that long (at least, among the
//! shortest). The largest floor of a run and window bounds everything that was left out.

use std::collections::BTreeMap;

use dprof_common::model::{Side, Span};
use prost::Message;
use rustc_hash::FxHashMap;

use super::pack::trace_key;
use super::tables::{DURATION_BUCKET_S, bucket};
use crate::Batch;

/// Spans kept per run and window of everything: above the 20 of `slowest-spans`, so that those are exact.
pub(super) const LONGEST_ALL: usize = 24;
/// … and of one service, or of one operation: read by hand.
pub(super) const LONGEST_NAMED: usize = 8;
/// Windows and names that are ranked at once. Beyond, the oldest window starts anew, which costs rows, not spans.
const RANKED_MAX: usize = 20_000;

/// `which`: the longest…
pub(super) const SLOWEST: i32 = 0;
/// …or the shortest.
pub(super) const FASTEST: i32 = 1;
/// `level`: all spans…
pub(super) const LEVEL_SPANS: i32 = 0;
/// …or only those without a cause: the traces.
pub(super) const LEVEL_TRACES: i32 = 1;

/// One row of `duration_index`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DurationRow {
    #[prost(string, tag = "1")]
    pub(super) service: String,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(int32, tag = "3")]
    pub(super) level: i32,
    #[prost(int32, tag = "4")]
    pub(super) bucket: i32,
    #[prost(int32, tag = "5")]
    pub(super) which: i32,
    #[prost(int64, tag = "6")]
    pub(super) duration_ns: i64,
    #[prost(int64, tag = "7")]
    pub(super) start_ns: i64,
    #[prost(bytes = "vec", tag = "8")]
    pub(super) trace_id: Vec<u8>,
    #[prost(int64, tag = "9")]
    pub(super) span_id: i64,
    #[prost(int32, tag = "10")]
    pub(super) kind: i32,
    #[prost(int32, tag = "11")]
    pub(super) status: i32,
    #[prost(string, tag = "12")]
    pub(super) peer: String,
    #[prost(int64, tag = "13")]
    pub(super) floor_ns: i64,
}

/// What is ranked together. Windows first, so that the oldest are found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    bucket: i32,
    level: i32,
    which: i32,
    service: String,
    name: String,
}

/// The best so far, best first: a handful, so that a sorted list is quick.
#[derive(Debug, Default)]
struct Ranked {
    /// Rank (smaller is better) and the place in the current batch, if it came with it.
    best: Vec<(u64, Option<usize>)>,
}

/// The longest and shortest of every window and name.
#[derive(Debug, Default)]
pub(super) struct Longest {
    ranked: BTreeMap<Key, Ranked>,
}

impl Longest {
    /// Ranks a batch; the rows of those that entered.
    pub(super) fn take_rows(&mut self, batch: &Batch) -> Vec<DurationRow> {
        // Spans of a batch by name first: one look-up per name, not per span.
        let mut groups: FxHashMap<(i32, bool, &str, &str), Vec<usize>> = FxHashMap::default();
        for (idx, span) in batch.spans.iter().enumerate() {
            let Some(near) = span.nearest() else { continue };
            let is_root = span.link.is_none() && span.root.is_some();
            let window = bucket(span.start_ns(), DURATION_BUCKET_S);
            groups
                .entry((window, is_root, near.process.service.as_str(), near.operation.as_str()))
                .or_default()
                .push(idx);
        }
        let mut sorted: Vec<_> = groups.into_iter().collect();
        sorted.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut touched: Vec<Key> = Vec::new();
        for ((bucket, is_root, service, name), spans) in sorted {
            for (service, name, k) in
                [("", "", LONGEST_ALL), (service, "", LONGEST_NAMED), (service, name, LONGEST_NAMED)]
            {
                for level in [LEVEL_SPANS, LEVEL_TRACES] {
                    if level == LEVEL_TRACES && (!is_root || !name.is_empty()) {
                        continue;
                    }
                    for which in [SLOWEST, FASTEST] {
                        let key =
                            Key { bucket, level, which, service: service.to_owned(), name: name.to_owned() };
                        let ranked = self.ranked.entry(key.clone()).or_default();
                        let before = ranked.best.len();
                        let mut changed = false;
                        for idx in &spans {
                            changed |= ranked.offer(rank(which, &batch.spans[*idx]), *idx, k);
                        }
                        if changed || ranked.best.len() != before {
                            touched.push(key);
                        }
                    }
                }
            }
        }
        touched.sort();
        touched.dedup();
        let mut rows = Vec::new();
        for key in touched {
            if let Some(ranked) = self.ranked.get_mut(&key) {
                ranked.take_rows(&key, batch, &mut rows);
            }
        }
        while self.ranked.len() > RANKED_MAX {
            self.ranked.pop_first();
        }
        rows
    }
}

fn rank(which: i32, span: &Span) -> u64 {
    if which == SLOWEST { !span.duration_ns() } else { span.duration_ns() }
}

impl Ranked {
    fn offer(&mut self, rank: u64, idx: usize, k: usize) -> bool {
        if self.best.len() >= k && self.best.last().is_some_and(|(worst, _)| rank >= *worst) {
            return false;
        }
        let place = self.best.partition_point(|(better, _)| *better <= rank);
        self.best.insert(place, (rank, Some(idx)));
        self.best.truncate(k);
        true
    }

    fn take_rows(&mut self, key: &Key, batch: &Batch, rows: &mut Vec<DurationRow>) {
        let k = if key.service.is_empty() { LONGEST_ALL } else { LONGEST_NAMED };
        let worst = self.best.last().filter(|_| self.best.len() >= k).map(|(rank, _)| *rank);
        // Nothing is left out yet: no span is shorter than 0, none longer than the largest number.
        let floor_ns = match (key.which, worst) {
            (SLOWEST, Some(rank)) => stored(!rank),
            (SLOWEST, None) => 0,
            (_, Some(rank)) => stored(rank),
            (_, None) => i64::MAX,
        };
        for (_, place) in &mut self.best {
            let Some(idx) = place.take() else { continue };
            let span = &batch.spans[idx];
            let near = span.nearest();
            rows.push(DurationRow {
                service: key.service.clone(),
                name: key.name.clone(),
                level: key.level,
                bucket: key.bucket,
                which: key.which,
                duration_ns: stored(span.duration_ns()),
                start_ns: stored(span.start_ns()),
                trace_id: trace_key(span.trace_id),
                span_id: span.span_id.0 as i64,
                kind: if span.kind() == Side::Client { 1 } else { 2 },
                status: near.map_or(0, |half| half.status as i32),
                peer: near.map_or_else(String::new, |half| half.peer.to_string()),
                floor_ns,
            });
        }
    }
}

fn stored(ns: u64) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{EPOCH_NS, Maker, Random, run, span};
    use dprof_common::model::SpanId;

    fn batch(seq: u64, durations_ns: &[u64]) -> Batch {
        let mut maker = Maker::new(&run("a", 1));
        let spans = durations_ns
            .iter()
            .enumerate()
            .map(|(idx, duration_ns)| {
                let id = SpanId(seq * 100_000 + idx as u64 + 1);
                span(id.as_root_trace(), id, None, Some(maker.half("web", "GET", EPOCH_NS, *duration_ns)))
            })
            .collect();
        Batch { seq, spans, ..Batch::default() }
    }

    /// What was left out of the ranking of everything is never better than the last floor.
    #[test]
    fn the_floor_bounds_all_that_was_left_out() {
        let mut random = Random::new(3);
        let mut longest = Longest::default();
        let mut seen: FxHashMap<i32, Vec<u64>> = FxHashMap::default();
        let mut floors: FxHashMap<i32, i64> = FxHashMap::default();
        let mut all = Vec::new();
        for seq in 1..=40 {
            let durations: Vec<u64> = (0..50).map(|_| random.below(10_000)).collect();
            all.extend(durations.iter().copied());
            for row in longest.take_rows(&batch(seq, &durations)) {
                if row.service.is_empty() && row.level == LEVEL_SPANS {
                    seen.entry(row.which).or_default().push(row.duration_ns as u64);
                    let floor = floors.entry(row.which).or_insert(row.floor_ns);
                    *floor = if row.which == SLOWEST {
                        row.floor_ns.max(*floor)
                    } else {
                        row.floor_ns.min(*floor)
                    };
                }
            }
        }
        all.sort_unstable();
        for which in [SLOWEST, FASTEST] {
            let rows = &seen[&which];
            assert!((LONGEST_ALL..300).contains(&rows.len()), "{} rows of 2,000", rows.len());
            let mut left_out = all.clone();
            for row in rows {
                let place = left_out.binary_search(row).expect("a row is one of the spans");
                left_out.remove(place);
            }
            let floor = floors[&which] as u64;
            if which == SLOWEST {
                assert!(left_out.iter().all(|ns| *ns <= floor));
            } else {
                assert!(left_out.iter().all(|ns| *ns >= floor));
            }
        }
    }

    #[test]
    fn a_few_spans_are_all_there_and_nothing_is_left_out() {
        let rows = Longest::default().take_rows(&batch(1, &[5, 7]));
        let all: Vec<_> = rows.iter().filter(|row| row.service.is_empty() && row.which == SLOWEST).collect();
        assert_eq!(all.len(), 4, "two spans at two levels");
        assert!(all.iter().all(|row| row.floor_ns == 0));
        assert!(rows.iter().any(|row| row.service == "web" && row.name == "GET"));
    }
}
