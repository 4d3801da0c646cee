//! The first line of a message that starts with a letter: an HTTP request, an HTTP response or an inline command
//! of Redis. `GET /a` may still be either, so all are followed at once.

use super::target::TargetMask;
use super::{Method, UNKNOWN_FILLER};
use crate::protocol::resp::redact::{Args, Keep, Passing};

/// Methods of HTTP that are known here; of another one's message everything is masked.
const METHODS: [&[u8]; 21] = [
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"CONNECT",
    b"OPTIONS",
    b"TRACE",
    b"PATCH",
    b"PROPFIND",
    b"PROPPATCH",
    b"MKCOL",
    b"REPORT",
    b"PURGE",
    b"COPY",
    b"MOVE",
    b"LOCK",
    b"UNLOCK",
    b"SEARCH",
    b"M-SEARCH",
    b"QUERY",
];
const VERSIONS: [&[u8]; 2] = [b"HTTP/1.0", b"HTTP/1.1"];
/// An inline command or a request line that is longer is masked from there on.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// What an HTTP message's first line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HttpHead {
    Request { method: Method },
    Response { status: u16 },
}

/// How the line ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    More,
    /// It was an inline command.
    Command,
    /// It is nothing known.
    Unknown,
    /// A message of HTTP starts.
    Http(HttpHead),
}

/// A line that passes by.
#[derive(Debug)]
pub(super) struct LineMask {
    /// The word under way.
    text: Passing,
    n_words: i64,
    len: usize,
    is_in_word: bool,
    quote: Option<u8>,
    is_escaped: bool,
    target: TargetMask,
    args: Args,
    method: Option<&'static [u8]>,
    is_response: bool,
    status: u16,
    /// The last word was HTTP's version.
    has_version: bool,
}

impl Default for LineMask {
    fn default() -> Self {
        Self {
            text: Passing::new(Keep::Nothing),
            n_words: 0,
            len: 0,
            is_in_word: false,
            quote: None,
            is_escaped: false,
            target: TargetMask::default(),
            args: Args::new(i64::MAX),
            method: None,
            is_response: false,
            status: 0,
            has_version: false,
        }
    }
}

impl LineMask {
    /// Masks `bytes` up to the end of the line; how many that were.
    pub(super) fn mask(&mut self, bytes: &mut [u8]) -> (usize, Outcome) {
        for idx in 0..bytes.len() {
            if self.method.is_some() && self.n_words == 1 {
                self.target.look_ahead(&bytes[idx..]);
            }
            match self.mask_byte(&mut bytes[idx]) {
                Outcome::More => {}
                outcome => return (idx + 1, outcome),
            }
        }
        (bytes.len(), Outcome::More)
    }

    fn mask_byte(&mut self, byte: &mut u8) -> Outcome {
        self.len += 1;
        if *byte == b'\n' {
            if self.is_in_word {
                self.end_word();
            }
            return self.end();
        }
        if *byte != b'\r' && self.quote.is_none() && byte.is_ascii_whitespace() {
            if self.is_in_word {
                self.end_word();
            }
        } else if *byte != b'\r' {
            if !self.is_in_word {
                self.begin_word();
            }
            *byte = self.pass(*byte);
        }
        if self.len > LINE_BYTES_MAX
            || (self.n_words == 0 && self.is_in_word && !self.first_word_may_be_known())
        {
            *byte = UNKNOWN_FILLER;
            return Outcome::Unknown;
        }
        Outcome::More
    }

    fn begin_word(&mut self) {
        self.is_in_word = true;
        self.text = Passing::new(match self.n_words {
            0 => Keep::All,
            _ if self.is_response => {
                if self.n_words == 1 {
                    Keep::Digits
                } else {
                    Keep::Nothing
                }
            }
            1 if self.method.is_some() => Keep::All,
            2 if self.method.is_some() => Keep::Words(&VERSIONS),
            arg if self.args.is_known() => self.args.keep(arg),
            _ => Keep::Nothing,
        });
    }

    fn pass(&mut self, byte: u8) -> u8 {
        if self.n_words > 0 {
            // Quotes and escapes are structure: without them words would be others.
            if std::mem::take(&mut self.is_escaped) {
                return self.text.pass(byte);
            }
            match (self.quote, byte) {
                (Some(_), b'\\') => {
                    self.is_escaped = true;
                    return byte;
                }
                (Some(open), _) if open == byte => {
                    self.quote = None;
                    return byte;
                }
                (None, b'"' | b'\'') if self.method.is_none() => {
                    self.quote = Some(byte);
                    return byte;
                }
                _ => {}
            }
        }
        let passed = self.text.pass(byte);
        if self.n_words == 1 && self.method.is_some() { self.target.pass(byte) } else { passed }
    }

    fn first_word_may_be_known(&self) -> bool {
        let Some(word) = self.text.whole() else { return false };
        let begins = |known: &[u8]| known.starts_with(word);
        METHODS.into_iter().any(begins) || VERSIONS.into_iter().any(begins) || Args::may_be_a_name(word)
    }

    fn end_word(&mut self) {
        self.is_in_word = false;
        let word = self.text.whole().filter(|_| self.text.is_kept()).unwrap_or_default();
        if self.n_words == 0 {
            self.method = METHODS.into_iter().find(|method| *method == word);
            self.is_response = VERSIONS.contains(&word);
        } else if self.n_words == 1 && self.is_response {
            self.status = str::from_utf8(word).ok().and_then(|word| word.parse().ok()).unwrap_or(0);
        }
        self.has_version = self.n_words == 2 && VERSIONS.contains(&word);
        self.args.end(self.n_words, Some(word));
        self.n_words += 1;
    }

    fn end(&self) -> Outcome {
        if self.is_response {
            return if (100..1000).contains(&self.status) {
                Outcome::Http(HttpHead::Response { status: self.status })
            } else {
                Outcome::Unknown
            };
        }
        if let Some(method) = self.method.filter(|_| self.has_version && self.n_words == 3) {
            let method = match method {
                b"HEAD" => Method::Head,
                b"CONNECT" => Method::Connect,
                _ => Method::Other,
            };
            return Outcome::Http(HttpHead::Request { method });
        }
        if self.args.is_known() { Outcome::Command } else { Outcome::Unknown }
    }
}
