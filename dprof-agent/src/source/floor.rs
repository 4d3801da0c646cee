//! What programs cost by the kernel's own count (bpf_stats), beside an empty program and one bare ring write that run
//! on the same calls. For `cargo xtask bench overhead`; an agent never loads this.

use std::time::Duration;

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use aya::programs::{BtfTracePoint, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use dprof_common::limits::RING_BYTES_DEFAULT;

use super::object::OBJECT;

/// The two programs, attached until this is dropped; the kernel counts meanwhile.
pub struct Floor {
    _ebpf: Ebpf,
    ring: RingBuf<MapData>,
    /// The kernel stops counting when it is closed.
    _stats: std::os::fd::OwnedFd,
}

/// Runs of a program so far.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Runs {
    /// Kernel's number of the program.
    pub id: u32,
    /// Its name, at most 15 characters.
    pub name: String,
    /// How often it ran.
    pub count: u64,
    /// How long in all, nanoseconds, with some tens for the counting itself.
    pub time_ns: u64,
    /// Instructions that the verifier went through.
    pub verified: u64,
}

impl Floor {
    /// Attaches both programs and has the kernel count.
    pub fn attach() -> anyhow::Result<Self> {
        let stats = aya::sys::enable_stats(aya::sys::Stats::RunTime).context("have the kernel count runs")?;
        let types = super::load::types()?;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&types))
            .map_max_entries("FLOOR", RING_BYTES_DEFAULT)
            .map_max_entries("EVENTS", 4096)
            .load(OBJECT)
            .context("load the kernel programs")?;
        for name in ["floor_empty", "floor_write"] {
            let program: &mut BtfTracePoint =
                ebpf.program_mut(name).context("build the kernel programs again")?.try_into()?;
            program.load("sock_send_length", &types).with_context(|| format!("load {name}"))?;
            program.attach().with_context(|| format!("attach {name}"))?;
        }
        let ring = RingBuf::try_from(super::load::take(&mut ebpf, "FLOOR")?)?;
        Ok(Self { _ebpf: ebpf, ring, _stats: stats })
    }

    /// Empties the ring, as an agent would; waits for `pause` after that.
    pub fn drain(&mut self, pause: Duration) {
        while self.ring.next().is_some() {}
        std::thread::sleep(pause);
    }

    /// Runs of every program in the kernel. One that cannot be read has gone meanwhile.
    pub fn runs(&self) -> Vec<Runs> {
        let runs = |info: aya::programs::ProgramInfo| Runs {
            id: info.id(),
            name: info.name_as_str().unwrap_or_default().to_owned(),
            count: info.run_count(),
            time_ns: u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX),
            verified: info.verified_instruction_count().map_or(0, u64::from),
        };
        loaded_programs().flatten().map(runs).collect()
    }
}
