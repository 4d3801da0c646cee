//! One socket: its identity, its two streams, and whoever understands them.
//!
//! What a reader would get wrong: a socket is one *end*. When both ends of a connection live on this host there
//! are two sockets, each with its own `Out` and `In`, and nothing here knows of the other one.

use std::net::SocketAddr;

use bytes::Bytes;
use dprof_common::event::{Arrival, OpenEvent, flag};
use dprof_common::model::{Side, SpanId, rpc_identity};
use dprof_common::settings::Protocols;

use super::detect::{HeadContext, Heads, Judgement};
use super::position::{HeldCall, POSITION_MAX, Place, Positions};
use super::resent::Resent;
use super::speech::{Grammar, Speech, Transition};
use super::timeline::Timeline;
use super::turns::{self, Turns};
use super::worth::{self, Worth};
use super::{Call, Chunk, speak};
use crate::protocol::capture::Capture;
use crate::protocol::{Direction, Parsed, tls};
use crate::span::pair::Pairing;

/// Bytes of an unrecognised connection after which a TLS hello is not looked for any more: clients ask for TLS within
/// the first few exchanges (SMTP: greeting, EHLO, STARTTLS).
const WATCHED_BYTES_MAX: u32 = 8 * 1024;

/// Bytes of a call that are looked at: the hello's first ones.
const WATCHED_BYTES: u32 = 16;

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
    /// Older than the agent, and no request was seen yet: what was read of it may have been others.
    pub(crate) is_unproven: bool,
    /// Where what was seen of the incoming stream begins, on a connection that is older.
    pub(crate) joined_at: u64,
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
    pub(super) speech: Speech,
    /// Bytes of an unrecognised connection that are still looked at: it may become TLS.
    watch: u32,
    unrecognised_said: bool,
    /// Client and server as a proxy before this end saw them.
    pub(crate) origin: Option<(SocketAddr, SocketAddr)>,
    pub(crate) pairing: Pairing,
    pub(crate) resent: Resent,
    pub(crate) srtt_us: u32,
    /// Time to connect, until the first RPC takes it.
    pub(crate) connect_ns: Option<u64>,
    /// Number of the last record that named the socket.
    pub(crate) last_used: u64,
    /// Time of the last call and of the one before.
    pub(crate) last_call_ns: u64,
    pub(crate) previous_call_ns: u64,
    /// Of a connection that is older, the first call that was seen: direction, place, and silence before. Until the
    /// first request, which may be told from its answer only.
    pub(crate) first_call: Option<(Direction, u64, u64)>,
    /// Bytes of this direction may have passed outside the capture window since the last call, per direction index.
    pub(crate) missed: [bool; 2],
    /// Process of the last call.
    pub(crate) last_tgid: u32,
    /// Bytes are missing before the call under way, whose time this is.
    pub(crate) after_gap_ns: Option<u64>,
    pub(crate) worth: Worth,
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
            is_unproven: role == Role::Unknown,
            joined_at: 0,
            raw_isn: [isn(open.write_seq, open.send_pos), isn(open.copied_seq, open.recv_pos)],
            open_pos: [open.send_pos, open.recv_pos].map(|pos| pos.min(POSITION_MAX)),
            positions: Positions::new(next),
            held: Vec::new(),
            timelines: [Timeline::default(), Timeline::default()],
            departing: None,
            arrivals: Vec::new(),
            speech: Speech::Detecting(Heads::new(role == Role::Unknown)),
            watch: 0,
            unrecognised_said: false,
            origin: None,
            pairing: if role == Role::Unknown { Pairing::joined() } else { Pairing::default() },
            resent: Resent::default(),
            srtt_us: 0,
            connect_ns: (open.connect_ns != 0).then_some(open.connect_ns),
            last_used: 0,
            last_call_ns: open.time_ns,
            previous_call_ns: 0,
            first_call: None,
            missed: [false; 2],
            last_tgid: 0,
            after_gap_ns: None,
            worth: Worth::new(),
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
            Speech::Speaking { name, .. } | Speech::Opaque { name } | Speech::Off { name } => name,
            Speech::Turns(turns) => turns.name(),
            Speech::Detecting(_) | Speech::Ignored => turns::NAME,
        }
    }

    /// Whether nothing that is fed can give anything.
    pub(crate) const fn is_ignored(&self) -> bool {
        match self.speech {
            Speech::Ignored => self.watch == 0,
            Speech::Opaque { .. } | Speech::Off { .. } => true,
            Speech::Detecting(_) | Speech::Speaking { .. } | Speech::Turns(_) => false,
        }
    }

    /// Whether no protocol recognises it and this was not said before.
    pub(crate) fn newly_unrecognised(&mut self) -> bool {
        let is_unrecognised = match &self.speech {
            Speech::Ignored => true,
            Speech::Turns(turns) => turns.name() == turns::NAME,
            Speech::Detecting(_) | Speech::Speaking { .. } | Speech::Opaque { .. } | Speech::Off { .. } => {
                false
            }
        };
        is_unrecognised && !std::mem::replace(&mut self.unrecognised_said, true)
    }

    /// Whether it is encrypted.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.protocol() == tls::NAME
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
            let announced = self.open_pos[other.idx()];
            self.positions.advance(other, announced);
            self.joined_at = match (call.direction, place) {
                (Direction::In, Place::Fits { start }) => start,
                _ => announced,
            };
        }
        place
    }

    /// Whether bytes of answers moved unseen before the connection ended at these raw positions: a server's that left,
    /// or those that came to a client.
    pub(crate) fn has_unseen(&self, send_pos: u64, recv_pos: u64) -> bool {
        const FIN: u64 = 1;
        let (direction, end) = match self.side {
            Some(Side::Server) => (Direction::Out, send_pos),
            Some(Side::Client) => (Direction::In, recv_pos),
            None => return false,
        };
        !self.positions.is_counted()
            && !self.missed[direction.idx()]
            && self.positions.next(direction).is_some_and(|next| end > next.saturating_add(FIN))
    }

    /// Whether `direction` is between messages, as far as was seen.
    pub(crate) fn is_between_messages(&self, direction: Direction) -> bool {
        match (&self.speech, self.positions.next(direction)) {
            (Speech::Speaking { parser, .. }, Some(next)) => parser.unfinished_from(direction) >= next,
            _ => true,
        }
    }

    /// Keeps `call` until its place is known.
    pub(crate) fn hold(&mut self, call: Call, payload: &[u8]) {
        let arrivals = std::mem::take(&mut self.arrivals);
        self.held.push(HeldCall { call, payload: Bytes::copy_from_slice(payload), arrivals });
    }

    /// Bytes were not seen.
    pub(crate) fn gap(&mut self, direction: Direction, start: u64, missing: u64, parsed: &mut Vec<Parsed>) {
        match &mut self.speech {
            Speech::Detecting(heads) => {
                heads.restart(true);
                self.pairing.lose();
            }
            Speech::Speaking { parser, .. } => parser.gap(direction, start, missing, parsed),
            Speech::Turns(turns) => turns.feed(direction, start, start + missing, parsed),
            Speech::Ignored | Speech::Opaque { .. } | Speech::Off { .. } => {}
        }
    }

    /// Bytes passed outside the capture window.
    pub(crate) fn skip(&mut self, direction: Direction, start: u64, missing: u64, parsed: &mut Vec<Parsed>) {
        match &mut self.speech {
            // A turn that the window cut is no message.
            Speech::Turns(turns) => turns.forget(),
            _ => self.gap(direction, start, missing, parsed),
        }
        // The loss has a name, and no request is open that it could confuse.
        parsed.retain(|parsed| !matches!(parsed, Parsed::Lost { .. }));
    }

    /// What may be kept of keys and values from now on.
    pub(crate) fn set_capture(&mut self, capture: Capture) {
        if let Speech::Speaking { parser, .. } = &mut self.speech {
            parser.set_capture(capture);
        }
    }

    /// Whether its protocol is turned off.
    pub(crate) const fn is_off(&self) -> bool {
        matches!(self.speech, Speech::Off { .. })
    }

    /// These protocols are looked into from now on. Whether that turns this one's off or on; what is open is then no
    /// longer followed.
    pub(crate) fn choose(&mut self, chosen: Protocols, now_ns: u64) -> bool {
        match &self.speech {
            Speech::Off { name } if chosen.has(name) => {
                // As a connection that is older than the agent: it may be in the middle of a message.
                self.speech = Speech::Detecting(Heads::new(true));
                self.pairing = Pairing::joined();
                self.is_unproven = true;
                self.joined_at = self.positions.next(Direction::In).unwrap_or(self.joined_at);
                self.first_call = None;
                self.last_call_ns = now_ns;
                true
            }
            Speech::Speaking { .. } | Speech::Turns(_) if !chosen.has(self.protocol()) => {
                self.speech = Speech::Off { name: self.protocol() };
                self.watch = 0;
                self.arrivals.clear();
                self.departing = None;
                self.trim();
                true
            }
            _ => false,
        }
    }

    /// The capture window closed or opened.
    pub(crate) fn cut(&mut self, time_ns: u64) {
        self.missed = [true; 2];
        self.arrivals.clear();
        self.departing = None;
        // Silence is counted from here: what was before the edge says nothing.
        self.last_call_ns = time_ns;
        if let Speech::Turns(turns) = &mut self.speech {
            turns.forget();
        }
    }

    /// The next bytes, placed.
    pub(crate) fn feed(&mut self, chunk: &Chunk<'_>, grammar: Grammar, parsed: &mut Vec<Parsed>) {
        if self.watch > 0 {
            self.look_for_tls(chunk, parsed);
        }
        match &mut self.speech {
            Speech::Speaking { parser, .. } => {
                speak(&mut **parser, chunk.call.direction, chunk.start, chunk.size, chunk.payload, parsed);
            }
            Speech::Turns(turns) => turns.feed(chunk.call.direction, chunk.start, chunk.end(), parsed),
            Speech::Detecting(_) => self.detect(chunk, grammar, parsed),
            Speech::Ignored | Speech::Opaque { .. } | Speech::Off { .. } => {}
        }
    }

    /// An unrecognised connection that turns into TLS (StartTLS) does so with a client's hello, which begins a call:
    /// the client waited for the word to go on.
    fn look_for_tls(&mut self, chunk: &Chunk<'_>, parsed: &mut Vec<Parsed>) {
        self.watch = self.watch.saturating_sub(chunk.size.try_into().unwrap_or(u32::MAX));
        if tls::starts_with_hello(chunk.payload) {
            if let Speech::Turns(turns) = &mut self.speech {
                turns.flush(parsed);
            }
            self.watch = 0;
            self.speech = Speech::Detecting(Heads::new(false));
        }
    }

    fn detect(&mut self, chunk: &Chunk<'_>, grammar: Grammar, parsed: &mut Vec<Parsed>) {
        let by_role = self.request_direction();
        let context =
            HeadContext { ports: [self.local.port(), self.peer.port()], request_direction: by_role };
        let Speech::Detecting(heads) = &mut self.speech else { return };
        match heads.judge(chunk, context, grammar.protocols) {
            Judgement::Wait => {}
            Judgement::Found { protocol, .. } if !grammar.chosen.has(protocol.name()) => {
                self.speech = Speech::Off { name: protocol.name() };
            }
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
                parser.set_capture(grammar.capture);
                for part in heads.parts() {
                    speak(&mut *parser, part.direction, part.start, part.size, part.bytes, parsed);
                }
                speak(&mut *parser, chunk.call.direction, chunk.start, chunk.size, chunk.payload, parsed);
                let excluded = heads.take_excluded();
                self.speech = Speech::Speaking { name: protocol.name(), parser, excluded };
            }
            Judgement::Unknown if grammar.unknown => {
                self.watch = WATCHED_BYTES_MAX;
                let request = by_role.unwrap_or(chunk.call.direction);
                let port = if request == Direction::Out { self.peer.port() } else { self.local.port() };
                let mut turns = Turns::new(request, port);
                turns.feed(chunk.call.direction, chunk.start, chunk.end(), parsed);
                self.speech = Speech::Turns(turns);
            }
            Judgement::Unknown => {
                self.watch = WATCHED_BYTES_MAX;
                self.speech = Speech::Ignored;
            }
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
            Transition::Encrypted { at, request_direction, attributes } => {
                self.speech = Speech::Turns(Turns::encrypted(request_direction, attributes));
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
            Speech::Turns(turns) => turns.end(parsed),
            Speech::Detecting(_) | Speech::Ignored | Speech::Opaque { .. } | Speech::Off { .. } => {}
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
                Speech::Ignored | Speech::Opaque { .. } | Speech::Off { .. } => next(),
            };
            self.timelines[direction.idx()].trim(from);
        }
    }

    /// Payload limit to ask for, if it is another one now.
    pub(crate) fn changed_payload_limit(&mut self) -> Option<u32> {
        let wanted = match &self.speech {
            Speech::Detecting(_) => worth::START,
            Speech::Speaking { parser, .. } => {
                parser.payload_limit(Direction::Out).max(parser.payload_limit(Direction::In))
            }
            Speech::Turns(_) | Speech::Ignored if self.watch > 0 => WATCHED_BYTES,
            Speech::Turns(_) | Speech::Ignored | Speech::Opaque { .. } | Speech::Off { .. } => 0,
        };
        self.worth.changed(wanted)
    }
}
