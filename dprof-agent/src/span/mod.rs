//! Messages → RPC halves → spans: pairing ([`pair`]), what is open ([`open`]), times ([`times`]), and trees
//! ([`window`]).
//!
//! What a reader would get wrong: a half is what one *socket* saw of an RPC. When both ends live on this host
//! two halves of the same span id are made, independently, and meet in the window.

pub(crate) mod open;
pub(crate) mod pair;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod times;
pub(crate) mod window;

use dprof_common::model::MessageId;

use crate::protocol::Message;
use crate::stream::timeline::ByteTimes;

/// A message with the times of its first and last byte.
#[derive(Debug)]
pub(crate) struct Timed {
    /// The message.
    pub(crate) message: Message,
    /// Its first byte.
    pub(crate) first: ByteTimes,
    /// Its last byte.
    pub(crate) last: ByteTimes,
    /// How many requests ended in the call that carried the last byte.
    pub(crate) batch: u32,
    /// Number in the order of capture.
    pub(crate) id: MessageId,
}

impl Timed {
    /// When this end had the message whole: departure of its last byte, else the hook; or the read.
    pub(crate) fn done_ns(&self) -> u64 {
        match self.message.direction {
            crate::protocol::Direction::Out => self.last.wire_ns.unwrap_or(self.last.hook_ns),
            crate::protocol::Direction::In => self.last.hook_ns,
        }
    }
}
