//! What a run says at its end: the table of operations (`--summary`, to stdout) and the counters (to stderr),
//! losses first.

use std::collections::BTreeMap;
use std::fmt::Write;

use dprof_common::drop_reason::DropReason;
use dprof_common::model::{Rollup, RollupKey, Side};

use crate::engine::EngineCounters;
use crate::pipeline::Outcome;
use crate::source::recording::RecorderCounters;
use crate::words::WordCounters;
use dprof_common::units::{count, duration};

/// Every service and operation, servers first, the largest count first.
pub fn summary(rollups: &[Rollup]) -> String {
    let mut rows = merge(rollups);
    rows.sort_by_key(|row| (row.key.side == Side::Client, std::cmp::Reverse(row.count)));
    let head = ["SERVICE", "OPERATION", "KIND", "COUNT", "ERRORS", "MIN", "AVG", "P50", "P90", "P99", "MAX"];
    let mut cells: Vec<Vec<String>> = vec![head.iter().map(|name| (*name).to_owned()).collect()];
    for row in &rows {
        let quantile = |q: f64| duration(row.sketch.quantile(q).unwrap_or(0).clamp(row.min_ns, row.max_ns));
        cells.push(vec![
            row.key.service.clone(),
            row.key.operation.clone(),
            row.key.side.name().to_owned(),
            row.count.to_string(),
            row.errors.to_string(),
            duration(row.min_ns),
            duration(row.sum_ns / row.count.max(1)),
            quantile(0.5),
            quantile(0.9),
            quantile(0.99),
            duration(row.max_ns),
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

/// What became of spans where not all traces are kept.
const KEPT: [&str; 11] = [
    "kept_ratio",
    "kept_slow",
    "kept_error",
    "kept_top",
    "kept_unconfirmed",
    "not_kept",
    "not_kept_early",
    "keep_over_budget",
    "words_heard",
    "words_lost",
    "keep_horizon_ms",
];

/// The counters of a run: losses by cause first, then what is worth a look, then sums.
pub fn counters(outcome: &Outcome, recorder: Option<RecorderCounters>) -> String {
    let mut text = String::new();
    let named = |name: &str, value: u64| (name.to_owned(), value);
    let mut lost: Vec<(String, u64)> = DropReason::ALL
        .iter()
        .map(|reason| named(reason.name(), outcome.source.drops[*reason as usize]))
        .collect();
    lost.push(named("store_full", outcome.store.spans_lost_full));
    lost.push(named("store_failed", outcome.store.spans_lost_failed));
    lost.push(named("store_slow", outcome.store.spans_lost_slow));
    lost.push(named("store_away", outcome.store.spans_lost_away));
    if let Some(recorder) = recorder {
        lost.push(named("recording_slow", recorder.lost_queue_full));
        lost.push(named("recording_failed", recorder.lost_write_failed));
    }
    line(&mut text, "lost", &lost);
    let sums = [
        "records",
        "messages",
        "halves",
        "spans",
        "connections",
        "open_requests",
        "held",
        "windows",
        "windows_open_ms",
        "windows_closed_ms",
    ];
    let is_kept = |name: &str| KEPT.contains(&name);
    let doubts: Vec<(String, u64)> = outcome
        .engine
        .iter()
        .filter(|(name, _)| !sums.contains(name) && !is_kept(name))
        .map(|(name, value)| named(name, value))
        .collect();
    line(&mut text, "noted", &doubts);
    let engine = &outcome.engine;
    if engine.keep_horizon_ms > 0 {
        let kept: Vec<_> = engine.iter().filter(|(name, _)| is_kept(name)).collect();
        line(
            &mut text,
            "sampled",
            &kept.into_iter().map(|(name, value)| named(name, value)).collect::<Vec<_>>(),
        );
    }
    if engine.windows > 0 {
        text.push_str(&windows(engine));
    }
    let words = outcome.words;
    if words != WordCounters::default() {
        let said = [
            named("sent", words.sent),
            named("bytes", words.sent_bytes),
            named("unsent", words.unsent),
            named("received", words.received),
            named("ignored", words.ignored),
            named("refused", words.refused),
        ];
        line(&mut text, "words", &said);
    }
    line(
        &mut text,
        "seen",
        &[
            named("events", outcome.source.records),
            named("messages", engine.messages),
            named("spans", engine.spans),
            named("stored", outcome.store.spans_stored),
            named("spooled", outcome.store.spans_spooled),
            named("still_open", engine.open_requests),
        ],
    );
    text
}

fn line(text: &mut String, title: &str, values: &[(String, u64)]) {
    let shown: Vec<String> = values
        .iter()
        .filter(|(_, value)| *value > 0)
        .map(|(name, value)| format!("{name} {}", count(*value)))
        .collect();
    let shown = if shown.is_empty() { "none".to_owned() } else { shown.join(", ") };
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{title}: {shown}");
}

/// What was outside the capture windows, and how that bends the answers: a request is only seen whole if it begins
/// and ends in one window, which a long one does less often.
fn windows(engine: &EngineCounters) -> String {
    let total_ms = (engine.windows_open_ms + engine.windows_closed_ms).max(1);
    let window_ns = engine.windows_open_ms * 1_000_000 / engine.windows;
    let whole = |part: u64| 100 - 100 / part;
    format!(
        "captured: {} windows of {}, {:.2} % of the time; outside nothing is known; {} requests cut at edges or \
         without order were dropped; of requests of {} {} % were whole, of {} {} %: durations lean to the short\n",
        count(engine.windows),
        duration(window_ns),
        engine.windows_open_ms as f64 / total_ms as f64 * 100.0,
        count(engine.window_dropped),
        duration(window_ns / 20),
        whole(20),
        duration(window_ns / 2),
        whole(2),
    )
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

    /// Two spaces part columns, one is part of a duration.
    fn columns(line: &str) -> Vec<String> {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn minutes_add_up_in_the_table() {
        let rollups = [
            rollup(60, "GET", &[1_000, 3_000]),
            rollup(0, "SET", &[2_000]),
            rollup(120, "GET", &[8_000_000]),
        ];
        let rows: Vec<Vec<String>> = summary(&rollups).lines().map(columns).collect();
        assert_eq!(rows[0][..5], ["SERVICE", "OPERATION", "KIND", "COUNT", "ERRORS"]);
        assert_eq!(rows[1][..7], ["redis", "GET", "server", "3", "1", "1.00 us", "2.67 ms"]);
        assert_eq!(rows[1][10], "8.00 ms");
        assert_eq!(
            rows[2],
            [
                "redis", "SET", "server", "1", "0", "2.00 us", "2.00 us", "2.00 us", "2.00 us", "2.00 us",
                "2.00 us"
            ]
        );
        assert_eq!(merge(&merge(&rollups)), merge(&rollups));
    }

    #[test]
    fn nothing_seen_is_a_table_without_rows() {
        assert_eq!(summary(&[]).lines().count(), 1);
    }
}
