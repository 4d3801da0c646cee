//! `cargo xtask bench store`: traces of 1, 2 and 10 RPCs into SQLite, one warm Cassandra node and a ring of three;
//! rates, CPU, rows, bytes on disk after compaction, and how long the usual questions take.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use dprof_tests::cassandra::{Options, Ring};

use super::zipkin;
use crate::cassandra;
use crate::paths;
use crate::step::{Steps, say};

/// RPCs written first, for the node's virtual machine to get warm.
const WARM_RPCS: u64 = 50_000;
/// Heap of a node that is measured, MB.
const HEAP_MB: u32 = 2048;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// RPCs written for each kind of trace
    #[arg(long, default_value_t = 100_000)]
    rpcs: u64,
    /// RPCs per trace, of each kind of trace
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 10])]
    per_trace: Vec<u32>,
    /// Nodes of the ring
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=3))]
    nodes: u8,
    /// Leave the embedded store out
    #[arg(long)]
    no_sqlite: bool,
    /// RPCs sent to Zipkin's server, on a node of its own; 0 = none
    #[arg(long, default_value_t = 20_000)]
    zipkin_rpcs: u64,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let steps = Steps::new()?;
    let mut build = Command::new("cargo");
    build.current_dir(paths::root());
    build.args([
        "build",
        "--release",
        "-p",
        "dprof-store",
        "-p",
        "dprof-cli",
        "--example",
        "store_bench",
        "--bin",
        "dprof-cli",
    ]);
    build.args(["--features", "dprof-store/bench"]);
    steps.run("measuring program, optimised", &mut build)?;
    if !args.no_sqlite {
        for per_trace in &args.per_trace {
            let folder = tempfile::tempdir().context("create a folder")?;
            let store = folder.path().join("store");
            measure(&format!("sqlite:{}", store.display()), *per_trace, args.rpcs)?;
            say_bytes("sqlite", folder_bytes(&store), args.rpcs);
        }
    }
    for per_trace in &args.per_trace {
        // A ring of its own each time: what one leaves to compact is not the next one's.
        let options = Options { heap_mb: HEAP_MB, warm: true, ..Options::new(args.nodes) };
        let ring = cassandra::start(&steps, options)?;
        let measured = on_ring(&ring, *per_trace, args.rpcs);
        ring.stop()?;
        measured?;
        steps.interrupt().check()?;
    }
    if args.zipkin_rpcs > 0 {
        let options = Options { heap_mb: HEAP_MB, warm: true, sasi: true, ..Options::new(1) };
        let ring = cassandra::start(&steps, options)?;
        let measured = zipkin::measure(&steps, &ring, args.zipkin_rpcs);
        ring.stop()?;
        measured?;
    }
    Ok(())
}

fn on_ring(ring: &Ring, per_trace: u32, rpcs: u64) -> Result<()> {
    let store = |name: &str| format!("cassandra://{}/{name}", ring.hosts());
    let init = |name: &str| -> Result<()> {
        let cli = paths::root().join("target/release/dprof-cli");
        let status = Command::new(cli).args(["--store", &store(name), "store", "init"]).status();
        ensure!(status.context("start dprof-cli")?.success(), "store init failed");
        Ok(())
    };
    init("warm")?;
    measure(&store("warm"), per_trace, WARM_RPCS)?;
    init("dprof")?;
    measure(&store("dprof"), per_trace, rpcs)?;
    let mut bytes = 0;
    for node in 1..=ring.options.n_nodes {
        ring.nodetool(node, &["flush", "dprof"])?;
        ring.nodetool(node, &["compact", "dprof"])?;
        let data = ring.node_folder(node).join("data/dprof");
        bytes += folder_bytes(&data);
        for entry in fs::read_dir(&data)?.flatten().filter(|_| node == 1) {
            let table = entry.file_name().to_string_lossy().split('-').next().unwrap_or_default().to_owned();
            say(&format!("  {table:<24} {:>12} bytes", folder_bytes(&entry.path())));
        }
    }
    let replicas = u64::from(ring.options.n_nodes);
    say_bytes("Cassandra, per replica, after compaction", bytes / replicas, rpcs);
    Ok(())
}

fn say_bytes(what: &str, bytes: u64, rpcs: u64) {
    say(&format!("{what}: {:.1} MB = {:.0} bytes/RPC", bytes as f64 / 1e6, bytes as f64 / rpcs as f64));
}

fn measure(store: &str, per_trace: u32, rpcs: u64) -> Result<()> {
    say(&format!("\n{store}, traces of {per_trace}"));
    let program = paths::root().join("target/release/examples/store_bench");
    let status = Command::new(program).args([store, &per_trace.to_string(), &rpcs.to_string()]).status();
    ensure!(status.context("start the measurement")?.success(), "the measurement failed");
    Ok(())
}

/// Bytes of all files below.
pub(crate) fn folder_bytes(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => folder_bytes(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}
