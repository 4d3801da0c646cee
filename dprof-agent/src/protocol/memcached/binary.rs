//! memcached's binary protocol: packets of a 24-byte header and a body, both directions alike.
//!
//! What a reader would get wrong: the opaque is the client's to choose, and most choose 0 for everything. It tells
//! quiet answers apart where it can; ordinary ones are answered in order. Layout as in memcached's
//! `protocol_binary.h`; big endian.

mod header;

use std::borrow::Cow;

pub(super) use self::header::{HEADER_BYTES, Header, REQUEST, RESPONSE, Stop};
use self::header::{OPCODES, QUIT_QUIETLY, Reply, is_secret};
use super::order::{Answers, Order, Silent};
use super::requests::HIT;
use crate::protocol::capture::KeyCapture;
use crate::protocol::hash::ContentHasher;
use crate::protocol::text::Statement;
use crate::protocol::{Correlation, Direction, Message, MessageKind, Parsed, Parts};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At a boundary or in a header: what came of it is in `held`.
    Header,
    /// In a body: this many bytes are left.
    Body(u32),
    /// Boundary lost.
    Seek,
}

/// One direction.
#[derive(Debug)]
struct Packets {
    direction: Direction,
    is_response: bool,
    pos: u64,
    state: State,
    start: u64,
    lost: bool,
    turn: bool,
    held: Vec<u8>,
    header: Option<Header>,
    /// First bytes of the body: extras and key.
    prefix: Vec<u8>,
    /// A hole ended them.
    is_prefix_cut: bool,
    is_seen: bool,
    hasher: ContentHasher,
    /// A response of several packets is under way, and the bytes of its values.
    n_packets: u32,
    value_bytes: u64,
}

/// What both directions share.
#[derive(Debug)]
struct Session {
    order: Order<u8>,
    silent: Vec<Silent<u8>>,
    proved: bool,
    mistaken: bool,
    /// The client is in the middle of a packet.
    in_body: bool,
    /// The answer to that packet, until it is whole.
    early: Option<Message>,
    /// How keys are kept.
    keys: KeyCapture,
}

impl Session {
    fn lose(&mut self) {
        self.order.lose();
        self.early = None;
    }
}

/// Both directions of a connection.
#[derive(Debug)]
pub(super) struct Binary {
    request_direction: Direction,
    packets: [Packets; 2],
    session: Session,
    last: Direction,
}

impl Binary {
    pub(super) fn new(request_direction: Direction, start: [u64; 2], joined: bool) -> Self {
        let packets = |direction: Direction| {
            Packets::new(direction, direction != request_direction, start[direction.idx()], joined)
        };
        Self {
            request_direction,
            packets: [packets(Direction::Out), packets(Direction::In)],
            session: Session {
                order: Order::new(!joined),
                silent: Vec::new(),
                proved: false,
                mistaken: false,
                in_body: false,
                early: None,
                keys: KeyCapture::Plain,
            },
            last: request_direction,
        }
    }

    /// How keys are kept from now on.
    pub(super) const fn keep_keys(&mut self, keys: KeyCapture) {
        self.session.keys = keys;
    }

    pub(super) const fn is_over(&self) -> bool {
        self.session.mistaken
    }

    fn turn(&mut self, direction: Direction) {
        self.packets[direction.reverse().idx()].turn = true;
        let between = self.packets.iter().all(Packets::at_boundary);
        if direction == self.request_direction && self.last != direction && between {
            self.session.order.turned();
        }
        self.last = direction;
        let requests = &self.packets[self.request_direction.idx()];
        self.session.in_body = matches!(requests.state, State::Body(_));
    }

    pub(super) fn feed(&mut self, direction: Direction, bytes: &[u8], out: &mut Vec<Parsed>) {
        if self.session.mistaken || bytes.is_empty() {
            return;
        }
        self.turn(direction);
        self.packets[direction.idx()].feed(bytes, &mut self.session, out);
        if self.session.mistaken {
            out.push(Parsed::Mistaken);
        }
    }

    pub(super) fn gap(&mut self, direction: Direction, len: u64, out: &mut Vec<Parsed>) {
        if self.session.mistaken || len == 0 {
            return;
        }
        self.turn(direction);
        self.packets[direction.idx()].gap(len, &mut self.session, out);
    }

    pub(super) fn unfinished_from(&self, direction: Direction) -> u64 {
        let from = self.packets[direction.idx()].unfinished_from();
        let early = self.session.early.as_ref().filter(|early| early.direction == direction);
        early.map_or(from, |early| early.start.min(from))
    }
}

impl Packets {
    fn new(direction: Direction, is_response: bool, pos: u64, joined: bool) -> Self {
        Self {
            direction,
            is_response,
            pos,
            state: if joined { State::Seek } else { State::Header },
            start: pos,
            lost: joined,
            turn: joined,
            held: Vec::new(),
            header: None,
            prefix: Vec::new(),
            is_prefix_cut: false,
            is_seen: true,
            hasher: ContentHasher::new(),
            n_packets: 0,
            value_bytes: 0,
        }
    }

    fn at_boundary(&self) -> bool {
        self.state != State::Header || (self.held.is_empty() && self.n_packets == 0)
    }

    fn unfinished_from(&self) -> u64 {
        match self.state {
            State::Seek => self.pos,
            State::Header if self.n_packets == 0 => self.pos - self.held.len() as u64,
            State::Header | State::Body(_) => self.start,
        }
    }

    fn feed(&mut self, mut bytes: &[u8], session: &mut Session, out: &mut Vec<Parsed>) {
        if std::mem::take(&mut self.turn) && self.state == State::Seek {
            self.state = State::Header;
        }
        while !bytes.is_empty() && !session.mistaken {
            let taken = match self.state {
                State::Header => {
                    let part = &bytes[..bytes.len().min(HEADER_BYTES - self.held.len())];
                    self.held.extend_from_slice(part);
                    self.pos += part.len() as u64;
                    self.judge(session, out);
                    part.len()
                }
                State::Body(left) => {
                    let part = &bytes[..bytes.len().min(left as usize)];
                    let wanted =
                        self.header.map_or(0, |header| usize::from(header.extras) + usize::from(header.key));
                    let room = wanted.saturating_sub(self.prefix.len());
                    if !self.is_prefix_cut {
                        self.prefix.extend_from_slice(&part[..part.len().min(room)]);
                    }
                    self.hasher.update(part);
                    self.pos += part.len() as u64;
                    self.count_off(part.len() as u32, session, out);
                    part.len()
                }
                State::Seek => {
                    self.pos += bytes.len() as u64;
                    bytes.len()
                }
            };
            bytes = &bytes[taken..];
        }
    }

    fn gap(&mut self, mut len: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        if let State::Body(left) = self.state {
            let skipped = len.min(u64::from(left)) as u32;
            self.is_seen = false;
            self.is_prefix_cut = true;
            self.pos += u64::from(skipped);
            len -= u64::from(skipped);
            self.count_off(skipped, session, out);
        }
        if len > 0 {
            let from = self.unfinished_from();
            self.pos += len;
            self.lose(from, session, out);
        }
        self.turn = false;
    }

    /// A header, perhaps whole.
    fn judge(&mut self, session: &mut Session, out: &mut Vec<Parsed>) {
        let at = self.pos - self.held.len() as u64;
        match Header::read(&self.held) {
            Err(Stop::NeedMore) => {}
            Ok(header) if header.is_response == self.is_response => {
                self.held.clear();
                if self.n_packets == 0 {
                    self.start = at;
                    self.is_seen = true;
                    self.value_bytes = 0;
                    self.hasher = ContentHasher::new();
                }
                self.hasher.number(
                    u64::from(header.opcode) << 32 | u64::from(header.key) << 8 | u64::from(header.extras),
                );
                self.prefix.clear();
                self.is_prefix_cut = false;
                self.header = Some(header);
                self.state = State::Body(header.body);
                self.count_off(0, session, out);
            }
            Ok(_) | Err(Stop::No) => {
                if !session.proved && !self.lost {
                    session.mistaken = true;
                } else {
                    self.lose(if self.n_packets == 0 { at } else { self.start }, session, out);
                }
            }
        }
    }

    fn count_off(&mut self, len: u32, session: &mut Session, out: &mut Vec<Parsed>) {
        let (State::Body(left), Some(header)) = (&mut self.state, self.header) else { return };
        *left -= len;
        if *left > 0 {
            return;
        }
        self.state = State::Header;
        self.lost = false;
        session.proved = true;
        self.value_bytes += u64::from(header.body) - u64::from(header.key) - u64::from(header.extras);
        if self.is_response && header.reply == Reply::Many && header.status == 0 && header.body > 0 {
            self.n_packets += 1;
            return;
        }
        self.n_packets = 0;
        if self.is_response {
            self.end_response(&header, session, out);
        } else {
            self.end_request(&header, session, out);
        }
    }

    fn end_request(&mut self, header: &Header, session: &mut Session, out: &mut Vec<Parsed>) {
        let correlation = if header.opcode == QUIT_QUIETLY {
            None
        } else if header.is_quiet() {
            session.order.quiet(header.opcode, token(header))
        } else {
            Some(session.order.request(header.opcode, token(header)))
        };
        let kind = if correlation.is_some() { MessageKind::Request } else { MessageKind::OneWay };
        let mut message = Message::new(self.direction, kind, self.start, self.pos);
        message.correlation = correlation.unwrap_or(Correlation::Fifo);
        message.answers_unknown = header.is_quiet() && correlation.is_none();
        message.operation = Cow::Borrowed(header.operation);
        let mut statement = Statement::default();
        statement.begin(header.operation);
        if is_secret(header.opcode) {
            statement.word("?");
        } else {
            let key = self.prefix.get(usize::from(header.extras)..).unwrap_or_default();
            let is_whole = key.len() == usize::from(header.key);
            match header.key {
                0 => {}
                _ if is_whole => statement.captured_key(key, session.keys),
                _ => {
                    statement.key(b"", false);
                    message.incomplete = true;
                }
            }
            if self.value_bytes > 0 {
                statement.word("?");
                message.value_bytes = Some(u32::try_from(self.value_bytes).unwrap_or(u32::MAX));
            }
            message.content_hash = self.is_seen.then(|| self.hasher.finish());
            if let (Some(hash), true) = (message.content_hash, header.key > 0) {
                message.parts = Parts::One(hash);
            }
        }
        (message.text, message.keys) = statement.into_parts();
        out.push(Parsed::Message(message));
        out.extend(session.early.take().map(Parsed::Message));
    }

    fn end_response(&mut self, header: &Header, session: &mut Session, out: &mut Vec<Parsed>) {
        let (opcode, wanted) = (header.opcode, token(header));
        // A value that is too large is refused before all of it came.
        let is_early = session.in_body && session.order.is_certain() && !session.order.waits();
        let answers = session
            .order
            .response(|pending| pending.class == opcode && pending.token == wanted, &mut session.silent);
        let (kind, correlation) = match answers {
            Answers::Request(correlation) => (MessageKind::Response, correlation),
            Answers::Ambiguous => (MessageKind::Push, Correlation::Fifo),
            // A quiet command's answer while the order is not known: nobody's.
            Answers::OutOfStep => {
                out.push(Parsed::Lost { direction: self.direction, at: self.start });
                let kind = if header.is_quiet() { MessageKind::Push } else { MessageKind::Response };
                (kind, Correlation::Fifo)
            }
        };
        let kind =
            if header.is_quiet() && correlation == Correlation::Fifo { MessageKind::Push } else { kind };
        for silent in session.silent.drain(..) {
            let mut message = Message::new(self.direction, MessageKind::Silence, self.start, self.pos);
            message.correlation = silent.correlation;
            message.incomplete = silent.doubtful;
            let misses =
                OPCODES.iter().any(|(known, _, reply)| *known == silent.class && *reply == Reply::QuietMiss);
            if misses && !silent.doubtful {
                message.attributes.push((HIT, "false".to_owned()));
            }
            out.push(Parsed::Message(message));
        }
        let mut message = Message::new(self.direction, kind, self.start, self.pos);
        message.correlation = correlation;
        (message.status_code, message.is_error) = status(header.status);
        let reads = matches!(header.operation, "get" | "gat");
        let finds = reads || matches!(header.operation, "delete" | "touch" | "incr" | "decr");
        if finds && matches!(header.status, 0 | 1) {
            message.attributes.push((HIT, (header.status == 0).to_string()));
        }
        if reads && header.status == 0 {
            message.value_bytes = Some(u32::try_from(self.value_bytes).unwrap_or(u32::MAX));
        }
        if !is_secret(header.opcode) {
            message.content_hash = self.is_seen.then(|| self.hasher.finish());
        }
        out.extend(session.early.take().map(Parsed::Message));
        if is_early && kind == MessageKind::Response {
            session.early = Some(message);
        } else {
            out.push(Parsed::Message(message));
        }
    }

    fn lose(&mut self, at: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        if !self.lost {
            out.push(Parsed::Lost { direction: self.direction, at });
        }
        self.lost = true;
        self.n_packets = 0;
        self.held.clear();
        self.header = None;
        self.state = State::Seek;
        session.lose();
    }
}

/// What a response repeats of its request, never 0.
fn token(header: &Header) -> u64 {
    u64::from(header.opaque) | 1 << 32
}

/// A status as the text protocol words it, and whether it is a failure.
fn status(status: u16) -> (Cow<'static, str>, bool) {
    let (word, is_error) = match status {
        0 => ("", false),
        0x01 => ("NOT_FOUND", false),
        0x02 => ("EXISTS", false),
        0x03 => ("TOO_LARGE", true),
        0x04 => ("EINVAL", true),
        0x05 => ("NOT_STORED", false),
        0x06 => ("DELTA_BADVAL", true),
        0x08 => ("NO_BUCKET", true),
        0x20 => ("AUTH_ERROR", true),
        0x21 => ("AUTH_CONTINUE", false),
        0x81 => ("UNKNOWN_COMMAND", true),
        0x82 => ("ENOMEM", true),
        0x83 => ("NOT_SUPPORTED", true),
        0x85 => ("EBUSY", true),
        0x86 => ("ETMPFAIL", true),
        other => return (Cow::Owned(format!("0x{other:02x}")), true),
    };
    (Cow::Borrowed(word), is_error)
}
