//! The reply direction of a memcached text connection. Every reply says by its own bytes where it ends, so none
//! needs to know what was asked.
//!
//! What a reader would get wrong: `SERVER_ERROR` may cut a multi-get's answer short, and may come while the client
//! still sends a value that is too large.

use std::borrow::Cow;

use memchr::memchr;

use super::Session;
use super::command::{Class, VALUE_BYTES_MAX, token};
use super::first_words::decimal;
use super::order::{Answers, Pending};
use super::requests::{HIT, LINE_BYTES_MAX, reads, without_return};
use crate::protocol::hash::ContentHasher;
use crate::protocol::{Correlation, Direction, Message, MessageKind, Parsed};

/// Longest line of a reply, bytes: a long key and numbers; `stats detail dump` has longer ones.
const REPLY_LINE_BYTES_MAX: usize = LINE_BYTES_MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At a boundary, or before the next line of a reply; what came of the line is in `held`.
    Line,
    /// In a data block or its line end: this many bytes are left of both.
    Data(u64),
    /// Boundary lost.
    Seek,
}

/// What the lines of the reply under way are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// None yet.
    Nothing,
    /// `VALUE … END`.
    Values,
    /// `STAT`, `ITEM`, `key=`, … up to `END`.
    Report,
    /// `mg` lines of `lru_crawler mgdump` up to `EN`.
    MetaReport,
    /// `VA` and one data block.
    Meta,
}

/// Parser of the reply direction.
#[derive(Debug)]
pub(super) struct Replies {
    direction: Direction,
    pos: u64,
    state: State,
    start: u64,
    lost: bool,
    turn: bool,
    held: Vec<u8>,
    body: Body,
    n_values: u64,
    value_bytes: u64,
    token: u64,
    is_seen: bool,
    hasher: ContentHasher,
}

/// What a reply was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// `END` after values, or alone.
    Values,
    Report,
    MetaValue,
    MetaWord(MetaWord),
    Stored,
    /// A word or a number.
    Line {
        found: Option<bool>,
    },
    Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MetaWord {
    Ok,
    Miss,
    Other,
    Noop,
}

const LINE_END: [u8; 2] = *b"\r\n";

impl Replies {
    pub(super) fn new(direction: Direction, pos: u64, joined: bool) -> Self {
        Self {
            direction,
            pos,
            state: if joined { State::Seek } else { State::Line },
            start: pos,
            lost: joined,
            turn: false,
            held: Vec::new(),
            body: Body::Nothing,
            n_values: 0,
            value_bytes: 0,
            token: 0,
            is_seen: true,
            hasher: ContentHasher::new(),
        }
    }

    pub(super) fn unfinished_from(&self) -> u64 {
        match self.state {
            State::Seek => self.pos,
            _ if self.body != Body::Nothing => self.start,
            _ => self.pos - self.held.len() as u64,
        }
    }

    /// Whether no message is under way.
    pub(super) fn idle(&self) -> bool {
        self.state == State::Seek || (self.body == Body::Nothing && self.held.is_empty())
    }

    /// Requests were sent: what comes next was written after them.
    pub(super) const fn turned(&mut self) {
        self.turn = true;
    }

    pub(super) fn feed(&mut self, mut bytes: &[u8], session: &mut Session, out: &mut Vec<Parsed>) {
        if std::mem::take(&mut self.turn) && self.state == State::Seek {
            self.state = State::Line;
        }
        while !bytes.is_empty() && !session.over() {
            let taken = match &mut self.state {
                State::Line => self.line(bytes, session, out),
                State::Data(left) => {
                    let data = left.saturating_sub(2).min(bytes.len() as u64);
                    if data > 0 {
                        self.hasher.update(&bytes[..data as usize]);
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
        self.turn = false;
        if let State::Data(left) = &mut self.state {
            let skipped = len.min(*left);
            self.is_seen &= *left <= 2;
            *left -= skipped;
            let ended = *left == 0;
            len -= skipped;
            self.pos += skipped;
            if ended {
                self.end_data(session, out);
            }
        }
        if len > 0 && !session.over() {
            let from = self.unfinished_from();
            self.pos += len;
            self.say_lost(from, session, out);
        }
    }

    fn end_data(&mut self, session: &mut Session, out: &mut Vec<Parsed>) {
        self.state = State::Line;
        if self.body == Body::Meta {
            self.end_message(Said::MetaValue, "", session, out);
        }
    }

    fn line(&mut self, bytes: &[u8], session: &mut Session, out: &mut Vec<Parsed>) -> usize {
        let end = memchr(b'\n', bytes);
        // A whole line is judged like a part of one, or the answer would depend on how it was cut.
        let part = &bytes[..end.unwrap_or(bytes.len())];
        let is_text = part.iter().all(|byte| *byte >= b' ' || *byte == b'\r');
        if !is_text || self.held.len() + part.len() > REPLY_LINE_BYTES_MAX {
            self.lose(self.unfinished_from(), session, out);
            return 0;
        }
        let Some(end) = end else {
            self.held.extend_from_slice(bytes);
            self.pos += bytes.len() as u64;
            return bytes.len();
        };
        let from = self.unfinished_from();
        let held = std::mem::take(&mut self.held);
        let before = self.pos - held.len() as u64;
        if self.body == Body::Nothing {
            self.begin(before);
        }
        self.pos += end as u64 + 1;
        let whole;
        let line = if held.is_empty() {
            without_return(&bytes[..end])
        } else {
            whole = [&held, &bytes[..end]].concat();
            without_return(&whole)
        };
        self.hasher.update(line);
        if self.read(line, session, out).is_none() {
            self.pos = before + held.len() as u64;
            self.lose(from, session, out);
            return 0;
        }
        end + 1
    }

    fn begin(&mut self, at: u64) {
        self.start = at;
        self.n_values = 0;
        self.value_bytes = 0;
        self.token = 0;
        self.is_seen = true;
        self.hasher = ContentHasher::new();
    }

    /// Reads a line of a reply. `None`: it is none.
    fn read(&mut self, line: &[u8], session: &mut Session, out: &mut Vec<Parsed>) -> Option<()> {
        let (word, rest) = match line.iter().position(|byte| *byte == b' ') {
            Some(space) => (&line[..space], &line[space + 1..]),
            None => (line, &line[line.len()..]),
        };
        let said = match (self.body, word) {
            (Body::Nothing | Body::Values, b"VALUE") => return self.value(rest),
            (Body::Values, b"END") if rest.is_empty() => (Said::Values, ""),
            (Body::Nothing, b"END") if rest.is_empty() => (Said::Values, "END"),
            (Body::Report, b"END") if rest.is_empty() => (Said::Report, ""),
            (Body::Nothing | Body::Report, b"STAT" | b"ITEM" | b"PREFIX" | b"CONFIG") => {
                self.body = Body::Report;
                if word == b"CONFIG" {
                    self.state = State::Data(decimal(rest.rsplit(|byte| *byte == b' ').next()?)? + 2);
                }
                return Some(());
            }
            (Body::Nothing | Body::Report, word) if word.starts_with(b"key=") => {
                self.body = Body::Report;
                return Some(());
            }
            (Body::Report, b"") if rest.is_empty() => return Some(()),
            (Body::Nothing | Body::MetaReport, b"mg") => {
                self.body = Body::MetaReport;
                return Some(());
            }
            (Body::MetaReport, b"EN") => (Said::Report, ""),
            (Body::Nothing, b"VA") => return self.meta_value(rest),
            (Body::Nothing, b"HD") => (Said::MetaWord(MetaWord::Ok), ""),
            (Body::Nothing, b"EN") => (Said::MetaWord(MetaWord::Miss), "EN"),
            (Body::Nothing, b"NF") => (Said::MetaWord(MetaWord::Miss), "NOT_FOUND"),
            (Body::Nothing, b"NS") => (Said::MetaWord(MetaWord::Other), "NOT_STORED"),
            (Body::Nothing, b"EX") => (Said::MetaWord(MetaWord::Other), "EXISTS"),
            (Body::Nothing, b"ME") => (Said::MetaWord(MetaWord::Ok), ""),
            (Body::Nothing, b"MN") if rest.is_empty() => (Said::MetaWord(MetaWord::Noop), ""),
            (Body::Nothing, b"STORED") => (Said::Stored, ""),
            (Body::Nothing, b"NOT_STORED") => (Said::Stored, "NOT_STORED"),
            (Body::Nothing, b"EXISTS") => (Said::Stored, "EXISTS"),
            (Body::Nothing, b"NOT_FOUND") => (Said::Line { found: Some(false) }, "NOT_FOUND"),
            (Body::Nothing, b"DELETED" | b"TOUCHED") => (Said::Line { found: Some(true) }, ""),
            (Body::Nothing, b"OK" | b"RESET" | b"VERSION") => (Said::Line { found: None }, ""),
            (Body::Nothing, b"BUSY" | b"BADCLASS" | b"NOSPARE" | b"NOTFULL" | b"UNSAFE" | b"SAME") => {
                (Said::Line { found: None }, "REFUSED")
            }
            (Body::Nothing, word) if rest.iter().all(|byte| *byte == b' ') && decimal(word).is_some() => {
                (Said::Line { found: Some(true) }, "")
            }
            (_, b"ERROR") => (Said::Error, "ERROR"),
            (_, b"CLIENT_ERROR") => (Said::Error, "CLIENT_ERROR"),
            (_, b"SERVER_ERROR") if rest.starts_with(b"object too large") => (Said::Error, "TOO_LARGE"),
            (_, b"SERVER_ERROR") => (Said::Error, "SERVER_ERROR"),
            _ => return None,
        };
        if matches!(said.0, Said::MetaWord(_)) {
            self.token = opaque(rest);
        }
        self.end_message(said.0, said.1, session, out);
        Some(())
    }

    /// `VALUE <key> <flags> <bytes> [<cas>]`.
    fn value(&mut self, rest: &[u8]) -> Option<()> {
        let mut words = rest.split(|byte| *byte == b' ');
        let (key, flags, bytes) = (words.next()?, words.next()?, words.next()?);
        decimal(flags).filter(|_| !key.is_empty())?;
        if let Some(cas) = words.next() {
            decimal(cas)?;
        }
        self.data(decimal(bytes)?, Body::Values)
    }

    /// `VA <bytes> <flags>*`.
    fn meta_value(&mut self, rest: &[u8]) -> Option<()> {
        let bytes = rest.split(|byte| *byte == b' ').next()?;
        self.token = opaque(rest);
        self.data(decimal(bytes)?, Body::Meta)
    }

    fn data(&mut self, bytes: u64, body: Body) -> Option<()> {
        if bytes > VALUE_BYTES_MAX {
            return None;
        }
        self.body = body;
        self.n_values += 1;
        self.value_bytes += bytes;
        self.state = State::Data(bytes + 2);
        Some(())
    }

    fn end_message(
        &mut self,
        said: Said,
        status_code: &'static str,
        session: &mut Session,
        out: &mut Vec<Parsed>,
    ) {
        self.lost = false;
        self.body = Body::Nothing;
        if said == Said::Error && session.unanswerable.is_some() {
            // A command that asked for no answer may have got this one: the order is in doubt.
            session.unanswerable = None;
            out.push(Parsed::Lost { direction: self.direction, at: self.start });
            session.doubt();
        }
        let token = self.token;
        let is_early = session.in_data && session.order.is_certain() && !session.order.waits();
        let answers = session.order.response(|pending| can_answer(said, token, pending), &mut session.silent);
        // After a loss: an answer to a quiet command of which nothing is kept, or to the next ordinary one.
        let may_be_quiets = matches!(
            said,
            Said::MetaValue | Said::MetaWord(MetaWord::Ok | MetaWord::Miss | MetaWord::Other) | Said::Error
        );
        let is_guess = session.order.has_strays() && may_be_quiets;
        let (kind, correlation) = match answers {
            Answers::Request(Correlation::Fifo) if is_guess => {
                out.push(Parsed::Lost { direction: self.direction, at: self.start });
                (MessageKind::Push, Correlation::Fifo)
            }
            Answers::Request(correlation) => (MessageKind::Response, correlation),
            Answers::Ambiguous => (MessageKind::Push, Correlation::Fifo),
            Answers::OutOfStep => {
                out.push(Parsed::Lost { direction: self.direction, at: self.start });
                (MessageKind::Response, Correlation::Fifo)
            }
        };
        if answers == Answers::Request(Correlation::Fifo) {
            session.n_responses += 1;
            // Answers come in order: whoever was asked before this one has said what it had to say.
            session.unanswerable = session.unanswerable.filter(|after| session.n_responses <= *after);
        }
        for silent in session.silent.drain(..) {
            let mut message = Message::new(self.direction, MessageKind::Silence, self.start, self.pos);
            message.correlation = silent.correlation;
            message.incomplete = silent.doubtful;
            if reads(silent.class) && !silent.doubtful {
                message.attributes.push((HIT, "false".to_owned()));
            }
            out.push(Parsed::Message(message));
        }
        let mut message = Message::new(self.direction, kind, self.start, self.pos);
        message.correlation = correlation;
        message.is_error = said == Said::Error;
        message.status_code =
            Cow::Borrowed(if status_code == "END" || status_code == "EN" { "" } else { status_code });
        let hit = match said {
            Said::Values => Some(self.n_values > 0),
            Said::MetaValue => Some(true),
            Said::MetaWord(MetaWord::Miss) => Some(false),
            Said::Line { found } => found,
            _ => None,
        };
        if let Some(hit) = hit {
            message.attributes.push((HIT, hit.to_string()));
        }
        if self.n_values > 1 {
            message.attributes.push((Cow::Borrowed("dprof.cache.values"), self.n_values.to_string()));
        }
        if self.n_values > 0 {
            message.value_bytes = Some(u32::try_from(self.value_bytes).unwrap_or(u32::MAX));
        }
        message.content_hash = self.is_seen.then(|| self.hasher.finish());
        session.proved = true;
        if session.watches && said == (Said::Line { found: None }) {
            session.opaque_from = Some(self.pos);
        }
        session.give(message, is_early, out);
    }

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
        self.body = Body::Nothing;
        self.state = State::Seek;
        session.lose();
    }
}

/// Whether a reply can be the answer to a request.
fn can_answer(said: Said, token: u64, pending: &Pending<Class>) -> bool {
    let is_quiet = pending.is_quiet();
    match said {
        Said::MetaValue | Said::MetaWord(_) => {
            if pending.token != 0 && token != 0 && pending.token != token {
                return false;
            }
            match (pending.class, said) {
                (Class::MetaNoop, Said::MetaWord(word)) => word == MetaWord::Noop,
                (_, Said::MetaWord(MetaWord::Noop)) | (Class::MetaNoop, _) => false,
                // Quiet ones say only what is remarkable: a hit, or that something was not done.
                (Class::MetaGet, Said::MetaWord(word)) if is_quiet => word == MetaWord::Ok,
                (Class::Meta, Said::MetaWord(word)) if is_quiet => word == MetaWord::Other,
                (Class::MetaGet | Class::Meta, _) => true,
                // `lru_crawler mgdump` ends like a miss.
                (Class::Report, Said::MetaWord(MetaWord::Miss)) => true,
                _ => false,
            }
        }
        Said::Values => matches!(pending.class, Class::Get | Class::Report),
        Said::Report => pending.class == Class::Report,
        Said::Stored => pending.class == Class::Store,
        // `cas` of a key that is gone says NOT_FOUND.
        Said::Line { found: Some(false) } => matches!(pending.class, Class::Line | Class::Store),
        Said::Line { .. } => matches!(pending.class, Class::Line | Class::Report | Class::Watch),
        Said::Error => pending.class != Class::MetaNoop,
    }
}

/// The token of the `O` flag, else of `k`, among the flags of a meta reply; 0 = neither.
fn opaque(flags: &[u8]) -> u64 {
    let words = || flags.split(|byte| *byte == b' ').filter_map(<[u8]>::split_first);
    let value = |wanted| words().find(|(flag, _)| **flag == wanted).map(|(_, value)| token(value));
    value(b'O').or_else(|| value(b'k')).unwrap_or(0)
}
