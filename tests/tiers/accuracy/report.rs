//! Scores → a table for people and JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::score::{CERTAIN, Score, Tally, UNCALIBRATED, kinds};

/// Links that a bin must hold before its error says something.
pub(super) const BIN_LINKS_MIN: u64 = 1000;

/// One line per score: dprof and, beside it, what the simple rules make of the same halves.
pub(super) fn table(scores: &[Score]) -> String {
    let mut text = format!(
        "{:<29} {:>4} {:<10} {:<11} {:>7} {:>7} {:>7} {:>6} {:>7} {:>8} {:>7} {:>7} {:>6} {:>13}\n",
        "topology",
        "load",
        "keys",
        "linked by",
        "links",
        "precis.",
        "recall",
        "wrong",
        "traces",
        "certain",
        "seen",
        "incompl",
        "orphan",
        "root p50/p99"
    );
    for score in scores {
        let certain = score.certain();
        let is_dprof = score.method == "dprof";
        let only_dprof = |text: String| if is_dprof { text } else { String::new() };
        let _ = writeln!(
            text,
            "{:<29} {:>4} {:<10} {:<11} {:>7} {:>7} {:>7} {:>6} {:>7} {:>8} {:>7} {:>7} {:>6} {:>13}",
            score.topology,
            score.in_flight,
            score.load,
            score.method,
            score.links_expected,
            percent(score.precision()),
            percent(score.recall()),
            score.links_wrong,
            percent(score.traces()),
            only_dprof(certain.count().to_string()),
            only_dprof(percent(share(score.spans, score.spans_expected))),
            only_dprof(percent(share(score.spans_incomplete, score.spans_expected))),
            only_dprof(percent(share(score.spans_orphaned, score.links_expected))),
            only_dprof(format!("{}/{} us", score.root_error_ns[0] / 1000, score.root_error_ns[1] / 1000)),
        );
    }
    text
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn percent(share: f64) -> String {
    // 99.97 % is not 100 %.
    let floored = (share * 1000.0).floor() / 10.0;
    format!("{floored:.1}%")
}

/// Links by evidence and stated confidence, over all scores.
pub(super) fn by_confidence(scores: &[Score]) -> BTreeMap<&'static str, BTreeMap<String, Tally>> {
    let mut sum: BTreeMap<&'static str, BTreeMap<String, Tally>> = BTreeMap::new();
    for score in scores {
        for (kind, bins) in &score.by_confidence {
            for (bin, tally) in bins {
                sum.entry(kind).or_default().entry(bin.clone()).or_default().add(tally);
            }
        }
    }
    sum
}

/// Calibration error of a kind: the bins' errors by how many links they hold (expected calibration error, Naeini
/// and others 2015). Bins of too few links, and links that state nothing, have no part in it.
pub(super) fn calibration_error(bins: &BTreeMap<String, Tally>) -> Option<f64> {
    let counted: Vec<&Tally> = bins
        .iter()
        .filter(|(bin, tally)| *bin != UNCALIBRATED && tally.count() >= BIN_LINKS_MIN)
        .map(|(_, tally)| tally)
        .collect();
    let links: u64 = counted.iter().map(|tally| tally.count()).sum();
    let error: f64 = counted.iter().map(|tally| tally.calibration_error() * tally.count() as f64).sum();
    (links > 0).then(|| error / links as f64)
}

/// The same as text: per kind of evidence and bin how many links, how many wrong, stated and true.
pub(super) fn calibration(scores: &[Score]) -> String {
    let sum = by_confidence(scores);
    let mut text = format!(
        "{:<16} {:<13} {:>8} {:>7} {:>8} {:>8} {:>8}\n",
        "evidence", "confidence", "links", "wrong", "stated", "right", "error"
    );
    for kind in kinds() {
        let Some(bins) = sum.get(kind) else { continue };
        for (bin, tally) in bins {
            let count = tally.count();
            let stated = bin != UNCALIBRATED;
            let _ = writeln!(
                text,
                "{kind:<16} {bin:<13} {count:>8} {:>7} {:>8} {:>8} {:>8}",
                tally.wrong,
                if stated { format!("{:.4}", tally.stated / count as f64) } else { String::new() },
                format!("{:.4}", share(tally.right, count)),
                match (stated, count >= BIN_LINKS_MIN) {
                    (true, true) => format!("{:.4}", tally.calibration_error()),
                    (true, false) => "few".to_owned(),
                    (false, _) => String::new(),
                },
            );
        }
        if let Some(error) = calibration_error(bins) {
            let _ = writeln!(text, "{kind:<16} {:<13} {:>44.4}", "all", error);
        }
    }
    let all = || sum.values().flat_map(BTreeMap::iter);
    let stated: u64 = all().filter(|(bin, _)| *bin != UNCALIBRATED).map(|(_, tally)| tally.count()).sum();
    let high = |bin: &str| bin == CERTAIN || bin.starts_with("0.95") || bin.starts_with("0.99");
    let low: u64 =
        all().filter(|(bin, _)| *bin != UNCALIBRATED && !high(bin)).map(|(_, tally)| tally.count()).sum();
    let _ = writeln!(
        text,
        "links that state a confidence: {stated}, below 0.95: {}",
        percent(share(low, stated))
    );
    text
}

/// Writes all scores, with what the table derives from them.
pub(super) fn write_json(path: &Path, scores: &[Score]) -> Result<()> {
    let rows: Vec<_> = scores
        .iter()
        .map(|score| {
            let mut row = serde_json::to_value(score)?;
            row["precision"] = json!(score.precision());
            row["recall"] = json!(score.recall());
            row["traces_right_share"] = json!(score.traces());
            row["certain"] = json!(score.certain());
            Ok(row)
        })
        .collect::<Result<_>>()?;
    let calibration: BTreeMap<_, _> =
        by_confidence(scores).iter().map(|(kind, bins)| (*kind, calibration_error(bins))).collect();
    let all = json!({ "scores": serde_json::Value::Array(rows), "calibration_error": calibration });
    let text = serde_json::to_string_pretty(&all)?;
    fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
}
