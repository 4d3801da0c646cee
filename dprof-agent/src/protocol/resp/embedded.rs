//! RESP inside another protocol's envelope (DNODE, or whatever frames it): a byte range in, its messages out.
//!
//! What a reader would get wrong: an envelope says where its payload starts and ends, so nothing is sought here.
//! Each range stands alone; a range that is no whole RESP gives what was whole before the trouble and says so at
//! its end. Connection modes (pub/sub, `CLIENT REPLY`) belong to connections, and an envelope has none: a request
//! is a request and a reply answers.

use super::Session;
use super::reply::Replies;
use super::request::Requests;
use crate::protocol::capture::Capture;
use crate::protocol::{Direction, Message, MessageKind, Parsed};

/// Reads one range after another of the same direction.
#[derive(Debug)]
pub(in crate::protocol) struct Embedded {
    reader: Reader,
    session: Session,
    /// Something in this range was no RESP, or a hole hid a boundary.
    broken: bool,
    parsed: Vec<Parsed>,
}

#[derive(Debug)]
enum Reader {
    Requests(Requests),
    Replies(Replies),
}

impl Embedded {
    /// Reads commands that flow in `direction`.
    pub(in crate::protocol) fn requests(direction: Direction) -> Self {
        Self::new(Reader::Requests(Requests::new(direction, 0, false)))
    }

    /// Reads replies that flow in `direction`.
    pub(in crate::protocol) fn replies(direction: Direction) -> Self {
        Self::new(Reader::Replies(Replies::new(direction, 0, false)))
    }

    fn new(reader: Reader) -> Self {
        Self { reader, session: Session::new(true), broken: false, parsed: Vec::new() }
    }

    /// What may be kept of keys and values from now on.
    pub(in crate::protocol) fn set_capture(&mut self, capture: Capture) {
        if let Reader::Requests(requests) = &mut self.reader {
            requests.set_capture(capture);
        }
    }

    /// A range starts at stream position `pos`: whatever was under way is forgotten.
    pub(in crate::protocol) fn begin(&mut self, pos: u64) {
        match &mut self.reader {
            Reader::Requests(requests) => requests.restart(pos),
            Reader::Replies(replies) => replies.restart(pos),
        }
        self.session = Session::new(true);
        // What is no RESP is a loss of this range, not of the protocol.
        self.session.proved = true;
        // Nothing is published in an envelope: a list is a list.
        self.session.guess_said = true;
        self.broken = false;
    }

    /// The next bytes of the range, cut anyhow. Whole messages go to `out`, with positions in the stream that
    /// carries them, as [`MessageKind::Request`] or [`MessageKind::Response`]; range and correlation are the
    /// envelope's to change.
    pub(in crate::protocol) fn feed(&mut self, bytes: &[u8], out: &mut Vec<Message>) {
        if self.broken || bytes.is_empty() {
            return;
        }
        match &mut self.reader {
            Reader::Requests(requests) => requests.feed(bytes, &mut self.session, &mut self.parsed),
            Reader::Replies(replies) => replies.feed(bytes, &mut self.session, &mut self.parsed),
        }
        self.collect(out);
    }

    /// `len` bytes of the range were not seen: inside a bulk string they are counted off.
    pub(in crate::protocol) fn gap(&mut self, len: u64, out: &mut Vec<Message>) {
        if self.broken || len == 0 {
            return;
        }
        match &mut self.reader {
            Reader::Requests(requests) => requests.gap(len, &mut self.session, &mut self.parsed),
            Reader::Replies(replies) => replies.gap(len, &mut self.session, &mut self.parsed),
        }
        self.collect(out);
    }

    /// The range ended: whether it was whole messages and nothing else.
    pub(in crate::protocol) fn end(&mut self) -> bool {
        let at_boundary = match &self.reader {
            Reader::Requests(requests) => requests.at_boundary(),
            Reader::Replies(replies) => replies.idle(),
        };
        at_boundary && !std::mem::replace(&mut self.broken, true)
    }

    fn collect(&mut self, out: &mut Vec<Message>) {
        let kind = match self.reader {
            Reader::Requests(_) => MessageKind::Request,
            Reader::Replies(_) => MessageKind::Response,
        };
        for parsed in self.parsed.drain(..) {
            match parsed {
                Parsed::Message(mut message) if !self.broken => {
                    message.kind = kind;
                    out.push(message);
                }
                _ => self.broken = true,
            }
        }
        self.broken |= self.session.over();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` (`~N` is a hole) in parts of `part` bytes; each message as `START..END OPERATION`.
    fn read(reader: &mut Embedded, pos: u64, text: &str, part: usize) -> String {
        let mut out = Vec::new();
        reader.begin(pos);
        for (idx, piece) in text.split('~').enumerate() {
            let digits = piece.len() - piece.trim_start_matches(|char: char| char.is_ascii_digit()).len();
            let (hole, piece) = if idx > 0 { piece.split_at(digits) } else { ("", piece) };
            reader.gap(hole.parse().unwrap_or(0), &mut out);
            piece.as_bytes().chunks(part).for_each(|part| reader.feed(part, &mut out));
        }
        let show = |message: &Message| {
            let name = if message.is_error { &message.status_code } else { &message.operation };
            format!("{}..{} {:?} {name}", message.start, message.end, message.kind).trim_end().to_owned()
        };
        let mut shown: Vec<_> = out.iter().map(show).collect();
        shown.push(if reader.end() { "whole" } else { "broken" }.to_owned());
        shown.join(", ")
    }

    #[track_caller]
    fn check(is_request: bool, text: &str, expected: &str) {
        let mut reader =
            if is_request { Embedded::requests(Direction::Out) } else { Embedded::replies(Direction::In) };
        for part in [usize::MAX, 1, 3] {
            // Again and again: a range says nothing of the next.
            assert_eq!(read(&mut reader, 100, text, part), expected, "{text:?} in parts of {part}");
        }
    }

    #[test]
    fn a_range_gives_its_messages() {
        check(true, "*2\r\n$3\r\nGET\r\n$1\r\na\r\n", "100..120 Request GET, whole");
        check(
            true,
            "*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n",
            "100..114 Request PING, 114..128 Request PING, whole",
        );
        check(false, "$1\r\na\r\n", "100..107 Response, whole");
        check(false, "-ERR no\r\n", "100..109 Response ERR, whole");
        check(false, "*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n", "100..130 Response, whole");
        check(true, "", "whole");
    }

    #[test]
    fn what_is_not_whole_says_so() {
        check(true, "*2\r\n$3\r\nGET\r\n$1\r\n", "broken");
        check(true, "garbage", "broken");
        check(true, "*1\r\n$4\r\nPING\r\n\0", "100..114 Request PING, broken");
        check(true, "*2\r\n$3\r\nGET\r\n$9\r\nab~7\r\n", "100..128 Request GET, whole");
        check(true, "*2\r\n$3\r\nGET~5\r\nab\r\n", "broken");
        check(false, "$9\r\nab~9$1\r\na\r\n", "100..115 Response, 115..122 Response, whole");
        check(false, "$9\r\nab~7", "broken");
        check(true, "*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$1\r\n0\r\n", "broken");
    }
}
