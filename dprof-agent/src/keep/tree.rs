//! Spans that wait for a decision on their trace, in the order in which they came, and decisions that stay in force.
//!
//! What a reader would get wrong: a tree outlives its spans. What is kept stays kept for as long as spans are held,
//! after the last of them, for children that end later.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use dprof_common::model::{KeepReason, Span, SpanFlags, SpanId, TraceId};
use rustc_hash::FxHashMap;

use super::{Kept, caller_of};

/// What was decided on a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fate {
    /// Nothing yet.
    Undecided,
    /// It is to be kept, under a name that is asked for.
    Wanted(KeepReason),
    /// It is kept.
    Kept(Kept),
}

/// What is known of a trace.
#[derive(Debug)]
pub(super) struct Tree {
    fate: Fate,
    /// With their numbers.
    spans: VecDeque<(u64, Span)>,
    /// Until when a decision stays in force.
    until_ns: u64,
    /// The agent above was asked.
    has_asked: bool,
    /// Who called, as far as the topmost span of a part has come.
    caller: Option<IpAddr>,
}

/// What waits in the ring.
#[derive(Clone, Copy, Debug)]
enum Waiting {
    /// The span of this number.
    Span(u64),
    /// A decision.
    Fate,
}

/// A span whose time is over.
#[derive(Debug)]
pub(super) struct GivenUp {
    pub(super) span: Span,
    /// Of its trace.
    pub(super) fate: Fate,
    /// Who called this part of its trace, where that is known.
    pub(super) caller: Option<IpAddr>,
}

/// All trees.
#[derive(Debug)]
pub(super) struct Trees {
    hold_ns: u64,
    held_max: usize,
    held: usize,
    /// Number of the next span.
    next: u64,
    trees: FxHashMap<TraceId, Tree>,
    ring: VecDeque<(u64, TraceId, Waiting)>,
    /// Calls that leave this host, of trees that are held.
    calls: FxHashMap<SpanId, TraceId>,
    horizon_ns: u64,
    horizon_until_ns: u64,
}

impl Trees {
    pub(super) fn new(hold_ns: u64, held_max: usize) -> Self {
        Self {
            hold_ns,
            held_max,
            held: 0,
            next: 0,
            trees: FxHashMap::default(),
            ring: VecDeque::new(),
            calls: FxHashMap::default(),
            horizon_ns: hold_ns,
            horizon_until_ns: 0,
        }
    }

    /// Other limits from now on; what is held already stays as long as it was to.
    pub(super) const fn set_limits(&mut self, hold_ns: u64, held_max: usize) {
        (self.hold_ns, self.held_max) = (hold_ns, held_max);
    }

    pub(super) const fn held(&self) -> usize {
        self.held
    }

    pub(super) fn is_empty(&self) -> bool {
        self.trees.is_empty()
    }

    /// How long spans are held now: shorter than was asked for when there are too many.
    pub(super) const fn horizon_ns(&self) -> u64 {
        self.horizon_ns
    }

    pub(super) fn contains(&self, trace: TraceId) -> bool {
        self.trees.contains_key(&trace)
    }

    pub(super) fn fate(&self, trace: TraceId) -> Fate {
        self.trees.get(&trace).map_or(Fate::Undecided, |tree| tree.fate)
    }

    /// Whether what is held of a trace is only a part whose name is not known.
    pub(super) fn is_fragment(&self, trace: TraceId) -> bool {
        let span = self.trees.get(&trace).and_then(|tree| tree.spans.front());
        span.is_some_and(|(_, span)| span.flags.contains(SpanFlags::FRAGMENT))
    }

    /// The trace of a call that left this host.
    pub(super) fn of_call(&self, span_id: SpanId) -> Option<TraceId> {
        self.calls.get(&span_id).copied()
    }

    fn tree(&mut self, trace: TraceId) -> &mut Tree {
        self.trees.entry(trace).or_insert_with(|| Tree {
            fate: Fate::Undecided,
            spans: VecDeque::new(),
            until_ns: 0,
            has_asked: false,
            caller: None,
        })
    }

    /// Decides on a trace.
    pub(super) fn set(&mut self, trace: TraceId, fate: Fate, now_ns: u64) {
        let until_ns = now_ns.saturating_add(self.hold_ns);
        let tree = self.tree(trace);
        let was_decided = tree.fate != Fate::Undecided;
        (tree.fate, tree.until_ns) = (fate, until_ns);
        if !was_decided {
            self.ring.push_back((until_ns, trace, Waiting::Fate));
        }
    }

    /// A decision stays in force.
    pub(super) fn touch(&mut self, trace: TraceId, now_ns: u64) {
        let until_ns = now_ns.saturating_add(self.hold_ns);
        if let Some(tree) = self.trees.get_mut(&trace) {
            tree.until_ns = until_ns;
        }
    }

    /// Who may know the name of a trace of which only a part is held: asked once.
    pub(super) fn ask_above(&mut self, trace: TraceId) -> Option<(SocketAddr, SpanId)> {
        let tree = self.trees.get_mut(&trace).filter(|tree| !tree.has_asked)?;
        let topmost = SpanId(trace.0 as u64);
        let asked = tree
            .spans
            .iter()
            .filter(|(_, span)| span.span_id == topmost)
            .find_map(|(_, span)| caller_of(span));
        tree.has_asked = asked.is_some();
        asked
    }

    /// A span waits.
    pub(super) fn hold(&mut self, span: Span, now_ns: u64) {
        let (trace, span_id) = (span.trace_id, span.span_id);
        let leaves = span.client.is_some() && span.server.is_none();
        let due_ns = now_ns.saturating_add(self.hold_ns);
        let number = self.next;
        self.next += 1;
        let caller = caller_of(&span).filter(|_| span_id == SpanId(trace.0 as u64));
        let tree = self.tree(trace);
        tree.caller = tree.caller.or(caller.map(|(address, _)| address.ip()));
        tree.spans.push_back((number, span));
        self.held += 1;
        if leaves {
            self.calls.insert(span_id, trace);
        }
        self.ring.push_back((due_ns, trace, Waiting::Span(number)));
    }

    /// The oldest span that is held of a trace.
    pub(super) fn take(&mut self, trace: TraceId) -> Option<Span> {
        let tree = self.trees.get_mut(&trace)?;
        let (_, span) = tree.spans.pop_front()?;
        self.held -= 1;
        self.calls.remove(&span.span_id);
        Some(span)
    }

    /// The oldest span of all, if more are held than may be.
    pub(super) fn take_surplus(&mut self, now_ns: u64) -> Option<GivenUp> {
        if self.held <= self.held_max {
            return None;
        }
        loop {
            let (due_ns, ..) = *self.ring.front()?;
            if let Some(span) = self.pop(now_ns) {
                self.horizon_ns = now_ns.saturating_sub(due_ns.saturating_sub(self.hold_ns));
                self.horizon_until_ns = now_ns.saturating_add(self.hold_ns);
                return Some(span);
            }
        }
    }

    /// The oldest span, if its time is over; decisions whose time is over are forgotten.
    pub(super) fn take_due(&mut self, now_ns: u64) -> Option<GivenUp> {
        if now_ns >= self.horizon_until_ns {
            self.horizon_ns = self.hold_ns;
        }
        while self.ring.front().is_some_and(|(due_ns, ..)| *due_ns <= now_ns) {
            if let Some(span) = self.pop(now_ns) {
                return Some(span);
            }
        }
        None
    }

    /// Takes the first entry out of the ring; the span, if it was still held.
    fn pop(&mut self, now_ns: u64) -> Option<GivenUp> {
        let (_, trace, waiting) = self.ring.pop_front()?;
        let tree = self.trees.get_mut(&trace)?;
        let (fate, caller) = (tree.fate, tree.caller);
        let span = match waiting {
            Waiting::Span(number) if tree.spans.front().is_some_and(|(first, _)| *first == number) => {
                self.take(trace)
            }
            Waiting::Span(_) => None,
            // A decision outlives what it is about.
            Waiting::Fate if tree.until_ns > now_ns || !tree.spans.is_empty() => {
                let until_ns = tree.until_ns;
                self.ring.push_back((until_ns, trace, Waiting::Fate));
                None
            }
            Waiting::Fate => {
                tree.fate = Fate::Undecided;
                None
            }
        };
        if self.trees.get(&trace).is_some_and(|tree| tree.spans.is_empty() && tree.fate == Fate::Undecided) {
            self.trees.remove(&trace);
        }
        span.map(|span| GivenUp { span, fate, caller })
    }
}
