//! Calls → placed chunks: where in its stream each call's bytes lie ([`position`]), when they crossed the wire
//! ([`timeline`]), which protocol they speak ([`detect`], [`turns`]), and how many of the next are worth a copy
//! ([`worth`]).
//!
//! What a reader would get wrong: positions are the kernel's raw ones throughout. The connecting side's send
//! positions are one too high (the SYN); [`socket::Socket::identity`] takes that off, and nothing else needs to.

pub(crate) mod detect;
pub(crate) mod position;
pub(crate) mod resent;
pub(crate) mod socket;
pub(crate) mod speech;
pub(crate) mod timeline;
pub(crate) mod turns;
pub(crate) mod worth;

use crate::protocol::Direction;

/// What the hook knew of one call that moved data, whatever its direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// Direction of the bytes.
    pub(crate) direction: Direction,
    /// Raw position after the last byte, as the hook read it.
    pub(crate) end_pos: u64,
    /// Bytes moved.
    pub(crate) size: u32,
    /// Process.
    pub(crate) tgid: u32,
    /// Thread.
    pub(crate) tid: u32,
    /// In: when the call returned. Out: departure of the last departed byte, else the hook's time.
    pub(crate) hook_ns: u64,
    /// When the bytes crossed the wire.
    pub(crate) wire: Wire,
    /// Whether the hook flagged its times as approximate.
    pub(crate) approximate: bool,
}

/// Wire times of a call's bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wire {
    /// Sent; the last `unsent` bytes had not departed.
    Departed {
        /// Bytes at the end of the call without a departure.
        unsent: u32,
        /// Departure of the first byte of a call of several segments; 0 = not told.
        first_ns: u64,
    },
    /// Received; the arrivals of the first and the last byte, unless an arrivals record says more.
    Arrived {
        /// First byte.
        first_ns: u64,
        /// Last byte.
        last_ns: u64,
    },
    /// Received before the agent looked.
    Unknown,
}

/// A call's bytes, placed in their stream: input of parsers and timelines.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk<'a> {
    /// The call.
    pub(crate) call: Call,
    /// Position of the first byte.
    pub(crate) start: u64,
    /// How many bytes; may be less than the call's where a part was seen before.
    pub(crate) size: u64,
    /// The first bytes; the rest of `size` was not captured.
    pub(crate) payload: &'a [u8],
}

impl Chunk<'_> {
    /// Position after the last byte.
    pub(crate) const fn end(&self) -> u64 {
        self.start.wrapping_add(self.size)
    }

    /// The chunk without its bytes before `pos`.
    pub(crate) fn after(&self, pos: u64) -> Self {
        let skip = pos.saturating_sub(self.start).min(self.size);
        let cut = usize::try_from(skip).map_or(self.payload.len(), |skip| skip.min(self.payload.len()));
        Self {
            call: self.call,
            start: self.start + skip,
            size: self.size - skip,
            payload: &self.payload[cut..],
        }
    }
}

/// Feeds `size` bytes of which `bytes` were captured.
pub(crate) fn speak(
    parser: &mut dyn crate::protocol::Parser,
    direction: Direction,
    start: u64,
    size: u64,
    bytes: &[u8],
    parsed: &mut Vec<crate::protocol::Parsed>,
) {
    let seen = bytes.len() as u64;
    if seen > 0 {
        parser.feed(direction, start, bytes, parsed);
    }
    if size > seen {
        parser.gap(direction, start + seen, size - seen, parsed);
    }
}
