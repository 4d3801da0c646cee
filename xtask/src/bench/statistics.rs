//! Medians and their intervals, from pairs.

/// A median with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Median {
    pub(super) low: f64,
    pub(super) median: f64,
    pub(super) high: f64,
}

/// The median of `values` and the interval between two of them that covers the true one with at least 95 %
/// (order statistics; the binomial distribution says which two, without any assumption on how values scatter).
/// With fewer than six values no interval reaches that: it is then from the smallest to the largest.
pub(super) fn median(values: &[f64]) -> Median {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let n = sorted.len();
    if n == 0 {
        return Median { low: f64::NAN, median: f64::NAN, high: f64::NAN };
    }
    let middle = f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]);
    // Probability that at most `k` of `n` values lie below the true median, for growing `k`.
    let (mut below, mut term, mut rank) = (0.0, 0.5_f64.powi(n as i32), 0);
    while rank < n / 2 {
        if below + term > 0.025 {
            break;
        }
        below += term;
        term *= (n - rank) as f64 / (rank + 1) as f64;
        rank += 1;
    }
    let low = rank.saturating_sub(1);
    Median { low: sorted[low], median: middle, high: sorted[n - 1 - low] }
}

#[cfg(test)]
mod tests {
    use super::{Median, median};

    #[test]
    fn the_interval_is_that_of_the_binomial_distribution() {
        // Tables of order statistics: 15 values, 4th and 12th; 20 values, 6th and 15th; 6 values, first and last.
        for (n, low, high) in [(15, 4.0, 12.0), (20, 6.0, 15.0), (6, 1.0, 6.0), (3, 1.0, 3.0)] {
            let values: Vec<f64> = (1..=n).rev().map(f64::from).collect();
            let expected = Median { low, median: f64::from(n + 1) / 2.0, high };
            assert_eq!(median(&values), expected, "{n} values");
        }
    }
}
