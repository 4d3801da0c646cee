//! When something changed: change points of a series with one value per minute.
//!
//! Where: E-divisive (Matteson, James: "A Nonparametric Approach for Multiple Change Point Analysis of Multivariate
//! Data", JASA 2014): the split with the largest energy distance between both sides, then again within each side.
//! Whether: Student's t-test between the sides in place of the permutation test, as in Hunter (Fleming,
//! Kołaczkowski, Kumar, Das, McCarthy, Pattabhi, Ingo: "Hunter: Using Change Point Detection to Hunt for Performance
//! Regressions", ICPE 2023): a page comes minutes after the change, when there are too few permutations for a small
//! p-value.
//!
//! What a reader would get wrong: the split is chosen to look large, and many series are looked at; so the chance is
//! multiplied by the number of places tried (Bonferroni), and the caller divides its threshold by its series.

/// A side has at least as many values: one odd minute is no change.
const SIDE_MIN: usize = 2;

/// Spread below which values are taken as equal: sketches know a value within 1 %, and values are logarithms.
const SPREAD_MIN: f64 = 0.01;

/// Neighbours are taken as no more alike than this: a series of few values looks more so than it is.
const CORRELATION_MAX: f64 = 0.8;

/// A split is tried further if chance alone would make it so rarely.
const WEAK_CHANCE_MAX: f64 = 0.05;

/// A change in a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// First value after it.
    pub at: usize,
    /// First value of the stretch before it.
    pub from: usize,
    /// One past the last value of the stretch after it.
    pub until: usize,
    /// Mean before.
    pub before: f64,
    /// Mean after.
    pub after: f64,
    /// Chance of such a difference without a change.
    pub chance: f64,
}

/// The changes of `values` whose chance is below `chance_max`, in order of time.
///
/// A stretch that rises and falls again hides each step from the other, so weak splits are taken at first and the
/// weakest given up, one at a time, until all that remain are sure (also as in Hunter).
pub fn change_points(values: &[f64], chance_max: f64) -> Vec<Change> {
    let mut cuts = vec![0, values.len()];
    let mut stack = vec![(0, values.len())];
    while let Some((from, until)) = stack.pop() {
        let Some(at) = best_split(&values[from..until]).map(|at| from + at) else { continue };
        if chance(&values[from..at], &values[at..until], 1.0, 0.0) < WEAK_CHANCE_MAX {
            cuts.push(at);
            stack.extend([(from, at), (at, until)]);
        }
    }
    cuts.sort_unstable();
    loop {
        let judged: Vec<Change> = cuts.windows(3).map(|cut| judge(values, cut[0], cut[1], cut[2])).collect();
        let weakest = judged.iter().enumerate().max_by(|(_, a), (_, b)| a.chance.total_cmp(&b.chance));
        match weakest {
            Some((idx, change)) if change.chance >= chance_max => cuts.remove(idx + 1),
            _ => return judged,
        };
    }
}

fn judge(values: &[f64], from: usize, at: usize, until: usize) -> Change {
    let (before, after) = (&values[from..at], &values[at..until]);
    // The split could have been anywhere in the series.
    let places = values.len().saturating_sub(2 * SIDE_MIN) + 1;
    let chance = chance(before, after, places as f64, CORRELATION_MAX);
    Change { at, from, until, before: mean(before), after: mean(after), chance }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Where both sides are furthest apart by the scaled energy distance; `None` if there is no room for two sides.
fn best_split(values: &[f64]) -> Option<usize> {
    let n = values.len();
    if n < 2 * SIDE_MIN {
        return None;
    }
    // Sums of |x - y| within the left side, within the right side and between them, as the split moves right.
    let distances = |x: f64, of: &[f64]| of.iter().map(|y| (x - y).abs()).sum::<f64>();
    let mut within_left = 0.0;
    let mut within_right: f64 = (0..n).map(|i| distances(values[i], &values[i + 1..])).sum();
    let mut between = 0.0;
    let mut best: Option<(f64, usize)> = None;
    for at in 1..n {
        let moved = values[at - 1];
        let (to_left, to_right) = (distances(moved, &values[..at - 1]), distances(moved, &values[at..]));
        within_left += to_left;
        within_right -= to_right;
        between += to_right - to_left;
        if at < SIDE_MIN || n - at < SIDE_MIN {
            continue;
        }
        let (left, right) = (at as f64, (n - at) as f64);
        let energy = 2.0 * between / (left * right)
            - 2.0 * within_left / (left * (left - 1.0))
            - 2.0 * within_right / (right * (right - 1.0));
        let scaled = left * right / (left + right) * energy;
        if best.is_none_or(|(most, _)| scaled > most) {
            best = Some((scaled, at));
        }
    }
    best.map(|(_, at)| at)
}

/// Two-sided t-test of equal means, times the number of places that the split could have been; neighbours are taken
/// as no more alike than `correlation_max`. A stretch with further changes in it looks as if they were: there it is 0.
fn chance(before: &[f64], after: &[f64], places: f64, correlation_max: f64) -> f64 {
    let (n, m) = (before.len() as f64, after.len() as f64);
    if before.len() < SIDE_MIN || after.len() < SIDE_MIN {
        return 1.0;
    }
    let squares = |values: &[f64]| {
        let mean = mean(values);
        values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>()
    };
    let freedom = n + m - 2.0;
    let spread = ((squares(before) + squares(after)) / freedom).sqrt().max(SPREAD_MIN);
    // Of values that resemble their neighbours each tells less than one that does not: as many independent ones would
    // be fewer, fewer for a mean than for a spread (Bayley, Hammersley: "The effective number of independent
    // observations in an autocorrelated time series", 1946; here for correlation that fades by the same factor with
    // each step).
    let r = neighbours(before, after).clamp(0.0, correlation_max);
    let (of_mean, of_spread) = ((1.0 - r) / (1.0 + r), (1.0 - r * r) / (1.0 + r * r));
    let t = (mean(after) - mean(before)) / (spread * (1.0 / n + 1.0 / m).sqrt()) * of_mean.sqrt();
    (student_tails(t, (freedom * of_spread).max(1.0)) * places).min(1.0)
}

/// Correlation of values with their neighbours, around the means of both sides.
fn neighbours(before: &[f64], after: &[f64]) -> f64 {
    let (mut products, mut squares) = (0.0, 0.0);
    for side in [before, after] {
        let mean = mean(side);
        squares += side.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>();
        products += side.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).sum::<f64>();
    }
    if squares > 0.0 { products / squares } else { 0.0 }
}

/// Chance that Student's t with so many degrees of freedom is at least as far from zero.
fn student_tails(t: f64, freedom: f64) -> f64 {
    incomplete_beta(freedom / (freedom + t * t), freedom / 2.0, 0.5)
}

/// Regularised incomplete beta function by its continued fraction (Lentz's method; Press et al., "Numerical
/// Recipes", 6.4).
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return if x <= 0.0 { 0.0 } else { 1.0 };
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(1.0 - x, b, a);
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp() / a;
    let tiny = 1e-300;
    let not_zero = |v: f64| if v.abs() < tiny { tiny } else { v };
    let (mut c, mut d) = (1.0, 1.0 / not_zero(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for k in 1..300 {
        let k = f64::from(k);
        let even = k * (b - k) * x / ((a + 2.0 * k - 1.0) * (a + 2.0 * k));
        let odd = -(a + k) * (a + b + k) * x / ((a + 2.0 * k) * (a + 2.0 * k + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 / not_zero(1.0 + term * d);
            c = not_zero(1.0 + term / c);
            change = c * d;
            fraction *= change;
        }
        if (change - 1.0).abs() < 1e-12 {
            break;
        }
    }
    front * fraction
}

/// Lanczos' approximation (g = 5, six terms; Press et al., 6.1), within 2e-10.
fn ln_gamma(x: f64) -> f64 {
    const TERMS: [f64; 6] = [
        76.180_091_729_471_46,
        -86.505_320_329_416_77,
        24.014_098_240_830_91,
        -1.231_739_572_450_155,
        0.001_208_650_973_866_179,
        -0.000_005_395_239_384_953,
    ];
    let base = x + 5.5;
    let series: f64 =
        1.000_000_000_190_015 + TERMS.iter().zip(1..).map(|(term, n)| term / (x + f64::from(n))).sum::<f64>();
    (x + 0.5) * base.ln() - base + (2.506_628_274_631_000_5 * series / x).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dprof_store::conformance::Random;

    /// About normal, mean 0, spread 1.
    fn noise(random: &mut Random) -> f64 {
        (0..12).map(|_| random.below(1_000_000) as f64 / 1e6).sum::<f64>() - 6.0
    }

    #[test]
    fn the_tails_of_student_are_those_of_the_tables() {
        // Two-sided 5 % and 0.1 % points.
        for (t, freedom, expected) in [
            (12.706, 1.0, 0.05),
            (2.571, 5.0, 0.05),
            (2.042, 30.0, 0.05),
            (31.599, 2.0, 0.001),
            (3.646, 30.0, 0.001),
        ] {
            let chance = student_tails(t, freedom);
            assert!((chance / expected - 1.0).abs() < 0.002, "{t} {freedom}: {chance}");
        }
        assert!((student_tails(0.0, 5.0) - 1.0).abs() < 1e-9);
        assert!(student_tails(60.0, 40.0) < 1e-30);
    }

    #[test]
    fn a_step_is_found_where_it_is() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let at = 4 + random.below(40) as usize;
            let values: Vec<f64> =
                (0..50).map(|n| 0.05 * noise(&mut random) + if n >= at { 0.7 } else { 0.0 }).collect();
            let found = change_points(&values, 1e-6);
            assert_eq!(found.iter().map(|c| c.at).collect::<Vec<_>>(), [at], "seed {seed}");
            assert!((found[0].after - found[0].before - 0.7).abs() < 0.1, "seed {seed}");
        }
    }

    #[test]
    fn two_steps_are_two_changes() {
        let values: Vec<f64> = (0..40)
            .map(|n| if (15..25).contains(&n) { 1.0 } else { 0.0 } + f64::from(n % 3) * 0.02)
            .collect();
        let found = change_points(&values, 1e-6);
        assert_eq!(
            found.iter().map(|c| (c.from, c.at, c.until)).collect::<Vec<_>>(),
            [(0, 15, 25), (15, 25, 40)]
        );
    }

    #[test]
    fn steady_noise_raises_no_alarm() {
        let mut alarms = 0;
        for seed in 0..2_000 {
            let mut random = Random::new(seed);
            let values: Vec<f64> = (0..60).map(|_| 0.3 * noise(&mut random)).collect();
            alarms += usize::from(!change_points(&values, 1e-4).is_empty());
        }
        // 2,000 series at a chance of one in 10,000 each.
        assert!(alarms <= 2, "{alarms} alarms");
    }

    #[test]
    fn one_odd_minute_and_short_series_are_no_change() {
        let mut values = vec![0.0; 30];
        values[14] = 5.0;
        assert_eq!(change_points(&values, 1e-4), []);
        assert_eq!(change_points(&[0.0, 0.0, 9.0], 1e-4), []);
        assert_eq!(change_points(&[], 1e-4), []);
    }
}
