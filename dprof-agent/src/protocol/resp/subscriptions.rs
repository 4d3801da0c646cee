//! Publish and subscribe: which arrays confirm a SUBSCRIBE and which come unasked.
//!
//! One command is confirmed once per channel: the first confirmation is its response, the others count as
//! unasked. Redis says with each how many subscriptions are left, so the number that answers an UNSUBSCRIBE
//! without arguments is known.

use super::request::Special;
use crate::protocol::MessageKind;
use crate::protocol::answers::{Answers, Next};

/// Channels, patterns or shard channels: Redis counts the first two together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Channel,
    Pattern,
    Shard,
}

impl Family {
    /// What a command subscribes to.
    pub(super) fn of(command: &str) -> Self {
        match command.as_bytes().first() {
            Some(b'P') => Self::Pattern,
            Some(b'S') if command.starts_with("SS") || command.starts_with("SUNS") => Self::Shard,
            _ => Self::Channel,
        }
    }
}

impl Family {
    const fn is_shard(self) -> bool {
        matches!(self, Self::Shard)
    }
}

/// What a confirmation confirms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Confirmation {
    family: Family,
    ends: bool,
}

impl Confirmation {
    /// Reads the first string of an aggregate of `size` values.
    pub(super) fn read(word: &[u8], size: i64) -> Option<Self> {
        let (family, ends) = match word {
            b"subscribe" => (Family::Channel, false),
            b"psubscribe" => (Family::Pattern, false),
            b"ssubscribe" => (Family::Shard, false),
            b"unsubscribe" => (Family::Channel, true),
            b"punsubscribe" => (Family::Pattern, true),
            b"sunsubscribe" => (Family::Shard, true),
            _ => return None,
        };
        (size == 3).then_some(Self { family, ends })
    }

    /// Whether it answers such a request.
    fn confirms(self, special: Special) -> bool {
        matches!(special, Special::Subscription { family, ends, .. } if Self { family, ends } == self)
    }
}

/// Subscriptions of a connection.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    /// Of each family, as the counts in confirmations say.
    n: [i64; 3],
    /// Confirmations still to come of the command that was answered last.
    owed: Option<(Confirmation, i64)>,
    /// There may be some, of channels and patterns, and of shard channels: a transaction may have made them, or what
    /// confirmed them was lost.
    maybe: [bool; 2],
}

impl Subscriptions {
    /// Forgets all (`RESET`).
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Replies were lost: what is owed may have been among them.
    pub(super) const fn lose(&mut self) {
        self.owed = None;
    }

    /// Whether a confirmation may be the rest of one command's or the first of the next one's: after a loss, what is
    /// owed may have been counted too high.
    pub(super) fn is_guess(&self, seen: Confirmation, answers: &Answers<Special>) -> bool {
        self.owed.is_some_and(|(owed, _)| owed == seen)
            && answers.find(|special| seen.confirms(special)).is_some()
    }

    /// A SUBSCRIBE was queued in a transaction: what comes of it, if anything, is in EXEC's reply. Or its answer is not
    /// known.
    pub(super) const fn queued(&mut self, family: Family) {
        self.maybe[family.is_shard() as usize] = true;
    }

    /// Whether there may be some that are not counted.
    fn may_be_more(&self) -> bool {
        self.maybe != [false; 2]
    }

    /// Whether it is not known what a confirmation answers, if anything: replies or requests before it were lost.
    pub(super) fn is_unknown(&self, seen: Confirmation, answers: &Answers<Special>) -> bool {
        answers.next() == Next::Unknown
            && !self.may_be_more()
            && self.owed.is_none_or(|(owed, _)| owed != seen)
            && answers.find(|special| seen.confirms(special)).is_none()
    }

    /// Whether an array may be a confirmation now. It always may in a push frame.
    pub(super) fn expected(&self, seen: Confirmation, answers: &Answers<Special>) -> bool {
        self.owed.is_some()
            || self.may_be_more()
            || self.n != [0; 3]
            || answers.next() == Next::Unknown
            || answers.find(|special| seen.confirms(special)).is_some()
    }

    /// Whether an array may be a published message now.
    pub(super) fn may_publish(&self, answers: &Answers<Special>) -> bool {
        self.n != [0; 3]
            || self.maybe != [false; 2]
            || self.owed.is_some()
            || (!answers.certain() && !answers.waiting())
    }

    /// A confirmation came, saying that `left` subscriptions are left. One per command is its response.
    pub(super) fn confirm(
        &mut self,
        seen: Confirmation,
        left: i64,
        answers: &mut Answers<Special>,
    ) -> MessageKind {
        let family = seen.family as usize;
        let had = self.n[family];
        // It says how many there are. Those of shards may also end by themselves, before EXEC's reply.
        let may_be_more = self.may_be_more();
        self.maybe[0] &= seen.family.is_shard();
        let before = if seen.family == Family::Shard { had } else { self.n[0] + self.n[1] };
        self.n[family] = (had + left - before).clamp(0, left.max(0));
        if let Some((owed, n)) = &mut self.owed
            && *owed == seen
            && *n > 0
        {
            *n -= 1;
            if *n == 0 {
                self.owed = None;
            }
            return MessageKind::Push;
        }
        // In sure order only the next request is answered; else the confirmation says itself whose it is.
        let asked = match answers.next() {
            Next::Special(special) if answers.exact() => Some(special).filter(|asked| seen.confirms(*asked)),
            Next::Ordinary if answers.exact() => None,
            _ => answers.find(|special| seen.confirms(special)),
        };
        let Some(Special::Subscription { n, .. }) = asked else {
            // A slot moved away, or what was asked is not known.
            let may_answer = answers.next() == Next::Unknown && !seen.ends && !may_be_more;
            return if may_answer { MessageKind::Response } else { MessageKind::Push };
        };
        if !answers.exact() {
            answers.forget(|special| seen.confirms(special));
        }
        let n = if n == 0 { had.max(1) } else { i64::from(n) };
        self.owed = (n > 1).then_some((seen, n - 1));
        MessageKind::Response
    }
}
