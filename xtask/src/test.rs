//! `cargo xtask test`: every tier of the tests, each within its budget, none left out.
//!
//! What cargo prints goes through unchanged; the table of tiers comes after it, on standard error.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{io, thread};

use anyhow::{Context as _, Result, bail};

use dprof_tests::cassandra::{VERSION, VERSION_OLD};
use dprof_tests::clock;

use crate::cassandra::RunningRing;
use crate::interrupt::Interrupt;
use crate::setup::Need;
use crate::step::{Steps, say};
use crate::{bench, build, cassandra, check, paths, vm};

/// A part of the tests with a budget: the whole must stay within the half hour of a CI machine.
struct Tier {
    name: &'static str,
    budget: Duration,
    /// Arguments after `cargo test --workspace`.
    arguments: &'static [&'static str],
    /// Variable that turns it on in the binary `tiers`.
    variable: Option<&'static str>,
    /// The Cassandra ring that it needs: the variable then has its contact points.
    ring: Ring,
}

/// A Cassandra ring that a tier needs.
enum Ring {
    None,
    /// Three nodes.
    Three,
    /// One of the oldest version that is supported.
    Old,
    /// One that asks for a password and a certificate.
    Secure,
}

/// Asks tests for their long forms.
const FULL: &str = "DPROF_TEST_FULL";

const MINUTE: Duration = Duration::from_mins(1);

/// Downloads, bpf-linker and everything else on two cores; some seconds when nothing changed.
const BUILD_BUDGET: Duration = MINUTE.saturating_mul(17);

/// Formatting, clippy, documentation: everything is checked once more than it was compiled, dependencies too.
const CHECK_BUDGET: Duration = MINUTE.saturating_mul(6);

const TIERS: &[Tier] = &[
    // No kernel, no network but loopback: the engine, the store and the reader on data.
    Tier { name: "pure", budget: MINUTE.saturating_mul(3), arguments: &[], variable: None, ring: Ring::None },
    // Real programs under the agent on this kernel; one at a time, since each counts all that it sees.
    Tier {
        name: "live",
        budget: MINUTE.saturating_mul(7),
        arguments: &["--test", "tiers", "--", "--test-threads=1", "live::"],
        variable: Some("DPROF_TEST_LIVE"),
        ring: Ring::None,
    },
    // Links of three real systems scored against the truth, at 10 and 100 requests in flight.
    Tier {
        name: "accuracy",
        budget: MINUTE.saturating_mul(3),
        arguments: &["--test", "tiers", "--", "--test-threads=1", "accuracy::"],
        variable: Some("DPROF_TEST_ACCURACY"),
        ring: Ring::None,
    },
    // The store's conformance suite, many writers of one configuration, faults and the spool on one ring of three,
    // which some tests stop: 5 min on two idle cores, of which a keyspace takes 4 to 8 s each time, and nodes that are
    // killed a minute until they are back.
    Tier {
        name: "cassandra",
        budget: MINUTE.saturating_mul(10),
        arguments: &["--lib", "--test", "tiers", "--", "--test-threads=1", "cassandra::"],
        variable: Some("DPROF_TEST_CASSANDRA"),
        ring: Ring::Three,
    },
    // The conformance suite once more on the oldest version.
    Tier {
        name: "cassandra, old",
        budget: MINUTE.saturating_mul(3),
        arguments: &["--lib", "--", "--test-threads=1", "cassandra::tests::"],
        variable: Some("DPROF_TEST_CASSANDRA"),
        ring: Ring::Old,
    },
    // The same agent and command line where a password and certificates are asked for.
    Tier {
        name: "cassandra, secure",
        budget: MINUTE.saturating_mul(3),
        arguments: &["--test", "tiers", "--", "--test-threads=1", "cassandra::secure::"],
        variable: Some("DPROF_TEST_CASSANDRA_SECURE"),
        ring: Ring::Secure,
    },
    // What we export, through Zipkin's own server and back.
    Tier {
        name: "zipkin",
        budget: MINUTE.saturating_mul(3),
        arguments: &["--test", "tiers", "--", "zipkin::"],
        variable: Some("DPROF_TEST_ZIPKIN"),
        ring: Ring::None,
    },
];

/// Instructions of the engine, counted on some thousand events per workload: callgrind takes some seconds, a release
/// build of its own 150 s in a fresh clone.
const COST_BUDGET: Duration = MINUTE.saturating_mul(5);

/// Debian's kernels in emulated machines, two at a time: 2 min, and in a fresh clone as much for the tests that are
/// linked for them.
const KERNELS_BUDGET: Duration = MINUTE.saturating_mul(9);

/// How often the deadline and the signals are looked at while nothing is printed.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// One line of the closing table.
struct Row {
    name: &'static str,
    took: Duration,
    budget: Duration,
    passed: Option<u64>,
}

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The long forms of tests that have one: minutes without a store in place of seconds. Budgets are four times as long
    #[arg(long)]
    full: bool,
    /// Only the tiers whose names begin like this, after the build
    #[arg(long, value_name = "NAME")]
    tier: Option<String>,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.tier.as_ref().is_none_or(|tier| name.starts_with(tier.as_str()))
    }

    fn budget(&self, budget: Duration) -> Duration {
        if self.full { budget.saturating_mul(4) } else { budget }
    }
}

/// Runs every tier; the first that fails, overruns or runs nothing ends it.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut rows = Vec::new();
    let result = run_tiers(options, &mut rows);
    say("\ntier                   took      budget  tests");
    for row in &rows {
        let passed = row.passed.map_or_else(String::new, |passed| format!("{passed} passed"));
        let (took, budget) = (row.took.as_secs_f64(), row.budget.as_secs() / 60);
        say(&format!("{:<19}  {took:>6.1} s  {budget:>4} min  {passed}", row.name));
    }
    result
}

fn run_tiers(options: &Options, rows: &mut Vec<Row>) -> Result<()> {
    let started = clock::now();
    let steps = Steps::new()?;
    let kernels = build::everything_beside(&steps, Need::TEST, || {
        cassandra::fetch(&steps, VERSION)?;
        bench::zipkin::fetch(&steps)?;
        cassandra::fetch(&steps, VERSION_OLD)?;
        vm::fetch(&steps)
    })?;
    let took = started.elapsed();
    rows.push(Row { name: "set-up, build", took, budget: BUILD_BUDGET, passed: None });
    if took > BUILD_BUDGET {
        bail!("set-up and build took {} s, more than their budget", took.as_secs());
    }
    if options.wants("check") {
        let started = clock::now();
        check::look(&steps)?;
        rows.push(Row { name: "check", took: started.elapsed(), budget: CHECK_BUDGET, passed: None });
        if started.elapsed() > CHECK_BUDGET {
            bail!("the check took {} s, more than its budget", started.elapsed().as_secs());
        }
    }
    for tier in TIERS.iter().filter(|tier| options.wants(tier.name)) {
        let started = clock::now();
        let ring = match tier.ring {
            Ring::None => None,
            Ring::Three => Some(RunningRing::start(&steps)?),
            Ring::Old => Some(RunningRing::start_old(&steps)?),
            Ring::Secure => Some(RunningRing::start_secure(&steps)?),
        };
        let value = ring.as_ref().map_or_else(|| "1".to_owned(), RunningRing::hosts);
        let budget = options.budget(tier.budget);
        let passed = run_tier(tier, &value, options.full, started + budget, steps.interrupt())?;
        if let Some(ring) = ring {
            ring.stop()?;
        }
        rows.push(Row { name: tier.name, took: started.elapsed(), budget, passed: Some(passed) });
        if passed == 0 {
            bail!("tier {}: no test ran", tier.name);
        }
    }
    if options.wants("kernels") {
        let started = clock::now();
        let passed = vm::small(&steps, &kernels, KERNELS_BUDGET)?;
        let took = started.elapsed();
        rows.push(Row { name: "kernels", took, budget: KERNELS_BUDGET, passed: Some(passed) });
    }
    if options.wants("engine's cost") {
        let started = clock::now();
        bench::engine::check(&steps)?;
        let took = started.elapsed();
        rows.push(Row { name: "engine's cost", took, budget: COST_BUDGET, passed: None });
        if took > COST_BUDGET {
            bail!("counting the engine's instructions took {} s, more than its budget", took.as_secs());
        }
    }
    if rows.len() < 2 {
        bail!("there is no tier '{}'", options.tier.as_deref().unwrap_or_default());
    }
    Ok(())
}

/// Runs one tier until `deadline`; how many tests passed.
fn run_tier(
    tier: &Tier,
    value: &str,
    is_full: bool,
    deadline: Instant,
    interrupt: &Interrupt,
) -> Result<u64> {
    let mut command = Command::new("cargo");
    command.current_dir(paths::root()).args(["test", "--workspace"]).args(tier.arguments);
    if let Some(variable) = tier.variable {
        command.env(variable, value);
    }
    if is_full {
        command.env(FULL, "1");
    }
    // In a process group of its own, so that cargo and the test binary can be ended together.
    let mut child = command.process_group(0).stdout(Stdio::piped()).spawn().context("start cargo test")?;
    let passed = count_passed(tier, &mut child, deadline, interrupt);
    if passed.is_err() {
        // SAFETY: plain system call; the child is not yet waited for, so the group is its own.
        unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
    }
    let status = child.wait().context("wait for cargo test")?;
    let passed = passed?;
    if !status.success() {
        bail!("tier {}: cargo test ended with {status}", tier.name);
    }
    Ok(passed)
}

/// Passes the output on until it ends, and adds up the closing lines.
fn count_passed(tier: &Tier, child: &mut Child, deadline: Instant, interrupt: &Interrupt) -> Result<u64> {
    let stdout = child.stdout.take().context("output of cargo test")?;
    let (lines, received) = mpsc::channel();
    // It ends with the pipe; nobody needs to wait for it.
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let mut passed = 0;
    loop {
        match received.recv_timeout(LOOK_EVERY) {
            Ok(line) => {
                passed += passed_in(&line).unwrap_or(0);
                writeln!(io::stdout(), "{line}")?;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(passed),
            Err(RecvTimeoutError::Timeout) => {}
        }
        interrupt.check()?;
        if clock::now() > deadline {
            bail!("tier {}: not done within its budget of {} s", tier.name, tier.budget.as_secs());
        }
    }
}

/// `12` of `test result: ok. 12 passed; 0 failed; …`.
fn passed_in(line: &str) -> Option<u64> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    rest.split_once(" passed")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::passed_in;

    #[test]
    fn passed_tests_are_counted_from_the_closing_lines() {
        let line =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.1s";
        assert_eq!(passed_in(line), Some(12));
        assert_eq!(passed_in("test result: FAILED. 3 passed; 1 failed; 0 ignored"), Some(3));
        assert_eq!(passed_in("test stream::tests::a_gap_is_marked ... ok"), None);
        assert_eq!(passed_in("running 12 tests"), None);
    }
}
