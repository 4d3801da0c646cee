//! A running `dprof-agent` with a store of its own.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::netns::Netns;
use crate::program::{Ended, Program};

/// How long the agent may take to load its programs and describe what already runs.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// The agent's word on standard error that it sees everything from now on.
const READY: &str = "ready";

/// A binary of this workspace, beside the one that runs (a test in `deps/`, or xtask).
pub fn binary(name: &str) -> PathBuf {
    let exe = env::current_exe().unwrap_or_default();
    let folder = exe.parent().unwrap_or(Path::new("."));
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    folder.join(name)
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    /// The process.
    pub program: Program,
    /// `sqlite:` and the folder: for `--store`.
    pub store: String,
    /// Its control socket.
    pub socket: PathBuf,
}

impl Agent {
    /// Starts it with a store in `folder/store` and waits until it sees everything.
    pub fn start<S: AsRef<OsStr>>(folder: &Path, arguments: &[S]) -> Result<Self> {
        let store = format!("sqlite:{}", folder.join("store").display());
        Self::start_with(folder, &store, &mut Command::new(binary("dprof-agent")), arguments)
    }

    /// The same through `command`, which must end in the agent (for example in a network namespace).
    pub fn start_with<S: AsRef<OsStr>>(
        folder: &Path,
        store: &str,
        command: &mut Command,
        arguments: &[S],
    ) -> Result<Self> {
        let socket = folder.join("agent.sock");
        command.args(["--store", store, "--socket"]).arg(&socket).args(arguments);
        for (variable, option) in [("DPROF_TEST_BACKEND", "--backend"), ("DPROF_TEST_EVENTS", "--events")] {
            if let Ok(name) = env::var(variable) {
                command.args([option, &name]);
            }
        }
        let mut program = Program::start("dprof-agent", folder, command)?;
        program.wait_until(READY_WITHIN, "is ready", |program| {
            program.stderr().lines().any(|line| line.contains(READY)).then_some(())
        })?;
        Ok(Self { program, store: store.to_owned(), socket })
    }

    /// The agent of one of several machines, which share a store.
    pub fn on_machine(
        folder: &Path,
        store: &str,
        machine: &Netns,
        host: &str,
        more: &[String],
    ) -> Result<Self> {
        let folder = folder.join(format!("agent-{host}"));
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let mut options = vec!["--netns".to_owned(), machine.path().display().to_string()];
        options.extend(["--host".to_owned(), host.to_owned()]);
        options.extend_from_slice(more);
        Self::start_with(&folder, store, &mut Command::new(binary("dprof-agent")), &options)
    }

    /// Stops it with SIGTERM: what is finished is stored, and the exit code must be 0.
    pub fn stop(self) -> Result<Ended> {
        self.program.stop(libc::SIGTERM)?.success()
    }
}
