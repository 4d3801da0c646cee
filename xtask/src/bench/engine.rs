//! `cargo xtask bench engine`: events per second on one core, and instructions per event by stage.
//!
//! What a reader would get wrong: times come from the release build and say what this machine does today;
//! instruction counts come from callgrind and say what the code does. CI (`--check`) looks at counts only, of the
//! build that it tests anyway.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use dprof_tests::agent::binary;
use serde_json::{Value, json};

use super::callgrind::{self, Stage};
use super::{machine, print, write_json};
use crate::paths;
use crate::setup::{self, Need};
use crate::step::Steps;

/// What to measure, and where results go.
#[derive(Args)]
pub(crate) struct Options {
    /// Also measure this recording (made by dprof-agent --record); may be repeated
    #[arg(long, value_name = "FILE")]
    recording: Vec<PathBuf>,
    /// Fewer rounds and shorter streams: a minute
    #[arg(long)]
    quick: bool,
    /// Count instructions of the development build only, and fail where one is above its limit
    #[arg(long)]
    check: bool,
    /// Write the results as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The stages, named by the functions at their doors. All of these are kept out of line for that.
const STAGES: [Stage; 8] = [
    Stage { name: "decode", functions: &["decode::decode"] },
    Stage {
        name: "protocol",
        functions: &["as dprof_agent::protocol::Parser>::", "protocol::detect::detect"],
    },
    Stage { name: "link", functions: &["as dprof_agent::link::Evidence>::"] },
    Stage { name: "rollup", functions: &["rollup::Rollups::"] },
    Stage { name: "window", functions: &["window::Window::"] },
    Stage { name: "span", functions: &["dprof_agent::engine::messages::", "dprof_agent::span::"] },
    Stage { name: "give out", functions: &["give_out"] },
    Stage { name: "stream", functions: &["dprof_agent::engine::", "dprof_agent::stream::"] },
];

/// A workload and the most instructions per event that it may take in the development build: a quarter above what
/// was measured when the limit was set, since other versions of the compiler and of the C library differ by less.
struct Workload {
    name: &'static str,
    instructions_max: f64,
}

// Raised by 8 to 9 percent of what was counted when five kinds of link evidence, hot keys and value sizes came in.
const WORKLOADS: [Workload; 4] = [
    Workload { name: "redis", instructions_max: 7_700.0 },
    Workload { name: "redis_pipelined", instructions_max: 97_000.0 },
    Workload { name: "http", instructions_max: 14_700.0 },
    Workload { name: "http_redis", instructions_max: 10_300.0 },
];

/// Rounds of a timed run.
const ROUNDS: usize = 31;
const ROUNDS_QUICK: usize = 9;
/// Turns over all connections when instructions are counted: valgrind is fifty times slower, and counts do not
/// scatter.
const TURNS_COUNTED: usize = 100;

/// Measures, prints, and writes.
pub(crate) fn run(options: &Options) -> Result<()> {
    let steps = Steps::new()?;
    setup::ensure(&steps, Need::BENCH_ENGINE)?;
    if options.check {
        return check(&steps);
    }
    let mut build = Command::new("cargo");
    build.current_dir(paths::root()).args(["build", "--release", "-p", "dprof-agent", "--example", PROGRAM]);
    steps.run("engine_speed, release build", &mut build)?;
    let program = release_example();
    let rounds = if options.quick { ROUNDS_QUICK } else { ROUNDS };
    let mut results = Vec::new();
    let recordings = options.recording.iter().map(|path| path.display().to_string());
    for name in WORKLOADS.iter().map(|workload| workload.name.to_owned()).chain(recordings) {
        steps.interrupt().check()?;
        let timed = timed(&program, &name, rounds)?;
        results.push(json!({ "timed": timed, "counted": counted(&steps, &program, &name)? }));
    }
    table(&results);
    if let Some(path) = &options.json {
        write_json(path, "engine", &Value::Array(results))?;
    }
    Ok(())
}

/// What CI runs: instruction counts of the development build against their limits.
pub(crate) fn check(steps: &Steps) -> Result<()> {
    let mut build = Command::new("cargo");
    build.current_dir(paths::root()).args(["build", "-p", "dprof-agent", "--example", PROGRAM]);
    steps.run("engine_speed", &mut build)?;
    let program = binary("examples").join(PROGRAM);
    let mut over = Vec::new();
    for workload in &WORKLOADS {
        let counted = counted(steps, &program, workload.name)?;
        let per_event = counted["instructions_per_event"].as_f64().context("a number")?;
        print(&format!(
            "{:<16} {per_event:>8.0} instructions per event, at most {:.0}",
            workload.name, workload.instructions_max
        ));
        if per_event > workload.instructions_max {
            over.push(workload.name);
        }
    }
    ensure!(
        over.is_empty(),
        "the engine takes more instructions per event than its limit on {}: see cargo xtask bench engine, and \
         raise the limit in xtask/src/bench/engine.rs only with a reason",
        over.join(", ")
    );
    Ok(())
}

const PROGRAM: &str = "engine_speed";

fn release_example() -> PathBuf {
    // Beside `debug/`, where xtask runs from.
    let debug = binary("");
    debug.parent().unwrap_or(Path::new("target")).join("release/examples").join(PROGRAM)
}

fn timed(program: &Path, name: &str, rounds: usize) -> Result<Value> {
    let mut command = Command::new(program);
    command.args([name, &rounds.to_string()]);
    result(&mut command)
}

fn counted(steps: &Steps, program: &Path, name: &str) -> Result<Value> {
    let folder = tempfile::Builder::new().prefix("dprof-bench-").tempdir().context("create a folder")?;
    let profile = folder.path().join("callgrind");
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--quiet", "--toggle-collect=*engine_round*", "--dump-line=no"])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(program)
        .args([name, "1", &TURNS_COUNTED.to_string()]);
    steps.interrupt().check()?;
    let counted = result(&mut command)?;
    let events = counted["events"].as_f64().context("engine_speed gives no events")?;
    let sums = callgrind::by_stage(&profile, &STAGES)?;
    let stages: serde_json::Map<String, Value> = STAGES
        .iter()
        .map(|stage| stage.name)
        .chain(["rest"])
        .zip(&sums)
        .map(|(name, sum)| (name.to_owned(), json!(sum / events)))
        .collect();
    let messages = counted["messages"].as_f64().unwrap_or(0.0);
    let total: f64 = sums.iter().sum();
    Ok(json!({
        "instructions_per_event": total / events,
        "instructions_per_message": total / messages,
        "parser_instructions_per_message": stages["protocol"].as_f64().unwrap_or(0.0) * events / messages,
        "stages": stages,
    }))
}

/// Runs `engine_speed`; its one line.
fn result(command: &mut Command) -> Result<Value> {
    let output = command.output().with_context(|| format!("start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("engine_speed: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("read what engine_speed says")
}

fn table(results: &[Value]) {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    print(&machine::line_of());
    print("\nworkload             events/s best   median    ns/event  ns/message  allocations/event");
    for result in results {
        let timed = &result["timed"];
        print(&format!(
            "{:<20} {:>13.0} {:>8.0}  {:>10.0}  {:>10.0}  {:>17.2}",
            short(timed),
            number(&timed["best_events_per_s"]),
            number(&timed["median_events_per_s"]),
            number(&timed["best_ns_per_event"]),
            number(&timed["best_ns_per_message"]),
            number(&timed["allocations_per_event"]),
        ));
    }
    let heads: Vec<String> =
        STAGES.iter().map(|stage| stage.name).chain(["rest"]).map(|name| format!("{name:>9}")).collect();
    print(&format!("\ninstructions/event      all {}  parser/message", heads.join(" ")));
    for result in results {
        let counted = &result["counted"];
        let stages: Vec<String> = STAGES
            .iter()
            .map(|stage| stage.name)
            .chain(["rest"])
            .map(|name| format!("{:>9.0}", number(&counted["stages"][name])))
            .collect();
        print(&format!(
            "{:<20} {:>6.0} {}  {:>14.0}",
            short(&result["timed"]),
            number(&counted["instructions_per_event"]),
            stages.join(" "),
            number(&counted["parser_instructions_per_message"]),
        ));
    }
}

/// A workload's name, or the last part of a recording's path.
fn short(timed: &Value) -> String {
    let name = timed["workload"].as_str().unwrap_or("?");
    Path::new(name).file_name().map_or_else(|| name.to_owned(), |name| name.to_string_lossy().into_owned())
}
