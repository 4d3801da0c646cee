//! From kept spans to all spans: weights, and latency distributions of weighted spans.
//!
//! What a reader would get wrong: spans kept because they were slow, failed or top-ranked are examples, not a
//! sample. Only those kept by the hash of their trace's id stand for others, each for one over its probability
//! (Horvitz and Thompson: "A generalization of sampling without replacement from a finite universe", JASA 1952).

use dprof_common::model::{KeepReason, Sketch, Span};
use serde::Serialize;

use super::confidence::{Confidence, Sampled};

/// Sketches count whole numbers; a weight is rounded to this fraction, so 1/0.3 is off by less than a thousandth.
const WEIGHT_UNITS: f64 = 1_000.0;

/// How many spans `span` stands for; `None` = it is an example and stands for no other.
pub fn weight(span: &Span) -> Option<f64> {
    match span.reason {
        KeepReason::Ratio | KeepReason::Unconfirmed => {
            Some(1.0 / span.probability.clamp(f64::MIN_POSITIVE, 1.0))
        }
        KeepReason::Slow | KeepReason::Error | KeepReason::Top => None,
    }
}

/// Durations with weights: estimated count, mean and percentiles (within 1 % of those of the weighted values).
#[derive(Clone, Debug)]
pub struct Distribution {
    sketch: Sketch,
    weight: f64,
    squares: f64,
    sum_ns: f64,
    /// Shortest, exact.
    pub min_ns: u64,
    /// Longest, exact.
    pub max_ns: u64,
    /// How many values were added, without weights.
    pub seen: u64,
}

impl Default for Distribution {
    fn default() -> Self {
        Self {
            sketch: Sketch::new(),
            weight: 0.0,
            squares: 0.0,
            sum_ns: 0.0,
            min_ns: u64::MAX,
            max_ns: 0,
            seen: 0,
        }
    }
}

/// What is printed of a distribution. Field names are part of the JSON schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Shortest, exact.
    pub min_ns: u64,
    /// Mean.
    pub avg_ns: u64,
    /// Median, within 1 %.
    pub p50_ns: u64,
    /// Within 1 %.
    pub p90_ns: u64,
    /// Within 1 %.
    pub p99_ns: u64,
    /// Longest, exact.
    pub max_ns: u64,
}

impl Distribution {
    /// Adds a duration that stands for `weight` of them.
    pub fn add(&mut self, ns: u64, weight: f64) {
        self.sketch.add_many(ns, (weight * WEIGHT_UNITS).round() as u64);
        self.weight += weight;
        self.squares += weight * weight;
        self.sum_ns += ns as f64 * weight;
        self.min_ns = self.min_ns.min(ns);
        self.max_ns = self.max_ns.max(ns);
        self.seen += 1;
    }

    /// Estimated number of values.
    pub fn count(&self) -> u64 {
        self.weight.round() as u64
    }

    /// Estimated sum, nanoseconds.
    pub fn total_ns(&self) -> u64 {
        self.sum_ns.round() as u64
    }

    /// The value at quantile `q`, within 1 %, never outside the extremes; 0 when empty.
    pub fn quantile(&self, q: f64) -> u64 {
        self.sketch.quantile(q).map_or(0, |ns| ns.min(self.max_ns).max(self.min_ns))
    }

    /// Mean, nanoseconds; 0 when empty.
    pub fn avg_ns(&self) -> u64 {
        if self.weight > 0.0 { (self.sum_ns / self.weight).round() as u64 } else { 0 }
    }

    /// How far the estimates may be off; nothing where every value was seen. Only for values of which a trace has one.
    pub fn confidence(&self) -> Option<Confidence> {
        let sampled = Sampled { seen: self.seen, weight: self.weight, squares: self.squares };
        sampled.confidence(|q| self.quantile(q))
    }

    /// Everything that is printed.
    pub fn latency(&self) -> Latency {
        if self.seen == 0 {
            return Latency::default();
        }
        Latency {
            min_ns: self.min_ns,
            avg_ns: self.avg_ns(),
            p50_ns: self.quantile(0.5),
            p90_ns: self.quantile(0.9),
            p99_ns: self.quantile(0.99),
            max_ns: self.max_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;

    #[test]
    fn only_spans_kept_by_ratio_stand_for_others() {
        let mut span = rpc(1).build();
        span.probability = 0.25;
        for (reason, expected) in [
            (KeepReason::Ratio, Some(4.0)),
            (KeepReason::Unconfirmed, Some(4.0)),
            (KeepReason::Slow, None),
            (KeepReason::Error, None),
            (KeepReason::Top, None),
        ] {
            span.reason = reason;
            assert_eq!(weight(&span), expected, "{reason:?}");
        }
    }

    #[test]
    fn a_weight_counts_like_as_many_values() {
        let (mut weighted, mut repeated) = (Distribution::default(), Distribution::default());
        for (ns, n) in [(1_000, 90_u64), (9_000, 9), (100_000, 1)] {
            weighted.add(ns, n as f64);
            for _ in 0..n {
                repeated.add(ns, 1.0);
            }
        }
        assert_eq!(weighted.latency(), repeated.latency());
        assert_eq!((weighted.count(), weighted.seen, repeated.seen), (100, 3, 100));
        assert_eq!(weighted.total_ns(), 90 * 1_000 + 9 * 9_000 + 100_000);
        assert_eq!(weighted.avg_ns(), 2_710);
        assert_eq!(Distribution::default().latency(), Latency::default());
    }

    #[test]
    fn percentiles_are_within_one_percent_of_exact_ones() {
        let seed = 20_261_125_u64;
        let mut random = dprof_store::conformance::Random::new(seed);
        let mut distribution = Distribution::default();
        let mut values: Vec<u64> = (0..50_000)
            .map(|_| {
                let e = (0..4).map(|_| random.below(1_000)).sum::<u64>() as f64 / 500.0;
                (e.exp() * 20_000.0) as u64
            })
            .collect();
        for ns in &values {
            distribution.add(*ns, 1.0);
        }
        values.sort_unstable();
        for q in [0.01, 0.5, 0.9, 0.99, 0.999] {
            let exact = values[(q * (values.len() - 1) as f64).floor() as usize] as f64;
            let error = (distribution.quantile(q) as f64 - exact).abs() / exact;
            assert!(error <= 0.01, "seed {seed}, q {q}: off by {error}");
        }
    }
}
