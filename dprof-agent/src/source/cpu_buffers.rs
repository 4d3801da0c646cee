//! Records out of the buffers of all CPUs and the ring beside them, merged by time, from where the programs wrote them.
//!
//! The problem: each buffer is in order, but they have none among each other, and a record may become readable after a
//! later one of another CPU. The idea: a record is handed out once no other with an earlier time can be on its way, that
//! is when it is older than the look at the buffers by [`SLACK_NS`]; of those, the earliest first. What stays is left
//! where it is, so nothing is copied and nothing sorted.
//!
//! What a reader would get wrong: a send's time is its departure, some microseconds before its record is made, or more
//! when the thread lost the CPU between the two. Records of one CPU never change places for that: where a time is
//! earlier than that of the record before, it counts as that. One that is found too late to be in order goes out at
//! once: other sockets' records were before it then, as they were before it in the ring.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::mem::offset_of;
use std::os::fd::AsFd as _;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use aya::Ebpf;
use aya::maps::{Map, MapData, RingBuf};
use dprof_common::cpu_buffer::{
    ALIGNMENT, BLOCK_BYTES, CpuBuffer, PREFIX_BYTES, RECORD_BYTES_MAX, block, end, offset, start,
};
use dprof_common::event::{
    CloseEvent, EventKind, FirstDepartureEvent, ListenEvent, OpenEvent, RecvEvent, RetransmitEvent, SendEvent,
};
use memmap2::{MmapOptions, MmapRaw};

use super::load::take;

/// How long a record may take from its time to the buffer. A program runs for a microsecond, and may be interrupted.
pub(super) const SLACK_NS: u64 = 1_000_000;

/// The buffers and the ring.
pub(super) struct CpuBuffers {
    ring: RingBuf<MapData>,
    merge: Merge,
    /// What `merge` reads and writes; the last to be dropped.
    _memory: [MmapRaw; 2],
    /// Keeps the maps.
    _maps: [MapData; 2],
}

impl CpuBuffers {
    /// On the loaded object: `blocks` per CPU.
    pub(super) fn open(ebpf: &mut Ebpf, cpus: u32, blocks: u32) -> anyhow::Result<Self> {
        let array = |map| match map {
            Map::Array(data) => Ok(data),
            _ => Err(anyhow::anyhow!("CPU_BUFFERS and BLOCKS are arrays: build the kernel programs again")),
        };
        let maps = [array(take(ebpf, "CPU_BUFFERS")?)?, array(take(ebpf, "BLOCKS")?)?];
        let (n_cpus, n_blocks) = (cpus as usize, (cpus * blocks) as usize);
        let control = MmapOptions::new()
            .len(n_cpus * size_of::<CpuBuffer>())
            .map_raw(&maps[0].fd().as_fd())
            .context("map CPU_BUFFERS")?;
        let data = MmapOptions::new()
            .len(n_blocks * BLOCK_BYTES)
            .map_raw_read_only(&maps[1].fd().as_fd())
            .context("map BLOCKS")?;
        #[expect(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
        let buffers = control.as_mut_ptr().cast::<CpuBuffer>();
        let lanes = (0..n_cpus).map(|cpu| {
            // SAFETY: inside the two maps, by their lengths.
            unsafe {
                Lane::new(buffers.add(cpu), data.as_ptr().add(cpu * blocks as usize * BLOCK_BYTES), blocks)
            }
        });
        Ok(Self {
            merge: Merge::new(lanes.collect()),
            ring: RingBuf::try_from(take(ebpf, "EVENTS")?)?,
            _memory: [control, data],
            _maps: maps,
        })
    }

    /// Hands out what is older than `now_ns` by [`SLACK_NS`], in order, until `each` says stop (`false`). Whether none
    /// of it is left. `now_ns`: `CLOCK_MONOTONIC`, read before the call.
    pub(super) fn drain(&mut self, now_ns: u64, each: impl FnMut(&[u8]) -> bool) -> bool {
        let Self { ring, merge, .. } = self;
        merge.drain(now_ns, |held| ring.next().map(|record| held.extend_from_slice(&record)).is_some(), each)
    }
}

/// The buffer of one CPU.
struct Lane {
    control: *mut CpuBuffer,
    data: *const u8,
    blocks: u32,
    /// Up to which it was written when it was looked at.
    written: u64,
    /// Up to which it was read; the programs are told after a drain.
    read: u64,
    order: Order,
}

/// Times of a lane's records, made to grow.
#[derive(Clone, Copy, Debug, Default)]
struct Order {
    /// Latest so far.
    latest_ns: u64,
    /// That of the next record is in it.
    has_next: bool,
}

impl Order {
    /// Time at which the next record counts; `record_ns`: its own. One from the future would hold back all after it:
    /// it counts as of the look that found it, at `now_ns`.
    fn next(&mut self, record_ns: u64, now_ns: u64) -> u64 {
        if !self.has_next {
            self.has_next = true;
            self.latest_ns = record_ns.min(now_ns).max(self.latest_ns);
        }
        self.latest_ns
    }
}

// SAFETY: the pointers are into memory that is shared with the kernel's programs, not with other threads.
unsafe impl Send for Lane {}

impl Lane {
    /// # Safety
    /// `control` and `data` (`blocks` blocks) stay valid as long as this, and nobody else reads from this buffer.
    unsafe fn new(control: *mut CpuBuffer, data: *const u8, blocks: u32) -> Self {
        let mut lane = Self { control, data, blocks, written: 0, read: 0, order: Order::default() };
        lane.read = lane.position(offset_of!(CpuBuffer, read)).load(Ordering::Relaxed);
        lane
    }

    /// One of the two positions.
    fn position(&self, at: usize) -> &AtomicU64 {
        // SAFETY: inside the structure and aligned, by `new` and the callers.
        unsafe { AtomicU64::from_ptr(self.control.byte_add(at).cast()) }
    }

    /// Notes how far it is written.
    fn look(&mut self) {
        self.written = self.position(offset_of!(CpuBuffer, written)).load(Ordering::Acquire);
    }

    /// The programs may write over what was read.
    fn give_back(&self) {
        self.position(offset_of!(CpuBuffer, read)).store(self.read, Ordering::Release);
    }

    /// The next record; `None` = none when it was looked at.
    fn peek(&mut self) -> Option<&[u8]> {
        if self.read >= self.written {
            return None;
        }
        let begins = start(self.read);
        let block = block(begins, self.blocks) as usize;
        // SAFETY: inside this buffer's blocks, with the largest record after it; the programs write it no more.
        let record = unsafe {
            let at = self.data.add(block * BLOCK_BYTES + offset(self.read));
            let length = u64::from_ne_bytes(ptr::read(at.cast()));
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            (length <= RECORD_BYTES_MAX - PREFIX_BYTES)
                .then(|| std::slice::from_raw_parts(at.add(PREFIX_BYTES), length))
        };
        if record.is_none() {
            // Nothing that the programs write: what came after it cannot be found.
            log::warn!("an event buffer is damaged: {} bytes of it are skipped", self.written - self.read);
            self.read = self.written;
        }
        record
    }

    /// The record of the last [`Lane::peek`], of `length` bytes, has been handed out.
    fn pass(&mut self, length: usize) {
        self.read = end(start(self.read), length);
        self.order.has_next = false;
    }
}

/// Buffers in the order of their next records.
struct Merge {
    lanes: Vec<Lane>,
    /// Next record of the ring, taken out of it; empty = none.
    held: Vec<u8>,
    /// Of the ring's records.
    held_order: Order,
    /// Times of next records, and of which lane; the one after the last is the ring.
    next: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Merge {
    fn new(lanes: Vec<Lane>) -> Self {
        Self { lanes, held: Vec::new(), held_order: Order::default(), next: BinaryHeap::new() }
    }

    /// See [`CpuBuffers::drain`]; `ring` appends its next record, or says that there is none.
    fn drain(
        &mut self,
        now_ns: u64,
        mut ring: impl FnMut(&mut Vec<u8>) -> bool,
        mut each: impl FnMut(&[u8]) -> bool,
    ) -> bool {
        let due_ns = now_ns.saturating_sub(SLACK_NS);
        self.next.clear();
        for lane in &mut self.lanes {
            lane.look();
        }
        for idx in 0..=self.lanes.len() {
            if let Some(time_ns) = self.peek(idx, now_ns, &mut ring) {
                self.next.push(Reverse((time_ns, idx)));
            }
        }
        let mut goes_on = true;
        while goes_on && let Some(Reverse((mut time_ns, idx))) = self.next.pop() {
            // As long as this one's records come before those of all others.
            let until_ns = self.next.peek().map_or(due_ns, |Reverse((first, _))| due_ns.min(*first));
            if time_ns > due_ns {
                break;
            }
            loop {
                goes_on = self.hand_out(idx, &mut each);
                let Some(then_ns) = self.peek(idx, now_ns, &mut ring) else { break };
                time_ns = then_ns;
                if !goes_on || time_ns > until_ns {
                    self.next.push(Reverse((time_ns, idx)));
                    break;
                }
            }
        }
        for lane in &self.lanes {
            lane.give_back();
        }
        goes_on || self.next.peek().is_none_or(|Reverse((first, _))| *first > due_ns)
    }

    /// Time at which the next record of a lane counts.
    fn peek(&mut self, idx: usize, now_ns: u64, ring: &mut impl FnMut(&mut Vec<u8>) -> bool) -> Option<u64> {
        if let Some(lane) = self.lanes.get_mut(idx) {
            let record_ns = time_of(lane.peek()?);
            return Some(lane.order.next(record_ns, now_ns));
        }
        if self.held.is_empty() && !ring(&mut self.held) {
            return None;
        }
        Some(self.held_order.next(time_of(&self.held), now_ns))
    }

    /// Hands out the next record of a lane, which there is. What `each` says.
    fn hand_out(&mut self, idx: usize, each: &mut impl FnMut(&[u8]) -> bool) -> bool {
        let Some(lane) = self.lanes.get_mut(idx) else {
            let goes_on = each(&self.held);
            self.held.clear();
            self.held_order.has_next = false;
            return goes_on;
        };
        let Some(record) = lane.peek() else { return true };
        let (length, goes_on) = (record.len(), each(record));
        lane.pass(length);
        goes_on
    }
}

/// `CLOCK_MONOTONIC` nanoseconds that a record is ordered by; 0 = it counts as the one before it.
fn time_of(record: &[u8]) -> u64 {
    let at = match record.first().copied().and_then(EventKind::from_u8) {
        Some(EventKind::Open) => offset_of!(OpenEvent, time_ns),
        Some(EventKind::Close) => offset_of!(CloseEvent, time_ns),
        Some(EventKind::Send) => offset_of!(SendEvent, time_ns),
        Some(EventKind::Recv) => offset_of!(RecvEvent, read_ns),
        Some(EventKind::Retransmit) => offset_of!(RetransmitEvent, time_ns),
        Some(EventKind::Listen) => offset_of!(ListenEvent, time_ns),
        Some(EventKind::FirstDeparture) => offset_of!(FirstDepartureEvent, time_ns),
        // Of the read that comes after it, at its end.
        Some(EventKind::Arrivals) => record.len().saturating_sub(size_of::<u64>()),
        // Of user space: the programs write none.
        None
        | Some(
            EventKind::Process | EventKind::Clock | EventKind::Lost | EventKind::Window | EventKind::Ports,
        ) => return 0,
    };
    let time = record.get(at..at + size_of::<u64>()).and_then(|bytes| bytes.try_into().ok());
    time.map_or(0, u64::from_ne_bytes)
}

const _: () = assert!(ALIGNMENT == align_of::<u64>());

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;
    use dprof_common::cpu_buffer::is_full;
    use dprof_common::event::{Arrival, ArrivalsEvent, EventHeader};
    use dprof_common::limits::ARRIVALS_MAX;

    use super::*;

    const BLOCKS: u32 = 2;

    /// The buffer of a CPU as the programs write it.
    struct Writer {
        control: Box<CpuBuffer>,
        data: Vec<u64>,
    }

    impl Writer {
        fn new() -> Self {
            let control =
                Box::new(CpuBuffer { written: 0, busy: 0, padding: [0; 6], read: 0, padding_after: [0; 7] });
            Self { control, data: vec![0; BLOCKS as usize * BLOCK_BYTES / 8] }
        }

        fn lane(&mut self) -> Lane {
            // SAFETY: both live as long as the test, which keeps the writer.
            unsafe { Lane::new(&raw mut *self.control, self.data.as_ptr().cast(), BLOCKS) }
        }

        /// Whether there was room.
        fn write(&mut self, record: &[u8]) -> bool {
            let begins = start(self.control.written);
            if is_full(begins, self.control.read, BLOCKS) {
                return false;
            }
            let at = block(begins, BLOCKS) as usize * BLOCK_BYTES + offset(begins);
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.data);
            bytes[at..at + PREFIX_BYTES].copy_from_slice(&(record.len() as u64).to_ne_bytes());
            bytes[at + PREFIX_BYTES..][..record.len()].copy_from_slice(record);
            self.control.written = end(begins, record.len());
            true
        }
    }

    /// A record with a time, and a name after it.
    fn record(time_ns: u64, name: &[u8]) -> Vec<u8> {
        let header = EventHeader { kind: EventKind::Send as u8, ..EventHeader::zeroed() };
        let event = SendEvent { header, time_ns, ..SendEvent::zeroed() };
        [bytemuck::bytes_of(&event), name].concat()
    }

    /// What comes out of CPUs (a list of records in order each: time and name) and the ring (the last list).
    #[track_caller]
    fn check(lists: &[&[(u64, u8)]], now_ns: u64, expected: &[u8]) {
        let (ring, cpus) = lists.split_last().expect("the ring's list is there");
        let mut writers: Vec<Writer> = cpus.iter().map(|_| Writer::new()).collect();
        for (writer, list) in writers.iter_mut().zip(cpus) {
            for (time_ns, name) in *list {
                assert!(writer.write(&record(*time_ns, &[*name])));
            }
        }
        let mut merge = Merge::new(writers.iter_mut().map(Writer::lane).collect());
        let mut ring = ring.iter();
        let mut out = Vec::<u8>::new();
        // Stopped after each record: goes on where it stopped.
        while !merge.drain(
            now_ns,
            |held| ring.next().map(|(time_ns, name)| held.extend(record(*time_ns, &[*name]))).is_some(),
            |record| {
                out.extend(record.last());
                false
            },
        ) {}
        assert_eq!(out, expected);
    }

    #[test]
    fn records_come_out_by_time_and_none_too_early() {
        let now_ns = 30 + SLACK_NS;
        check(&[&[(10, b'a'), (30, b'd')], &[(20, b'b'), (40, b'x')], &[(25, b'c')]], now_ns, b"abcd");
        check(&[&[(31, b'x')], &[]], now_ns, b"");
        check(&[&[]], now_ns, b"");
        check(&[&[(1, b'a'), (2, b'b'), (3, b'c')], &[(3, b'd')], &[]], now_ns, b"abcd");
    }

    #[test]
    fn records_of_one_cpu_never_change_places() {
        let now_ns = 100 + SLACK_NS;
        check(&[&[(20, b'b'), (10, b'c'), (30, b'e')], &[(15, b'a'), (25, b'd')], &[]], now_ns, b"abcde");
        check(&[&[], &[(20, b'a'), (0, b'b')]], now_ns, b"ab");
    }

    #[test]
    fn arrivals_count_as_the_read_after_them() {
        let header = EventHeader { kind: EventKind::Arrivals as u8, size: 1, ..EventHeader::zeroed() };
        let arrivals = ArrivalsEvent { header, ..ArrivalsEvent::zeroed() };
        let filled = size_of::<ArrivalsEvent>() - (ARRIVALS_MAX - 1) * size_of::<Arrival>();
        let record = [&bytemuck::bytes_of(&arrivals)[..filled], &70_u64.to_ne_bytes()].concat();
        assert_eq!(time_of(&record), 70);
    }

    #[test]
    fn one_from_the_future_holds_nothing_back_for_long() {
        let mut writer = Writer::new();
        assert!(writer.write(&record(u64::MAX, b"a")) && writer.write(&record(50, b"b")));
        let mut merge = Merge::new(vec![writer.lane()]);
        let mut out = Vec::<u8>::new();
        for now_ns in [100 + SLACK_NS, 100 + 2 * SLACK_NS] {
            assert!(merge.drain(
                now_ns,
                |_| false,
                |record| {
                    out.extend(record.last());
                    true
                }
            ));
        }
        assert_eq!(out, b"ab");
    }

    #[test]
    fn everything_comes_out_once_round_and_round_and_what_has_no_room_is_refused() {
        let mut writers = [Writer::new(), Writer::new()];
        let mut merge = Merge::new(writers.iter_mut().map(Writer::lane).collect());
        let (mut wrote, mut read, mut refused) = (Vec::new(), Vec::new(), 0);
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for n in 0..40_000_u64 {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let length =
                (random >> 33) as usize % (RECORD_BYTES_MAX - PREFIX_BYTES - size_of::<SendEvent>() - 7);
            let record = record(n, &[&n.to_ne_bytes()[..], &vec![n as u8; length]].concat());
            if writers[(random >> 60) as usize % 2].write(&record) {
                wrote.push(record);
            } else {
                refused += 1;
            }
            // Now and then, so that buffers fill up in between.
            if random >> 57 == 0 {
                assert!(merge.drain(
                    u64::MAX,
                    |_| false,
                    |record| {
                        read.push(record.to_vec());
                        true
                    }
                ));
                assert!(read == wrote, "at {n}: {} of {}", read.len(), wrote.len());
                (read, wrote) = (Vec::new(), Vec::new());
            }
        }
        assert!(refused > 100, "{refused}");
    }

    #[test]
    fn what_is_no_record_is_skipped_and_the_next_ones_are_found() {
        let mut writer = Writer::new();
        assert!(writer.write(&record(1, b"a")));
        writer.data[0] = u64::MAX;
        let mut merge = Merge::new(vec![writer.lane()]);
        let mut out = Vec::<u8>::new();
        for _ in 0..2 {
            assert!(merge.drain(
                u64::MAX,
                |_| false,
                |record| {
                    out.extend(record.last());
                    true
                }
            ));
            assert!(writer.write(&record(2, b"b")));
        }
        assert_eq!(out, b"b");
    }
}
