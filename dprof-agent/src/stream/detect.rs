//! The first bytes of a connection, kept until a protocol recognises them.
//!
//! What a reader would get wrong: almost always the first call decides, and then nothing is copied: the head is
//! the call's own payload, and the parser is fed from it. Only an undecided head is copied, up to
//! [`KEPT_BYTES_MAX`] per direction; once a protocol is found the copies are replayed to its parser in the order
//! of capture, with holes where bytes were not kept.

use crate::protocol::detect::{Detection, detect_among};
use crate::protocol::{Direction, Head, Protocol};

use super::Chunk;

/// Bytes of a direction that are kept for the parser: detection looks at fewer, but a pipeline of requests that only
/// their answers tell apart from another protocol's must not have a hole, or none of its answers could be placed. Some
/// thousand requests with short keys; a connection that needs more is joined in the middle.
const KEPT_BYTES_MAX: usize = 16 * 1024;

/// Calls remembered until detection; later ones lengthen the last of their direction.
const PIECES_MAX: usize = 64;

/// Bytes of a connection after which detection gives up. Joined connections may start within a large body: one
/// of 64 KiB passes, and a gibberish protocol costs no more than that.
const JUDGED_BYTES_MAX: u64 = 128 * 1024;

/// Calls of a joined connection, each of which may have begun a message, after which detection gives up.
const JUDGED_CALLS_MAX: u32 = 64;

/// A remembered call.
#[derive(Clone, Copy, Debug)]
struct Piece {
    direction: Direction,
    start: u64,
    size: u64,
    /// Of the direction's kept bytes, these belong to the call.
    kept: (usize, usize),
}

/// What is known of a connection besides its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadContext {
    /// Local and peer port.
    pub(crate) ports: [u16; 2],
    /// Direction of requests by role.
    pub(crate) request_direction: Option<Direction>,
}

/// A part of the head for the parser: bytes, then a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeadPart<'a> {
    /// Direction.
    pub(crate) direction: Direction,
    /// Position of the first byte.
    pub(crate) start: u64,
    /// How many bytes were seen.
    pub(crate) size: u64,
    /// The first of them.
    pub(crate) bytes: &'a [u8],
}

/// First bytes of both directions.
#[derive(Debug)]
pub(crate) struct Heads {
    bytes: [Vec<u8>; 2],
    /// A hole follows the kept bytes: no more are added.
    closed: [bool; 2],
    start: [Option<u64>; 2],
    pieces: Vec<Piece>,
    judged_bytes: u64,
    judged_calls: u32,
    /// Protocols that turned out wrong on this connection.
    excluded: Vec<&'static str>,
    /// Whether the head may start within a message.
    joined: bool,
}

/// What the heads say.
pub(crate) enum Judgement {
    /// This protocol.
    Found {
        /// Makes the parser.
        protocol: &'static dyn Protocol,
        /// Direction of requests.
        request_direction: Direction,
    },
    /// Not yet.
    Wait,
    /// Nothing that we know.
    Unknown,
}

impl Heads {
    /// No bytes yet. `joined`: the first may lie within a message.
    pub(crate) const fn new(joined: bool) -> Self {
        Self {
            bytes: [Vec::new(), Vec::new()],
            closed: [false; 2],
            start: [None; 2],
            pieces: Vec::new(),
            judged_bytes: 0,
            judged_calls: 0,
            excluded: Vec::new(),
            joined,
        }
    }

    /// No bytes yet, in what may be the middle of a message of none of `excluded`.
    pub(crate) fn without(excluded: Vec<&'static str>) -> Self {
        Self { excluded, ..Self::new(true) }
    }

    /// Whether the head may start within a message.
    pub(crate) const fn joined(&self) -> bool {
        self.joined
    }

    /// Whether bytes of `direction` are kept.
    pub(super) fn holds(&self, direction: Direction) -> bool {
        self.pieces.iter().any(|piece| piece.direction == direction)
    }

    /// Protocols that are not asked again.
    pub(crate) fn take_excluded(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.excluded)
    }

    /// Position of the first byte of `direction`, if one was seen.
    pub(crate) const fn start(&self, direction: Direction) -> Option<u64> {
        self.start[direction.idx()]
    }

    /// Bytes are missing here: what was kept says nothing about what follows.
    pub(crate) fn restart(&mut self, joined: bool) {
        self.bytes.iter_mut().for_each(Vec::clear);
        self.pieces.clear();
        self.closed = [false; 2];
        self.start = [None; 2];
        self.joined |= joined;
    }

    /// Judges the head with `chunk`. On [`Judgement::Found`] the chunk is not among [`Heads::parts`]: feed it
    /// after them.
    pub(crate) fn judge(
        &mut self,
        chunk: &Chunk<'_>,
        context: HeadContext,
        protocols: &[&'static dyn Protocol],
    ) -> Judgement {
        let d = chunk.call.direction.idx();
        let first = self.pieces.is_empty();
        let kept_from = self.bytes[d].len();
        let payload = &chunk.payload[..chunk.payload.len().min(KEPT_BYTES_MAX)];
        if self.start[d].is_none() {
            self.start[d] = Some(chunk.start);
        }
        if kept_from > 0 && !self.closed[d] {
            let room = KEPT_BYTES_MAX - kept_from;
            self.bytes[d].extend_from_slice(&payload[..payload.len().min(room)]);
        }
        let mut bytes = [&self.bytes[0][..], &self.bytes[1][..]];
        if kept_from == 0 && !self.closed[d] {
            bytes[d] = payload;
        }
        let head = Head {
            bytes,
            ports: context.ports,
            request_direction: context.request_direction,
            joined: self.joined,
        };
        match detect_among(protocols, &head, &self.excluded) {
            Detection::Protocol { protocol, request_direction } => {
                return Judgement::Found { protocol, request_direction };
            }
            Detection::NeedMore => {}
            Detection::None => {
                if !self.joined {
                    // The very first bytes: there is no better place to look.
                    return Judgement::Unknown;
                }
                self.restart(true);
                // What came before may have been the end of a message: ask about this call alone.
                if !first {
                    return self.judge(chunk, context, protocols);
                }
                self.judged_bytes += chunk.size;
                self.judged_calls += 1;
                return self.wait();
            }
        }
        if kept_from == 0 && !self.closed[d] {
            self.bytes[d].extend_from_slice(payload);
        }
        self.judged_bytes += chunk.size;
        self.keep(chunk, (kept_from, self.bytes[d].len()));
        self.wait()
    }

    const fn wait(&self) -> Judgement {
        if self.judged_bytes > JUDGED_BYTES_MAX || self.judged_calls > JUDGED_CALLS_MAX {
            Judgement::Unknown
        } else {
            Judgement::Wait
        }
    }

    fn keep(&mut self, chunk: &Chunk<'_>, kept: (usize, usize)) {
        let direction = chunk.call.direction;
        self.closed[direction.idx()] |= ((kept.1 - kept.0) as u64) < chunk.size;
        if self.pieces.len() < PIECES_MAX {
            self.pieces.push(Piece { direction, start: chunk.start, size: chunk.size, kept });
        } else if let Some(piece) = self.pieces.iter_mut().rev().find(|piece| piece.direction == direction) {
            let room = piece.start + piece.size == chunk.start && piece.kept.1 == kept.0;
            piece.size = chunk.end() - piece.start;
            if room {
                piece.kept.1 = kept.1;
            } else {
                self.closed[direction.idx()] = true;
            }
        } else {
            self.restart(true);
        }
    }

    /// Everything remembered, in the order of capture.
    pub(crate) fn parts(&self) -> impl Iterator<Item = HeadPart<'_>> {
        self.pieces.iter().map(|piece| HeadPart {
            direction: piece.direction,
            start: piece.start,
            size: piece.size,
            bytes: &self.bytes[piece.direction.idx()][piece.kept.0..piece.kept.1],
        })
    }
}
