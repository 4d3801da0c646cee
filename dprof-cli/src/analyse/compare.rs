//! What sets one group of RPCs apart from another: values that the slow ones share, numbers and parts that moved,
//! operations that changed between two windows.
//!
//! Values are ranked as epidemiologists rank exposures: slow RPCs are the cases, the rest the controls. The odds
//! ratio of a value comes with its 95 % interval (Woolf: "On estimating the relation between blood group and disease",
//! Annals of Human Genetics 1955; empty cells after Haldane and Anscombe, 1956), and the value explains at least
//! `share among the slow × (1 − 1/lower end)` of the slow ones: the attributable fraction (Miettinen: "Proportion of
//! disease caused or prevented by a given exposure, trait or intervention", American Journal of Epidemiology 1974).
//! It needs no known sampling rate of either group. Numbers are ranked by the Kolmogorov-Smirnov statistic D, the
//! largest gap between the two distribution functions (0 = alike, 1 = apart).
//!
//! What a reader would get wrong: association is not cause. Two values that always come together explain the same
//! RPCs, and their fractions do not add up.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use dprof_common::model::{Rollup, RollupKey, Span};
use serde::Serialize;

use super::group::peer;
use super::latency::{Part, parts};
use super::row::{failing_half, halves};
use super::stats::merge;

/// A value is looked at only if as many slow RPCs have it…
const CASES_MIN: u64 = 3;
/// … and as large a share of them.
const CASE_SHARE_MIN: f64 = 0.02;
/// A value that explains less is no finding.
const EXPLAINED_MIN: f64 = 0.05;
/// 97.5th percentile of the normal distribution: a 95 % interval.
const Z95: f64 = 1.96;
/// Distinct values per field that are told apart; further ones are left out, since each has few RPCs.
const VALUES_MAX: usize = 20_000;
/// A statement is a value up to this length.
const SHAPE_CHARS_MAX: usize = 60;
/// Numbers whose distributions differ by chance more often than this are left out.
const CHANCE_MAX: f64 = 0.01;

/// A value that the slow ones have more often. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ValueRow {
    /// `host`, `operation`, `key`, …
    pub field: &'static str,
    /// The value.
    pub value: String,
    /// Slow RPCs that have it.
    pub slow: u64,
    /// Their share among the slow.
    pub slow_share: f64,
    /// Others that have it.
    pub rest: u64,
    /// Their share among the rest.
    pub rest_share: f64,
    /// Odds ratio.
    pub odds_ratio: f64,
    /// Lower end of its 95 % interval.
    pub odds_ratio_low: f64,
    /// At least this share of the slow ones is explained by it (attributable fraction at the lower end).
    pub explains: f64,
}

/// A number whose distribution differs. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NumberRow {
    /// `network_ns`, `request_bytes`, …
    pub number: &'static str,
    /// Median of the first group.
    pub slow_median: i64,
    /// Median of the second.
    pub rest_median: i64,
    /// Mean of the first group.
    pub slow_mean: f64,
    /// Mean of the second.
    pub rest_mean: f64,
    /// Kolmogorov-Smirnov statistic, 0 to 1.
    pub ks: f64,
    /// Probability of such a statistic by chance.
    pub chance: f64,
}

/// `key:000123` and `key:7` have one shape, `key:#`.
pub fn shape(statement: &str) -> String {
    let mut shape = String::new();
    let mut in_number = false;
    for (n, c) in statement.chars().enumerate() {
        if n >= SHAPE_CHARS_MAX {
            shape.push('…');
            break;
        }
        if c.is_ascii_digit() {
            if !in_number {
                shape.push('#');
            }
            in_number = true;
        } else {
            in_number = false;
            shape.push(c);
        }
    }
    shape
}

/// `1.02 kB to 2.05 kB`: sizes by powers of two, so that few classes cover all.
fn size_class(bytes: u64) -> String {
    let up = bytes.max(1).next_power_of_two();
    format!("up to {}", crate::units::bytes(up))
}

/// Fields and values of a span that may set it apart.
fn values(span: &Span) -> Vec<(&'static str, Cow<'_, str>)> {
    let Some(near) = span.nearest() else { return Vec::new() };
    let mut all: Vec<(&'static str, Cow<'_, str>)> = vec![
        ("service", Cow::Borrowed(near.process.service.as_str())),
        ("operation", Cow::Borrowed(near.operation.as_str())),
        ("host", Cow::Borrowed(near.host.host.as_str())),
        ("process", Cow::Owned(format!("{} on {}", near.process.pid, near.host.host))),
        ("thread", Cow::Owned(format!("{} on {}", near.tid, near.host.host))),
        ("peer", Cow::Owned(peer(span))),
        ("protocol", Cow::Borrowed(&*near.protocol)),
        ("status", Cow::Borrowed(failing_half(span).unwrap_or(near).status.name())),
        ("request size", Cow::Owned(size_class(near.request_bytes))),
        ("response size", Cow::Owned(size_class(near.response_bytes))),
        ("batch", Cow::Borrowed(if near.batch > 1 { "with others" } else { "alone" })),
        (
            "retransmitted",
            Cow::Borrowed(if halves(span).any(|half| half.retransmits > 0) { "yes" } else { "no" }),
        ),
        (
            "connection",
            Cow::Borrowed(if halves(span).any(|half| half.connect_ns.is_some()) { "new" } else { "kept" }),
        ),
    ];
    if !near.query_text.is_empty() {
        all.push(("key", Cow::Borrowed(near.query_text.as_str())));
        all.push(("key shape", Cow::Owned(shape(&near.query_text))));
    }
    for name in ["rack", "dc"] {
        if let Some(value) = near.host.labels.get(name) {
            all.push((name, Cow::Borrowed(value.as_str())));
        }
    }
    if let Some(client) = &span.client {
        all.push(("caller", Cow::Borrowed(client.process.service.as_str())));
        all.push(("caller host", Cow::Borrowed(client.host.host.as_str())));
        if span.server.is_some() && client.host.host != near.host.host {
            let link = format!("{} to {}", client.host.host, near.host.host);
            all.push(("link", Cow::Owned(link)));
        }
    }
    all
}

/// Values that the spans of `slow` have more often than those of `rest`, those that explain most first.
pub fn shared_values<'a>(
    slow: impl IntoIterator<Item = &'a Span>,
    rest: impl IntoIterator<Item = &'a Span>,
) -> Vec<ValueRow> {
    let mut counts: HashMap<(&'static str, String), [u64; 2]> = HashMap::new();
    let mut distinct: HashMap<&'static str, usize> = HashMap::new();
    let mut n = [0_u64; 2];
    let mut count = |span: &Span, group: usize| {
        n[group] += 1;
        for (field, value) in values(span) {
            let key = (field, value.into_owned());
            if let Some(known) = counts.get_mut(&key) {
                known[group] += 1;
                continue;
            }
            let known = distinct.entry(field).or_default();
            if *known < VALUES_MAX {
                *known += 1;
                counts.entry(key).or_default()[group] += 1;
            }
        }
    };
    slow.into_iter().for_each(|span| count(span, 0));
    rest.into_iter().for_each(|span| count(span, 1));
    let mut rows: Vec<ValueRow> = counts
        .into_iter()
        .filter_map(|((field, value), [slow, rest])| value_row(field, value, (slow, n[0]), (rest, n[1])))
        .collect();
    rows.sort_by(|a, b| {
        b.explains.total_cmp(&a.explains).then_with(|| (a.field, &a.value).cmp(&(b.field, &b.value)))
    });
    rows
}

fn value_row(
    field: &'static str,
    value: String,
    (slow, n_slow): (u64, u64),
    (rest, n_rest): (u64, u64),
) -> Option<ValueRow> {
    let slow_share = slow as f64 / n_slow.max(1) as f64;
    if slow < CASES_MIN || slow_share < CASE_SHARE_MIN || n_rest == 0 {
        return None;
    }
    // Half a case in each cell keeps the ratio finite where one is empty.
    let [a, b, c, d] = [slow, n_slow - slow, rest, n_rest - rest].map(|n| n as f64 + 0.5);
    let odds_ratio = (a / b) / (c / d);
    let error = (1.0 / a + 1.0 / b + 1.0 / c + 1.0 / d).sqrt();
    let odds_ratio_low = (odds_ratio.ln() - Z95 * error).exp();
    let explains = slow_share * (1.0 - 1.0 / odds_ratio_low);
    (explains >= EXPLAINED_MIN).then(|| ValueRow {
        field,
        value,
        slow,
        slow_share,
        rest,
        rest_share: rest as f64 / n_rest as f64,
        odds_ratio,
        odds_ratio_low,
        explains,
    })
}

/// The number of each span that has it.
type NumberOf = fn(&Span) -> Option<i64>;

fn part_ns(span: &Span, part: Part) -> Option<i64> {
    parts(span).into_iter().find(|(known, _)| *known == part).map(|(_, ns)| ns)
}

/// Numbers of a span that may differ.
const NUMBERS: [(&str, NumberOf); 13] = [
    ("duration_ns", |span| Some(span.duration_ns() as i64)),
    ("send_ns", |span| part_ns(span, Part::Send)),
    ("network_ns", |span| part_ns(span, Part::Network)),
    ("queue_ns", |span| part_ns(span, Part::Queue)),
    ("service_ns", |span| part_ns(span, Part::Service)),
    ("streaming_ns", |span| part_ns(span, Part::Streaming)),
    ("reply_queue_ns", |span| part_ns(span, Part::ReplyQueue)),
    ("remote_ns", |span| part_ns(span, Part::Remote)),
    ("request_bytes", |span| Some(span.nearest()?.request_bytes as i64)),
    ("response_bytes", |span| Some(span.nearest()?.response_bytes as i64)),
    ("retransmits", |span| Some(halves(span).map(|half| i64::from(half.retransmits)).sum())),
    ("batch", |span| Some(i64::from(span.nearest()?.batch))),
    ("round_trip_us", |span| Some(i64::from(span.client.as_ref()?.srtt_us)).filter(|us| *us > 0)),
];

/// Numbers and parts whose distributions differ between the groups, the furthest apart first. The duration itself
/// is left out: groups chosen by it differ in it.
pub fn numbers(slow: &[&Span], rest: &[&Span]) -> Vec<NumberRow> {
    let mut rows: Vec<NumberRow> = NUMBERS
        .into_iter()
        .skip(1)
        .filter_map(|(number, of)| {
            let sorted = |spans: &[&Span]| {
                let mut values: Vec<i64> = spans.iter().filter_map(|span| of(span)).collect();
                values.sort_unstable();
                values
            };
            let (slow, rest) = (sorted(slow), sorted(rest));
            if slow.is_empty() || rest.is_empty() {
                return None;
            }
            let ks = ks_statistic(&slow, &rest);
            let mean = |values: &[i64]| values.iter().map(|v| *v as f64).sum::<f64>() / values.len() as f64;
            Some(NumberRow {
                number,
                slow_median: slow[slow.len() / 2],
                rest_median: rest[rest.len() / 2],
                slow_mean: mean(&slow),
                rest_mean: mean(&rest),
                ks,
                chance: ks_chance(ks, slow.len(), rest.len()),
            })
        })
        .filter(|row| row.ks > 0.0 && row.chance <= CHANCE_MAX)
        .collect();
    rows.sort_by(|a, b| b.ks.total_cmp(&a.ks));
    rows
}

/// Largest gap between the distribution functions of two sorted samples.
fn ks_statistic(a: &[i64], b: &[i64]) -> f64 {
    let (mut i, mut j) = (0, 0);
    let mut gap: f64 = 0.0;
    while i < a.len() && j < b.len() {
        let at = a[i].min(b[j]);
        while i < a.len() && a[i] == at {
            i += 1;
        }
        while j < b.len() && b[j] == at {
            j += 1;
        }
        gap = gap.max((i as f64 / a.len() as f64 - j as f64 / b.len() as f64).abs());
    }
    gap
}

/// Kolmogorov's limit law with Stephens' correction for small samples (1970).
fn ks_chance(d: f64, n: usize, m: usize) -> f64 {
    let n = (n as f64 * m as f64 / (n + m) as f64).sqrt();
    let x = (n + 0.12 + 0.11 / n) * d;
    if x < 0.2 {
        return 1.0;
    }
    let mut sum = 0.0;
    for k in 1..=100_i32 {
        let term = (-2.0 * f64::from(k * k) * x * x).exp();
        sum += if k % 2 == 1 { term } else { -term };
        if term < 1e-12 {
            break;
        }
    }
    (2.0 * sum).clamp(0.0, 1.0)
}

/// An operation in two windows, of the counts per minute. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperationChange {
    /// Service.
    pub service: String,
    /// Operation.
    pub operation: String,
    /// `server` or `client`.
    pub kind: &'static str,
    /// Requests per second now.
    pub rate: f64,
    /// Before.
    pub rate_before: f64,
    /// Share that failed now.
    pub error_share: f64,
    /// Before.
    pub error_share_before: f64,
    /// Median now.
    pub p50_ns: u64,
    /// Before.
    pub p50_before_ns: u64,
    /// Now.
    pub p99_ns: u64,
    /// Before.
    pub p99_before_ns: u64,
    /// Mean now.
    pub avg_ns: u64,
    /// Before.
    pub avg_before_ns: u64,
    /// Time per second that the requests of now take more than they would with the mean of before, nanoseconds.
    pub added_ns_per_s: f64,
}

/// Operations of two windows of so many seconds, by the time added.
pub fn operations(now: (&[Rollup], f64), before: (&[Rollup], f64)) -> Vec<OperationChange> {
    let by_key = |rollups: &[Rollup]| -> BTreeMap<RollupKey, Rollup> {
        merge(rollups, None).into_iter().map(|rollup| (rollup.key.clone(), rollup)).collect()
    };
    let (in_now, in_before) = (by_key(now.0), by_key(before.0));
    let mut rows: Vec<OperationChange> = in_now
        .keys()
        .chain(in_before.keys().filter(|key| !in_now.contains_key(*key)))
        .map(|key| {
            let nothing = Rollup::new(key.clone());
            let (n, b) = (in_now.get(key).unwrap_or(&nothing), in_before.get(key).unwrap_or(&nothing));
            let avg = |r: &Rollup| r.sum_ns / r.count.max(1);
            let share = |r: &Rollup| r.errors as f64 / r.count.max(1) as f64;
            let at = |r: &Rollup, q| r.quantile(q).unwrap_or(0);
            let rate = n.count as f64 / now.1.max(1.0);
            let added = if b.count == 0 || n.count == 0 { 0.0 } else { avg(n) as f64 - avg(b) as f64 };
            OperationChange {
                service: key.service.clone(),
                operation: key.operation.clone(),
                kind: key.side.name(),
                rate,
                rate_before: b.count as f64 / before.1.max(1.0),
                error_share: share(n),
                error_share_before: share(b),
                p50_ns: at(n, 0.5),
                p50_before_ns: at(b, 0.5),
                p99_ns: at(n, 0.99),
                p99_before_ns: at(b, 0.99),
                avg_ns: avg(n),
                avg_before_ns: avg(b),
                added_ns_per_s: added * rate,
            }
        })
        .collect();
    rows.sort_by(|a, b| b.added_ns_per_s.abs().total_cmp(&a.added_ns_per_s.abs()));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;

    #[test]
    fn the_value_that_only_the_slow_ones_have_explains_them() {
        // 40 slow ones, 38 of them on db-3; of 400 others every eighth is.
        let slow: Vec<Span> = (0..40)
            .map(|id| rpc(id + 1).hosts("lb", if id < 38 { "db-3" } else { "db-1" }).at(0, 9_000).build())
            .collect();
        let rest: Vec<Span> = (0..400)
            .map(|id| rpc(id + 100).hosts("lb", if id % 8 == 0 { "db-3" } else { "db-1" }).build())
            .collect();
        let rows = shared_values(&slow, &rest);
        let row = rows.iter().find(|row| row.field == "host").expect("found");
        assert_eq!((row.value.as_str(), row.slow, row.rest), ("db-3", 38, 50));
        assert!((row.slow_share - 0.95).abs() < 1e-9 && (row.rest_share - 0.125).abs() < 1e-9);
        // (38.5 / 2.5) / (50.5 / 350.5) = 106.9; ln = 4.672, s.e. = sqrt(1/38.5 + 1/2.5 + 1/50.5 + 1/350.5) = 0.670;
        // low = e^(4.672 - 1.313) = 28.8; explains 0.95 × (1 - 1/28.8) = 0.917.
        assert!((row.odds_ratio - 106.9).abs() < 0.1, "{}", row.odds_ratio);
        assert!((row.odds_ratio_low - 28.8).abs() < 0.2, "{}", row.odds_ratio_low);
        assert!((row.explains - 0.917).abs() < 0.002, "{}", row.explains);
        // What all have alike sets nothing apart.
        assert!(
            !rows.iter().any(|row| ["service", "operation", "status", "rack"].contains(&row.field)),
            "{rows:?}"
        );
        assert!(rows.iter().any(|row| row.field == "link" && row.value == "lb to db-3"));
    }

    #[test]
    fn groups_drawn_from_the_same_show_nothing() {
        let of = |from: u64| -> Vec<Span> {
            (from..from + 300)
                .map(|id| rpc(id + 1).hosts("lb", ["a", "b", "c"][id as usize % 3]).build())
                .collect()
        };
        assert_eq!(shared_values(&of(0), &of(1_000)), []);
        assert_eq!(shared_values(&[], &of(0)), []);
        let (a, b) = (of(0), of(1_000));
        assert_eq!(numbers(&a.iter().collect::<Vec<_>>(), &b.iter().collect::<Vec<_>>()), []);
    }

    #[test]
    fn hot_keys_and_sizes_are_values_too() {
        let slow: Vec<Span> =
            (0..50).map(|id| rpc(id + 1).query("get cart:7").bytes(30, 900_000).build()).collect();
        let rest: Vec<Span> = (0..500)
            .map(|id| rpc(id + 100).query(&format!("get cart:{}", 100 + id)).bytes(30, 500).build())
            .collect();
        let rows = shared_values(&slow, &rest);
        let found = |field, value| rows.iter().any(|row| row.field == field && row.value == value);
        assert!(found("key", "get cart:7") && found("response size", "up to 1.05 MB"), "{rows:?}");
        assert!(!rows.iter().any(|row| row.field == "key shape"), "all have one shape: {rows:?}");
        assert_eq!(shape("get cart:007 x12y"), "get cart:# x#y");
    }

    #[test]
    fn parts_are_ranked_by_how_far_apart_their_distributions_are() {
        let slow: Vec<Span> = (0..60).map(|id| rpc(id + 1).at(0, 9_000 + id).build()).collect();
        let mut rest: Vec<Span> = (0..60).map(|id| rpc(id + 100).at(0, 1_000 + id).build()).collect();
        for span in &mut rest {
            // The same time on the wire: 160 us of 1 ms less.
            let client = span.client.as_mut().expect("seen");
            for ns in [&mut client.times.response_first_ns, &mut client.times.response_last_ns] {
                *ns = ns.map(|ns| ns + 1_280_000);
            }
            client.times.end_ns += 1_280_000;
            client.times.response_read_ns = client.times.response_read_ns.map(|ns| ns + 1_280_000);
        }
        let rows = numbers(&slow.iter().collect::<Vec<_>>(), &rest.iter().collect::<Vec<_>>());
        let service = rows.iter().find(|row| row.number == "service_ns").expect("differs");
        assert!((service.ks - 1.0).abs() < 1e-9 && service.chance < 1e-6);
        assert_eq!((service.slow_median, service.rest_median), (5_418_000, 618_000));
        assert!(!rows.iter().any(|row| row.number == "request_bytes"));
        assert!(ks_statistic(&[1, 2, 3], &[1, 2, 3]).abs() < 1e-12);
        assert!((ks_statistic(&[1, 2], &[3, 4]) - 1.0).abs() < 1e-12);
        assert!((ks_statistic(&[1, 3], &[2, 4]) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn operations_are_ranked_by_the_time_that_they_add() {
        use dprof_common::model::Side;
        let rollup = |operation: &str, n: u64, ns: u64| {
            let mut rollup = Rollup::new(RollupKey {
                minute_unix_s: 60,
                service: "redis".into(),
                operation: operation.into(),
                side: Side::Server,
                protocol: "redis".into(),
            });
            (0..n).for_each(|_| rollup.add(ns, false, 1, 1));
            rollup
        };
        let before = [rollup("GET", 600, 1_000_000), rollup("SET", 60, 1_000_000), rollup("DEL", 6, 5)];
        let now = [rollup("GET", 600, 1_500_000), rollup("SET", 60, 9_000_000), rollup("NEW", 6, 5)];
        let rows = operations((&now, 60.0), (&before, 60.0));
        let shown: Vec<(&str, f64, f64)> =
            rows.iter().map(|row| (row.operation.as_str(), row.rate, row.added_ns_per_s)).collect();
        // 1/s × 8 ms more; 10/s × 0.5 ms more.
        assert_eq!(shown[..2], [("SET", 1.0, 8_000_000.0), ("GET", 10.0, 5_000_000.0)]);
        assert_eq!(shown.len(), 4);
    }
}
