//! Masks HTTP/1.1: header values but for a list, bodies, trailers. Lengths and chunk sizes stay.

use super::line::HttpHead;
use super::{Exchange, FILLER, Method, Progress};

/// Headers whose values stay: framing, what spans show, and the ids of other tracers.
const KEPT: [&[u8]; 22] = [
    b"content-length",
    b"transfer-encoding",
    b"connection",
    b"keep-alive",
    b"upgrade",
    b"expect",
    b"host",
    b"content-type",
    b"content-encoding",
    b"user-agent",
    b"server",
    b"date",
    b"traceparent",
    b"b3",
    b"x-b3-traceid",
    b"x-b3-spanid",
    b"x-b3-parentspanid",
    b"x-b3-sampled",
    b"x-b3-flags",
    b"x-request-id",
    b"x-correlation-id",
    b"http2-settings",
];
/// Longest name that is compared.
const NAME_BYTES_MAX: usize = 32;
/// First bytes of a value that are looked at.
const VALUE_BYTES_MAX: usize = 128;

#[derive(Debug)]
enum State {
    /// Before the first byte of a header's line.
    LineStart,
    Name,
    Value,
    /// Bytes of a body that are left.
    Body(u64),
    /// In the line of a chunk's size; whether its digits are over.
    ChunkSize {
        size: u64,
        n_digits: u32,
        is_over: bool,
    },
    /// Bytes of a chunk that are left, its line end not counted.
    Chunk(u64),
    /// In the line end of a chunk.
    ChunkEnd,
    /// In a trailer; how many bytes its line has, and whether they are its value's.
    Trailer {
        len: u64,
        is_value: bool,
    },
    /// A body that ends with the connection.
    Rest,
}

/// One message from its first header on.
#[derive(Debug)]
pub(super) struct HttpMask {
    head: HttpHead,
    state: State,
    name: Vec<u8>,
    value: Vec<u8>,
    is_kept: bool,
    content_length: Option<u64>,
    is_chunked: bool,
}

impl HttpMask {
    pub(super) fn new(head: HttpHead, exchange: &mut Exchange) -> Self {
        if let HttpHead::Request { method } = head {
            exchange.request(method);
        }
        Self {
            head,
            state: State::LineStart,
            name: Vec::new(),
            value: Vec::new(),
            is_kept: false,
            content_length: None,
            is_chunked: false,
        }
    }

    /// Masks `bytes` up to the end of the message; how many that were.
    pub(super) fn mask(&mut self, bytes: &mut [u8], exchange: &mut Exchange) -> (usize, Progress) {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &mut bytes[at..];
            let (n, progress) = match &mut self.state {
                State::Body(left) | State::Chunk(left) => {
                    let n = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    rest[..n].fill(FILLER);
                    *left -= n as u64;
                    (n, self.body_progress())
                }
                State::Rest => {
                    rest.fill(FILLER);
                    (rest.len(), Progress::More)
                }
                _ => (1, self.mask_byte(&mut rest[0], exchange)),
            };
            at += n;
            match progress {
                Progress::More => {}
                Progress::Done => return (at, Progress::Done),
                Progress::Bad => return (at - n, Progress::Bad),
            }
        }
        (at, Progress::More)
    }

    /// `len` bytes were not seen; how many of them the message covers.
    pub(super) fn skip(&mut self, len: u64, _exchange: &mut Exchange) -> (u64, Progress) {
        match &mut self.state {
            State::Body(left) | State::Chunk(left) => {
                let skipped = len.min(*left);
                *left -= skipped;
                (skipped, self.body_progress())
            }
            State::Rest => (len, Progress::More),
            _ => (0, Progress::Bad),
        }
    }

    fn body_progress(&mut self) -> Progress {
        match self.state {
            State::Body(0) => Progress::Done,
            State::Chunk(0) => {
                self.state = State::ChunkEnd;
                Progress::More
            }
            _ => Progress::More,
        }
    }

    fn mask_byte(&mut self, byte: &mut u8, exchange: &mut Exchange) -> Progress {
        match &mut self.state {
            State::LineStart => match *byte {
                b'\r' => {}
                b'\n' => {
                    self.end_header();
                    return self.end_head(exchange);
                }
                // A folded line goes on with the last value.
                b' ' | b'\t' => self.state = State::Value,
                _ => {
                    self.end_header();
                    self.name.push(*byte);
                    self.state = State::Name;
                }
            },
            State::Name => match *byte {
                b'\n' => self.state = State::LineStart,
                b':' => {
                    self.is_kept = KEPT.iter().any(|kept| kept.eq_ignore_ascii_case(&self.name));
                    self.state = State::Value;
                }
                _ if self.name.len() < NAME_BYTES_MAX => self.name.push(*byte),
                // Too long for a name that matters, and maybe none.
                _ => *byte = FILLER,
            },
            State::Value => match *byte {
                b'\n' => self.state = State::LineStart,
                b'\r' => {}
                _ => {
                    if self.value.len() < VALUE_BYTES_MAX {
                        self.value.push(*byte);
                    }
                    // Blanks around a value are no value, and a parser may trim them.
                    if !self.is_kept && !matches!(*byte, b' ' | b'\t') {
                        *byte = FILLER;
                    }
                }
            },
            State::ChunkSize { size, n_digits, is_over } => match *byte {
                b'\n' if *n_digits == 0 => return Progress::Bad,
                b'\n' => {
                    self.state = if *size == 0 {
                        State::Trailer { len: 0, is_value: false }
                    } else {
                        State::Chunk(*size)
                    }
                }
                b'\r' => {}
                _ if !*is_over && byte.is_ascii_hexdigit() && *n_digits < 15 => {
                    *size = (*size << 4) | u64::from(char::from(*byte).to_digit(16).unwrap_or(0));
                    *n_digits += 1;
                }
                b';' | b' ' | b'\t' if *n_digits > 0 => *is_over = true,
                _ if *is_over => *byte = FILLER,
                _ => return Progress::Bad,
            },
            State::ChunkEnd => match *byte {
                b'\r' => {}
                b'\n' => self.state = State::ChunkSize { size: 0, n_digits: 0, is_over: false },
                _ => return Progress::Bad,
            },
            State::Trailer { len, is_value } => match *byte {
                b'\n' if *len == 0 => return Progress::Done,
                b'\n' => (*len, *is_value) = (0, false),
                b'\r' => {}
                _ => {
                    *len += 1;
                    if *is_value {
                        *byte = FILLER;
                    }
                    *is_value |= *byte == b':';
                }
            },
            State::Body(_) | State::Chunk(_) | State::Rest => *byte = FILLER,
        }
        Progress::More
    }

    fn end_header(&mut self) {
        let value = self.value.trim_ascii();
        if self.name.eq_ignore_ascii_case(b"content-length") {
            // The same number may be said twice.
            let value = value.split(|byte| *byte == b',').next().unwrap_or_default().trim_ascii();
            self.content_length = str::from_utf8(value).ok().and_then(|value| value.parse().ok());
        } else if self.name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.is_chunked |= value.to_ascii_lowercase().ends_with(b"chunked");
        }
        self.name.clear();
        self.value.clear();
    }

    /// RFC 9112, section 6.3: how long the body is.
    fn end_head(&mut self, exchange: &mut Exchange) -> Progress {
        match self.head {
            HttpHead::Request { .. } => {
                if !self.is_chunked && self.content_length.is_none() {
                    return Progress::Done;
                }
            }
            HttpHead::Response { status: 101 } => {
                exchange.is_opaque = true;
                return Progress::Done;
            }
            HttpHead::Response { status: 100..=199 } => return Progress::Done,
            HttpHead::Response { status } => {
                let answered = exchange.response();
                exchange.is_opaque |= answered == Method::Connect && (200..300).contains(&status);
                if answered == Method::Head || exchange.is_opaque || matches!(status, 204 | 304) {
                    return Progress::Done;
                }
            }
        }
        self.state = if self.is_chunked {
            State::ChunkSize { size: 0, n_digits: 0, is_over: false }
        } else {
            match self.content_length {
                Some(0) => return Progress::Done,
                Some(length) => State::Body(length),
                None => State::Rest,
            }
        };
        Progress::More
    }
}
