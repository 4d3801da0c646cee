//! The whole build in the right order: what is missing, the kernel programs, then what embeds them.
//!
//! One profile and one selection of packages for everything, so that each crate is compiled once and every later
//! `cargo` finds it done.

use std::process::Command;
use std::thread;

use anyhow::{Result, anyhow};

use crate::setup::{self, Need};
use crate::step::Steps;
use crate::{build_ebpf, paths};

/// For commands that run what is built.
#[derive(Debug, clap::Args)]
pub(crate) struct Programs {
    /// Run the programs as they were built before
    #[arg(long)]
    built: bool,
}

impl Programs {
    /// Builds everything, unless that was said to be done.
    pub(crate) fn ready(&self) -> Result<Steps> {
        let steps = Steps::new()?;
        if !self.built {
            everything(&steps, Need::TEST)?;
        }
        Ok(steps)
    }
}

/// Sets up what `need` needs, and builds every binary and every test.
pub(crate) fn everything(steps: &Steps, need: Need) -> Result<()> {
    everything_beside(steps, need, || Ok(()))
}

/// The same, with `work` done beside the build, once everything is installed: that waits for the network, the build
/// for the processor.
pub(crate) fn everything_beside<T: Send>(
    steps: &Steps,
    need: Need,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    // While packages come from the network the workspace is compiled without the kernel programs; afterwards
    // only the agent and what links it are compiled again.
    setup::ensure_beside(steps, need, || workspace(steps))?;
    thread::scope(|scope| {
        let working = scope.spawn(work);
        build_ebpf::build(steps)?;
        workspace(steps)?;
        working.join().map_err(|_| anyhow!("the work beside the build panicked"))?
    })
}

/// Builds every binary and every test, with whatever kernel programs there are.
pub(crate) fn workspace(steps: &Steps) -> Result<()> {
    let mut command = Command::new("cargo");
    command.current_dir(paths::root()).args(["build", "--workspace", "--all-targets"]);
    steps.run("agent, command line, tests", &mut command)
}
