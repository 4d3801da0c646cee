//! `cargo xtask bench`: what dprof costs, by commands that anyone can repeat. Tables for people on standard output,
//! JSON for programs with `--json`.

mod callgrind;
pub(crate) mod engine;
mod machine;
mod overhead;
mod statistics;
pub(crate) mod store;
pub(crate) mod zipkin;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use serde_json::{Value, json};

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// The engine on one core, from the bytes of events to linked spans: time, and instructions by stage
    Engine(engine::Options),
    /// What an attached agent costs: kernel programs, the watched server's CPU, throughput, latency
    Overhead(overhead::Options),
    /// Both stores: rates, bytes, questions
    Store(store::Args),
}

/// Measures.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    match bench {
        Bench::Engine(options) => engine::run(options),
        Bench::Overhead(options) => overhead::run(options),
        Bench::Store(args) => store::run(args),
    }
}

/// Writes results with the machine and the commit that they belong to.
fn write_json(path: &Path, name: &str, results: &Value) -> Result<()> {
    let document = json!({ "benchmark": name, "machine": machine::describe(), "results": results });
    let text = serde_json::to_string_pretty(&document)?;
    fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
}

/// A line of a table, or a heading of one.
#[expect(clippy::print_stdout, reason = "results go to standard output")]
fn print(line: &str) {
    println!("{line}");
}
