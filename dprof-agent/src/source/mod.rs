//! Where the event stream comes from: the kernel, or a recording of it. Nothing after a [`Source`] knows which.
//!
//! What a reader would get wrong: everything that the engine's result depends on travels in the stream, also
//! what user space adds (process descriptions, clock readings, losses), so that a replay gives the same spans.

pub mod btf;
mod cpu_buffers;
mod events;
pub mod floor;
mod gate;
pub mod hooks;
pub mod kernel;
mod load;
pub mod object;
pub mod offsets;
pub mod options;
pub mod plan;
mod ports;
pub mod probe;
pub mod process;
pub mod record;
pub mod recording;
pub mod redact;
pub mod replay;
pub mod service_name;
pub mod tee;
mod trial;
pub mod window;

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use dprof_common::drop_reason::DropReason;

use self::process::ServiceRule;
use self::window::DutyCycle;

/// Some records, in the order of capture: each a little-endian `u32` length, then that many bytes starting with
/// an [`EventHeader`](dprof_common::event::EventHeader).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block(pub Bytes);

/// Length prefix of a record, bytes.
pub const LENGTH_BYTES: usize = 4;

impl Block {
    /// The records. A damaged length ends the block; `None` says so once.
    pub fn records(&self) -> Records<'_> {
        Records { rest: &self.0 }
    }
}

/// Iterator over a block's records.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Records<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.rest.split_first_chunk::<LENGTH_BYTES>().and_then(|(length, rest)| {
            let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
            (length <= rest.len()).then(|| rest.split_at(length))
        });
        if let Some((record, rest)) = record {
            self.rest = rest;
            Some(Some(record))
        } else {
            self.rest = &[];
            Some(None)
        }
    }
}

/// Collects records into a block.
#[derive(Debug, Default)]
pub struct BlockBuilder(BytesMut);

impl BlockBuilder {
    /// Adds a record made of `parts`, one after the other.
    pub fn push(&mut self, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.0.put_u32_le(length as u32);
        for part in parts {
            self.0.put_slice(part);
        }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was added since the last [`BlockBuilder::take`].
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The block so far; the builder starts anew.
    pub fn take(&mut self) -> Block {
        Block(self.0.split().freeze())
    }
}

/// What a source did and lost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceCounters {
    /// Records delivered.
    pub records: u64,
    /// Bytes delivered.
    pub bytes: u64,
    /// Losses by cause, index [`DropReason`].
    pub drops: [u64; DropReason::COUNT],
}

/// A stream of events. Dropping it detaches every program.
pub trait Source: Send {
    /// Back end in use, as `doctor` names it: `tp_btf`, or `replay`.
    fn backend(&self) -> &'static str;

    /// The next records. An empty block means: none within `wait`. `None`: the stream ended (a recording's end).
    fn next_block(&mut self, wait: Duration) -> anyhow::Result<Option<Block>>;

    /// Asks for at most `bytes` of payload per call of this socket from now on (soon, not at once).
    fn set_payload_limit(&mut self, sock: u64, bytes: u32);

    /// Captures this part of the time from now on. A recording has been captured already.
    fn set_duty_cycle(&mut self, _duty_cycle: &DutyCycle) -> anyhow::Result<()> {
        Ok(())
    }

    /// Watches connections with these ports from now on, local or peer; all, if there are none.
    fn set_ports(&mut self, _ports: &[u16]) -> anyhow::Result<()> {
        Ok(())
    }

    /// Names services by these rules from now on. In a recording they have their names already.
    fn set_service_rules(&mut self, _rules: &[ServiceRule]) {}

    /// Counters so far.
    fn counters(&mut self) -> SourceCounters;

    /// Reads what is read all the time: whether it still may.
    fn check(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// What the kernel counted of each program; empty unless it counts (sysctl `kernel.bpf_stats_enabled`).
    fn programs(&mut self) -> Vec<ProgramRuns> {
        Vec::new()
    }
}

/// Runs of one kernel program, by the kernel's own count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramRuns {
    /// Its name in the object.
    pub program: &'static str,
    /// How often it ran.
    pub runs: u64,
    /// For how long in all, nanoseconds.
    pub run_ns: u64,
}
