//! What a process has open, as all kinds of evidence look at it: requests that it serves, calls that it makes, and
//! which requests share a key (their content, a part of it, an id that they carry).
//!
//! What a reader would get wrong: a request stays here for [`LATE_NS`] after its answer. A call can still be made
//! for it (replication after the answer), and whoever asks "is this content unique" must count it: a copy of the
//! *last* request with the same bytes may still be in the proxy's queue.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;

use dprof_common::model::{EvidenceKind, SpanId};
use rustc_hash::FxHashMap;

use super::carried::Carried;
pub(crate) use super::process::Process;
use super::processes::Processes;
pub(crate) use super::shared::{KeyKind, Shared, Ties, fold, key};
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
    /// Where those with its content are listed.
    pub(crate) content_at: Option<Ref>,
    /// What few requests have.
    carried: Option<Box<Carried>>,
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
    /// The parts under which it is listed.
    pub(crate) fn parts(&self) -> &[u64] {
        self.carried.as_ref().map_or(&[], |carried| &carried.parts)
    }

    /// Trace and span id that it carries.
    pub(crate) fn explicit_id(&self) -> Option<(u128, u64)> {
        self.carried.as_ref()?.explicit_id
    }

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
    /// Where requests with its content are listed, if there were any when it was made.
    pub(crate) content_at: Option<Ref>,
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

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Table {
    requests: Slab<Request>,
    calls: Slab<Call>,
    processes: Processes,
    shared: Slab<Shared>,
    shared_by_key: FxHashMap<u64, Ref>,
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
        self.requests.insert(Request {
            span_id: seen.span_id,
            tgid: seen.tgid,
            tid: seen.tid,
            operation: seen.operation,
            sock: seen.sock,
            protocol: seen.protocol,
            order: self.next_order,
            content: seen.content,
            content_at: None,
            carried: Carried::of(seen),
            reply: Reply::Awaited,
            n_calls: 0,
            first_call: None,
            first_believed: None,
            last_peer: 0,
            has_passed: false,
            matched_peer: None,
            losses,
            doubted,
        })
    }

    /// Adds a call without a cause.
    pub(crate) fn called(&mut self, seen: &Observation<'_>) -> Ref {
        let content_at =
            seen.content.and_then(|hash| self.find_shared(key(KeyKind::Content, seen.tgid, hash)));
        let process = self.process_mut(seen.tgid);
        process.n_calls += 1;
        process.has_called = true;
        process.n_known += u32::from(content_at.is_some());
        process.operations.called(seen.operation);
        self.next_number += 1;
        self.calls.insert(Call {
            span_id: seen.span_id,
            tgid: seen.tgid,
            sock: seen.sock,
            peer: seen.peer,
            protocol: seen.protocol,
            operation: seen.operation,
            number: self.next_number,
            order: self.next_order + 1,
            content: seen.content,
            content_at,
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
        })
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

    /// Whether a connection of the process has brought what may be requests of a protocol that is not known yet.
    pub(crate) fn hide(&mut self, sock: u64, tgid: u32, hides: bool) {
        let forgot = self.processes.hide(sock, tgid, hides);
        self.losses = self.losses.wrapping_add(u32::from(forgot));
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
            request.carried.get_or_insert_default().parts = parts.into();
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
        let (tgid, unhashed) = (request.tgid, request.content.is_none());
        let process = self.process_mut(tgid);
        process.n_open = process.n_open.saturating_sub(1);
        process.n_unhashed = process.n_unhashed.saturating_sub(u32::from(unhashed));
        if !process.is_leaf() {
            self.late.push_back((now_ns.saturating_add(LATE_NS), at));
        }
    }

    /// Forgets a call.
    pub(crate) fn drop_call(&mut self, at: Ref) {
        self.unlink(at);
        self.calls.remove(at);
    }

    /// An answered request that is due to be forgotten, oldest first; earlier if there are too many.
    pub(crate) fn next_late(&mut self, now_ns: u64) -> Option<Ref> {
        let (due_ns, _) = *self.late.front()?;
        (due_ns <= now_ns || self.requests.len() > REQUESTS_MAX)
            .then(|| self.late.pop_front().map(|(_, at)| at))
            .flatten()
    }

    /// Forgets a request; its calls keep its id.
    pub(crate) fn forget(&mut self, at: Ref) {
        let Some(request) = self.requests.get_mut(at) else { return };
        let (tgid, content_at, mut call) = (request.tgid, request.content_at, request.first_call);
        let carried = request.carried.take();
        self.requests.remove(at);
        while let Some(entry) = call.and_then(|at| self.calls.get_mut(at)) {
            entry.parent = None;
            entry.previous_sibling = None;
            call = entry.next_sibling.take();
        }
        if let Some(shared_at) = content_at {
            self.unshare(shared_at);
        }
        if let Some(carried) = carried {
            let parts = carried.parts.iter().map(|hash| key(KeyKind::Part, tgid, *hash));
            let trace_id = carried.explicit_id.map(|(id, _)| key(KeyKind::TraceId, tgid, fold(id)));
            let request_id = carried.request_id.map(|hash| key(KeyKind::RequestId, tgid, hash));
            for key in parts.chain(trace_id).chain(request_id) {
                if let Some(shared_at) = self.find_shared(key) {
                    self.unshare(shared_at);
                }
            }
        }
    }

    /// Lists a request under its content.
    pub(crate) fn share_content(&mut self, hash: u64, at: Ref) {
        let Some(tgid) = self.request(at).map(|request| request.tgid) else { return };
        let shared_at = self.share(key(KeyKind::Content, tgid, hash), at);
        if let Some(request) = self.requests.get_mut(at) {
            request.content_at = Some(shared_at);
        }
    }

    /// Puts a request under a key; where that is listed.
    pub(crate) fn share(&mut self, key: u64, at: Ref) -> Ref {
        let order = self.next_order;
        let place = match self.shared_by_key.entry(key) {
            Entry::Vacant(place) => {
                return *place.insert(self.shared.insert(Shared { newest: at, n: 1, key, ties: None }));
            }
            Entry::Occupied(place) => *place.get(),
        };
        let Some(shared) = self.shared.get_mut(place) else { return place };
        shared.n += 1;
        if shared.newest == at {
            // A request that says the same twice (`MGET a a`).
            return place;
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
        place
    }

    fn unshare(&mut self, at: Ref) {
        if let Some(shared) = self.shared.get_mut(at) {
            shared.n -= 1;
            if shared.n == 0 {
                self.shared_by_key.remove(&shared.key);
                self.shared.remove(at);
            }
        }
    }

    /// Where requests under a key are listed.
    pub(crate) fn find_shared(&self, key: u64) -> Option<Ref> {
        self.shared_by_key.get(&key).copied()
    }

    /// Requests under a key.
    pub(crate) fn shared(&self, at: Option<Ref>) -> Option<&Shared> {
        self.shared.get(at?)
    }

    /// Requests under a key.
    pub(crate) fn shared_mut(&mut self, at: Option<Ref>) -> Option<&mut Shared> {
        self.shared.get_mut(at?)
    }

    /// How many requests and calls are kept.
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.requests.len(), self.calls.len())
    }

    /// Whether every list and index is empty: everything was forgotten again.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == (0, 0)
            && self.shared.len() == 0
            && self.shared_by_key.is_empty()
            && self.late.is_empty()
    }
}
