//! Long steps that show that they live: a spinner with the command's last line on a terminal, one line at the
//! start and one at the end elsewhere. What a command prints is shown only when it fails.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{io, thread};

use anyhow::{Context as _, Result, bail};
use dprof_tests::clock;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::interrupt::Interrupt;

/// Lines of a failed command that are shown: enough for a compiler's first error.
const LINES_SHOWN: usize = 60;

/// How often signals are looked at while a command prints nothing.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Shows steps, several at a time.
pub(crate) struct Steps {
    bars: MultiProgress,
    interrupt: Interrupt,
}

impl Steps {
    /// Steps that SIGINT and SIGTERM end.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { bars: MultiProgress::new(), interrupt: Interrupt::install()? })
    }

    /// Whether a signal came.
    pub(crate) const fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Runs a command under a title. Fails with its last lines.
    pub(crate) fn run(&self, title: &str, command: &mut Command) -> Result<()> {
        let started = clock::now();
        let bar = self.bar(title);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        let (lines, received) = mpsc::channel();
        if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
            forward(out, lines.clone());
            forward(err, lines);
        }
        let mut log = Vec::new();
        let interrupted = loop {
            match received.recv_timeout(LOOK_EVERY) {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    bar.set_message(line.trim().to_owned());
                    log.push(line);
                }
                Err(RecvTimeoutError::Disconnected) => break Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Err(interrupted) = self.interrupt.check() {
                // It may be gone already, by the same signal from the terminal.
                let _ = child.kill();
                break Err(interrupted);
            }
        };
        let status = child.wait().with_context(|| format!("wait for {title}"))?;
        bar.finish_and_clear();
        interrupted?;
        if !status.success() {
            let tail = log[log.len().saturating_sub(LINES_SHOWN)..].join("\n");
            bail!("{title}: {} ended with {status}:\n{tail}", command.get_program().display());
        }
        self.say(&format!("{title}: done in {:.1} s", started.elapsed().as_secs_f64()));
        Ok(())
    }

    /// A line above the spinners.
    pub(crate) fn say(&self, line: &str) {
        self.bars.suspend(|| say(line));
    }

    fn bar(&self, title: &str) -> ProgressBar {
        if !io::stderr().is_terminal() {
            say(&format!("{title} ..."));
        }
        let bar = self.bars.add(ProgressBar::new_spinner().with_prefix(title.to_owned()));
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg:.dim}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        bar
    }
}

/// A line to the person at the terminal.
#[expect(clippy::print_stderr, reason = "xtask talks to people")]
pub(crate) fn say(line: &str) {
    eprintln!("{line}");
}

/// Sends lines until the pipe ends, from a thread that ends with it.
fn forward(from: impl Read + Send + 'static, to: mpsc::Sender<String>) {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while matches!(from.read_until(b'\n', &mut line), Ok(read) if read > 0) {
            if to.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
}
