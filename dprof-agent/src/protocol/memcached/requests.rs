//! The request direction of a memcached text connection: lines, and data blocks counted off.
//!
//! What a reader would get wrong: a value may hold anything, also lines that read as commands. After a loss a line
//! is believed only at the first byte that the client wrote after it was written to.

use std::borrow::Cow;

use memchr::memchr;

use super::Session;
use super::command::{Class, Command, Reply};
use crate::protocol::capture::KeyCapture;
use crate::protocol::{Correlation, Direction, KeyRanges, Message, MessageKind, Parsed, Parts};

/// Longest line, bytes: a multi-get of hundreds of keys. memcached itself takes what fits its read buffer.
pub(super) const LINE_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug)]
enum State {
    /// At a boundary, or in a line: what came of it is in `held`.
    Line,
    /// In a data block or its line end: this many bytes are left of both.
    Data { command: Box<Command>, left: u64, is_seen: bool },
    /// Boundary lost.
    Seek,
}

/// Parser of the request direction.
#[derive(Debug)]
pub(super) struct Requests {
    direction: Direction,
    pos: u64,
    state: State,
    start: u64,
    lost: bool,
    /// The other side wrote since the last byte of this one.
    turn: bool,
    held: Vec<u8>,
    /// How keys are kept.
    pub(super) keys: KeyCapture,
}

const LINE_END: [u8; 2] = *b"\r\n";

impl Requests {
    pub(super) fn new(direction: Direction, pos: u64, joined: bool) -> Self {
        Self {
            direction,
            pos,
            state: if joined { State::Seek } else { State::Line },
            start: pos,
            lost: joined,
            // The first bytes that are seen of an old connection usually begin a command.
            turn: joined,
            held: Vec::new(),
            keys: KeyCapture::Plain,
        }
    }

    pub(super) fn unfinished_from(&self) -> u64 {
        match self.state {
            State::Line => self.pos - self.held.len() as u64,
            State::Data { .. } => self.start,
            State::Seek => self.pos,
        }
    }

    /// Whether the next byte starts a message.
    pub(super) fn at_boundary(&self) -> bool {
        matches!(self.state, State::Line) && self.held.is_empty()
    }

    /// Whether a command is under way whose line is whole: the server may answer it already.
    pub(super) const fn in_data(&self) -> bool {
        matches!(self.state, State::Data { .. })
    }

    /// The other side wrote.
    pub(super) const fn turned(&mut self) {
        self.turn = true;
    }

    pub(super) fn feed(&mut self, mut bytes: &[u8], session: &mut Session, out: &mut Vec<Parsed>) {
        if std::mem::take(&mut self.turn) && matches!(self.state, State::Seek) {
            self.state = State::Line;
        }
        while !bytes.is_empty() && !session.over() {
            let taken = match &mut self.state {
                State::Line => self.line(bytes, session, out),
                State::Data { command, left, .. } => {
                    let data = left.saturating_sub(2).min(bytes.len() as u64);
                    if data > 0 {
                        command.hasher.update(&bytes[..data as usize]);
                        *left -= data;
                        self.pos += data;
                        data as usize
                    } else if bytes[0] == LINE_END[usize::from(*left == 1)] {
                        *left -= 1;
                        self.pos += 1;
                        if *left == 0 {
                            self.end_data(session, out);
                        }
                        1
                    } else {
                        // "bad data chunk": the server throws away what follows up to a line end of its choice.
                        self.lose(self.start, session, out);
                        0
                    }
                }
                State::Seek => {
                    self.pos += bytes.len() as u64;
                    bytes.len()
                }
            };
            bytes = &bytes[taken..];
        }
    }

    /// `len` bytes were not seen.
    pub(super) fn gap(&mut self, mut len: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        if let State::Data { left, is_seen, .. } = &mut self.state {
            let skipped = len.min(*left);
            *is_seen &= *left <= 2;
            *left -= skipped;
            let ended = *left == 0;
            len -= skipped;
            self.pos += skipped;
            if ended {
                self.end_data(session, out);
            }
        }
        if len > 0 {
            let from = self.unfinished_from();
            self.pos += len;
            self.say_lost(from, session, out);
        }
        self.turn = false;
    }

    /// Takes a line, or the part of it that is there.
    fn line(&mut self, bytes: &[u8], session: &mut Session, out: &mut Vec<Parsed>) -> usize {
        let Some(end) = memchr(b'\n', bytes) else {
            if self.held.len() + bytes.len() > LINE_BYTES_MAX || !self.may_be_a_line(bytes) {
                self.lose(self.pos - self.held.len() as u64, session, out);
                return 0;
            }
            self.held.extend_from_slice(bytes);
            self.pos += bytes.len() as u64;
            return bytes.len();
        };
        let held = self.held.len();
        let start = self.pos - held as u64;
        // Judged like a part of a line, or the answer would depend on how it was cut.
        let is_like_a_command = held + end <= LINE_BYTES_MAX && self.may_be_a_line(&bytes[..end]);
        let command = if self.held.is_empty() {
            Command::read(without_return(&bytes[..end]), self.keys)
        } else {
            self.held.extend_from_slice(&bytes[..end]);
            let command = Command::read(without_return(&self.held), self.keys);
            self.held = Vec::new();
            command
        };
        // A server says ERROR to a line that it does not know. One in step is taken for that; one after a loss may be
        // the rest of a value.
        let unknown = || (session.proved && !self.lost && is_like_a_command).then(Command::unknown);
        let Some(command) = command.filter(|_| is_like_a_command).or_else(unknown) else {
            self.lose(start, session, out);
            return 0;
        };
        self.start = start;
        self.pos = start + (held + end + 1) as u64;
        match command.data {
            Some(data) => {
                self.state = State::Data { command: Box::new(command), left: data + 2, is_seen: true };
            }
            None => self.end_message(command, true, session, out),
        }
        end + 1
    }

    /// A line of printable text that begins like a command.
    fn may_be_a_line(&self, more: &[u8]) -> bool {
        let first = if self.held.is_empty() { more.first() } else { self.held.first() };
        first.is_none_or(u8::is_ascii_lowercase) && more.iter().all(|byte| *byte >= b' ' || *byte == b'\r')
    }

    fn end_data(&mut self, session: &mut Session, out: &mut Vec<Parsed>) {
        if let State::Data { command, is_seen, .. } = std::mem::replace(&mut self.state, State::Line) {
            self.end_message(*command, is_seen, session, out);
        }
    }

    fn end_message(&mut self, command: Command, is_seen: bool, session: &mut Session, out: &mut Vec<Parsed>) {
        let correlation = match command.reply {
            Reply::Always => Some(session.order.request(command.class, command.token)),
            Reply::Quiet => session.order.quiet(command.class, command.token),
            Reply::Never => None,
        };
        match command.reply {
            Reply::Always => session.n_requests += 1,
            Reply::Never => session.unanswerable = Some(session.n_requests),
            Reply::Quiet => {}
        }
        session.watches |= command.class == Class::Watch;
        let kind = if correlation.is_some() { MessageKind::Request } else { MessageKind::OneWay };
        let mut hasher = command.hasher;
        if let Some(data) = command.data {
            hasher.number(data);
        }
        let mut message = Message::new(self.direction, kind, self.start, self.pos);
        message.correlation = correlation.unwrap_or(Correlation::Fifo);
        message.answers_unknown = command.reply == Reply::Quiet && correlation.is_none();
        message.operation = command.operation;
        message.text = command.text;
        message.keys = command.keys;
        message.value_bytes = command.data.map(|data| u32::try_from(data).unwrap_or(u32::MAX));
        if is_seen {
            let rest = hasher.finish();
            hasher.update(message.operation.as_bytes());
            message.content_hash = Some(hasher.finish());
            message.parts = match command.parts {
                _ if message.keys == KeyRanges::NONE => Parts::None,
                parts if parts.is_empty() => Parts::One(rest),
                parts => Parts::Many(parts.into_boxed_slice()),
            };
        }
        session.proved = true;
        self.lost = false;
        out.push(Parsed::Message(message));
        session.give_early(out);
    }

    /// The bytes at `at` are no request.
    fn lose(&mut self, at: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        if !session.proved && !self.lost {
            session.mistaken = true;
            return;
        }
        self.say_lost(at, session, out);
    }

    fn say_lost(&mut self, at: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        if !self.lost {
            out.push(Parsed::Lost { direction: self.direction, at });
        }
        self.lost = true;
        self.held = Vec::new();
        self.state = State::Seek;
        session.lose();
    }
}

/// A line without the `\r` that should come before its `\n`.
pub(super) fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The status words of a request's class, for operations that read.
pub(super) const fn reads(class: Class) -> bool {
    matches!(class, Class::Get | Class::MetaGet)
}

/// Attribute of a response: whether the key was there.
pub(super) const HIT: Cow<'static, str> = Cow::Borrowed("dprof.cache.hit");
