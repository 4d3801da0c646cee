//! What a process has open, as all kinds of evidence look at it: requests that it serves, calls that it makes, and
//! which requests share a key (their content, a part of it, an id that they carry).
//!
//! What a reader would get wrong: a request stays here for [`LATE_NS`] after its answer. A call can still be made
//! for it (replication after the answer), and whoever asks "is this content unique" must count it: a copy of the
//! *last* request with the same bytes may still be in the proxy's queue.

use std::collections::VecDeque;

use dprof_common::model::{EvidenceKind, SpanId};
use rustc_hash::FxHashMap;

pub(crate) use super::process::Process;
use super::processes::Processes;
pub(crate) use super::slab::Ref;
use super::slab::Slab;
use super::{Certainty, Observation};

/// How long an answered request may still cause calls, and makes a later one with the same content doubtful.
/// Replication queues of a proxy drain within milliseconds; a tenth of a second is generous and, at 20,000 requests
/// a second, 2,000 entries.
pub(crate) const LATE_NS: u64 = 100_000_000;
/// Requests kept, open and answered. The engine's own limit of open requests comes first; this bounds the answered.
pub(crate) const REQUESTS_MAX: usize = 512 * 1024;
/// Requests that share a key and are told apart; of more the oldest are forgotten (and the rest stay ambiguous).
const SHARED_MAX: usize = 128 * 1024;
/// Calls of one request that are compared with each other: more than any quorum.
const SIBLINGS_MAX: usize = 64;
/// How far a message's answer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Not yet.
    Awaited,
    /// Came (or left) with this content; `None` if its bytes are not known.
    Seen(Option<u64>),
    /// There will be none.
    Never,
}

/// A request that a process serves.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) span_id: SpanId,
    pub(crate) tgid: u32,
    pub(crate) tid: u32,
    /// Hash of what it asks for, without arguments.
    pub(crate) operation: u64,
    /// The connection that it came on.
    pub(crate) sock: u64,
    pub(crate) protocol: &'static str,
    /// Number in the order of reading, over all processes.
    pub(crate) order: u64,
    pub(crate) content: Option<u64>,
    pub(crate) parts: Box<[u64]>,
    pub(crate) explicit_id: Option<Box<(u128, u64)>>,
    pub(crate) carried_id: Option<u64>,
    pub(crate) reply: Reply,
    /// Calls that name it as their cause.
    pub(crate) n_calls: u32,
    first_call: Option<Ref>,
    /// The first of them, believed or not any more.
    pub(crate) first_believed: Option<Ref>,
    /// Where the last of them went.
    pub(crate) last_peer: u64,
    /// The reply of one of them was the answer.
    pub(crate) has_passed: bool,
    /// Where the call went whose reply, by order, was the answer.
    pub(crate) matched_peer: Option<u64>,
    /// The process's count of losses when it was read.
    losses: u32,
    /// Read before everything about the process's older connections was known.
    doubted: bool,
}

impl Request {
    /// Not answered yet.
    pub(crate) fn is_open(&self) -> bool {
        self.reply == Reply::Awaited
    }
}

/// A call that a process makes.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) span_id: SpanId,
    pub(crate) tgid: u32,
    /// The connection that it went on.
    pub(crate) sock: u64,
    pub(crate) peer: u64,
    pub(crate) protocol: &'static str,
    /// Hash of what it asks for, without arguments.
    pub(crate) operation: u64,
    /// Number in the order of calling, over all processes.
    pub(crate) number: u64,
    /// Number in the order of reading that the next request would have had.
    pub(crate) order: u64,
    pub(crate) content: Option<u64>,
    pub(crate) reply: Reply,
    /// Its cause as believed now.
    pub(crate) parent: Option<Ref>,
    /// Span id of that cause, which outlives the entry.
    pub(crate) parent_id: Option<SpanId>,
    pub(crate) further: Vec<SpanId>,
    pub(crate) kind: EvidenceKind,
    pub(crate) certainty: Certainty,
    /// Decided: nothing changes any more.
    pub(crate) is_final: bool,
    /// An answered request was found to be its cause by its reply.
    pub(crate) is_matched: bool,
    /// Number of its reply in the order of reading, over all processes; 0: none yet.
    pub(crate) reply_number: u64,
    /// What its cause is may still be learned.
    pub(crate) is_provisional: bool,
    /// What the thread said, for calibration: cause and feature.
    pub(crate) thread_said: Option<(SpanId, u8)>,
    /// What the order of calls said, for calibration.
    pub(crate) order_said: Option<(SpanId, u8)>,
    /// The request that its thread held, believed or not.
    pub(crate) held: Option<Ref>,
    /// Its cause was answered before it was.
    pub(crate) outlives: bool,
    next_sibling: Option<Ref>,
    previous_sibling: Option<Ref>,
}

/// Requests with one key.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The newest, or the only one.
    pub(crate) newest: Ref,
    /// How many there are, answered ones included.
    pub(crate) n: u32,
    /// Changes with every new one.
    pub(crate) arrivals: u32,
    /// All of them in the order of reading, once there was more than one.
    pub(crate) ties: Option<Box<Ties>>,
}

/// Several requests with one key.
#[derive(Debug, Default)]
pub(crate) struct Ties {
    /// In the order of reading; some may be gone.
    pub(crate) requests: VecDeque<(u64, Ref)>,
    /// Per peer (0: any), the order number of the last request that was sent on.
    pub(crate) cursors: Vec<(u64, u64)>,
    /// Calls with their content whose reply was read, in that order; some may be matched or gone.
    pub(crate) replied: VecDeque<Ref>,
    /// The last ones whose reply was an answer.
    pub(crate) matched: Vec<Matched>,
}

/// A call whose reply was found to be the answer of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matched {
    /// The call's connection and number.
    pub(crate) sock: u64,
    pub(crate) call: u64,
    /// The request's number.
    pub(crate) request: u64,
}

/// What a key is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum KeyKind {
    Content = 0x9e37_79b9_7f4a_7c15,
    Part = 0xbf58_476d_1ce4_e5b9,
    TraceId = 0x94d0_49bb_1331_11eb,
    RequestId = 0xd6e8_feb8_6659_fd93,
}

/// A key of a process: multiply-and-fold (wyhash's step), so that equal hashes in two processes differ.
pub(crate) fn key(kind: KeyKind, tgid: u32, hash: u64) -> u64 {
    let product = u128::from(hash ^ kind as u64) * u128::from((u64::from(tgid) << 1) ^ 0xa076_1d64_78bd_642f);
    (product as u64) ^ (product >> 64) as u64
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Table {
    requests: Slab<Request>,
    calls: Slab<Call>,
    /// Open ones.
    request_by_id: FxHashMap<SpanId, Ref>,
    call_by_id: FxHashMap<SpanId, Ref>,
    processes: Processes,
    shared: FxHashMap<u64, Shared>,
    /// Answered requests, and when they leave.
    late: VecDeque<(u64, Ref)>,
    next_order: u64,
    next_number: u64,
    /// Losses that may concern any process.
    losses: u32,
    /// Calls whose cause was put right: verdicts that waited for it can be given.
    pub(crate) settled: Vec<Ref>,
}

impl Table {
    /// Adds a request.
    pub(crate) fn read(&mut self, seen: &Observation<'_>) -> Ref {
        self.next_order += 1;
        let losses = self.losses;
        let process = self.process_mut(seen.tgid);
        process.n_open += 1;
        process.n_unhashed += u32::from(seen.content.is_none());
        process.note_request();
        process.operations.read(seen.operation);
        let (losses, doubted) =
            (process.losses.wrapping_add(losses), seen.time_ns < process.doubted_until_ns);
        let at = self.requests.insert(Request {
            span_id: seen.span_id,
            tgid: seen.tgid,
            tid: seen.tid,
            operation: seen.operation,
            sock: seen.sock,
            protocol: seen.protocol,
            order: self.next_order,
            content: seen.content,
            parts: Box::default(),
            explicit_id: seen.explicit_id.map(Box::new),
            carried_id: seen.request_id,
            reply: Reply::Awaited,
            n_calls: 0,
            first_call: None,
            first_believed: None,
            last_peer: 0,
            has_passed: false,
            matched_peer: None,
            losses,
            doubted,
        });
        if let Some(old) = self.request_by_id.insert(seen.span_id, at) {
            self.close(old, Reply::Never);
        }
        at
    }

    /// Adds a call without a cause.
    pub(crate) fn called(&mut self, seen: &Observation<'_>) -> Ref {
        let known =
            seen.content.is_some_and(|hash| self.shared(key(KeyKind::Content, seen.tgid, hash)).is_some());
        let process = self.process_mut(seen.tgid);
        process.n_calls += 1;
        process.has_called = true;
        process.n_known += u32::from(known);
        process.operations.called(seen.operation);
        self.next_number += 1;
        let at = self.calls.insert(Call {
            span_id: seen.span_id,
            tgid: seen.tgid,
            sock: seen.sock,
            peer: seen.peer,
            protocol: seen.protocol,
            operation: seen.operation,
            number: self.next_number,
            order: self.next_order + 1,
            content: seen.content,
            reply: Reply::Awaited,
            parent: None,
            parent_id: None,
            further: Vec::new(),
            kind: EvidenceKind::Timing,
            certainty: Certainty::Probable(0),
            is_final: false,
            is_matched: false,
            reply_number: 0,
            is_provisional: false,
            thread_said: None,
            order_said: None,
            held: None,
            outlives: false,
            next_sibling: None,
            previous_sibling: None,
        });
        if let Some(old) = self.call_by_id.insert(seen.span_id, at) {
            self.drop_call(old);
        }
        at
    }

    /// A request.
    pub(crate) fn request(&self, at: Ref) -> Option<&Request> {
        self.requests.get(at)
    }

    /// A call.
    pub(crate) fn call(&self, at: Ref) -> Option<&Call> {
        self.calls.get(at)
    }

    /// A call.
    pub(crate) fn call_mut(&mut self, at: Ref) -> Option<&mut Call> {
        self.calls.get_mut(at)
    }

    /// A request.
    pub(crate) fn request_mut(&mut self, at: Ref) -> Option<&mut Request> {
        self.requests.get_mut(at)
    }

    /// The request of this id.
    pub(crate) fn find_request(&self, span_id: SpanId) -> Option<Ref> {
        self.request_by_id.get(&span_id).copied()
    }

    /// The call of this id.
    pub(crate) fn find_call(&self, span_id: SpanId) -> Option<Ref> {
        self.call_by_id.get(&span_id).copied()
    }

    /// A process; one that has done nothing yet has shown nothing.
    #[inline]
    pub(crate) fn process(&self, tgid: u32) -> &Process {
        self.processes.get(tgid)
    }

    /// A process.
    #[inline]
    pub(crate) fn process_mut(&mut self, tgid: u32) -> &mut Process {
        let (process, forgot) = self.processes.get_mut(tgid);
        // What was read before cannot be relied on.
        self.losses = self.losses.wrapping_add(u32::from(forgot));
        process
    }

    /// Something of the process was not seen (0: of any process).
    pub(crate) fn lose(&mut self, tgid: u32) {
        if tgid == 0 {
            self.losses = self.losses.wrapping_add(1);
        } else {
            let process = self.process_mut(tgid);
            process.losses = process.losses.wrapping_add(1);
        }
    }

    /// The process has a connection that is older than what was seen of it: what it read before is not known.
    pub(crate) fn doubt_until(&mut self, tgid: u32, until_ns: u64) {
        let process = self.process_mut(tgid);
        process.doubted_until_ns = process.doubted_until_ns.max(until_ns);
        // What is open was read before this was known.
        process.losses = process.losses.wrapping_add(1);
    }

    /// The parts under which a request is shared.
    pub(crate) fn set_parts(&mut self, at: Ref, parts: &[u64]) {
        if let Some(request) = self.requests.get_mut(at) {
            request.parts = parts.into();
        }
    }

    /// Whether all that happened in its process since the request was read is known.
    pub(crate) fn is_undisturbed(&self, request: &Request) -> bool {
        let process = self.process(request.tgid);
        !request.doubted && request.losses == process.losses.wrapping_add(self.losses)
    }

    /// Names `parent` as the cause of a call, in place of the one before.
    pub(crate) fn link(&mut self, call_at: Ref, parent: Option<Ref>) {
        self.unlink(call_at);
        let Some(call) = self.calls.get_mut(call_at) else { return };
        (call.parent, call.parent_id) = (None, None);
        let Some((at, request)) = parent.and_then(|at| Some((at, self.requests.get_mut(at)?))) else {
            return;
        };
        call.parent = Some(at);
        call.parent_id = Some(request.span_id);
        call.outlives = !request.is_open() && call.reply == Reply::Awaited;
        request.n_calls += 1;
        request.last_peer = call.peer;
        request.first_believed = request.first_believed.or(Some(call_at));
        let next = request.first_call.replace(call_at);
        call.next_sibling = next;
        if let Some(next) = next.and_then(|at| self.calls.get_mut(at)) {
            next.previous_sibling = Some(call_at);
        }
    }

    fn unlink(&mut self, call_at: Ref) {
        let Some(call) = self.calls.get_mut(call_at) else { return };
        let (next, previous) = (call.next_sibling.take(), call.previous_sibling.take());
        let parent = call.parent;
        if let Some(next) = next.and_then(|at| self.calls.get_mut(at)) {
            next.previous_sibling = previous;
        }
        if let Some(previous) = previous.and_then(|at| self.calls.get_mut(at)) {
            previous.next_sibling = next;
        }
        let Some(request) = parent.and_then(|at| self.requests.get_mut(at)) else { return };
        request.n_calls = request.n_calls.saturating_sub(1);
        if request.first_call == Some(call_at) {
            request.first_call = next;
        }
    }

    /// The newest calls of a request, at most [`SIBLINGS_MAX`].
    pub(crate) fn newest_calls_of(&self, request: &Request) -> impl Iterator<Item = (Ref, &Call)> {
        self.calls_of(request).take(SIBLINGS_MAX)
    }

    /// The calls of a request, newest first.
    pub(crate) fn calls_of(&self, request: &Request) -> impl Iterator<Item = (Ref, &Call)> {
        let mut at = request.first_call;
        std::iter::from_fn(move || {
            let found = at?;
            let call = self.calls.get(found)?;
            at = call.next_sibling;
            Some((found, call))
        })
    }

    /// A request was answered, or will not be.
    pub(crate) fn answer(&mut self, at: Ref, reply: Reply, now_ns: u64) {
        let Some(request) = self.requests.get_mut(at) else { return };
        if !request.is_open() {
            return;
        }
        request.reply = reply;
        let (span_id, tgid, unhashed) = (request.span_id, request.tgid, request.content.is_none());
        // Nobody asks for it by its id any more, and the table stays as small as what is open.
        self.forget_id(span_id, at);
        let process = self.process_mut(tgid);
        process.n_open = process.n_open.saturating_sub(1);
        process.n_unhashed = process.n_unhashed.saturating_sub(u32::from(unhashed));
        if !process.is_leaf() {
            self.late.push_back((now_ns.saturating_add(LATE_NS), at));
        }
    }

    /// The request at `at` is not found by its id any more; another one of the same id is.
    fn forget_id(&mut self, span_id: SpanId, at: Ref) {
        if self.request_by_id.get(&span_id) == Some(&at) {
            self.request_by_id.remove(&span_id);
        }
    }

    /// Forgets a call.
    pub(crate) fn drop_call(&mut self, at: Ref) {
        self.unlink(at);
        if let Some(call) = self.calls.remove(at)
            && self.call_by_id.get(&call.span_id) == Some(&at)
        {
            self.call_by_id.remove(&call.span_id);
        }
    }

    /// An answered request that is due to be forgotten, oldest first; earlier if there are too many.
    pub(crate) fn next_late(&mut self, now_ns: u64) -> Option<Ref> {
        let (due_ns, _) = *self.late.front()?;
        (due_ns <= now_ns || self.requests.len() > REQUESTS_MAX)
            .then(|| self.late.pop_front().map(|(_, at)| at))
            .flatten()
    }

    fn close(&mut self, at: Ref, reply: Reply) {
        self.answer(at, reply, 0);
        self.forget(at);
    }

    /// Forgets a request; its calls keep its id.
    pub(crate) fn forget(&mut self, at: Ref) {
        let mut call = self.requests.get(at).and_then(|request| request.first_call);
        while let Some(entry) = call.and_then(|at| self.calls.get_mut(at)) {
            entry.parent = None;
            entry.previous_sibling = None;
            call = entry.next_sibling.take();
        }
        let Some(request) = self.requests.remove(at) else { return };
        if request.is_open() {
            self.forget_id(request.span_id, at);
        }
        if let Some(hash) = request.content {
            self.unshare(key(KeyKind::Content, request.tgid, hash));
        }
        for hash in &request.parts {
            self.unshare(key(KeyKind::Part, request.tgid, *hash));
        }
        if let Some(carried) = &request.explicit_id {
            self.unshare(key(KeyKind::TraceId, request.tgid, fold(carried.0)));
        }
        if let Some(hash) = request.carried_id {
            self.unshare(key(KeyKind::RequestId, request.tgid, hash));
        }
    }

    /// Puts a request under a key.
    pub(crate) fn share(&mut self, key: u64, at: Ref) {
        let order = self.next_order;
        let Some(shared) = self.shared.get_mut(&key) else {
            self.shared.insert(key, Shared { newest: at, n: 1, arrivals: 1, ties: None });
            return;
        };
        if shared.newest == at {
            // A request that says the same twice (`MGET a a`).
            shared.n += 1;
            return;
        }
        let first = shared.newest;
        let first_order = self.requests.get(first).map_or(0, |request| request.order);
        let ties = shared.ties.get_or_insert_with(|| {
            let requests = VecDeque::from([(first_order, first)]);
            Box::new(Ties { requests, ..Ties::default() })
        });
        ties.requests.push_back((order, at));
        let gone = |at: Ref| self.requests.get(at).is_none();
        while ties.requests.len() > SHARED_MAX || ties.requests.front().is_some_and(|(_, at)| gone(*at)) {
            ties.requests.pop_front();
        }
        shared.newest = at;
        shared.n += 1;
        shared.arrivals = shared.arrivals.wrapping_add(1);
    }

    fn unshare(&mut self, key: u64) {
        if let Some(shared) = self.shared.get_mut(&key) {
            shared.n -= 1;
            if shared.n == 0 {
                self.shared.remove(&key);
            }
        }
    }

    /// Requests under a key.
    pub(crate) fn shared(&self, key: u64) -> Option<&Shared> {
        self.shared.get(&key)
    }

    /// Requests under a key.
    pub(crate) fn shared_mut(&mut self, key: u64) -> Option<&mut Shared> {
        self.shared.get_mut(&key)
    }

    /// How many requests and calls are kept.
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.requests.len(), self.calls.len())
    }

    /// Whether every list and index is empty: everything was forgotten again.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == (0, 0)
            && self.request_by_id.is_empty()
            && self.call_by_id.is_empty()
            && self.shared.is_empty()
            && self.late.is_empty()
    }
}

/// A 128-bit id in 64 bits.
pub(crate) const fn fold(id: u128) -> u64 {
    (id as u64) ^ (id >> 64) as u64
}
