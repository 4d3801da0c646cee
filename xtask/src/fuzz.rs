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
    /// A target, as `fuzz/src/lib.rs` names them
    #[arg(default_value = "all")]
    target: String,
    /// For each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// The loop without coverage, also where libFuzzer could run
    #[arg(long)]
    loop_only: bool,
}

/// Runs the targets.
pub(crate) fn run(options: &Options) -> Result<()> {
    let steps = Steps::new()?;
    let mut command = cargo();
    command.arg("--target-dir").arg(paths::root().join("target/fuzz-loop"));
    steps.run("build the fuzz targets", &mut command)?;
    let program = paths::root().join("target/fuzz-loop/release/dprof-fuzz");
    let known = said_by(&program, &["targets"])?;
    let targets: Vec<&str> =
        known.lines().filter(|name| options.target == "all" || options.target == *name).collect();
    if targets.is_empty() {
        let names: Vec<_> = known.lines().collect();
        bail!("there is no target '{}': give one of {}, all", options.target, names.join(", "));
    }
    if !options.loop_only && installed("g++").is_some() {
        let programs = build(&steps, &targets)?;
        return targets.into_iter().try_for_each(|target| {
            let corpus = corpus(&program, target)?;
            guided(&steps, &programs.join(target), target, &corpus, options.seconds)
        });
    }
    if !options.loop_only {
        steps.say("bounded loop without coverage: libFuzzer is compiled with g++, which is not there");
    }
    targets.into_iter().try_for_each(|target| rounds(&steps, &program, target, options.seconds))
}

/// What a program prints.
fn said_by(program: &Path, args: &[&str]) -> Result<String> {
    let output =
        Command::new(program).args(args).output().with_context(|| format!("start {}", program.display()))?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The folder of a target's inputs, which grows from run to run, with its seeds in it.
fn corpus(program: &Path, target: &str) -> Result<PathBuf> {
    let corpus = paths::root().join("fuzz/corpus").join(target);
    std::fs::create_dir_all(&corpus).with_context(|| format!("make {}", corpus.display()))?;
    said_by(program, &["seeds", target, &corpus.to_string_lossy()])?;
    Ok(corpus)
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

/// One target under libFuzzer; an input that fails is written to `fuzz/artifacts`.
fn guided(steps: &Steps, program: &Path, target: &str, corpus: &Path, seconds: u64) -> Result<()> {
    let artifacts = paths::root().join("fuzz/artifacts").join(target);
    std::fs::create_dir_all(&artifacts).with_context(|| format!("make {}", artifacts.display()))?;
    let output = Command::new(program)
        .args([format!("-max_total_time={seconds}"), "-max_len=2048".to_owned()])
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg(corpus)
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
        said_by(program, &[target, &ROUND_EXECUTIONS.to_string(), &n_rounds.to_string()])?;
    }
    steps.say(&format!("{target}: {} executions, none failed", n_rounds * ROUND_EXECUTIONS));
    Ok(())
}
