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
enum Family {
    Channel,
    Pattern,
    Shard,
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
}

/// Subscriptions of a connection.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    /// Of each family, as the counts in confirmations say.
    n: [i64; 3],
    /// Confirmations still to come of the command that was answered last.
    owed: Option<(Confirmation, i64)>,
}

impl Subscriptions {
    /// Forgets all (`RESET`).
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether an array may be a confirmation now. It always may in a push frame.
    pub(super) fn expected(&self, next: Next<Special>) -> bool {
        self.owed.is_some()
            || self.n != [0; 3]
            || matches!(next, Next::Unknown | Next::Special(Special::Subscribe(_) | Special::Unsubscribe(_)))
    }

    /// Whether an array may be a published message now.
    pub(super) fn may_publish(&self, answers: &Answers<Special>) -> bool {
        self.n != [0; 3] || self.owed.is_some() || (!answers.certain() && !answers.waiting())
    }

    /// A confirmation came, saying that `left` subscriptions are left.
    pub(super) fn confirm(&mut self, seen: Confirmation, left: i64, next: Next<Special>) -> MessageKind {
        let family = seen.family as usize;
        let had = self.n[family];
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
        let n = match next {
            Next::Special(Special::Subscribe(n)) if !seen.ends => i64::from(n),
            Next::Special(Special::Unsubscribe(n)) if seen.ends => {
                if n == 0 {
                    had.max(1)
                } else {
                    i64::from(n)
                }
            }
            // A slot moved away, or what was asked is not known.
            Next::Special(_) | Next::Ordinary => return MessageKind::Push,
            Next::Unknown => return if seen.ends { MessageKind::Push } else { MessageKind::Response },
        };
        self.owed = (n > 1).then_some((seen, n - 1));
        MessageKind::Response
    }
}
