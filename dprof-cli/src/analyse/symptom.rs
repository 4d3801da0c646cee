//! Counts per minute into what changed for whom: operations whose latency or failures rose, since when, from what
//! to what.
//!
//! What a reader would get wrong: a change must be both unlikely by chance and large enough to matter. Quantiles of
//! a minute with few requests are noise, so each quantile is looked at only where minutes hold enough of them.

use std::collections::BTreeMap;

use dprof_common::model::{Rollup, RollupKey, Side};
use serde::Serialize;

use super::change::{Change, change_points};

/// Chance of any false alarm in one answer; divided by the series looked at.
const FALSE_ALARM_MAX: f64 = 0.01;
/// A quantile has to rise by this factor.
const RISE_MIN: f64 = 1.3;
/// Failures have to rise by this share of the requests…
const ERROR_RISE_MIN: f64 = 0.01;
/// … and by this factor.
const ERROR_FACTOR_MIN: f64 = 2.0;
/// Longer windows are looked at in as many steps of several minutes: the search is quadratic.
const STEPS_MAX: usize = 240;
/// Series looked at, those with most time first: what takes less is no reason for a page.
const SERIES_MAX: usize = 300;
/// Steps are taken together only if as many remain: four on either side of a change.
const COARSE_STEPS_MIN: u64 = 8;
/// Changes so many steps apart are one event: agents' minutes and calls' minutes differ.
const SAME_EVENT_STEPS: u64 = 2;
/// A quantile has to rise by so much, nanoseconds…
const RISE_NS_MIN: u64 = 200_000;
/// … or all requests together by so much per second: less is no reason for a page.
const ADDED_NS_PER_S_MIN: f64 = 20e6;

/// In steps of seconds, all requests together have to rise by so much, or the median or a tail by so much: what waiting
/// for a CPU on a busy machine adds comes and goes within less.
const SECONDS_ADDED_NS_PER_S_MIN: f64 = 100e6;
const SECONDS_RISE_NS_MIN: u64 = 1_000_000;
const SECONDS_TAIL_RISE_NS_MIN: u64 = 20_000_000;
/// A rise that passed by itself within so many seconds is a stall of the machine, not a change…
const PASSED_S_MIN: u64 = 10;
/// … and one so short may yet pass.
const LASTING_S_MIN: u64 = 4;
/// It passed if so much of the rise is gone.
const PASSED_SHARE: f64 = 0.5;

/// What rose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Median.
    P50,
    /// 90th percentile.
    P90,
    /// 99th percentile.
    P99,
    /// Share that failed.
    Errors,
}

impl Metric {
    const ALL: [Self; 4] = [Self::P50, Self::P90, Self::P99, Self::Errors];

    /// Name as printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::Errors => "errors",
        }
    }

    /// The quantile; `None` for failures.
    pub const fn quantile(self) -> Option<f64> {
        match self {
            Self::P50 => Some(0.5),
            Self::P90 => Some(0.9),
            Self::P99 => Some(0.99),
            Self::Errors => None,
        }
    }

    /// Requests that a step must hold for the metric to mean something.
    const fn count_min(self) -> u64 {
        match self {
            Self::P50 => 5,
            Self::P90 | Self::Errors => 20,
            Self::P99 => 100,
        }
    }

    /// Whether it is about the slow few.
    const fn is_tail(self) -> bool {
        matches!(self, Self::P90 | Self::P99)
    }

    /// The series' value: differences of logarithms are factors; the arcsine evens out the spread of shares
    /// (Anscombe: "The transformation of Poisson, binomial and negative-binomial data", Biometrika 1948).
    fn value(self, rollup: &Rollup) -> f64 {
        match self.quantile() {
            Some(q) => (rollup.quantile(q).unwrap_or(1).max(1) as f64).ln(),
            None => (rollup.errors as f64 / rollup.count.max(1) as f64).sqrt().asin(),
        }
    }
}

/// Figures of one operation over a stretch of time. Field names are the JSON schema.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Stretch {
    /// Start, seconds since the epoch.
    pub since_unix_s: u64,
    /// End.
    pub until_unix_s: u64,
    /// Requests.
    pub count: u64,
    /// Per second.
    pub rate: f64,
    /// Share that failed.
    pub error_share: f64,
    /// Mean.
    pub avg_ns: u64,
    /// The metric's quantile (of failures: the median), within 1 %.
    pub quantile_ns: u64,
}

/// An operation that got worse. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Symptom {
    /// Service.
    pub service: String,
    /// Operation.
    pub operation: String,
    /// Whose figures: requests answered or calls made.
    pub kind: Side,
    /// What rose.
    pub metric: Metric,
    /// By which factor (a quantile), or by which share of the requests (failures).
    pub rise: f64,
    /// Chance of it without a change.
    pub chance: f64,
    /// Before the change.
    pub before: Stretch,
    /// Since the change, until the next one or the end.
    pub after: Stretch,
    /// Whether it still lasts at the end of the window.
    pub lasts: bool,
    /// Time that requests take more, per second of wall clock, nanoseconds; for failures the mean counts, too.
    pub added_ns_per_s: f64,
}

/// What was looked at and what was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Symptoms {
    /// Worse operations of the event that adds most, the worst first.
    pub event: Vec<Symptom>,
    /// Worse operations of other events.
    pub others: Vec<Symptom>,
    /// Series looked at.
    pub series: usize,
    /// Minutes, or steps of several minutes, per series.
    pub steps: usize,
}

/// Steps of one operation: start and what was counted.
struct Series {
    key: RollupKey,
    steps: Vec<(u64, Rollup)>,
    sum_ns: u64,
}

fn series(rollups: &[Rollup], unit_s: u64) -> (Vec<Series>, u64) {
    let minutes = || rollups.iter().filter(|rollup| rollup.count > 0).map(|r| r.key.minute_unix_s);
    let (Some(first), Some(last)) = (minutes().min(), minutes().max()) else { return (Vec::new(), unit_s) };
    let step_s = unit_s * ((last - first) / unit_s + 1).div_ceil(STEPS_MAX as u64);
    let mut by_key: BTreeMap<RollupKey, BTreeMap<u64, Rollup>> = BTreeMap::new();
    for rollup in rollups.iter().filter(|rollup| rollup.count > 0) {
        let step = (rollup.key.minute_unix_s - first) / step_s;
        let key = RollupKey { minute_unix_s: 0, ..rollup.key.clone() };
        let steps = by_key.entry(key.clone()).or_default();
        steps.entry(step).or_insert_with(|| Rollup::new(key)).merge(rollup);
    }
    let mut all: Vec<Series> = by_key
        .into_iter()
        .map(|(key, steps)| Series {
            key,
            sum_ns: steps.values().map(|rollup| rollup.sum_ns).fold(0, u64::saturating_add),
            steps: steps.into_iter().map(|(step, rollup)| (first + step * step_s, rollup)).collect(),
        })
        .collect();
    all.sort_by_key(|series| std::cmp::Reverse(series.sum_ns));
    all.truncate(SERIES_MAX);
    (all, step_s)
}

/// Steps from the first to the last of `rollups`, whose keys hold starts of steps of `unit_s` seconds.
pub fn n_steps(rollups: &[Rollup], unit_s: u64) -> u64 {
    let starts = || rollups.iter().filter(|rollup| rollup.count > 0).map(|r| r.key.minute_unix_s);
    starts().max().zip(starts().min()).map_or(0, |(last, first)| (last - first) / unit_s + 1)
}

/// What got worse in `rollups` (several runs' minutes, or steps of `unit_s` seconds; not added up). With `service`,
/// only there.
pub fn symptoms(rollups: &[Rollup], unit_s: u64, service: Option<&str>) -> Symptoms {
    let (mut all, step_s) = series(rollups, unit_s);
    all.retain(|series| service.is_none_or(|name| name == series.key.service));
    let chance_max = FALSE_ALARM_MAX / (all.len() * Metric::ALL.len()).max(1) as f64;
    let mut found: Vec<Symptom> = Vec::new();
    for series in &all {
        let mut of_series: Vec<Symptom> = Metric::ALL
            .into_iter()
            .flat_map(|metric| of_metric(series, metric, step_s, chance_max))
            .collect();
        // One latency metric speaks for the operation: the lowest quantile that rose, since what moves the median is
        // the wider change.
        of_series
            .sort_by(|a, b| (a.metric, b.added_ns_per_s as i64).cmp(&(b.metric, a.added_ns_per_s as i64)));
        let first = of_series.iter().find(|symptom| symptom.metric != Metric::Errors).cloned();
        let errors = of_series.iter().find(|symptom| symptom.metric == Metric::Errors).cloned();
        found.extend(first.into_iter().chain(errors));
    }
    let steps = all.iter().map(|series| series.steps.len()).max().unwrap_or(0);
    let (event, others) = largest_event(found, SAME_EVENT_STEPS * step_s);
    Symptoms { event, others, series: all.len(), steps }
}

/// The series with so many steps in one that a usual one holds enough requests for the metric, and by how many.
fn coarser(series: &Series, metric: Metric, step_s: u64) -> (Vec<(u64, Rollup)>, u64) {
    let mut counts: Vec<u64> = series.steps.iter().map(|(_, rollup)| rollup.count).collect();
    counts.sort_unstable();
    let usual = counts.get(counts.len() / 2).copied().unwrap_or(0).max(1);
    let several = metric.count_min().div_ceil(usual);
    let (Some((first, _)), Some((last, _))) = (series.steps.first(), series.steps.last()) else {
        return (Vec::new(), 1);
    };
    if several == 1 || (last - first) / step_s + 1 < several * COARSE_STEPS_MIN {
        return (series.steps.clone(), 1);
    }
    let mut merged: BTreeMap<u64, Rollup> = BTreeMap::new();
    for (start, rollup) in &series.steps {
        let step = first + (start - first) / (several * step_s) * several * step_s;
        merged.entry(step).or_insert_with(|| Rollup::new(series.key.clone())).merge(rollup);
    }
    (merged.into_iter().collect(), several)
}

fn of_metric(series: &Series, metric: Metric, step_s: u64, chance_max: f64) -> Vec<Symptom> {
    let (steps, several) = coarser(series, metric, step_s);
    let step_s = several * step_s;
    let steps: Vec<&(u64, Rollup)> =
        steps.iter().filter(|(_, rollup)| rollup.count >= metric.count_min()).collect();
    let values: Vec<f64> = steps.iter().map(|(_, rollup)| metric.value(rollup)).collect();
    let changes = change_points(&values, chance_max);
    let next = changes.iter().skip(1).map(Some).chain([None]);
    changes
        .iter()
        .zip(next)
        .filter(|(change, next)| !is_stall(&steps, change, *next, step_s))
        .filter_map(|(change, _)| symptom(series, metric, &steps, change, step_s))
        .collect()
}

/// Whether a change is too short to be one.
fn is_stall(steps: &[&(u64, Rollup)], change: &Change, next: Option<&Change>, step_s: u64) -> bool {
    let seconds = steps[change.until - 1].0 + step_s - steps[change.at].0;
    let rise = change.after - change.before;
    let passed = next.is_some_and(|next| change.after - next.after >= PASSED_SHARE * rise);
    seconds < if passed { PASSED_S_MIN } else { LASTING_S_MIN }
}

fn symptom(
    series: &Series,
    metric: Metric,
    steps: &[&(u64, Rollup)],
    change: &Change,
    step_s: u64,
) -> Option<Symptom> {
    let stretch = |from: usize, until: usize| {
        let mut all = Rollup::new(series.key.clone());
        steps[from..until].iter().for_each(|(_, rollup)| all.merge(rollup));
        let (since_unix_s, until_unix_s) = (steps[from].0, steps[until - 1].0 + step_s);
        Stretch {
            since_unix_s,
            until_unix_s,
            count: all.count,
            rate: all.count as f64 / ((until - from) as f64 * step_s as f64),
            error_share: all.errors as f64 / all.count.max(1) as f64,
            avg_ns: all.sum_ns / all.count.max(1),
            quantile_ns: all.quantile(metric.quantile().unwrap_or(0.5)).unwrap_or(0),
        }
    };
    let (before, after) = (stretch(change.from, change.at), stretch(change.at, change.until));
    let (rise, is_large) = if metric == Metric::Errors {
        let rise = after.error_share - before.error_share;
        (rise, rise >= ERROR_RISE_MIN && after.error_share >= ERROR_FACTOR_MIN * before.error_share)
    } else {
        let rise = (change.after - change.before).exp();
        let (rise_ns_min, added_min) = match (step_s < 60, metric.is_tail()) {
            (true, true) => (SECONDS_TAIL_RISE_NS_MIN, SECONDS_ADDED_NS_PER_S_MIN),
            (true, false) => (SECONDS_RISE_NS_MIN, SECONDS_ADDED_NS_PER_S_MIN),
            (false, _) => (RISE_NS_MIN, ADDED_NS_PER_S_MIN),
        };
        let is_felt = after.quantile_ns.saturating_sub(before.quantile_ns) >= rise_ns_min
            || (after.avg_ns as f64 - before.avg_ns as f64) * after.rate >= added_min;
        (rise, rise >= RISE_MIN && is_felt)
    };
    is_large.then(|| Symptom {
        service: series.key.service.clone(),
        operation: series.key.operation.clone(),
        kind: series.key.side,
        metric,
        rise,
        chance: change.chance,
        before,
        after,
        lasts: change.until == steps.len(),
        added_ns_per_s: (after.avg_ns as f64 - before.avg_ns as f64).max(0.0) * after.rate,
    })
}

/// Of all symptoms those of one time, that time whose symptoms add most, the worst first; and the others. Failures
/// without added time count as much as their share of the slowest operation's.
fn largest_event(mut found: Vec<Symptom>, same_s: u64) -> (Vec<Symptom>, Vec<Symptom>) {
    let weight = |symptom: &Symptom| {
        let failing = symptom.after.rate * symptom.after.error_share.max(0.0) * symptom.after.avg_ns as f64;
        symptom.added_ns_per_s + if symptom.metric == Metric::Errors { failing } else { 0.0 }
    };
    let near = |a: &Symptom, b: &Symptom| a.after.since_unix_s.abs_diff(b.after.since_unix_s) <= same_s;
    let scores: Vec<f64> =
        found.iter().map(|at| found.iter().filter(|other| near(at, other)).map(weight).sum()).collect();
    let Some(best) = (0..found.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])) else {
        return (Vec::new(), Vec::new());
    };
    let center = found[best].clone();
    found.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
    found.into_iter().partition(|symptom| near(symptom, &center))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dprof_store::conformance::Random;

    /// Minutes of an operation: log-normal durations around what `ns_at` says, failing as `errors_at` says.
    fn minutes(
        seed: u64,
        operation: &str,
        n_minutes: u64,
        ns_at: impl Fn(u64, u64) -> u64,
        errors_at: impl Fn(u64, u64) -> bool,
    ) -> Vec<Rollup> {
        let mut random = Random::new(seed);
        (0..n_minutes)
            .map(|minute| {
                let mut rollup = Rollup::new(RollupKey {
                    minute_unix_s: 600_000 + minute * 60,
                    service: "redis".into(),
                    operation: operation.into(),
                    side: Side::Server,
                    protocol: "redis".into(),
                });
                for n in 0..300 {
                    let e = (0..4).map(|_| random.below(1_000)).sum::<u64>() as f64 / 2_000.0;
                    let ns = (ns_at(minute, n) as f64 * e.exp()) as u64;
                    rollup.add(ns, errors_at(minute, n), 10, 10);
                }
                rollup
            })
            .collect()
    }

    #[test]
    fn a_doubled_latency_is_found_with_its_minute_and_factor() {
        let mut rollups = minutes(1, "GET", 40, |m, _| if m >= 31 { 200_000 } else { 100_000 }, |_, _| false);
        rollups.extend(minutes(2, "SET", 40, |_, _| 100_000, |_, _| false));
        let found = symptoms(&rollups, 60, None);
        assert_eq!((found.series, found.steps, found.others.len()), (2, 40, 0));
        let [symptom] = found.event.as_slice() else { panic!("one symptom: {:?}", found.event) };
        assert_eq!((symptom.operation.as_str(), symptom.metric, symptom.lasts), ("GET", Metric::P50, true));
        assert_eq!(symptom.after.since_unix_s, 600_000 + 31 * 60);
        assert!((1.9..2.1).contains(&symptom.rise), "{}", symptom.rise);
        assert_eq!((symptom.before.count, symptom.after.count), (31 * 300, 9 * 300));
        // 300 a minute, each 0.1 ms × the mean factor e^1 longer.
        assert!((symptom.added_ns_per_s / 1_400_000.0 - 1.0).abs() < 0.1, "{}", symptom.added_ns_per_s);
    }

    #[test]
    fn a_slow_few_move_the_tail_only_and_failures_are_told() {
        let tail = minutes(
            3,
            "GET",
            40,
            |m, n| if m >= 30 && n % 20 == 0 { 5_000_000 } else { 100_000 },
            |_, _| false,
        );
        let found = symptoms(&tail, 60, None);
        assert_eq!(found.event.iter().map(|s| s.metric).collect::<Vec<_>>(), [Metric::P99]);
        let failing = minutes(4, "GET", 40, |_, _| 100_000, |m, n| m >= 30 && n % 10 == 0);
        let found = symptoms(&failing, 60, None);
        assert_eq!(found.event.iter().map(|s| s.metric).collect::<Vec<_>>(), [Metric::Errors]);
        assert!((found.event[0].rise - 0.1).abs() < 0.01);
    }

    #[test]
    fn what_passed_is_told_as_passed() {
        let rollups =
            minutes(5, "GET", 40, |m, _| if (20..28).contains(&m) { 400_000 } else { 100_000 }, |_, _| false);
        let found = symptoms(&rollups, 60, None);
        assert_eq!(found.event.len(), 1);
        assert!(!found.event[0].lasts);
        assert_eq!(found.event[0].after.until_unix_s, 600_000 + 28 * 60);
    }

    /// Seconds of 300 requests of about `usual_ns`, of which a fifth take `slow_ns` in the seconds `slow`.
    fn seconds(slow: std::ops::Range<u64>, usual_ns: u64, slow_ns: u64) -> Vec<Rollup> {
        let ns = |second, n| if slow.contains(&second) && n % 5 == 0 { slow_ns } else { usual_ns };
        let mut rollups = minutes(6, "GET", 24, ns, |_, _| false);
        for rollup in &mut rollups {
            rollup.key.minute_unix_s = 600_000 + (rollup.key.minute_unix_s - 600_000) / 60;
        }
        rollups
    }

    /// In which seconds something got worse.
    #[track_caller]
    fn check_seconds(rollups: &[Rollup], expected: &[u64]) {
        let found = symptoms(rollups, 1, None);
        let at: Vec<u64> = found.event.iter().map(|symptom| symptom.after.since_unix_s - 600_000).collect();
        assert_eq!(at, expected);
    }

    #[test]
    fn seconds_that_pass_are_a_stall_and_seconds_that_last_a_change() {
        let slow = |seconds| self::seconds(seconds, 3_000_000, 40_000_000);
        check_seconds(&slow(12..24), &[12]);
        check_seconds(&slow(20..24), &[20]);
        check_seconds(&slow(21..24), &[]);
        check_seconds(&slow(6..16), &[6]);
        check_seconds(&slow(6..15), &[]);
    }

    #[test]
    fn a_tail_of_seconds_has_to_rise_by_more_than_waiting_for_a_cpu() {
        // 60 slow ones a second, the mean factor of the noise is about e: 50 and 500 ms per second.
        check_seconds(&seconds(12..24, 30_000, 300_000), &[]);
        check_seconds(&seconds(12..24, 30_000, 3_000_000), &[12]);
    }

    #[test]
    fn steady_noise_is_no_symptom() {
        for seed in 0..40 {
            // Ten operations whose minutes also wander by 10 %.
            let mut wander = Random::new(1_000 + seed);
            let factors: Vec<u64> = (0..60).map(|_| 90 + wander.below(21)).collect();
            let rollups: Vec<Rollup> = (0..10)
                .flat_map(|op| {
                    let ns = |m: u64, _| 1_000 * factors[m as usize];
                    minutes(seed * 10 + op, &format!("OP{op}"), 60, ns, |m, n| (m * 7 + n) % 97 == 0)
                })
                .collect();
            let found = symptoms(&rollups, 60, None);
            assert_eq!(found.event, [], "seed {seed}");
        }
    }

    #[test]
    fn only_the_service_asked_for_and_nothing_of_nothing() {
        let rollups = minutes(1, "GET", 40, |m, _| if m >= 31 { 200_000 } else { 100_000 }, |_, _| false);
        assert_eq!(symptoms(&rollups, 60, Some("web")).event, []);
        assert_eq!(symptoms(&rollups, 60, Some("redis")).event.len(), 1);
        assert_eq!(symptoms(&[], 60, None).series, 0);
    }
}
