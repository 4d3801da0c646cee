//! Agents of several machines that share a store.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use dprof_tests::agent::{Agent, binary};
use dprof_tests::netns::Netns;

/// Starts the agent of one machine.
pub(crate) fn agent(
    folder: &Path,
    store: &str,
    machine: &Netns,
    host: &str,
    more: &[String],
) -> Result<Agent> {
    let folder = folder.join(format!("agent-{host}"));
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let mut options = vec!["--netns".to_owned(), machine.path().display().to_string()];
    options.extend(["--host".to_owned(), host.to_owned()]);
    options.extend_from_slice(more);
    Agent::start_with(&folder, store, &mut Command::new(binary("dprof-agent")), &options)
}
