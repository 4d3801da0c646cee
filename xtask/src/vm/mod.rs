//! `cargo xtask vm [KERNEL…]`: the kernel tier. Boots Debian's kernels under QEMU, one boot per kernel with every back
//! end in it, runs live tests inside, prints kernel × back end × test and what the verifier said of each program.
//!
//! What a reader would get wrong: there is no KVM, the machines are emulated and ten to thirty times slower than this
//! one. So two run side by side, and the tests inside are few; fewer still where it is a tier of `cargo xtask test`.

mod image;
mod kernels;
mod tables;
mod tier;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{io, thread};

use anyhow::{Context as _, Result, bail};
use dprof_tests::clock;

use crate::setup::Need;
use crate::step::Steps;
use crate::{build, paths};

pub(crate) use kernels::Had;
use kernels::Unpacked;
use tier::{Form, Report};

/// Machines at a time: one per core of a CI machine.
const MACHINES: usize = 2;

/// Memory of a machine: its file system is in it.
const MEMORY_MIB: &str = "1024";

/// How long one machine may take: emulation on a loaded host is slow, a hang is for ever.
const MACHINE_WITHIN: Duration = Duration::from_mins(12);

/// How often machines and signals are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The most instructions of one program that a verifier may have to look at: a tenth of what it allows, so that
/// growth shows long before a kernel refuses.
const VERIFIED_MAX: u64 = 100_000;

/// The most instructions that a program may run as: the oldest kernels tell nothing else.
const INSTRUCTIONS_MAX: u64 = 4_096;

/// Sets up, builds, and runs the kernels asked for, or all.
pub(crate) fn run(names: &[String], small: bool) -> Result<()> {
    let steps = Steps::new()?;
    let chosen = kernels::chosen(names)?;
    let had = build::everything_beside(&steps, Need::VM, || kernels::unpacked(&steps, &chosen))?;
    let form = if small { Form::Small } else { Form::Whole };
    tier(&steps, &had, form, MACHINE_WITHIN * had.kernels.len() as u32).map(drop)
}

/// All kernels that the archive has, in the cache.
pub(crate) fn fetch(steps: &Steps) -> Result<Had> {
    kernels::unpacked(steps, &kernels::KERNELS)
}

/// The small form, as a tier among others: what fits `within`, on every kernel. How many tests passed.
pub(crate) fn small(steps: &Steps, had: &Had, within: Duration) -> Result<u64> {
    tier(steps, had, Form::Small, within)
}

fn tier(steps: &Steps, had: &Had, form: Form, within: Duration) -> Result<u64> {
    let folder = paths::root().join("target/vm");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let deadline = clock::now() + within;
    let shared = image::shared(&folder, &tier::script(form))?;
    let consoles = boot_all(steps, &folder, &shared, &had.kernels, deadline)?;
    let reports: Vec<(&str, Report)> = had
        .kernels
        .iter()
        .zip(&consoles)
        .map(|(kernel, console)| {
            (kernel.name, tier::read(&String::from_utf8_lossy(&fs::read(console).unwrap_or_default())))
        })
        .collect();
    let mut out = io::stdout().lock();
    write!(out, "{}", tables::programs(&reports))?;
    write!(out, "{}", tables::tests(&reports))?;
    for (kernel, reason) in &had.missing {
        writeln!(out, "\nkernel {kernel}: NOT RUN, it could not be had: {reason}")?;
    }
    drop(out);
    let wrong = wrong(&reports);
    if !wrong.is_empty() {
        bail!("{}\n(consoles: {}/*.console)", wrong.join("\n"), folder.display());
    }
    Ok(reports.iter().map(|(_, report)| report.tests.len() as u64).sum())
}

/// A machine that runs, ended when dropped.
struct Machine {
    child: Child,
    name: &'static str,
    started: Instant,
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs all kernels, [`MACHINES`] at a time, until `deadline`; where each one's console is.
fn boot_all(
    steps: &Steps,
    folder: &Path,
    shared: &Path,
    kernels: &[Unpacked],
    deadline: Instant,
) -> Result<Vec<PathBuf>> {
    let consoles: Vec<_> =
        kernels.iter().map(|kernel| folder.join(format!("{}.console", kernel.name))).collect();
    // The newest have the most back ends and take the longest: first, so that the last two end together.
    let mut waiting = kernels.iter().zip(&consoles).rev();
    let mut running: Vec<Machine> = Vec::new();
    loop {
        while running.len() < MACHINES {
            let Some((kernel, console)) = waiting.next() else { break };
            let initramfs = image::with_modules(folder, shared, kernel)?;
            running.push(boot(kernel, &initramfs, console)?);
        }
        if running.is_empty() {
            return Ok(consoles);
        }
        thread::sleep(LOOK_EVERY);
        steps.interrupt().check()?;
        let mut still = Vec::new();
        for mut machine in running {
            let took = machine.started.elapsed();
            if machine.child.try_wait().context("wait for qemu")?.is_some() {
                steps.say(&format!("kernel {}: done in {:.1} s", machine.name, took.as_secs_f64()));
            } else if took > MACHINE_WITHIN || clock::now() > deadline {
                steps.say(&format!("kernel {}: not done in {} s", machine.name, took.as_secs()));
            } else {
                still.push(machine);
            }
        }
        running = still;
    }
}

fn boot(kernel: &Unpacked, initramfs: &Path, console: &Path) -> Result<Machine> {
    let out = fs::File::create(console).with_context(|| format!("create {}", console.display()))?;
    let mut command = Command::new("nice");
    command
        .args(["-n", "5", "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", kernel.cpu])
        .args(["-m", MEMORY_MIB, "-smp", "2", "-nographic", "-no-reboot", "-nic", "none"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        // The timer of an emulated machine on a busy host looks broken to a kernel that checks it.
        .args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"])
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out);
    dprof_tests::program::die_with_parent(&mut command);
    let child = command.spawn().context("start qemu-system-x86_64")?;
    Ok(Machine { child, name: kernel.name, started: clock::now() })
}

/// Every reason why the tier is red.
fn wrong(reports: &[(&str, Report)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (kernel, report) in reports {
        if report.done_s.is_none() {
            wrong.push(format!("kernel {kernel} did not come to the end"));
        }
        if report.ways.is_empty() {
            wrong.push(format!("kernel {kernel}: no back end could be used"));
        }
        for (way, _) in report.ways.iter().filter(|(_, ended_well)| !**ended_well) {
            wrong.push(format!("kernel {kernel}, {way}: the tests failed"));
        }
        for ((way, test), _) in report.tests.iter().filter(|(_, passed)| !**passed) {
            wrong.push(format!("kernel {kernel}, {way}: {test} failed"));
        }
        for program in &report.programs {
            match &program.loaded {
                Err(error) => wrong.push(format!("kernel {kernel}: {} does not load: {error}", program.name)),
                Ok((run, verified)) if *run > INSTRUCTIONS_MAX || *verified > VERIFIED_MAX => wrong.push(format!(
                    "kernel {kernel}: {} has {run} instructions, {verified} verified: more than {INSTRUCTIONS_MAX} \
                     and {VERIFIED_MAX}",
                    program.name
                )),
                Ok(_) => {}
            }
        }
    }
    wrong
}
