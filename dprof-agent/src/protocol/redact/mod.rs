//! Masks what an application's users own in the bytes of a connection, before they are written to a recording:
//! values, bodies, credentials. Lengths stay, and so does everything that a parser reads, so a replay gives the
//! same spans.
//!
//! What a reader would get wrong: this is not a parser with holes punched afterwards. A byte is judged alone, in
//! the order of the stream, and kept only where a grammar says that it is structure. Bytes of a protocol that no
//! grammar fits are masked all. Doubt masks.

mod http;
mod line;
mod target;

use std::collections::VecDeque;

use super::Direction;
use super::resp::redact::{RespMask, Role};
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
            && self.is_at_boundary(bytes[0], has_turned, before)
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
    fn is_at_boundary(&self, first: u8, has_turned: bool, before: [u8; 2]) -> bool {
        (first.is_ascii_alphabetic() && (has_turned || before == LINE_END))
            || (RespMask::may_start(first) && has_turned && self.role != Role::Requests && first != b'*')
            || (first == b'*' && has_turned && self.role == Role::Replies)
    }

    /// Masks bytes of a lost stream up to where a command of Redis may start: an array after a line end.
    fn seek(&mut self, mut before: [u8; 2], bytes: &mut [u8]) -> usize {
        for (idx, byte) in bytes.iter_mut().enumerate() {
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
                self.seek(before, bytes)
            }
            State::Start => {
                match bytes[0] {
                    b'\r' | b'\n' => return 1,
                    byte if RespMask::may_start(byte) => {
                        let mask = Box::new(RespMask::new(self.role));
                        self.state = State::Resp { mask, is_guess: false };
                    }
                    byte if byte.is_ascii_alphabetic() => self.state = State::Line(Box::default()),
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
