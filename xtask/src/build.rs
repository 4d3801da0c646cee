//! The whole build in the right order: what is missing, the kernel programs, then what embeds them.
//!
//! One profile and one selection of packages for everything, so that each crate is compiled once and every later
//! `cargo` finds it done.

use std::process::Command;

use anyhow::Result;

use crate::setup::{self, Need};
use crate::step::Steps;
use crate::{build_ebpf, paths};

/// Sets up what `need` needs, and builds every binary and every test.
pub(crate) fn everything(steps: &Steps, need: Need) -> Result<()> {
    // While packages come from the network the workspace is compiled without the kernel programs; afterwards
    // only the agent and what links it are compiled again.
    setup::ensure_beside(steps, need, || workspace(steps))?;
    build_ebpf::build(steps)?;
    workspace(steps)
}

/// Builds every binary and every test, with whatever kernel programs there are.
pub(crate) fn workspace(steps: &Steps) -> Result<()> {
    let mut command = Command::new("cargo");
    command.current_dir(paths::root()).args(["build", "--workspace", "--all-targets"]);
    steps.run("agent, command line, tests", &mut command)
}
