//! The reply direction of a Redis connection: RESP2 and RESP3 values, one byte at a time if need be.
//!
//! What a reader would get wrong: nesting needs no stack. A value is complete when the number of values still
//! owed falls to zero, and an aggregate of n values owes n more.

use std::borrow::Cow;

use super::Session;
use super::number::{Number, Step};
use super::request::{BULK_BYTES_MAX, Special};
use super::subscriptions::Confirmation;
use crate::protocol::answers::Next;
use crate::protocol::hash::ContentHasher;
use crate::protocol::{Direction, Message, MessageKind, Parsed};

/// Values owed at once, at most: what claims more is garbage.
const OWED_MAX: i64 = 1 << 40;

/// Longest line of a simple string, an error or a number, bytes.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Bytes of a line or of an aggregate's first string that are kept. The longest that matters is a status word.
const WORD_BYTES_MAX: usize = 40;

#[derive(Clone, Copy, Debug)]
enum State {
    /// At a boundary, or before the next value of an aggregate.
    Value,
    /// In the line of a value without length, this many bytes so far; gathered in `word` if first.
    Line { len: usize, cr: bool },
    /// In the number of a length, a count or an integer.
    Number(Number),
    /// In a bulk string or its line end: this many bytes are left of both.
    Body(u64),
    /// Boundary lost.
    Seek,
}

/// Parser of the reply direction.
#[derive(Debug)]
pub(super) struct Replies {
    direction: Direction,
    /// Position after the last byte fed or skipped.
    pos: u64,
    state: State,
    /// Where the message under way starts.
    start: u64,
    lost: bool,
    /// Whether requests were sent since the last reply byte: the next byte may start a reply.
    turn: bool,
    /// Last two bytes; `\r\n` also where they are not known.
    before: [u8; 2],
    /// Values owed to the message under way; 0 at a boundary.
    owed: i64,
    /// Type of the value under way.
    kind: u8,
    /// Type and size of the message's outermost value.
    outer: (u8, i64),
    /// How many values of the message have begun, attributes not counted.
    n_values: u64,
    /// Line of a simple outermost value, or an aggregate's first string.
    word: Vec<u8>,
    /// The last integer.
    integer: i64,
    hasher: ContentHasher,
    hash_known: bool,
}

const LINE_END: [u8; 2] = *b"\r\n";

impl Replies {
    pub(super) fn new(direction: Direction, pos: u64, joined: bool) -> Self {
        Self {
            direction,
            pos,
            state: if joined { State::Seek } else { State::Value },
            start: pos,
            lost: joined,
            turn: false,
            before: LINE_END,
            owed: 0,
            kind: 0,
            outer: (0, 0),
            n_values: 0,
            word: Vec::new(),
            integer: 0,
            hasher: ContentHasher::new(),
            hash_known: true,
        }
    }

    pub(super) fn unfinished_from(&self) -> u64 {
        if self.owed > 0 { self.start } else { self.pos }
    }

    /// Whether no message is under way (a lost boundary has none).
    pub(super) fn idle(&self) -> bool {
        self.owed == 0
    }

    /// Requests were sent: what comes next was written after them.
    pub(super) fn turned(&mut self) {
        self.turn = true;
    }

    pub(super) fn feed(&mut self, bytes: &[u8], session: &mut Session, out: &mut Vec<Parsed>) {
        let base = self.pos;
        if std::mem::take(&mut self.turn) && matches!(self.state, State::Seek) && self.before == LINE_END {
            self.state = State::Value;
        }
        let mut hashed = 0;
        let mut i = 0;
        while i < bytes.len() && !session.over() {
            let at = base + i as u64;
            let byte = bytes[i];
            match &mut self.state {
                State::Value if self.owed == 0 && byte == b'\n' && session.awaits_replication() => {
                    // A master that prepares a snapshot keeps the connection alive with empty lines.
                    i += 1;
                }
                State::Value => {
                    if self.owed == 0 {
                        self.begin(at);
                        hashed = i;
                    }
                    self.kind = byte;
                    match byte {
                        b'+' | b'-' | b',' | b'(' | b'#' | b'_' => {
                            i += 1;
                            self.begin_value(0);
                            self.state = State::Line { len: 0, cr: false };
                        }
                        // `$EOF:` before a snapshot of unknown length.
                        b'$' if self.n_values == 0 && session.awaits_replication() => {
                            i += 1;
                            self.begin_value(0);
                            self.state = State::Line { len: 0, cr: false };
                        }
                        b':' | b'$' | b'=' | b'!' | b'*' | b'~' | b'>' | b'%' | b'|' => {
                            i += 1;
                            self.state = State::Number(Number::default());
                        }
                        _ => self.lose(at, session, out),
                    }
                }
                State::Line { len, cr } => {
                    i += 1;
                    match (byte, *cr) {
                        (b'\n', true) => {
                            if self.line_is_valid() {
                                self.end_value(base + i as u64, &bytes[hashed..i], session, out);
                                hashed = i;
                            } else {
                                self.lose(at, session, out);
                            }
                        }
                        (b'\r', false) => *cr = true,
                        (b'\r' | b'\n', _) | (_, true) => self.lose(at, session, out),
                        _ if *len == LINE_BYTES_MAX => self.lose(at, session, out),
                        _ => {
                            *len += 1;
                            self.keep(&[byte], 1);
                        }
                    }
                }
                State::Number(number) => match number.push(byte) {
                    Step::More => i += 1,
                    Step::Done(value) => {
                        i += 1;
                        if !self.number(value) {
                            self.lose(at, session, out);
                        } else if !matches!(self.state, State::Body(_)) {
                            self.end_value(base + i as u64, &bytes[hashed..i], session, out);
                            hashed = i;
                        }
                    }
                    Step::Bad => self.lose(at, session, out),
                },
                State::Body(left) => {
                    let payload = left.saturating_sub(2).min((bytes.len() - i) as u64);
                    if payload > 0 {
                        *left -= payload;
                        let part = &bytes[i..i + payload as usize];
                        i += part.len();
                        self.keep(part, 2);
                    } else if byte == LINE_END[usize::from(*left == 1)] {
                        i += 1;
                        *left -= 1;
                        if *left == 0 {
                            self.end_value(base + i as u64, &bytes[hashed..i], session, out);
                            hashed = i;
                        }
                    } else {
                        self.lose(at, session, out);
                    }
                }
                State::Seek => i = bytes.len(),
            }
        }
        if self.owed > 0 {
            self.hasher.update(&bytes[hashed..]);
        }
        for &byte in &bytes[bytes.len().saturating_sub(2)..] {
            self.before = [self.before[1], byte];
        }
        self.pos = base + bytes.len() as u64;
    }

    /// `len` bytes were not seen.
    pub(super) fn gap(&mut self, mut len: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        self.turn = false;
        self.before = LINE_END;
        while let State::Body(left) = &mut self.state
            && len > 0
            && !session.over()
        {
            let skipped = len.min(*left);
            *left -= skipped;
            len -= skipped;
            self.pos += skipped;
            self.hash_known = false;
            if self.n_values <= 2 {
                // The word is not known: make it one that means nothing, whatever follows.
                self.word.clear();
                self.word.push(0);
            }
            if *left == 0 {
                self.end_value(self.pos, &[], session, out);
            }
        }
        if len > 0 && !session.over() {
            let at = self.unfinished_from();
            self.pos += len;
            self.say_lost(at, session, out);
        }
    }

    fn begin(&mut self, at: u64) {
        self.start = at;
        self.owed = 1;
        self.n_values = 0;
        self.outer = (0, 0);
        self.word.clear();
        self.hasher = ContentHasher::new();
        self.hash_known = true;
    }

    /// A value begins: the first one that is no part of an attribute is the outermost.
    fn begin_value(&mut self, size: i64) {
        if self.n_values == 0 {
            // More is owed only while in an attribute, which comes before the outermost value.
            if self.owed > 1 {
                return;
            }
            self.outer = (self.kind, size);
        }
        self.n_values += 1;
    }

    /// Keeps the first bytes of value number `value`.
    #[inline]
    fn keep(&mut self, bytes: &[u8], value: u64) {
        let wanted = self.n_values == value || (self.n_values == 1 && self.outer.0 == b'!');
        if wanted && self.word.len() < WORD_BYTES_MAX {
            let room = WORD_BYTES_MAX - self.word.len();
            self.word.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    fn line_is_valid(&self) -> bool {
        let State::Line { len, .. } = self.state else { return false };
        match self.kind {
            b'_' => len == 0,
            b'#' => len == 1,
            _ => true,
        }
    }

    /// A number line ended: sets what follows. False if it cannot be.
    fn number(&mut self, value: i64) -> bool {
        self.state = State::Value;
        let kind = self.kind;
        if kind != b'|' {
            self.begin_value(value);
        }
        match kind {
            b':' => self.integer = value,
            b'$' | b'*' if value == -1 => {}
            b'$' | b'=' | b'!' => {
                if !(0..=BULK_BYTES_MAX).contains(&value) {
                    return false;
                }
                self.state = State::Body(value as u64 + 2);
            }
            _ => {
                // An attribute comes before the value that is owed and is none itself.
                let (per, own) = match kind {
                    b'%' => (2, 0),
                    b'|' => (2, 1),
                    _ => (1, 0),
                };
                let Some(owed) = value.checked_mul(per).filter(|n| (0..=OWED_MAX).contains(n)) else {
                    return false;
                };
                self.owed += owed + own;
                return self.owed <= OWED_MAX;
            }
        }
        true
    }

    /// A value ended at `end`; `bytes` are those of the message that were not hashed yet.
    fn end_value(&mut self, end: u64, bytes: &[u8], session: &mut Session, out: &mut Vec<Parsed>) {
        self.hasher.update(bytes);
        self.state = State::Value;
        self.owed -= 1;
        if self.owed == 0 {
            self.end_message(end, session, out);
        }
    }

    fn end_message(&mut self, end: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        self.lost = false;
        let replicates = self.starts_replication(session);
        let kind = self.classify(session);
        let mut message = Message::new(self.direction, kind, self.start, end);
        if matches!(self.outer.0, b'-' | b'!') {
            message.is_error = true;
            message.status_code = status_code(&self.word);
        }
        message.content_hash = self.hash_known.then(|| self.hasher.finish());
        session.proved = true;
        if kind == MessageKind::Response {
            session.answers.response();
        }
        out.push(Parsed::Message(message));
        if replicates {
            session.opaque_from = Some(end);
        }
    }

    fn starts_replication(&self, session: &Session) -> bool {
        session.awaits_replication()
            && match self.outer.0 {
                b'+' => self.word.starts_with(b"FULLRESYNC") || self.word.starts_with(b"CONTINUE"),
                kind => kind == b'$',
            }
    }

    /// Whether the message answers a request or came unasked.
    fn classify(&mut self, session: &mut Session) -> MessageKind {
        let (outer, size) = self.outer;
        let next = session.answers.next();
        if matches!(outer, b'*' | b'>')
            && let Some(confirmation) = Confirmation::read(&self.word, size)
            && (outer == b'>' || session.subscriptions.expected(next))
        {
            return session.subscriptions.confirm(confirmation, self.integer, next);
        }
        let unasked = match outer {
            b'>' => true,
            b'*' => is_published(&self.word, size) && session.subscriptions.may_publish(&session.answers),
            b'+' => session.monitor && is_monitored(&self.word),
            _ => false,
        };
        if unasked {
            return MessageKind::Push;
        }
        match next {
            Next::Special(Special::Monitor) if outer == b'+' => session.monitor = true,
            Next::Special(Special::Reset) if outer == b'+' => {
                session.monitor = false;
                session.subscriptions.clear();
            }
            _ => {}
        }
        MessageKind::Response
    }

    /// The bytes at `at` are no reply.
    fn lose(&mut self, at: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        if !session.proved && !self.lost {
            session.mistaken = true;
            return;
        }
        let from = if self.owed > 0 { self.start } else { at };
        self.say_lost(from, session, out);
    }

    fn say_lost(&mut self, at: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        if !self.lost {
            out.push(Parsed::Lost { direction: self.direction, at });
        }
        self.lost = true;
        self.owed = 0;
        self.state = State::Seek;
        session.answers.lose();
    }
}

/// First word of an error, if it looks like a status: `WRONGTYPE`.
fn status_code(line: &[u8]) -> Cow<'static, str> {
    const KNOWN: [&str; 12] = [
        "ERR",
        "WRONGTYPE",
        "MOVED",
        "ASK",
        "NOAUTH",
        "NOPERM",
        "NOSCRIPT",
        "LOADING",
        "BUSY",
        "READONLY",
        "EXECABORT",
        "OOM",
    ];
    let word = line.split(|byte| *byte == b' ').next().unwrap_or_default();
    if let Some(known) = KNOWN.into_iter().find(|known| known.as_bytes() == word) {
        return Cow::Borrowed(known);
    }
    let looks_like_one = (1..WORD_BYTES_MAX).contains(&word.len())
        && word.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_');
    match str::from_utf8(word) {
        Ok(word) if looks_like_one => Cow::Owned(word.to_owned()),
        _ => Cow::Borrowed("(invalid)"),
    }
}

/// `message channel payload`, `pmessage pattern channel payload`, `smessage channel payload`.
fn is_published(word: &[u8], size: i64) -> bool {
    matches!((word, size), (b"message" | b"smessage", 3) | (b"pmessage", 4))
}

/// `1339518083.107412 [0 127.0.0.1:60866] "keys" "*"`
fn is_monitored(line: &[u8]) -> bool {
    let digits = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    let mut parts = line.splitn(2, |byte| *byte == b' ');
    let (Some(time), Some(rest)) = (parts.next(), parts.next()) else { return false };
    let mut time = time.splitn(2, |byte| *byte == b'.');
    time.next().is_some_and(digits) && time.next().is_some_and(digits) && rest.starts_with(b"[")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_word_of_capitals() {
        let check = |line: &str, expected: &str| assert_eq!(status_code(line.as_bytes()), expected, "{line}");
        check("WRONGTYPE Operation against a key", "WRONGTYPE");
        check("ERR", "ERR");
        check("MASTERDOWN Link", "MASTERDOWN");
        check("secret value", "(invalid)");
        check("", "(invalid)");
        check("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "(invalid)");
    }

    #[test]
    fn monitored_commands_are_told_from_replies() {
        assert!(is_monitored(b"1339518083.107412 [0 127.0.0.1:60866]"));
        for other in ["OK", "RESET", "1339518083 [0", "1.5", ".1 [", "1. [", "1.5 OK"] {
            assert!(!is_monitored(other.as_bytes()), "{other}");
        }
    }
}
