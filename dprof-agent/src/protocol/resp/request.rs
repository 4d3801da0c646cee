//! The request direction of a Redis connection: arrays of bulk strings and inline commands, one byte at a time
//! if need be. Bulk payloads are counted off, so a hole inside one costs only what it hid.

use std::borrow::Cow;

use super::Session;
use super::arguments::{Blocking, Current, KEY_BYTES_MAX};
use super::boundary::{Boundary, request_boundary};
use super::command::{self, Effect};
use super::inline;
use super::number::{Number, Step};
use super::subscriptions::Family;
use crate::protocol::capture::Capture;
use crate::protocol::{BLOCKING_ATTRIBUTE, Direction, KeyRanges, Message, MessageKind, Parsed};

/// Arguments of one command at most: Redis takes `INT_MAX`.
const ARGS_MAX: i64 = i32::MAX as i64;

/// Longest bulk string, bytes. Redis's default is 512 MiB and can be raised; what claims more is garbage.
pub(super) const BULK_BYTES_MAX: i64 = 8 << 30;

/// Longest inline command, bytes: these are typed by people or made by health checks. Redis takes 64 KiB.
const INLINE_BYTES_MAX: usize = 4096;

/// A request whose reply is shaped otherwise than by its own bytes, or changes how later ones are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// Confirmations: one per channel. `n` 0, of an UNSUBSCRIBE: one per channel that is subscribed, or one.
    Subscription { family: Family, ends: bool, n: u32 },
    /// Chooses version 2 or 3; 0: neither.
    Hello(u8),
    /// Everything after its `+OK` comes unasked.
    Monitor,
    /// Ends `MONITOR` and subscriptions.
    Reset,
    /// A replication stream follows the first line of the reply, unless that is an error.
    Replicate,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// At a boundary.
    Start,
    /// In the line of an inline command, gathered in `held`.
    Inline,
    /// After `*`.
    Count(Number),
    /// Before the `$` of an argument.
    Head,
    /// After `$`.
    Len(Number),
    /// In an argument or its line end: this many bytes are left of both.
    Body(u64),
    /// Boundary lost: what may be one is gathered in `held`.
    Seek,
}

/// What of a request its reply depends on.
fn special(effect: Effect, current: &Current) -> Option<Special> {
    let n_channels = current.n_args - 1;
    match effect {
        Effect::Subscribe | Effect::Unsubscribe => {
            let family = Family::of(current.command?.name);
            let ends = effect == Effect::Unsubscribe;
            Some(Special::Subscription { family, ends, n: n_channels })
        }
        Effect::Monitor => Some(Special::Monitor),
        Effect::Reset => Some(Special::Reset),
        Effect::Sync | Effect::Psync => Some(Special::Replicate),
        Effect::Hello => Some(Special::Hello(current.version)),
        _ => None,
    }
}

/// Parser of the request direction.
#[derive(Debug)]
pub(super) struct Requests {
    direction: Direction,
    /// Position after the last byte fed or skipped.
    pos: u64,
    state: State,
    /// Where the message under way starts.
    start: u64,
    /// Whether the loss was said (or the connection joined) and no message came since.
    lost: bool,
    current: Current,
    /// Length of the argument under way and whether all of it was seen so far.
    arg_len: u64,
    arg_seen: bool,
    /// First bytes of an argument that came in parts.
    scratch: Vec<u8>,
    /// Bytes of an inline command, or of a possible boundary; the first is at `start`.
    held: Vec<u8>,
    /// While seeking: the last two bytes, `\r\n` at a place where a message may start.
    before: [u8; 2],
}

const LINE_END: [u8; 2] = *b"\r\n";

impl Requests {
    pub(super) fn new(direction: Direction, pos: u64, joined: bool) -> Self {
        Self {
            direction,
            pos,
            state: if joined { State::Seek } else { State::Start },
            start: pos,
            lost: joined,
            current: Current::new(),
            arg_len: 0,
            arg_seen: true,
            scratch: Vec::new(),
            held: Vec::new(),
            before: LINE_END,
        }
    }

    pub(super) const fn set_capture(&mut self, capture: Capture) {
        self.current.capture = capture;
    }

    /// A message starts at `pos`; what was under way is forgotten.
    pub(super) fn restart(&mut self, pos: u64) {
        (self.pos, self.start, self.state) = (pos, pos, State::Start);
        (self.lost, self.before) = (false, LINE_END);
        self.held.clear();
    }

    pub(super) fn unfinished_from(&self) -> u64 {
        match self.state {
            State::Start => self.pos,
            State::Seek if self.held.is_empty() => self.pos,
            _ => self.start,
        }
    }

    /// Whether the next byte starts a message.
    pub(super) fn at_boundary(&self) -> bool {
        matches!(self.state, State::Start)
    }

    pub(super) fn feed(&mut self, bytes: &[u8], session: &mut Session, out: &mut Vec<Parsed>) {
        let base = self.pos;
        let mut i = 0;
        while i < bytes.len() && !session.over() {
            let at = base + i as u64;
            let byte = bytes[i];
            match &mut self.state {
                State::Start => match byte {
                    b'*' => {
                        self.start = at;
                        self.state = State::Count(Number::default());
                        i += 1;
                    }
                    // Redis skips empty lines.
                    b'\r' | b'\n' => i += 1,
                    b' ' | b'a'..=b'z' | b'A'..=b'Z' => {
                        self.start = at;
                        self.held.clear();
                        self.state = State::Inline;
                    }
                    _ => self.lose(at, session, out),
                },
                State::Count(number) => match number.push(byte) {
                    Step::More => i += 1,
                    Step::Done(n @ 1..=ARGS_MAX) => {
                        i += 1;
                        self.current.begin(n as u32);
                        self.state = State::Head;
                    }
                    // Redis ignores an empty array.
                    Step::Done(-1 | 0) => {
                        i += 1;
                        self.state = State::Start;
                    }
                    _ => self.lose(at, session, out),
                },
                State::Head if byte == b'$' => {
                    i += 1;
                    self.state = State::Len(Number::default());
                }
                State::Head => self.lose(at, session, out),
                State::Len(number) => match number.push(byte) {
                    Step::More => i += 1,
                    Step::Done(len @ 0..=BULK_BYTES_MAX) => {
                        i += 1;
                        self.arg_len = len as u64;
                        self.arg_seen = true;
                        self.scratch.clear();
                        self.state = State::Body(len as u64 + 2);
                        // The common case: all of it is here.
                        if let Some(argument) = bytes.get(i..i + len as usize + 2)
                            && let Some(argument) = argument.strip_suffix(&LINE_END)
                        {
                            i += len as usize + 2;
                            self.current.hash(argument);
                            self.end_arg(Some(argument), base + i as u64, session, out);
                        }
                    }
                    _ => self.lose(at, session, out),
                },
                State::Body(left) => {
                    let payload = left.saturating_sub(2).min((bytes.len() - i) as u64);
                    if payload > 0 {
                        *left -= payload;
                        let part = &bytes[i..i + payload as usize];
                        i += part.len();
                        self.current.hash(part);
                        let room = KEY_BYTES_MAX.saturating_sub(self.scratch.len());
                        self.scratch.extend_from_slice(&part[..part.len().min(room)]);
                    } else if byte == LINE_END[usize::from(*left == 1)] {
                        i += 1;
                        *left -= 1;
                        if *left == 0 {
                            self.end_arg(None, base + i as u64, session, out);
                        }
                    } else {
                        self.lose(at, session, out);
                    }
                }
                State::Inline => {
                    i += 1;
                    if byte != b'\n' && self.held.len() < INLINE_BYTES_MAX {
                        self.held.push(byte);
                    } else if byte != b'\n' || !self.inline_command(base + i as u64, session, out) {
                        self.lose(at, session, out);
                    }
                }
                State::Seek => i += self.seek(&bytes[i..], at, session, out),
            }
        }
        self.pos = base + bytes.len() as u64;
    }

    /// `len` bytes were not seen.
    pub(super) fn gap(&mut self, mut len: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        while let State::Body(left) = &mut self.state
            && len > 0
            && !session.over()
        {
            let skipped = len.min(*left);
            self.arg_seen &= *left <= 2;
            *left -= skipped;
            len -= skipped;
            self.pos += skipped;
            if *left == 0 {
                self.end_arg(None, self.pos, session, out);
            }
        }
        if len > 0 && !session.over() {
            let at = self.unfinished_from();
            self.pos += len;
            self.say_lost(at, session, out);
            self.before = LINE_END;
        }
    }

    /// An argument is complete: its bytes if they came in one part, else `scratch` holds the first of them.
    fn end_arg(&mut self, argument: Option<&[u8]>, end: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        let content = argument.unwrap_or(&self.scratch);
        self.current.argument(content, self.arg_len, self.arg_seen);
        if self.current.arg == self.current.n_args {
            self.state = State::Start;
            self.end_message(end, session, out);
        } else {
            self.state = State::Head;
        }
    }

    fn end_message(&mut self, end: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        let current = &mut self.current;
        let effect = current.effect();
        if current.replication {
            session.opaque_from = Some(self.start);
            return;
        }
        let answered = session.is_answered(effect, current);
        let kind = if answered { MessageKind::Request } else { MessageKind::OneWay };
        let mut message = Message::new(self.direction, kind, self.start, end);
        message.operation = std::mem::take(&mut current.operation);
        current.statement.as_str().clone_into(&mut message.text);
        message.keys = current.statement.keys();
        if message.keys != KeyRanges::NONE && current.value_bytes > 0 {
            message.value_bytes = Some(u32::try_from(current.value_bytes).unwrap_or(u32::MAX));
        }
        message.incomplete = current.incomplete;
        message.answers_unknown = current.incomplete;
        message.content_hash = current.content_hash();
        message.parts = current.take_parts();
        // In a transaction nothing waits.
        if current.blocking != Blocking::No && session.in_multi != Some(true) {
            let is_known = current.blocking == Blocking::Yes && session.in_multi.is_some();
            let value = if is_known { "true" } else { "unknown" };
            message.attributes.push((Cow::Borrowed(BLOCKING_ATTRIBUTE), value.to_owned()));
        }
        if current.incomplete {
            // What it was may have changed the connection.
            session.lose_requests();
        } else if answered {
            session.answers.request(special(effect, current));
        }
        match effect {
            Effect::Multi => session.in_multi = Some(true),
            Effect::EndMulti | Effect::Reset => session.in_multi = Some(false),
            _ => {}
        }
        session.proved = true;
        session.guess_said = false;
        self.lost = false;
        out.push(Parsed::Message(message));
    }

    /// Reads the line in `held`. False if it is no command: Redis answers every line with words in it, also when
    /// it does not know the first, but a line that nothing stands for may be anything.
    fn inline_command(&mut self, end: u64, session: &mut Session, out: &mut Vec<Parsed>) -> bool {
        let held = std::mem::take(&mut self.held);
        let arguments = inline::split(&held);
        let believed = match arguments.first() {
            Some(name) if session.proved && !self.lost => command::looks_like_a_name(name),
            Some(name) => command::find(name).is_some(),
            None => return self.blank_line(&held),
        };
        if believed {
            self.current.begin(arguments.len() as u32);
            for argument in &arguments {
                self.current.hash(argument);
                let head = &argument[..argument.len().min(KEY_BYTES_MAX)];
                self.current.argument(head, argument.len() as u64, true);
            }
            self.state = State::Start;
            self.end_message(end, session, out);
        }
        self.held = held;
        believed
    }

    fn blank_line(&mut self, line: &[u8]) -> bool {
        self.state = State::Start;
        line.iter().all(u8::is_ascii_whitespace)
    }

    /// The bytes at `at` are no request.
    fn lose(&mut self, at: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        if !session.proved && !self.lost {
            session.mistaken = true;
            return;
        }
        let (from, before) = match self.state {
            State::Start => (at, LINE_END),
            State::Head => (self.start, LINE_END),
            _ => (self.start, [0; 2]),
        };
        self.say_lost(from, session, out);
        self.before = before;
    }

    fn say_lost(&mut self, at: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        if !self.lost {
            out.push(Parsed::Lost { direction: self.direction, at });
        }
        self.lost = true;
        self.state = State::Seek;
        self.held.clear();
        session.lose_requests();
    }

    /// Looks for a boundary in `bytes`, the first of which is at `at`; how many bytes it took.
    fn seek(&mut self, bytes: &[u8], at: u64, session: &mut Session, out: &mut Vec<Parsed>) -> usize {
        if self.held.is_empty() {
            let found = bytes.iter().enumerate().find(|&(idx, &byte)| {
                let before = match idx {
                    0 => self.before,
                    1 => [self.before[1], bytes[0]],
                    _ => [bytes[idx - 2], bytes[idx - 1]],
                };
                byte == b'*' && before == LINE_END
            });
            let taken = found.map_or(bytes.len(), |(idx, _)| idx);
            for &byte in &bytes[taken.saturating_sub(2)..taken] {
                self.before = [self.before[1], byte];
            }
            if found.is_some() {
                self.start = at + taken as u64;
                self.held.push(b'*');
                return taken + 1;
            }
            return taken;
        }
        self.held.push(bytes[0]);
        match request_boundary(&self.held) {
            Boundary::NeedMore => {}
            Boundary::Known => {
                let held = std::mem::take(&mut self.held);
                self.state = State::Start;
                self.pos = self.start;
                self.feed(&held, session, out);
                self.held = held;
                self.held.clear();
            }
            Boundary::Array | Boundary::No => {
                // Another star may follow a line end among what was held: read it again without this one.
                let held = std::mem::take(&mut self.held);
                let from = self.start;
                self.before = [0; 2];
                let mut taken = 1;
                while taken < held.len() {
                    self.pos = from + taken as u64;
                    if matches!(self.state, State::Seek) {
                        taken += self.seek(&held[taken..], self.pos, session, out);
                    } else {
                        self.feed(&held[taken..], session, out);
                        break;
                    }
                }
            }
        }
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let monitor = b"*1\r\n$7\r\nMONITOR\r\n".as_slice();
        for start in
            [b"PING ".as_slice(), b"*1\r\n$9999999\r\n", b"*999999\r\n", b"*2\r\n$4\r\nPING\r\n$1", monitor]
        {
            for filler in [b"A".as_slice(), b"\r\n*1", b"*1\r\n$4\r\n", b"$1\r\na\r\n", monitor] {
                let mut session = Session::new(true);
                let mut requests = Requests::new(Direction::Out, 0, false);
                let mut out = Vec::new();
                requests.feed(start, &mut session, &mut out);
                for _ in 0..1000 {
                    requests.feed(&filler.repeat(100), &mut session, &mut out);
                    out.clear();
                }
                let held = requests.held.capacity() + requests.scratch.capacity();
                assert!(
                    held <= 2 * (INLINE_BYTES_MAX + KEY_BYTES_MAX),
                    "{held} bytes of {start:?}, {filler:?}"
                );
                assert!(requests.current.statement.as_str().len() < 512);
            }
        }
    }
}
