//! `cargo xtask experiment sampling`: what each keep ratio, or each duty cycle of the capture window, costs, keeps, and
//! lets one say.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use dprof_tests::experiment::sampling::{Came, Estimate, Outcome, run as run_once};

use super::figure::{self, Series};
use super::{RATIOS, folder, print, window};
use crate::build::Programs;

/// Watches a proxy and its servers under load at several keep ratios, or in windows of several parts of the time.
///
/// Prints for each what the agent costs beside runs without one, how many traces it kept and whether they are whole,
/// and the estimates from them beside the truth. Needs root; some seconds for each pair, half a minute for each at a
/// thousandth of the time.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Which lever of sampling
    #[arg(long, value_enum, default_value_t)]
    lever: Lever,
    /// Requests in each run
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) requests: u64,
    /// Runs without and with an agent, for each ratio
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) pairs: u64,
    /// Draw estimates and truths
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
    #[command(flatten)]
    programs: Programs,
}

/// A lever of sampling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Lever {
    /// The part of the traces that is kept
    #[default]
    Ratio,
    /// The part of the time that is captured
    Window,
}

/// Runs the ratios one after the other.
pub(crate) fn run(options: &Options) -> Result<()> {
    let steps = options.programs.ready()?;
    if options.lever == Lever::Window {
        return window::run(options, &steps);
    }
    let mut outside = Vec::new();
    let mut outcomes = Vec::new();
    let mut estimates = String::from("RATIO  ESTIMATE     VALUE      FROM        TO     TRUTH\n");
    print(&format!("RATIO  REQUESTS    KEPT   SHARE   WHOLE  EXAMPLES  {COST}"));
    for ratio in RATIOS {
        steps.interrupt().check()?;
        let folder = folder()?;
        let outcome = run_once(ratio, options.requests, options.pairs as usize, folder.path())
            .with_context(|| format!("ratio {ratio}"))?;
        print(&line(ratio, &outcome));
        for estimate in &outcome.estimates {
            let high = estimate.high.map_or("?".to_owned(), |high| shown(&estimate.name, high));
            let mark = if estimate.is_within() { "" } else { "  outside" };
            estimates += &format!(
                "{ratio:<6} {:<9} {:>8}  {:>8}  {high:>8}  {:>8}{mark}\n",
                estimate.name,
                shown(&estimate.name, estimate.value),
                shown(&estimate.name, estimate.low),
                shown(&estimate.name, estimate.truth),
            );
            if !estimate.is_within() {
                outside.push(format!("{} at {ratio}", estimate.name));
            }
        }
        ensure!(outcome.whole == outcome.kept, "{} of {} kept traces are whole", outcome.whole, outcome.kept);
        outcomes.push(outcome);
    }
    print(&format!("\n{estimates}"));
    print(&format!("outside of their interval: {}", outside.len()));
    if let Some(path) = &options.svg {
        let title = "Latency of GET from the traces that were kept";
        figure::lines(path, title, "keep ratio", &RATIOS, "microseconds", &series(&outcomes))?;
    }
    Ok(())
}

/// A number of an estimate, nanoseconds, where there is one.
type Part = fn(&Estimate) -> Option<u64>;

/// Percentiles of `GET`: the interval's ends and the truth, by ratio.
fn series(outcomes: &[Outcome]) -> Vec<Series> {
    let mut drawn = Vec::new();
    for name in ["GET p50", "GET p90", "GET p99"] {
        let of = |value: Part| -> Vec<Option<f64>> {
            let found =
                outcomes.iter().map(|outcome| outcome.estimates.iter().find(|found| found.name == name));
            found.map(|found| found.and_then(value).map(|ns| ns as f64 / 1e3)).collect()
        };
        let parts: [(&str, Part); 3] = [
            ("at least", |found| Some(found.low)),
            ("at most", |found| found.high),
            ("in truth", |found| Some(found.truth)),
        ];
        drawn.extend(parts.map(|(part, value)| Series {
            name: format!("{name} {part}"),
            is_dashed: part != "in truth",
            points: of(value),
        }));
    }
    drawn
}

/// Counts as they are, times in microseconds.
fn shown(name: &str, value: u64) -> String {
    if name.ends_with("count") { value.to_string() } else { format!("{} us", value / 1_000) }
}

fn line(ratio: &str, outcome: &Outcome) -> String {
    format!(
        "{ratio:<6} {:>8}  {:>6}  {:>5.2}%  {:>6}  {:>8}  {}",
        outcome.requests,
        outcome.kept,
        outcome.kept as f64 / outcome.requests as f64 * 100.0,
        outcome.whole,
        outcome.examples,
        cost(&outcome.pairs),
    )
}

/// Heads of the columns of [`cost`].
pub(super) const COST: &str = "REQUESTS/S  SUBJECT CPU  AGENT CPU";

/// What the agent costs: the middle of the pairs.
pub(super) fn cost(pairs: &[[Came; 2]]) -> String {
    let middle = |of: fn(&[Came; 2]) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(of).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    format!(
        "{:>+9.1}%  {:>+10.1}%  {:>6.1} us",
        middle(|[without, with]| (with.per_s / without.per_s - 1.0) * 100.0),
        middle(|[without, with]| (with.subject_ns / without.subject_ns - 1.0) * 100.0),
        middle(|[_, with]| with.agent_ns / 1e3),
    )
}
