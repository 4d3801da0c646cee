//! `cargo xtask fuzz`: the fuzz targets for a while, under libFuzzer, which is guided by coverage; without a C++ compiler
//! in the bounded, seeded loop, which sees none.
//!
//! What a reader would get wrong: no nightly compiler is needed. LLVM's coverage pass is asked for by flags that stable
//! has; only the address sanitizer is not there, and no crate that is fuzzed has unsafe code.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use dprof_tests::clock;
use dprof_tests::subject::installed;

use crate::interrupt::Interrupt;
use crate::paths;
use crate::step::Steps;

/// Names in `fuzz/src/lib.rs`, which is no part of this workspace.
const TARGETS: [&str; 8] = ["resp", "http1", "memcached", "dnode", "tls", "dialogue", "redact", "events"];

/// Executions of a round of the loop: a few seconds, so that the time given is kept.
const ROUND_EXECUTIONS: u64 = 200_000;

/// Where the instrumented code runs. Named, so that build scripts and macros are not instrumented.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What cargo-fuzz asks rustc for, less the sanitizer.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions -Coverflow-checks \
    -Ccodegen-units=1";

/// What to fuzz, and for how long.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// One target: resp, http1, memcached, dnode, tls, dialogue, redact or events [default: all]
    target: Option<String>,
    /// For each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// The loop without coverage, also where libFuzzer could run
    #[arg(long)]
    loop_only: bool,
}

/// Runs the targets.
pub(crate) fn run(options: &Options) -> Result<()> {
    let targets: Vec<&str> = match &options.target {
        None => TARGETS.to_vec(),
        Some(name) => match TARGETS.into_iter().find(|target| target == name) {
            Some(target) => vec![target],
            None => bail!("there is no target '{name}': give one of {}", TARGETS.join(", ")),
        },
    };
    let steps = Steps::new()?;
    if !options.loop_only && installed("g++").is_some() {
        let programs = build(&steps, &targets)?;
        return targets.iter().try_for_each(|target| guided(&steps, &programs, target, options.seconds));
    }
    steps.say("bounded loop without coverage: libFuzzer is compiled with g++, which is not there");
    let mut command = cargo();
    command.arg("--target-dir").arg(paths::root().join("target/fuzz-loop"));
    steps.run("build the fuzz targets", &mut command)?;
    let program = paths::root().join("target/fuzz-loop/release/dprof-fuzz");
    targets.into_iter().try_for_each(|target| rounds(&steps, &program, target, options.seconds))
}

fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.args(["build", "--release", "--manifest-path", "fuzz/Cargo.toml"]).current_dir(paths::root());
    command
}

/// Builds the targets with coverage. Gives the folder of the programs.
fn build(steps: &Steps, targets: &[&str]) -> Result<PathBuf> {
    let target_dir = paths::root().join("target/fuzz");
    let mut command = cargo();
    command.args(["--target", TRIPLE, "--features", "libfuzzer", "--target-dir"]).arg(&target_dir);
    for target in targets {
        command.args(["--bin", target]);
    }
    steps.run("build the fuzz targets with coverage", command.env("RUSTFLAGS", FLAGS))?;
    Ok(target_dir.join(TRIPLE).join("release"))
}

/// One target under libFuzzer. The corpus grows from run to run; an input that fails is written beside it.
fn guided(steps: &Steps, programs: &Path, target: &str, seconds: u64) -> Result<()> {
    let corpus = paths::root().join("fuzz/corpus").join(target);
    let artifacts = paths::root().join("fuzz/artifacts").join(target);
    for folder in [&corpus, &artifacts] {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let output = Command::new(programs.join(target))
        .args([format!("-max_total_time={seconds}"), "-max_len=2048".to_owned()])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(&corpus)
        .output()
        .with_context(|| format!("start {target}"))?;
    steps.interrupt().check()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let from = said.find("panicked").unwrap_or(0);
        bail!("{target} fails, its input is in {}:\n{}", artifacts.display(), &said[from..]);
    }
    let word_after = |line: &str, word: &str| {
        line.split_whitespace().skip_while(|part| *part != word).nth(1).unwrap_or("?").to_owned()
    };
    let runs = said.lines().rev().find(|line| line.starts_with("Done ")).unwrap_or_default();
    let coverage = said.lines().rev().find(|line| line.contains(" cov: ")).unwrap_or_default();
    steps.say(&format!(
        "{target}: {} executions, {} edges covered, none failed",
        word_after(runs, "Done"),
        word_after(coverage, "cov:")
    ));
    Ok(())
}

fn rounds(steps: &Steps, program: &Path, target: &str, seconds: u64) -> Result<()> {
    let interrupt: &Interrupt = steps.interrupt();
    let deadline = clock::now() + Duration::from_secs(seconds);
    let mut n_rounds = 0;
    while clock::now() < deadline {
        interrupt.check()?;
        n_rounds += 1;
        let output = Command::new(program)
            .args([target, &ROUND_EXECUTIONS.to_string(), &n_rounds.to_string()])
            .output()
            .with_context(|| format!("start {}", program.display()))?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
    }
    steps.say(&format!("{target}: {} executions, none failed", n_rounds * ROUND_EXECUTIONS));
    Ok(())
}
