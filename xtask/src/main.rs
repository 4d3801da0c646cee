//! `cargo xtask`: every development command of dprof, one file each. Each sets up what it needs and lacks.

mod accuracy;
mod bench;
mod build;
mod build_ebpf;
mod cassandra;
mod check;
mod demo;
mod drill;
mod experiment;
mod fuzz;
mod interrupt;
mod paths;
mod setup;
mod step;
mod test;
mod tidy;
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development commands. Each installs what it needs and lacks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure what dprof costs
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Run real systems under load and score dprof's links against the truth
    Accuracy(accuracy::Accuracy),
    /// Install everything that the other commands need
    Setup,
    /// Compile the kernel programs to target/ebpf/dprof-ebpf.o
    BuildEbpf,
    /// A real Cassandra ring on this machine
    #[command(subcommand)]
    Cassandra(cassandra::Task),
    /// Watch Redis behind a proxy under load, and show what dprof answers
    Demo {
        /// Store in a Cassandra ring of three nodes, started for it
        #[arg(long)]
        cassandra: bool,
    },
    /// Put faults into real systems and check that `dprof-cli why` names the cause first
    Drill(drill::Options),
    /// Run the experiments of the paper on real programs
    #[command(subcommand)]
    Experiment(experiment::Experiment),
    /// Run every tier of the tests, each within its budget
    Test(test::Options),
    /// Run the fuzz targets, guided by coverage where a C++ compiler is, else in a seeded loop
    Fuzz(fuzz::Options),
    /// Boot Debian's kernels in virtual machines and run the kernel tier of the tests in each
    Vm {
        /// 5.10, 6.1, 6.12, 6.18 or 7.x; several may be named [default: all]
        kernels: Vec<String>,
        /// As few tests as cargo xtask test runs
        #[arg(long)]
        small: bool,
    },
    /// Formatting, clippy, documentation and the tree's own rules, warnings denied
    Check,
}

fn main() -> ExitCode {
    let result = match Args::parse().task {
        Task::Bench(bench) => bench::run(&bench),
        Task::Accuracy(accuracy) => accuracy::run(&accuracy),
        Task::Setup => setup::run(),
        Task::BuildEbpf => build_ebpf::run(),
        Task::Cassandra(task) => cassandra::run(task),
        Task::Demo { cassandra } => demo::run(cassandra),
        Task::Drill(options) => drill::run(&options),
        Task::Experiment(experiment) => experiment::run(&experiment),
        Task::Test(options) => test::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
        Task::Vm { kernels, small } => vm::run(&kernels, small),
        Task::Check => check::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // The cause in words, whatever the environment says of backtraces.
        Err(error) => {
            step::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
