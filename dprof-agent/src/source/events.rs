//! Records out of the kernel, in order: from the ring, which has one, from one buffer per CPU and the ring beside them,
//! or from one perf buffer per CPU.
//!
//! What a reader would get wrong: perf buffers are merged by the time that each record was made, and a record that is
//! made may not be readable yet. So what is younger than [`SLACK_NS`] is held back until the next look.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use anyhow::Context;
use aya::Ebpf;
use aya::maps::perf::{PerfEvent, PerfEventArray, PerfEventArrayBuffer};
use aya::maps::{MapData, RingBuf};
use aya::util::online_cpus;
use dprof_common::event::PERF_STAMP_BYTES;
use dprof_common::limits::PAYLOAD_BYTES_MAX;

use super::cpu_buffers::{self, CpuBuffers};
use super::hooks::Events;
use super::load::{cpu_blocks, cpus, take};

/// How long a record may take from its stamp to the buffer: a program is not interrupted by threads between the two,
/// only by interrupts.
const SLACK_NS: u64 = 5_000_000;

/// The kernel's page, of which a perf buffer has a power of two.
const PAGE_BYTES: usize = 4096;

/// A buffer holds two records of the largest size at least, on however many CPUs.
const PAGES_MIN: usize = 2 * PAYLOAD_BYTES_MAX / PAGE_BYTES + 1;

/// Where records come from.
pub(super) enum Reader {
    PerCpu(Box<CpuBuffers>),
    Ring(RingBuf<MapData>),
    Perf(PerfReader),
}

impl Reader {
    /// On the loaded object; `bytes` in all.
    pub(super) fn open(ebpf: &mut Ebpf, events: Events, bytes: u32) -> anyhow::Result<Self> {
        match events {
            Events::PerCpu => {
                let cpus = cpus()?;
                let buffers = CpuBuffers::open(ebpf, cpus, cpu_blocks(bytes, cpus))?;
                Ok(Self::PerCpu(Box::new(buffers)))
            }
            Events::Ring => Ok(Self::Ring(RingBuf::try_from(take(ebpf, "EVENTS")?)?)),
            Events::Perf => PerfReader::open(ebpf, bytes).map(Self::Perf),
        }
    }

    /// Hands records to `each` in order until it says stop (`false`) or none is left. Whether none is left.
    /// `now_ns`: a reading of the clock that the kernel programs stamp with, made before the call.
    pub(super) fn drain(&mut self, now_ns: u64, mut each: impl FnMut(&[u8]) -> bool) -> bool {
        match self {
            Self::Ring(ring) => {
                while let Some(record) = ring.next() {
                    if !each(&record) {
                        return false;
                    }
                }
                true
            }
            Self::PerCpu(buffers) => buffers.drain(now_ns, each),
            Self::Perf(perf) => perf.drain(now_ns, each),
        }
    }

    /// How long a record may be held back, nanoseconds: all older ones are out after a drain.
    pub(super) const fn held_ns(&self) -> u64 {
        match self {
            Self::Ring(_) => 0,
            Self::PerCpu(_) => cpu_buffers::SLACK_NS,
            Self::Perf(_) => SLACK_NS,
        }
    }
}

/// One buffer per CPU, and what is read of them but not yet due.
pub(super) struct PerfReader {
    /// Keeps the map's entries.
    _array: PerfEventArray<MapData>,
    buffers: Vec<PerfEventArrayBuffer<MapData>>,
    merge: Merge,
}

impl PerfReader {
    fn open(ebpf: &mut Ebpf, bytes: u32) -> anyhow::Result<Self> {
        let mut array = PerfEventArray::try_from(take(ebpf, "EVENTS")?)?;
        let cpus = online_cpus().map_err(|(_, error)| error).context("list the CPUs")?;
        let pages = (bytes as usize / PAGE_BYTES / cpus.len().max(1)).max(PAGES_MIN).next_power_of_two();
        let open =
            |cpu| array.open(cpu, Some(pages)).with_context(|| format!("open the perf buffer of CPU {cpu}"));
        let buffers = cpus.into_iter().map(open).collect::<anyhow::Result<_>>()?;
        Ok(Self { _array: array, buffers, merge: Merge::default() })
    }

    fn drain(&mut self, now_ns: u64, each: impl FnMut(&[u8]) -> bool) -> bool {
        // What is still waiting after a stop comes first: buffers are read again when it is gone.
        if !self.merge.has_due() {
            for buffer in &mut self.buffers {
                buffer.for_each(|event| {
                    // Losses are counted by the programs themselves.
                    if let PerfEvent::Sample { head, tail } = event {
                        self.merge.push(head, tail);
                    }
                });
            }
            self.merge.due_until(now_ns.saturating_sub(SLACK_NS));
        }
        self.merge.pop(each)
    }
}

/// Merges stamped records by time.
#[derive(Debug, Default)]
struct Merge {
    waiting: BinaryHeap<Reverse<Stamped>>,
    due_ns: u64,
    pushed: u64,
}

/// A record with its stamp; of the same stamp the one read first comes first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Stamped {
    time_ns: u64,
    nth: u64,
    record: Box<[u8]>,
}

impl Merge {
    /// Takes a sample in two pieces. One too short for a stamp is damage: decoding would refuse it, here it is left
    /// out.
    fn push(&mut self, head: &[u8], tail: &[u8]) {
        let bytes = [head, tail].concat();
        let Some((stamp, record)) = bytes.split_first_chunk::<PERF_STAMP_BYTES>() else { return };
        self.pushed += 1;
        self.waiting.push(Reverse(Stamped {
            time_ns: u64::from_ne_bytes(*stamp),
            nth: self.pushed,
            record: record.into(),
        }));
    }

    /// Everything up to this time has been read.
    const fn due_until(&mut self, time_ns: u64) {
        self.due_ns = time_ns;
    }

    fn has_due(&self) -> bool {
        self.waiting.peek().is_some_and(|Reverse(first)| first.time_ns <= self.due_ns)
    }

    /// Hands out what is due. Whether all of it is out.
    fn pop(&mut self, mut each: impl FnMut(&[u8]) -> bool) -> bool {
        while self.has_due() {
            let Some(Reverse(first)) = self.waiting.pop() else { break };
            if !each(&first.record) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::Merge;

    /// Samples in the order read, each a time and a name; which come out when all before `due` has been read.
    #[track_caller]
    fn check(samples: &[(u64, u8)], due: u64, expected: &[u8]) {
        let mut merge = Merge::default();
        for (time_ns, name) in samples {
            let bytes = [&time_ns.to_ne_bytes()[..], &[*name]].concat();
            // Cut anywhere: a sample may lie across the end of its buffer.
            let cut = usize::from(*name) % bytes.len();
            merge.push(&bytes[..cut], &bytes[cut..]);
        }
        merge.due_until(due);
        let mut out = Vec::new();
        assert!(merge.pop(|record| {
            out.extend_from_slice(record);
            true
        }));
        assert_eq!(out, expected);
    }

    #[test]
    fn records_of_several_cpus_come_out_by_time_and_none_too_early() {
        check(&[(10, b'a'), (30, b'c'), (20, b'b'), (40, b'd')], 30, b"abc");
        check(&[(10, b'a'), (10, b'b'), (10, b'c')], 10, b"abc");
        check(&[(10, b'a')], 9, b"");
        check(&[], u64::MAX, b"");
    }

    #[test]
    fn a_reader_that_stops_goes_on_where_it_stopped() {
        let mut merge = Merge::default();
        for time_ns in [2_u64, 1, 3] {
            merge.push(&time_ns.to_ne_bytes(), &[time_ns as u8]);
        }
        merge.due_until(3);
        let mut out = Vec::new();
        while !merge.pop(|record| {
            out.extend_from_slice(record);
            false
        }) {}
        assert_eq!(out, [1, 2, 3]);
    }

    #[test]
    fn what_holds_no_stamp_is_left_out() {
        let mut merge = Merge::default();
        merge.push(&[1, 2], &[3]);
        merge.due_until(u64::MAX);
        assert!(!merge.has_due());
    }
}
