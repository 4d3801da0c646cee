//! A whole value → the message that it is: an answer, or something that came unasked.
//!
//! What a reader would get wrong: a list may look like a published message or a confirmation. In sure order, what was
//! asked tells; after a loss it may be a guess, which is then said.

use std::borrow::Cow;

use super::super::Session;
use super::super::request::Special;
use super::super::subscriptions::Confirmation;
use super::{Replies, WORD_BYTES_MAX};
use crate::protocol::answers::Next;
use crate::protocol::{Message, MessageKind, Parsed};

impl Replies {
    pub(super) fn end_message(&mut self, end: u64, session: &mut Session, out: &mut Vec<Parsed>) {
        (self.lost, self.said_lost) = (false, false);
        if self.is_resp3 {
            session.is_resp3 = Some(true);
        }
        // The other end of a replication stream acknowledges: what the master sends are no requests.
        if self.outer == (b'*', 3) && self.word == b"REPLCONF" {
            session.opaque_from = Some(self.start);
            return;
        }
        if !session.answers.exact() && self.is_guess(session) {
            out.push(Parsed::Lost { direction: self.direction, at: self.start });
            session.lose_replies();
            session.guess_said = true;
        }
        let is_doubtful = self.word_is_lost()
            && self.may_be_pushed(session)
            && session.subscriptions.may_publish(&session.answers);
        if is_doubtful {
            // Published or an answer: the order is not sure from here on.
            out.push(Parsed::Lost { direction: self.direction, at: self.start });
            session.lose_replies();
        }
        let is_doubtful = is_doubtful
            || self
                .confirmation(session)
                .is_some_and(|seen| session.subscriptions.is_unknown(seen, &session.answers));
        session.may_be_queued = matches!(&*self.word, b"QUEUED" | b"OK");
        let replicates = self.starts_replication(session);
        let kind = self.classify(session);
        let mut message = Message::new(self.direction, kind, self.start, end);
        message.incomplete = is_doubtful;
        if matches!(self.outer.0, b'-' | b'!') {
            message.is_error = true;
            message.status_code = status_code(&self.word);
            // Who may not run CLIENT REPLY is answered all the same.
            if session.silenced && matches!(&*message.status_code, "NOAUTH" | "NOPERM") {
                out.push(Parsed::Lost { direction: self.direction, at: self.start });
                session.lose_replies();
                session.replies_off = false;
            }
        }
        if self.value_bytes > 0 {
            message.value_bytes = Some(u32::try_from(self.value_bytes).unwrap_or(u32::MAX));
        }
        message.content_hash = self.hash_known.then(|| self.hasher.finish());
        session.proved = true;
        if kind == MessageKind::Response {
            session.answers.response();
        }
        out.push(Parsed::Message(message));
        if replicates {
            session.opaque_from = Some(end);
        }
    }

    /// Whether, after a loss, it is a guess what this is: a list or a published message (said once per request); the
    /// rest of what one SUBSCRIBE is told or the answer to the next.
    fn is_guess(&self, session: &Session) -> bool {
        let (outer, size) = self.outer;
        match outer {
            b'*' | b'>' if self.kind == b':' => Confirmation::read(&self.word, size)
                .is_some_and(|seen| session.subscriptions.is_guess(seen, &session.answers)),
            b'*' => session.is_resp3 != Some(true) && !session.guess_said && is_published(&self.word, size),
            _ => false,
        }
    }

    fn starts_replication(&self, session: &Session) -> bool {
        match self.outer.0 {
            b'+' => {
                let starts = [&b"FULLRESYNC"[..], b"CONTINUE", b"RDBCHANNELSYNC"]
                    .iter()
                    .any(|word| self.word.starts_with(word));
                starts && session.awaits_replication()
            }
            b'$' => session.answers.exact() && session.awaits_replication(),
            _ => false,
        }
    }

    /// Whether the message answers a request or came unasked.
    fn classify(&mut self, session: &mut Session) -> MessageKind {
        let (outer, size) = self.outer;
        let may_be_pushed = self.may_be_pushed(session);
        if let Some(confirmation) = self.confirmation(session)
            && (outer == b'>' || session.subscriptions.expected(confirmation, &session.answers))
        {
            return session.subscriptions.confirm(confirmation, self.integer, &mut session.answers);
        }
        let unasked = match outer {
            b'>' => true,
            b'*' => {
                may_be_pushed
                    && is_published(&self.word, size)
                    && session.subscriptions.may_publish(&session.answers)
            }
            b'+' => (session.monitor || !session.answers.exact()) && is_monitored(&self.word),
            _ => false,
        };
        if unasked {
            return MessageKind::Push;
        }
        self.take_effect(session);
        MessageKind::Response
    }

    /// Whether it has a form in which messages come unasked.
    fn may_be_pushed(&self, session: &Session) -> bool {
        let (outer, _) = self.outer;
        outer == b'>' || (outer == b'*' && session.is_resp3 != Some(true))
    }

    /// What it confirms, if it has the form of a confirmation.
    fn confirmation(&self, session: &Session) -> Option<Confirmation> {
        let may_be = self.may_be_pushed(session) && self.kind == b':';
        may_be.then(|| Confirmation::read(&self.word, self.outer.1)).flatten()
    }

    /// Whether bytes of the word that says what it is were not seen.
    fn word_is_lost(&self) -> bool {
        self.word.first() == Some(&0)
    }

    /// What the reply to a special request changes.
    fn take_effect(&self, session: &mut Session) {
        let is_ok = !matches!(self.outer.0, b'-' | b'!');
        if self.outer.0 == b'+' && self.word == b"RESET" {
            session.monitor = false;
            session.subscriptions.clear();
            session.is_resp3 = Some(false);
        }
        match session.answers.next() {
            Next::Special(Special::Monitor) if self.outer.0 == b'+' => session.monitor = true,
            Next::Special(Special::Subscription { ends: false, family, .. })
                if self.word == b"QUEUED" || self.word_is_lost() =>
            {
                session.subscriptions.queued(family);
            }
            Next::Special(Special::Hello(version)) if is_ok => {
                session.is_resp3 = match version {
                    2 if session.answers.exact() => Some(false),
                    3 => Some(true),
                    0 if session.answers.exact() => session.is_resp3,
                    _ => None,
                };
            }
            _ => {}
        }
    }
}

/// First word of an error, if it looks like a status: `WRONGTYPE`.
fn status_code(line: &[u8]) -> Cow<'static, str> {
    const KNOWN: [&str; 21] = [
        "ERR",
        "TRYAGAIN",
        "CROSSSLOT",
        "CLUSTERDOWN",
        "MASTERDOWN",
        "NOREPLICAS",
        "NOGOODSLAVE",
        "UNBLOCKED",
        "BUSYGROUP",
        "NOGROUP",
        "WRONGTYPE",
        "MOVED",
        "ASK",
        "NOAUTH",
        "NOPERM",
        "NOSCRIPT",
        "LOADING",
        "BUSY",
        "READONLY",
        "EXECABORT",
        "OOM",
    ];
    let word = line.split(|byte| *byte == b' ').next().unwrap_or_default();
    if let Some(known) = KNOWN.into_iter().find(|known| known.as_bytes() == word) {
        return Cow::Borrowed(known);
    }
    let looks_like_one = (1..WORD_BYTES_MAX).contains(&word.len())
        && word.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_');
    match str::from_utf8(word) {
        Ok(word) if looks_like_one => Cow::Owned(word.to_owned()),
        _ => Cow::Borrowed("(invalid)"),
    }
}

/// `message channel payload`, `pmessage pattern channel payload`, `smessage channel payload`.
fn is_published(word: &[u8], size: i64) -> bool {
    matches!((word, size), (b"message" | b"smessage", 3) | (b"pmessage", 4))
}

/// `1339518083.107412 [0 127.0.0.1:60866] "keys" "*"`
fn is_monitored(line: &[u8]) -> bool {
    let digits = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    let mut parts = line.splitn(2, |byte| *byte == b' ');
    let (Some(time), Some(rest)) = (parts.next(), parts.next()) else { return false };
    let mut time = time.splitn(2, |byte| *byte == b'.');
    time.next().is_some_and(digits) && time.next().is_some_and(digits) && rest.starts_with(b"[")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_word_of_capitals() {
        let check = |line: &str, expected: &str| assert_eq!(status_code(line.as_bytes()), expected, "{line}");
        check("WRONGTYPE Operation against a key", "WRONGTYPE");
        check("ERR", "ERR");
        check("MASTERDOWN Link", "MASTERDOWN");
        check("secret value", "(invalid)");
        check("", "(invalid)");
        check("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "(invalid)");
    }

    #[test]
    fn monitored_commands_are_told_from_replies() {
        assert!(is_monitored(b"1339518083.107412 [0 127.0.0.1:60866]"));
        for other in ["OK", "RESET", "1339518083 [0", "1.5", ".1 [", "1. [", "1.5 OK"] {
            assert!(!is_monitored(other.as_bytes()), "{other}");
        }
    }
}
