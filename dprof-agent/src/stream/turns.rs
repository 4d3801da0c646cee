//! The protocol of last resort: a connection that nothing understands, cut into requests and responses by its
//! changes of direction. Right for every protocol that asks and waits; pipelining and pushes blur it.
//!
//! What a reader would get wrong: a message's end shows only when the other direction begins, so the last one
//! waits for [`Turns::flush`].

use std::borrow::Cow;

use crate::protocol::{Direction, Message, MessageKind, Parsed};

/// Name of the protocol as stored.
pub(crate) const NAME: &str = "unknown";

/// A direction is taken as done when it has been silent this long: a request whose answer takes a second is no
/// worse off, since a response is a message of its own.
pub(crate) const TURN_IDLE_NS: u64 = 1_000_000_000;

/// Parser by change of direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turns {
    request_direction: Direction,
    /// The service's port: names the operation.
    port: u16,
    /// The message that is growing.
    turn: Option<(Direction, u64, u64)>,
}

impl Turns {
    /// Turns of a connection whose requests flow in `request_direction`, to `port`.
    pub(crate) const fn new(request_direction: Direction, port: u16) -> Self {
        Self { request_direction, port, turn: None }
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
            message.operation = Cow::Owned(format!("port {}", self.port));
        }
        out.push(Parsed::Message(message));
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
