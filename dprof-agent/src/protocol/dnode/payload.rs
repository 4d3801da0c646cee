//! What a DNODE message carries: one command or one reply of Redis or memcached, read by that protocol's parser.
//!
//! What a reader would get wrong: positions inside the payload mean nothing outside. What counts is that exactly one
//! message ends exactly with the payload; anything else leaves the message without a name.

use std::borrow::Cow;

use super::header::{Header, Kind};
use crate::protocol::capture::Capture;
use crate::protocol::resp::embedded::Embedded;
use crate::protocol::{Direction, Message, MessageKind, Parsed, Parser, Protocol as _, memcached};

/// Direction of the embedded streams: each reader is fed one direction only.
const DIRECTION: Direction = Direction::Out;

/// The payloads of one direction.
#[derive(Debug, Default)]
pub(super) struct Payload {
    reader: Reader,
    capture: Capture,
    is_request: bool,
    /// No byte of this payload was seen or skipped yet.
    fresh: bool,
    /// Whatever follows, this payload has no name.
    broken: bool,
    found: Vec<Message>,
}

/// Who reads, and whether requests; else replies.
#[derive(Default)]
enum Reader {
    #[default]
    Nobody,
    Resp(bool, Box<Embedded>),
    Memcached(bool, Box<Text>),
}

/// The payloads of memcached, one after another, are a stream like any other.
struct Text {
    parser: Box<dyn Parser>,
    /// Position in that stream at which the payload starts, and after its last byte.
    start: u64,
    pos: u64,
    said: Vec<Parsed>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nobody => "Nobody",
            Self::Resp(..) => "Resp",
            Self::Memcached(..) => "Memcached",
        })
    }
}

/// Whether Redis's command or reply starts with `first`: all of them start with a sign, memcached's never do.
const fn is_resp(first: u8) -> bool {
    matches!(
        first,
        b'*' | b'+'
            | b'-'
            | b':'
            | b'$'
            | b'_'
            | b'#'
            | b','
            | b'('
            | b'!'
            | b'='
            | b'%'
            | b'~'
            | b'>'
            | b'|'
    )
}

impl Payload {
    /// What may be kept of keys and values from now on.
    pub(super) fn set_capture(&mut self, capture: Capture) {
        self.capture = capture;
        match &mut self.reader {
            Reader::Resp(_, embedded) => embedded.set_capture(capture),
            Reader::Memcached(_, text) => text.parser.set_capture(capture),
            // Told when it is made.
            Reader::Nobody => {}
        }
    }

    /// A payload starts.
    pub(super) fn begin(&mut self, header: &Header) {
        self.found.clear();
        self.fresh = true;
        self.is_request = header.kind != Kind::Reply;
        self.broken = header.is_opaque || matches!(header.kind, Kind::Other(_));
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) {
        let Some(&first) = bytes.first().filter(|_| !self.broken) else { return };
        if std::mem::take(&mut self.fresh) {
            self.choose(first);
        }
        match &mut self.reader {
            Reader::Resp(_, embedded) => embedded.feed(bytes, &mut self.found),
            Reader::Memcached(_, text) => {
                text.parser.feed(DIRECTION, text.pos, bytes, &mut text.said);
                text.pos += bytes.len() as u64;
                self.broken |= text.collect(&mut self.found);
            }
            Reader::Nobody => {}
        }
    }

    /// `len` bytes of it were not seen.
    pub(super) fn gap(&mut self, len: u64) {
        if len == 0 || self.broken {
            return;
        }
        // Without its first byte nobody knows what it is.
        self.broken |= std::mem::take(&mut self.fresh);
        match &mut self.reader {
            _ if self.broken => {}
            Reader::Resp(_, embedded) => embedded.gap(len, &mut self.found),
            Reader::Memcached(_, text) => {
                text.parser.gap(DIRECTION, text.pos, len, &mut text.said);
                text.pos += len;
                self.broken |= text.collect(&mut self.found);
            }
            Reader::Nobody => {}
        }
    }

    fn choose(&mut self, first: u8) {
        let is_request = self.is_request;
        match &self.reader {
            Reader::Resp(requests, _) if *requests == is_request && is_resp(first) => {}
            Reader::Memcached(requests, _) if *requests == is_request && !is_resp(first) => {}
            _ if is_resp(first) => {
                let mut embedded =
                    if is_request { Embedded::requests(DIRECTION) } else { Embedded::replies(DIRECTION) };
                embedded.set_capture(self.capture);
                self.reader = Reader::Resp(is_request, Box::new(embedded));
            }
            _ => {
                let requests = if is_request { DIRECTION } else { DIRECTION.reverse() };
                let mut parser = memcached::Memcached.parser(requests, [0, 0], false);
                parser.set_capture(self.capture);
                let text = Text { parser, start: 0, pos: 0, said: Vec::new() };
                self.reader = Reader::Memcached(is_request, Box::new(text));
            }
        }
        match &mut self.reader {
            Reader::Resp(_, embedded) => embedded.begin(0),
            Reader::Memcached(_, text) => text.start = text.pos,
            Reader::Nobody => {}
        }
    }

    /// The one message that was all of the payload.
    fn take(&mut self) -> Option<Message> {
        let is_whole = !self.broken
            && !self.fresh
            && match &mut self.reader {
                Reader::Resp(_, embedded) => embedded.end() && self.found.len() == 1,
                Reader::Memcached(_, text) => {
                    self.found.len() == 1
                        && (self.found[0].start, self.found[0].end) == (text.start, text.pos)
                }
                Reader::Nobody => false,
            };
        if !is_whole {
            if let Reader::Memcached(..) = self.reader {
                // Where it stands is not known.
                self.reader = Reader::Nobody;
            }
            return None;
        }
        self.found.pop()
    }

    /// Names `message` after what was embedded.
    pub(super) fn name(&mut self, header: &Header, message: &mut Message) {
        let operation = |name: &'static str| if self.is_request { name } else { "" };
        if header.is_opaque {
            message.operation = Cow::Borrowed(operation("(encrypted)"));
            return;
        }
        let unseen = Cow::Borrowed(operation("(unseen)"));
        if let Some(found) = self.take() {
            *message = Message {
                direction: message.direction,
                kind: message.kind,
                start: message.start,
                end: message.end,
                correlation: message.correlation,
                ..found
            };
        } else {
            message.incomplete = true;
            message.operation = unseen;
        }
    }
}

impl Text {
    /// Takes what the parser said; whether it lost its way.
    fn collect(&mut self, found: &mut Vec<Message>) -> bool {
        let mut is_lost = false;
        for said in self.said.drain(..) {
            match said {
                Parsed::Message(message) if message.kind != MessageKind::Silence => found.push(message),
                _ => is_lost = true,
            }
        }
        is_lost
    }
}
