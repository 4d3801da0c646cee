//! Halves → spans: where both ends of an RPC were seen here they become one, and each span learns the trace that
//! it belongs to.
//!
//! The trace is named after the topmost RPC that this host knows of the tree. A node is made when a request is
//! *first seen* at either end, and the client half's link says who caused it, so in the usual case the trace is
//! known before the RPC ends, and a finished span leaves at once. What may be missing for a moment is the other
//! half's *first sight*: hooks run after the socket's lock is released, so a server may read a request before
//! the client's hook has reported it. Nothing else is worth waiting for: a half that was seen ends by itself.
//!
//! What a reader would get wrong: a server half whose client was not seen may still have a client half here.
//! Its trace is not settled until [`SETTLE_NS`] have passed; calls that it caused meanwhile are told afterwards.

use std::collections::VecDeque;

use dprof_common::model::{
    Half, HalfFlags, KeepReason, Link, RootKind, Side, Span, SpanFlags, SpanId, TraceId,
};
use rustc_hash::FxHashMap;

use super::times::mark_late_departures;

/// How long the other half's first sight is waited for, unless the hold time is shorter: a thread that lost the
/// CPU between call and hook is back after some scheduler periods, each a few milliseconds, many of them on an
/// overloaded machine.
pub(crate) const SETTLE_NS: u64 = 500_000_000;

/// Steps from a span up to the root of its tree. Real call chains are tens of hops; a loop would be damage.
const DEPTH_MAX: usize = 64;

/// Entries of nodes that left the queue before their time, beyond as many as are in it, before they are swept out.
const QUEUE_SLACK: usize = 1024;

/// Calls told of their trace when their cause settles late; further ones take their cause's id.
const TOLD_MAX: usize = 1024;

/// Inner RPCs that have left and whose trace is remembered, by the low bits of their id (a power of two): a call may be
/// decided on, or even made, after its cause left. A second is plenty of time for it, and this a second of 8,000 RPCs.
const GONE_MAX: usize = 8 * 1024;

/// What is known of an RPC when its request is first seen at one end.
#[derive(Debug)]
pub(crate) struct Sight {
    pub(crate) span_id: SpanId,
    pub(crate) side: Side,
    /// Client side: its cause, if that is decided.
    pub(crate) link: Option<Link>,
    /// Client side: further causes.
    pub(crate) further: Vec<Link>,
    /// Client side: [`Window::decide`] will tell the cause.
    pub(crate) undecided: bool,
    /// Client side: why it has no cause, if it turns out to have none.
    pub(crate) root: RootKind,
    /// Trace id that the request carries.
    pub(crate) explicit: Option<u128>,
    /// Whether the other end's address is one of this host.
    pub(crate) far_is_local: bool,
    pub(crate) now_ns: u64,
}

/// A trace as known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Trace {
    id: TraceId,
    /// The topmost RPC known here may have a cause on another host.
    is_fragment: bool,
}

#[derive(Debug)]
struct Node {
    client: Option<Box<Half>>,
    server: Option<Box<Half>>,
    client_seen: bool,
    server_seen: bool,
    far_is_local: bool,
    /// In the queue, until this time.
    queued_until_ns: Option<u64>,
    link: Option<Link>,
    further_links: Vec<Link>,
    /// The link is not known yet.
    undecided: bool,
    /// Outlives its cause.
    is_detached: bool,
    root: Option<RootKind>,
    explicit: Option<u128>,
    first_seen_ns: u64,
    /// Once settled.
    trace: Option<Trace>,
    /// Calls that this RPC caused before it was settled.
    untold: Vec<SpanId>,
}

impl Node {
    /// Every half that was seen has ended.
    fn is_done(&self) -> bool {
        (!self.client_seen || self.client.is_some()) && (!self.server_seen || self.server.is_some())
    }

    /// The other half may still be sighted.
    fn may_meet(&self) -> bool {
        match (self.client_seen, self.server_seen) {
            (true, true) => false,
            // A far server is not seen here; a far client may turn out to be near (a new address).
            (true, false) => self.far_is_local,
            (false, _) => true,
        }
    }
}

/// Spans that are not out yet.
#[derive(Debug)]
pub(crate) struct Window {
    nodes: FxHashMap<SpanId, Node>,
    /// Done nodes that wait for a first sight, in the order of their due time.
    queue: VecDeque<(u64, SpanId)>,
    /// How many nodes are in the queue; it may hold more entries, of nodes that left before their time.
    n_queued: usize,
    /// Nodes to look at again; kept between calls to save allocations.
    unsettled: Vec<SpanId>,
    /// Spans that are done with, until the engine takes them.
    ready: Vec<Span>,
    /// Traces of inner RPCs that have left; empty until there is one.
    gone: Vec<(SpanId, Trace)>,
    settle_ns: u64,
    held_max: usize,
    counters: WindowCounters,
}

/// What the window did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WindowCounters {
    /// Released before their time because too many were held.
    pub(crate) evicted: u64,
    /// Released with one half although the other end is on this host.
    pub(crate) alone: u64,
    /// A second half of the same side for the same span id.
    pub(crate) doubled: u64,
}

impl Window {
    pub(crate) fn new(hold_ns: u64, held_max: usize) -> Self {
        Self {
            nodes: FxHashMap::default(),
            queue: VecDeque::new(),
            n_queued: 0,
            unsettled: Vec::new(),
            ready: Vec::new(),
            gone: Vec::new(),
            settle_ns: hold_ns.min(SETTLE_NS),
            held_max,
            counters: WindowCounters::default(),
        }
    }

    /// Holds at most `held_max`, what is done from now on for at most `hold_ns`.
    pub(crate) fn set_limits(&mut self, hold_ns: u64, held_max: usize) {
        self.settle_ns = hold_ns.min(SETTLE_NS);
        self.held_max = held_max;
    }

    /// Done nodes that wait.
    pub(crate) fn held(&self) -> usize {
        self.n_queued
    }

    pub(crate) const fn counters(&self) -> WindowCounters {
        self.counters
    }

    /// A request was first seen at one end.
    #[inline(never)]
    pub(crate) fn sight(&mut self, sight: Sight) {
        let node = self.nodes.entry(sight.span_id).or_insert_with(|| Node {
            client: None,
            server: None,
            client_seen: false,
            server_seen: false,
            far_is_local: false,
            queued_until_ns: None,
            link: None,
            further_links: Vec::new(),
            undecided: false,
            is_detached: false,
            root: None,
            explicit: None,
            first_seen_ns: sight.now_ns,
            trace: None,
            untold: Vec::new(),
        });
        node.explicit = node.explicit.or(sight.explicit);
        node.far_is_local |= sight.far_is_local;
        match sight.side {
            Side::Server => node.server_seen = true,
            Side::Client => {
                node.client_seen = true;
                node.undecided = sight.undecided;
                node.root = Some(sight.root);
                node.further_links = sight.further;
                if let Some(link) = sight.link {
                    node.link = Some(link);
                    self.follow(sight.span_id, link.parent, sight.now_ns);
                }
            }
        }
    }

    /// The cause of a call is known (or that it is not): the last word on it.
    #[inline(never)]
    pub(crate) fn decide(&mut self, span_id: SpanId, link: Option<Link>, further: Vec<Link>, now_ns: u64) {
        let Some(node) = self.nodes.get_mut(&span_id) else { return };
        node.undecided = false;
        node.link = link;
        node.further_links = further;
        if let Some(link) = link {
            self.follow(span_id, link.parent, now_ns);
        }
        self.settle(span_id, now_ns);
    }

    /// A call outlives its cause.
    pub(crate) fn mark_detached(&mut self, span_id: SpanId) {
        if let Some(node) = self.nodes.get_mut(&span_id) {
            node.is_detached = true;
        }
    }

    /// A call takes the trace of its cause, now or when that is settled.
    fn follow(&mut self, span_id: SpanId, parent: SpanId, now_ns: u64) {
        let (trace, is_settled) = self.resolve(parent, now_ns);
        if is_settled {
            if let Some(node) = self.nodes.get_mut(&span_id) {
                node.trace = Some(trace);
            }
        } else if let Some(parent) = self.nodes.get_mut(&parent)
            && parent.untold.len() < TOLD_MAX
        {
            parent.untold.push(span_id);
        }
    }

    /// A half ended.
    #[inline(never)]
    pub(crate) fn finish(&mut self, span_id: SpanId, side: Side, half: Half, now_ns: u64) {
        let Some(node) = self.nodes.get_mut(&span_id) else { return };
        let place = match side {
            Side::Client => &mut node.client,
            Side::Server => &mut node.server,
        };
        if place.replace(Box::new(half)).is_some() {
            self.counters.doubled += 1;
        }
        if !node.is_done() {
            return;
        }
        self.settle(span_id, now_ns);
        let due_ns = now_ns.saturating_add(self.settle_ns);
        if let Some(node) = self.nodes.get_mut(&span_id)
            && node.queued_until_ns.is_none()
        {
            node.queued_until_ns = Some(due_ns);
            self.n_queued += 1;
            self.queue.push_back((due_ns, span_id));
            while self.n_queued > self.held_max {
                self.counters.evicted += 1;
                self.pop_held(now_ns);
            }
            if self.queue.len() > 2 * self.n_queued + QUEUE_SLACK {
                let nodes = &self.nodes;
                self.queue.retain(|(due_ns, span_id)| {
                    nodes.get(span_id).is_some_and(|node| node.queued_until_ns == Some(*due_ns))
                });
            }
        }
    }

    /// Releases a node, and the calls below it that waited for its trace, if nothing is to be waited for any more.
    fn settle(&mut self, span_id: SpanId, now_ns: u64) {
        self.unsettled.push(span_id);
        while let Some(span_id) = self.unsettled.pop() {
            let (trace, is_settled) = self.resolve(span_id, now_ns);
            let Some(node) = self.nodes.get_mut(&span_id).filter(|_| is_settled) else { continue };
            let may_leave = node.is_done() && !node.undecided && !node.may_meet();
            for child in std::mem::take(&mut node.untold) {
                if let Some(child) = self.nodes.get_mut(&child)
                    && child.trace.is_none()
                {
                    child.trace = Some(trace);
                }
                self.unsettled.push(child);
            }
            if may_leave {
                self.release(span_id, now_ns);
            }
        }
    }

    /// A request turned out to be none.
    #[inline(never)]
    pub(crate) fn forget(&mut self, span_id: SpanId, side: Side) {
        let Some(node) = self.nodes.get_mut(&span_id) else { return };
        match side {
            Side::Client => node.client_seen = false,
            Side::Server => node.server_seen = false,
        }
        if !node.client_seen && !node.server_seen {
            self.nodes.remove(&span_id);
        }
    }

    /// An RPC of which a part will not be seen: nothing is said of it.
    pub(crate) fn abandon(&mut self, span_id: SpanId) {
        self.nodes.remove(&span_id);
    }

    /// Bytes of a server's answer were sent again after it had ended.
    pub(crate) fn mark_resent(&mut self, span_id: SpanId) {
        if let Some(half) = self.nodes.get_mut(&span_id).and_then(|node| node.server.as_mut()) {
            half.flags.insert(HalfFlags::RETRANSMITTED);
            half.retransmits += 1;
        }
    }

    /// Releases what has waited long enough.
    #[inline]
    pub(crate) fn expire(&mut self, now_ns: u64) {
        while self.queue.front().is_some_and(|(due_ns, _)| *due_ns <= now_ns) {
            self.pop(now_ns);
        }
    }

    /// Whether anything is done with.
    pub(crate) const fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Gives out what is done with.
    pub(crate) fn take(&mut self, spans: &mut Vec<Span>) {
        // A span is large: most are given out from an empty list to an empty list, without a copy.
        if spans.is_empty() {
            std::mem::swap(spans, &mut self.ready);
        } else {
            spans.append(&mut self.ready);
        }
    }

    /// The trace of an RPC that is open or held, and whether its name may be another; `None`: not settled yet.
    pub(crate) fn trace_of(&mut self, span_id: SpanId, now_ns: u64) -> Option<(TraceId, bool)> {
        self.nodes.get(&span_id)?;
        let (trace, is_settled) = self.resolve(span_id, now_ns);
        is_settled.then_some((trace.id, trace.is_fragment))
    }

    /// Everything that has a finished half is done with.
    #[inline(never)]
    pub(crate) fn finish_all(&mut self, now_ns: u64) {
        while !self.queue.is_empty() {
            self.pop(now_ns);
        }
        let mut halves: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.client.is_some() || node.server.is_some())
            .map(|(span_id, node)| (node.first_seen_ns, *span_id))
            .collect();
        halves.sort_unstable();
        for (_, span_id) in halves {
            self.release(span_id, now_ns);
        }
    }

    /// Takes out entries up to one whose node is still held.
    fn pop_held(&mut self, now_ns: u64) {
        let n_queued = self.n_queued;
        while self.n_queued == n_queued && !self.queue.is_empty() {
            self.pop(now_ns);
        }
    }

    fn pop(&mut self, now_ns: u64) {
        let Some((due_ns, span_id)) = self.queue.pop_front() else { return };
        let Some(node) = self.nodes.get_mut(&span_id) else { return };
        if node.queued_until_ns != Some(due_ns) {
            return;
        }
        node.queued_until_ns = None;
        self.n_queued -= 1;
        // Sighted at the other end meanwhile: that half releases it when it ends.
        if !node.is_done() {
            return;
        }
        if node.far_is_local && node.may_meet() {
            self.counters.alone += 1;
        }
        self.release(span_id, now_ns);
    }

    fn release(&mut self, span_id: SpanId, now_ns: u64) {
        let (trace, _) = self.resolve(span_id, now_ns);
        let Some(node) = self.nodes.remove(&span_id) else { return };
        self.n_queued -= usize::from(node.queued_until_ns.is_some());
        if node.server_seen && trace.id != span_id.as_root_trace() {
            self.remember(span_id, trace);
        }
        let mut told = node.untold;
        while let Some(child) = told.pop() {
            if let Some(child) = self.nodes.get_mut(&child)
                && child.trace.is_none()
            {
                child.trace = Some(trace);
            }
        }
        let mut flags = SpanFlags::default();
        if trace.is_fragment {
            flags.insert(SpanFlags::FRAGMENT);
        }
        if node.is_detached && node.link.is_some() {
            flags.insert(SpanFlags::DETACHED);
        }
        let root = match (node.link, node.client_seen) {
            (Some(_), _) => None,
            (None, true) => node.root,
            (None, false) => Some(RootKind::Edge),
        };
        let mut span = Span {
            trace_id: trace.id,
            span_id,
            link: node.link,
            further_links: node.further_links,
            root,
            flags,
            probability: 1.0,
            reason: KeepReason::Ratio,
            client: node.client.map(|half| *half),
            server: node.server.map(|half| *half),
        };
        if let (Some(client), Some(server)) = (&mut span.client, &mut span.server) {
            mark_late_departures(client, server);
        }
        if let Some(explicit) = node.explicit.filter(|explicit| *explicit != trace.id.0) {
            let text = TraceId(explicit).to_string();
            for half in span.client.iter_mut().chain(span.server.iter_mut()) {
                half.attributes.push((EXPLICIT_TRACE_ATTRIBUTE.into(), text.clone()));
            }
        }
        self.ready.push(span);
    }

    /// What leaves may be named as a cause later.
    fn remember(&mut self, span_id: SpanId, trace: Trace) {
        if self.gone.is_empty() {
            let nobody = (SpanId(0), Trace { id: TraceId(0), is_fragment: false });
            self.gone.resize(GONE_MAX, nobody);
        }
        self.gone[span_id.0 as usize % GONE_MAX] = (span_id, trace);
    }

    /// The trace of an RPC that is not here any more, or never was.
    fn trace_of_gone(&self, span_id: SpanId) -> Trace {
        let found = self.gone.get(span_id.0 as usize % GONE_MAX).filter(|(gone, _)| *gone == span_id);
        found.map_or(Trace { id: span_id.as_root_trace(), is_fragment: false }, |(_, trace)| *trace)
    }

    /// The trace of `span_id` as known now, and whether that is settled.
    fn resolve(&mut self, span_id: SpanId, now_ns: u64) -> (Trace, bool) {
        let mut topmost = span_id;
        let mut result = (Trace { id: span_id.as_root_trace(), is_fragment: false }, true);
        for _ in 0..DEPTH_MAX {
            let Some(node) = self.nodes.get(&topmost) else {
                result.0 = self.trace_of_gone(topmost);
                break;
            };
            if let Some(trace) = node.trace {
                result.0 = trace;
                break;
            }
            if node.undecided {
                let trace = Trace { id: topmost.as_root_trace(), is_fragment: false };
                return (trace, false);
            }
            let Some(link) = node.link else {
                let id = node.explicit.filter(|id| *id != 0).map_or(topmost.as_root_trace(), TraceId);
                let is_fragment = !node.client_seen && !node.far_is_local;
                let age_ns = now_ns.saturating_sub(node.first_seen_ns);
                result = (Trace { id, is_fragment }, node.client_seen || age_ns >= self.settle_ns);
                break;
            };
            topmost = link.parent;
        }
        if result.1
            && let Some(node) = self.nodes.get_mut(&span_id)
        {
            node.trace = Some(result.0);
        }
        result
    }
}

/// Attribute of a span whose request carries another trace's id than the one it is stored under.
pub(crate) const EXPLICIT_TRACE_ATTRIBUTE: &str = "dprof.explicit_trace_id";
