//! `cargo xtask drill`: faults put into real systems, and whether `dprof-cli why` names the cause first; and the same
//! systems without a fault, of which it must say that nothing got worse.
//!
//! What a reader would get wrong: the systems, the faults and what counts as right are in `dprof_tests::drill`. This
//! command chooses, shows and counts.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::builder::PossibleValuesParser;
use dprof_tests::drill::{Drill, Fault, Outcome, run as run_drill};

use crate::build::Programs;
use crate::step::say;

/// Of all faults so many may be named wrongly.
const WRONG_MAX: usize = 1;

/// Puts faults into real systems and checks that `dprof-cli why` names the cause first.
///
/// Exits with an error if more than one cause is named wrongly, or a run without a fault raises an alarm. Needs root;
/// each drill takes about half a minute.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Which link, process and size, and which keys are asked for
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs without a fault
    #[arg(long, default_value_t = 10)]
    quiet: u64,
    #[command(flatten)]
    programs: Programs,
    /// Keep what was stored in this folder
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Only these faults; `none` = only the runs without one [default: all]
    #[arg(value_name = "FAULT", value_parser = PossibleValuesParser::new(names()))]
    faults: Vec<String>,
}

fn names() -> Vec<&'static str> {
    Fault::ALL.iter().map(|fault| fault.name()).chain(["none"]).collect()
}

/// Runs them one after the other.
pub(crate) fn run(options: &Options) -> Result<()> {
    let steps = options.programs.ready()?;
    let wanted =
        |fault: Fault| options.faults.is_empty() || options.faults.iter().any(|name| name == fault.name());
    let (mut right, mut faults, mut alarms) = (0, 0, 0);
    for (number, fault) in (0..).zip(Fault::ALL).filter(|(_, fault)| wanted(*fault)) {
        steps.interrupt().check()?;
        let outcome = one(Drill::with(fault, options.seed + number), fault.name(), options)?;
        faults += 1;
        right += usize::from(outcome.is_right());
    }
    for number in 0..options.quiet {
        steps.interrupt().check()?;
        let outcome = one(Drill::without(options.seed + number), "none", options)?;
        alarms += u64::from(!outcome.is_right());
    }
    say(&format!(
        "{right} of {faults} causes named first; {alarms} false alarms in {} runs without a fault",
        options.quiet
    ));
    ensure!(faults - right <= WRONG_MAX && alarms == 0, "see above");
    Ok(())
}

fn one(drill: Drill, name: &str, options: &Options) -> Result<Outcome> {
    let folder = tempfile::Builder::new().prefix("dprof-drill-").tempdir().context("create a folder")?;
    let outcome = run_drill(drill, folder.path())
        .with_context(|| format!("drill {name} on {:?}, seed {}", drill.system, drill.seed))?;
    let mark = if outcome.is_right() { "right" } else { "WRONG" };
    say(&format!(
        "{name:<16} {:?} seed {}: {mark}\n  done:  {}\n  named: {}",
        drill.system,
        drill.seed,
        outcome.done,
        outcome.first()
    ));
    if !outcome.is_right() {
        say(&outcome.text.lines().map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n"));
    }
    if let Some(keep) = &options.keep {
        let to = keep.join(format!("{name}-{}", drill.seed));
        std::fs::create_dir_all(keep).with_context(|| format!("create {}", keep.display()))?;
        std::fs::rename(folder.keep(), &to).with_context(|| format!("keep {}", to.display()))?;
    }
    Ok(outcome)
}
