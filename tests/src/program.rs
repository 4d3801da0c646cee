//! A child process that surely ends: what it prints goes to files, and its end is by process id.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Serialize;

use crate::poll;

/// How long a program may take to end on SIGTERM before it is killed: an agent stores what it has.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Lines of its output that an error shows.
const LINES_SHOWN: usize = 20;

/// A running program.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// How a program ended and what it had printed.
#[derive(Debug)]
pub struct Ended {
    /// Exit status.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Program {
    /// Starts `command`; its output goes to `NAME.out` and `NAME.err` in `folder`.
    pub fn start(name: &str, folder: &Path, command: &mut Command) -> Result<Self> {
        let stdout = folder.join(format!("{name}.out"));
        let stderr = folder.join(format!("{name}.err"));
        let file = |path: &Path| File::create(path).with_context(|| format!("create {}", path.display()));
        command.stdin(Stdio::null()).stdout(file(&stdout)?).stderr(file(&stderr)?);
        die_with_parent(command);
        let child =
            command.spawn().with_context(|| format!("start {name} ({})", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, stdout, stderr })
    }

    /// The same with `config` in `NAME.json` in `folder`, whose path is the command's last argument.
    pub fn start_configured<T: Serialize>(
        name: &str,
        folder: &Path,
        command: &mut Command,
        config: &T,
    ) -> Result<Self> {
        let file = folder.join(format!("{name}.json"));
        fs::write(&file, serde_json::to_string(config)?)
            .with_context(|| format!("write {}", file.display()))?;
        Self::start(name, folder, command.arg(file))
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed to standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// What it has printed to standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// Waits until `look` gives something. Fails at once if the program ends, with its last lines.
    pub fn wait_until<T>(
        &mut self,
        within: Duration,
        what: &str,
        mut look: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        let found = poll::until(within, &format!("{} {what}", self.name), || {
            if let Some(found) = look(self) {
                return Some(Ok(found));
            }
            let status = self.child.try_wait().ok().flatten()?;
            Some(Err(anyhow!("{} ended with {status} before it {what}", self.name)))
        });
        found.and_then(|found| found).with_context(|| format!("{} said:\n{}", self.name, self.last_lines()))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: plain system call; the child is not yet waited for, so the id is still its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end, by itself.
    pub fn wait(mut self, within: Duration) -> Result<Ended> {
        let status =
            poll::until(within, &format!("{} ends", self.name), || self.child.try_wait().ok().flatten())
                .with_context(|| format!("{} said:\n{}", self.name, self.last_lines()))?;
        Ok(Ended { status, stdout: self.stdout(), stderr: self.stderr() })
    }

    /// Asks it to end with `signal` and waits.
    pub fn stop(self, signal: i32) -> Result<Ended> {
        self.signal(signal);
        self.wait(STOP_WITHIN)
    }

    fn last_lines(&self) -> String {
        let (out, err) = (self.stdout(), self.stderr());
        let lines: Vec<&str> = out.lines().chain(err.lines()).collect();
        lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n")
    }
}

impl Ended {
    /// Fails unless it ended with exit code 0, with what it said.
    pub fn success(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        match self.status.signal() {
            Some(signal) => bail!("killed by signal {signal}: {}", self.stderr),
            None => bail!("{}: {}", self.status, self.stderr),
        }
    }

    /// The number that stands before these words in what it said on standard error: `1,234 requests`.
    pub fn number_before(&self, words: &str) -> Option<f64> {
        let (before, _) = self.stderr.split_once(words)?;
        before.rsplit(' ').next()?.replace(',', "").parse().ok()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        self.signal(libc::SIGTERM);
        let ended = poll::until(STOP_WITHIN, "ends", || self.child.try_wait().ok().flatten());
        if ended.is_err() {
            // It is stuck; both calls fail only if it is gone meanwhile.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// CPU time of all threads that a process has now, nanoseconds.
pub fn cpu_ns(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let ns = |path: PathBuf| -> Option<u64> {
        fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    tasks.filter_map(|task| ns(task.path())).sum()
}

/// Has the kernel end the child when the thread that starts it is gone, however that went.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    // SAFETY: between fork and exec only async-signal-safe system calls are made.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have gone before the line above.
            if libc::getppid() as u32 != parent {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        });
    }
}

/// What a file holds so far. A program may not have created or filled it yet: that is no error.
fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
