//! One socket: its identity, its two streams, and whoever understands them.
//!
//! What a reader would get wrong: a socket is one *end*. When both ends of a connection live on this host there
//! are two sockets, each with its own `Out` and `In`, and nothing here knows of the other one.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bytes::Bytes;
use dprof_common::event::{Arrival, OpenEvent, flag};
use dprof_common::model::{Side, SpanId, rpc_identity};

use super::detect::{HeadContext, Heads, Judgement};
use super::position::{HeldCall, POSITION_MAX, Place, Positions};
use super::timeline::Timeline;
use super::turns::{self, Turns};
use super::{Call, Chunk};
use crate::protocol::{Direction, Parsed, Parser, Protocol};
use crate::span::pair::Pairing;

/// Payload limits that are asked for: few, so that a socket's limit changes seldom.
const PAYLOAD_CLASSES: [u32; 5] = [0, 256, 1024, 4096, PAYLOAD_LIMIT_START];

/// What a new socket gets, and the most that a call gives ([`dprof_common::limits::PAYLOAD_BYTES_MAX`]).
pub(crate) const PAYLOAD_LIMIT_START: u32 = 16 * 1024;

/// Retransmitted ranges remembered per socket: of messages whose last call is still to come.
const RESENT_MAX: usize = 8;

/// Finished responses remembered per socket, to be marked when they are retransmitted.
const ANSWERED_MAX: usize = 4;

/// Which end of the TCP connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It connected.
    Active,
    /// It accepted.
    Passive,
    /// Older than the agent, and nobody was seen listening.
    Unknown,
}

/// Who understands the socket's bytes.
enum Speech {
    /// Nobody yet.
    Detecting(Heads),
    /// A protocol.
    Speaking {
        name: &'static str,
        parser: Box<dyn Parser>,
        /// Protocols that it turned out not to be.
        excluded: Vec<&'static str>,
    },
    /// Nobody: cut by changes of direction.
    Turns(Turns),
    /// Nobody, and nobody asked.
    Ignored,
    /// It has no messages any more.
    Opaque { name: &'static str },
}

/// A change of speech that a parser asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Transition {
    /// Another protocol from these positions on.
    Switch([u64; 2]),
    /// No messages any more.
    Opaque,
    /// Detection was wrong.
    Mistaken,
}

/// What the engine was told that matters to detection.
#[derive(Clone, Copy)]
pub(crate) struct Grammar {
    /// Protocols to detect.
    pub(crate) protocols: &'static [&'static dyn Protocol],
    /// Whether unknown connections are cut by changes of direction.
    pub(crate) unknown: bool,
}

/// A server's answer that has left: its RPC and its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    pub(crate) span_id: SpanId,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// State of one socket.
pub(crate) struct Socket {
    pub(crate) cookie: u64,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) netns: u32,
    pub(crate) comm: [u8; 16],
    pub(crate) role: Role,
    /// Role and side were concluded from who sends requests.
    pub(crate) role_guessed: bool,
    /// Fixed by the first request.
    pub(crate) side: Option<Side>,
    /// Sequence number less raw position, per direction.
    raw_isn: [u32; 2],
    /// Raw positions when the socket was announced.
    open_pos: [u64; 2],
    pub(crate) positions: Positions,
    /// Calls that wait for their place, and those after them.
    pub(crate) held: Vec<HeldCall>,
    pub(crate) timelines: [Timeline; 2],
    /// Start and first departure of the next `Send`.
    pub(crate) departing: Option<(u64, u64)>,
    /// Arrivals of the next `Recv`.
    pub(crate) arrivals: Vec<Arrival>,
    speech: Speech,
    pub(crate) pairing: Pairing,
    pub(crate) resent: VecDeque<(u64, u64)>,
    answered: [Option<Answered>; ANSWERED_MAX],
    answered_idx: u8,
    pub(crate) srtt_us: u32,
    /// Time to connect, until the first RPC takes it.
    pub(crate) connect_ns: Option<u64>,
    /// Number of the last record that named the socket.
    pub(crate) last_used: u64,
    /// Time of the last call and of the one before.
    pub(crate) last_call_ns: u64,
    pub(crate) previous_call_ns: u64,
    payload_limit: u32,
}

impl Socket {
    /// The socket that `open` announces.
    pub(crate) fn new(open: &OpenEvent) -> Self {
        let (role, next) = match open.header.flags {
            flags if flags & flag::ACTIVE != 0 => (Role::Active, [Some(1), Some(0)]),
            flags if flags & flag::PASSIVE != 0 => (Role::Passive, [Some(0), Some(0)]),
            _ => (Role::Unknown, [None, None]),
        };
        let isn = |seq: u32, pos: u64| seq.wrapping_sub(pos as u32);
        Self {
            cookie: open.sock,
            local: open.flow.local(),
            peer: open.flow.peer(),
            netns: open.flow.netns,
            comm: open.comm,
            role,
            role_guessed: false,
            side: None,
            raw_isn: [isn(open.write_seq, open.send_pos), isn(open.copied_seq, open.recv_pos)],
            open_pos: [open.send_pos, open.recv_pos].map(|pos| pos.min(POSITION_MAX)),
            positions: Positions::new(next),
            held: Vec::new(),
            timelines: [Timeline::default(), Timeline::default()],
            departing: None,
            arrivals: Vec::new(),
            speech: Speech::Detecting(Heads::new(role == Role::Unknown)),
            pairing: Pairing::default(),
            resent: VecDeque::new(),
            answered: [None; ANSWERED_MAX],
            answered_idx: 0,
            srtt_us: 0,
            connect_ns: (open.connect_ns != 0).then_some(open.connect_ns),
            last_used: 0,
            last_call_ns: 0,
            previous_call_ns: 0,
            payload_limit: PAYLOAD_LIMIT_START,
        }
    }

    /// Whether `open` announces the connection that is known already.
    pub(crate) fn is_same(&self, open: &OpenEvent) -> bool {
        let isn = [
            open.write_seq.wrapping_sub(open.send_pos as u32),
            open.copied_seq.wrapping_sub(open.recv_pos as u32),
        ];
        self.raw_isn == isn && self.local == open.flow.local() && self.peer == open.flow.peer()
    }

    /// How much the raw positions of `direction` are too high: the SYN of the connecting side.
    fn syn(&self, direction: Direction) -> u64 {
        u64::from(direction == Direction::Out && self.role == Role::Active)
    }

    /// Position of a byte as both ends name it.
    pub(crate) fn wire_pos(&self, direction: Direction, raw: u64) -> u64 {
        raw.wrapping_sub(self.syn(direction))
    }

    /// Identity of the RPC whose request starts at `start` of `direction`.
    pub(crate) fn identity(&self, direction: Direction, start: u64) -> SpanId {
        let start = self.wire_pos(direction, start);
        if self.positions.is_counted() {
            // No number that the other end has: an id of this end's own.
            return rpc_identity((self.cookie >> 32) as u32, self.cookie as u32, start ^ (1 << 63));
        }
        // The SYN is in the raw position, so it is missing in the raw initial sequence number.
        let isn =
            |direction: Direction| self.raw_isn[direction.idx()].wrapping_add(self.syn(direction) as u32);
        rpc_identity(isn(direction), isn(direction.reverse()), start)
    }

    /// Direction of requests, by role.
    fn request_direction(&self) -> Option<Direction> {
        match self.role {
            Role::Active => Some(Direction::Out),
            Role::Passive => Some(Direction::In),
            Role::Unknown => None,
        }
    }

    /// Protocol as stored.
    pub(crate) const fn protocol(&self) -> &'static str {
        match &self.speech {
            Speech::Speaking { name, .. } | Speech::Opaque { name } => name,
            Speech::Detecting(_) | Speech::Turns(_) | Speech::Ignored => turns::NAME,
        }
    }

    /// Whether nothing that is fed can give anything.
    pub(crate) const fn is_ignored(&self) -> bool {
        matches!(self.speech, Speech::Ignored | Speech::Opaque { .. })
    }

    /// Whether no protocol recognises it.
    pub(crate) const fn is_unrecognised(&self) -> bool {
        matches!(self.speech, Speech::Ignored | Speech::Turns(_))
    }

    /// Whether it is cut by changes of direction.
    pub(crate) const fn is_turns(&self) -> bool {
        matches!(self.speech, Speech::Turns(_))
    }

    /// Where `call` lies. The first call of an old connection is trusted; the other direction then continues
    /// where the announcement says.
    pub(crate) fn place(&mut self, call: &Call) -> Place {
        let place = self.positions.place(call);
        let other = call.direction.reverse();
        if place != Place::Impossible
            && self.positions.next(call.direction).is_none()
            && self.positions.next(other).is_none()
        {
            self.positions.advance(other, self.open_pos[other.idx()]);
        }
        place
    }

    /// Whether a server's bytes left unseen before the connection ended at raw send position `send_pos`.
    pub(crate) fn has_unseen(&self, send_pos: u64) -> bool {
        const FIN: u64 = 1;
        self.side == Some(Side::Server)
            && !self.positions.is_counted()
            && self.positions.next(Direction::Out).is_some_and(|next| send_pos > next.saturating_add(FIN))
    }

    /// Keeps `call` until its place is known.
    pub(crate) fn hold(&mut self, call: Call, payload: &[u8]) {
        let arrivals = std::mem::take(&mut self.arrivals);
        self.held.push(HeldCall { call, payload: Bytes::copy_from_slice(payload), arrivals });
    }

    /// Bytes were not seen.
    pub(crate) fn gap(&mut self, direction: Direction, start: u64, missing: u64, parsed: &mut Vec<Parsed>) {
        match &mut self.speech {
            Speech::Detecting(heads) => heads.restart(true),
            Speech::Speaking { parser, .. } => parser.gap(direction, start, missing, parsed),
            Speech::Turns(turns) => turns.feed(direction, start, start + missing, parsed),
            Speech::Ignored | Speech::Opaque { .. } => {}
        }
    }

    /// The next bytes, placed.
    pub(crate) fn feed(&mut self, chunk: &Chunk<'_>, grammar: Grammar, parsed: &mut Vec<Parsed>) {
        match &mut self.speech {
            Speech::Speaking { parser, .. } => {
                speak(&mut **parser, chunk.call.direction, chunk.start, chunk.size, chunk.payload, parsed);
            }
            Speech::Turns(turns) => turns.feed(chunk.call.direction, chunk.start, chunk.end(), parsed),
            Speech::Detecting(_) => self.detect(chunk, grammar, parsed),
            Speech::Ignored | Speech::Opaque { .. } => {}
        }
    }

    fn detect(&mut self, chunk: &Chunk<'_>, grammar: Grammar, parsed: &mut Vec<Parsed>) {
        let by_role = self.request_direction();
        let context =
            HeadContext { ports: [self.local.port(), self.peer.port()], request_direction: by_role };
        let Speech::Detecting(heads) = &mut self.speech else { return };
        match heads.judge(chunk, context, grammar.protocols) {
            Judgement::Wait => {}
            Judgement::Found { protocol, request_direction } => {
                let start = [Direction::Out, Direction::In].map(|direction| {
                    let next = if direction == chunk.call.direction { Some(chunk.start) } else { None };
                    let next = heads.start(direction).or(next).or(self.positions.next(direction));
                    next.unwrap_or(self.open_pos[direction.idx()])
                });
                // What the parser is told is where the streams go on.
                for direction in [Direction::Out, Direction::In] {
                    if self.positions.next(direction).is_none() {
                        self.positions.advance(direction, start[direction.idx()]);
                    }
                }
                let mut parser = protocol.parser(request_direction, start, heads.joined());
                for part in heads.parts() {
                    speak(&mut *parser, part.direction, part.start, part.size, part.bytes, parsed);
                }
                speak(&mut *parser, chunk.call.direction, chunk.start, chunk.size, chunk.payload, parsed);
                let excluded = heads.take_excluded();
                self.speech = Speech::Speaking { name: protocol.name(), parser, excluded };
            }
            Judgement::Unknown if grammar.unknown => {
                let request = by_role.unwrap_or(chunk.call.direction);
                let port = if request == Direction::Out { self.peer.port() } else { self.local.port() };
                let mut turns = Turns::new(request, port);
                turns.feed(chunk.call.direction, chunk.start, chunk.end(), parsed);
                self.speech = Speech::Turns(turns);
            }
            Judgement::Unknown => self.speech = Speech::Ignored,
        }
    }

    /// Does what a parser asked for. Returns from where the bytes just fed are to be fed again.
    pub(crate) fn change(&mut self, transition: Transition, direction: Direction) -> Option<u64> {
        match transition {
            Transition::Opaque => {
                self.speech = Speech::Opaque { name: self.protocol() };
                None
            }
            Transition::Switch(at) => {
                self.speech = Speech::Detecting(Heads::new(false));
                Some(at[direction.idx()])
            }
            Transition::Mistaken => {
                let Speech::Speaking { name, excluded, .. } = &mut self.speech else { return None };
                let mut excluded = std::mem::take(excluded);
                excluded.push(name);
                self.speech = Speech::Detecting(Heads::without(excluded));
                Some(0)
            }
        }
    }

    /// The connection ended: messages that end with it are whole.
    pub(crate) fn end(&mut self, parsed: &mut Vec<Parsed>) {
        match &mut self.speech {
            Speech::Speaking { parser, .. } => {
                for direction in [Direction::Out, Direction::In] {
                    let pos = self.positions.next(direction).unwrap_or(self.open_pos[direction.idx()]);
                    parser.end(direction, pos, parsed);
                }
            }
            Speech::Turns(turns) => turns.flush(parsed),
            Speech::Detecting(_) | Speech::Ignored | Speech::Opaque { .. } => {}
        }
    }

    /// Ends a turn that nothing was added to for long.
    pub(crate) fn flush_turn(&mut self, now_ns: u64, parsed: &mut Vec<Parsed>) {
        if let Speech::Turns(turns) = &mut self.speech
            && now_ns.saturating_sub(self.last_call_ns) >= turns::TURN_IDLE_NS
        {
            turns.flush(parsed);
        }
    }

    /// Forgets the times of finished messages.
    pub(crate) fn trim(&mut self) {
        for direction in [Direction::Out, Direction::In] {
            let next = || self.positions.next(direction).unwrap_or(0);
            let from = match &self.speech {
                Speech::Detecting(heads) => heads.start(direction).unwrap_or_else(next),
                Speech::Speaking { parser, .. } => parser.unfinished_from(direction),
                Speech::Turns(turns) => turns.unfinished_from(direction).unwrap_or_else(next),
                Speech::Ignored | Speech::Opaque { .. } => next(),
            };
            self.timelines[direction.idx()].trim(from);
        }
    }

    /// Payload limit to ask for, if it is another one now.
    pub(crate) fn changed_payload_limit(&mut self) -> Option<u32> {
        let wanted = match &self.speech {
            Speech::Detecting(_) => PAYLOAD_LIMIT_START,
            Speech::Speaking { parser, .. } => {
                parser.payload_limit(Direction::Out).max(parser.payload_limit(Direction::In))
            }
            Speech::Turns(_) | Speech::Ignored | Speech::Opaque { .. } => 0,
        };
        let class = PAYLOAD_CLASSES.into_iter().find(|class| *class >= wanted).unwrap_or(PAYLOAD_LIMIT_START);
        (std::mem::replace(&mut self.payload_limit, class) != class).then_some(class)
    }

    /// Notes bytes that were sent again.
    pub(crate) fn note_resent(&mut self, start: u64, end: u64) {
        if self.resent.len() == RESENT_MAX {
            self.resent.pop_front();
        }
        self.resent.push_back((start, end));
    }

    /// How many retransmissions touched `[start, end)` of what this end sent.
    pub(crate) fn resent_in(&self, start: u64, end: u64) -> u32 {
        self.resent.iter().filter(|(from, to)| *from < end && start < *to).count() as u32
    }

    /// Remembers the bytes of an answer that has left.
    pub(crate) fn note_answered(&mut self, answered: Answered) {
        self.answered[usize::from(self.answered_idx) % ANSWERED_MAX] = Some(answered);
        self.answered_idx = self.answered_idx.wrapping_add(1);
    }

    /// Answers that have left with bytes in `[start, end)`.
    pub(crate) fn answered_in(&self, start: u64, end: u64) -> impl Iterator<Item = SpanId> {
        self.answered
            .into_iter()
            .flatten()
            .filter(move |answered| answered.start < end && start < answered.end)
            .map(|answered| answered.span_id)
    }
}

/// Feeds `size` bytes of which `bytes` were captured.
fn speak(
    parser: &mut dyn Parser,
    direction: Direction,
    start: u64,
    size: u64,
    bytes: &[u8],
    parsed: &mut Vec<Parsed>,
) {
    let seen = bytes.len() as u64;
    if seen > 0 {
        parser.feed(direction, start, bytes, parsed);
    }
    if size > seen {
        parser.gap(direction, start + seen, size - seen, parsed);
    }
}
