//! Conditions on latency, failures and rates: `redis GET p99 < 2ms` into a yes or no, for pipelines.
//!
//! What a reader would get wrong: the first word is the service and all between it and the metric the operation, so
//! `web GET /cart/{id} p99 < 5ms` works without quotes inside. With both ends seen, the server's figures count.

use std::fmt;

use dprof_common::model::{Rollup, Side};
use serde::Serialize;

use super::stats::merge;
use crate::units::{self, parse_duration};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Metric {
    Quantile(f64),
    Avg,
    Min,
    Max,
    /// Failed ones: a share if the bound is one, else a count.
    Errors,
    Count,
    /// Per second.
    Rate,
}

/// How it compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// The bound, in the metric's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    /// Nanoseconds.
    Time(u64),
    Share(f64),
    Number(f64),
}

/// A parsed condition.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    text: String,
    /// Service; `None` = all together.
    pub service: Option<String>,
    /// Operation; `None` = all together.
    pub operation: Option<String>,
    metric: Metric,
    comparison: Comparison,
    bound: Bound,
}

/// What came of a condition. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// As given.
    pub condition: String,
    /// Whether it holds.
    pub holds: bool,
    /// Measured, for people.
    pub actual: String,
    /// Measured: nanoseconds, a share, or a number.
    pub value: f64,
    /// Requests that this stands on.
    pub count: u64,
    /// `server` or `client`: whose figures these are.
    pub kind: &'static str,
}

/// Why a text is not a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConditionError(String);

impl fmt::Display for ConditionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ConditionError {}

/// Parses `[SERVICE [OPERATION]] METRIC < VALUE`.
pub fn parse_condition(text: &str) -> Result<Condition, ConditionError> {
    let wrong = |why: String| {
        ConditionError(format!(
            "'{text}' is not a condition ({why}): write 'SERVICE OPERATION METRIC < VALUE', as 'redis GET p99 < 2ms', \
             'web errors <= 0.1%' or 'web rate > 100/s'; metrics are p50 to p99.9, avg, min, max, errors, count, rate"
        ))
    };
    let at = text.find(['<', '>']).ok_or_else(|| wrong("no < or >".to_owned()))?;
    let (left, right) = text.split_at(at);
    let (comparison, value) = [
        ("<=", Comparison::LessOrEqual),
        (">=", Comparison::GreaterOrEqual),
        ("<", Comparison::Less),
        (">", Comparison::Greater),
    ]
    .into_iter()
    .find_map(|(sign, comparison)| right.strip_prefix(sign).map(|value| (comparison, value.trim())))
    .ok_or_else(|| wrong("no < or >".to_owned()))?;
    let words: Vec<&str> = left.split_whitespace().collect();
    let (metric_word, names) = words.split_last().ok_or_else(|| wrong("no metric".to_owned()))?;
    let metric = metric(metric_word).ok_or_else(|| wrong(format!("'{metric_word}' is no metric")))?;
    let bound =
        bound(metric, value).ok_or_else(|| wrong(format!("'{value}' is no value of {metric_word}")))?;
    let service = names.first().map(|name| (*name).to_owned());
    let operation = names.get(1..).filter(|rest| !rest.is_empty()).map(|rest| rest.join(" "));
    Ok(Condition { text: text.trim().to_owned(), service, operation, metric, comparison, bound })
}

fn metric(word: &str) -> Option<Metric> {
    Some(match word.to_ascii_lowercase().as_str() {
        "avg" | "mean" => Metric::Avg,
        "min" => Metric::Min,
        "max" => Metric::Max,
        "errors" => Metric::Errors,
        "count" => Metric::Count,
        "rate" => Metric::Rate,
        other => {
            let percent: f64 = other.strip_prefix('p')?.parse().ok()?;
            if !(0.0..=100.0).contains(&percent) {
                return None;
            }
            Metric::Quantile(percent / 100.0)
        }
    })
}

fn bound(metric: Metric, value: &str) -> Option<Bound> {
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
    match metric {
        Metric::Quantile(_) | Metric::Avg | Metric::Min | Metric::Max => {
            parse_duration(value).ok().map(Bound::Time)
        }
        Metric::Errors => match value.strip_suffix('%') {
            Some(percent) => number(percent).map(|percent| Bound::Share(percent / 100.0)),
            None => number(value).map(Bound::Number),
        },
        Metric::Count => number(value).map(Bound::Number),
        Metric::Rate => number(value.strip_suffix("/s").unwrap_or(value)).map(Bound::Number),
    }
}

impl Condition {
    /// Holds the condition against the counts of a window of `window_s` seconds; `None` if nothing was seen.
    pub fn judge(&self, rollups: &[Rollup], window_s: f64) -> Option<Verdict> {
        let wanted: Vec<Rollup> = rollups
            .iter()
            .filter(|rollup| self.service.as_ref().is_none_or(|name| *name == rollup.key.service))
            .filter(|rollup| self.operation.as_ref().is_none_or(|name| *name == rollup.key.operation))
            .cloned()
            .collect();
        let (side, of_side) = [Side::Server, Side::Client]
            .into_iter()
            .map(|side| (side, merge(&wanted, Some(side))))
            .find(|(_, merged)| !merged.is_empty())?;
        let mut all = of_side.first()?.clone();
        of_side.iter().skip(1).for_each(|rollup| all.merge(rollup));
        let time = |ns: u64| (ns as f64, units::duration(ns));
        let quantile = |q| all.quantile(q).unwrap_or(0);
        let (value, actual) = match (self.metric, self.bound) {
            (Metric::Quantile(q), _) => time(quantile(q)),
            (Metric::Avg, _) => time(all.sum_ns / all.count.max(1)),
            (Metric::Min, _) => time(all.min_ns),
            (Metric::Max, _) => time(all.max_ns),
            (Metric::Errors, Bound::Share(_)) => {
                let share = all.errors as f64 / all.count.max(1) as f64;
                (share, format!("{:.3}%", share * 100.0))
            }
            (Metric::Errors, _) => (all.errors as f64, units::count(all.errors)),
            (Metric::Count, _) => (all.count as f64, units::count(all.count)),
            (Metric::Rate, _) => {
                let rate = all.count as f64 / window_s.max(1.0);
                (rate, format!("{rate:.1}/s"))
            }
        };
        let bound = match self.bound {
            Bound::Time(ns) => ns as f64,
            Bound::Share(n) | Bound::Number(n) => n,
        };
        let holds = match self.comparison {
            Comparison::Less => value < bound,
            Comparison::LessOrEqual => value <= bound,
            Comparison::Greater => value > bound,
            Comparison::GreaterOrEqual => value >= bound,
        };
        Some(Verdict {
            condition: self.text.clone(),
            holds,
            actual,
            value,
            count: all.count,
            kind: side.name(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dprof_common::model::RollupKey;

    fn rollups() -> Vec<Rollup> {
        let rollup = |service: &str, operation: &str, side, ns: &[u64]| {
            let mut rollup = Rollup::new(RollupKey {
                minute_unix_s: 60,
                service: service.into(),
                operation: operation.into(),
                side,
                protocol: "redis".into(),
            });
            ns.iter().for_each(|ns| rollup.add(*ns, *ns == 3_000_000, 1, 1));
            rollup
        };
        vec![
            rollup("redis", "GET", Side::Server, &[1_000_000, 1_000_000, 1_000_000, 3_000_000]),
            rollup("redis", "SET", Side::Server, &[500_000; 6]),
            rollup("redis", "GET", Side::Client, &[9_000_000]),
            rollup("web", "GET /cart/{id}", Side::Client, &[2_000_000]),
        ]
    }

    #[track_caller]
    fn check(condition: &str, expected: Option<(bool, &str)>) {
        let condition = parse_condition(condition).expect("a condition");
        let verdict = condition.judge(&rollups(), 10.0);
        assert_eq!(verdict.as_ref().map(|v| (v.holds, v.actual.as_str())), expected);
    }

    #[test]
    fn conditions_are_judged_by_the_counts() {
        check("redis GET max < 3ms", Some((false, "3.00 ms")));
        check("redis GET max <= 3ms", Some((true, "3.00 ms")));
        check("redis GET min >= 1ms", Some((true, "1.00 ms")));
        check("redis GET avg>1.4ms", Some((true, "1.50 ms")));
        check("redis GET errors < 25%", Some((false, "25.000%")));
        check("redis GET errors <= 25 %", Some((true, "25.000%")));
        check("redis errors <= 1", Some((true, "1")));
        check("redis count >= 10", Some((true, "10")));
        check("redis rate > 1/s", Some((false, "1.0/s")));
        check("web GET /cart/{id} max < 5ms", Some((true, "2.00 ms")));
        check("count > 5", Some((true, "10")));
        check("mail p99 < 1s", None);
        check("redis DEL p99 < 1s", None);
    }

    #[test]
    fn percentiles_are_judged_within_one_percent() {
        let verdict =
            parse_condition("redis p50 < 0.52ms").expect("valid").judge(&rollups(), 1.0).expect("seen");
        assert!(verdict.holds && (verdict.value - 500_000.0).abs() <= 5_000.0, "{verdict:?}");
        assert_eq!((verdict.count, verdict.kind), (10, "server"));
        assert!(parse_condition("redis p99.9 < 1s").is_ok());
    }

    #[test]
    fn what_is_no_condition_is_explained_with_examples() {
        for (text, why) in [
            ("redis GET p99 2ms", "no < or >"),
            ("< 2ms", "no metric"),
            ("redis GET p101 < 2ms", "'p101' is no metric"),
            ("redis GET speed < 2ms", "'speed' is no metric"),
            ("redis GET p99 < 2", "'2' is no value of p99"),
            ("redis errors < many", "'many' is no value of errors"),
            ("", "no < or >"),
        ] {
            let error = parse_condition(text).expect_err("no condition").to_string();
            assert!(error.contains(why) && error.contains("redis GET p99 < 2ms"), "{error}");
        }
    }
}
