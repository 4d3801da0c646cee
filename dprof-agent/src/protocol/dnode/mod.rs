//! DNODE: what Dynomite's nodes say to each other. Each message is a header with an id and a payload, which is one
//! command or reply of Redis or memcached.
//!
//! What a reader would get wrong: a connection carries requests one way only, from the node that opened it, and
//! their replies the other way; a pair of nodes has two. A reply repeats its request's id, so pairs hold whatever
//! was lost between.

mod frames;
pub(super) mod header;
mod payload;
#[cfg(test)]
mod tests;

use dprof_common::limits::PAYLOAD_BYTES_MAX;

use super::capture::Capture;
use super::{Detected, Direction, Head, Parsed, Parser, Protocol, Verdict};
use frames::Frames;
use header::{Header, Kind, Read};

/// Payload worth capturing of one call: peers write a hundred messages at once, and each must be seen.
const PAYLOAD_BYTES: u32 = PAYLOAD_BYTES_MAX as u32;

/// The protocol.
#[derive(Debug)]
pub(super) struct Dnode;

impl Protocol for Dnode {
    fn name(&self) -> &'static str {
        "dnode"
    }

    fn ports(&self) -> &'static [u16] {
        &[8101]
    }

    fn detect(&self, head: &Head<'_>) -> Detected {
        // Whoever joins in the middle of a message sees a command of Redis, which is the payload of one of ours.
        let read = head.bytes.map(if head.joined { header::find } else { header::read });
        // A peer says nothing else.
        if !head.joined && read.iter().any(|read| matches!(read, Read::No)) {
            return Detected { verdict: Verdict::No, request_direction: None };
        }
        for (direction, read) in [Direction::Out, Direction::In].into_iter().zip(read) {
            if let Read::Header(Header { kind, .. }) = read {
                let requests = if kind == Kind::Reply { direction.reverse() } else { direction };
                return Detected { verdict: Verdict::Yes, request_direction: Some(requests) };
            }
        }
        Detected { verdict: Verdict::NeedMore, request_direction: None }
    }

    fn parser(&self, request_direction: Direction, start: [u64; 2], joined: bool) -> Box<dyn Parser> {
        let frames = |direction: Direction| {
            Frames::new(direction, direction == request_direction, start[direction.idx()], joined)
        };
        Box::new(DnodeParser {
            frames: [frames(Direction::Out), frames(Direction::In)],
            proved: false,
            mistaken: false,
        })
    }
}

/// Whether one of our headers is anywhere in `bytes`.
pub(super) fn has_header(bytes: &[u8]) -> bool {
    matches!(header::find(bytes), Read::Header(_))
}

/// Both directions of a connection.
#[derive(Debug)]
struct DnodeParser {
    frames: [Frames; 2],
    /// A message was whole: what is garbage then is a loss, not another protocol.
    proved: bool,
    mistaken: bool,
}

impl DnodeParser {
    fn with(
        &mut self,
        direction: Direction,
        out: &mut Vec<Parsed>,
        act: impl FnOnce(&mut Frames, &mut bool, &mut Vec<Parsed>),
    ) {
        if !self.mistaken {
            act(&mut self.frames[direction.idx()], &mut self.proved, out);
            self.mistaken = out.last() == Some(&Parsed::Mistaken);
        }
    }
}

impl Parser for DnodeParser {
    fn feed(&mut self, direction: Direction, _pos: u64, bytes: &[u8], out: &mut Vec<Parsed>) {
        self.with(direction, out, |frames, proved, out| frames.feed(bytes, proved, out));
    }

    fn gap(&mut self, direction: Direction, _pos: u64, len: u64, out: &mut Vec<Parsed>) {
        self.with(direction, out, |frames, proved, out| frames.gap(len, proved, out));
    }

    fn set_capture(&mut self, capture: Capture) {
        for frames in &mut self.frames {
            frames.set_capture(capture);
        }
    }

    /// No message ends with the connection.
    fn end(&mut self, _direction: Direction, _pos: u64, _out: &mut Vec<Parsed>) {}

    fn unfinished_from(&self, direction: Direction) -> u64 {
        self.frames[direction.idx()].unfinished_from()
    }

    fn payload_limit(&self, _direction: Direction) -> u32 {
        if self.mistaken { 0 } else { PAYLOAD_BYTES }
    }
}
