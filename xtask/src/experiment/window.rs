//! `cargo xtask experiment sampling --lever window`: what each duty cycle costs, sees, and lets one say.

use anyhow::{Context as _, Result};
use dprof_tests::experiment::window::{Outcome, PERCENTILES, run as run_once};

use super::figure::{self, Series};
use super::sampling::{COST, Options, cost};
use super::{RATIOS, folder, print};
use crate::step::Steps;

/// With fewer windows, how far a percentile may be off cannot be seen.
const FEW_WINDOWS: u64 = 10;

/// Runs the duty cycles one after the other.
pub(super) fn run(options: &Options, steps: &Steps) -> Result<()> {
    let mut outcomes = Vec::new();
    print(&format!("TIME   WINDOWS     OPEN  REQUESTS   WHOLE    SHARE  PARTS    CUT  {COST}"));
    for duty in RATIOS {
        steps.interrupt().check()?;
        let folder = folder()?;
        let outcome = run_once(duty, options.requests, options.pairs as usize, folder.path())
            .with_context(|| format!("duty cycle {duty}"))?;
        print(&line(duty, &outcome));
        outcomes.push(outcome);
    }
    print("\nTIME   PERCENTILE      SEEN     LEAST      MOST     TRUTH");
    for (duty, outcome) in RATIOS.iter().zip(&outcomes) {
        percentiles(duty, outcome).iter().for_each(|line| print(line));
    }
    print("\nSEEN   OF THE SHORTER HALF  OF THE LONGEST TENTH  OF THE LONGEST HUNDREDTH");
    for (duty, outcome) in RATIOS.iter().zip(&outcomes) {
        let [half, tenth, hundredth] = outcome.seen_by_duration;
        print(&format!("{duty:<6} {half:>18.3}%  {tenth:>19.3}%  {hundredth:>23.3}%"));
    }
    print("");
    for (duty, outcome) in RATIOS.iter().zip(&outcomes) {
        if outcome.windows > 0 && outcome.windows < FEW_WINDOWS {
            print(&format!(
                "{duty}: only {} windows in this run: a stall that fell into one is most of what was seen, one that did \
                 not is not there",
                outcome.windows
            ));
        }
    }
    if let Some(path) = &options.svg {
        let title = "Latency of the requests that were seen in capture windows";
        figure::lines(path, title, "part of the time", &RATIOS, "microseconds", &series(&outcomes))?;
    }
    Ok(())
}

fn line(duty: &str, outcome: &Outcome) -> String {
    let windows = if outcome.windows == 0 { "-".to_owned() } else { outcome.windows.to_string() };
    format!(
        "{duty:<6} {windows:>7}  {:>6.2}%  {:>8}  {:>6}  {:>6.3}%  {:>5}  {:>5}  {}",
        outcome.open_percent,
        outcome.requests,
        outcome.whole,
        outcome.whole as f64 / outcome.requests as f64 * 100.0,
        outcome.parts,
        outcome.cut,
        cost(&outcome.pairs),
    )
}

fn percentiles(duty: &str, outcome: &Outcome) -> Vec<String> {
    if outcome.percentiles.is_empty() {
        return vec![format!("{duty:<6} no request was seen whole")];
    }
    let us = |ns: u64| format!("{} us", ns / 1_000);
    let found = outcome.percentiles.iter().map(|found| {
        let [least, most] = found.of_windows_ns.map_or(["?".to_owned(), "?".to_owned()], |ends| ends.map(us));
        format!(
            "{duty:<6} p{:<9}  {:>8}  {least:>8}  {most:>8}  {:>8}",
            found.percent,
            us(found.seen_ns),
            us(found.truth_ns)
        )
    });
    found.collect()
}

/// Percentiles as seen and in truth, by duty cycle.
fn series(outcomes: &[Outcome]) -> Vec<Series> {
    let mut drawn = Vec::new();
    for percent in PERCENTILES {
        let of = |is_truth: bool| -> Vec<Option<f64>> {
            let found = |outcome: &Outcome| {
                let found = outcome.percentiles.iter().find(|found| found.percent == percent)?;
                Some(if is_truth { found.truth_ns } else { found.seen_ns } as f64 / 1e3)
            };
            outcomes.iter().map(found).collect()
        };
        for (name, is_truth) in [("seen", false), ("in truth", true)] {
            drawn.push(Series {
                name: format!("p{percent} {name}"),
                is_dashed: !is_truth,
                points: of(is_truth),
            });
        }
    }
    drawn
}
