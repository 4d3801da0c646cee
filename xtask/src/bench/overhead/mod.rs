//! `cargo xtask bench overhead`: what an attached agent costs the programs that it watches.
//!
//! Two measurements. *Kernel*: nanoseconds per run of each kernel program by bpf_stats, beside an empty program and one
//! bare ring write on the same calls in the same run; only the ratios mean something on another machine. *Pairs*: the
//! same bounded load without and with an agent, interleaved; CPU time of the server per request, throughput and
//! latency, as medians of the pairs' ratios with 95 % intervals.
//! What a reader would get wrong: on a machine with few cores the agent, the load and the server share them, so
//! throughput and latency also show the agent's own CPU time; the server's CPU time per request does not.

mod kernel;
mod load;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use dprof_tests::agent::Agent;
use dprof_tests::program::cpu_ns;
use dprof_tests::subject::Subject;
use serde_json::{Value, json};

use self::kernel::{Counter, Runs, between, per_run};
use self::load::{Came, Load};
use super::statistics::{Median, median};
use super::{machine, print, write_json};
use crate::setup::{self, Need};
use crate::step::Steps;
use crate::{build_ebpf, paths};

/// What to measure, and where results go.
#[derive(Args)]
pub(crate) struct Options {
    /// Few pairs, two loads, two ways to capture: some minutes
    #[arg(long)]
    quick: bool,
    /// Only the kernel programs' cost
    #[arg(long)]
    kernel: bool,
    /// Pairs of each load and way to capture [default: 15, with --quick 6]
    #[arg(long, value_name = "N")]
    pairs: Option<usize>,
    /// Requests in each run
    #[arg(long, value_name = "N", default_value_t = 30_000)]
    requests: usize,
    /// Back end to force, as in dprof-agent --backend
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Write the results as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A way to capture, and the agent's options for it besides the port.
struct Mode {
    name: &'static str,
    options: &'static [&'static str],
    /// The agent watches another port than the load's.
    elsewhere: bool,
}

const fn duty(name: &'static str, options: &'static [&'static str]) -> Mode {
    Mode { name, options, elsewhere: false }
}

const MODES: [Mode; 7] = [
    duty("100 %", &[]),
    duty("10 %", &["--duty-cycle", "10%", "--window", "100ms", "--alone"]),
    duty("1/16", &["--duty-cycle", "1/16", "--window", "100ms", "--alone"]),
    duty("1 %", &["--duty-cycle", "1%", "--window", "20ms", "--alone"]),
    duty("0.1 %", &["--duty-cycle", "0.1%", "--window", "20ms", "--alone"]),
    // A window every half hour: the programs are attached and return at once.
    duty("closed", &["--duty-cycle", "0.00001", "--window", "20ms", "--alone"]),
    Mode { name: "idle", options: &[], elsewhere: true },
];

const fn redis(pipeline: usize, connections: usize) -> Load {
    Load::Redis { pipeline, connections }
}

const LOADS: [Load; 8] = [
    redis(1, 50),
    redis(1, 1),
    redis(1, 500),
    redis(16, 1),
    redis(16, 50),
    redis(16, 500),
    Load::Memcached { connections: 16 },
    Load::Http { connections: 50 },
];

const PAIRS: usize = 15;
/// The fewest that have a 95 % interval.
const PAIRS_QUICK: usize = 6;
/// A port that no load uses.
const ELSEWHERE: &str = "9";

/// Measures, prints, and writes.
pub(crate) fn run(options: &Options) -> Result<()> {
    let steps = Steps::new()?;
    if !setup::is_root() {
        bail!("measuring overhead loads kernel programs: run this command as root");
    }
    setup::ensure(&steps, Need::BENCH_OVERHEAD)?;
    build_ebpf::build(&steps)?;
    let mut build = Command::new("cargo");
    build.current_dir(paths::root()).args([
        "build",
        "-p",
        "dprof-agent",
        "--bins",
        "--example",
        "kernel_cost",
    ]);
    steps.run("agent, kernel_cost", &mut build)?;
    print(&machine::line_of());
    let loads: &[Load] = if options.quick { &[LOADS[0], LOADS[7]] } else { &LOADS };
    let kernel = kernel_costs(&steps, options, loads)?;
    let pairs = if options.kernel { Value::Null } else { all_pairs(&steps, options, loads)? };
    if let Some(path) = &options.json {
        write_json(path, "overhead", &json!({ "kernel": kernel, "pairs": pairs }))?;
    }
    Ok(())
}

fn folder() -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("dprof-bench-").tempdir().context("create a folder")
}

/// An agent on `port` in `mode`, with a store as it has by default.
fn agent(folder: &Path, port: u16, mode: &Mode, options: &Options) -> Result<Agent> {
    let port = if mode.elsewhere { ELSEWHERE.to_owned() } else { port.to_string() };
    let mut arguments = vec!["--port", &port];
    arguments.extend(mode.options);
    if let Some(backend) = &options.backend {
        arguments.extend(["--backend", backend.as_str()]);
    }
    Agent::start(folder, &arguments)
}

fn kernel_costs(steps: &Steps, options: &Options, loads: &[Load]) -> Result<Value> {
    print(
        "\nkernel programs, ns per run by bpf_stats; ×: multiples of the bare 176-byte ring write of the same run",
    );
    print(
        "load                  mode      empty   bare  send (×)      recv (×)      both (×)      with all others per event (×)",
    );
    let mut results = Vec::new();
    for load in loads {
        let mut traced = f64::NAN;
        for mode in [&MODES[0], &MODES[5]] {
            steps.interrupt().check()?;
            let folder = folder()?;
            let subject = load.subject(folder.path())?;
            let agent = agent(folder.path(), subject.port, mode, options)?;
            let pid = agent.program.pid();
            let mut counter = Counter::start()?;
            load.run(folder.path(), &subject, options.requests / 4)?;
            let before = counter.runs(pid)?;
            load.run(folder.path(), &subject, options.requests)?;
            let runs = between(&before, &counter.runs(pid)?);
            drop(counter);
            agent.stop()?;
            let (all, line) = kernel_line(*load, mode, &runs);
            print(&line);
            let empty = per_run(&runs, "floor_empty");
            if mode.name == "closed" {
                print(&format!(
                    "    outside the window: (cost - empty) is {:.3} of (traced - empty)",
                    (all.both - empty) / (traced - empty)
                ));
            } else {
                traced = all.both;
            }
            results.push(json!({
                "load": load.name(), "mode": mode.name, "runs": runs,
                "empty_ns": empty, "bare_ns": all.bare, "data_event_ns": all.both, "per_event_ns": all.per_event,
            }));
        }
    }
    Ok(Value::Array(results))
}

/// Costs of the programs on data.
struct Costs {
    bare: f64,
    both: f64,
    per_event: f64,
}

/// Programs that run once per call that moved data: their runs are the events.
fn is_data(name: &str) -> bool {
    ["on_send", "on_recv", "send_exit", "recv_exit"].contains(&name)
}

fn kernel_line(load: Load, mode: &Mode, runs: &Runs) -> (Costs, String) {
    let own = || runs.iter().filter(|(name, _)| !name.starts_with("floor_"));
    let sum = |data: bool| {
        own()
            .filter(|(name, _)| !data || is_data(name))
            .fold((0, 0), |sum, (_, (count, ns))| (sum.0 + count, sum.1 + ns))
    };
    let (events, data_ns) = sum(true);
    let (_, all_ns) = sum(false);
    let bare = per_run(runs, "floor_write");
    let costs =
        Costs { bare, both: data_ns as f64 / events as f64, per_event: all_ns as f64 / events as f64 };
    let shown = |ns: f64| format!("{ns:>5.0} ({:>4.2})", ns / bare);
    let others: Vec<String> = own()
        .filter(|(name, _)| !is_data(name))
        .map(|(name, (count, ns))| {
            format!("{name} {:.0} ns × {:.2}", *ns as f64 / *count as f64, *count as f64 / events as f64)
        })
        .collect();
    let line = format!(
        "{:<21} {:<8} {:>6.0} {bare:>6.0}  {}  {}  {}  {}  {}",
        load.name(),
        mode.name,
        per_run(runs, "floor_empty"),
        shown(per_run(runs, "on_send")),
        shown(per_run(runs, "on_recv")),
        shown(costs.both),
        shown(costs.per_event),
        others.join(", ")
    );
    (costs, line)
}

/// One run of a load: what came, and CPU time.
struct Run {
    came: Came,
    server_ns_per_request: f64,
    agent_ns_per_request: f64,
    agent_bytes: u64,
}

fn all_pairs(steps: &Steps, options: &Options, loads: &[Load]) -> Result<Value> {
    let n_pairs = options.pairs.unwrap_or(if options.quick { PAIRS_QUICK } else { PAIRS });
    let modes: Vec<&Mode> = if options.quick { vec![&MODES[0], &MODES[2]] } else { MODES.iter().collect() };
    print(&format!(
        "\n{n_pairs} pairs without and with an agent: change of the median [95 %] in %; agent's CPU and memory"
    ));
    print(
        "load                  mode     server CPU/request     throughput             p50      p99      p99.9    agent ns/request  Pss",
    );
    let mut results = Vec::new();
    for load in loads {
        for mode in &modes {
            let folder = folder()?;
            let subject = load.subject(folder.path())?;
            load.run(folder.path(), &subject, options.requests / 4)?;
            let mut pairs = Vec::new();
            for n in 0..n_pairs {
                steps.interrupt().check()?;
                let with = |pairs: &mut Vec<Run>| -> Result<()> {
                    let place = folder.path().join(format!("agent-{n}"));
                    fs::create_dir_all(&place)?;
                    let agent = agent(&place, subject.port, mode, options)?;
                    pairs.push(one(*load, folder.path(), &subject, Some(&agent), options.requests)?);
                    agent.stop()?;
                    fs::remove_dir_all(&place).context("remove a store")
                };
                let mut runs = Vec::new();
                // The order alternates: what drifts hits both alike.
                if n % 2 == 0 {
                    runs.push(one(*load, folder.path(), &subject, None, options.requests)?);
                    with(&mut runs)?;
                } else {
                    with(&mut runs)?;
                    runs.insert(0, one(*load, folder.path(), &subject, None, options.requests)?);
                }
                pairs.push(runs);
            }
            results.push(pairs_line(*load, mode, &pairs));
        }
    }
    Ok(Value::Array(results))
}

fn pairs_line(load: Load, mode: &Mode, pairs: &[Vec<Run>]) -> Value {
    let change = |value: fn(&Run) -> f64| {
        let ratios: Vec<f64> =
            pairs.iter().map(|pair| (value(&pair[1]) / value(&pair[0]) - 1.0) * 100.0).collect();
        median(&ratios)
    };
    let with =
        |value: fn(&Run) -> f64| median(&pairs.iter().map(|pair| value(&pair[1])).collect::<Vec<_>>()).median;
    let server = change(|run| run.server_ns_per_request);
    let throughput = change(|run| run.came.per_s);
    let (p50, p99, p999) =
        (change(|run| run.came.p50_us), change(|run| run.came.p99_us), change(|run| run.came.p999_us));
    let (agent_ns, bytes) = (with(|run| run.agent_ns_per_request), with(|run| run.agent_bytes as f64));
    let whole = |m: Median| format!("{:>+6.1} [{:>+5.1}, {:>+5.1}]", m.median, m.low, m.high);
    print(&format!(
        "{:<21} {:<8} {}  {}  {:>+7.1}  {:>+7.1}  {:>+7.1}  {agent_ns:>16.0}  {:>4.1} MB",
        load.name(),
        mode.name,
        whole(server),
        whole(throughput),
        p50.median,
        p99.median,
        p999.median,
        bytes / 1e6
    ));
    let interval = |m: Median| json!({ "low": m.low, "median": m.median, "high": m.high });
    json!({
        "load": load.name(), "mode": mode.name, "pairs": pairs.len(),
        "server_cpu_per_request_percent": interval(server), "throughput_percent": interval(throughput),
        "p50_percent": interval(p50), "p99_percent": interval(p99), "p999_percent": interval(p999),
        "agent_ns_per_request": agent_ns, "agent_pss_bytes": bytes,
    })
}

fn one(load: Load, folder: &Path, subject: &Subject, agent: Option<&Agent>, requests: usize) -> Result<Run> {
    let server = subject.program.pid();
    let pids: Vec<u32> = family(server);
    let cpu = |pids: &[u32]| pids.iter().map(|pid| cpu_ns(*pid)).sum::<u64>();
    let agent_pid = agent.map(|agent| agent.program.pid());
    let agent_cpu = || agent_pid.map_or(0, cpu_ns);
    let (server_before, agent_before) = (cpu(&pids), agent_cpu());
    let came = load.run(folder, subject, requests)?;
    Ok(Run {
        came,
        server_ns_per_request: (cpu(&pids) - server_before) as f64 / came.requests,
        agent_ns_per_request: (agent_cpu() - agent_before) as f64 / came.requests,
        agent_bytes: agent_pid.map_or(0, pss_bytes),
    })
}

/// A process and its children: nginx works in one.
fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

/// Proportional set size, bytes.
fn pss_bytes(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().split(' ').next()?.parse().ok());
    kib.map_or(0, |kib: u64| kib * 1024)
}
