//! memcached: the text protocol with its meta commands ([`command`], [`requests`], [`replies`]), and the binary one
//! ([`binary`]).
//!
//! What a reader would get wrong: a quiet command is answered sometimes. What it has to say is paired by what the
//! answer repeats, and its silence ends with the first answer to an ordinary command after it ([`order`]).

mod binary;
mod command;
mod first_words;
mod order;
pub(super) mod redact;
mod replies;
mod requests;
#[cfg(test)]
mod tests;

use dprof_common::limits::PAYLOAD_BYTES_MAX;
use memchr::memchr;

use super::capture::{Capture, KeyCapture};
use super::detect::HEAD_BYTES_MAX;
use super::{Detected, Direction, Head, Message, MessageKind, Parsed, Parser, Protocol, Verdict};
use command::{Class, Command};
use order::{Order, Silent};
use replies::Replies;
use requests::{Requests, without_return};

/// Payload worth capturing of one call: pipelined commands fill calls, and each must be seen.
const PAYLOAD_BYTES: u32 = PAYLOAD_BYTES_MAX as u32;

/// Longest first line that detection waits for, bytes: a key of 250 and numbers.
const LINE_BYTES_MAX: usize = 512;

/// The protocol.
#[derive(Debug)]
pub(super) struct Memcached;

impl Protocol for Memcached {
    fn name(&self) -> &'static str {
        "memcached"
    }

    fn ports(&self) -> &'static [u16] {
        &[11211, 11212]
    }

    fn detect(&self, head: &Head<'_>) -> Detected {
        if head.is_within_dnode() {
            return Detected { verdict: Verdict::No, request_direction: None };
        }
        let judged =
            [Direction::Out, Direction::In].map(|direction| judge(head.bytes[direction.idx()], head.joined));
        let detected = |verdict, request_direction| Detected { verdict, request_direction };
        if judged.contains(&Looks::Other) && !head.joined {
            return detected(Verdict::No, None);
        }
        for (direction, looks) in [Direction::Out, Direction::In].into_iter().zip(judged) {
            let other = judged[direction.reverse().idx()];
            match looks {
                Looks::Command => return detected(Verdict::Yes, Some(direction)),
                Looks::Reply if head.joined => return detected(Verdict::Yes, Some(direction.reverse())),
                // A name that Redis has too: the reply tells.
                Looks::Shared if other == Looks::Reply => return detected(Verdict::Yes, Some(direction)),
                _ => {}
            }
        }
        let shared =
            [Direction::Out, Direction::In].into_iter().find(|way| judged[way.idx()] == Looks::Shared);
        match shared {
            Some(direction) => detected(Verdict::Maybe, Some(direction)),
            None if judged.contains(&Looks::Reply) && !head.joined => detected(Verdict::No, None),
            None => detected(Verdict::NeedMore, None),
        }
    }

    fn parser(&self, request_direction: Direction, start: [u64; 2], joined: bool) -> Box<dyn Parser> {
        Box::new(MemcachedParser {
            request_direction,
            start,
            joined,
            keys: KeyCapture::Plain,
            unheard: [0; 2],
            speech: Speech::Unheard,
        })
    }
}

/// What the first bytes of a direction look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looks {
    Nothing,
    Unclear,
    /// A command that only memcached has.
    Command,
    /// A command that Redis has too.
    Shared,
    Reply,
    Other,
}

fn judge(bytes: &[u8], joined: bool) -> Looks {
    let Some(&first) = bytes.first() else { return Looks::Nothing };
    if matches!(first, binary::REQUEST | binary::RESPONSE) {
        return match binary::Header::read(bytes) {
            Ok(_) if first == binary::REQUEST => Looks::Command,
            Ok(_) => Looks::Reply,
            Err(binary::Stop::NeedMore) => Looks::Unclear,
            Err(binary::Stop::No) => Looks::Other,
        };
    }
    let window = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = memchr(b'\n', window) else {
        let is_text = window.iter().all(|byte| matches!(byte, b' '..) || *byte == b'\r');
        let name = window.split(|byte| *byte == b' ' || *byte == b'\r').next().unwrap_or_default();
        let is_whole_name = name.len() < window.len();
        let may_be = if is_whole_name {
            command::is_a_name(name) || first_words::is_first_word(name)
        } else {
            command::begins_a_name(name) || first_words::begins_a_first_word(name)
        };
        if !is_text || !may_be {
            return Looks::Other;
        }
        if window.len() < LINE_BYTES_MAX {
            return Looks::Unclear;
        }
        // Only the keys of a multi-get make a line as long as that.
        return if is_whole_name && is_multi_get(name) { Looks::Command } else { Looks::Other };
    };
    let line = without_return(&window[..end]);
    match Command::read(line, KeyCapture::Plain) {
        Some(command) if command.is_shared_with_redis => Looks::Shared,
        Some(Command { data: Some(len), .. }) if joined => judge_value(&bytes[end + 1..], len, end + 1),
        Some(_) => Looks::Command,
        None if first_words::is_first_line(line) => Looks::Reply,
        None => Looks::Other,
    }
}

/// What follows a command's line in the middle of a connection, where the line may be a part of anything: its value of
/// `len` bytes must end where the line says. `from`: where it starts in the head.
fn judge_value(value: &[u8], len: u64, from: usize) -> Looks {
    let room = HEAD_BYTES_MAX - from;
    let Some(len) = usize::try_from(len).ok().filter(|len| len + 2 <= room) else {
        // Nobody will see its end: the reply tells.
        return Looks::Shared;
    };
    match value.get(len..).unwrap_or_default() {
        [b'\r', b'\n', ..] => Looks::Command,
        [] | [b'\r'] => Looks::Unclear,
        _ => Looks::Other,
    }
}

/// Commands whose lines are longer than a key and some numbers.
fn is_multi_get(name: &[u8]) -> bool {
    matches!(name, b"get" | b"gets" | b"gat" | b"gats")
}

/// What both directions of a text connection share.
#[derive(Debug)]
struct Session {
    order: Order<Class>,
    silent: Vec<Silent<Class>>,
    /// A command that asked for no answer was sent after so many others: an error may come all the same, until one
    /// sent later is answered.
    unanswerable: Option<u64>,
    /// Ordinary requests and responses.
    n_requests: u64,
    n_responses: u64,
    /// `watch` was sent.
    watches: bool,
    proved: bool,
    mistaken: bool,
    /// The log of `watch` starts here, in the reply direction.
    opaque_from: Option<u64>,
    /// The client is in the middle of a value whose command is answered already.
    in_data: bool,
    /// That answer, until the command is whole.
    early: Option<Message>,
}

impl Session {
    fn new(certain: bool) -> Self {
        Self {
            order: Order::new(certain),
            silent: Vec::new(),
            unanswerable: None,
            n_requests: 0,
            n_responses: 0,
            watches: false,
            proved: false,
            mistaken: false,
            opaque_from: None,
            in_data: false,
            early: None,
        }
    }

    const fn over(&self) -> bool {
        self.mistaken || self.opaque_from.is_some()
    }

    fn lose(&mut self) {
        self.order.lose();
        self.forget();
    }

    /// The order is in doubt, but nothing was missed.
    fn doubt(&mut self) {
        self.order.doubt();
        self.forget();
    }

    fn forget(&mut self) {
        self.early = None;
        (self.n_requests, self.n_responses) = (0, 0);
        self.unanswerable = self.unanswerable.map(|_| 0);
    }

    /// A response is whole; `is_early`: its request is not.
    fn give(&mut self, message: Message, is_early: bool, out: &mut Vec<Parsed>) {
        self.give_early(out);
        if is_early && message.kind == MessageKind::Response {
            self.early = Some(message);
        } else {
            out.push(Parsed::Message(message));
        }
    }

    /// The request is whole whose answer came early, if one did.
    fn give_early(&mut self, out: &mut Vec<Parsed>) {
        out.extend(self.early.take().map(Parsed::Message));
    }
}

/// A connection, before and after its first byte.
#[derive(Debug)]
struct MemcachedParser {
    request_direction: Direction,
    start: [u64; 2],
    joined: bool,
    /// How keys are kept.
    keys: KeyCapture,
    /// Bytes that were not seen before the first one that was, per direction.
    unheard: [u64; 2],
    speech: Speech,
}

#[derive(Debug)]
enum Speech {
    Unheard,
    Text(Box<Text>),
    Binary(Box<binary::Binary>),
}

impl MemcachedParser {
    /// The first byte says which of the two it is.
    fn hear(&mut self, first: u8, out: &mut Vec<Parsed>) {
        if !matches!(self.speech, Speech::Unheard) {
            return;
        }
        let (direction, start, joined) = (self.request_direction, self.start, self.joined);
        self.speech = match first {
            binary::REQUEST | binary::RESPONSE => {
                Speech::Binary(Box::new(binary::Binary::new(direction, start, joined)))
            }
            _ => Speech::Text(Box::new(Text::new(direction, start, joined))),
        };
        self.tell_capture();
        for direction in [direction, direction.reverse()] {
            self.gap(direction, 0, self.unheard[direction.idx()], out);
        }
    }
}

impl MemcachedParser {
    fn tell_capture(&mut self) {
        match &mut self.speech {
            Speech::Text(text) => text.requests.keys = self.keys,
            Speech::Binary(binary) => binary.keep_keys(self.keys),
            Speech::Unheard => {}
        }
    }
}

impl Parser for MemcachedParser {
    /// Values are never kept, whatever is asked.
    fn set_capture(&mut self, capture: Capture) {
        self.keys = capture.keys;
        self.tell_capture();
    }

    fn feed(&mut self, direction: Direction, _pos: u64, bytes: &[u8], out: &mut Vec<Parsed>) {
        let Some(&first) = bytes.first() else { return };
        self.hear(first, out);
        match &mut self.speech {
            Speech::Text(text) => text.feed(direction, bytes, out),
            Speech::Binary(binary) => binary.feed(direction, bytes, out),
            Speech::Unheard => {}
        }
    }

    fn gap(&mut self, direction: Direction, _pos: u64, len: u64, out: &mut Vec<Parsed>) {
        match &mut self.speech {
            Speech::Text(text) => text.gap(direction, len, out),
            Speech::Binary(binary) => binary.gap(direction, len, out),
            Speech::Unheard => self.unheard[direction.idx()] += len,
        }
    }

    /// No message ends with the connection.
    fn end(&mut self, _direction: Direction, _pos: u64, _out: &mut Vec<Parsed>) {}

    fn unfinished_from(&self, direction: Direction) -> u64 {
        match &self.speech {
            Speech::Unheard => self.start[direction.idx()] + self.unheard[direction.idx()],
            Speech::Text(text) => text.unfinished_from(direction),
            Speech::Binary(binary) => binary.unfinished_from(direction),
        }
    }

    fn payload_limit(&self, _direction: Direction) -> u32 {
        let over = match &self.speech {
            Speech::Text(text) => text.over,
            Speech::Binary(binary) => binary.is_over(),
            Speech::Unheard => false,
        };
        if over { 0 } else { PAYLOAD_BYTES }
    }
}

/// Both directions of a text connection.
#[derive(Debug)]
struct Text {
    request_direction: Direction,
    requests: Requests,
    replies: Replies,
    session: Session,
    last: Direction,
    over: bool,
}

impl Text {
    fn new(request_direction: Direction, start: [u64; 2], joined: bool) -> Self {
        let replies = request_direction.reverse();
        Self {
            request_direction,
            requests: Requests::new(request_direction, start[request_direction.idx()], joined),
            replies: Replies::new(replies, start[replies.idx()], joined),
            session: Session::new(!joined),
            last: request_direction,
            over: false,
        }
    }

    /// Bytes of `direction` come, seen or not.
    fn turn(&mut self, direction: Direction) {
        if direction == self.request_direction {
            self.replies.turned();
            if self.last != direction && self.requests.at_boundary() && self.replies.idle() {
                self.session.order.turned();
            }
        } else {
            self.requests.turned();
        }
        self.last = direction;
        self.session.in_data = self.requests.in_data();
    }

    fn feed(&mut self, direction: Direction, bytes: &[u8], out: &mut Vec<Parsed>) {
        if self.over || bytes.is_empty() {
            return;
        }
        self.turn(direction);
        if direction == self.request_direction {
            self.requests.feed(bytes, &mut self.session, out);
        } else {
            self.replies.feed(bytes, &mut self.session, out);
        }
        self.settle(direction, out);
    }

    fn gap(&mut self, direction: Direction, len: u64, out: &mut Vec<Parsed>) {
        if self.over || len == 0 {
            return;
        }
        self.turn(direction);
        if direction == self.request_direction {
            self.requests.gap(len, &mut self.session, out);
        } else {
            self.replies.gap(len, &mut self.session, out);
        }
        self.settle(direction, out);
    }

    /// Says what ended the messages, once.
    fn settle(&mut self, direction: Direction, out: &mut Vec<Parsed>) {
        if self.session.mistaken {
            out.push(Parsed::Mistaken);
        } else if let Some(from) = self.session.opaque_from {
            let mut at = [from; 2];
            at[direction.reverse().idx()] = self.unfinished_from(direction.reverse());
            out.push(Parsed::Opaque { at });
        }
        self.over = self.session.over();
    }

    fn unfinished_from(&self, direction: Direction) -> u64 {
        if direction == self.request_direction {
            return self.requests.unfinished_from();
        }
        let from = self.replies.unfinished_from();
        self.session.early.as_ref().map_or(from, |early| early.start.min(from))
    }
}
