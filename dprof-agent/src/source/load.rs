//! From a plan to programs in the kernel: loads the object that fits, fills its configuration and filters, attaches.
//!
//! What a reader would get wrong: the object holds the programs of every back end. Only those of the plan are given
//! to the kernel, and maps that the plan does not use are made as small as they can be.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, anyhow};
use aya::maps::HashMap;
use aya::programs::{BtfTracePoint, FEntry, FExit, Iter, KProbe, Program, RawTracePoint};
use aya::util::online_cpus;
use aya::{Ebpf, EbpfLoader};
use dprof_common::cpu_buffer::blocks_per_cpu;
use dprof_common::probe_config::{ProbeConfig, filter};

use super::btf::Btf;
use super::hooks::{Attach, Events, Hook};
use super::object::{OBJECT, OBJECT_PERF};
use super::offsets::offsets;
use super::options::KernelOptions;
use super::plan::Plan;

/// Entries of maps that the plan does not use.
const UNUSED: u32 = 1;

/// The kernel's types as aya wants them: read once, for all programs.
pub(super) fn types() -> anyhow::Result<aya::Btf> {
    aya::Btf::from_sys_fs().context("read the kernel's type information")
}

/// The configuration that the programs are loaded with.
pub(super) fn config(options: &KernelOptions, plan: &Plan, btf: &Btf) -> anyhow::Result<ProbeConfig> {
    let offsets = offsets(btf).map_err(|missing| anyhow!("{}", missing[0]))?;
    let on = |list_is_empty: bool, bit: u32| if list_is_empty { 0 } else { bit };
    let addresses = addresses(["tcp_sendmsg", "tcp_recvmsg"]);
    // One without the other would say of every socket that its calls go elsewhere.
    let address_of = |name| if addresses.len() == 2 { addresses[name] } else { 0 };
    Ok(ProbeConfig {
        offsets,
        own_tgid: std::process::id(),
        filters: on(options.pids.is_empty(), filter::PIDS)
            | on(options.cgroups.is_empty(), filter::CGROUPS)
            | on(options.netns.is_empty(), filter::NETNS),
        payload_limit_default: options.payload_limit,
        state_by_address: plan.state_by_address.into(),
        has_cookie: plan.has_cookie.into(),
        regs_from_stack: plan.registers_on_stack.unwrap_or(0),
        debug: options.debug.into(),
        blocks_per_cpu: match plan.events {
            Events::PerCpu => cpu_blocks(options.ring_bytes, cpus()?),
            Events::Ring | Events::Perf => 0,
        },
        padding: 0,
        tcp_sendmsg: address_of("tcp_sendmsg"),
        tcp_recvmsg: address_of("tcp_recvmsg"),
    })
}

/// Addresses of functions of the kernel itself, of those that it tells.
fn addresses<const N: usize>(names: [&'static str; N]) -> BTreeMap<&'static str, u64> {
    let mut found = BTreeMap::new();
    let Ok(symbols) = File::open("/proc/kallsyms") else { return found };
    // Modules come last, and none of these is in one.
    for line in BufReader::new(symbols).lines().map_while(Result::ok) {
        let mut words = line.split(' ');
        let (Some(address), Some(_), Some(name)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if let Some(name) = names.iter().find(|wanted| **wanted == name)
            && let Ok(address) = u64::from_str_radix(address, 16)
            // Hidden from those without privilege.
            && address != 0
        {
            found.insert(*name, address);
            if found.len() == N {
                break;
            }
        }
    }
    found
}

/// What decides how the object is loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// How events come.
    pub(super) events: Events,
    /// Size of the ring, bytes.
    pub(super) ring_bytes: u32,
    /// The state of sockets is found by their address.
    pub(super) state_by_address: bool,
    /// The thread's call is noted.
    pub(super) notes_calls: bool,
}

impl Shape {
    /// What a plan needs.
    pub(super) fn of(plan: &Plan, ring_bytes: u32) -> Self {
        Self {
            events: plan.events,
            ring_bytes,
            state_by_address: plan.state_by_address,
            notes_calls: plan.hooks.iter().any(|hook| matches!(hook.attach, Attach::Kprobe(_))),
        }
    }
}

/// Makes the maps; programs are given to the kernel one by one with [`program`].
pub(super) fn object(config: &ProbeConfig, shape: Shape, types: &aya::Btf) -> anyhow::Result<Ebpf> {
    // 0 = log nothing: the branch is gone before the program runs.
    let log_level: u8 = if config.debug == 0 { 0 } else { log::Level::Debug as u8 };
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(types))
        .override_global("PROBE_CONFIG", bytemuck::bytes_of(config), true)
        .override_global("AYA_LOG_LEVEL", &log_level, true);
    let object = match shape.events {
        Events::PerCpu => {
            loader
                .map_max_entries("EVENTS", shape.ring_bytes)
                .map_max_entries("CPU_BUFFERS", cpus()?)
                .map_max_entries("BLOCKS", cpus()? * config.blocks_per_cpu);
            OBJECT
        }
        Events::Ring => {
            loader.map_max_entries("EVENTS", shape.ring_bytes);
            OBJECT
        }
        // One entry per CPU, which aya knows.
        Events::Perf => OBJECT_PERF,
    };
    loader.map_max_entries("SCRATCH", cpus()?);
    if !shape.state_by_address {
        loader.map_max_entries("SOCKETS_BY_ADDRESS", UNUSED);
    }
    if !shape.notes_calls {
        loader.map_max_entries("CALLS", UNUSED);
    }
    loader.load(object).context("load the kernel programs")
}

/// Blocks of each CPU's buffer beside a ring of `ring_bytes`: a quarter of it, shared out. What finds its buffer full
/// takes the ring.
pub(super) fn cpu_blocks(ring_bytes: u32, cpus: u32) -> u32 {
    blocks_per_cpu(ring_bytes / 4, cpus)
}

/// One more than the highest number of a CPU that runs. One that is put in later gives no payload, which is counted.
pub(super) fn cpus() -> anyhow::Result<u32> {
    let online = online_cpus().map_err(|(_, error)| error).context("list the CPUs")?;
    Ok(online.into_iter().max().map_or(1, |last| last + 1))
}

/// Gives one program to the kernel.
pub(super) fn program(ebpf: &mut Ebpf, hook: &Hook, types: &aya::Btf) -> anyhow::Result<()> {
    let place = || format!("load {} for {}", hook.program, hook.attach);
    let program = find(ebpf, hook.program)?;
    match hook.attach {
        Attach::TpBtf(name) => TryInto::<&mut BtfTracePoint>::try_into(program)?.load(name, types),
        Attach::RawTp(_) => TryInto::<&mut RawTracePoint>::try_into(program)?.load(),
        Attach::Fentry(name) => TryInto::<&mut FEntry>::try_into(program)?.load(name, types),
        Attach::Fexit(name) => TryInto::<&mut FExit>::try_into(program)?.load(name, types),
        Attach::Kprobe(_) => TryInto::<&mut KProbe>::try_into(program)?.load(),
        Attach::Iter(name) => TryInto::<&mut Iter>::try_into(program)?.load(name, types),
    }
    .with_context(place)
}

/// Gives every program of the plan to the kernel, then attaches them: none sees an event before all are there.
pub(super) fn attach(ebpf: &mut Ebpf, plan: &Plan, types: &aya::Btf) -> anyhow::Result<()> {
    for hook in &plan.hooks {
        program(ebpf, hook, types)?;
    }
    for hook in &plan.hooks {
        let place = || format!("attach {}", hook.attach);
        let program = find(ebpf, hook.program)?;
        match hook.attach {
            Attach::TpBtf(_) => {
                TryInto::<&mut BtfTracePoint>::try_into(program)?.attach().map(drop).with_context(place)?;
            }
            Attach::RawTp(name) => {
                TryInto::<&mut RawTracePoint>::try_into(program)?
                    .attach(name)
                    .map(drop)
                    .with_context(place)?;
            }
            Attach::Fentry(_) => {
                TryInto::<&mut FEntry>::try_into(program)?.attach().map(drop).with_context(place)?;
            }
            Attach::Fexit(_) => {
                TryInto::<&mut FExit>::try_into(program)?.attach().map(drop).with_context(place)?;
            }
            Attach::Kprobe(name) => {
                TryInto::<&mut KProbe>::try_into(program)?.attach(name, 0).map(drop).with_context(place)?;
            }
            // Attached when read.
            Attach::Iter(_) => {}
        }
    }
    Ok(())
}

fn find<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Program> {
    ebpf.program_mut(name)
        .with_context(|| format!("the object has no {name}: build the kernel programs again"))
}

/// A map that programs no longer to be loaded need not find.
pub(super) fn take(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<aya::maps::Map> {
    ebpf.take_map(name).with_context(|| format!("the kernel programs have no map {name}: build them again"))
}

/// A map that the programs still need: closing its last descriptor before they are loaded would lose it.
fn map_mut<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut aya::maps::Map> {
    ebpf.map_mut(name).with_context(|| format!("the kernel programs have no map {name}: build them again"))
}

/// Fills the maps of the filters on what does not change.
pub(super) fn fill_filters(ebpf: &mut Ebpf, options: &KernelOptions, netns: &[u32]) -> anyhow::Result<()> {
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
