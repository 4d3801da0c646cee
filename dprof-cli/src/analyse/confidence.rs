//! How far an estimate from sampled traces may be from what an unsampled run would have counted: 99 % intervals.
//!
//! A trace is kept with a probability that does not depend on what it was. So the number kept is binomial, and so is
//! the number of kept ones below any percentile: the percentile lies between two of the kept values whose ranks
//! follow from that (Woodruff: "Confidence intervals for medians and other position measures", JASA 1952). It is 99 %
//! and not 95 % since a table shows many intervals at once, and of those few should be off.
//!
//! What a reader would get wrong: this holds for values of which a trace has one, such as its root's duration. RPCs of
//! one trace are kept or dropped together, and intervals that took them for independent would be too narrow.

use serde::Serialize;

/// Standard deviations within which a normal value is 99 times in 100.
const Z: f64 = 2.576;

/// How often a value may be on either side of its interval.
const TAIL: f64 = 0.005;

/// From this variance on a binomial count is normal, but for the steps of one in which it goes.
const NORMAL_FROM: f64 = 50.0;

/// Percentiles are read off a sketch whose values are within this share of the true ones.
const SKETCH_ERROR: f64 = 0.01;

/// Lowest and highest value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Interval {
    /// Not less.
    pub low: u64,
    /// Not more; null if the sample is too small to tell.
    pub high: Option<u64>,
}

/// 99 % intervals of the estimates of one row. Field names are the JSON schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Confidence {
    /// Of the count.
    pub count: Interval,
    /// Of the median, nanoseconds.
    pub p50_ns: Interval,
    /// Of the 90th percentile.
    pub p90_ns: Interval,
    /// Of the 99th percentile.
    pub p99_ns: Interval,
}

/// What a sample says of its own size.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sampled {
    /// Values in it.
    pub seen: u64,
    /// How many values they stand for.
    pub weight: f64,
    /// Sum of the weights' squares.
    pub squares: f64,
}

impl Sampled {
    /// Interval of the number of values: the estimate's variance is the sum of w² - w (Horvitz and Thompson, 1952),
    /// and half a weight is for the steps in which it goes.
    pub fn count(&self) -> Interval {
        let deviation = (self.squares - self.weight).max(0.0).sqrt();
        let step = if self.seen == 0 { 0.0 } else { (self.weight / self.seen as f64 - 1.0).max(0.0) };
        let reach = Z.mul_add(deviation, step / 2.0);
        Interval {
            // Those in the sample are there.
            low: (self.weight - reach).max(self.seen as f64).round() as u64,
            high: Some((self.weight + reach).round() as u64),
        }
    }

    /// All intervals; nothing if the sample is everything. `quantile` reads the sample.
    pub fn confidence(&self, quantile: impl Fn(f64) -> u64) -> Option<Confidence> {
        if self.weight <= self.seen as f64 || self.squares <= 0.0 {
            return None;
        }
        // Unequal weights are worth fewer values (Kish: "Survey Sampling", 1965).
        let n = (self.weight * self.weight / self.squares).round().max(1.0);
        let at = |rank: f64| quantile(((rank - 0.5) / n).clamp(0.0, 1.0)) as f64;
        let of = |q: f64| {
            let [low, high] = ranks(n as u64, q);
            Interval {
                low: low.map_or(0, |rank| (at(rank as f64) * (1.0 - SKETCH_ERROR)).floor() as u64),
                high: high.map(|rank| (at(rank as f64) * (1.0 + SKETCH_ERROR)).ceil() as u64),
            }
        };
        Some(Confidence { count: self.count(), p50_ns: of(0.5), p90_ns: of(0.9), p99_ns: of(0.99) })
    }
}

/// Between which of `n` sorted values, counted from 1, the quantile `q` of everything lies; none where no value of
/// the sample is surely on that side.
fn ranks(n: u64, q: f64) -> [Option<u64>; 2] {
    let variance = n as f64 * q * (1.0 - q);
    let (low, high) = if variance > NORMAL_FROM {
        let (middle, reach) = (n as f64 * q, Z.mul_add(variance.sqrt(), 1.0));
        ((middle - reach).floor() as u64, (middle + reach).ceil() as u64)
    } else {
        exact_ranks(n, q)
    };
    [(low >= 1).then_some(low), (high <= n).then_some(high)]
}

/// The same by the binomial distribution itself; 0 and n + 1: none.
fn exact_ranks(n: u64, q: f64) -> (u64, u64) {
    let mut log_chance = n as f64 * (1.0 - q).ln();
    let (mut below, mut low) = (0.0, 0);
    for k in 0..=n {
        if below <= TAIL {
            low = k;
        }
        if below >= 1.0 - TAIL {
            return (low, k);
        }
        below += log_chance.exp();
        log_chance += ((n - k) as f64 / (k + 1) as f64).ln() + (q / (1.0 - q)).ln();
    }
    (low, n + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyse::estimate::Distribution;
    use dprof_store::conformance::Random;

    fn sampled(seen: u64, weight: f64) -> Sampled {
        Sampled { seen, weight: seen as f64 * weight, squares: seen as f64 * weight * weight }
    }

    #[test]
    fn a_count_is_known_as_well_as_its_sample_is_large() {
        for (seen, weight, low, high) in
            [(0, 100.0, 0, 0), (1, 100.0, 1, 406), (100, 100.0, 7_387, 12_613), (500, 1.0, 500, 500)]
        {
            let expected = Interval { low, high: Some(high) };
            assert_eq!(sampled(seen, weight).count(), expected, "{seen} of weight {weight}");
        }
    }

    #[test]
    fn a_quantile_lies_between_two_of_the_sample() {
        for (n, q, low, high) in [
            (100, 0.5, Some(37), Some(64)),
            (1_000, 0.99, Some(981), Some(998)),
            (20_000, 0.99, Some(19_762), Some(19_838)),
            (200, 0.99, Some(194), None),
            (9, 0.5, Some(1), Some(9)),
            (7, 0.5, None, None),
        ] {
            assert_eq!(ranks(n, q), [low, high], "{n} at {q}");
        }
    }

    #[test]
    fn a_sample_that_is_everything_has_no_interval() {
        assert_eq!(sampled(100, 1.0).confidence(|_| 1), None);
        assert_eq!(sampled(0, 1.0).confidence(|_| 1), None);
    }

    /// Durations of requests as they are: a fast way, a slow way, and a few far out; microseconds.
    fn durations_us(random: &mut Random, n: usize) -> Vec<u64> {
        (0..n)
            .map(|_| {
                let base = if random.below(10) == 0 { 20_000.0 } else { 2_000.0 };
                let spread = (0..6).map(|_| random.below(1_000)).sum::<u64>() as f64 / 1_500.0;
                (base * spread.exp()) as u64
            })
            .collect()
    }

    /// Of 100 runs those whose truth is within the interval: count, median, 90th and 99th percentile.
    fn within(seed: u64, traces: usize, one_of: u64) -> [usize; 4] {
        let mut random = Random::new(seed);
        let mut within = [0; 4];
        for _ in 0..100 {
            let mut all = durations_us(&mut random, traces);
            let mut kept = Distribution::default();
            for us in &all {
                if random.below(one_of) == 0 {
                    kept.add(us * 1_000, one_of as f64);
                }
            }
            all.sort_unstable();
            let exact = |q: f64| all[((all.len() - 1) as f64 * q) as usize] * 1_000;
            let stated = kept.confidence().expect("sampled");
            for (idx, (interval, truth)) in [
                (stated.count, traces as u64),
                (stated.p50_ns, exact(0.5)),
                (stated.p90_ns, exact(0.9)),
                (stated.p99_ns, exact(0.99)),
            ]
            .into_iter()
            .enumerate()
            {
                let is_within = interval.low <= truth && interval.high.is_none_or(|high| truth <= high);
                within[idx] += usize::from(is_within);
            }
        }
        within
    }

    #[test]
    fn the_truth_is_within_the_intervals_in_95_of_100_runs() {
        for (seed, traces, one_of) in [(1, 20_000, 100), (2, 100_000, 100), (3, 20_000, 10), (4, 20_000, 16)]
        {
            let within = within(seed, traces, one_of);
            assert!(
                within.iter().all(|runs| *runs >= 95),
                "seed {seed}: 1 of {one_of} of {traces}: {within:?} of 100 runs (count, p50, p90, p99)"
            );
        }
    }
}
