//! How slow an operation usually is: running quantiles of the last one to two minutes, by sketches.
//!
//! What a reader would get wrong: what is kept is a little more than the slowest hundredth. The quantile of n durations
//! is known to the rank ± √(n q (1 - q)) only, and to a hundredth of its value by the sketch; at its middle every other
//! time some of the true slowest hundredth would be missed. So for roots its lower bound is taken (Conover, *Practical
//! Nonparametric Statistics*, 3rd ed., 3.2: binomial bounds of a quantile).

use dprof_common::model::Sketch;
use rustc_hash::FxHashMap;

/// A sketch is filled for this long, then stands for the past; quantiles are of both.
const WINDOW_NS: u64 = 60_000_000_000;

/// Operations with thresholds; of others nothing is slow.
const OPERATIONS_MAX: usize = 4096;

/// A root is slow beyond this quantile, an inner span beyond the other: one request has many of those.
const ROOT_QUANTILE: f64 = 0.99;
const INNER_QUANTILE: f64 = 0.999;

/// Standard deviations between a quantile's rank and its lower bound: it lies below in 99 of 100 cases.
const BOUND: f64 = 2.33;
/// What a sketch may say too much, as a part of the value.
const SKETCH_ERROR: f64 = 0.01;

/// Durations before a quantile is believed: ten times what lies beyond it.
const ROOT_COUNT_MIN: u64 = 1_000;
const INNER_COUNT_MIN: u64 = 10_000;

/// The thresholds are worked out anew after so many more durations, in parts of those that there are.
const GROWTH: u64 = 4;

#[derive(Debug, Default)]
struct Operation {
    current: Sketch,
    before: Sketch,
    window_ends_ns: u64,
    n: u64,
    n_judged: u64,
    root_ns: Option<u64>,
    inner_ns: Option<u64>,
}

impl Operation {
    fn judge(&mut self) {
        let mut both = self.before.clone();
        both.merge(&self.current);
        self.n = both.count();
        self.n_judged = self.n;
        let of = |quantile, count_min| both.quantile(quantile).filter(|_| self.n >= count_min);
        let bound =
            ROOT_QUANTILE - BOUND * (ROOT_QUANTILE * (1.0 - ROOT_QUANTILE) / self.n.max(1) as f64).sqrt();
        let root_ns = of(bound, ROOT_COUNT_MIN).map(|ns| (ns as f64 * (1.0 - SKETCH_ERROR)) as u64);
        (self.root_ns, self.inner_ns) = (root_ns, of(INNER_QUANTILE, INNER_COUNT_MIN));
    }
}

/// Thresholds of all operations.
#[derive(Debug, Default)]
pub(super) struct Thresholds {
    operations: FxHashMap<u64, Operation>,
}

impl Thresholds {
    /// Whether a span of this duration is slower than its operation usually is.
    pub(super) fn is_slow(&mut self, operation: u64, duration_ns: u64, is_root: bool, now_ns: u64) -> bool {
        let Some(operation) = self.operations.get_mut(&operation) else { return false };
        if now_ns >= operation.window_ends_ns.saturating_add(WINDOW_NS) {
            // Nothing for a window and more: the past says nothing any more.
            *operation = Operation::default();
        }
        let threshold = if is_root { operation.root_ns } else { operation.inner_ns };
        threshold.is_some_and(|threshold| duration_ns > threshold)
    }

    /// A span of this duration was seen.
    pub(super) fn add(&mut self, operation: u64, duration_ns: u64, now_ns: u64) {
        if self.operations.len() >= OPERATIONS_MAX && !self.operations.contains_key(&operation) {
            return;
        }
        let operation = self.operations.entry(operation).or_default();
        if now_ns >= operation.window_ends_ns {
            operation.before = std::mem::take(&mut operation.current);
            operation.window_ends_ns = now_ns.saturating_add(WINDOW_NS);
            operation.judge();
        }
        operation.current.add(duration_ns);
        operation.n += 1;
        if operation.n >= ROOT_COUNT_MIN && operation.n >= operation.n_judged + operation.n_judged / GROWTH {
            operation.judge();
        }
    }
}
