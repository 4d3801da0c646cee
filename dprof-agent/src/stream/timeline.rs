//! When the bytes of one direction crossed the wire, and which call moved them.
//!
//! A message is a byte range, so its times are questions about its first and its last byte. The timeline keeps
//! the answers from the first byte of the oldest unfinished message on. What a reader would get wrong: a byte's
//! wire time comes from the first mark that ends *after* it; calls and marks are two lists because one read may
//! take many segments, and one segment may be taken by many reads.

use std::collections::VecDeque;

use dprof_common::event::Arrival;

use super::{Call, Chunk, Wire};

/// A call larger than this leaves as several segments (64 KiB is the largest a TCP segment gets before the
/// driver cuts it), so the departure of its last byte says little about its first.
const SEGMENT_BYTES_MAX: u64 = 64 * 1024;

/// Calls remembered per direction. A message needs its first and its last call; more are kept for pipelines of
/// unfinished messages. One byte per write makes a call per byte, so the middle must be bounded.
const CALLS_MAX: usize = 256;

/// Marks remembered per direction: several segments per call.
const MARKS_MAX: usize = 512;

/// A call's end and its maker.
#[derive(Clone, Copy, Debug)]
struct CallMark {
    end: u64,
    hook_ns: u64,
    tgid: u32,
    tid: u32,
}

/// Bytes before `end` (and after the last mark's) crossed the wire at `time_ns`.
#[derive(Clone, Copy, Debug)]
struct WireMark {
    end: u64,
    /// 0 = not known.
    time_ns: u64,
    approximate: bool,
}

/// What is known of one byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ByteTimes {
    /// Departure or arrival.
    pub(crate) wire_ns: Option<u64>,
    /// Whether `wire_ns` is approximate.
    pub(crate) approximate: bool,
    /// The call's own time.
    pub(crate) hook_ns: u64,
    /// Process that made the call.
    pub(crate) tgid: u32,
    /// Thread that made it.
    pub(crate) tid: u32,
    /// Position after the call's last byte: names the call.
    pub(crate) call_end: u64,
}

/// Times of one direction of a socket.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    calls: VecDeque<CallMark>,
    marks: VecDeque<WireMark>,
}

impl Timeline {
    /// Adds a placed call. `arrivals` are the per-segment arrivals that came with it. Returns whether older
    /// calls were merged to keep the bound.
    pub(crate) fn push(&mut self, chunk: &Chunk<'_>, arrivals: &mut Vec<Arrival>) -> bool {
        let (call, end) = (&chunk.call, chunk.end());
        self.calls.push_back(CallMark { end, hook_ns: call.hook_ns, tgid: call.tgid, tid: call.tid });
        match call.wire {
            Wire::Departed { unsent, first_ns } => {
                let departed = end.saturating_sub(u64::from(unsent)).max(chunk.start);
                // Between the first byte and the last, the last's is an upper bound.
                let is_long = first_ns != 0 || chunk.size > SEGMENT_BYTES_MAX;
                if first_ns != 0 && departed > chunk.start + 1 {
                    self.mark(chunk.start + 1, first_ns.min(call.hook_ns), false);
                }
                if is_long && departed > chunk.start + 1 {
                    self.mark(departed - 1, call.hook_ns, true);
                }
                if departed > chunk.start {
                    self.mark(departed, call.hook_ns, call.approximate);
                }
                if departed < end {
                    self.mark(end, 0, false);
                }
            }
            Wire::Arrived { first_ns, last_ns } if arrivals.is_empty() => {
                if first_ns != last_ns && chunk.size > 1 {
                    self.mark(chunk.start + 1, first_ns, false);
                    self.mark(end - 1, last_ns, true);
                }
                self.mark(end, last_ns, false);
            }
            Wire::Arrived { last_ns, .. } => {
                for arrival in arrivals.iter().filter(|arrival| arrival.end_pos > chunk.start) {
                    self.mark(arrival.end_pos.min(end), arrival.time_ns, call.approximate);
                }
                // The last entry covers the rest; the last byte's own arrival is exact in any case.
                if call.approximate && chunk.size > 1 {
                    self.mark(end - 1, last_ns, true);
                }
                self.mark(end, last_ns, false);
            }
            Wire::Unknown => self.mark(end, 0, false),
        }
        arrivals.clear();
        self.bound()
    }

    /// The bytes before `end` were moved by calls that were not seen, the last of them before `next`. Their times
    /// are not known; what stands for them says that it is approximate.
    pub(crate) fn gap(&mut self, end: u64, next: &Call) {
        self.calls.push_back(CallMark { end, hook_ns: next.hook_ns, tgid: next.tgid, tid: next.tid });
        if self.marks.back().is_none_or(|last| last.end < end) {
            self.marks.push_back(WireMark { end, time_ns: 0, approximate: true });
        }
        self.bound();
    }

    fn mark(&mut self, end: u64, time_ns: u64, approximate: bool) {
        if self.marks.back().is_none_or(|last| last.end < end) {
            self.marks.push_back(WireMark { end, time_ns, approximate });
        }
    }

    /// Keeps the first entry, which holds the first byte of the oldest unfinished message, and gives the bytes
    /// of the next ones to their successors.
    fn bound(&mut self) -> bool {
        let merged = self.calls.len() > CALLS_MAX || self.marks.len() > MARKS_MAX;
        while self.calls.len() > CALLS_MAX {
            self.calls.remove(1);
        }
        while self.marks.len() > MARKS_MAX {
            self.marks.remove(1);
            if let Some(heir) = self.marks.get_mut(1) {
                heir.approximate = true;
            }
        }
        merged
    }

    /// What is known of the byte at `pos`; of the nearest later byte when `pos` was never seen.
    pub(crate) fn at(&self, pos: u64) -> ByteTimes {
        let call = find(&self.calls, pos, |call| call.end);
        let mark = find(&self.marks, pos, |mark| mark.end);
        ByteTimes {
            wire_ns: mark.map(|mark| mark.time_ns).filter(|time_ns| *time_ns != 0),
            approximate: mark.is_some_and(|mark| mark.approximate),
            hook_ns: call.map_or(0, |call| call.hook_ns),
            tgid: call.map_or(0, |call| call.tgid),
            tid: call.map_or(0, |call| call.tid),
            call_end: call.map_or(0, |call| call.end),
        }
    }

    /// Forgets bytes before `pos`.
    pub(crate) fn trim(&mut self, pos: u64) {
        while self.calls.front().is_some_and(|call| call.end <= pos) {
            self.calls.pop_front();
        }
        while self.marks.front().is_some_and(|mark| mark.end <= pos) {
            self.marks.pop_front();
        }
    }

    /// Entries held, for tests of the bound.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.calls.len() + self.marks.len()
    }
}

/// First entry that ends after `pos`, else the last. Most questions are about the only entry there is.
fn find<T: Copy>(entries: &VecDeque<T>, pos: u64, end: impl Fn(&T) -> u64) -> Option<T> {
    match entries.front() {
        Some(first) if end(first) > pos => Some(*first),
        _ => entries.get(entries.partition_point(|entry| end(entry) <= pos)).or(entries.back()).copied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Direction;
    use crate::stream::Call;

    fn chunk(start: u64, size: u64, hook_ns: u64, wire: Wire) -> Chunk<'static> {
        let direction = if matches!(wire, Wire::Departed { .. }) { Direction::Out } else { Direction::In };
        let call = Call {
            direction,
            end_pos: start + size,
            size: size as u32,
            tgid: 1,
            tid: 2,
            hook_ns,
            wire,
            approximate: false,
        };
        Chunk { call, start, size, payload: b"" }
    }

    /// `expected`: position, wire time (0 = none), approximate, the call's time.
    #[track_caller]
    fn check(
        calls: &[(u64, u64, u64, Wire)],
        arrivals: &[(u64, u64)],
        expected: &[(u64, u64, bool, u64)],
    ) -> Timeline {
        let mut timeline = Timeline::default();
        let mut arrivals: Vec<Arrival> = arrivals
            .iter()
            .map(|(end_pos, time_ns)| Arrival { end_pos: *end_pos, time_ns: *time_ns })
            .collect();
        for (start, size, hook_ns, wire) in calls {
            timeline.push(&chunk(*start, *size, *hook_ns, *wire), &mut arrivals);
        }
        for (pos, wire_ns, approximate, hook_ns) in expected {
            let at = timeline.at(*pos);
            assert_eq!(
                (at.wire_ns.unwrap_or(0), at.approximate, at.hook_ns),
                (*wire_ns, *approximate, *hook_ns),
                "byte {pos}"
            );
        }
        timeline
    }

    const ALL: Wire = Wire::Departed { unsent: 0, first_ns: 0 };

    #[test]
    fn a_byte_belongs_to_the_call_that_moved_it() {
        check(
            &[(0, 5, 10, ALL), (5, 5, 20, ALL)],
            &[],
            &[(0, 10, false, 10), (4, 10, false, 10), (5, 20, false, 20)],
        );
    }

    #[test]
    fn unsent_bytes_have_no_departure() {
        let wire = Wire::Departed { unsent: 2, first_ns: 0 };
        check(&[(0, 5, 10, wire)], &[], &[(2, 10, false, 10), (3, 0, false, 10), (4, 0, false, 10)]);
        // None of this call departed, and neither did the end of the call before.
        check(&[(0, 5, 10, Wire::Departed { unsent: 9, first_ns: 0 })], &[], &[(0, 0, false, 10)]);
    }

    #[test]
    fn the_first_byte_of_a_large_call_is_approximate_and_its_last_is_not() {
        check(&[(0, 65_537, 10, ALL)], &[], &[(0, 10, true, 10), (65_536, 10, false, 10)]);
        check(&[(0, 65_536, 10, ALL)], &[], &[(0, 10, false, 10)]);
    }

    #[test]
    fn a_told_first_departure_is_exact_and_what_lies_between_is_an_upper_bound() {
        let wire = Wire::Departed { unsent: 0, first_ns: 4 };
        check(&[(0, 1000, 10, wire)], &[], &[(0, 4, false, 10), (1, 10, true, 10), (999, 10, false, 10)]);
        let wire = Wire::Departed { unsent: 990, first_ns: 4 };
        check(&[(0, 1000, 10, wire)], &[], &[(0, 4, false, 10), (9, 10, false, 10), (10, 0, false, 10)]);
        // Later than the last departure it can't be.
        check(&[(0, 9, 3, wire)], &[], &[(0, 0, false, 3)]);
    }

    #[test]
    fn arrivals_tell_segments_of_one_read_apart() {
        let wire = Wire::Arrived { first_ns: 1, last_ns: 3 };
        let segments = [(5, 1), (10, 2), (15, 3)];
        let expected = [(0, 1, false, 50), (4, 1, false, 50), (5, 2, false, 50), (14, 3, false, 50)];
        check(&[(0, 15, 50, wire)], &segments, &expected);
        // The last entry covers the rest.
        check(&[(0, 20, 50, wire)], &segments, &[(19, 3, false, 50)]);
        // Entries before the read or beyond it harm nothing.
        check(&[(6, 2, 50, wire)], &[(5, 1), (99, 2)], &[(6, 2, false, 50), (7, 2, false, 50)]);
    }

    #[test]
    fn without_segments_the_middle_of_a_read_is_an_upper_bound() {
        let wire = Wire::Arrived { first_ns: 1, last_ns: 9 };
        check(&[(0, 10, 50, wire)], &[], &[(0, 1, false, 50), (5, 9, true, 50), (9, 9, false, 50)]);
        check(&[(0, 10, 50, Wire::Unknown)], &[], &[(0, 0, false, 50)]);
    }

    #[test]
    fn one_byte_per_write_stays_bounded_and_keeps_first_and_last() {
        let mut timeline = Timeline::default();
        for pos in 0..100_000 {
            timeline.push(&chunk(pos, 1, pos + 1, ALL), &mut Vec::new());
        }
        assert!(timeline.len() <= CALLS_MAX + MARKS_MAX);
        assert_eq!(timeline.at(0).wire_ns, Some(1));
        assert_eq!(timeline.at(99_999).wire_ns, Some(100_000));
        timeline.trim(100_000);
        assert_eq!(timeline.len(), 0);
        assert_eq!(timeline.at(5), ByteTimes::default());
    }
}
