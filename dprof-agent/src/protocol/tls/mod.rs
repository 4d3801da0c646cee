//! TLS: recognised, and its handshake read; what follows is encrypted. The handshake is one RPC, and from there on
//! the connection is cut by changes of direction.
//!
//! What a reader would get wrong: nothing here decrypts. The handshake's span ends with the server's first flight;
//! what the client finishes it with usually travels with its first request and counts to that.

mod hello;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use super::{Attributes, Detected, Direction, Head, Message, MessageKind, Parsed, Parser, Protocol, Verdict};

/// Name as stored.
pub(crate) const NAME: &str = "tls";

/// Operation of what is exchanged after the handshake.
pub(crate) const EXCHANGE: &str = "TLS exchange";

/// The protocol.
#[derive(Debug)]
pub(super) struct Tls;

/// Whether a call's bytes start with a client's hello: a connection that becomes TLS (StartTLS) does so with one.
pub(crate) fn starts_with_hello(bytes: &[u8]) -> bool {
    hello::handshake_kind(bytes) == Some(1)
}

impl Protocol for Tls {
    fn name(&self) -> &'static str {
        NAME
    }

    fn ports(&self) -> &'static [u16] {
        &[443, 465, 636, 853, 990, 992, 993, 995, 6443, 8443]
    }

    fn detect(&self, head: &Head<'_>) -> Detected {
        let detected = |verdict, request_direction| Detected { verdict, request_direction };
        let is_undecided = |bytes: &[u8]| bytes.len() <= hello::RECORD_BYTES && hello::may_be_record(bytes);
        let is_other = |bytes: &[u8]| !is_undecided(bytes) && hello::handshake_kind(bytes) != Some(1);
        if head.is_within_dnode() || (!head.joined && head.bytes.into_iter().any(is_other)) {
            return detected(Verdict::No, None);
        }
        for direction in [Direction::Out, Direction::In] {
            let bytes = head.bytes[direction.idx()];
            match hello::handshake_kind(bytes) {
                Some(1) => return detected(Verdict::Yes, Some(direction)),
                Some(2) if head.joined => return detected(Verdict::Yes, Some(direction.reverse())),
                _ => {}
            }
            // A handshake's first byte says which side speaks.
            let is_open = bytes.len() == hello::RECORD_BYTES && bytes[0] == hello::HANDSHAKE;
            if head.joined && !is_open && hello::record(bytes).is_some() {
                // In the middle of a connection: the well-known or lower port is the server's.
                let [local, peer] = head.ports;
                let by_port = if local < peer { Direction::In } else { Direction::Out };
                return detected(Verdict::Yes, Some(head.request_direction.unwrap_or(by_port)));
            }
        }
        detected(Verdict::NeedMore, None)
    }

    fn parser(&self, request_direction: Direction, start: [u64; 2], joined: bool) -> Box<dyn Parser> {
        Box::new(TlsParser {
            request_direction,
            pos: start,
            start,
            stage: if joined { Stage::Joined } else { Stage::ClientHello },
            hello: Vec::new(),
            attributes: Vec::new(),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing of the handshake was seen.
    Joined,
    /// The client's first flight.
    ClientHello,
    /// The server's.
    ServerHello,
    /// Nothing more is said.
    Over,
}

/// The handshake of a connection.
#[derive(Debug)]
struct TlsParser {
    request_direction: Direction,
    pos: [u64; 2],
    start: [u64; 2],
    stage: Stage,
    /// First bytes of the flight under way.
    hello: Vec<u8>,
    attributes: Attributes,
}

impl TlsParser {
    /// `len` bytes of `direction`, of which the first `bytes` were seen.
    fn advance(&mut self, direction: Direction, len: u64, bytes: &[u8], out: &mut Vec<Parsed>) {
        let is_request = direction == self.request_direction;
        match (self.stage, is_request) {
            (Stage::ClientHello, false) => {
                // A server that speaks first: nothing to wait for.
                let has_hello =
                    self.pos[self.request_direction.idx()] > self.start[self.request_direction.idx()];
                if has_hello {
                    self.end_request(out);
                    self.stage = Stage::ServerHello;
                } else {
                    self.encrypted(out);
                }
            }
            (Stage::ServerHello, true) => {
                self.end_response(out);
                self.encrypted(out);
            }
            (Stage::Joined, _) => self.encrypted(out),
            _ => {}
        }
        if self.stage != Stage::Over {
            let room = hello::HELLO_BYTES_MAX - self.hello.len();
            self.hello.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
        self.pos[direction.idx()] += len;
    }

    fn end_request(&mut self, out: &mut Vec<Parsed>) {
        let direction = self.request_direction;
        let d = direction.idx();
        let mut message = Message::new(direction, MessageKind::Request, self.start[d], self.pos[d]);
        message.operation = Cow::Borrowed("TLS handshake");
        if let Some(hello) = hello::client(&self.hello) {
            let name = hello.server_name.map(|name| (Cow::Borrowed("tls.client.server_name"), name));
            self.attributes.extend(name);
            if !hello.alpn.is_empty() {
                self.attributes.push((Cow::Borrowed("dprof.tls.alpn_offered"), hello.alpn.join(",")));
            }
        }
        message.attributes.clone_from(&self.attributes);
        out.push(Parsed::Message(message));
        self.hello.clear();
    }

    fn end_response(&mut self, out: &mut Vec<Parsed>) {
        let direction = self.request_direction.reverse();
        let d = direction.idx();
        let mut message = Message::new(direction, MessageKind::Response, self.start[d], self.pos[d]);
        if let Some(hello) = hello::server(&self.hello) {
            let version = (!hello.version.is_empty()).then(|| hello.version.to_owned());
            let named = [("tls.protocol.version", version), ("tls.next_protocol", hello.alpn)];
            for (name, value) in named {
                message.attributes.extend(value.map(|value| (Cow::Borrowed(name), value)));
            }
            self.attributes.extend_from_slice(&message.attributes);
            message.is_error = hello.alert.is_some();
            if let Some(alert) = hello.alert {
                message.status_code = Cow::Owned(format!("alert {alert}"));
            }
        }
        out.push(Parsed::Message(message));
    }

    /// From here on nothing can be read.
    fn encrypted(&mut self, out: &mut Vec<Parsed>) {
        let attributes = std::mem::take(&mut self.attributes);
        out.push(Parsed::Encrypted { at: self.pos, request_direction: self.request_direction, attributes });
        self.stage = Stage::Over;
        self.hello = Vec::new();
    }
}

impl Parser for TlsParser {
    fn feed(&mut self, direction: Direction, _pos: u64, bytes: &[u8], out: &mut Vec<Parsed>) {
        if !bytes.is_empty() && self.stage != Stage::Over {
            self.advance(direction, bytes.len() as u64, bytes, out);
        }
    }

    fn gap(&mut self, direction: Direction, _pos: u64, len: u64, out: &mut Vec<Parsed>) {
        if len > 0 && self.stage != Stage::Over {
            self.advance(direction, len, &[], out);
        }
    }

    fn end(&mut self, direction: Direction, _pos: u64, out: &mut Vec<Parsed>) {
        let is_request = direction == self.request_direction;
        let d = direction.idx();
        match self.stage {
            Stage::ServerHello if !is_request => {
                self.end_response(out);
                self.stage = Stage::Over;
            }
            Stage::ClientHello if is_request && self.pos[d] > self.start[d] => {
                self.end_request(out);
                self.stage = Stage::Over;
            }
            _ => {}
        }
    }

    fn unfinished_from(&self, direction: Direction) -> u64 {
        let is_request = direction == self.request_direction;
        match self.stage {
            Stage::ClientHello if is_request => self.start[direction.idx()],
            Stage::ServerHello if !is_request => self.start[direction.idx()],
            _ => self.pos[direction.idx()],
        }
    }

    fn payload_limit(&self, _direction: Direction) -> u32 {
        match self.stage {
            Stage::Joined | Stage::Over => 0,
            Stage::ClientHello | Stage::ServerHello => hello::HELLO_BYTES_MAX as u32,
        }
    }
}
