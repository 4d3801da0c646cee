//! One direction of a DNODE connection: headers, and payloads counted off.
//!
//! What a reader would get wrong: after a loss the first header found is not believed. A value may hold the bytes
//! of a message (somebody stores captured traffic); so the message found first is passed over, and only a second
//! header exactly at its end, with a higher id, makes the boundary certain.

use std::borrow::Cow;

use super::header::{self, Header, Kind, MAGIC, Read};
use super::payload::Payload;
use crate::protocol::capture::Capture;
use crate::protocol::{Correlation, Direction, FORWARD_ATTRIBUTE, Message, MessageKind, Parsed};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At a boundary, or in a header: what came of it is in `held`.
    Header,
    /// This many bytes of the payload are left.
    Payload(u64),
    /// Boundary lost: what may be a header is in `held`.
    Seek,
}

/// Parser of one direction.
#[derive(Debug)]
pub(super) struct Frames {
    direction: Direction,
    is_request_direction: bool,
    /// Position after the last byte fed or skipped.
    pos: u64,
    state: State,
    /// Where the message under way starts.
    start: u64,
    /// The loss was said (or the connection joined), and the boundary is not certain again.
    lost: bool,
    /// Of the message under way.
    header: Option<Header>,
    held: Vec<u8>,
    payload: Payload,
}

impl Frames {
    pub(super) fn new(direction: Direction, is_request_direction: bool, pos: u64, joined: bool) -> Self {
        Self {
            direction,
            is_request_direction,
            pos,
            // Also of a connection that was joined the first call seen usually begins a message; if it does not, the
            // next boundary is sought.
            state: State::Header,
            start: pos,
            lost: joined,
            header: None,
            held: Vec::new(),
            payload: Payload::default(),
        }
    }

    /// What may be kept of keys and values from now on; said before the first byte.
    pub(super) fn set_capture(&mut self, capture: Capture) {
        self.payload.set_capture(capture);
    }

    pub(super) fn unfinished_from(&self) -> u64 {
        match self.state {
            State::Header | State::Seek => self.pos - self.held.len() as u64,
            State::Payload(_) => self.start,
        }
    }

    pub(super) fn feed(&mut self, mut bytes: &[u8], proved: &mut bool, out: &mut Vec<Parsed>) {
        while !bytes.is_empty() {
            let taken = match self.state {
                State::Payload(left) => {
                    let part = &bytes[..bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
                    if !self.lost {
                        self.payload.feed(part);
                    }
                    self.pos += part.len() as u64;
                    self.count_off(part.len() as u64, proved, out);
                    part.len()
                }
                State::Header => self.read_header(bytes, *proved, proved, out),
                State::Seek => self.seek(bytes, proved, out),
            };
            let Some(rest) = bytes.get(taken..) else { return };
            bytes = rest;
        }
    }

    /// `len` bytes were not seen.
    pub(super) fn gap(&mut self, mut len: u64, proved: &mut bool, out: &mut Vec<Parsed>) {
        if let State::Payload(left) = self.state {
            let skipped = len.min(left);
            if !self.lost {
                self.payload.gap(skipped);
            }
            self.pos += skipped;
            len -= skipped;
            self.count_off(skipped, proved, out);
        }
        if len > 0 {
            let from = self.unfinished_from();
            self.pos += len;
            self.lose(from, out);
        }
    }

    fn count_off(&mut self, len: u64, proved: &mut bool, out: &mut Vec<Parsed>) {
        let State::Payload(left) = &mut self.state else { return };
        *left -= len;
        if *left == 0 {
            self.state = State::Header;
            if !self.lost {
                *proved = true;
                self.end_message(out);
            }
        }
    }

    /// Reads a header at a boundary. How many of `bytes` it took.
    fn read_header(
        &mut self,
        bytes: &[u8],
        was_proved: bool,
        proved: &mut bool,
        out: &mut Vec<Parsed>,
    ) -> usize {
        let held = self.held.len();
        let read = if held == 0 {
            header::read(bytes)
        } else {
            self.held.extend_from_slice(&bytes[..bytes.len().min(header::HEADER_BYTES_MAX)]);
            header::read(&self.held)
        };
        match read {
            Read::NeedMore => {
                if held == 0 {
                    self.held.extend_from_slice(bytes);
                }
                self.pos += bytes.len() as u64;
                bytes.len()
            }
            // What was found after a loss is followed by a message of a higher id: now it is certain.
            Read::Header(header) if !self.lost || self.follows(&header) => {
                self.lost = false;
                self.start = self.pos - held as u64;
                let taken = header.len - held;
                self.held.clear();
                self.pos += taken as u64;
                self.header = Some(header);
                self.payload.begin(&header);
                self.state = State::Payload(header.payload);
                self.count_off(0, proved, out);
                taken
            }
            Read::Header(_) | Read::No => {
                self.held.truncate(held);
                if !was_proved && !self.lost {
                    out.push(Parsed::Mistaken);
                    return bytes.len();
                }
                // What was held is looked through again with what follows.
                let held = std::mem::take(&mut self.held);
                self.lose(self.pos - held.len() as u64, out);
                self.held = held;
                0
            }
        }
    }

    fn follows(&self, header: &Header) -> bool {
        self.header.is_none_or(|before| header.id > before.id)
    }

    /// The boundary is lost from `at` on.
    fn lose(&mut self, at: u64, out: &mut Vec<Parsed>) {
        if !self.lost {
            out.push(Parsed::Lost { direction: self.direction, at });
        }
        self.lost = true;
        self.header = None;
        self.held.clear();
        self.state = State::Seek;
    }

    /// Looks for a header. How many of `bytes` it took.
    fn seek(&mut self, bytes: &[u8], proved: &mut bool, out: &mut Vec<Parsed>) -> usize {
        let held = self.held.len();
        if held == 0 {
            // Nothing is copied until something may be the magic.
            let skip = magic_at(bytes);
            self.pos += skip as u64;
            let part = &bytes[skip..bytes.len().min(skip + header::HEADER_BYTES_MAX)];
            self.held.extend_from_slice(part);
            self.pos += part.len() as u64;
            return self.judge_held(skip + part.len(), proved, out);
        }
        let part = &bytes[..bytes.len().min(header::HEADER_BYTES_MAX)];
        self.held.extend_from_slice(part);
        self.pos += part.len() as u64;
        self.judge_held(part.len(), proved, out)
    }

    /// Judges `held`, whose last `taken` bytes (at most) are new. How many of them are used.
    fn judge_held(&mut self, taken: usize, proved: &mut bool, out: &mut Vec<Parsed>) -> usize {
        loop {
            match header::read(&self.held) {
                Read::NeedMore => return taken,
                Read::Header(header) => {
                    // Its payload is counted off and passed over; `lost` stays until the next header.
                    let unused = self.held.len() - header.len;
                    self.start = self.pos - self.held.len() as u64;
                    self.pos -= unused as u64;
                    let mut rest = std::mem::take(&mut self.held);
                    self.header = Some(header);
                    self.state =
                        if header.payload == 0 { State::Header } else { State::Payload(header.payload) };
                    if unused <= taken {
                        return taken - unused;
                    }
                    // What was held before `bytes` goes beyond this header.
                    rest.truncate(rest.len() - taken);
                    self.feed(&rest[header.len..], proved, out);
                    return 0;
                }
                Read::No => {
                    let skip = 1 + magic_at(&self.held[1..]);
                    self.held.drain(..skip);
                    if self.held.is_empty() {
                        return taken;
                    }
                }
            }
        }
    }

    fn end_message(&mut self, out: &mut Vec<Parsed>) {
        let Some(header) = self.header else { return };
        let kind = match header.kind {
            Kind::Request | Kind::Forward => MessageKind::Request,
            Kind::Reply => MessageKind::Response,
            Kind::Other(_) if self.is_request_direction => MessageKind::OneWay,
            Kind::Other(_) => MessageKind::Push,
        };
        let mut message = Message::new(self.direction, kind, self.start, self.pos);
        message.correlation = Correlation::Id(header.id);
        if let Kind::Other(name) = header.kind {
            message.operation = Cow::Borrowed(name);
        } else {
            self.payload.name(&header, &mut message);
        }
        if header.kind == Kind::Forward {
            message.attributes.push((Cow::Borrowed(FORWARD_ATTRIBUTE), "true".to_owned()));
        }
        if !header.same_dc && kind == MessageKind::Request {
            message.attributes.push((Cow::Borrowed("dprof.dnode.same_dc"), "false".to_owned()));
        }
        if header.is_opaque && kind == MessageKind::Request {
            message.attributes.push((Cow::Borrowed("dprof.dnode.encrypted"), "true".to_owned()));
        }
        out.push(Parsed::Message(message));
    }
}

/// Index of the first byte from which on `bytes` may be the magic, as far as they go.
fn magic_at(bytes: &[u8]) -> usize {
    (0..bytes.len())
        .find(|&at| bytes[at] == MAGIC[0] && MAGIC.starts_with(&bytes[at..bytes.len().min(at + MAGIC.len())]))
        .unwrap_or(bytes.len())
}
