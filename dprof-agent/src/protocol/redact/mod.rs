//! Masks what an application's users own in the bytes of a connection, before they are written to a recording:
//! values, bodies, credentials. Lengths stay, and so does everything that a parser reads, so a replay gives the
//! same spans.
//!
//! What a reader would get wrong: this is not a parser with holes punched afterwards. A byte is judged alone, in
//! the order of the stream, and kept only where a grammar says that it is structure. Bytes of a protocol that no
//! grammar fits are masked all. Doubt masks.

mod dnode;
mod http;
mod line;
mod target;

use std::collections::VecDeque;

use super::Direction;
use super::memcached::redact::{
    PacketMask, TextMask, starts_with_a_command, starts_with_a_packet, starts_with_a_reply,
};
use super::resp::redact::{RespMask, Role};
use dnode::{DnodeMask, starts_with_a_header};
use http::HttpMask;
use line::{LineMask, Outcome};

/// Stands for a byte of a value: printable, and no part of a name, number or line end.
pub(super) const FILLER: u8 = b'?';
/// Stands for a byte of an unknown protocol: no protocol that we know has it anywhere in its structure.
const UNKNOWN_FILLER: u8 = 0;
/// HTTP requests under way on one connection whose method is remembered.
const METHODS_MAX: usize = 1024;

/// What a byte did to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It goes on.
    More,
    /// It ended with this byte.
    Done,
    /// This byte is no part of it.
    Bad,
}

/// What of a method changes how its response is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    Head,
    Connect,
    Other,
}

/// Masks both directions of a connection.
#[derive(Debug)]
pub struct ConnectionMask {
    streams: [StreamMask; 2],
    exchange: Exchange,
    last: Option<Direction>,
}

/// What one direction tells the other.
#[derive(Debug, Default)]
struct Exchange {
    /// Methods of HTTP requests without a response yet.
    methods: VecDeque<Method>,
    /// The connection became something else (upgrade, CONNECT).
    is_opaque: bool,
    /// What the connection was found to speak, of what cannot be told from a message alone.
    tongue: Option<Tongue>,
    /// This is about the payloads of another protocol.
    is_inside: bool,
    /// About the payloads of this one.
    inside: Option<Box<Self>>,
}

/// Protocols whose messages are masked only on connections that are known to speak them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tongue {
    MemcachedText,
    MemcachedBinary,
    Dnode,
    /// None of these: each message of Redis and HTTP shows what it is.
    Other,
}

#[derive(Debug)]
struct StreamMask {
    role: Role,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Between messages.
    Start,
    /// In the middle of something unknown, after these bytes.
    Lost {
        before: [u8; 2],
    },
    /// The first line of something that starts with a letter.
    Line(Box<LineMask>),
    /// A message of Redis; a guess until its name is known.
    Resp {
        mask: Box<RespMask>,
        is_guess: bool,
    },
    Http(Box<HttpMask>),
    Text(Box<TextMask>),
    Packet(Box<PacketMask>),
    Dnode(Box<DnodeMask>),
}

const LINE_END: [u8; 2] = *b"\r\n";

impl State {
    /// Something unexpected came.
    const LOST: Self = Self::Lost { before: [0; 2] };
    /// After bytes that were not seen: they may have ended a line.
    const JOINED: Self = Self::Lost { before: LINE_END };
}

impl ConnectionMask {
    /// A connection; `request_direction` if its role is known, `is_joined` if it is older than what is seen.
    pub fn new(request_direction: Option<Direction>, is_joined: bool) -> Self {
        let stream = |direction| StreamMask {
            role: match request_direction {
                None => Role::Unknown,
                Some(requests) if requests == direction => Role::Requests,
                Some(_) => Role::Replies,
            },
            state: if is_joined { State::JOINED } else { State::Start },
        };
        Self {
            streams: [stream(Direction::Out), stream(Direction::In)],
            exchange: Exchange::default(),
            last: None,
        }
    }

    /// Masks the next bytes of `direction`.
    pub fn mask(&mut self, direction: Direction, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        let has_turned = self.last != Some(direction);
        self.last = Some(direction);
        self.streams[direction.idx()].mask(bytes, has_turned, &mut self.exchange);
    }

    /// `len` bytes of `direction` were not seen.
    pub fn gap(&mut self, direction: Direction, len: u64) {
        if len == 0 {
            return;
        }
        self.last = Some(direction);
        self.streams[direction.idx()].gap(len, &mut self.exchange);
    }

    /// The order of bytes in `direction` is in doubt: nothing is known until the next safe boundary.
    pub fn lose(&mut self, direction: Direction) {
        self.streams[direction.idx()].state = State::LOST;
    }
}

impl StreamMask {
    fn mask(&mut self, mut bytes: &mut [u8], has_turned: bool, exchange: &mut Exchange) {
        if let State::Lost { before } = self.state
            && self.is_at_boundary(bytes[0], has_turned, before, exchange)
        {
            self.state = State::Start;
        }
        while !bytes.is_empty() {
            if exchange.is_opaque {
                self.state = State::LOST;
            }
            let n = self.step(bytes, exchange);
            bytes = &mut bytes[n..];
        }
    }

    /// Whether a message may start with this first byte of a call, although what came before is not known. The
    /// first bytes after the other side's were written after those were read; and a call may start after a line.
    fn is_at_boundary(&self, first: u8, has_turned: bool, before: [u8; 2], exchange: &Exchange) -> bool {
        (first.is_ascii_alphabetic() && (has_turned || before == LINE_END))
            || (RespMask::may_start(first) && has_turned && self.role != Role::Requests && first != b'*')
            || (first == b'*' && has_turned && self.role == Role::Replies)
            // Perhaps a header; the start of a message looks for a whole one.
            || (has_turned && matches!(first, 0x80 | 0x81 | b' '))
            || (has_turned && first.is_ascii_digit() && exchange.tongue == Some(Tongue::MemcachedText))
    }

    /// Masks bytes of a lost stream up to where a command of Redis may start: an array after a line end.
    fn seek(&mut self, mut before: [u8; 2], bytes: &mut [u8], exchange: &Exchange) -> usize {
        let is_dnode = exchange.tongue == Some(Tongue::Dnode);
        for idx in 0..bytes.len() {
            if is_dnode && bytes[idx] == b' ' && starts_with_a_header(&bytes[idx..]) {
                self.state = State::Dnode(Box::default());
                return idx;
            }
            let byte = &mut bytes[idx];
            if *byte == b'*' && before == LINE_END && self.role != Role::Replies {
                self.state = State::Resp { mask: Box::new(RespMask::new(Role::Unknown)), is_guess: true };
                return idx;
            }
            before = [before[1], *byte];
            // Line ends show a parser where a message may start.
            if !matches!(*byte, b'\r' | b'\n') {
                *byte = UNKNOWN_FILLER;
            }
        }
        self.state = State::Lost { before };
        bytes.len()
    }

    /// Masks some bytes; how many.
    fn step(&mut self, bytes: &mut [u8], exchange: &mut Exchange) -> usize {
        match &mut self.state {
            State::Lost { before } => {
                let before = *before;
                self.seek(before, bytes, exchange)
            }
            State::Start => {
                if exchange.tongue.is_none() {
                    exchange.tongue = self.tongue(bytes, exchange.is_inside);
                }
                match (exchange.tongue, bytes[0]) {
                    (Some(Tongue::MemcachedBinary), _) => self.state = State::Packet(Box::default()),
                    (Some(Tongue::Dnode), _) => self.state = State::Dnode(Box::default()),
                    (_, b'\r' | b'\n') => return 1,
                    (Some(Tongue::MemcachedText), _) => {
                        let is_reply = match self.role {
                            Role::Requests => false,
                            Role::Replies => true,
                            Role::Unknown => starts_with_a_reply(bytes),
                        };
                        self.state = State::Text(Box::new(TextMask::new(is_reply)));
                    }
                    (_, byte) if RespMask::may_start(byte) => {
                        let mask = Box::new(RespMask::new(self.role));
                        self.state = State::Resp { mask, is_guess: false };
                    }
                    (_, byte) if byte.is_ascii_alphabetic() => self.state = State::Line(Box::default()),
                    _ => self.state = State::LOST,
                }
                0
            }
            State::Resp { mask, is_guess } => {
                // Guessed right when the name is that of a command, wrong when it is not.
                let (n, progress) = if *is_guess { mask.mask_name(bytes) } else { mask.mask(bytes) };
                if *is_guess && progress == Progress::Done {
                    *is_guess = false;
                    if mask.is_over() {
                        self.state = State::Start;
                    }
                } else {
                    if progress == Progress::Done {
                        exchange.tongue.get_or_insert(Tongue::Other);
                    }
                    self.progress(progress);
                }
                n
            }
            State::Line(mask) => {
                let (n, outcome) = mask.mask(bytes);
                match outcome {
                    Outcome::More => {}
                    Outcome::Command => self.state = State::Start,
                    Outcome::Unknown => self.state = State::LOST,
                    Outcome::Http(head) => {
                        exchange.tongue.get_or_insert(Tongue::Other);
                        self.state = State::Http(Box::new(HttpMask::new(head, exchange)));
                    }
                }
                n
            }
            State::Http(mask) => {
                let (n, progress) = mask.mask(bytes, exchange);
                self.progress(progress);
                n
            }
            State::Text(mask) => {
                let (n, progress) = mask.mask(bytes);
                self.progress(progress);
                n
            }
            State::Packet(mask) => {
                let (n, progress) = mask.mask(bytes);
                self.progress(progress);
                n
            }
            State::Dnode(mask) => {
                let (n, progress) = mask.mask(bytes, exchange);
                self.progress(progress);
                n
            }
        }
    }

    /// What these first bytes of a message show the connection to speak.
    fn tongue(&self, bytes: &[u8], is_inside: bool) -> Option<Tongue> {
        match bytes[0] {
            b' ' if !is_inside && starts_with_a_header(bytes) => Some(Tongue::Dnode),
            0x80 | 0x81 if starts_with_a_packet(bytes) => Some(Tongue::MemcachedBinary),
            first if first.is_ascii_alphabetic() => {
                let is_one = (self.role != Role::Replies && starts_with_a_command(bytes))
                    || (self.role != Role::Requests && starts_with_a_reply(bytes));
                is_one.then_some(Tongue::MemcachedText)
            }
            _ => None,
        }
    }

    fn progress(&mut self, progress: Progress) {
        match progress {
            Progress::More => {}
            Progress::Done => self.state = State::Start,
            Progress::Bad => self.state = State::LOST,
        }
    }

    fn gap(&mut self, mut len: u64, exchange: &mut Exchange) {
        while len > 0 {
            let (skipped, progress) = match &mut self.state {
                State::Resp { mask, .. } => mask.skip(len),
                State::Http(mask) => mask.skip(len, exchange),
                State::Text(mask) => mask.skip(len),
                State::Packet(mask) => mask.skip(len),
                State::Dnode(mask) => mask.skip(len, exchange),
                State::Start | State::Lost { .. } | State::Line(_) => (0, Progress::Bad),
            };
            self.progress(progress);
            len -= skipped;
            if matches!(self.state, State::Lost { .. }) {
                self.state = State::JOINED;
                return;
            }
        }
    }
}

impl Exchange {
    /// What the payloads of this protocol's messages tell each other.
    fn inside(&mut self) -> &mut Self {
        self.inside.get_or_insert_with(|| Box::new(Self { is_inside: true, ..Self::default() }))
    }

    /// A request was sent.
    fn request(&mut self, method: Method) {
        if self.methods.len() < METHODS_MAX {
            self.methods.push_back(method);
        }
    }

    /// The head of a response ended: the method of its request.
    fn response(&mut self) -> Method {
        self.methods.pop_front().unwrap_or(Method::Other)
    }
}

#[cfg(test)]
mod tests;
