//! `cargo xtask experiment`: the experiments of *Dprof - Distributed System Profiling and Tracing* on real programs
//! (docs/experiments.md).

mod figure;
mod prevalence;
mod replication;
mod sampling;
mod window;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use tempfile::TempDir;

/// The ratios of the paper.
const RATIOS: [&str; 5] = ["1", "0.1", "1/16", "0.01", "0.001"];

/// Which experiment.
#[derive(Debug, Subcommand)]
pub(crate) enum Experiment {
    /// Delay one link between datacenters of a ring, and see which link the traces blame
    Replication(replication::Options),
    /// Watch at several keep ratios or duty cycles: cost, traces kept, estimates beside the truth
    Sampling(sampling::Options),
    /// Slow a share of requests, and see how long the slowest list takes to show it at several keep ratios
    Prevalence(prevalence::Options),
}

/// Runs it.
pub(crate) fn run(experiment: &Experiment) -> Result<()> {
    match experiment {
        Experiment::Replication(options) => replication::run(options),
        Experiment::Sampling(options) => sampling::run(options),
        Experiment::Prevalence(options) => prevalence::run(options),
    }
}

/// A folder for one run.
fn folder() -> Result<TempDir> {
    tempfile::Builder::new().prefix("dprof-experiment-").tempdir().context("create a folder")
}

/// What the experiment is about, on standard output.
#[expect(clippy::print_stdout, reason = "results are data")]
fn print(text: &str) {
    println!("{text}");
}
