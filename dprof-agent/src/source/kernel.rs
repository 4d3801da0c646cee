//! The kernel as a source: loads and attaches the programs, drains their events.
//!
//! What a reader would get wrong: programs wake nobody. The reader looks every few milliseconds, more often the more
//! it finds, which costs a hundredth of a wake-up per event. And the order of the stream is the order in which
//! programs reserved room in the ring, over all CPUs; with perf buffers the order of the records' making.

use std::io::Read;
use std::mem::{offset_of, size_of};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::Iter;
use dprof_common::drop_reason::DropReason;
use dprof_common::event::{EventKind, ListenEvent, OpenEvent, RecvEvent, SendEvent};

use super::events::Reader;
use super::gate::Gate;
use super::hooks::{Attach, Hook};
use super::load::{self, Shape};
use super::options::KernelOptions;
use super::plan::{Plan, plan};
use super::ports::Choice;
use super::probe::{Probed, probe};
use super::process::{ProcessTable, Seen, ServiceRule};
use super::record::Housekeeping;
use super::window::DutyCycle;
use super::{Block, BlockBuilder, ProgramRuns, Source, SourceCounters};
use crate::clock::{monotonic_ns, read_clocks};
use crate::memory::give_back;
use crate::netns;

/// A block is handed on when it holds this much, bytes: a few milliseconds of full load, small beside the queue.
const BLOCK_BYTES: usize = 128 * 1024;
/// Shortest pause between two looks at the ring. At 200,000 events/s 400 wait then, a hundredth of the ring.
const PAUSE_MIN: Duration = Duration::from_millis(2);
/// Longest pause: what an idle agent adds to the age of an event.
const PAUSE_MAX: Duration = Duration::from_millis(16);
/// The loss counters are read (a system call) this often, nanoseconds.
const DROPS_EVERY_NS: u64 = 50_000_000;
/// Network namespaces whose listeners are read at the start.
const NETNS_MAX: usize = 1024;

/// The running kernel.
pub struct KernelSource {
    /// Dropping it detaches every program.
    ebpf: Ebpf,
    hooks: Vec<Hook>,
    events: Reader,
    drops: PerCpuArray<MapData, u64>,
    limits: HashMap<MapData, u64, u32>,
    generation: Array<MapData, u32>,
    generation_now: u32,
    limits_changed: bool,
    gate: Gate,
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    backend: &'static str,
    processes: ProcessTable,
    housekeeping: Housekeeping,
    builder: BlockBuilder,
    counters: SourceCounters,
    drops_due_ns: u64,
    pause: Duration,
}

/// Loads, attaches and starts. Every error names the thing and the remedy.
pub fn open(options: &KernelOptions) -> anyhow::Result<Box<dyn Source>> {
    let Probed { facts, btf } = probe();
    let plan = plan(options.wish, &facts)
        .map_err(|reason| anyhow!("cannot watch this kernel: {reason} (see dprof-agent doctor)"))?;
    let btf = btf.context("cannot watch this kernel: it has no BTF")?;
    let netns = netns_inodes(&options.netns)?;
    let config = load::config(options, &plan, &btf)?;
    drop(btf);
    let types = load::types()?;
    let mut ebpf = load::object(&config, Shape::of(&plan, options.ring_bytes), &types)?;
    // The stream opens with a reading of the clocks: without one, no event has a wall-clock time.
    let mut housekeeping = Housekeeping::default();
    let mut builder = BlockBuilder::default();
    housekeeping.append(read_clocks(), &[0; DropReason::COUNT], &mut builder);
    load::fill_filters(&mut ebpf, options, &netns)?;
    // Open before the first event comes.
    let events = Reader::open(&mut ebpf, plan.events, options.ring_bytes)?;
    let mut choice = Choice::all(Array::try_from(load::take(&mut ebpf, "FILTER_PORTS")?)?);
    choice.set(&options.ports)?;
    let word = Array::try_from(load::take(&mut ebpf, "GATE")?)?;
    let mut gate = Gate::new(word, choice, options.duty_cycle.schedule())?;
    gate.turn(read_clocks(), &mut builder)?;
    load::attach(&mut ebpf, &plan, &types)?;
    drop(types);
    // The kernel's type information was in memory until now.
    give_back();
    for limit in &plan.limits {
        log::warn!("{limit}");
    }
    // After attaching, so that no listener falls between: one that is told twice does no harm.
    let listeners = read_all_listeners(&mut ebpf, &plan, &options.netns);
    let mut source = KernelSource {
        events,
        drops: PerCpuArray::try_from(load::take(&mut ebpf, "DROPS")?)?,
        limits: HashMap::try_from(load::take(&mut ebpf, "LIMITS")?)?,
        generation: Array::try_from(load::take(&mut ebpf, "LIMITS_GENERATION")?)?,
        gate,
        generation_now: 0,
        limits_changed: false,
        logger: if options.debug { Some(aya_log::EbpfLogger::init(&mut ebpf)?) } else { None },
        backend: plan.backend.name(),
        processes: ProcessTable::new(options.service_rules.clone()),
        housekeeping,
        builder,
        counters: SourceCounters::default(),
        drops_due_ns: 0,
        pause: PAUSE_MIN,
        hooks: plan.hooks.clone(),
        ebpf,
    };
    for (records, netns) in listeners {
        match records {
            Ok(records) => source.add_listeners(&records),
            Err(error) => log::debug!("listeners of {}: {error:#}", netns.display()),
        }
    }
    Ok(Box::new(source))
}

/// What a program is once the kernel has taken it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Instructions as they run, after the kernel has rewritten them.
    pub instructions: u32,
    /// Instructions that the verifier looked at, of a million that it may; 0 = this kernel does not say.
    pub verified: u32,
}

/// Loads every program of the plan without attaching any: what `doctor` shows.
pub fn try_load(plan: &Plan) -> Vec<(Hook, Result<Loaded, String>)> {
    let options = KernelOptions::everything();
    let open = || -> anyhow::Result<(Ebpf, aya::Btf)> {
        let btf = super::btf::Btf::from_kernel()?;
        let types = load::types()?;
        let shape = Shape::of(plan, options.ring_bytes);
        Ok((load::object(&load::config(&options, plan, &btf)?, shape, &types)?, types))
    };
    match open() {
        Err(error) => plan.hooks.iter().map(|hook| (*hook, Err(format!("{error:#}")))).collect(),
        Ok((mut ebpf, types)) => plan
            .hooks
            .iter()
            .map(|hook| (*hook, try_one(&mut ebpf, hook, &types).map_err(|error| format!("{error:#}"))))
            .collect(),
    }
}

fn try_one(ebpf: &mut Ebpf, hook: &Hook, types: &aya::Btf) -> anyhow::Result<Loaded> {
    /// Bytes of one instruction.
    const INSTRUCTION: u32 = 8;
    load::program(ebpf, hook, types)?;
    let info = ebpf.program(hook.program).context("loaded a moment ago")?.info()?;
    Ok(Loaded {
        instructions: info.size_translated().unwrap_or(0) / INSTRUCTION,
        verified: info.verified_instruction_count().unwrap_or(0),
    })
}

/// Inode numbers of network namespaces: what the kernel calls them by.
pub fn netns_inodes<P: AsRef<Path>>(paths: &[P]) -> anyhow::Result<Vec<u32>> {
    let inode = |path: &P| {
        let path = path.as_ref();
        let inode =
            std::fs::metadata(path).with_context(|| format!("network namespace {}", path.display()))?.ino();
        u32::try_from(inode).with_context(|| format!("{} is not a network namespace", path.display()))
    };
    paths.iter().map(inode).collect()
}

/// Network namespaces of this machine: those named, else those of all processes, one path each.
pub fn watched_netns(named: &[PathBuf]) -> Vec<PathBuf> {
    if !named.is_empty() {
        return named.to_vec();
    }
    let mut seen = Vec::new();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_process = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    for path in
        processes.filter(|entry| is_process(&entry.file_name())).map(|entry| entry.path().join("ns/net"))
    {
        if seen.len() >= NETNS_MAX {
            log::warn!(
                "more than {NETNS_MAX} network namespaces: roles of older connections in the others are guessed"
            );
            break;
        }
        if let Ok(meta) = std::fs::metadata(&path)
            && !seen.iter().any(|(inode, _)| *inode == meta.ino())
        {
            seen.push((meta.ino(), path));
        }
    }
    seen.into_iter().map(|(_, path)| path).collect()
}

/// What the listener iterator says in this namespace: `ListenEvent` after `ListenEvent`.
fn read_listeners(ebpf: &mut Ebpf, program: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    let iter: &mut Iter = ebpf.program_mut(program).context("the plan has an iterator")?.try_into()?;
    // The iterator belongs to the namespace in which its file is made.
    let read = || -> anyhow::Result<Vec<u8>> {
        let link = iter.attach()?;
        let mut records = Vec::new();
        iter.take_link(link)?.into_file()?.read_to_end(&mut records)?;
        Ok(records)
    };
    netns::within(path, read).with_context(|| format!("enter {}", path.display()))?
}

fn read_all_listeners(
    ebpf: &mut Ebpf,
    plan: &Plan,
    named: &[PathBuf],
) -> Vec<(anyhow::Result<Vec<u8>>, PathBuf)> {
    let Some(hook) = plan.hooks.iter().find(|hook| matches!(hook.attach, Attach::Iter(_))) else {
        return Vec::new();
    };
    let read = |netns: PathBuf| (read_listeners(ebpf, hook.program, &netns), netns);
    watched_netns(named).into_iter().map(read).collect()
}

impl KernelSource {
    /// Puts the sockets that listen now into the stream: who listened is the server, also on connections that
    /// are older than the programs.
    fn add_listeners(&mut self, records: &[u8]) {
        let time_ns = monotonic_ns();
        for record in records.chunks_exact(size_of::<ListenEvent>()) {
            let event = ListenEvent { time_ns, ..bytemuck::pod_read_unaligned(record) };
            self.builder.push(&[bytemuck::bytes_of(&event)]);
            self.counters.records += 1;
        }
    }

    /// Takes what is there, up to a block's worth. Whether none is left now.
    fn drain(&mut self, now_ns: u64) -> bool {
        let Self { events, processes, builder, counters, .. } = self;
        events.drain(now_ns, |record| {
            if let Some(seen) = seen(record)
                && let Some(description) = processes.describe(&seen)
            {
                builder.push(&[&description]);
                counters.records += 1;
            }
            builder.push(&[record]);
            counters.records += 1;
            counters.bytes += record.len() as u64;
            builder.len() < BLOCK_BYTES
        })
    }

    /// Time to the capture window's next edge.
    fn to_edge(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(self.gate.due_ns().saturating_sub(now_ns))
    }

    fn read_drops(&mut self) {
        for reason in DropReason::ALL {
            // A counter that cannot be read now is read the next time: counts only grow.
            if let Ok(values) = self.drops.get(&(reason as u32), 0) {
                self.counters.drops[reason as usize] = values.iter().sum();
            }
        }
    }

    /// Tells the programs that limits changed: they look their sockets' up again, once each.
    fn publish_limits(&mut self) {
        if std::mem::take(&mut self.limits_changed) {
            self.generation_now = self.generation_now.wrapping_add(1);
            if let Err(error) = self.generation.set(0, self.generation_now, 0) {
                log::debug!("payload limits not published: {error}");
            }
        }
    }
}

impl Source for KernelSource {
    fn backend(&self) -> &'static str {
        self.backend
    }

    fn next_block(&mut self, wait: Duration) -> anyhow::Result<Option<Block>> {
        self.publish_limits();
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        let deadline_ns = monotonic_ns() + wait.as_nanos() as u64;
        loop {
            // Before draining: all that is in the stream before this reading's record is older than it.
            let reading = read_clocks();
            self.gate.turn(reading, &mut self.builder)?;
            let is_empty = self.drain(reading.monotonic_ns);
            if is_empty {
                self.gate.close(&mut self.builder);
            }
            let reading = reading.before(self.events.held_ns());
            if reading.monotonic_ns >= self.drops_due_ns {
                self.drops_due_ns = reading.monotonic_ns + DROPS_EVERY_NS;
                self.read_drops();
            }
            self.housekeeping.append(reading, &self.counters.drops, &mut self.builder);
            if !is_empty {
                self.pause = PAUSE_MIN;
                return Ok(Some(self.builder.take()));
            }
            if !self.builder.is_empty() {
                // A little was there: look again soon, but let it gather.
                let block = self.builder.take();
                self.pause = if block.0.len() > BLOCK_BYTES / 16 {
                    PAUSE_MIN
                } else {
                    (self.pause * 2).min(PAUSE_MAX)
                };
                std::thread::sleep(self.pause.min(self.to_edge(reading.monotonic_ns)));
                return Ok(Some(block));
            }
            if reading.monotonic_ns >= deadline_ns {
                return Ok(Some(Block::default()));
            }
            self.pause = (self.pause * 2).min(PAUSE_MAX);
            let left = Duration::from_nanos(deadline_ns - reading.monotonic_ns);
            std::thread::sleep(self.pause.min(left).min(self.to_edge(reading.monotonic_ns)));
        }
    }

    fn set_payload_limit(&mut self, sock: u64, bytes: u32) {
        match self.limits.insert(sock, bytes, 0) {
            Ok(()) => self.limits_changed = true,
            Err(error) => log::debug!("payload limit of socket {sock} not set: {error}"),
        }
    }

    fn set_duty_cycle(&mut self, duty_cycle: &DutyCycle) -> anyhow::Result<()> {
        self.gate.set_schedule(duty_cycle.schedule(), read_clocks(), &mut self.builder)
    }

    fn set_ports(&mut self, ports: &[u16]) -> anyhow::Result<()> {
        self.gate.set_ports(ports, &mut self.builder)
    }

    fn set_service_rules(&mut self, rules: &[ServiceRule]) {
        self.processes.set_rules(rules.to_vec());
    }

    fn counters(&mut self) -> SourceCounters {
        self.read_drops();
        self.counters
    }

    fn check(&mut self) -> anyhow::Result<()> {
        self.drops.get(&0, 0).map(drop).context("read a map of the kernel programs")
    }

    fn programs(&mut self) -> Vec<ProgramRuns> {
        let runs = |hook: &Hook| {
            let info = self.ebpf.program(hook.program)?.info().ok()?;
            let run_ns = u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX);
            Some(ProgramRuns { program: hook.program, runs: info.run_count(), run_ns })
        };
        let programs: Vec<_> = self.hooks.iter().filter_map(runs).collect();
        // Nothing counted is not the same as nothing run.
        if programs.iter().any(|program| program.runs > 0) { programs } else { Vec::new() }
    }
}

/// The process that a record of data or of a new socket shows.
fn seen(record: &[u8]) -> Option<Seen<'_>> {
    let u64_at = |at: usize| record.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
    let (pid_tgid, time_ns, comm, cgroup_id) = match EventKind::from_u8(*record.first()?)? {
        EventKind::Open => (
            u64_at(offset_of!(OpenEvent, pid_tgid))?,
            u64_at(offset_of!(OpenEvent, time_ns))?,
            record.get(offset_of!(OpenEvent, comm)..offset_of!(OpenEvent, comm) + 16)?,
            u64_at(offset_of!(OpenEvent, cgroup_id))?,
        ),
        EventKind::Send => (
            u64_at(offset_of!(SendEvent, pid_tgid))?,
            u64_at(offset_of!(SendEvent, time_ns))?,
            &record[..0],
            0,
        ),
        EventKind::Recv => (
            u64_at(offset_of!(RecvEvent, pid_tgid))?,
            u64_at(offset_of!(RecvEvent, read_ns))?,
            &record[..0],
            0,
        ),
        EventKind::Close
        | EventKind::Arrivals
        | EventKind::FirstDeparture
        | EventKind::Retransmit
        | EventKind::Listen
        | EventKind::Process
        | EventKind::Clock
        | EventKind::Lost
        | EventKind::Window
        | EventKind::Ports => return None,
    };
    Some(Seen { tgid: (pid_tgid >> 32) as u32, comm, cgroup_id, time_ns })
}
