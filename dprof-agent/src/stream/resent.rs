//! What was sent again, of one socket: ranges whose messages are still to come, and answers that have left.

use std::collections::VecDeque;

use dprof_common::model::SpanId;

/// Retransmitted ranges remembered per socket: of messages whose last call is still to come.
const RANGES_MAX: usize = 8;

/// Finished responses remembered per socket, to be marked when they are retransmitted.
const ANSWERED_MAX: usize = 4;

/// A server's answer that has left: its RPC and its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered {
    pub(crate) span_id: SpanId,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Retransmissions of a socket.
#[derive(Debug, Default)]
pub(crate) struct Resent {
    ranges: VecDeque<(u64, u64)>,
    answered: [Option<Answered>; ANSWERED_MAX],
    answered_idx: u8,
}

impl Resent {
    /// Notes bytes that were sent again.
    pub(crate) fn note(&mut self, start: u64, end: u64) {
        if self.ranges.len() == RANGES_MAX {
            self.ranges.pop_front();
        }
        self.ranges.push_back((start, end));
    }

    /// How many retransmissions touched `[start, end)` of what this end sent.
    pub(crate) fn touching(&self, start: u64, end: u64) -> u32 {
        self.ranges.iter().filter(|(from, to)| *from < end && start < *to).count() as u32
    }

    /// Remembers the bytes of an answer that has left.
    pub(crate) fn note_answered(&mut self, answered: Answered) {
        self.answered[usize::from(self.answered_idx) % ANSWERED_MAX] = Some(answered);
        self.answered_idx = self.answered_idx.wrapping_add(1);
    }

    /// Answers that have left with bytes in `[start, end)`.
    pub(crate) fn answered_in(&self, start: u64, end: u64) -> impl Iterator<Item = SpanId> + use<> {
        self.answered
            .into_iter()
            .flatten()
            .filter(move |answered| answered.start < end && start < answered.end)
            .map(|answered| answered.span_id)
    }
}
