//! Who understands a socket's bytes, and what may change that.

use dprof_common::settings::Protocols;

use super::detect::Heads;
use super::socket::Socket;
use super::turns::Turns;
use crate::protocol::capture::Capture;
use crate::protocol::{Attributes, Direction, Parser, Protocol};

/// Who understands the socket's bytes.
pub(super) enum Speech {
    /// Nobody yet.
    Detecting(Heads),
    /// A protocol.
    Speaking {
        name: &'static str,
        parser: Box<dyn Parser>,
        /// Protocols that it turned out not to be.
        excluded: Vec<&'static str>,
    },
    /// Nobody: cut by changes of direction.
    Turns(Turns),
    /// Nobody, and nobody asked.
    Ignored,
    /// It has no messages any more.
    Opaque { name: &'static str },
    /// A protocol that is turned off.
    Off { name: &'static str },
}

/// A change of speech that a parser asked for.
#[derive(Clone, Debug)]
pub(crate) enum Transition {
    /// Another protocol from these positions on.
    Switch([u64; 2]),
    /// No messages any more.
    Opaque,
    /// Nothing that can be read from these positions on.
    Encrypted { at: [u64; 2], request_direction: Direction, attributes: Attributes },
    /// Detection was wrong.
    Mistaken,
}

/// What the engine was told that matters to detection.
#[derive(Clone, Copy)]
pub(crate) struct Grammar {
    /// Protocols to detect.
    pub(crate) protocols: &'static [&'static dyn Protocol],
    /// Of these, the ones that are looked into.
    pub(crate) chosen: Protocols,
    /// Whether unknown connections are cut by changes of direction.
    pub(crate) unknown: bool,
    /// What may be kept of keys and values.
    pub(crate) capture: Capture,
}

impl Socket {
    /// Whether it is not known yet what is spoken.
    pub(crate) const fn is_undecided(&self) -> bool {
        matches!(self.speech, Speech::Detecting(_))
    }

    /// Whether bytes of `direction` wait until it is: they may be requests, or replies.
    pub(crate) fn holds_back(&self, direction: Direction) -> bool {
        matches!(&self.speech, Speech::Detecting(heads) if heads.holds(direction))
    }
}
