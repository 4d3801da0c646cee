//! The records that user space adds to the stream: process descriptions, clock readings, losses. Made here for
//! every source, and read back here.
//!
//! What a reader would get wrong: these are part of the stream, not beside it. A replay has no `/proc` and no
//! clock; what the engine knows of them came through a record.

use std::mem::size_of;

use bytemuck::bytes_of;
use dprof_common::drop_reason::DropReason;
use dprof_common::event::{ClockEvent, EventHeader, EventKind, LostEvent};
use dprof_common::model::ProcessInfo;

use super::BlockBuilder;
use crate::clock::ClockReading;

/// Time passes in the stream at least this often, so that open requests time out and batches go out even when
/// no event comes.
pub const CLOCK_EVERY_NS: u64 = 100_000_000;

/// Longest text of a description, bytes: `payload_len` is 16 bits and a hostile command line is long.
const TEXT_BYTES_MAX: usize = 255;

/// A record that describes a process: header (`size` = process id), then [`ProcessInfo`] as JSON.
pub fn process_record(info: &ProcessInfo) -> Vec<u8> {
    let short = ProcessInfo {
        pid: info.pid,
        comm: shorten(&info.comm),
        service: shorten(&info.service),
        container: info.container.as_deref().map(shorten),
    };
    let json = serde_json::to_vec(&short).expect("strings and a number always have a JSON form");
    let header = EventHeader {
        kind: EventKind::Process as u8,
        flags: 0,
        payload_len: u16::try_from(json.len()).expect("three texts of at most 255 bytes, escaped sixfold"),
        size: info.pid,
    };
    [bytes_of(&header), &json].concat()
}

/// Reads [`process_record`]'s bytes; `None` if they are something else or damaged.
pub fn parse_process(record: &[u8]) -> Option<ProcessInfo> {
    let (header, rest) = record.split_at_checked(size_of::<EventHeader>())?;
    let header: EventHeader = bytemuck::try_pod_read_unaligned(header).ok()?;
    if header.kind != EventKind::Process as u8 {
        return None;
    }
    serde_json::from_slice(rest.get(..usize::from(header.payload_len))?).ok()
}

/// A record that ties the two clocks together and lets time pass.
pub fn clock_record(reading: ClockReading) -> ClockEvent {
    let header = EventHeader { kind: EventKind::Clock as u8, ..EventHeader::default() };
    ClockEvent { header, monotonic_ns: reading.monotonic_ns, unix_ns: reading.unix_ns }
}

/// A record that says how many events were lost since the last one for this cause.
pub fn lost_record(reason: DropReason, count: u64, time_ns: u64) -> LostEvent {
    let header = EventHeader { kind: EventKind::Lost as u8, size: reason as u32, ..EventHeader::default() };
    LostEvent { header, time_ns, count }
}

/// Adds what a live source owes the stream beside its events: a clock reading when [`CLOCK_EVERY_NS`] have
/// passed, and losses when their counters moved.
#[derive(Debug, Default)]
pub struct Housekeeping {
    clock_due_ns: u64,
    drops: [u64; DropReason::COUNT],
}

impl Housekeeping {
    /// Whether a clock reading is due at `now_ns` (monotonic).
    pub const fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.clock_due_ns
    }

    /// Appends a clock record when one is due, before it one [`LostEvent`] per cause whose total in `drops`
    /// (index [`DropReason`]) grew. Call it after the events that were drained: every event of the stream up to
    /// a clock record is older than its reading, so read the clocks *before* draining and pass that here.
    pub fn append(
        &mut self,
        reading: ClockReading,
        drops: &[u64; DropReason::COUNT],
        block: &mut BlockBuilder,
    ) {
        for (reason, (total, told)) in DropReason::ALL.into_iter().zip(drops.iter().zip(&mut self.drops)) {
            if *total > *told {
                block.push(&[bytes_of(&lost_record(reason, *total - *told, reading.monotonic_ns))]);
                *told = *total;
            }
        }
        if self.is_due(reading.monotonic_ns) {
            block.push(&[bytes_of(&clock_record(reading))]);
            self.clock_due_ns = reading.monotonic_ns + CLOCK_EVERY_NS;
        }
    }
}

fn shorten(text: &str) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(service: &str) -> ProcessInfo {
        ProcessInfo { pid: 7, comm: "redis-server".into(), service: service.into(), container: None }
    }

    #[test]
    fn a_process_comes_back_as_it_went() {
        let record = process_record(&info("cache \"ü\""));
        assert_eq!(parse_process(&record), Some(info("cache \"ü\"")));
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let record = process_record(&info(&"ü".repeat(1000)));
        assert_eq!(parse_process(&record), Some(info(&"ü".repeat(127))));
        // Control characters take six bytes each in JSON and must still fit the 16-bit length.
        let record = process_record(&info(&"\u{1}".repeat(300)));
        assert_eq!(parse_process(&record), Some(info(&"\u{1}".repeat(255))));
    }

    #[test]
    fn damaged_descriptions_are_none() {
        let record = process_record(&info("x"));
        for end in 0..record.len() {
            assert_eq!(parse_process(&record[..end]), None, "{end}");
        }
        assert_eq!(
            parse_process(bytes_of(&clock_record(ClockReading { monotonic_ns: 1, unix_ns: 2 }))),
            None
        );
    }

    #[test]
    fn time_and_losses_enter_the_stream_once() {
        let mut keeper = Housekeeping::default();
        let kinds = |keeper: &mut Housekeeping, at_ns, drops: [u64; DropReason::COUNT]| {
            let mut block = BlockBuilder::default();
            keeper.append(ClockReading { monotonic_ns: at_ns, unix_ns: 5 }, &drops, &mut block);
            let block = block.take();
            block.records().map(|record| record.expect("whole")[0]).collect::<Vec<u8>>()
        };
        let (clock, lost) = (EventKind::Clock as u8, EventKind::Lost as u8);
        assert_eq!(kinds(&mut keeper, 1_000, [0; 4]), [clock]);
        assert_eq!(kinds(&mut keeper, 1_000 + CLOCK_EVERY_NS - 1, [0; 4]), [0_u8; 0]);
        assert_eq!(kinds(&mut keeper, 1_000 + CLOCK_EVERY_NS, [3, 0, 1, 0]), [lost, lost, clock]);
        assert_eq!(kinds(&mut keeper, 1_001 + CLOCK_EVERY_NS, [3, 0, 1, 0]), [0_u8; 0]);
        assert_eq!(kinds(&mut keeper, 1_002 + CLOCK_EVERY_NS, [4, 0, 1, 0]), [lost]);
    }
}
