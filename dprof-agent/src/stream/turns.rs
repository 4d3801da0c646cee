//! The protocol of last resort: a connection that nothing understands, or that is encrypted, cut into requests and
//! responses by its changes of direction. Right for every protocol that asks and waits; pipelining and pushes blur it.
//!
//! What a reader would get wrong: a message's end shows only when the other direction begins, so the last one
//! waits for [`Turns::flush`].

use std::borrow::Cow;

use crate::protocol::{Attributes, Direction, Message, MessageKind, Parsed, tls};

/// Name of the protocol as stored.
pub(crate) const NAME: &str = "unknown";

/// A direction is taken as done when it has been silent this long: a request whose answer takes a second is no
/// worse off, since a response is a message of its own.
pub(crate) const TURN_IDLE_NS: u64 = 1_000_000_000;

/// Largest record of TLS that holds no more than an alert: header, initialisation vector, alert, digest and padding
/// of the widest cipher suite (AES-256-CBC with SHA-384, RFC 5289).
const ALERT_BYTES_MAX: u64 = 5 + 16 + 64;

/// Parser by change of direction.
#[derive(Clone, Debug)]
pub(crate) struct Turns {
    /// Protocol as stored.
    name: &'static str,
    request_direction: Direction,
    operation: Cow<'static, str>,
    /// Of each request.
    attributes: Attributes,
    /// The message that is growing.
    turn: Option<(Direction, u64, u64)>,
}

impl Turns {
    /// Turns of a connection whose requests flow in `request_direction`, to `port`.
    pub(crate) fn new(request_direction: Direction, port: u16) -> Self {
        let operation = Cow::Owned(format!("port {port}"));
        Self { name: NAME, request_direction, operation, attributes: Vec::new(), turn: None }
    }

    /// Turns of a connection that cannot be read.
    pub(crate) const fn encrypted(request_direction: Direction, attributes: Attributes) -> Self {
        let operation = Cow::Borrowed(tls::EXCHANGE);
        Self { name: tls::NAME, request_direction, operation, attributes, turn: None }
    }

    /// Protocol as stored.
    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    /// Bytes `[start, end)` of `direction`, seen or not.
    pub(crate) fn feed(&mut self, direction: Direction, start: u64, end: u64, out: &mut Vec<Parsed>) {
        match &mut self.turn {
            Some((turn, _, turn_end)) if *turn == direction => *turn_end = end,
            _ => {
                self.flush(out);
                self.turn = Some((direction, start, end));
            }
        }
    }

    /// Ends the growing message.
    pub(crate) fn flush(&mut self, out: &mut Vec<Parsed>) {
        let Some((direction, start, end)) = self.turn.take() else { return };
        let is_request = direction == self.request_direction;
        let kind = if is_request { MessageKind::Request } else { MessageKind::Response };
        let mut message = Message::new(direction, kind, start, end);
        if is_request {
            message.operation.clone_from(&self.operation);
            message.attributes.clone_from(&self.attributes);
        }
        out.push(Parsed::Message(message));
    }

    /// The connection ended: as [`Turns::flush`], but what an encrypted connection says last and unanswered is its
    /// `close_notify` when it is no longer than that. It comes at all only if the peer has not closed before.
    pub(crate) fn end(&mut self, out: &mut Vec<Parsed>) {
        let is_farewell = self.name == tls::NAME
            && self.turn.is_some_and(|(direction, start, end)| {
                direction == self.request_direction && end - start <= ALERT_BYTES_MAX
            });
        if is_farewell {
            self.forget();
        }
        self.flush(out);
    }

    /// Drops the growing message.
    pub(crate) fn forget(&mut self) {
        self.turn = None;
    }

    /// As [`crate::protocol::Parser::unfinished_from`]; `None` = everything is finished.
    pub(crate) fn unfinished_from(&self, direction: Direction) -> Option<u64> {
        self.turn.filter(|(turn, ..)| *turn == direction).map(|(_, start, _)| start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(request_direction: Direction, calls: &[(Direction, u64, u64)], expected: &str) {
        let (mut turns, mut out) = (Turns::new(request_direction, 1234), Vec::new());
        for (direction, start, end) in calls {
            turns.feed(*direction, *start, *end, &mut out);
        }
        turns.flush(&mut out);
        turns.flush(&mut out);
        let text: Vec<_> = out
            .iter()
            .map(|parsed| match parsed {
                Parsed::Message(m) => format!("{:?} {}..{} {}", m.kind, m.start, m.end, m.operation),
                other => format!("{other:?}"),
            })
            .collect();
        assert_eq!(text.join("; ").replace(' ', "_"), expected.replace(' ', "_"));
    }

    /// Messages of an encrypted connection that ends after these calls.
    fn encrypted(calls: &[(Direction, u64, u64)]) -> usize {
        let (mut turns, mut out) = (Turns::encrypted(Direction::Out, Vec::new()), Vec::new());
        for (direction, start, end) in calls {
            turns.feed(*direction, *start, *end, &mut out);
        }
        turns.end(&mut out);
        out.len()
    }

    #[test]
    fn a_farewell_is_no_exchange() {
        use Direction::{In, Out};
        let exchange = [(Out, 0, 80), (In, 0, 600)];
        assert_eq!(encrypted(&exchange), 2);
        assert_eq!(encrypted(&[&exchange[..], &[(Out, 80, 111)]].concat()), 2);
        assert_eq!(encrypted(&[&exchange[..], &[(Out, 80, 166)]].concat()), 3);
        assert_eq!(encrypted(&[&exchange[..], &[(Out, 80, 111), (In, 600, 631)]].concat()), 4);
    }

    #[test]
    fn each_change_of_direction_ends_a_message() {
        use Direction::{In, Out};
        check(
            Out,
            &[(Out, 0, 5), (Out, 5, 9), (In, 0, 3), (Out, 9, 10)],
            "Request 0..9 port 1234; Response 0..3 ; Request 9..10 port 1234",
        );
        check(In, &[(Out, 7, 8), (In, 0, 3)], "Response 7..8 ; Request 0..3 port 1234");
        check(In, &[], "");
    }
}
