//! The kernel as a source: loads and attaches the programs, drains their ring.
//!
//! What a reader would get wrong: programs wake nobody. The reader looks at the ring every few milliseconds, more
//! often the more it finds, which costs a hundredth of a wake-up per event. And the order of the stream is the
//! order in which programs reserved room in the ring, over all CPUs.

use std::fs::File;
use std::io::Read;
use std::mem::{offset_of, size_of};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use aya::programs::{BtfTracePoint, Iter};
use aya::{Ebpf, EbpfLoader};
use dprof_common::drop_reason::DropReason;
use dprof_common::event::{EventKind, ListenEvent, OpenEvent, RecvEvent, SendEvent};
use dprof_common::probe_config::{ProbeConfig, filter};

use super::hooks::{Attach, Hook, Plan, plan};
use super::object::OBJECT;
use super::offsets::offsets;
use super::options::KernelOptions;
use super::probe::{Probed, probe};
use super::process::{ProcessTable, Seen};
use super::record::Housekeeping;
use super::{Block, BlockBuilder, Source, SourceCounters};
use crate::clock::{monotonic_ns, read_clocks};
use crate::memory::give_back;

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
    _ebpf: Ebpf,
    ring: RingBuf<MapData>,
    drops: PerCpuArray<MapData, u64>,
    limits: HashMap<MapData, u64, u32>,
    generation: Array<MapData, u32>,
    generation_now: u32,
    limits_changed: bool,
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
    let plan = plan(&facts)
        .map_err(|reason| anyhow!("cannot watch this kernel: {reason} (see dprof-agent doctor)"))?;
    let btf = btf.context("cannot watch this kernel: it has no BTF")?;
    let netns = netns_inodes(&options.netns)?;
    let config = config(options, &btf)?;
    drop(btf);
    let mut ebpf = load(&config, options.ring_bytes)?;
    // The stream opens with a reading of the clocks: without one, no event has a wall-clock time.
    let mut housekeeping = Housekeeping::default();
    let mut builder = BlockBuilder::default();
    housekeeping.append(read_clocks(), &[0; DropReason::COUNT], &mut builder);
    fill_filters(&mut ebpf, options, &netns)?;
    attach(&mut ebpf, &plan)?;
    // The kernel's type information was in memory until now.
    give_back();
    for limit in &plan.limits {
        log::warn!("{limit}");
    }
    // After attaching, so that no listener falls between: one that is told twice does no harm.
    let listeners = read_all_listeners(&mut ebpf, &plan, &options.netns);
    let mut source = KernelSource {
        ring: RingBuf::try_from(take(&mut ebpf, "EVENTS")?)?,
        drops: PerCpuArray::try_from(take(&mut ebpf, "DROPS")?)?,
        limits: HashMap::try_from(take(&mut ebpf, "LIMITS")?)?,
        generation: Array::try_from(take(&mut ebpf, "LIMITS_GENERATION")?)?,
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
        _ebpf: ebpf,
    };
    for (records, netns) in listeners {
        match records {
            Ok(records) => source.add_listeners(&records),
            Err(error) => log::debug!("listeners of {}: {error:#}", netns.display()),
        }
    }
    Ok(Box::new(source))
}

/// Loads every program of the plan without attaching any: what `doctor` shows.
pub fn try_load(plan: &Plan) -> Vec<(Hook, Result<(), String>)> {
    let load_all = || -> anyhow::Result<Ebpf> {
        let btf = super::btf::Btf::from_kernel()?;
        load(&config(&KernelOptions::everything(), &btf)?, KernelOptions::everything().ring_bytes)
    };
    match load_all() {
        Err(error) => plan.hooks.iter().map(|hook| (*hook, Err(format!("{error:#}")))).collect(),
        Ok(mut ebpf) => plan
            .hooks
            .iter()
            .map(|hook| (*hook, load_program(&mut ebpf, hook).map_err(|error| format!("{error:#}"))))
            .collect(),
    }
}

fn config(options: &KernelOptions, btf: &super::btf::Btf) -> anyhow::Result<ProbeConfig> {
    let offsets = offsets(btf).map_err(|missing| anyhow!("{}", missing[0]))?;
    let on = |list_is_empty: bool, bit: u32| if list_is_empty { 0 } else { bit };
    Ok(ProbeConfig {
        offsets,
        own_tgid: std::process::id(),
        filters: on(options.ports.is_empty(), filter::PORTS)
            | on(options.pids.is_empty(), filter::PIDS)
            | on(options.cgroups.is_empty(), filter::CGROUPS)
            | on(options.netns.is_empty(), filter::NETNS),
        payload_limit_default: options.payload_limit,
        debug: u32::from(options.debug),
    })
}

fn load(config: &ProbeConfig, ring_bytes: u32) -> anyhow::Result<Ebpf> {
    // 0 = log nothing: the branch is gone before the program runs.
    let log_level: u8 = if config.debug == 0 { 0 } else { log::Level::Debug as u8 };
    EbpfLoader::new()
        .override_global("PROBE_CONFIG", bytemuck::bytes_of(config), true)
        .override_global("AYA_LOG_LEVEL", &log_level, true)
        .map_max_entries("EVENTS", ring_bytes)
        .load(OBJECT)
        .context("load the kernel programs")
}

fn load_program(ebpf: &mut Ebpf, hook: &Hook) -> anyhow::Result<()> {
    let program =
        ebpf.program_mut(hook.program).with_context(|| format!("the object has no {}", hook.program))?;
    let btf = aya::Btf::from_sys_fs()?;
    match hook.attach {
        Attach::TpBtf(name) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(name, &btf).with_context(|| format!("load {} for tp_btf/{name}", hook.program))
        }
        Attach::Iter(name) => {
            let program: &mut Iter = program.try_into()?;
            program.load(name, &btf).with_context(|| format!("load {} for iter/{name}", hook.program))
        }
    }
}

fn attach(ebpf: &mut Ebpf, plan: &Plan) -> anyhow::Result<()> {
    // The kernel's types are read once for all programs and freed before the first event.
    for hook in &plan.hooks {
        load_program(ebpf, hook)?;
    }
    for hook in &plan.hooks {
        if let Attach::TpBtf(name) = hook.attach {
            let program: &mut BtfTracePoint =
                ebpf.program_mut(hook.program).context("loaded a moment ago")?.try_into()?;
            program.attach().with_context(|| format!("attach tp_btf/{name}"))?;
        }
    }
    Ok(())
}

fn take(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<aya::maps::Map> {
    ebpf.take_map(name).with_context(|| format!("the kernel programs have no map {name}: build them again"))
}

/// A map that the programs still need: closing its last descriptor before they are loaded would lose it.
fn map_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut aya::maps::Map> {
    ebpf.map_mut(name).with_context(|| format!("the kernel programs have no map {name}: build them again"))
}

fn fill_filters(ebpf: &mut Ebpf, options: &KernelOptions, netns: &[u32]) -> anyhow::Result<()> {
    let mut ports = HashMap::<_, u16, u8>::try_from(map_mut(ebpf, "FILTER_PORTS")?)?;
    for port in &options.ports {
        ports.insert(port, 1, 0).context("too many ports in the filter")?;
    }
    let mut pids = HashMap::<_, u32, u8>::try_from(map_mut(ebpf, "FILTER_PIDS")?)?;
    for pid in &options.pids {
        pids.insert(pid, 1, 0).context("too many processes in the filter")?;
    }
    let mut cgroups = HashMap::<_, u64, u8>::try_from(map_mut(ebpf, "FILTER_CGROUPS")?)?;
    for cgroup in &options.cgroups {
        // A cgroup's id is the inode number of its folder.
        let id = std::fs::metadata(cgroup).with_context(|| format!("cgroup {}", cgroup.display()))?.ino();
        cgroups.insert(id, 1, 0).context("too many cgroups in the filter")?;
    }
    let mut namespaces = HashMap::<_, u32, u8>::try_from(map_mut(ebpf, "FILTER_NETNS")?)?;
    for inode in netns {
        namespaces.insert(inode, 1, 0).context("too many network namespaces in the filter")?;
    }
    Ok(())
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
fn read_listeners(ebpf: &mut Ebpf, program: &str, netns: &Path) -> anyhow::Result<Vec<u8>> {
    let namespace = File::open(netns).with_context(|| netns.display().to_string())?;
    let iter: &mut Iter = ebpf.program_mut(program).context("the plan has an iterator")?.try_into()?;
    // A namespace belongs to a thread, and the iterator to the namespace in which its file is made.
    std::thread::scope(|scope| {
        let read = scope.spawn(move || -> anyhow::Result<Vec<u8>> {
            // SAFETY: changes only this thread, which ends here; the descriptor is open.
            if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(std::io::Error::last_os_error()).context("enter the namespace");
            }
            let link = iter.attach()?;
            let mut records = Vec::new();
            iter.take_link(link)?.into_file()?.read_to_end(&mut records)?;
            Ok(records)
        });
        read.join().map_err(|_| anyhow!("the thread that reads listeners panicked"))?
    })
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

    /// Takes what is in the ring, up to a block's worth. Whether the ring is empty now.
    fn drain(&mut self) -> bool {
        while self.builder.len() < BLOCK_BYTES {
            let Some(record) = self.ring.next() else { return true };
            if let Some(seen) = seen(&record)
                && let Some(description) = self.processes.describe(&seen)
            {
                self.builder.push(&[&description]);
                self.counters.records += 1;
            }
            self.builder.push(&[&record]);
            self.counters.records += 1;
            self.counters.bytes += record.len() as u64;
        }
        false
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
            let is_empty = self.drain();
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
                std::thread::sleep(self.pause);
                return Ok(Some(block));
            }
            if reading.monotonic_ns >= deadline_ns {
                return Ok(Some(Block::default()));
            }
            self.pause = (self.pause * 2).min(PAUSE_MAX);
            std::thread::sleep(self.pause.min(Duration::from_nanos(deadline_ns - reading.monotonic_ns)));
        }
    }

    fn set_payload_limit(&mut self, sock: u64, bytes: u32) {
        match self.limits.insert(sock, bytes, 0) {
            Ok(()) => self.limits_changed = true,
            Err(error) => log::debug!("payload limit of socket {sock} not set: {error}"),
        }
    }

    fn counters(&mut self) -> SourceCounters {
        self.read_drops();
        self.counters
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
        | EventKind::Lost => return None,
    };
    Some(Seen { tgid: (pid_tgid >> 32) as u32, comm, cgroup_id, time_ns })
}
