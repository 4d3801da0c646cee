//! One direction of an HTTP/1 connection: heads line by line, bodies counted off.

mod heads;

use super::Session;
use super::body::{Body, Gap, Progress};
use super::head::{Head, LineStep, Lines};
use crate::protocol::capture::Capture;
use crate::protocol::hash::ContentHasher;
use crate::protocol::{Direction, Message, MessageKind, Parsed};

/// A request whose response is framed otherwise than its headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Special {
    /// HEAD: no body whatever the headers say.
    Head,
    /// CONNECT: with success a tunnel begins.
    Connect,
    /// Asks for another protocol; nothing may follow before the answer.
    Upgrade,
}

/// Which side writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Requests,
    Responses,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At a boundary.
    Start,
    /// In the request or status line.
    StartLine,
    /// In the headers.
    Headers,
    /// In the body.
    Body(Body),
    /// At the start of a body that may not be there: the answer may have been to HEAD. So many bytes of it are
    /// the start of another response.
    Peek(Body, usize),
    /// After a request for a tunnel or an upgrade: whose bytes follow is not decided yet.
    Held,
    /// Boundary lost.
    Seek,
}

/// What a response begins with.
const STATUS_LINE_START: &[u8] = b"HTTP/1.";

/// Methods that are believed where the boundary was lost: none is the end of another, of which a hole may have
/// hidden the start (`PATCH` is: `PROPPATCH`).
const BELIEVED_METHODS: [&[u8]; 6] = [b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS"];

/// Parser of one direction.
#[derive(Debug)]
pub(super) struct Side {
    role: Role,
    direction: Direction,
    /// Position after the last byte fed or skipped.
    pos: u64,
    state: State,
    start: u64,
    lost: bool,
    /// Whether the other side wrote since the last byte: the next may start a message.
    turn: bool,
    lines: Lines,
    head: Head,
    message: Option<Message>,
    status: u16,
    /// HTTP/1.0
    is_old: bool,
    /// Whether the loss of the boundary was said. One that is believed again can be lost again.
    said_lost: bool,
    capture: Capture,
    special: Option<Special>,
    /// Position from which bytes are held.
    held_from: u64,
    hasher: ContentHasher,
    hash_known: bool,
    /// Whether chunked bodies came: their size lines must be seen.
    pub(super) saw_chunks: bool,
}

impl Side {
    pub(super) fn new(role: Role, direction: Direction, pos: u64, joined: bool) -> Self {
        Self {
            role,
            direction,
            pos,
            state: State::Start,
            start: pos,
            lost: joined,
            turn: false,
            lines: Lines::default(),
            head: Head::default(),
            message: None,
            status: 0,
            is_old: false,
            said_lost: false,
            capture: Capture::default(),
            special: None,
            held_from: pos,
            hasher: ContentHasher::new(),
            hash_known: true,
            saw_chunks: false,
        }
    }

    pub(super) fn unfinished_from(&self) -> u64 {
        match self.state {
            State::Start | State::Seek => self.pos,
            State::Held => self.held_from,
            _ => self.start,
        }
    }

    pub(super) const fn set_capture(&mut self, capture: Capture) {
        self.capture = capture;
    }

    /// Whether no message is under way.
    pub(super) fn idle(&self) -> bool {
        matches!(self.state, State::Start | State::Seek)
    }

    /// What a held request asked for.
    pub(super) fn held(&self) -> Option<Special> {
        self.special.filter(|_| self.state == State::Held)
    }

    /// The other side wrote.
    pub(super) fn turned(&mut self) {
        self.turn = true;
    }

    /// Takes bytes, up to a place where the other side must be told something first; how many it took.
    pub(super) fn feed(&mut self, bytes: &[u8], session: &mut Session, out: &mut Vec<Parsed>) -> usize {
        let base = self.pos;
        if std::mem::take(&mut self.turn) && self.lost && matches!(self.state, State::Seek | State::StartLine)
        {
            self.state = State::Start;
            self.said_lost = false;
        }
        let mut i = 0;
        while i < bytes.len() && !session.over() && !session.released {
            let at = base + i as u64;
            match self.state {
                State::Start => match (self.role, bytes[i]) {
                    (Role::Requests, b'\r' | b'\n') => i += 1,
                    (Role::Requests, b'A'..=b'Z') | (Role::Responses, b'H') => {
                        self.start = at;
                        self.lines.begin();
                        self.state = State::StartLine;
                    }
                    _ => self.lose(at, session, out),
                },
                State::StartLine | State::Headers => match self.lines.feed(&bytes[i..]) {
                    LineStep::More => i = bytes.len(),
                    LineStep::TooLong => self.lose(at, session, out),
                    LineStep::Ended(taken) => {
                        i += taken;
                        self.end_line(base + i as u64, session, out);
                    }
                },
                State::Body(mut body) => match body.feed(&bytes[i..], &mut self.hasher) {
                    Progress::More => {
                        self.state = State::Body(body);
                        i = bytes.len();
                    }
                    Progress::Done(taken) => {
                        i += taken;
                        self.end_message(base + i as u64, session, out);
                    }
                    Progress::Bad(taken) => {
                        i += taken;
                        self.lose(base + i as u64, session, out);
                    }
                },
                State::Peek(body, n)
                    if bytes[i] == STATUS_LINE_START[n] && body != Body::Length(n as u64) =>
                {
                    i += 1;
                    self.state = State::Peek(body, n + 1);
                    if n + 1 == STATUS_LINE_START.len() {
                        let boundary = base + i as u64 - STATUS_LINE_START.len() as u64;
                        self.end_message(boundary, session, out);
                        self.start = boundary;
                        self.lines.begin();
                        self.lines.feed(STATUS_LINE_START);
                        self.state = State::StartLine;
                    }
                }
                State::Peek(mut body, n) => {
                    // A body that begins like a response, or a response that is shorter than it said.
                    self.doubt(n > 0);
                    match body.feed(&STATUS_LINE_START[..n], &mut self.hasher) {
                        Progress::More => self.state = State::Body(body),
                        Progress::Done(_) => self.end_message(at, session, out),
                        Progress::Bad(_) => self.lose(at, session, out),
                    }
                }
                State::Held | State::Seek => i = bytes.len(),
            }
        }
        self.pos = base + i as u64;
        i
    }

    /// `len` bytes were not seen.
    pub(super) fn gap(&mut self, len: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        self.turn = false;
        // Whether there is a body is not known then, nor what the hole hid.
        self.stop_peeking(session, out);
        let mut left = len;
        if let State::Body(body) = &mut self.state {
            self.hash_known = false;
            match body.gap(len) {
                Gap::More => left = 0,
                Gap::Done(taken) => {
                    left = len - taken;
                    self.end_message(self.pos + taken, session, out);
                }
                Gap::Lost => {}
            }
        }
        if left > 0 && self.state != State::Held && !session.over() {
            self.pos += len - left;
            let at = self.unfinished_from();
            self.say_lost(at, session, out);
            self.pos += left;
            // What follows a hole may start a message.
            self.state = State::Start;
        } else {
            self.pos += len;
        }
    }

    /// The direction ended.
    pub(super) fn end(&mut self, session: &mut Session, out: &mut Vec<Parsed>) {
        match self.state {
            State::Body(Body::Close) | State::Peek(Body::Close, _) => {
                self.end_message(self.pos, session, out);
            }
            State::Peek(Body::Length(len), n) if len == n as u64 => {
                self.doubt(true);
                self.end_message(self.pos, session, out);
            }
            // Cut off: what it would have been shows, where it ends does not.
            State::Body(_) | State::Peek(..) if self.role == Role::Responses => {
                self.doubt(true);
                self.end_message(self.pos, session, out);
            }
            _ => {}
        }
    }

    /// Whether a body follows does not show any more: what is there is said now, before what comes next, and that its
    /// end is in doubt. A response that was said later would be taken for the next one's.
    pub(super) fn stop_peeking(&mut self, session: &mut Session, out: &mut Vec<Parsed>) {
        let State::Peek(_, n) = self.state else { return };
        let end = self.pos - n as u64;
        self.doubt(true);
        self.hash_known = false;
        self.end_message(end, session, out);
        if n > 0 {
            self.say_lost(end, session, out);
        }
    }

    /// Where the message ends may be wrong.
    fn doubt(&mut self, is_doubtful: bool) {
        if let Some(message) = &mut self.message {
            message.incomplete |= is_doubtful;
        }
    }

    /// The other side declined the tunnel or the upgrade: what was held are requests.
    pub(super) fn release(&mut self, session: &mut Session, out: &mut Vec<Parsed>) {
        if self.state == State::Held {
            self.state = State::Start;
            if self.pos > self.held_from {
                self.say_lost(self.held_from, session, out);
            }
        }
    }

    fn end_line(&mut self, end: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        let (line, whole) = self.lines.line();
        if self.state == State::StartLine {
            let begun = match self.role {
                Role::Requests => self.begin_request(),
                Role::Responses => self.begin_response(),
            };
            if begun {
                self.head.begin();
                self.state = State::Headers;
            } else {
                self.lose(self.start, session, out);
            }
        } else if self.head.line(line, whole) {
            match self.role {
                Role::Requests => self.end_request_head(end, session, out),
                Role::Responses => self.end_response_head(end, session, out),
            }
        }
        self.lines.next();
    }

    fn begin_body(&mut self, body: Option<Body>, end: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        match body {
            Some(body) => {
                self.saw_chunks |= body == Body::chunked();
                self.state = State::Body(body);
            }
            None => self.end_message(end, session, out),
        }
    }

    fn end_message(&mut self, end: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        self.state = State::Start;
        (self.lost, self.said_lost) = (false, false);
        session.proved = true;
        let Some(mut message) = self.message.take() else { return };
        message.end = end;
        message.content_hash = self.hash_known.then(|| self.hasher.finish());
        match message.kind {
            MessageKind::Response => session.answers.response(),
            MessageKind::Request if matches!(self.special, Some(Special::Connect | Special::Upgrade)) => {
                self.state = State::Held;
                self.held_from = end;
            }
            _ => {}
        }
        out.push(Parsed::Message(message));
    }

    /// The bytes at `at` are no message.
    fn lose(&mut self, at: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        if !session.proved && !self.lost {
            session.mistaken = true;
            return;
        }
        let from = if self.state == State::Start { at } else { self.start };
        self.say_lost(from, session, out);
    }

    fn say_lost(&mut self, at: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        if !self.said_lost {
            out.push(Parsed::Lost { direction: self.direction, at });
        }
        (self.lost, self.said_lost) = (true, true);
        self.state = State::Seek;
        self.message = None;
        session.answers.lose();
    }
}
