//! Links: which server-side request of a process caused a call that the process made. One file per kind of
//! evidence behind one trait; [`linker`] asks them, strongest first, and decides.
//!
//! *The problem.* A process reads requests and makes calls. Nothing in the kernel ties a call to its request; in an
//! event loop one thread holds hundreds. *The simpler ideas* fail exactly there: the thread's latest request (vPath,
//! ATC'09, made for a thread per request) names a stranger as soon as two are read before one is sent on; first
//! come first served breaks where a proxy has several upstreams; the most likely delay (WAP5, WWW'06) collapses with
//! concurrency, and joint optimisation over delays (TraceWeaver, SIGCOMM'24) stays at 80 to 98 %. *The idea.* Most
//! hops in the middle of a system pass something on unchanged: an id, a command, a whole stream, a reply. Content as
//! a join key is CaT's (Middleware'21); here it is checked twice, by the request's bytes and, independently, by the
//! reply's, and a link is called certain only when nothing else can explain it.
//!
//! | kind | file | stands on |
//! |---|---|---|
//! | explicit id | [`explicit`] | an id that came in goes out |
//! | stream relay | [`relay`] | two connections carry the same bytes at a constant distance |
//! | relayed content | [`content`] | the same command, or a part of it, came in |
//! | order | [`order`], [`routes`], [`replies`] | among equals, who came first; checked by the order of replies |
//! | same thread | [`thread`] | one thread read the request and made the call |
//!
//! *What stays uncertain.* Equal commands with equal replies are told apart by order alone; a process that changes
//! what it passes on and serves many requests on one thread by nothing. Then the link says `probable` with what was
//! measured ([`confidence`]), or there is none: unknown is an answer, a wrong link is worse.
//!
//! What a reader would get wrong: evidence sees message *halves* in the order of capture, not spans, and the verdict
//! may come later than the call, when replies have been seen ([`linker::Verdict::Later`]).

mod carried;
pub(crate) mod confidence;
pub(crate) mod content;
mod decided;
pub(crate) mod explicit;
mod head;
mod ladder;
pub mod linker;
mod matched;
pub(crate) mod order;
mod process;
mod processes;
pub(crate) mod relay;
mod remembered;
mod replies;
mod routes;
mod shared;
mod slab;
pub(crate) mod table;
#[cfg(test)]
mod tests;
pub(crate) mod thread;

pub use self::confidence::{EvidenceSet, LinkOptions};
pub use self::slab::Ref;

use dprof_common::model::{EvidenceKind, SpanId};

use self::table::Table;
use crate::stream::Chunk;

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
    /// The far end's address and port as a number, the same for every connection to it.
    pub peer: u64,
    /// Protocol name.
    pub protocol: &'static str,
    /// Request: hash of what it asks for, without arguments; the last bit: it is to be handed on.
    pub operation: u64,
    /// When: read time of what was received, departure (else hook time) of what was sent. Monotonic.
    pub time_ns: u64,
    /// How many messages the call carried that this one's last byte was in.
    pub batch: u32,
    /// Position of its first byte in its direction of the stream.
    pub start: u64,
    /// Hash of the whole content; `None` if bytes were not seen.
    pub content: Option<u64>,
    /// Request: hashes of parts that may travel alone.
    pub parts: &'a [u64],
    /// Request: trace and span id that it carries.
    pub explicit_id: Option<(u128, u64)>,
    /// Request: hash of the request id that it carries.
    pub request_id: Option<u64>,
}

/// How sure a proposal is by its nature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Certainty {
    /// Nothing else explains the call.
    Certain,
    /// Nothing else explains it if its reply turns out to be the request's: certain then, else probable.
    IfReplyPasses,
    /// Calibrated by this feature of its kind (what [`confidence`] counts separately).
    Probable(u8),
}

/// A proposed cause.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Proposal {
    /// The causing request.
    pub(crate) parent: Ref,
    /// Further ones, of a call that serves several.
    pub(crate) further: Vec<SpanId>,
    /// How sure.
    pub(crate) certainty: Certainty,
}

impl Proposal {
    /// One cause.
    pub(crate) const fn one(parent: Ref, certainty: Certainty) -> Self {
        Self { parent, further: Vec::new(), certainty }
    }
}

/// What happens in a process, as one kind of evidence needs to know it. Calls come in the order of capture, after
/// the table has taken the event in. State is bounded by the implementation; forgetting means no link.
pub(crate) trait Evidence {
    /// Which kind.
    fn kind(&self) -> EvidenceKind;

    /// A request was read by a server process.
    fn request_read(&mut self, table: &mut Table, request: Ref, seen: &Observation<'_>) {
        let _ = (table, request, seen);
    }

    /// A process made a call: which request caused it?
    fn call_made(&mut self, table: &mut Table, call: Ref, seen: &Observation<'_>) -> Option<Proposal>;

    /// A call was made, and has the cause that was told, if any: whether this kind tells it later, if it has none.
    fn tells_later(&mut self, table: &mut Table, call: Ref, seen: &Observation<'_>) -> bool {
        let _ = (table, call, seen);
        false
    }

    /// The response of a call was read back by the process that made it.
    fn reply_read(&mut self, table: &mut Table, call: Ref, seen: &Observation<'_>) {
        let _ = (table, call, seen);
    }

    /// A server process answered a request (`None`: its connection ended): what its calls are may be put right now.
    fn request_done(&mut self, table: &mut Table, request: Ref, seen: Option<&Observation<'_>>) {
        let _ = (table, request, seen);
    }

    /// Events were lost (0: of any process): what is open may be incomplete.
    fn disturbed(&mut self, tgid: u32) {
        let _ = tgid;
    }

    /// Bytes were read or sent, before any message in them is told.
    fn bytes(&mut self, sock: u64, chunk: &Chunk<'_>) {
        let _ = (sock, chunk);
    }

    /// A connection ended.
    fn closed(&mut self, sock: u64) {
        let _ = sock;
    }
}
