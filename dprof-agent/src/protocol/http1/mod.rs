//! HTTP/1.0 and 1.1.
//!
//! What a reader would get wrong: a response says its own length only together with its request (HEAD, CONNECT)
//! and its status; and after a loss a boundary is believed only where the connection turned or a hole ended.

mod body;
mod head;
mod names;
mod side;
mod target;
#[cfg(test)]
mod tests;
mod trace_context;

use super::answers::Answers;
use super::capture::Capture;
use super::{Detected, Direction, Head, Parsed, Parser, Protocol, Verdict};
use side::{Role, Side, Special};

/// Payload worth capturing of one call: the head of a message, which mostly starts a call.
const PAYLOAD_BYTES: u32 = 4096;

/// The same once a direction has sent chunked bodies: every size line must be seen. Stays once it is set.
const PAYLOAD_BYTES_CHUNKED: u32 = 16 * 1024;

/// First bytes of a request line that detection waits for; a line that is longer is believed by its start.
const REQUEST_LINE_BYTES: usize = 64;

/// The protocol.
#[derive(Debug)]
pub(super) struct Http1;

impl Protocol for Http1 {
    fn name(&self) -> &'static str {
        "http"
    }

    fn ports(&self) -> &'static [u16] {
        &[80, 8000, 8080]
    }

    fn detect(&self, head: &Head<'_>) -> Detected {
        let judged = head.bytes.map(|bytes| [judge_request(bytes), judge_response(bytes)]);
        let is_other =
            |(bytes, judged): (&[u8], [Verdict; 2])| !bytes.is_empty() && judged == [Verdict::No; 2];
        if head.is_within_dnode() || (!head.joined && head.bytes.into_iter().zip(judged).any(is_other)) {
            return Detected { verdict: Verdict::No, request_direction: None };
        }
        let mut verdict = Verdict::No;
        for (direction, [request, response]) in [Direction::Out, Direction::In].into_iter().zip(judged) {
            if request == Verdict::Yes {
                return Detected { verdict: Verdict::Yes, request_direction: Some(direction) };
            }
            if response == Verdict::Yes {
                return Detected { verdict: Verdict::Yes, request_direction: Some(direction.reverse()) };
            }
            if !head.bytes[direction.idx()].is_empty() {
                verdict = verdict.max(request.max(response));
            }
        }
        let waits = head.bytes.iter().any(|bytes| bytes.is_empty());
        if waits {
            verdict = verdict.max(Verdict::NeedMore);
        }
        Detected { verdict, request_direction: None }
    }

    fn parser(&self, request_direction: Direction, start: [u64; 2], joined: bool) -> Box<dyn Parser> {
        let side = |role, direction: Direction| Side::new(role, direction, start[direction.idx()], joined);
        Box::new(Http1Parser {
            requests: side(Role::Requests, request_direction),
            responses: side(Role::Responses, request_direction.reverse()),
            session: Session::new(joined),
            request_direction,
            last: request_direction,
            over: false,
        })
    }
}

/// Judges `METHOD target HTTP/1.x`.
fn judge_request(bytes: &[u8]) -> Verdict {
    const METHODS: [&[u8]; 17] = [
        b"GET ",
        b"POST ",
        b"PUT ",
        b"DELETE ",
        b"HEAD ",
        b"OPTIONS ",
        b"PATCH ",
        b"CONNECT ",
        b"TRACE ",
        b"QUERY ",
        b"PROPFIND ",
        b"PROPPATCH ",
        b"MKCOL ",
        b"COPY ",
        b"MOVE ",
        b"LOCK ",
        b"UNLOCK ",
    ];
    let line_end = bytes.iter().position(|byte| *byte == b'\n');
    let line = &bytes[..line_end.unwrap_or(bytes.len())];
    let Some(method) = METHODS.into_iter().find(|method| line.starts_with(method)) else {
        let may_be = line_end.is_none() && METHODS.iter().any(|method| method.starts_with(line));
        return if may_be { Verdict::NeedMore } else { Verdict::No };
    };
    let target = &line[method.len()..];
    let fits = match target.first() {
        Some(b'/') => true,
        // The scheme of the absolute form, a host, `*`.
        Some(_) => target.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\r')),
        None => line_end.is_none(),
    };
    if !fits {
        return Verdict::No;
    }
    match line_end {
        // Whatever follows.
        _ if target.starts_with(b"/") && line.len() > REQUEST_LINE_BYTES => Verdict::Yes,
        Some(_) if head::request_line(line.trim_ascii_end(), true).is_some() => Verdict::Yes,
        Some(_) => Verdict::No,
        None => Verdict::NeedMore,
    }
}

/// Judges `HTTP/1.x nnn`.
fn judge_response(bytes: &[u8]) -> Verdict {
    const PATTERN: &[u8; 12] = b"HTTP/1.0 000";
    let fits =
        |(byte, pattern): (&u8, &u8)| if *pattern == b'0' { byte.is_ascii_digit() } else { byte == pattern };
    match bytes.iter().zip(PATTERN).all(fits) {
        false => Verdict::No,
        true if bytes.len() >= PATTERN.len() => Verdict::Yes,
        true => Verdict::NeedMore,
    }
}

/// What both directions share.
#[derive(Debug)]
struct Session {
    answers: Answers<Special>,
    /// What the request side waits for, if it is held.
    held: Option<Special>,
    /// Set by a response that declines what the request side waits for.
    released: bool,
    /// Set by a response that begins another protocol.
    switch: bool,
    /// Whether any message was whole: what is garbage then is a loss, not another protocol.
    proved: bool,
    /// Set when this is another protocol.
    mistaken: bool,
}

impl Session {
    fn new(joined: bool) -> Self {
        Self {
            answers: Answers::new(!joined),
            held: None,
            released: false,
            switch: false,
            proved: false,
            mistaken: false,
        }
    }

    fn over(&self) -> bool {
        self.mistaken || self.switch
    }
}

/// Both directions of a connection.
#[derive(Debug)]
struct Http1Parser {
    requests: Side,
    responses: Side,
    session: Session,
    request_direction: Direction,
    /// Direction of the last bytes.
    last: Direction,
    /// Nothing more will be said.
    over: bool,
}

impl Http1Parser {
    fn side(&mut self, direction: Direction) -> (&mut Side, &mut Session) {
        let side = if direction == self.request_direction { &mut self.requests } else { &mut self.responses };
        (side, &mut self.session)
    }

    /// Bytes of `direction` come, seen or not.
    fn turn(&mut self, direction: Direction, out: &mut Vec<Parsed>) {
        if self.last != direction {
            let to_requests = direction == self.request_direction;
            if to_requests {
                self.responses.stop_peeking(&mut self.session, out);
            }
            // The other side wrote last and both are between messages: taken as idle after a loss.
            let idle = to_requests && self.requests.idle() && self.responses.idle();
            if idle && (!self.session.answers.certain() || self.session.answers.overdrawn()) {
                self.session.answers.idle();
            }
            self.side(direction).0.turned();
        }
        self.last = direction;
        self.session.held = self.requests.held();
    }

    /// Says what the bytes of `direction` decided for both.
    fn settle(&mut self, direction: Direction, out: &mut Vec<Parsed>) {
        if std::mem::take(&mut self.session.released) {
            self.requests.release(&mut self.session, out);
        }
        if self.session.mistaken {
            out.push(Parsed::Mistaken);
        } else if self.session.switch {
            let mut at = [0; 2];
            at[self.request_direction.idx()] = self.requests.unfinished_from();
            // The head of the response that switches was the last message of its direction.
            at[direction.idx()] = out.iter().rev().find_map(message_end).unwrap_or_default();
            out.push(Parsed::Switch { at });
        }
        self.over = self.session.over();
    }
}

fn message_end(parsed: &Parsed) -> Option<u64> {
    match parsed {
        Parsed::Message(message) => Some(message.end),
        _ => None,
    }
}

impl Parser for Http1Parser {
    fn feed(&mut self, direction: Direction, _pos: u64, bytes: &[u8], out: &mut Vec<Parsed>) {
        if self.over || bytes.is_empty() {
            return;
        }
        self.turn(direction, out);
        let mut rest = bytes;
        while !rest.is_empty() && !self.over {
            let (side, session) = self.side(direction);
            let taken = side.feed(rest, session, out);
            rest = &rest[taken..];
            self.settle(direction, out);
        }
    }

    fn gap(&mut self, direction: Direction, _pos: u64, len: u64, out: &mut Vec<Parsed>) {
        if self.over || len == 0 {
            return;
        }
        self.turn(direction, out);
        let (side, session) = self.side(direction);
        side.gap(len, session, out);
        self.settle(direction, out);
    }

    fn end(&mut self, direction: Direction, _pos: u64, out: &mut Vec<Parsed>) {
        if !self.over {
            let (side, session) = self.side(direction);
            side.end(session, out);
        }
    }

    fn unfinished_from(&self, direction: Direction) -> u64 {
        if direction == self.request_direction {
            self.requests.unfinished_from()
        } else {
            self.responses.unfinished_from()
        }
    }

    fn set_capture(&mut self, capture: Capture) {
        self.requests.set_capture(capture);
    }

    fn payload_limit(&self, direction: Direction) -> u32 {
        let side = if direction == self.request_direction { &self.requests } else { &self.responses };
        match (self.over, side.saw_chunks) {
            (true, _) => 0,
            (false, true) => PAYLOAD_BYTES_CHUNKED,
            (false, false) => PAYLOAD_BYTES,
        }
    }
}
