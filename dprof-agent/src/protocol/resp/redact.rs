//! Masks values in RESP bytes while they stream by, so that a parser reads the same messages from what is left:
//! kinds, lengths, command names, keys, status words stay; everything else becomes [`FILLER`] of the same length.
//!
//! What a reader would get wrong: a byte is written before the next one is seen, so a word is kept only as far
//! as it is the beginning of one that may be kept.

use super::command::{self, Command, Effect, NAME_BYTES_MAX, looks_like_a_name};
use super::number::{Number, Step};
use crate::protocol::redact::{FILLER, Progress};

/// First strings of arrays that a parser tells apart.
const PUBLISHED: [&[u8]; 9] = [
    b"subscribe",
    b"psubscribe",
    b"ssubscribe",
    b"unsubscribe",
    b"punsubscribe",
    b"sunsubscribe",
    b"message",
    b"pmessage",
    b"smessage",
];
/// Simple strings that say nothing of the data.
const STATUS: [&[u8]; 8] =
    [b"OK", b"QUEUED", b"PONG", b"RESET", b"NOKEY", b"FULLRESYNC", b"CONTINUE", b"RDBCHANNELSYNC"];
const REPLY_MODES: [&[u8]; 3] = [b"ON", b"OFF", b"SKIP"];
const REPLICATION: [&[u8]; 2] = [b"ACK", b"GETACK"];
const STREAMS: [&[u8]; 2] = [b"STREAMS", b"BLOCK"];

/// First bytes of an argument that are remembered.
const WORD_BYTES_MAX: usize = 40;

/// Which bytes of a string are kept.
#[derive(Clone, Copy, Debug)]
pub(in crate::protocol) enum Keep {
    /// All.
    All,
    /// None.
    Nothing,
    /// As long as they begin one of these words, in any case.
    Words(&'static [&'static [u8]]),
    /// As long as they look like the name of a command.
    Name,
    /// As long as they begin the name of a known command, or a word of publish and subscribe.
    KnownName,
    /// As long as they begin a known subcommand.
    Subcommand(&'static str),
    /// As long as they are digits.
    Digits,
    /// As long as they are one word of capitals and the blank after it.
    Capitals,
    /// A monitored command's time: digits, a dot, and the bracket after them.
    Time,
}

impl Keep {
    /// Whether the last byte of `word` (its first bytes, all of them kept so far) is kept.
    fn keeps(self, word: &[u8]) -> bool {
        let begins = |words: &[&[u8]]| {
            words
                .iter()
                .any(|known| known.get(..word.len()).is_some_and(|known| known.eq_ignore_ascii_case(word)))
        };
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::Words(words) => begins(words),
            Self::Name => looks_like_a_name(word),
            Self::KnownName => command::begins_a_name(None, word) || begins(&PUBLISHED),
            Self::Subcommand(container) => command::begins_a_name(Some(container), word),
            Self::Digits => word.iter().all(u8::is_ascii_digit),
            Self::Capitals => {
                let word = word.strip_suffix(b" ").unwrap_or(word);
                word.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_')
            }
            Self::Time => word.iter().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b' ' | b'[')),
        }
    }
}

/// A string that passes by: what of it was kept.
#[derive(Clone, Debug)]
pub(in crate::protocol) struct Passing {
    keep: Keep,
    /// Its first bytes, as they were.
    word: Vec<u8>,
    len: u64,
    is_kept: bool,
}

impl Passing {
    pub(in crate::protocol) const fn new(keep: Keep) -> Self {
        Self { keep, word: Vec::new(), len: 0, is_kept: true }
    }

    /// The byte to be written for `byte`.
    pub(in crate::protocol) fn pass(&mut self, byte: u8) -> u8 {
        self.len += 1;
        let fits = self.word.len() < WORD_BYTES_MAX;
        if fits {
            self.word.push(byte);
        }
        self.is_kept &= match self.keep {
            Keep::All => true,
            keep => fits && keep.keeps(&self.word),
        };
        if self.is_kept { byte } else { FILLER }
    }

    /// Some bytes were not seen: nothing is known of the rest.
    fn skip(&mut self, len: u64) {
        self.len += len;
        self.keep = Keep::Nothing;
        self.is_kept = false;
    }

    /// The string, if all of it is known.
    pub(in crate::protocol) fn whole(&self) -> Option<&[u8]> {
        (self.len == self.word.len() as u64).then_some(&*self.word)
    }

    /// Whether every byte was kept.
    pub(in crate::protocol) const fn is_kept(&self) -> bool {
        self.is_kept
    }
}

/// What the arguments of a request are, in the order in which they come. Follows `Current` in `request.rs`: an
/// argument is kept where that reads it.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::protocol) struct Args {
    command: Option<&'static Command>,
    len: i64,
    n_keys: i64,
    streams_at: i64,
}

impl Args {
    /// A request of this many arguments; `i64::MAX` if their number is not known before the last.
    pub(in crate::protocol) const fn new(len: i64) -> Self {
        Self { command: None, len, n_keys: 0, streams_at: 0 }
    }

    /// Whether the name is that of a known command.
    pub(in crate::protocol) const fn is_known(&self) -> bool {
        self.command.is_some()
    }

    /// Whether these bytes begin the name of a known command.
    pub(in crate::protocol) fn may_be_a_name(bytes: &[u8]) -> bool {
        command::begins_a_name(None, bytes)
    }

    /// What to keep of argument `arg` (from 1).
    pub(in crate::protocol) fn keep(&self, arg: i64) -> Keep {
        let Some(command) = self.command else { return Keep::Nothing };
        match command.effect {
            Effect::Container if arg == 1 => return Keep::Subcommand(command.name),
            Effect::Reply if arg == 2 => return Keep::Words(&REPLY_MODES),
            Effect::Hello if arg == 1 => return Keep::Digits,
            Effect::Replconf if arg == 1 => return Keep::Words(&REPLICATION),
            _ => {}
        }
        if self.is_key(command, arg) {
            Keep::All
        } else if arg == i64::from(command.keys.count_at) {
            Keep::Digits
        } else if command.keys.streams && self.streams_at == 0 {
            Keep::Words(&STREAMS)
        } else {
            Keep::Nothing
        }
    }

    fn is_key(&self, command: &Command, arg: i64) -> bool {
        let keys = command.keys;
        let first = i64::from(keys.first);
        let last = i64::from(keys.last);
        let last = if last < 0 { self.len.saturating_add(last) } else { last };
        let counted_from = i64::from(keys.count_at);
        (first > 0 && (first..=last).contains(&arg) && (arg - first) % i64::from(keys.step) == 0)
            || (counted_from > 0 && arg > counted_from && arg - counted_from <= self.n_keys)
            || (self.streams_at > 0
                && arg > self.streams_at
                && arg - self.streams_at <= (self.len - 1 - self.streams_at) / 2)
    }

    /// Argument `arg` ended; `content` if all of it is known.
    pub(in crate::protocol) fn end(&mut self, arg: i64, content: Option<&[u8]>) {
        let Some(content) = content else { return };
        if arg == 0 {
            self.command = command::find(content);
            return;
        }
        let Some(command) = self.command else { return };
        if arg == 1 && command.effect == Effect::Container {
            self.command = command::find_subcommand(command, content).or(Some(command));
        }
        if arg == i64::from(command.keys.count_at) {
            self.n_keys = str::from_utf8(content).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        }
        let is_early = command.name == "XREADGROUP" && arg < 4;
        if command.keys.streams
            && self.streams_at == 0
            && content.eq_ignore_ascii_case(b"STREAMS")
            && !is_early
        {
            self.streams_at = arg;
        }
    }
}

/// Who sends the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::protocol) enum Role {
    Requests,
    Replies,
    Unknown,
}

#[derive(Debug)]
enum State {
    /// Before the first byte of a value.
    Kind,
    /// In a length, a count or an integer.
    Number(Number),
    /// In a line.
    Line { text: Passing, is_first_word: bool },
    /// In a bulk string or its line end: this many bytes are left of both.
    Bulk { left: u64, text: Passing },
}

/// One message, from its first byte to its last.
#[derive(Debug)]
pub(in crate::protocol) struct RespMask {
    role: Role,
    state: State,
    kind: u8,
    /// Values owed to the message.
    owed: i64,
    n_values: u64,
    outer: u8,
    args: Args,
    /// Whether the aggregate's first string is a word of publish and subscribe: its numbers matter.
    is_published: bool,
}

/// Values owed at once, at most.
const OWED_MAX: i64 = 1 << 40;

impl RespMask {
    /// Whether a message may start with this byte.
    pub(in crate::protocol) fn may_start(byte: u8) -> bool {
        b"+-:$*_#,(!=%~>|".contains(&byte)
    }

    pub(in crate::protocol) fn new(role: Role) -> Self {
        Self {
            role,
            state: State::Kind,
            kind: 0,
            owed: 1,
            n_values: 0,
            outer: 0,
            args: Args::default(),
            is_published: false,
        }
    }

    /// Masks `bytes` up to the end of the message; how many that were.
    pub(in crate::protocol) fn mask(&mut self, bytes: &mut [u8]) -> (usize, Progress) {
        for (idx, byte) in bytes.iter_mut().enumerate() {
            match self.mask_byte(byte) {
                Progress::More => {}
                Progress::Done => return (idx + 1, Progress::Done),
                Progress::Bad => return (idx, Progress::Bad),
            }
        }
        (bytes.len(), Progress::More)
    }

    /// Like [`RespMask::mask`], up to the end of a request's name: done if that is known, else bad.
    pub(in crate::protocol) fn mask_name(&mut self, bytes: &mut [u8]) -> (usize, Progress) {
        for (idx, byte) in bytes.iter_mut().enumerate() {
            let progress = self.mask_byte(byte);
            if progress == Progress::Bad {
                return (idx, Progress::Bad);
            }
            if self.n_values >= 2 && matches!(self.state, State::Kind) || progress == Progress::Done {
                let is_known = self.is_request() && self.args.is_known();
                return (idx + 1, if is_known { Progress::Done } else { Progress::Bad });
            }
        }
        (bytes.len(), Progress::More)
    }

    /// Whether the message ended.
    pub(in crate::protocol) const fn is_over(&self) -> bool {
        self.owed == 0
    }

    /// `len` bytes were not seen; how many of them the message covers.
    pub(in crate::protocol) fn skip(&mut self, len: u64) -> (u64, Progress) {
        let State::Bulk { left, text } = &mut self.state else { return (0, Progress::Bad) };
        let skipped = len.min(*left);
        text.skip(skipped);
        *left -= skipped;
        if *left > 0 { (skipped, Progress::More) } else { (skipped, self.end_value()) }
    }

    fn mask_byte(&mut self, byte: &mut u8) -> Progress {
        match &mut self.state {
            State::Kind => self.begin_value(*byte),
            State::Number(number) => {
                let step = number.push(*byte);
                if self.kind == b':' && byte.is_ascii_digit() && !self.is_published {
                    *byte = b'1';
                }
                match step {
                    Step::More => Progress::More,
                    Step::Done(value) => self.number(value),
                    Step::Bad => Progress::Bad,
                }
            }
            State::Line { text, is_first_word } => match *byte {
                b'\n' => self.end_value(),
                b'\r' => Progress::More,
                // A status is one word: what follows may be anything.
                b' ' if self.kind == b'-' => {
                    *is_first_word = false;
                    Progress::More
                }
                _ => {
                    let original = *byte;
                    if self.kind == b'+' && text.len == 0 && original.is_ascii_digit() {
                        *text = Passing::new(Keep::Time);
                    }
                    *byte = match self.kind {
                        b'-' if !*is_first_word => FILLER,
                        b',' | b'(' if original.is_ascii_digit() => b'1',
                        b',' | b'(' => original,
                        b'#' => b't',
                        _ => text.pass(original),
                    };
                    Progress::More
                }
            },
            State::Bulk { left, text } => {
                if *left > 2 {
                    *byte = text.pass(*byte);
                } else if *byte != if *left == 2 { b'\r' } else { b'\n' } {
                    return Progress::Bad;
                }
                *left -= 1;
                if *left > 0 { Progress::More } else { self.end_value() }
            }
        }
    }

    fn is_request(&self) -> bool {
        self.outer == b'*' && self.role != Role::Replies
    }

    fn begin_value(&mut self, kind: u8) -> Progress {
        if !Self::may_start(kind) {
            return Progress::Bad;
        }
        self.kind = kind;
        let keep = match kind {
            b':' | b'$' | b'=' | b'!' | b'*' | b'~' | b'>' | b'%' | b'|' => {
                self.state = State::Number(Number::default());
                return Progress::More;
            }
            b'+' => Keep::Words(&STATUS),
            b'-' => Keep::Capitals,
            _ => Keep::All,
        };
        self.count_value();
        self.state = State::Line { text: Passing::new(keep), is_first_word: true };
        Progress::More
    }

    fn count_value(&mut self) {
        if self.n_values == 0 {
            if self.owed > 1 {
                return;
            }
            self.outer = self.kind;
        }
        self.n_values += 1;
    }

    fn number(&mut self, value: i64) -> Progress {
        if self.kind != b'|' {
            self.count_value();
        }
        match self.kind {
            b':' => return self.end_value(),
            b'$' | b'*' if value == -1 => return self.end_value(),
            b'$' | b'=' | b'!' => {
                if !(0..=super::request::BULK_BYTES_MAX).contains(&value) {
                    return Progress::Bad;
                }
                self.state = State::Bulk { left: value as u64 + 2, text: Passing::new(self.keep(value)) };
                return Progress::More;
            }
            _ => {}
        }
        let (per, own) = match self.kind {
            b'%' => (2, 0),
            b'|' => (2, 1),
            _ => (1, 0),
        };
        let Some(owed) = value.checked_mul(per).filter(|owed| (0..=OWED_MAX).contains(owed)) else {
            return Progress::Bad;
        };
        if self.n_values == 1 {
            self.args = Args::new(value);
        } else if self.n_values > 1 {
            // A request is flat.
            self.role = Role::Replies;
        }
        self.owed += owed + own;
        if self.owed > OWED_MAX { Progress::Bad } else { self.end_value() }
    }

    /// What to keep of the bulk string that starts.
    fn keep(&self, len: i64) -> Keep {
        match (self.kind, self.n_values) {
            (b'!', 1) => Keep::Capitals,
            (b'$', 2) if self.is_request() && len <= NAME_BYTES_MAX as i64 => {
                if self.role == Role::Requests {
                    Keep::Name
                } else {
                    Keep::KnownName
                }
            }
            (b'$', 2) => Keep::Words(&PUBLISHED),
            (b'$', n @ 3..) if self.is_request() => self.args.keep(n as i64 - 2),
            _ => Keep::Nothing,
        }
    }

    fn end_value(&mut self) -> Progress {
        if let State::Bulk { text, .. } = &self.state
            && self.n_values >= 2
        {
            let whole = text.whole();
            self.is_published |= self.n_values == 2 && whole.is_some_and(|word| PUBLISHED.contains(&word));
            if self.is_request() {
                let arg = self.n_values as i64 - 2;
                let known = whole.filter(|_| text.is_kept());
                self.args.end(arg, known);
            }
        }
        self.state = State::Kind;
        self.owed -= 1;
        if self.owed == 0 { Progress::Done } else { Progress::More }
    }
}
