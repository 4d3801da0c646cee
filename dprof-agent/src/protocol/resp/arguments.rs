//! The arguments of one command: what is kept of each, and what the connection must know of them.

use std::borrow::Cow;

use super::command::{self, Command, Effect, NAME_BYTES_MAX};
use crate::protocol::Parts;
use crate::protocol::capture::{Capture, KeyCapture};
use crate::protocol::hash::{ContentHasher, combine};
use crate::protocol::text::Statement;

/// Bytes of a key that are kept; longer ones end in `…`.
pub(super) const KEY_BYTES_MAX: usize = 128;

/// Parts of one request that are hashed one by one: 1 KiB for a request that is open. Beyond, a split request is
/// linked by other evidence.
const PARTS_MAX: u32 = 128;

/// What an argument of `CLIENT REPLY` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyMode {
    On,
    Off,
    Skip,
}

/// Whether a command waits by its own wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blocking {
    No,
    Yes,
    /// A hole hid it.
    Unknown,
}

/// The command under way.
#[derive(Debug)]
pub(super) struct Current {
    pub(super) n_args: u32,
    /// Index of the argument under way.
    pub(super) arg: u32,
    pub(super) operation: Cow<'static, str>,
    pub(super) command: Option<&'static Command>,
    pub(super) statement: Statement,
    /// Of everything but the name.
    hasher: ContentHasher,
    name_hash: u64,
    hash_known: bool,
    /// Arguments in a part, if the command has several parts; 0: it has not.
    part_args: u32,
    part_hasher: ContentHasher,
    parts: Vec<u64>,
    pub(super) incomplete: bool,
    /// Length of the longest argument that is no key.
    pub(super) value_bytes: u64,
    n_keys: u64,
    streams_at: u32,
    pub(super) blocking: Blocking,
    pub(super) reply_mode: Option<ReplyMode>,
    /// `HELLO`: the version asked for, 0 if none or not known.
    pub(super) version: u8,
    pub(super) replication: bool,
    pub(super) capture: Capture,
}

impl Current {
    pub(super) fn new() -> Self {
        Self {
            n_args: 0,
            arg: 0,
            operation: Cow::Borrowed(""),
            command: None,
            statement: Statement::default(),
            hasher: ContentHasher::new(),
            name_hash: 0,
            hash_known: true,
            part_args: 0,
            part_hasher: ContentHasher::new(),
            parts: Vec::new(),
            incomplete: false,
            value_bytes: 0,
            n_keys: 0,
            streams_at: 0,
            blocking: Blocking::No,
            reply_mode: None,
            version: 0,
            replication: false,
            capture: Capture::default(),
        }
    }

    #[inline]
    pub(super) fn begin(&mut self, n_args: u32) {
        self.n_args = n_args;
        self.arg = 0;
        self.hasher.reset();
        self.hash_known = true;
        self.part_args = 0;
        self.incomplete = false;
        self.value_bytes = 0;
        self.n_keys = 0;
        self.streams_at = 0;
        self.blocking = Blocking::No;
        self.reply_mode = None;
        self.version = 0;
        self.replication = false;
    }

    /// Hashes bytes of an argument. The name is hashed when it is whole, as it is stored: case does not count.
    #[inline]
    pub(super) fn hash(&mut self, bytes: &[u8]) {
        if self.arg > 0 && self.hash_known {
            self.hasher.update(bytes);
            if self.part_args > 0 {
                self.part_hasher.update(bytes);
            }
        }
    }

    /// Hash of the whole command, if all of it was seen and none of it is secret.
    #[inline]
    pub(super) fn content_hash(&self) -> Option<u64> {
        self.hash_known.then(|| combine(self.name_hash, self.hasher.finish()))
    }

    /// Hashes of its parts.
    #[inline]
    pub(super) fn take_parts(&mut self) -> Parts {
        let Some(Command { keys, .. }) = self.command.filter(|_| self.hash_known) else { return Parts::None };
        match self.part_args {
            0 if keys.first == 1 && !self.has_many_parts() => Parts::One(self.hasher.finish()),
            0 => Parts::None,
            _ => Parts::Many(self.parts.as_slice().into()),
        }
    }

    /// Whether keys fill the command, each perhaps with arguments of its own, and there is more than one.
    fn has_many_parts(&self) -> bool {
        self.command.is_some_and(|Command { keys, .. }| {
            (keys.first, keys.last) == (1, -1) && self.n_args - 1 > u32::from(keys.step)
        })
    }

    /// The next argument: `content` is all or the first [`KEY_BYTES_MAX`] bytes of its `len`, `seen` whether no
    /// hole is in it.
    #[inline]
    pub(super) fn argument(&mut self, content: &[u8], len: u64, seen: bool) {
        let whole = seen && content.len() as u64 == len;
        self.hash_known &= seen;
        match self.arg {
            0 => self.name(content, whole, seen),
            1 if self.effect() == Effect::Container => self.subcommand(content, whole, seen),
            arg => {
                self.remember(arg, content, whole, seen);
                if self.is_key(arg) {
                    self.key(content, len, seen);
                } else {
                    self.value_bytes = self.value_bytes.max(len);
                    if self.capture.values && self.shows_values() {
                        self.statement.value(if seen { content } else { b"" }, whole);
                    } else {
                        self.statement.word("?");
                    }
                }
            }
        }
        if self.arg > 0 {
            self.hasher.number(len);
            if self.part_args > 0 {
                self.part_hasher.number(len);
                if self.arg.is_multiple_of(self.part_args) {
                    self.parts.push(self.part_hasher.finish());
                    self.part_hasher.reset();
                }
            }
        }
        self.arg += 1;
    }

    pub(super) fn effect(&self) -> Effect {
        self.command.map_or(Effect::None, |command| command.effect)
    }

    fn key(&mut self, content: &[u8], len: u64, seen: bool) {
        let kept = &content[..content.len().min(KEY_BYTES_MAX)];
        match self.capture.keys {
            _ if !seen => self.statement.key(b"", false),
            KeyCapture::Plain => self.statement.key(kept, kept.len() as u64 == len),
            KeyCapture::Hash => self.statement.hashed_key(kept, len),
        }
    }

    /// Of a command that is not known, any argument may be a secret.
    fn shows_values(&self) -> bool {
        self.command.is_some_and(|command| !command.is_secret() && command.effect != Effect::Container)
    }

    fn name(&mut self, content: &[u8], whole: bool, seen: bool) {
        self.command = if whole { command::find(content) } else { None };
        self.operation = match self.command {
            Some(command) => Cow::Borrowed(command.name),
            None if whole && command::looks_like_a_name(content) => {
                Cow::Owned(String::from_utf8_lossy(content).to_ascii_uppercase())
            }
            None if seen => Cow::Borrowed("(invalid)"),
            None => Cow::Borrowed("(unseen)"),
        };
        self.incomplete = !seen;
        self.statement.begin(&self.operation);
        let Some(command) = self.command else {
            let mut hasher = ContentHasher::new();
            hasher.update(self.operation.as_bytes());
            self.name_hash = hasher.finish();
            self.hash_known &= content.len() <= NAME_BYTES_MAX;
            return;
        };
        self.name_hash = command.hash;
        self.hash_known &= !command.is_secret();
        if command.effect == Effect::Blocking {
            self.blocking = Blocking::Yes;
        }
        if self.has_many_parts() {
            let (n_args, step) = (self.n_args - 1, u32::from(command.keys.step));
            if n_args.is_multiple_of(step) && n_args / step <= PARTS_MAX {
                self.part_args = step;
                self.part_hasher.reset();
                self.parts.clear();
            }
        }
    }

    fn subcommand(&mut self, content: &[u8], whole: bool, seen: bool) {
        self.incomplete |= !seen;
        let container = self.command;
        match container.filter(|_| whole).and_then(|command| command::find_subcommand(command, content)) {
            Some(command) => {
                self.command = Some(command);
                self.operation = Cow::Borrowed(command.name);
                self.name_hash = command.hash;
                self.hash_known &= !command.is_secret();
                self.statement.begin(command.name);
            }
            None => self.statement.word("?"),
        }
    }

    /// What later arguments or the connection depend on.
    fn remember(&mut self, arg: u32, content: &[u8], whole: bool, seen: bool) {
        let Some(command) = self.command else { return };
        let looks_for_streams = command.keys.streams && self.streams_at == 0;
        if !seen {
            // Whether, and how, the command is answered hangs on these.
            self.incomplete |= matches!((command.effect, arg), (Effect::Reply, 2) | (Effect::Replconf, 1));
            if looks_for_streams && self.blocking == Blocking::No {
                self.blocking = Blocking::Unknown;
            }
        }
        if !whole {
            return;
        }
        let is = |word: &[u8]| content.eq_ignore_ascii_case(word);
        if command.keys.count_at > 0 && arg == u32::from(command.keys.count_at) {
            self.n_keys = str::from_utf8(content).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        }
        // XREADGROUP GROUP group consumer: a group may have this name.
        if looks_for_streams && (command.name != "XREADGROUP" || arg >= 4) {
            if is(b"STREAMS") {
                self.streams_at = arg;
            } else if is(b"BLOCK") {
                self.blocking = Blocking::Yes;
            }
        }
        match command.effect {
            // With more or fewer arguments Redis answers with an error.
            Effect::Reply if arg == 2 && self.n_args == 3 => {
                self.reply_mode =
                    [(&b"ON"[..], ReplyMode::On), (b"OFF", ReplyMode::Off), (b"SKIP", ReplyMode::Skip)]
                        .into_iter()
                        .find_map(|(word, mode)| is(word).then_some(mode));
            }
            Effect::Hello if arg == 1 => {
                self.version = match content {
                    b"2" => 2,
                    b"3" => 3,
                    _ => 0,
                };
            }
            Effect::Replconf if arg == 1 => self.replication = is(b"ACK") || is(b"GETACK"),
            _ => {}
        }
    }

    fn is_key(&self, arg: u32) -> bool {
        let Some(Command { keys, .. }) = self.command else { return false };
        let (arg, n_args) = (i64::from(arg), i64::from(self.n_args));
        let first = i64::from(keys.first);
        let last = if keys.last < 0 { n_args + i64::from(keys.last) } else { i64::from(keys.last) };
        if keys.first > 0 && (first..=last).contains(&arg) && (arg - first) % i64::from(keys.step) == 0 {
            return true;
        }
        let counted_from = i64::from(keys.count_at);
        if counted_from > 0 && arg > counted_from && (arg - counted_from) as u64 <= self.n_keys {
            return true;
        }
        let streams_at = i64::from(self.streams_at);
        streams_at > 0 && arg > streams_at && arg <= streams_at + (n_args - 1 - streams_at) / 2
    }
}
