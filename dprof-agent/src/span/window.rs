//! Halves → spans: the two halves of an RPC meet here, and wait for the trace that they belong to.
//!
//! The problem: a span is stored under its trace's id, which is the id of the topmost RPC of its tree, and its
//! two halves are finished at different moments. The idea: a node per RPC from the moment that its request is seen
//! at either end, linked to its parent; when its halves are finished, it waits a little and is then given out under
//! the id found by walking up. What a reader would get wrong: a parent ends after most of its children and before
//! some (asynchronous replication), so what was given out is remembered for a while, by id and trace only.

use std::collections::VecDeque;

use dprof_common::model::{
    Half, HalfFlags, KeepReason, Link, RootKind, Side, Span, SpanFlags, SpanId, TraceId,
};
use rustc_hash::FxHashMap;

/// A half's other end, or its parent, that is on this host is seen within this time: the hook of a send may come
/// after the peer's read, by as long as its thread is kept from the CPU.
const SETTLE_NS: u64 = 50_000_000;

/// Links followed upwards at most; a longer chain is damage or a loop.
const DEPTH_MAX: usize = 512;

/// What is known of an RPC.
#[derive(Debug)]
struct Node {
    link: Option<Link>,
    /// Trace id that the request itself carried.
    explicit_trace: Option<TraceId>,
    /// Which halves have been seen to begin.
    seen: [bool; 2],
    /// How many halves have begun and not ended.
    open: u8,
    client_serves: bool,
    peer_is_local: bool,
    halves: [Option<Box<Half>>; 2],
    queued: bool,
}

/// What a half's beginning says about its RPC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beginning {
    /// Which end.
    pub(crate) side: Side,
    /// Client: the cause.
    pub(crate) link: Option<Link>,
    /// Trace id carried in the request.
    pub(crate) explicit_trace: Option<TraceId>,
    /// Client: whether its process has served a request.
    pub(crate) process_serves: bool,
    /// Whether the other end has an address of this host.
    pub(crate) peer_is_local: bool,
}

/// What the window's limits cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WindowCounters {
    /// Spans given out before their hold was over.
    pub(crate) released_early: u64,
    /// Spans whose tree's top was forgotten: fragments.
    pub(crate) tops_forgotten: u64,
}

/// RPCs that are open, or finished and held.
#[derive(Debug)]
pub(crate) struct Window {
    hold_ns: u64,
    held_max: usize,
    nodes: FxHashMap<SpanId, Node>,
    /// When a node is looked at, in order of time: (due, id).
    soon: VecDeque<(u64, SpanId)>,
    later: VecDeque<(u64, SpanId)>,
    /// Given out: trace and whether it is a fragment, until the time in the queue.
    past: FxHashMap<SpanId, (TraceId, bool)>,
    past_queue: VecDeque<(u64, SpanId)>,
    pub(crate) counters: WindowCounters,
}

const fn idx(side: Side) -> usize {
    match side {
        Side::Client => 0,
        Side::Server => 1,
    }
}

impl Window {
    /// An empty window.
    pub(crate) fn new(hold_ns: u64, held_max: usize) -> Self {
        Self {
            hold_ns,
            held_max,
            nodes: FxHashMap::default(),
            soon: VecDeque::new(),
            later: VecDeque::new(),
            past: FxHashMap::default(),
            past_queue: VecDeque::new(),
            counters: WindowCounters::default(),
        }
    }

    /// How many RPCs it knows.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// A request was seen at one end.
    pub(crate) fn begin(&mut self, span_id: SpanId, beginning: &Beginning) {
        let node = self.nodes.entry(span_id).or_insert_with(|| Node {
            link: None,
            explicit_trace: None,
            seen: [false; 2],
            open: 0,
            client_serves: false,
            peer_is_local: false,
            halves: [None, None],
            queued: false,
        });
        node.open = node.open.saturating_add(1);
        node.seen[idx(beginning.side)] = true;
        node.link = node.link.or(beginning.link);
        node.explicit_trace = node.explicit_trace.or(beginning.explicit_trace);
        node.client_serves |= beginning.side == Side::Client && beginning.process_serves;
        node.peer_is_local |= beginning.peer_is_local;
    }

    /// A half that began is of no use after all (its connection was taken for the wrong protocol).
    pub(crate) fn cancel(&mut self, span_id: SpanId) {
        if let Some(node) = self.nodes.get_mut(&span_id) {
            node.open = node.open.saturating_sub(1);
            if node.open == 0 && node.halves.iter().all(Option::is_none) {
                self.nodes.remove(&span_id);
            }
        }
    }

    /// A half that began is finished.
    pub(crate) fn finish(&mut self, span_id: SpanId, side: Side, half: Half, now_ns: u64) {
        let hold_ns = self.hold_ns;
        let Some(node) = self.nodes.get_mut(&span_id) else { return };
        node.open = node.open.saturating_sub(1);
        node.halves[idx(side)].get_or_insert_with(|| Box::new(half));
        if node.queued {
            return;
        }
        node.queued = true;
        // Nothing more can come when both halves are here, or when the other one is on another host.
        let whole = node.open == 0 && (node.halves.iter().all(Option::is_some) || !node.peer_is_local);
        if whole {
            self.soon.push_back((now_ns.saturating_add(SETTLE_NS.min(hold_ns)), span_id));
        } else {
            self.later.push_back((now_ns.saturating_add(hold_ns), span_id));
        }
    }

    /// The server's answer was sent again.
    pub(crate) fn resent(&mut self, span_id: SpanId) {
        if let Some(half) = self.nodes.get_mut(&span_id).and_then(|node| node.halves[1].as_mut()) {
            half.flags.insert(HalfFlags::RETRANSMITTED);
            half.retransmits += 1;
        }
    }

    /// Gives out what has waited long enough.
    pub(crate) fn release(&mut self, now_ns: u64, out: &mut Vec<Span>) {
        while self.soon.front().is_some_and(|(due_ns, _)| *due_ns <= now_ns) {
            let Some((_, span_id)) = self.soon.pop_front() else { break };
            self.give(span_id, now_ns, out);
        }
        while self.later.front().is_some_and(|(due_ns, _)| *due_ns <= now_ns) {
            let Some((_, span_id)) = self.later.pop_front() else { break };
            self.give_or_wait(span_id, now_ns, out);
        }
        while self.nodes.len() > self.held_max {
            let Some((_, span_id)) = self.later.pop_front().or_else(|| self.soon.pop_front()) else { break };
            self.counters.released_early += 1;
            self.give(span_id, now_ns, out);
        }
        while self.past_queue.front().is_some_and(|(due_ns, _)| *due_ns <= now_ns)
            || self.past_queue.len() > self.held_max
        {
            if let Some((_, span_id)) = self.past_queue.pop_front() {
                self.past.remove(&span_id);
            }
        }
    }

    /// Gives out everything that is finished.
    pub(crate) fn release_all(&mut self, now_ns: u64, out: &mut Vec<Span>) {
        let ids: Vec<SpanId> = self.soon.drain(..).chain(self.later.drain(..)).map(|(_, id)| id).collect();
        for span_id in ids {
            self.give(span_id, now_ns, out);
        }
    }

    /// One end is finished and the other still open (a slow reader): wait for it.
    fn give_or_wait(&mut self, span_id: SpanId, now_ns: u64, out: &mut Vec<Span>) {
        if self.nodes.get(&span_id).is_some_and(|node| node.open > 0) {
            self.later.push_back((now_ns.saturating_add(self.hold_ns.max(1)), span_id));
        } else {
            self.give(span_id, now_ns, out);
        }
    }

    fn give(&mut self, span_id: SpanId, now_ns: u64, out: &mut Vec<Span>) {
        let (trace_id, fragment) = self.trace_of(span_id);
        let Some(node) = self.nodes.remove(&span_id) else { return };
        let [client, server] = node.halves;
        if client.is_none() && server.is_none() {
            return;
        }
        let root = match (node.link, node.seen[0]) {
            (Some(_), _) => None,
            (None, true) if node.client_serves => Some(RootKind::Unlinked),
            (None, _) => Some(RootKind::Edge),
        };
        let mut flags = SpanFlags::default();
        if fragment {
            flags.insert(SpanFlags::FRAGMENT);
        }
        self.past.insert(span_id, (trace_id, fragment));
        self.past_queue.push_back((now_ns.saturating_add(self.hold_ns.saturating_mul(2)), span_id));
        out.push(Span {
            trace_id,
            span_id,
            link: node.link,
            root,
            flags,
            probability: 1.0,
            reason: KeepReason::Ratio,
            client: client.map(|half| *half),
            server: server.map(|half| *half),
        });
    }

    /// Trace of an RPC, and whether its top may have a cause on another host.
    fn trace_of(&mut self, span_id: SpanId) -> (TraceId, bool) {
        let mut at = span_id;
        for _ in 0..DEPTH_MAX {
            if at != span_id
                && let Some(known) = self.past.get(&at)
            {
                return *known;
            }
            let Some(node) = self.nodes.get(&at) else {
                // Named as a parent, but forgotten.
                self.counters.tops_forgotten += 1;
                return (at.as_root_trace(), true);
            };
            match node.link {
                Some(link) => at = link.parent,
                None => {
                    let trace_id = node.explicit_trace.unwrap_or_else(|| at.as_root_trace());
                    return (trace_id, !node.seen[0] && !node.peer_is_local);
                }
            }
        }
        self.counters.tops_forgotten += 1;
        (at.as_root_trace(), true)
    }
}
