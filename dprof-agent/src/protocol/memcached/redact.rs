//! Masks values in memcached's messages: lines of the text protocol with the data block after them, and packets of
//! the binary one. Names, keys, lengths and what pairs an answer with its request stay.
//!
//! What a reader would get wrong: a connection must be known to speak memcached before its bytes come here. Redis
//! has inline commands of the same names, whose words are values where memcached's are numbers.

use super::binary::{HEADER_BYTES, Header, Stop};
use super::command::{Command, Word, word_of};
use super::first_words::{self, decimal};
use super::requests::{LINE_BYTES_MAX, without_return};
use crate::protocol::capture::KeyCapture;
use crate::protocol::redact::{FILLER, Progress};
use crate::protocol::resp::redact::{Keep, Passing};

/// Stands for a digit of a value: still a number.
const DIGIT: u8 = b'1';

/// Stands for a letter of an unknown command's name: it ends no known one.
const LETTER: u8 = b'x';

/// First words of lines in a reply that detection does not need.
const FURTHER_FIRST_WORDS: [&[u8]; 12] = [
    b"ITEM",
    b"PREFIX",
    b"CONFIG",
    b"RESET",
    b"BUSY",
    b"BADCLASS",
    b"NOSPARE",
    b"NOTFULL",
    b"UNSAFE",
    b"SAME",
    b"ME",
    b"mg",
];

/// Whether a call's bytes start with a line that only memcached understands. Needs the whole line.
pub(in crate::protocol) fn starts_with_a_command(bytes: &[u8]) -> bool {
    let Some(end) = memchr::memchr(b'\n', bytes) else { return false };
    let line = without_return(&bytes[..end]);
    let Some(command) = Command::read(line, KeyCapture::Plain) else { return false };
    // Redis takes one key with these.
    let n_words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty()).count();
    let is_refused_by_redis = match &*command.operation {
        "get" => n_words > 2,
        "incr" | "decr" => true,
        _ => false,
    };
    !command.is_shared_with_redis || is_refused_by_redis
}

/// Whether a call's bytes start with a reply's whole first line.
pub(in crate::protocol) fn starts_with_a_reply(bytes: &[u8]) -> bool {
    memchr::memchr(b'\n', bytes).is_some_and(|end| first_words::is_first_line(without_return(&bytes[..end])))
}

/// Whether a call's bytes start with the header of a packet. Needs all of it.
pub(in crate::protocol) fn starts_with_a_packet(bytes: &[u8]) -> bool {
    Header::read(bytes).is_ok()
}

/// A line that passes by, and its data block.
#[derive(Debug)]
pub(in crate::protocol) struct TextMask {
    /// The line as it came.
    line: Vec<u8>,
    word: Passing,
    kind: Word,
    n_words: usize,
    is_in_word: bool,
    is_reply: bool,
    /// Bytes of the value that follows a reply's line.
    announced: Option<u64>,
    /// In the data block: bytes left of it and its line end.
    left: Option<u64>,
}

impl TextMask {
    /// The next line; `is_reply` if the direction's role is known.
    pub(in crate::protocol) const fn new(is_reply: bool) -> Self {
        Self {
            line: Vec::new(),
            word: Passing::new(Keep::Nothing),
            kind: Word::Other,
            n_words: 0,
            is_in_word: false,
            is_reply,
            announced: None,
            left: None,
        }
    }

    /// Masks bytes up to the end of the message; how many that were.
    pub(in crate::protocol) fn mask(&mut self, bytes: &mut [u8]) -> (usize, Progress) {
        for (idx, byte) in bytes.iter_mut().enumerate() {
            let progress = if self.left.is_some() { self.mask_data(byte) } else { self.mask_line(byte) };
            match progress {
                Progress::More => {}
                Progress::Done => return (idx + 1, Progress::Done),
                Progress::Bad => return (idx, Progress::Bad),
            }
        }
        (bytes.len(), Progress::More)
    }

    /// Some bytes were not seen; how many of them belong to the message.
    pub(in crate::protocol) fn skip(&mut self, len: u64) -> (u64, Progress) {
        let Some(left) = &mut self.left else { return (0, Progress::Bad) };
        let skipped = len.min(*left);
        *left -= skipped;
        (skipped, if *left == 0 { Progress::Done } else { Progress::More })
    }

    fn mask_data(&mut self, byte: &mut u8) -> Progress {
        let Some(left) = &mut self.left else { return Progress::Bad };
        match (*left, *byte) {
            (2, b'\r') | (1, b'\n') => {}
            (1 | 2, _) => return Progress::Bad,
            _ => *byte = FILLER,
        }
        *left -= 1;
        if *left == 0 { Progress::Done } else { Progress::More }
    }

    fn mask_line(&mut self, byte: &mut u8) -> Progress {
        if self.line.len() >= LINE_BYTES_MAX || (*byte < b' ' && !matches!(*byte, b'\r' | b'\n')) {
            return Progress::Bad;
        }
        let came = *byte;
        match came {
            b'\n' => {
                self.end_word();
                return self.end_line();
            }
            b'\r' => {}
            b' ' => self.end_word(),
            _ => {
                if !self.is_in_word {
                    self.begin_word();
                }
                *byte = self.pass(came);
            }
        }
        self.line.push(came);
        Progress::More
    }

    fn name(&self) -> &[u8] {
        self.line.split(|byte| *byte == b' ').find(|word| !word.is_empty()).unwrap_or_default()
    }

    fn begin_word(&mut self) {
        self.is_in_word = true;
        self.kind = match (self.n_words, self.is_reply) {
            (0, _) => Word::Name,
            (at, false) => word_of(self.name(), at),
            (at, true) => word_of_reply(self.name(), at),
        };
        self.word = Passing::new(match self.kind {
            Word::Name | Word::Key | Word::Flag => Keep::All,
            Word::Number | Word::Amount => Keep::Digits,
            Word::Other if self.is_reply => Keep::Words(&[b"object", b"too", b"large"]),
            Word::Other => Keep::Words(&[b"noreply"]),
        });
    }

    fn pass(&mut self, byte: u8) -> u8 {
        let passed = self.word.pass(byte);
        let Some(word) = self.word.whole() else {
            return if matches!(self.kind, Word::Key) { byte } else { FILLER };
        };
        match self.kind {
            Word::Name if self.is_reply => mask_reply_name(word),
            Word::Name => {
                if super::command::begins_a_name(word) {
                    byte
                } else {
                    LETTER
                }
            }
            // A time may be negative.
            Word::Number if word == b"-" => byte,
            Word::Number if word[0] == b'-' && byte.is_ascii_digit() => byte,
            Word::Amount if passed != FILLER => DIGIT,
            Word::Flag => mask_flag(word),
            Word::Key | Word::Number | Word::Amount | Word::Other => passed,
        }
    }

    fn end_word(&mut self) {
        if !std::mem::take(&mut self.is_in_word) {
            return;
        }
        let is_length = match self.name() {
            b"VALUE" | b"CONFIG" => self.n_words == 3,
            b"VA" => self.n_words == 1,
            _ => false,
        };
        if self.is_reply && is_length {
            self.announced = self.word.whole().and_then(decimal);
        }
        self.n_words += 1;
    }

    fn end_line(&mut self) -> Progress {
        let data = if self.is_reply {
            self.announced
        } else {
            Command::read(without_return(&self.line), KeyCapture::Plain).and_then(|command| command.data)
        };
        self.left = data.map(|bytes| bytes.saturating_add(2));
        if self.left.is_some() { Progress::More } else { Progress::Done }
    }
}

/// What a word of a reply's line is.
fn word_of_reply(name: &[u8], at: usize) -> Word {
    match (name, at) {
        (b"VALUE" | b"CONFIG", 1) => Word::Key,
        (b"VALUE" | b"CONFIG", _) | (b"VA", 1) => Word::Number,
        (b"VA" | b"HD" | b"EN" | b"NF" | b"NS" | b"EX", _) => Word::Flag,
        _ => Word::Other,
    }
}

/// The last byte of a reply's first word so far.
fn mask_reply_name(word: &[u8]) -> u8 {
    let last = word[word.len() - 1];
    if decimal(word).is_some() {
        return DIGIT;
    }
    let is_known = first_words::begins_a_first_word(word)
        || FURTHER_FIRST_WORDS.iter().any(|known| known.starts_with(word))
        || b"key=".starts_with(word);
    if is_known { last } else { FILLER }
}

/// The last byte of a meta flag so far: the flag and what pairs an answer stay.
fn mask_flag(word: &[u8]) -> u8 {
    let last = word[word.len() - 1];
    match (word[0], last) {
        (b'O' | b'k', _) => last,
        _ if word.len() == 1 => last,
        (_, b'0'..=b'9') => DIGIT,
        _ => FILLER,
    }
}

/// A packet of the binary protocol that passes by.
#[derive(Debug, Default)]
pub(in crate::protocol) struct PacketMask {
    /// The header as it came.
    held: Vec<u8>,
    header: Option<Header>,
    /// Bytes of the body that passed.
    at: u64,
}

impl PacketMask {
    /// Masks bytes up to the end of the packet; how many that were.
    pub(in crate::protocol) fn mask(&mut self, bytes: &mut [u8]) -> (usize, Progress) {
        for (idx, byte) in bytes.iter_mut().enumerate() {
            match &self.header {
                None => {
                    self.held.push(*byte);
                    match Header::read(&self.held) {
                        Err(Stop::NeedMore) => {}
                        Err(Stop::No) => return (idx, Progress::Bad),
                        Ok(header) => self.header = Some(header),
                    }
                }
                Some(header) => {
                    if !header.keeps(self.at) {
                        *byte = FILLER;
                    }
                    self.at += 1;
                }
            }
            if self.is_over() {
                return (idx + 1, Progress::Done);
            }
        }
        (bytes.len(), Progress::More)
    }

    /// Some bytes were not seen; how many of them belong to the packet.
    pub(in crate::protocol) fn skip(&mut self, len: u64) -> (u64, Progress) {
        let Some(header) = &self.header else { return (0, Progress::Bad) };
        let skipped = len.min(u64::from(header.body) - self.at);
        self.at += skipped;
        (skipped, if self.is_over() { Progress::Done } else { Progress::More })
    }

    fn is_over(&self) -> bool {
        debug_assert!(self.held.len() <= HEADER_BYTES);
        self.header.is_some_and(|header| self.at == u64::from(header.body))
    }
}
