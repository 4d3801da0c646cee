//! `cargo xtask accuracy`: real systems under load, their links scored against the truth; a table on standard output,
//! JSON in `target/accuracy.json`.
//!
//! What a reader would get wrong: the measuring itself is a test (`tests/tiers/accuracy`), so that CI judges by the
//! same code. This command chooses what is measured, and shows the table.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use clap::builder::PossibleValuesParser;
use dprof_tests::topology::ALL;

use crate::setup::Need;
use crate::step::{Steps, say};
use crate::{build, paths};

/// Runs real systems under load and scores dprof's links against the truth.
///
/// Exits with an error when a bound is broken. Needs root.
#[derive(Debug, clap::Args)]
pub(crate) struct Accuracy {
    /// Every system, at 1, 10, 100 and 300 requests in flight; else three at 10 and 100
    #[arg(long)]
    full: bool,
    /// Where the scores go as JSON [default: target/accuracy.json]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only these systems
    #[arg(value_name = "TOPOLOGY", value_parser = PossibleValuesParser::new(ALL.map(|topology| topology.name)))]
    topologies: Vec<String>,
}

/// Builds, measures, shows.
pub(crate) fn run(accuracy: &Accuracy) -> Result<()> {
    let steps = Steps::new()?;
    build::everything(&steps, Need::TEST)?;
    let json = match &accuracy.json {
        // The test runs in another folder.
        Some(path) => env::current_dir().context("this folder")?.join(path),
        None => paths::root().join("target/accuracy.json"),
    };
    let mut plan = accuracy.topologies.clone();
    if accuracy.full {
        plan.push("full".to_owned());
    }
    let status = Command::new("cargo")
        .current_dir(paths::root())
        .args(["test", "-q", "--workspace", "--test", "tiers", "--", "--test-threads=1", "--nocapture"])
        .args(["--exact", "accuracy::links_keep_their_bounds"])
        .env("DPROF_TEST_ACCURACY", "1")
        .env("DPROF_ACCURACY_PLAN", plan.join(" "))
        .env("DPROF_ACCURACY_JSON", &json)
        .env("RUST_BACKTRACE", "0")
        .status()
        .context("start cargo test")?;
    ensure!(status.success(), "a bound is broken, or a measurement failed: see above");
    say(&format!("scores as JSON: {}", json.display()));
    Ok(())
}
