//! Raw end positions → ranges. Usually a call's bytes are `[end_pos - size, end_pos)`, right after the last
//! call's. When they are not, either a call was not seen (a gap), or two threads used one socket: the hook runs
//! after the socket's lock is released, so it may read a position that another thread has moved on.
//!
//! Which of the two it is shows a moment later: with a second writer the sizes of the calls sum up to the
//! position reached, with a gap they never do. So a call that does not fit is held, with all calls of its socket
//! that follow (their order matters to pairing), until the sum is right or a limit is reached. What a reader
//! would get wrong: this reorders calls of one direction among themselves only, by position.

use bytes::Bytes;
use dprof_common::event::Arrival;

use super::Call;
use crate::protocol::Direction;

/// Calls held of one socket. A race resolves with the other thread's next event; more calls than this without a
/// resolution are a gap.
pub(crate) const HELD_CALLS_MAX: usize = 16;

/// Calls are held this long at most: a thread that lost the CPU between lock and hook is back by then, and no
/// message waits longer for its span.
pub(crate) const HELD_NS: u64 = 10_000_000;

/// Positions beyond this are refused as damage: 4 EiB through one connection.
pub(crate) const POSITION_MAX: u64 = 1 << 62;

/// After this many bursts of held calls in a row in which the stream grew by a little more than each call, with no
/// event lost, the positions are not those of the calls' bytes (kTLS adds a record's frame): sizes are counted
/// instead. The kernel programs say so themselves where they can read the socket's functions.
const UNRESOLVED_MAX: u8 = 3;

/// Calls of a burst that must all be odd in this way: half of those held, as where requests and answers alternate.
/// Calls that were not seen would have to be small and every second one, this many times, in each burst.
const ODD_CALLS_MIN: usize = HELD_CALLS_MAX / 2;

/// A record of TLS adds at most this to a call's bytes: header, explicit nonce, tag (29 with AES-GCM in TLS 1.2),
/// and some padding.
const RECORD_FRAME_BYTES_MAX: u64 = 64;

/// And holds at most this of them (RFC 8446, section 5.1).
const RECORD_BYTES_MAX: u64 = 16 * 1024;

/// A call that waits for its place, with a copy of its payload.
#[derive(Debug)]
pub(crate) struct HeldCall {
    /// The call; `end_pos` is set right when the burst is resolved.
    pub(crate) call: Call,
    /// Copy of the payload: the block goes on.
    pub(crate) payload: Bytes,
    /// Arrivals that came with it.
    pub(crate) arrivals: Vec<Arrival>,
}

/// Where a call's bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Right after the last call.
    Fits {
        /// First byte.
        start: u64,
    },
    /// Bytes before `start` were not seen.
    AfterGap {
        /// First byte.
        start: u64,
        /// How many are missing.
        missing: u64,
    },
    /// The first bytes, up to the position known, were seen before.
    Overlaps {
        /// First byte.
        start: u64,
    },
    /// No position that a stream can have.
    Impossible,
}

/// Positions of a socket's two directions.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Positions {
    /// Position of the next byte, per [`Direction::idx`]; `None` before the first call of a connection that is
    /// older than the agent.
    next: [Option<u64>; 2],
    /// Sizes are counted: positions are no longer the kernel's.
    counted: [bool; 2],
    unresolved: [u8; 2],
}

impl Positions {
    /// Positions before the first byte.
    pub(crate) const fn new(next: [Option<u64>; 2]) -> Self {
        Self { next, counted: [false; 2], unresolved: [0; 2] }
    }

    /// Position of the next byte of `direction`, if known.
    pub(crate) const fn next(&self, direction: Direction) -> Option<u64> {
        self.next[direction.idx()]
    }

    /// Whether either direction's positions are counted rather than the kernel's.
    pub(crate) const fn is_counted(&self) -> bool {
        self.counted[0] || self.counted[1]
    }

    /// Positions are not those of the calls' bytes: sizes are counted from now on.
    pub(crate) const fn count(&mut self) {
        self.counted = [true; 2];
    }

    /// Places `call`. Changes nothing: [`Positions::advance`] does.
    pub(crate) fn place(&self, call: &Call) -> Place {
        let d = call.direction.idx();
        let size = u64::from(call.size);
        if let (true, Some(next)) = (self.counted[d], self.next[d]) {
            return if next < POSITION_MAX { Place::Fits { start: next } } else { Place::Impossible };
        }
        let Some(start) = call.end_pos.checked_sub(size).filter(|_| call.end_pos < POSITION_MAX) else {
            return Place::Impossible;
        };
        match self.next[d] {
            Some(next) if start > next => Place::AfterGap { start, missing: start - next },
            Some(next) if start < next => Place::Overlaps { start },
            Some(_) | None => Place::Fits { start },
        }
    }

    /// The bytes of `direction` up to `end` are done with.
    pub(crate) const fn advance(&mut self, direction: Direction, end: u64) {
        self.next[direction.idx()] = Some(end);
    }

    /// A call that fits directly: what was odd before is over.
    pub(crate) const fn fitted(&mut self, direction: Direction) {
        self.unresolved[direction.idx()] = 0;
    }

    /// Tries to lay the held calls out so that sizes and positions agree in both directions. If so, puts them in
    /// order and sets their `end_pos` right.
    pub(crate) fn resolve(&self, held: &mut [HeldCall]) -> bool {
        let agrees = |direction: Direction| {
            let calls = || held.iter().map(|held| &held.call).filter(|call| call.direction == direction);
            let Some(reached) = calls().map(|call| call.end_pos).max() else { return true };
            let sum: u64 = calls().map(|call| u64::from(call.size)).sum();
            let d = direction.idx();
            self.counted[d]
                || reached < POSITION_MAX
                    && self.next[d].is_some_and(|next| next.checked_add(sum) == Some(reached))
        };
        if !(agrees(Direction::Out) && agrees(Direction::In)) {
            return false;
        }
        for direction in [Direction::Out, Direction::In] {
            sort_direction(held, direction);
            let Some(mut end) = self.next[direction.idx()] else { continue };
            for held in held.iter_mut().filter(|held| held.call.direction == direction) {
                end += u64::from(held.call.size);
                held.call.end_pos = end;
            }
        }
        true
    }

    /// Gives up on the held calls: puts them in the order of their positions and leaves gaps and overlaps to
    /// [`Positions::place`]. `lost` = events were lost lately, so nothing is learned from it.
    pub(crate) fn give_up(&mut self, held: &mut [HeldCall], lost: bool) {
        for direction in [Direction::Out, Direction::In] {
            let d = direction.idx();
            let calls = || held.iter().filter(|held| held.call.direction == direction);
            let mut end = self.next[d];
            let odd = calls().count() >= ODD_CALLS_MIN
                && calls().all(|held| {
                    let size = u64::from(held.call.size);
                    let start = held.call.end_pos.checked_sub(size);
                    let added = end.zip(start).and_then(|(end, start)| start.checked_sub(end));
                    end = Some(held.call.end_pos);
                    let frames = size.div_ceil(RECORD_BYTES_MAX) * RECORD_FRAME_BYTES_MAX;
                    added.is_some_and(|added| (1..=frames).contains(&added))
                });
            self.unresolved[d] = if odd && !lost { self.unresolved[d] + 1 } else { 0 };
            self.counted[d] |= self.unresolved[d] >= UNRESOLVED_MAX;
            sort_direction(held, direction);
        }
    }
}

/// Sorts the calls of one direction by position, stable, within the places that they hold.
fn sort_direction(held: &mut [HeldCall], direction: Direction) {
    // At most HELD_CALLS_MAX + 1 entries: the simple sort is the fast one.
    for right in 1..held.len() {
        let mut at = right;
        if held[at].call.direction != direction {
            continue;
        }
        while let Some(left) = held[..at].iter().rposition(|held| held.call.direction == direction) {
            if held[left].call.end_pos <= held[at].call.end_pos {
                break;
            }
            held.swap(left, at);
            at = left;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Wire;

    fn call(direction: Direction, start: u64, end_pos: u64, size: u32) -> HeldCall {
        let wire = Wire::Departed { unsent: 0, first_ns: 0 };
        // The thread id names the call: its true start.
        let call = Call {
            direction,
            end_pos,
            size,
            tgid: 0,
            tid: start as u32,
            hook_ns: 0,
            wire,
            approximate: false,
        };
        HeldCall { call, payload: Bytes::new(), arrivals: Vec::new() }
    }

    /// Calls in the order of capture: (true start, position read by the hook, size). Expected: the true starts
    /// in the order of the stream, or `None` when the sizes do not add up from position 0.
    #[track_caller]
    fn check(calls: &[(u64, u64, u32)], expected: Option<&[u32]>) {
        let positions = Positions::new([Some(0), Some(0)]);
        let mut held: Vec<_> =
            calls.iter().map(|(start, end, size)| call(Direction::Out, *start, *end, *size)).collect();
        assert_eq!(positions.resolve(&mut held), expected.is_some());
        if let Some(expected) = expected {
            assert_eq!(held.iter().map(|held| held.call.tid).collect::<Vec<_>>(), expected);
            let mut positions = positions;
            for held in &held {
                let Place::Fits { start } = positions.place(&held.call) else {
                    panic!("{held:?} does not fit")
                };
                assert_eq!(start, u64::from(held.call.tid), "laid out where it was written");
                positions.advance(Direction::Out, held.call.end_pos);
            }
        }
    }

    #[test]
    fn two_writers_settle_by_the_sum_of_their_sizes() {
        // The first writer's hook saw the second one's bytes too.
        check(&[(0, 150, 100), (100, 150, 50)], Some(&[0, 100]));
        // The second one's hook was first.
        check(&[(100, 150, 50), (0, 100, 100)], Some(&[0, 100]));
        check(&[(10, 30, 10), (20, 30, 10), (0, 10, 10)], Some(&[0, 10, 20]));
    }

    #[test]
    fn a_torn_position_settles_with_the_next_call() {
        check(&[(0, 130, 100), (100, 160, 60)], Some(&[0, 100]));
        check(&[(0, 70, 100), (100, 160, 60)], Some(&[0, 100]));
    }

    #[test]
    fn a_gap_does_not_settle() {
        check(&[(100, 150, 50)], None);
        check(&[(100, 150, 50), (150, 250, 100)], None);
        check(&[(0, u64::MAX, 50)], None);
    }

    #[test]
    fn the_other_direction_keeps_its_place_in_time() {
        let positions = Positions::new([Some(0), Some(0)]);
        let mut held = vec![
            call(Direction::Out, 10, 20, 10),
            call(Direction::In, 0, 7, 7),
            call(Direction::Out, 0, 10, 10),
        ];
        assert!(positions.resolve(&mut held));
        let order: Vec<_> = held.iter().map(|held| (held.call.direction, held.call.tid)).collect();
        assert_eq!(order, [(Direction::Out, 0), (Direction::In, 0), (Direction::Out, 10)]);
    }

    #[test]
    fn places_say_what_is_missing_or_double() {
        let mut positions = Positions::new([None, Some(5)]);
        let place = |positions: &Positions, direction, end, size| {
            positions.place(&call(direction, 0, end, size).call)
        };
        assert_eq!(place(&positions, Direction::Out, 100, 40), Place::Fits { start: 60 });
        positions.advance(Direction::Out, 100);
        assert_eq!(place(&positions, Direction::Out, 140, 40), Place::Fits { start: 100 });
        assert_eq!(place(&positions, Direction::Out, 141, 40), Place::AfterGap { start: 101, missing: 1 });
        assert_eq!(place(&positions, Direction::Out, 139, 40), Place::Overlaps { start: 99 });
        assert_eq!(place(&positions, Direction::In, 3, 4), Place::Impossible);
        assert_eq!(place(&positions, Direction::In, u64::MAX, 4), Place::Impossible);
    }

    #[test]
    fn a_stream_that_grows_faster_than_its_calls_is_counted() {
        let mut positions = Positions::new([Some(0), Some(0)]);
        let mut end = 0;
        for burst in 0..UNRESOLVED_MAX {
            assert!(!positions.is_counted(), "burst {burst}");
            let mut held = Vec::new();
            for _ in 0..HELD_CALLS_MAX {
                end += 129;
                held.push(call(Direction::Out, 0, end, 100));
            }
            assert!(!positions.resolve(&mut held));
            positions.give_up(&mut held, false);
            positions.advance(Direction::Out, end);
        }
        assert!(positions.is_counted());
        assert_eq!(positions.place(&call(Direction::Out, 0, 9, 100).call), Place::Fits { start: end });
    }
}
