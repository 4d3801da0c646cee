//! What a run says at its end: the table of operations (`--summary`, to stdout) and the counters (to stderr),
//! losses first.

use std::collections::BTreeMap;
use std::fmt::Write;

use dprof_common::drop_reason::DropReason;
use dprof_common::model::{Rollup, RollupKey, Side};

use crate::pipeline::Outcome;
use crate::source::recording::RecorderCounters;
use crate::units::{format_count, format_ns};

/// Every service and operation, servers first, the largest count first.
pub fn summary(rollups: &[Rollup]) -> String {
    let mut rows = merge(rollups);
    rows.sort_by_key(|row| (row.key.side == Side::Client, std::cmp::Reverse(row.count)));
    let head = ["SERVICE", "OPERATION", "KIND", "COUNT", "ERRORS", "MIN", "AVG", "P50", "P90", "P99", "MAX"];
    let mut cells: Vec<Vec<String>> = vec![head.iter().map(|name| (*name).to_owned()).collect()];
    for row in &rows {
        let quantile = |q: f64| format_ns(row.sketch.quantile(q).unwrap_or(0).clamp(row.min_ns, row.max_ns));
        cells.push(vec![
            row.key.service.clone(),
            row.key.operation.clone(),
            row.key.side.name().to_owned(),
            row.count.to_string(),
            row.errors.to_string(),
            format_ns(row.min_ns),
            format_ns(row.sum_ns / row.count.max(1)),
            quantile(0.5),
            quantile(0.9),
            quantile(0.99),
            format_ns(row.max_ns),
        ]);
    }
    aligned(&cells)
}

/// Rollups of one service, operation and side as one, whatever their minutes.
pub fn merge(rollups: &[Rollup]) -> Vec<Rollup> {
    let mut merged: BTreeMap<(&str, &str, Side), Rollup> = BTreeMap::new();
    for rollup in rollups {
        let key = (rollup.key.service.as_str(), rollup.key.operation.as_str(), rollup.key.side);
        merged
            .entry(key)
            .or_insert_with(|| Rollup::new(RollupKey { minute_unix_s: 0, ..rollup.key.clone() }))
            .merge(rollup);
    }
    merged.into_values().collect()
}

/// Columns as wide as their widest cell; the first three to the left, numbers to the right.
fn aligned(cells: &[Vec<String>]) -> String {
    let columns = cells.first().map_or(0, Vec::len);
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in cells {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            // Writing to a string cannot fail.
            let _ =
                if column < 3 { write!(line, "{cell:<width$}  ") } else { write!(line, "{cell:>width$}  ") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The counters of a run: losses by cause first, then what is worth a look, then sums.
pub fn counters(outcome: &Outcome, recorder: Option<RecorderCounters>) -> String {
    let mut text = String::new();
    let mut line = |title: &str, values: &[(String, u64)]| {
        let shown: Vec<String> = values
            .iter()
            .filter(|(_, value)| *value > 0)
            .map(|(name, value)| format!("{name} {}", format_count(*value)))
            .collect();
        let _ = writeln!(
            text,
            "{title}: {}",
            if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
        );
    };
    let named = |name: &str, value: u64| (name.to_owned(), value);
    let mut lost: Vec<(String, u64)> = DropReason::ALL
        .iter()
        .map(|reason| named(reason.name(), outcome.source.drops[*reason as usize]))
        .collect();
    lost.push(named("store_full", outcome.store.spans_lost_full));
    lost.push(named("store_failed", outcome.store.spans_lost_failed));
    lost.push(named("store_slow", outcome.store.spans_lost_slow));
    if let Some(recorder) = recorder {
        lost.push(named("recording_slow", recorder.lost_queue_full));
        lost.push(named("recording_failed", recorder.lost_write_failed));
    }
    line("lost", &lost);
    let sums = ["records", "messages", "halves", "spans", "connections", "open_requests", "held"];
    let doubts: Vec<(String, u64)> = outcome
        .engine
        .iter()
        .filter(|(name, _)| !sums.contains(name))
        .map(|(name, value)| named(name, value))
        .collect();
    line("noted", &doubts);
    let engine = &outcome.engine;
    line(
        "seen",
        &[
            named("events", outcome.source.records),
            named("messages", engine.messages),
            named("spans", engine.spans),
            named("stored", outcome.store.spans_stored),
            named("still_open", engine.open_requests),
        ],
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollup(minute_unix_s: u64, operation: &str, durations_ns: &[u64]) -> Rollup {
        let mut rollup = Rollup::new(RollupKey {
            minute_unix_s,
            service: "redis".into(),
            operation: operation.into(),
            side: Side::Server,
            protocol: "redis".into(),
        });
        for duration_ns in durations_ns {
            rollup.add(*duration_ns, *duration_ns > 5_000_000, 10, 20);
        }
        rollup
    }

    #[test]
    fn minutes_add_up_in_the_table() {
        let rollups = [
            rollup(60, "GET", &[1_000, 3_000]),
            rollup(0, "SET", &[2_000]),
            rollup(120, "GET", &[8_000_000]),
        ];
        let rows: Vec<Vec<String>> =
            summary(&rollups).lines().map(|l| l.split_whitespace().map(str::to_owned).collect()).collect();
        assert_eq!(rows[0][..5], ["SERVICE", "OPERATION", "KIND", "COUNT", "ERRORS"]);
        assert_eq!(rows[1][..7], ["redis", "GET", "server", "3", "1", "1.00us", "2.67ms"]);
        assert_eq!(rows[1][10], "8.00ms");
        assert_eq!(
            rows[2],
            ["redis", "SET", "server", "1", "0", "2.00us", "2.00us", "2.00us", "2.00us", "2.00us", "2.00us"]
        );
        assert_eq!(merge(&merge(&rollups)), merge(&rollups));
    }

    #[test]
    fn nothing_seen_is_a_table_without_rows() {
        assert_eq!(summary(&[]).lines().count(), 1);
    }
}
