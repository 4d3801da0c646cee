//! Rollups added up: one row per service, operation and kind.

use std::borrow::Cow;
use std::collections::BTreeMap;

use dprof_common::model::{Rollup, RollupKey, Side};
use serde::Serialize;

/// What `stats` prints. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StatRow {
    /// Service whose end this is.
    pub service: String,
    /// Operation.
    pub operation: String,
    /// `server`: requests that it answered; `client`: calls that it made.
    pub kind: &'static str,
    /// Protocol.
    pub protocol: Cow<'static, str>,
    /// How many.
    pub count: u64,
    /// How many failed.
    pub errors: u64,
    /// Sum of the durations.
    pub total_ns: u64,
    /// Shortest, exact.
    pub min_ns: u64,
    /// Mean, exact.
    pub avg_ns: u64,
    /// Median, within 1 %.
    pub p50_ns: u64,
    /// Within 1 %.
    pub p90_ns: u64,
    /// Within 1 %.
    pub p99_ns: u64,
    /// Longest, exact.
    pub max_ns: u64,
    /// Bytes of requests.
    pub request_bytes: u64,
    /// Bytes of responses.
    pub response_bytes: u64,
}

/// How to sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SortBy {
    /// Sum of the durations: count times mean
    Total,
    /// How many
    Count,
    /// How many failed
    Errors,
    /// Mean
    Avg,
    /// Median
    P50,
    /// 99th percentile
    P99,
    /// Longest
    Max,
    /// Service, then operation
    Name,
}

/// Adds up rollups of all minutes and runs; `kind` keeps one end. In order of name.
pub fn merge(rollups: &[Rollup], kind: Option<Side>) -> Vec<Rollup> {
    let mut merged: BTreeMap<RollupKey, Rollup> = BTreeMap::new();
    for rollup in rollups {
        if rollup.count == 0 || kind.is_some_and(|kind| kind != rollup.key.side) {
            continue;
        }
        let key = RollupKey { minute_unix_s: 0, ..rollup.key.clone() };
        merged.entry(key.clone()).or_insert_with(|| Rollup::new(key)).merge(rollup);
    }
    merged.into_values().collect()
}

/// One row per merged rollup, largest first by `sort`; equal ones by name.
pub fn rows(merged: &[Rollup], sort: SortBy) -> Vec<StatRow> {
    let mut rows: Vec<StatRow> = merged.iter().map(row).collect();
    let key = |row: &StatRow| match sort {
        SortBy::Total => row.total_ns,
        SortBy::Count => row.count,
        SortBy::Errors => row.errors,
        SortBy::Avg => row.avg_ns,
        SortBy::P50 => row.p50_ns,
        SortBy::P99 => row.p99_ns,
        SortBy::Max => row.max_ns,
        SortBy::Name => 0,
    };
    rows.sort_by_key(|row| std::cmp::Reverse(key(row)));
    rows
}

fn row(rollup: &Rollup) -> StatRow {
    let quantile = |q| rollup.quantile(q).unwrap_or(rollup.min_ns);
    StatRow {
        service: rollup.key.service.clone(),
        operation: rollup.key.operation.clone(),
        kind: rollup.key.side.name(),
        protocol: rollup.key.protocol.clone(),
        count: rollup.count,
        errors: rollup.errors,
        total_ns: rollup.sum_ns,
        min_ns: rollup.min_ns,
        avg_ns: rollup.sum_ns / rollup.count.max(1),
        p50_ns: quantile(0.5),
        p90_ns: quantile(0.9),
        p99_ns: quantile(0.99),
        max_ns: rollup.max_ns,
        request_bytes: rollup.request_bytes,
        response_bytes: rollup.response_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollup(minute: u64, side: Side, operation: &str, durations_ns: &[u64]) -> Rollup {
        let mut rollup = Rollup::new(RollupKey {
            minute_unix_s: minute * 60,
            service: "redis".into(),
            operation: operation.into(),
            side,
            protocol: "redis".into(),
        });
        for ns in durations_ns {
            rollup.add(*ns, *ns > 1_000_000, 10, 100);
        }
        rollup
    }

    #[test]
    fn minutes_add_up_per_service_operation_and_kind() {
        let rollups = [
            rollup(1, Side::Server, "GET", &[100, 200]),
            rollup(2, Side::Server, "GET", &[300, 2_000_000]),
            rollup(2, Side::Client, "GET", &[400]),
            rollup(2, Side::Server, "SET", &[500]),
            rollup(3, Side::Server, "EMPTY", &[]),
        ];
        let rows = rows(&merge(&rollups, None), SortBy::Total);
        let names: Vec<_> = rows.iter().map(|row| (row.operation.as_str(), row.kind, row.count)).collect();
        assert_eq!(names, [("GET", "server", 4), ("SET", "server", 1), ("GET", "client", 1)]);
        let get = &rows[0];
        assert_eq!((get.min_ns, get.avg_ns, get.max_ns), (100, 500_150, 2_000_000));
        assert_eq!((get.errors, get.total_ns), (1, 2_000_600));
        assert_eq!((get.request_bytes, get.response_bytes), (40, 400));
        assert!((198..=202).contains(&get.p50_ns), "{}", get.p50_ns);
        assert_eq!(merge(&rollups, Some(Side::Client)).len(), 1);
    }

    #[test]
    fn no_quantile_lies_outside_the_extremes() {
        let rows = rows(&merge(&[rollup(1, Side::Server, "GET", &[104_729])], None), SortBy::Name);
        let row = &rows[0];
        assert_eq!([row.min_ns, row.p50_ns, row.p90_ns, row.p99_ns, row.max_ns], [104_729; 5]);
    }

    #[test]
    fn each_order_is_largest_first_and_names_break_ties() {
        let rollups = [
            rollup(1, Side::Server, "A", &[10, 10, 10]),
            rollup(1, Side::Server, "B", &[2_000_000]),
            rollup(1, Side::Server, "C", &[10, 10, 10]),
        ];
        let merged = merge(&rollups, None);
        for (sort, expected) in [
            (SortBy::Name, "ABC"),
            (SortBy::Total, "BAC"),
            (SortBy::Count, "ACB"),
            (SortBy::Errors, "BAC"),
            (SortBy::P99, "BAC"),
        ] {
            let order: String = rows(&merged, sort).iter().map(|row| row.operation.as_str()).collect();
            assert_eq!(order, expected, "{sort:?}");
        }
    }
}
