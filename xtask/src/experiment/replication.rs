//! `cargo xtask experiment replication`: a delay on one link between datacenters, and which link the traces blame.

use anyhow::{Context as _, Result, ensure};
use dprof_tests::experiment::replication::run as run_once;

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
    #[command(flatten)]
    programs: Programs,
}

/// Runs it so many times, one after the other.
pub(crate) fn run(options: &Options) -> Result<()> {
    let steps = options.programs.ready()?;
    let mut right = 0;
    for seed in (options.seed..).take(options.runs as usize) {
        steps.interrupt().check()?;
        let folder = folder()?;
        let outcome = run_once(seed, folder.path()).with_context(|| format!("seed {seed}"))?;
        if seed == options.seed {
            print(&format!("{}\n{}", outcome.table, outcome.figure));
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
