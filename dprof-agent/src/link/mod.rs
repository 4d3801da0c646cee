//! Links: which server-side request of a process caused a call that the process made. One file per kind of
//! evidence behind one trait.
//!
//! What a reader would get wrong: evidence sees message *halves* in the order of capture, not spans. A call's
//! cause must be known, or given up, when its trace id is needed; a wrong link is worse than none.

pub mod thread;

use dprof_common::model::{EvidenceKind, SpanId};

use crate::protocol::Message;

/// One end of a message at the moment that it is known whole.
#[derive(Clone, Copy, Debug)]
pub struct Observation<'a> {
    /// The RPC.
    pub span_id: SpanId,
    /// Process that read or sent it.
    pub tgid: u32,
    /// Thread that read or sent its last byte.
    pub tid: u32,
    /// Socket cookie.
    pub sock: u64,
    /// When: read time of what was received, departure (else hook time) of what was sent. Monotonic.
    pub time_ns: u64,
    /// How many messages the call carried that this one's last byte was in.
    pub batch: u32,
    /// The message.
    pub message: &'a Message,
}

/// A proposed cause.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The causing RPC.
    pub parent: SpanId,
    /// Calibrated confidence, `None` while uncalibrated.
    pub confidence: Option<f32>,
}

/// What happens in a process, as one kind of evidence needs to know it. Calls come in the order of capture.
/// State is bounded by the implementation; forgetting means no link.
pub trait Evidence: Send {
    /// Which kind.
    fn kind(&self) -> EvidenceKind;

    /// A request was read by a server process.
    fn request_read(&mut self, seen: &Observation<'_>);

    /// A process made a call: which open request caused it?
    fn call_made(&mut self, seen: &Observation<'_>) -> Option<Candidate>;

    /// The response of a call was read back by the process that made it.
    fn reply_read(&mut self, seen: &Observation<'_>);

    /// A server process answered a request (or its connection ended): it causes nothing from here on.
    fn request_done(&mut self, span_id: SpanId, tgid: u32, tid: u32);

    /// Bytes were lost on a socket of the process (0: events of any process were lost): what is open may be
    /// incomplete.
    fn disturbed(&mut self, tgid: u32);
}
