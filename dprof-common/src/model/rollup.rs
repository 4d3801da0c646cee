//! Counts and latency sketches per service, operation and minute, made of everything seen, before any sampling.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{KeyStats, Side, Sketch, Span};

const NS: u64 = 1_000_000_000;

/// What a rollup is of. One minute of one run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RollupKey {
    /// Start of the minute, seconds since the epoch, a multiple of 60.
    pub minute_unix_s: u64,
    /// Service of the half's process.
    pub service: String,
    /// Operation.
    pub operation: String,
    /// Which end saw it.
    pub side: Side,
    /// Protocol name.
    pub protocol: Cow<'static, str>,
}

/// Everything seen of one key.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollup {
    /// What of.
    pub key: RollupKey,
    /// How many halves.
    pub count: u64,
    /// How many failed.
    pub errors: u64,
    /// Sum of durations, nanoseconds.
    pub sum_ns: u64,
    /// Shortest, nanoseconds.
    pub min_ns: u64,
    /// Longest, nanoseconds.
    pub max_ns: u64,
    /// Bytes of requests.
    pub request_bytes: u64,
    /// Bytes of responses.
    pub response_bytes: u64,
    /// Durations, nanoseconds.
    pub sketch: Sketch,
    /// Keys named most and sizes of values; `None` if no request named a key or carried a value.
    pub keys: Option<Box<KeyStats>>,
}

impl Rollup {
    /// An empty rollup of `key`.
    pub fn new(key: RollupKey) -> Self {
        Self {
            key,
            count: 0,
            errors: 0,
            sum_ns: 0,
            min_ns: u64::MAX,
            max_ns: 0,
            request_bytes: 0,
            response_bytes: 0,
            sketch: Sketch::new(),
            keys: None,
        }
    }

    /// The counts of the halves of these spans, in order of their keys: of what is kept, where an agent counts what it
    /// sees.
    pub fn of(spans: &[Span]) -> Vec<Self> {
        Self::of_steps(spans, 60)
    }

    /// The same by steps of so many seconds in place of minutes.
    pub fn of_steps<'a>(spans: impl IntoIterator<Item = &'a Span>, step_s: u64) -> Vec<Self> {
        let mut rollups: BTreeMap<RollupKey, Self> = BTreeMap::new();
        for span in spans {
            for (side, half) in [(Side::Client, &span.client), (Side::Server, &span.server)] {
                let Some(half) = half else { continue };
                let key = RollupKey {
                    minute_unix_s: half.times.start_ns / (step_s * NS) * step_s,
                    service: half.process.service.clone(),
                    operation: half.operation.clone(),
                    side,
                    protocol: half.protocol.clone(),
                };
                rollups.entry(key.clone()).or_insert_with(|| Self::new(key)).add(
                    half.times.duration_ns(),
                    half.status.is_error(),
                    half.request_bytes,
                    half.response_bytes,
                );
            }
        }
        rollups.into_values().collect()
    }

    /// The duration at quantile `q`, 0 to 1, nanoseconds: the sketch knows it within 1 %; minimum and maximum are exact,
    /// so it lies between them. `None` = nothing was counted.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        self.sketch.quantile(q).map(|ns| ns.min(self.max_ns).max(self.min_ns))
    }

    /// Counts one half.
    pub fn add(&mut self, duration_ns: u64, is_error: bool, request_bytes: u64, response_bytes: u64) {
        self.count += 1;
        self.errors += u64::from(is_error);
        self.sum_ns = self.sum_ns.saturating_add(duration_ns);
        self.min_ns = self.min_ns.min(duration_ns);
        self.max_ns = self.max_ns.max(duration_ns);
        self.request_bytes += request_bytes;
        self.response_bytes += response_bytes;
        self.sketch.add(duration_ns);
    }

    /// Adds another rollup's counts (its key is ignored).
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.errors += other.errors;
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.min_ns = self.min_ns.min(other.min_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
        self.sketch.merge(&other.sketch);
        match (&mut self.keys, &other.keys) {
            (Some(mine), Some(theirs)) => mine.merge(theirs),
            (None, Some(theirs)) => self.keys = Some(theirs.clone()),
            (_, None) => {}
        }
    }
}
