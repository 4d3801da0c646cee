//! Long steps that show that they live: a spinner with the command's last line on a terminal, one line at the
//! start and one at the end elsewhere. What a command prints is shown only when it fails.

use std::io::{BufRead as _, BufReader, IsTerminal as _, Read};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use std::{io, thread};

use anyhow::{Context as _, Result, bail};
use dprof_tests::clock;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Lines of a failed command that are shown: enough for a compiler's first error.
const LINES_SHOWN: usize = 60;

/// Shows steps, several at a time.
#[derive(Clone, Default)]
pub(crate) struct Steps(MultiProgress);

impl Steps {
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
        let readers = [
            child.stdout.take().map(|out| forward(out, lines.clone())),
            child.stderr.take().map(|err| forward(err, lines)),
        ];
        let mut log = Vec::new();
        for line in received {
            if !line.trim().is_empty() {
                bar.set_message(line.trim().to_owned());
                log.push(line);
            }
        }
        let status = child.wait().with_context(|| format!("wait for {title}"))?;
        readers.into_iter().flatten().for_each(|reader| drop(reader.join()));
        bar.finish_and_clear();
        if !status.success() {
            let tail = log[log.len().saturating_sub(LINES_SHOWN)..].join("\n");
            bail!("{title}: {} ended with {status}:\n{tail}", command.get_program().display());
        }
        self.say(&format!("{title}: done in {:.1} s", started.elapsed().as_secs_f64()));
        Ok(())
    }

    /// A line above the spinners.
    pub(crate) fn say(&self, line: &str) {
        self.0.suspend(|| say(line));
    }

    fn bar(&self, title: &str) -> ProgressBar {
        if !io::stderr().is_terminal() {
            say(&format!("{title} ..."));
        }
        let bar = self.0.add(ProgressBar::new_spinner().with_prefix(title.to_owned()));
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

fn forward(from: impl Read + Send + 'static, to: mpsc::Sender<String>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while matches!(from.read_until(b'\n', &mut line), Ok(read) if read > 0) {
            if to.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    })
}
