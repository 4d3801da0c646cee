//! What the agent's kernel programs cost, by the kernel's own count, beside an empty program and a bare ring write.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use dprof_tests::agent::binary;
use dprof_tests::program::die_with_parent;
use serde_json::Value;

/// The counting program; ends when dropped.
pub(super) struct Counter {
    child: Child,
    questions: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// Runs and nanoseconds of each program, by name; the names of two agents' programs would mix.
pub(super) type Runs = BTreeMap<String, (u64, u64)>;

impl Counter {
    pub(super) fn start() -> Result<Self> {
        let mut command = Command::new(binary("examples").join("kernel_cost"));
        die_with_parent(&mut command);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start kernel_cost")?;
        let questions = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("output of kernel_cost")?);
        let mut counter = Self { child, questions, answers };
        if counter.line()? != "ready" {
            bail!("kernel_cost cannot count: it needs root and tp_btf");
        }
        Ok(counter)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("read what kernel_cost says")?;
        Ok(line.trim_end().to_owned())
    }

    /// Runs so far of the programs of process `agent` and of the floor's two.
    pub(super) fn runs(&mut self, agent: u32) -> Result<Runs> {
        let own = [program_ids(agent)?, program_ids(self.child.id())?].concat();
        self.questions.as_mut().context("kernel_cost listens")?.write_all(b"\n")?;
        let all: Vec<Value> = serde_json::from_str(&self.line()?).context("read runs")?;
        let mut runs = Runs::new();
        for program in all {
            let number = |key: &str| program[key].as_u64().unwrap_or(0);
            if own.contains(&number("id")) {
                let name = program["name"].as_str().unwrap_or_default().to_owned();
                let entry = runs.entry(name).or_default();
                *entry = (entry.0 + number("count"), entry.1 + number("time_ns"));
            }
        }
        Ok(runs)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // The end of its input is its end; should it be stuck, it is killed.
        self.questions = None;
        for _ in 0..100 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Numbers of the programs that a process holds open.
fn program_ids(pid: u32) -> Result<Vec<u64>> {
    let folder = Path::new("/proc").join(pid.to_string()).join("fdinfo");
    let entries = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let id = |path: &Path| {
        let text = fs::read_to_string(path).ok()?;
        text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
    };
    Ok(entries.flatten().filter_map(|entry| id(&entry.path())).collect())
}

/// What was spent between two looks.
pub(super) fn between(before: &Runs, after: &Runs) -> Runs {
    after
        .iter()
        .map(|(name, (count, time_ns))| {
            let (count_before, time_before) = before.get(name).copied().unwrap_or_default();
            (name.clone(), (count - count_before, time_ns - time_before))
        })
        .filter(|(_, (count, _))| *count > 0)
        .collect()
}

/// Nanoseconds per run of a program.
pub(super) fn per_run(runs: &Runs, name: &str) -> f64 {
    runs.get(name).map_or(f64::NAN, |(count, time_ns)| *time_ns as f64 / *count as f64)
}
