//! `cargo xtask experiment replication`: a delay on one link between datacenters, and which link the traces blame.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use dprof_tests::experiment::replication::{DelayBy, Moment, Outcome, run as run_once};

use super::figure::{self, Mark};
use super::{folder, print};
use crate::build::Programs;

/// Delays one link between datacenters of a ring that replicates after the answer, and counts how often the traces
/// blame this link and no other.
///
/// Prints of the first run the lag of each replica, the links, and one trace. Needs root; a run takes about half a
/// minute.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Of the first run; the next ones count on. Draws the link and the delay
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many runs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// What holds frames back
    #[arg(long, value_enum, default_value_t)]
    delay_by: By,
    /// Draw the trace of the first run
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    programs: Programs,
}

/// What holds frames back.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum By {
    /// A program between machine and bridge, as netem does it
    #[default]
    Cable,
    /// The kernel's queue: a token bucket (TBF) below a class of HTB, which a neighbour keeps full
    Tbf,
}

/// The paper's figure 5: what happened where, and when.
fn draw(path: &Path, outcome: &Outcome) -> Result<()> {
    let times: Vec<f64> = outcome.figure.iter().filter_map(Moment::seconds).collect();
    let start = times.iter().copied().fold(f64::INFINITY, f64::min);
    let marks: Vec<Mark> = outcome
        .figure
        .iter()
        .zip(&times)
        .map(|(moment, time)| Mark {
            at: (time - start) * 1e3,
            place: moment.place.clone(),
            kind: moment.what.to_owned(),
        })
        .collect();
    let title = format!(
        "A write and its copies; {} delayed by {:.1} ms each way",
        outcome.delayed.join(" - "),
        outcome.delay_us as f64 / 1e3
    );
    figure::timeline(path, &title, "ms since the client asked", &marks)
}

/// Runs it so many times, one after the other.
pub(crate) fn run(options: &Options) -> Result<()> {
    let steps = options.programs.ready()?;
    let delay_by = match options.delay_by {
        By::Cable => DelayBy::Cable,
        By::Tbf => DelayBy::Queue,
    };
    let mut right = 0;
    for seed in (options.seed..).take(options.runs as usize) {
        steps.interrupt().check()?;
        let folder = folder()?;
        let outcome = run_once(seed, delay_by, folder.path()).with_context(|| format!("seed {seed}"))?;
        if seed == options.seed {
            let lines: Vec<String> = outcome.figure.iter().map(Moment::line).collect();
            print(&format!("{}\n{}\n", outcome.table, lines.join("\n")));
            if let Some(path) = &options.svg {
                draw(path, &outcome)?;
            }
        }
        let links = |links: &[[String; 2]]| match links {
            [] => "none".to_owned(),
            links => links.iter().map(|link| link.join(" - ")).collect::<Vec<_>>().join(", "),
        };
        let mark = if outcome.is_right() { "right" } else { "WRONG" };
        print(&format!(
            "seed {seed}: {mark}: {} delayed by {} us each way, blamed: {}",
            outcome.delayed.join(" - "),
            outcome.delay_us,
            links(&outcome.blamed)
        ));
        if !outcome.is_right() && seed != options.seed {
            print(&outcome.table);
        }
        right += u64::from(outcome.is_right());
    }
    print(&format!("the delayed link blamed, and no other: {right} of {} runs", options.runs));
    ensure!(right == options.runs, "see above");
    Ok(())
}
