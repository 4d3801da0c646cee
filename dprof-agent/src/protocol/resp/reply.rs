//! The reply direction of a Redis connection: RESP2 and RESP3 values, one byte at a time if need be.
//!
//! What a reader would get wrong: nesting needs no stack. A value is complete when the number of values still
//! owed falls to zero, and an aggregate of n values owes n more. Only RESP3's streamed aggregates, whose end is a
//! mark, need one: of what was owed around them.

mod meaning;

use super::Session;
use super::number::{Number, Step};
use super::request::BULK_BYTES_MAX;
use crate::protocol::hash::ContentHasher;
use crate::protocol::{Direction, Parsed};

/// Values owed at once, at most: what claims more is garbage.
const OWED_MAX: i64 = 1 << 40;

/// Stands for what is owed inside a streamed aggregate: more than can be owed otherwise.
const OWED_STREAMED: i64 = 1 << 50;

/// Streamed aggregates within each other, at most. No server sends any yet; data is not nested deeper.
const STREAMED_DEPTH_MAX: usize = 16;

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
    /// After the `?` that stands for a length, or the dot that ends what has none: in the line end.
    Streamed { cr: bool },
    /// Before the next chunk of a streamed string.
    Chunk,
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
    /// Whether no message came since the boundary was lost (or the connection joined).
    lost: bool,
    /// Whether that was said. A boundary that is believed again can be lost again.
    said_lost: bool,
    /// Whether requests were sent since the last reply byte: the next byte may start a reply.
    turn: bool,
    /// Last two bytes; `\r\n` also where they are not known.
    before: [u8; 2],
    /// Values owed to the message under way; 0 at a boundary.
    owed: i64,
    /// What was owed around each streamed aggregate that is under way.
    streamed: Vec<i64>,
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
    /// Whether it has a type that only RESP3 has.
    is_resp3: bool,
    /// Bytes of the message's strings with a length.
    value_bytes: u64,
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
            said_lost: false,
            turn: false,
            before: LINE_END,
            owed: 0,
            streamed: Vec::new(),
            kind: 0,
            outer: (0, 0),
            n_values: 0,
            word: Vec::new(),
            integer: 0,
            is_resp3: false,
            value_bytes: 0,
            hasher: ContentHasher::new(),
            hash_known: true,
        }
    }

    /// A message starts at `pos`; what was under way is forgotten.
    pub(super) fn restart(&mut self, pos: u64) {
        (self.pos, self.start, self.state) = (pos, pos, State::Value);
        (self.lost, self.said_lost, self.turn) = (false, false, false);
        (self.before, self.owed) = (LINE_END, 0);
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
            self.said_lost = false;
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
                    if self.owed == OWED_STREAMED {
                        if byte == b'.' {
                            i += 1;
                            self.state = State::Streamed { cr: false };
                            continue;
                        }
                        self.owed += 1;
                    }
                    match byte {
                        b'+' | b'-' | b',' | b'(' | b'#' | b'_' => {
                            i += 1;
                            self.is_resp3 |= !matches!(byte, b'+' | b'-');
                            self.begin_value(0);
                            self.state = State::Line { len: 0, cr: false };
                        }
                        // `$EOF:` before a snapshot of unknown length.
                        b'$' if self.n_values == 0
                            && session.answers.exact()
                            && session.awaits_replication() =>
                        {
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
                State::Number(number) if byte == b'?' && number.is_empty() => {
                    i += 1;
                    self.state = State::Streamed { cr: false };
                }
                State::Streamed { cr: cr @ false } if byte == b'\r' => {
                    i += 1;
                    *cr = true;
                }
                State::Streamed { cr: true } if byte == b'\n' => {
                    i += 1;
                    if self.kind == b'.' {
                        self.owed = self.streamed.pop().unwrap_or(1);
                        self.end_value(base + i as u64, &bytes[hashed..i], session, out);
                        hashed = i;
                    } else if !self.begin_streamed() {
                        self.lose(at, session, out);
                    }
                }
                State::Chunk if byte == b';' => {
                    i += 1;
                    self.kind = b';';
                    self.state = State::Number(Number::default());
                }
                State::Streamed { .. } | State::Chunk => self.lose(at, session, out),
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
                        if *left == 0 && self.kind == b';' {
                            self.state = State::Chunk;
                        } else if *left == 0 {
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
            if *left == 0 && self.kind == b';' {
                self.state = State::Chunk;
            } else if *left == 0 {
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
        self.integer = 0;
        self.is_resp3 = false;
        self.word.clear();
        self.streamed.clear();
        self.value_bytes = 0;
        self.hasher.reset();
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

    /// A value whose length is told by its end begins. False if it cannot be.
    fn begin_streamed(&mut self) -> bool {
        self.begin_value(-1);
        self.is_resp3 = true;
        match self.kind {
            b'$' => self.state = State::Chunk,
            b'*' | b'~' | b'%' | b'>' if self.streamed.len() < STREAMED_DEPTH_MAX => {
                self.streamed.push(self.owed);
                self.owed = OWED_STREAMED;
                self.state = State::Value;
            }
            _ => return false,
        }
        true
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
        self.is_resp3 |= !matches!(kind, b':' | b'$' | b'*');
        if !matches!(kind, b'|' | b';') {
            self.begin_value(value);
        }
        match kind {
            // The last chunk is empty.
            b';' if value == 0 => {}
            b':' => self.integer = value,
            b'$' | b'*' if value == -1 => {}
            b'$' | b'=' | b'!' | b';' => {
                if !(0..=BULK_BYTES_MAX).contains(&value) {
                    return false;
                }
                self.value_bytes += value as u64;
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
                return self.owed % OWED_STREAMED <= OWED_MAX;
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
        if !self.said_lost {
            out.push(Parsed::Lost { direction: self.direction, at });
        }
        (self.lost, self.said_lost) = (true, true);
        self.owed = 0;
        self.streamed.clear();
        self.state = State::Seek;
        session.lose_replies();
    }
}
