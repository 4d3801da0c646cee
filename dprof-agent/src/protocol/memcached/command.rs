//! A text command's line → what it is: operation, statement, keys, hash, and what follows it.
//!
//! What a reader would get wrong: `noreply` and the meta flag `q` are not the same. The first promises silence, the
//! second only drops the unremarkable answer.

use std::borrow::Cow;

use crate::protocol::KeyRanges;
use crate::protocol::capture::KeyCapture;
use crate::protocol::hash::{ContentHasher, content_hash_of};
use crate::protocol::text::Statement;

/// Longest key that memcached takes, bytes.
const KEY_BYTES_MAX: usize = 250;

/// Largest value, bytes. memcached's own limit (`-I`) is 1 GiB; what claims more is garbage.
pub(super) const VALUE_BYTES_MAX: u64 = 1 << 30;

/// What can answer a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// `VALUE … END`.
    Get,
    /// One line of a storage command.
    Store,
    /// One line, or a number.
    Line,
    /// Lines up to `END`, or one line.
    Report,
    /// Two letters: `mg`, which is silent on a miss when quiet.
    MetaGet,
    /// Two letters: others, silent on success when quiet.
    Meta,
    /// `MN`.
    MetaNoop,
    /// `OK`, then log lines without end.
    Watch,
}

/// How a command is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Always.
    Always,
    /// Only with what is remarkable (meta flag `q`).
    Quiet,
    /// Never.
    Never,
}

/// A command as its line says.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) operation: Cow<'static, str>,
    pub(super) class: Class,
    pub(super) reply: Reply,
    /// Bytes of the data block that follows, without its line end.
    pub(super) data: Option<u64>,
    pub(super) text: String,
    pub(super) keys: KeyRanges,
    /// Of everything but the name.
    pub(super) hasher: ContentHasher,
    /// Hashes of the keys of a multi-get.
    pub(super) parts: Vec<u64>,
    /// What the answer repeats: opaque or key. 0 = nothing.
    pub(super) token: u64,
    /// Whether the name is one that Redis has too.
    pub(super) is_shared_with_redis: bool,
    /// How keys are kept.
    capture: KeyCapture,
}

/// How the words of a command lie.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Keys from this word on.
    Keys(usize),
    /// Key, flags, exptime, bytes, and this many more words, then `noreply`.
    Store(usize),
    /// Key, this many to that many words, then `noreply`.
    Key(usize, usize),
    /// Up to this many words, then `noreply`.
    Words(usize),
    /// Any words.
    Any,
    /// Key and flags.
    Meta,
    /// Key, data length, flags.
    MetaStore,
    /// Nothing.
    Alone,
}

/// Name, shape, what answers it, whether Redis has a command of this name.
const COMMANDS: [(&str, Shape, Class, bool); 31] = [
    ("get", Shape::Keys(1), Class::Get, true),
    ("gets", Shape::Keys(1), Class::Get, false),
    ("gat", Shape::Keys(2), Class::Get, false),
    ("gats", Shape::Keys(2), Class::Get, false),
    ("set", Shape::Store(0), Class::Store, false),
    ("add", Shape::Store(0), Class::Store, false),
    ("replace", Shape::Store(0), Class::Store, false),
    ("append", Shape::Store(0), Class::Store, false),
    ("prepend", Shape::Store(0), Class::Store, false),
    ("cas", Shape::Store(1), Class::Store, false),
    ("delete", Shape::Key(0, 1), Class::Line, false),
    ("incr", Shape::Key(1, 1), Class::Line, true),
    ("decr", Shape::Key(1, 1), Class::Line, true),
    ("touch", Shape::Key(1, 1), Class::Line, true),
    ("flush_all", Shape::Words(1), Class::Line, false),
    ("verbosity", Shape::Words(1), Class::Line, false),
    ("cache_memlimit", Shape::Words(1), Class::Line, false),
    ("version", Shape::Alone, Class::Line, false),
    ("stats", Shape::Any, Class::Report, false),
    ("quit", Shape::Alone, Class::Line, true),
    ("shutdown", Shape::Words(1), Class::Line, true),
    ("watch", Shape::Any, Class::Watch, true),
    ("lru_crawler", Shape::Any, Class::Report, false),
    ("slabs", Shape::Any, Class::Line, false),
    ("lru", Shape::Any, Class::Line, false),
    ("mg", Shape::Meta, Class::MetaGet, false),
    ("ms", Shape::MetaStore, Class::Meta, false),
    ("md", Shape::Meta, Class::Meta, false),
    ("ma", Shape::Meta, Class::Meta, false),
    ("me", Shape::Meta, Class::Meta, false),
    ("mn", Shape::Alone, Class::MetaNoop, false),
];

/// What a word of a line is, for masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// The first: what is asked or answered.
    Name,
    Key,
    /// Length, flags, time, unique number of `cas`.
    Number,
    /// A number that is a value.
    Amount,
    /// A meta flag.
    Flag,
    /// Anything else.
    Other,
}

/// What word `at` (from 1) of the command of this name is.
pub(super) fn word_of(name: &[u8], at: usize) -> Word {
    let Some(&(name, shape, ..)) = COMMANDS.iter().find(|(known, ..)| known.as_bytes() == name) else {
        return Word::Other;
    };
    match shape {
        Shape::Keys(first) if at < first => Word::Number,
        Shape::Keys(_) => Word::Key,
        Shape::Store(_) | Shape::Key(..) | Shape::Meta | Shape::MetaStore if at == 1 => Word::Key,
        Shape::Store(more) if at <= 4 + more => Word::Number,
        Shape::Key(_, most) if at <= 1 + most && matches!(name, "incr" | "decr") => Word::Amount,
        // `delete` may have one, or `noreply`.
        Shape::Key(least, _) if at <= 1 + least => Word::Number,
        Shape::MetaStore if at == 2 => Word::Number,
        Shape::Meta | Shape::MetaStore => Word::Flag,
        Shape::Store(_) | Shape::Key(..) | Shape::Words(_) | Shape::Any | Shape::Alone => Word::Other,
    }
}

/// Whether this is a command's name.
pub(super) fn is_a_name(bytes: &[u8]) -> bool {
    COMMANDS.iter().any(|(name, ..)| name.as_bytes() == bytes)
}

/// Whether a name begins with these bytes.
pub(super) fn begins_a_name(bytes: &[u8]) -> bool {
    COMMANDS.iter().any(|(name, ..)| name.as_bytes().starts_with(bytes))
}

fn number(word: &[u8]) -> Option<u64> {
    let is_number = !word.is_empty() && word.len() <= 20 && word.iter().all(u8::is_ascii_digit);
    str::from_utf8(word).ok().filter(|_| is_number)?.parse().ok()
}

fn is_key(word: &[u8]) -> bool {
    !word.is_empty() && word.len() <= KEY_BYTES_MAX && word.iter().all(|byte| *byte > b' ' && *byte != 0x7f)
}

impl Command {
    /// Reads a line without its end. `None`: memcached would not take it.
    pub(super) fn read(line: &[u8], keys: KeyCapture) -> Option<Self> {
        let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let name = words.next()?;
        let &(name, shape, class, is_shared_with_redis) =
            COMMANDS.iter().find(|(known, ..)| known.as_bytes() == name)?;
        let mut statement = Statement::default();
        statement.begin(name);
        let mut command = Self {
            operation: Cow::Borrowed(name),
            class,
            reply: if matches!(name, "quit" | "shutdown") { Reply::Never } else { Reply::Always },
            data: None,
            text: String::new(),
            keys: KeyRanges::NONE,
            hasher: ContentHasher::new(),
            parts: Vec::new(),
            token: 0,
            is_shared_with_redis,
            capture: keys,
        };
        command.words(shape, words, &mut statement)?;
        (command.text, command.keys) = statement.into_parts();
        Some(command)
    }

    /// A line that memcached does not know: an error answers it.
    pub(super) fn unknown() -> Self {
        Self {
            operation: Cow::Borrowed("(unknown)"),
            class: Class::Line,
            reply: Reply::Always,
            data: None,
            text: "(unknown) ?".to_owned(),
            keys: KeyRanges::NONE,
            hasher: ContentHasher::new(),
            parts: Vec::new(),
            token: 0,
            is_shared_with_redis: false,
            capture: KeyCapture::Plain,
        }
    }

    fn words<'a>(
        &mut self,
        shape: Shape,
        mut words: impl Iterator<Item = &'a [u8]>,
        statement: &mut Statement,
    ) -> Option<()> {
        match shape {
            Shape::Alone => words.next().is_none().then_some(()),
            Shape::Any => {
                words.for_each(|word| self.word(word, statement));
                Some(())
            }
            Shape::Keys(first) => {
                if first == 2 {
                    let exptime = words.next()?;
                    is_time(exptime).then(|| self.word(exptime, statement))?;
                }
                let before = self.hasher;
                let part = |key| {
                    let mut one = before;
                    hash_word(&mut one, key);
                    one.finish()
                };
                let only = words.next()?;
                self.key(only, statement)?;
                for key in words {
                    self.key(key, statement)?;
                    if self.parts.is_empty() {
                        self.parts.push(part(only));
                    }
                    self.parts.push(part(key));
                }
                Some(())
            }
            Shape::Store(more) => {
                self.key(words.next()?, statement)?;
                let (flags, exptime, bytes) = (words.next()?, words.next()?, words.next()?);
                self.data = Some(number(bytes).filter(|bytes| *bytes <= VALUE_BYTES_MAX)?);
                (number(flags).is_some() && is_time(exptime)).then_some(())?;
                [flags, exptime, bytes].into_iter().for_each(|word| self.word(word, statement));
                for _ in 0..more {
                    let word = words.next()?;
                    number(word)?;
                    self.word(word, statement);
                }
                match words.next() {
                    None => {}
                    Some(b"noreply") => self.reply = Reply::Never,
                    Some(_) => return None,
                }
                words.next().is_none().then_some(())
            }
            Shape::Key(least, most) => {
                self.key(words.next()?, statement)?;
                self.up_to(least, most, words, statement)
            }
            Shape::Words(most) => self.up_to(0, most, words, statement),
            Shape::Meta => {
                let key = words.next()?;
                self.key(key, statement)?;
                self.flags(key, words, statement)
            }
            Shape::MetaStore => {
                let key = words.next()?;
                self.key(key, statement)?;
                let bytes = words.next()?;
                self.data = Some(number(bytes).filter(|bytes| *bytes <= VALUE_BYTES_MAX)?);
                self.word(bytes, statement);
                self.flags(key, words, statement)
            }
        }
    }

    fn up_to<'a>(
        &mut self,
        least: usize,
        most: usize,
        words: impl Iterator<Item = &'a [u8]>,
        statement: &mut Statement,
    ) -> Option<()> {
        let (mut n, mut ended) = (0, false);
        for word in words {
            if ended {
                return None;
            }
            if word == b"noreply" {
                self.reply = Reply::Never;
                ended = true;
            } else if n < most {
                n += 1;
                self.word(word, statement);
            } else {
                return None;
            }
        }
        (n >= least).then_some(())
    }

    fn flags<'a>(
        &mut self,
        key: &[u8],
        words: impl Iterator<Item = &'a [u8]>,
        statement: &mut Statement,
    ) -> Option<()> {
        for word in words {
            let (flag, value) = word.split_first()?;
            if !flag.is_ascii_alphabetic() {
                return None;
            }
            match flag {
                b'q' if value.is_empty() => self.reply = Reply::Quiet,
                b'O' => self.token = token(value),
                b'k' if value.is_empty() && self.token == 0 => self.token = token(key),
                _ => {}
            }
            // Opaques differ from request to request, and flags may carry values.
            if *flag != b'O' {
                hash_word(&mut self.hasher, word);
            }
            statement.word("?");
        }
        Some(())
    }

    fn key(&mut self, word: &[u8], statement: &mut Statement) -> Option<()> {
        if !is_key(word) {
            return None;
        }
        hash_word(&mut self.hasher, word);
        statement.captured_key(word, self.capture);
        Some(())
    }

    fn word(&mut self, word: &[u8], statement: &mut Statement) {
        hash_word(&mut self.hasher, word);
        statement.word("?");
    }
}

/// An expiry time: seconds, perhaps negative.
fn is_time(word: &[u8]) -> bool {
    number(word.strip_prefix(b"-").unwrap_or(word)).is_some()
}

fn hash_word(hasher: &mut ContentHasher, word: &[u8]) {
    hasher.update(word);
    hasher.number(word.len() as u64);
}

/// What an answer repeats, as a number that is not 0.
pub(super) fn token(bytes: &[u8]) -> u64 {
    content_hash_of(bytes) | 1
}
