//! `dprof-cli` as a user calls it.

use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::agent::binary;

/// What a command prints with `--format json`: rows.
pub fn json(store: &str, arguments: &[&str]) -> Result<Vec<Value>> {
    let output = run(store, &[arguments, &["--format", "json"]].concat())?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("dprof-cli {}: {}: {stderr}", arguments.join(" "), output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).with_context(|| format!("dprof-cli {}: {text}", arguments.join(" ")))
}

/// What a command prints for people.
pub fn text(store: &str, arguments: &[&str]) -> Result<String> {
    let output = run(store, arguments)?;
    if !output.status.success() {
        bail!("dprof-cli {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Every RPC of a store.
pub fn spans(store: &str) -> Result<Vec<Value>> {
    let lines = text(store, &["export", "--since", "all", "--format", "ndjson", "--out", "-"])?;
    lines.lines().map(|line| serde_json::from_str(line).with_context(|| format!("an RPC: {line}"))).collect()
}

/// Runs a command to its end.
pub fn run(store: &str, arguments: &[&str]) -> Result<Output> {
    command(store, arguments).output().context("start dprof-cli")
}

/// A command on a store, not yet started.
pub fn command(store: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("dprof-cli"));
    command.args(arguments).env("DPROF_STORE", store);
    command
}

/// `count` of `stats` for one kind and operation; 0 if there is no such row.
pub fn count(store: &str, kind: &str, operation: &str) -> Result<u64> {
    let rows = json(store, &["stats", "--since", "all", "--kind", kind, "--operation", operation])?;
    Ok(rows.iter().filter_map(|row| row["count"].as_u64()).sum())
}
