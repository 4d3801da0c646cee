//! The last minutes of each operation in one line: rate, failures, latency now, and how its p99 went.
//!
//! What a reader would get wrong: agents write the counts of the running minute every few seconds, so the newest
//! minute is not over; its rate is taken over the seconds that have passed.

use std::collections::BTreeMap;

use dprof_common::model::{Rollup, RollupKey};
use serde::Serialize;

/// An operation now. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LiveRow {
    /// Service.
    pub service: String,
    /// Operation.
    pub operation: String,
    /// `server` or `client`.
    pub kind: &'static str,
    /// Per second, over the last whole minute and what has passed of this one.
    pub rate: f64,
    /// Share that failed, of the same.
    pub error_share: f64,
    /// Median, of the same.
    pub p50_ns: u64,
    /// 99th percentile, of the same.
    pub p99_ns: u64,
    /// 99th percentile of each minute, the oldest first; null = nothing was seen.
    pub p99_by_minute_ns: Vec<Option<u64>>,
}

/// The operations of `rollups`, of which the last `minutes` up to `now_unix_ns` count; those with most time per
/// second first.
pub fn live(rollups: &[Rollup], now_unix_ns: u64, minutes: u64) -> Vec<LiveRow> {
    let now_s = now_unix_ns / 1_000_000_000;
    let this_minute = now_s / 60 * 60;
    let first = this_minute.saturating_sub((minutes.max(2) - 1) * 60);
    let mut by_key: BTreeMap<RollupKey, BTreeMap<u64, Rollup>> = BTreeMap::new();
    for rollup in rollups {
        let minute = rollup.key.minute_unix_s;
        if rollup.count == 0 || minute < first || minute > this_minute {
            continue;
        }
        let key = RollupKey { minute_unix_s: 0, ..rollup.key.clone() };
        let of_key = by_key.entry(key.clone()).or_default();
        of_key.entry(minute).or_insert_with(|| Rollup::new(key)).merge(rollup);
    }
    let mut rows: Vec<(u64, LiveRow)> = by_key
        .into_iter()
        .filter_map(|(key, by_minute)| {
            let mut recent = Rollup::new(key.clone());
            by_minute.range(this_minute.saturating_sub(60)..).for_each(|(_, rollup)| recent.merge(rollup));
            let passed_s = (now_s - this_minute + 60) as f64;
            let p99 = |rollup: &Rollup| rollup.quantile(0.99);
            (recent.count > 0).then(|| {
                let row = LiveRow {
                    service: key.service,
                    operation: key.operation,
                    kind: key.side.name(),
                    rate: recent.count as f64 / passed_s,
                    error_share: recent.errors as f64 / recent.count as f64,
                    p50_ns: recent.quantile(0.5).unwrap_or(0),
                    p99_ns: p99(&recent).unwrap_or(0),
                    p99_by_minute_ns: (0..minutes.max(2))
                        .map(|n| by_minute.get(&(first + n * 60)).and_then(p99))
                        .collect(),
                };
                (recent.sum_ns, row)
            })
        })
        .collect();
    rows.sort_by_key(|(sum_ns, _)| std::cmp::Reverse(*sum_ns));
    rows.into_iter().map(|(_, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dprof_common::model::Side;

    #[test]
    fn the_running_minute_counts_for_the_seconds_that_passed() {
        let rollup = |minute_unix_s: u64, operation: &str, n: u64, ns: u64| {
            let mut rollup = Rollup::new(RollupKey {
                minute_unix_s,
                service: "redis".into(),
                operation: operation.into(),
                side: Side::Server,
                protocol: "redis".into(),
            });
            (0..n).for_each(|i| rollup.add(ns, i == 0, 1, 1));
            rollup
        };
        let rollups = [
            rollup(600, "GET", 60, 2_000_000),
            rollup(720, "GET", 60, 1_000_000),
            rollup(780, "GET", 30, 1_000_000),
            rollup(720, "OLD", 5, 1),
            rollup(660, "GONE", 5, 1),
        ];
        let rows = live(&rollups, 810 * 1_000_000_000, 4);
        assert_eq!(rows.iter().map(|row| row.operation.as_str()).collect::<Vec<_>>(), ["GET", "OLD"]);
        // 90 in the 60 s of the last minute and the 30 s of this one.
        assert!((rows[0].rate - 1.0).abs() < 1e-9 && (rows[0].error_share - 2.0 / 90.0).abs() < 1e-9);
        let by_minute: Vec<Option<u64>> =
            rows[0].p99_by_minute_ns.iter().map(|ns| ns.map(|ns| (ns + 50_000) / 100_000)).collect();
        assert_eq!(by_minute, [Some(20), None, Some(10), Some(10)]);
    }
}
