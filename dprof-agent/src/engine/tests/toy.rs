//! A protocol for tests: kind, optional `#id`, length, `:`, body. `Q3:get` asks, `A2:ok` answers.
//!
//! Kinds: `Q` request, `O` one-way, `A` answer, `E` failure, `P` push, `U` switch to another protocol after this
//! message, `Z` no messages after this one, `M` detection was mistaken. The operation is the body; a body
//! `trace=HEX` carries a trace id.

use std::borrow::Cow;
use std::hash::BuildHasher;

use crate::protocol::{
    Correlation, Detected, Direction, Head, Message, MessageKind, Parsed, Parser, Protocol, Verdict,
};

/// A header longer than this is garbage.
const HEADER_MAX: usize = 32;

pub(super) struct Toy;

pub(super) static PROTOCOLS: &[&dyn Protocol] = &[&Toy];

impl Protocol for Toy {
    fn name(&self) -> &'static str {
        "toy"
    }

    fn ports(&self) -> &'static [u16] {
        &[6379]
    }

    fn detect(&self, head: &Head<'_>) -> Detected {
        for direction in [Direction::Out, Direction::In] {
            let bytes = head.bytes[direction.idx()];
            let [kind, next, ..] = bytes else {
                if bytes.is_empty() {
                    continue;
                }
                return Detected { verdict: Verdict::NeedMore, request_direction: None };
            };
            if !next.is_ascii_digit() && *next != b'#' {
                return Detected { verdict: Verdict::No, request_direction: None };
            }
            let request_direction = match kind {
                b'Q' | b'O' | b'U' | b'Z' | b'M' => direction,
                b'A' | b'E' | b'P' => direction.reverse(),
                _ => return Detected { verdict: Verdict::No, request_direction: None },
            };
            return Detected { verdict: Verdict::Yes, request_direction: Some(request_direction) };
        }
        Detected { verdict: Verdict::NeedMore, request_direction: None }
    }

    fn parser(&self, request_direction: Direction, start: [u64; 2], joined: bool) -> Box<dyn Parser> {
        let half =
            |start| Half { pos: start, message: start, seeking: joined, whole: true, ..Half::default() };
        Box::new(ToyParser { request_direction, halves: [half(start[0]), half(start[1])] })
    }
}

#[derive(Default)]
struct Half {
    pos: u64,
    /// Start of the unfinished message.
    message: u64,
    header: Vec<u8>,
    body: Vec<u8>,
    body_left: u64,
    incomplete: bool,
    /// Every byte of the body was seen and kept.
    whole: bool,
    seeking: bool,
}

struct ToyParser {
    request_direction: Direction,
    halves: [Half; 2],
}

/// Kind, correlation, length.
fn header(bytes: &[u8]) -> Option<(u8, Correlation, u64)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let kind = *bytes.first().filter(|kind| b"QOAEPUZM".contains(kind))?;
    let rest = text.get(1..)?;
    let (id, length) = match rest.strip_prefix('#') {
        Some(rest) => {
            let (id, length) = rest.split_once(',')?;
            (Correlation::Id(id.parse().ok()?), length)
        }
        None => (Correlation::Fifo, rest),
    };
    Some((kind, id, length.parse().ok().filter(|length| *length < 1 << 40)?))
}

impl ToyParser {
    fn finish(&mut self, direction: Direction, out: &mut Vec<Parsed>) {
        let half = &mut self.halves[direction.idx()];
        let bytes = std::mem::take(&mut half.header);
        let (kind, correlation, _) = header(&bytes).expect("was read before");
        let message_kind = match kind {
            b'A' | b'E' => MessageKind::Response,
            b'P' => MessageKind::Push,
            b'O' => MessageKind::OneWay,
            _ => MessageKind::Request,
        };
        let body = String::from_utf8_lossy(&std::mem::take(&mut half.body)).into_owned();
        let mut message = Message::new(direction, message_kind, half.message, half.pos);
        message.correlation = correlation;
        message.is_error = kind == b'E';
        message.content_hash = half.whole.then(|| rustc_hash::FxBuildHasher.hash_one(&body));
        message.incomplete = half.incomplete;
        message.explicit_id =
            body.strip_prefix("trace=").and_then(|id| u128::from_str_radix(id, 16).ok()).map(|id| (id, 1));
        if kind == b'E' {
            message.status_code = Cow::Owned(body);
        } else if matches!(message_kind, MessageKind::Request | MessageKind::OneWay) {
            message.operation = Cow::Owned(body.clone());
            message.text = body;
        }
        half.message = half.pos;
        half.incomplete = false;
        half.whole = true;
        out.push(Parsed::Message(message));
        let at = [self.halves[0].pos, self.halves[1].pos];
        match kind {
            b'U' => out.push(Parsed::Switch { at }),
            b'Z' => out.push(Parsed::Opaque { at }),
            b'M' => out.push(Parsed::Mistaken),
            _ => {}
        }
    }

    fn lose(&mut self, direction: Direction, out: &mut Vec<Parsed>) {
        let half = &mut self.halves[direction.idx()];
        half.header.clear();
        half.body.clear();
        half.incomplete = true;
        if !std::mem::replace(&mut half.seeking, true) {
            out.push(Parsed::Lost { direction, at: half.pos });
        }
    }
}

impl Parser for ToyParser {
    fn feed(&mut self, direction: Direction, pos: u64, bytes: &[u8], out: &mut Vec<Parsed>) {
        assert_eq!(self.halves[direction.idx()].pos, pos, "{direction:?} does not continue");
        let end = pos + bytes.len() as u64;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let half = &mut self.halves[direction.idx()];
            if half.body_left > 0 {
                let n = (bytes.len() as u64).min(half.body_left);
                let room = 64_usize.saturating_sub(half.body.len());
                half.body.extend_from_slice(&bytes[..(n as usize).min(room)]);
                half.whole &= n as usize <= room;
                half.body_left -= n;
                half.pos += n;
                bytes = &bytes[n as usize..];
                if half.body_left == 0 {
                    self.finish(direction, out);
                }
                continue;
            }
            if half.header.is_empty() {
                half.message = half.pos;
            }
            let byte = bytes[0];
            bytes = &bytes[1..];
            half.pos += 1;
            if byte == b':' {
                if let Some((_, _, length)) = header(&half.header) {
                    half.seeking = false;
                    half.body_left = length;
                    if length == 0 {
                        self.finish(direction, out);
                    }
                    continue;
                }
            } else if half.header.len() < HEADER_MAX
                && (!half.header.is_empty() || b"QOAEPUZM".contains(&byte))
            {
                half.header.push(byte);
                continue;
            }
            // Not a header: the next call may begin one.
            half.pos = end;
            self.lose(direction, out);
            return;
        }
    }

    fn gap(&mut self, direction: Direction, pos: u64, len: u64, out: &mut Vec<Parsed>) {
        let half = &mut self.halves[direction.idx()];
        assert_eq!(half.pos, pos, "{direction:?} does not continue");
        if half.body_left >= len {
            half.body_left -= len;
            half.pos += len;
            half.whole = false;
            if half.body_left == 0 {
                self.finish(direction, out);
            }
        } else {
            half.body_left = 0;
            half.pos += len;
            self.lose(direction, out);
        }
    }

    fn end(&mut self, _direction: Direction, _pos: u64, _out: &mut Vec<Parsed>) {}

    fn unfinished_from(&self, direction: Direction) -> u64 {
        let half = &self.halves[direction.idx()];
        if half.header.is_empty() { half.pos } else { half.message }
    }

    fn payload_limit(&self, direction: Direction) -> u32 {
        if direction == self.request_direction { 1000 } else { 100 }
    }
}
