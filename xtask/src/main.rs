//! `cargo xtask`: every development command of dprof, one file each. Each sets up what it needs and lacks.

mod build;
mod build_ebpf;
mod demo;
mod interrupt;
mod paths;
mod setup;
mod step;
mod test;
mod toolchain;

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
    /// Install everything that the other commands need
    Setup,
    /// Compile the kernel programs to target/ebpf/dprof-ebpf.o
    BuildEbpf,
    /// Watch Redis behind a proxy under load, and show what dprof answers
    Demo,
    /// Run every tier of the tests, each within its budget
    Test,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().task {
        Task::Setup => setup::run(),
        Task::BuildEbpf => build_ebpf::run(),
        Task::Demo => demo::run(),
        Task::Test => test::run(),
    }
}
