//! The arguments of one command: what is kept of each, and what the connection must know of them.

use std::borrow::Cow;

use super::command::{self, Command, Effect, NAME_BYTES_MAX};
use crate::protocol::hash::ContentHasher;
use crate::protocol::text::Statement;

/// Bytes of a key that are kept; longer ones end in `…`.
pub(super) const KEY_BYTES_MAX: usize = 128;

/// What an argument of `CLIENT REPLY` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyMode {
    On,
    Off,
    Skip,
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
    pub(super) hasher: ContentHasher,
    pub(super) hash_known: bool,
    pub(super) incomplete: bool,
    n_keys: u64,
    streams_at: u32,
    pub(super) reply_mode: Option<ReplyMode>,
    pub(super) replication: bool,
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
            hash_known: true,
            incomplete: false,
            n_keys: 0,
            streams_at: 0,
            reply_mode: None,
            replication: false,
        }
    }

    pub(super) fn begin(&mut self, n_args: u32) {
        let statement = std::mem::take(&mut self.statement);
        *self = Self { n_args, statement, ..Self::new() };
    }

    /// Hashes bytes of an argument. The name is hashed when it is whole, as it is stored: case does not count.
    #[inline]
    pub(super) fn hash(&mut self, bytes: &[u8]) {
        if self.arg > 0 && self.hash_known {
            self.hasher.update(bytes);
        }
    }

    /// The next argument: `content` is all or the first [`KEY_BYTES_MAX`] bytes of its `len`, `seen` whether no
    /// hole is in it.
    pub(super) fn argument(&mut self, content: &[u8], len: u64, seen: bool) {
        let whole = seen && content.len() as u64 == len;
        self.hash_known &= seen;
        match self.arg {
            0 => self.name(content, whole, seen),
            1 if self.effect() == Effect::Container => self.subcommand(content, whole, seen),
            arg => {
                self.remember(arg, content, whole);
                if self.is_key(arg) {
                    let kept = &content[..content.len().min(KEY_BYTES_MAX)];
                    self.statement.key(if seen { kept } else { b"" }, seen && kept.len() as u64 == len);
                } else {
                    self.statement.word("?");
                }
            }
        }
        self.hasher.number(len);
        self.arg += 1;
    }

    pub(super) fn effect(&self) -> Effect {
        self.command.map_or(Effect::None, |command| command.effect)
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
        self.hash_known &= self.effect() != Effect::Secret && content.len() <= NAME_BYTES_MAX;
        self.hasher.update(self.operation.as_bytes());
        self.statement.begin(&self.operation);
    }

    fn subcommand(&mut self, content: &[u8], whole: bool, seen: bool) {
        self.incomplete |= !seen;
        let container = self.command;
        match container.filter(|_| whole).and_then(|command| command::find_subcommand(command, content)) {
            Some(command) => {
                self.command = Some(command);
                self.operation = Cow::Borrowed(command.name);
                self.hash_known &= command.effect != Effect::Secret;
                self.statement.begin(command.name);
            }
            None => self.statement.word("?"),
        }
    }

    /// What later arguments or the connection depend on.
    fn remember(&mut self, arg: u32, content: &[u8], whole: bool) {
        let Some(command) = self.command.filter(|_| whole) else { return };
        let is = |word: &[u8]| content.eq_ignore_ascii_case(word);
        if command.keys.count_at > 0 && arg == u32::from(command.keys.count_at) {
            self.n_keys = str::from_utf8(content).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        }
        if command.keys.streams && self.streams_at == 0 && is(b"STREAMS") {
            // XREADGROUP GROUP group consumer: a group may have this name.
            self.streams_at = if command.name == "XREADGROUP" && arg < 4 { 0 } else { arg };
        }
        match command.effect {
            Effect::Reply if arg == 2 => {
                self.reply_mode =
                    [(&b"ON"[..], ReplyMode::On), (b"OFF", ReplyMode::Off), (b"SKIP", ReplyMode::Skip)]
                        .into_iter()
                        .find_map(|(word, mode)| is(word).then_some(mode));
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
