//! Asks the kinds of evidence, strongest first, and decides: at once where nothing can change the verdict, else when
//! the replies of call and request have been seen, at the latest after `wait_ns` (a third of the hold time).
//!
//! The check of replies. A proxy that passes commands on passes replies back, so the hash of the reply that came and
//! of the one that left must agree. It is independent of what the link stands on: requests were compared by what
//! clients wrote, replies by what servers did. Passed, it completes certainty; failed, it takes certainty away, and
//! in a process that has shown that it changes no replies it vetoes: the link is dropped. With several calls for one
//! request (quorum) one that passed is enough, the others may well have answered something else.
//!
//! What a reader would get wrong: between call and verdict `Call::parent` is a belief that evidence may exchange
//! ([`super::order`]). Nothing outside learns of it before it is final.

use std::collections::VecDeque;

use dprof_common::model::{EvidenceKind, Link, SpanId};

use super::confidence::{Calibration, LinkOptions};
use super::content;
pub use super::decided::{Decided, LinkCounters, Verdict};
use super::ladder::{Ladder, Said};
use super::order::{self, InOrder};
use super::relay;
use super::table::{LATE_NS, Ref, Reply, Request, Table};
use super::thread;
use super::{Certainty, Observation};
use crate::stream::Chunk;

/// What a process had read before the agent saw everything, or what could not be told to be no request, may still be
/// under way for this long: nothing is certain.
const JOINED_NS: u64 = LATE_NS;

/// Decides on causes.
pub struct Linker {
    table: Table,
    evidence: Ladder,
    calibration: Calibration,
    in_order: InOrder,
    options: LinkOptions,
    wait_ns: u64,
    /// Calls without a verdict, by when it is due.
    pending: VecDeque<(u64, Ref)>,
    decided: Vec<Decided>,
    detached: Vec<SpanId>,
    counters: LinkCounters,
    /// Kept between calls to save allocations.
    calls: Vec<Ref>,
}

/// What the two replies say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Passed,
    Failed,
    Unknown,
}

impl Linker {
    /// A linker that has seen nothing. Verdicts come within `wait_ns`.
    pub fn new(options: LinkOptions, wait_ns: u64) -> Self {
        Self {
            table: Table::default(),
            evidence: Ladder::new(options.evidence),
            calibration: Calibration::default(),
            in_order: InOrder::default(),
            options,
            wait_ns,
            pending: VecDeque::new(),
            decided: Vec::new(),
            detached: Vec::new(),
            counters: LinkCounters::default(),
            calls: Vec::new(),
        }
    }

    /// Verdicts on calls that are made from now on come within `wait_ns`.
    pub(crate) const fn set_wait(&mut self, wait_ns: u64) {
        self.wait_ns = wait_ns;
    }

    /// What was decided so far.
    pub const fn counters(&self) -> LinkCounters {
        self.counters
    }

    /// Requests and calls that are kept.
    pub(crate) fn kept(&self) -> (usize, usize) {
        self.table.len()
    }

    /// Whether everything was forgotten.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty() && self.pending.is_empty()
    }

    /// A server process read a request: where it is kept until [`Linker::request_done`].
    #[inline(never)]
    pub fn request_read(&mut self, seen: &Observation<'_>) -> Ref {
        let request = self.table.read(seen);
        self.evidence.request_read(&mut self.table, request, seen);
        self.take_settled();
        request
    }

    /// A process made a call: where it is kept until its reply is read or it ends without one, and its cause.
    #[inline(never)]
    pub fn call_made(&mut self, seen: &Observation<'_>, now_ns: u64) -> (Ref, Verdict) {
        let at = self.table.called(seen);
        (at, self.ask(at, seen, now_ns))
    }

    fn ask(&mut self, at: Ref, seen: &Observation<'_>, now_ns: u64) -> Verdict {
        let Said { chosen, thread } = self.evidence.call_made(&mut self.table, at, seen);
        let thread_said = thread::said(&self.table, thread.as_ref());
        let Some((kind, proposal)) = chosen else {
            return if self.tells_later(at, seen) {
                self.later(at, EvidenceKind::Order, now_ns)
            } else {
                self.now(at)
            };
        };
        let mut order_said = None;
        if kind != EvidenceKind::Order
            && let Some(request) = self.table.request(proposal.parent)
        {
            order_said = Some(self.in_order.said(seen.peer, request));
        }
        self.table.link(at, Some(proposal.parent));
        if let Some(call) = self.table.call_mut(at) {
            (call.kind, call.certainty, call.further) = (kind, proposal.certainty, proposal.further);
            (call.order_said, call.thread_said) = (order_said, thread_said);
        }
        self.tells_later(at, seen);
        match kind {
            EvidenceKind::RelayedContent | EvidenceKind::Order | EvidenceKind::StreamRelay => {
                self.later(at, kind, now_ns)
            }
            _ => self.now(at),
        }
    }

    /// Tells every kind of a call; whether one of them will tell its cause.
    fn tells_later(&mut self, at: Ref, seen: &Observation<'_>) -> bool {
        self.evidence.tells_later(&mut self.table, at, seen)
    }

    /// Gives the verdicts that waited for a cause to be put right.
    fn take_settled(&mut self) {
        while let Some(at) = self.table.settled.pop() {
            if self.table.call(at).is_some_and(|call| call.reply != Reply::Awaited) {
                self.ended(at);
            }
        }
    }

    fn later(&mut self, at: Ref, kind: EvidenceKind, now_ns: u64) -> Verdict {
        if let Some(call) = self.table.call_mut(at) {
            call.kind = kind;
            if kind == EvidenceKind::Order && call.parent.is_none() {
                call.certainty = Certainty::Probable(order::feature::BLIND);
            }
        }
        self.pending.push_back((now_ns.saturating_add(self.wait_ns), at));
        Verdict::Later
    }

    fn now(&mut self, at: Ref) -> Verdict {
        Verdict::Now(self.decide(at).unwrap_or(Decided::none(SpanId(0))))
    }

    /// The response of a call was read.
    #[inline(never)]
    pub fn reply_read(&mut self, at: Ref, seen: &Observation<'_>) {
        if let Some(call) = self.table.call_mut(at) {
            call.reply = Reply::Seen(seen.content);
        }
        self.evidence.reply_read(&mut self.table, at, seen);
        self.take_settled();
        self.ended(at);
    }

    /// A call ended without a response.
    pub(crate) fn call_ended(&mut self, at: Ref) {
        if let Some(call) = self.table.call_mut(at) {
            call.reply = Reply::Never;
        }
        self.ended(at);
    }

    fn ended(&mut self, at: Ref) {
        let Some(call) = self.table.call(at) else { return };
        if call.is_final {
            self.table.drop_call(at);
        } else if call.parent_id.is_some()
            && call.parent.and_then(|at| self.table.request(at)).is_none_or(|request| !request.is_open())
            && !self.is_spare(at)
        {
            self.decide_later(at);
        }
    }

    /// A server process answered a request (`seen`), or will not answer it.
    #[inline(never)]
    pub fn request_done(&mut self, at: Ref, seen: Option<&Observation<'_>>, now_ns: u64) {
        if !self.table.request(at).is_some_and(Request::is_open) {
            return;
        }
        let reply = seen.map_or(Reply::Never, |seen| Reply::Seen(seen.content));
        self.table.answer(at, reply, now_ns);
        self.evidence.request_done(&mut self.table, at, seen);
        let mut calls = std::mem::take(&mut self.calls);
        if let Some(request) = self.table.request(at) {
            calls.extend(self.table.calls_of(request).map(|(at, _)| at));
        }
        for at in calls.drain(..) {
            let Some(call) = self.table.call_mut(at) else { continue };
            if call.reply == Reply::Awaited {
                call.outlives = true;
                if call.is_final {
                    self.detached.push(call.span_id);
                }
            } else if !call.is_final && !self.is_spare(at) {
                self.decide_later(at);
            }
        }
        self.calls = calls;
        let is_a_leaf =
            self.table.request(at).is_some_and(|request| self.table.process(request.tgid).is_leaf());
        if is_a_leaf {
            self.table.forget(at);
        }
    }

    /// Whether another call to the same peer turned out to be the one whose reply answered the believed cause: then
    /// this one, told by order alone, may still be another's. Or whether its cause is still to be learned.
    fn is_spare(&self, at: Ref) -> bool {
        let Some(call) =
            self.table.call(at).filter(|call| call.kind == EvidenceKind::Order && !call.is_matched)
        else {
            return false;
        };
        let request = call.parent.and_then(|at| self.table.request(at));
        call.is_provisional || request.is_some_and(|request| request.matched_peer == Some(call.peer))
    }

    /// Something of the process was not seen (0: of any).
    pub(crate) fn disturbed(&mut self, tgid: u32) {
        self.table.lose(tgid);
        self.evidence.disturbed(tgid);
    }

    /// A connection of the process is older than what is known of it, which is everything from `since_ns` on.
    pub(crate) fn joined(&mut self, tgid: u32, since_ns: u64, now_ns: u64) {
        let until_ns = since_ns.saturating_add(JOINED_NS);
        if until_ns > now_ns {
            self.table.doubt_until(tgid, until_ns);
        }
    }

    /// A connection of the process has brought bytes of a protocol that is not known yet, or (`hides` is false) has not
    /// any more: they may be requests, beside which no other is unique.
    pub(crate) fn hides(&mut self, sock: u64, tgid: u32, hides: bool) {
        self.table.hide(sock, tgid, hides);
    }

    /// Bytes were read or sent.
    pub(crate) fn bytes(&mut self, sock: u64, chunk: &Chunk<'_>) {
        self.evidence.bytes(sock, chunk);
    }

    /// A connection ended.
    pub(crate) fn closed(&mut self, sock: u64) {
        self.table.hide(sock, 0, false);
        self.evidence.closed(sock);
    }

    /// What is due by now.
    #[inline]
    pub fn expire(&mut self, now_ns: u64) {
        while let Some((due_ns, at)) = self.pending.front().copied() {
            let is_pending = self.table.call(at).is_some_and(|call| !call.is_final);
            if is_pending && due_ns > now_ns {
                break;
            }
            self.pending.pop_front();
            if is_pending {
                self.counters.overdue += 1;
                self.decide_later(at);
            }
        }
        while let Some(at) = self.table.next_late(now_ns) {
            self.table.forget(at);
        }
    }

    /// Verdicts since the last time.
    pub fn take_decided(&mut self, take: impl FnMut(Decided)) {
        self.decided.drain(..).for_each(take);
    }

    /// Calls that outlive their cause, since the last time.
    pub fn take_detached(&mut self, take: impl FnMut(SpanId)) {
        self.detached.drain(..).for_each(take);
    }

    /// Whether there are any of either.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        !self.decided.is_empty() || !self.detached.is_empty()
    }

    /// The stream ended: every verdict is given.
    pub(crate) fn finish(&mut self) {
        self.expire(u64::MAX - 1);
    }

    fn decide_later(&mut self, at: Ref) {
        let decided = self.decide(at);
        self.decided.extend(decided);
    }

    /// The verdict on a call, which is final.
    fn decide(&mut self, at: Ref) -> Option<Decided> {
        let call = self.table.call(at)?;
        let (span_id, tgid, kind, reply) = (call.span_id, call.tgid, call.kind, call.reply);
        let (thread_said, order_said, parent) = (call.thread_said, call.order_said, call.parent_id);
        let certainty = parent.and_then(|_| self.judge(at));
        let call = self.table.call_mut(at)?;
        call.is_final = true;
        let (further, outlives) = (std::mem::take(&mut call.further), call.outlives);
        if reply != Reply::Awaited {
            self.table.drop_call(at);
        }
        let Some((parent, certainty)) = parent.zip(certainty) else {
            return Some(Decided::none(span_id));
        };
        let confidence = match certainty {
            Certainty::Certain => {
                self.counters.certain += 1;
                for (kind, said) in
                    [(EvidenceKind::SameThread, thread_said), (EvidenceKind::Order, order_said)]
                {
                    if let Some((said, feature)) = said {
                        self.calibration.note(tgid, kind, feature, said == parent);
                    }
                }
                Some(1.0)
            }
            Certainty::IfReplyPasses => None,
            Certainty::Probable(feature) => self.calibration.confidence(tgid, kind, feature),
        };
        let is_enough = self.options.min_confidence <= 0.0
            || confidence.is_some_and(|confidence| confidence >= self.options.min_confidence);
        if !is_enough || parent == span_id {
            self.counters.below_min += 1;
            return Some(Decided::none(span_id));
        }
        if outlives {
            self.detached.push(span_id);
        }
        let link = |parent| Link { parent, evidence: kind, confidence };
        // Nearly always there is none, and nothing to allocate.
        let further = if further.is_empty() { Vec::new() } else { further.into_iter().map(link).collect() };
        Some(Decided { call: span_id, link: Some(link(parent)), further })
    }

    /// How sure the believed cause is, now that what can be known of the replies is; `None`: it is not the cause.
    fn judge(&mut self, at: Ref) -> Option<Certainty> {
        let call = self.table.call(at)?;
        let (tgid, kind, certainty, parent) = (call.tgid, call.kind, call.certainty, call.parent);
        match (kind, certainty) {
            (EvidenceKind::RelayedContent | EvidenceKind::Order, _) => {}
            // The way back did not show it.
            (EvidenceKind::StreamRelay, Certainty::IfReplyPasses) => {
                return Some(Certainty::Probable(relay::feature::STANDING));
            }
            _ => return Some(certainty),
        }
        let request = call.parent.and_then(|at| self.table.request(at));
        let passes = |reply: Reply| match (reply, request.map(|request| request.reply)) {
            (Reply::Seen(Some(came)), Some(Reply::Seen(Some(left)))) if came == left => Check::Passed,
            (Reply::Seen(Some(_)), Some(Reply::Seen(Some(_)))) => Check::Failed,
            _ => Check::Unknown,
        };
        let check = passes(call.reply);
        let another_passed = check == Check::Failed
            && request.is_some_and(|request| {
                request.has_passed
                    || self
                        .table
                        .newest_calls_of(request)
                        .any(|(_, other)| passes(other.reply) == Check::Passed)
            });
        let stands = request.is_some_and(|request| {
            let alone = self.table.shared(request.content_at).is_some_and(|shared| shared.n == 1);
            alone && self.table.is_undisturbed(request)
        });
        let is_unique = certainty == Certainty::IfReplyPasses;
        if check == Check::Passed
            && let Some(request) = parent.and_then(|at| self.table.request_mut(at))
        {
            request.has_passed = true;
        }
        let feature =
            |feature| if kind == EvidenceKind::RelayedContent { feature } else { order::feature::TIE };
        match check {
            Check::Passed => {
                if is_unique {
                    self.table.process_mut(tgid).note_reply(true);
                    self.calibration.note(tgid, kind, content::feature::UNIQUE, true);
                    return Some(if stands {
                        Certainty::Certain
                    } else {
                        Certainty::Probable(content::feature::UNIQUE)
                    });
                }
                Some(certainty)
            }
            Check::Failed if another_passed => {
                Some(Certainty::Probable(feature(content::feature::OTHER_REPLY)))
            }
            Check::Failed => {
                let is_part = kind == EvidenceKind::RelayedContent
                    && matches!(
                        certainty,
                        Certainty::Probable(content::feature::PART | content::feature::BATCH)
                    );
                if is_part {
                    return Some(certainty);
                }
                if self.table.process(tgid).relays_replies() {
                    self.counters.vetoed += 1;
                    if is_unique {
                        self.table.process_mut(tgid).note_reply(false);
                        self.calibration.note(tgid, kind, content::feature::UNIQUE, false);
                    }
                    return None;
                }
                if is_unique {
                    self.table.process_mut(tgid).note_reply(false);
                }
                Some(Certainty::Probable(feature(content::feature::OTHER_REPLY)))
            }
            Check::Unknown if is_unique => Some(Certainty::Probable(content::feature::UNIQUE)),
            Check::Unknown => Some(certainty),
        }
    }
}
