//! Which traces are stored: the keep ratio, and what matters whatever the ratio says.
//!
//! A trace is kept when the hash of its id lies below the ratio (consistent sampling, as Dapper does; Sigelman et al.,
//! 2010, section 4.4), and also when a span of it failed, was slower than its operation usually is, or is among the
//! slowest of its run: the decision is then made at the tail, as tail-based samplers do, but by each agent for the part
//! of the tree that it sees, and told to the others in [`Word`]s along the calls of that tree.
//!
//! What a reader would get wrong: the ratio is known when the root starts and needs no memory; everything else is
//! learned when some of the trace's spans are long finished. They wait in a ring until a word about their trace comes
//! or their time is over. At ratio 1 nothing waits and nothing is said.

mod budget;
#[cfg(test)]
mod tests;
mod threshold;
mod top;
mod tree;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::hash::{Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dprof_common::model::{KeepReason, ProcessInfo, Span, SpanFlags, SpanId, TraceId};
use rustc_hash::{FxHashMap, FxHasher};

use budget::Budgets;
use threshold::Thresholds;
use top::Tops;
use tree::{Fate, GivenUp, Trees};

/// Words about RPCs that were not seen yet, or not seen to end; the oldest beyond are forgotten.
const WORDS_MAX: usize = 65_536;

/// Which traces are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct KeepOptions {
    /// Share of traces that is kept by the hash of its id, 0 to 1.
    pub ratio: f64,
    /// Whether traces with a span slower than its operation usually is are kept, and the slowest of each operation.
    pub slow: bool,
    /// Whether traces with a span that failed are kept.
    pub errors: bool,
    /// Traces per second and operation that may be kept for being slow or failed.
    pub budget_per_s: f64,
    /// Whether other agents are told and tell. Without, a part of a trace whose root is on another host is kept by
    /// the hash of its own id.
    pub has_peers: bool,
    /// Services for which something else is said of what matters.
    pub by_service: BTreeMap<String, Triggers>,
}

/// What matters whatever the ratio says; the fields are those of [`KeepOptions`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Triggers {
    /// Whether what was slow is kept.
    pub slow: bool,
    /// Whether what failed is kept.
    pub errors: bool,
    /// Traces per second and operation.
    pub budget_per_s: f64,
}

impl Default for KeepOptions {
    fn default() -> Self {
        Self {
            ratio: 1.0,
            slow: true,
            errors: true,
            budget_per_s: 10.0,
            has_peers: false,
            by_service: BTreeMap::new(),
        }
    }
}

impl KeepOptions {
    /// What matters of a service.
    fn triggers(&self, service: &str) -> Triggers {
        let Self { slow, errors, budget_per_s, .. } = *self;
        let of_all = Triggers { slow, errors, budget_per_s };
        if self.by_service.is_empty() {
            return of_all;
        }
        self.by_service.get(service).copied().unwrap_or(of_all)
    }

    fn triggers_of(&self, span: &Span) -> Triggers {
        self.triggers(span.nearest().map_or("", |half| &half.process.service))
    }
}

/// Word of one agent to another that a trace is kept: about an RPC of which each sees one end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Word {
    /// The RPC.
    pub rpc: SpanId,
    /// Its trace; `None`: the sender does not know it either, and asks for it to be kept.
    pub trace: Option<TraceId>,
    /// Probability with which traces are kept for this reason.
    pub probability: f64,
    /// Why.
    pub reason: KeepReason,
}

/// Who else is there.
pub trait Reach: Debug + Send + Sync {
    /// Whether an agent that watches `address` is there to be heard: then what it does not say it does not keep.
    fn reaches(&self, address: IpAddr) -> bool;
}

/// What the stage did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeepCounters {
    /// Spans given out, by reason.
    pub(crate) kept: [u64; 5],
    /// Traces that would have been kept but for the budget of their operation.
    pub(crate) over_budget: u64,
    /// Spans of traces that nothing kept.
    pub(crate) forgotten: u64,
    /// Spans forgotten before their time because too many were held.
    pub(crate) evicted: u64,
    /// Words from other agents that were new, and those forgotten before their RPC was seen.
    pub(crate) words_heard: u64,
    pub(crate) words_lost: u64,
    /// How long spans are held now, nanoseconds.
    pub(crate) horizon_ns: u64,
}

/// How a trace is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Kept {
    /// Its id, where it is another than that of the part seen here.
    name: Option<TraceId>,
    probability: f64,
    reason: KeepReason,
}

/// The stage.
#[derive(Debug)]
pub(crate) struct Keeper {
    options: KeepOptions,
    hold_ns: u64,
    trees: Trees,
    thresholds: Thresholds,
    tops: Tops,
    budgets: Budgets,
    /// Words whose RPC was not seen to end, and when they are forgotten.
    words: FxHashMap<SpanId, Word>,
    words_due: VecDeque<(u64, SpanId)>,
    /// Words for others: to the agent that watches this address.
    said: Vec<(SocketAddr, Word)>,
    reach: Option<Arc<dyn Reach>>,
    counters: KeepCounters,
}

/// Whether the hash of a trace's id lies below `ratio`. The same on every host.
pub(crate) fn is_sampled(trace: TraceId, ratio: f64) -> bool {
    if ratio >= 1.0 {
        return true;
    }
    // The finaliser of MurmurHash3: ids made by others need not be random.
    let mut hash = (trace.0 >> 64) as u64 ^ trace.0 as u64;
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    ((hash ^ (hash >> 33)) as f64) < ratio * 2.0_f64.powi(64)
}

/// Service and operation as a number.
pub(crate) fn operation_number(service: &str, operation: &str) -> u64 {
    let mut hasher = FxHasher::default();
    (service, operation).hash(&mut hasher);
    hasher.finish()
}

fn operation_of(span: &Span) -> u64 {
    span.nearest().map_or(0, |half| operation_number(&half.process.service, &half.operation))
}

/// A request that has been open for long.
#[derive(Clone, Debug)]
pub(crate) struct LongOpen {
    pub(crate) trace: TraceId,
    /// Its trace has another name, which is not known here.
    pub(crate) is_fragment: bool,
    /// Its [`operation_number`].
    pub(crate) operation: u64,
    /// Whose it is.
    pub(crate) process: Arc<ProcessInfo>,
}

impl Keeper {
    /// A stage that holds at most `held_max` spans, each for at most `hold_ns`.
    pub(crate) fn new(options: KeepOptions, hold_ns: u64, held_max: usize) -> Self {
        Self {
            options,
            hold_ns,
            trees: Trees::new(hold_ns, held_max),
            thresholds: Thresholds::default(),
            tops: Tops::default(),
            budgets: Budgets::default(),
            words: FxHashMap::default(),
            words_due: VecDeque::new(),
            said: Vec::new(),
            reach: None,
            counters: KeepCounters::default(),
        }
    }

    /// Who else is there; without, nobody is known to be.
    pub(crate) fn set_reach(&mut self, reach: Arc<dyn Reach>) {
        self.reach = Some(reach);
    }

    /// Other options from now on; what is held is judged by them.
    pub(crate) fn set_options(&mut self, options: KeepOptions) {
        self.options = options;
    }

    /// Holds at most `held_max` spans from now on, those that come for at most `hold_ns`.
    pub(crate) const fn set_limits(&mut self, hold_ns: u64, held_max: usize) {
        self.hold_ns = hold_ns;
        self.trees.set_limits(hold_ns, held_max);
    }

    /// Whether everything is kept and nobody needs to be told.
    pub(crate) fn keeps_all(&self) -> bool {
        self.options.ratio >= 1.0 && self.trees.is_empty()
    }

    pub(crate) fn counters(&self) -> KeepCounters {
        let horizon_ns = if self.keeps_all() { 0 } else { self.trees.horizon_ns() };
        KeepCounters { horizon_ns, ..self.counters }
    }

    /// Spans held.
    pub(crate) const fn held(&self) -> usize {
        self.trees.held()
    }

    /// Words for other agents since the last time.
    pub(crate) fn take_words(&mut self, words: &mut Vec<(SocketAddr, Word)>) {
        words.append(&mut self.said);
    }

    /// Spans whose place in their trace is settled: kept ones go to `out`, others wait.
    pub(crate) fn sift(&mut self, spans: &mut Vec<Span>, out: &mut Vec<Span>, now_ns: u64) {
        for span in spans.drain(..) {
            self.add(span, out, now_ns);
        }
    }

    fn add(&mut self, mut span: Span, out: &mut Vec<Span>, now_ns: u64) {
        let trace = span.trace_id;
        let triggers = self.options.triggers_of(&span);
        let trigger = self.trigger(triggers, &span, now_ns);
        if let Some(word) = self.word_about(&span) {
            self.keep_by_word(trace, &word, span.flags.contains(SpanFlags::FRAGMENT), now_ns);
        }
        let fate = match self.trees.fate(trace) {
            Fate::Undecided => self.by_ratio(&span).map_or(Fate::Undecided, Fate::Kept),
            fate => fate,
        };
        if fate == Fate::Undecided
            && let Some(reason) = trigger.filter(|_| self.may_keep(operation_of(&span), triggers, now_ns))
        {
            // What it caused may have been forgotten before it ended.
            if span.duration_ns() >= self.hold_ns {
                span.flags.insert(SpanFlags::TRUNCATED);
            }
            self.want(trace, reason, span.flags.contains(SpanFlags::FRAGMENT), now_ns);
        }
        match fate {
            Fate::Kept(kept) => {
                self.trees.touch(trace, now_ns);
                self.settle(trace, out);
                self.give(span, kept, out);
            }
            Fate::Undecided | Fate::Wanted(_) => {
                self.hold(span, out, now_ns);
                self.settle(trace, out);
            }
        }
    }

    /// Why the trace of this span is to be kept whatever the ratio says.
    fn trigger(&mut self, triggers: Triggers, span: &Span, now_ns: u64) -> Option<KeepReason> {
        let operation = operation_of(span);
        let duration_ns = span.duration_ns();
        let is_slow = triggers.slow && {
            let is_slow = self.thresholds.is_slow(operation, duration_ns, span.link.is_none(), now_ns);
            self.thresholds.add(operation, duration_ns, now_ns);
            is_slow
        };
        if triggers.errors && span.is_error() {
            return Some(KeepReason::Error);
        }
        if is_slow {
            return Some(KeepReason::Slow);
        }
        (triggers.slow && self.tops.enters(operation, duration_ns, now_ns)).then_some(KeepReason::Top)
    }

    fn may_keep(&mut self, operation: u64, triggers: Triggers, now_ns: u64) -> bool {
        let is_within = self.budgets.take(operation, triggers.budget_per_s, now_ns);
        self.counters.over_budget += u64::from(!is_within);
        is_within
    }

    /// How the ratio alone keeps a span, where that can be said at once.
    fn by_ratio(&self, span: &Span) -> Option<Kept> {
        let is_fragment = span.flags.contains(SpanFlags::FRAGMENT);
        // An id that the application made is the same on every host.
        let has_own_id = span.trace_id.0 >> 64 != 0;
        let reason = match (is_fragment && !has_own_id, self.options.has_peers) {
            (false, _) => KeepReason::Ratio,
            (true, false) => KeepReason::Unconfirmed,
            // The agent of its root decides.
            (true, true) => return None,
        };
        let kept = Kept { name: None, probability: self.options.ratio, reason };
        is_sampled(span.trace_id, self.options.ratio).then_some(kept)
    }

    /// A trace is to be kept: at once if this agent knows its name, else the agent of its topmost caller is asked.
    fn want(&mut self, trace: TraceId, reason: KeepReason, is_fragment: bool, now_ns: u64) {
        let fate = if is_fragment && self.options.has_peers {
            Fate::Wanted(reason)
        } else {
            Fate::Kept(Kept { name: None, probability: 1.0, reason })
        };
        self.trees.set(trace, fate, now_ns);
    }

    /// A request has been open for half the hold time: its trace is kept before what it caused is forgotten.
    pub(crate) fn keep_long(&mut self, long: &LongOpen, out: &mut Vec<Span>, now_ns: u64) {
        let triggers = self.options.triggers(&long.process.service);
        let is_decided = self.trees.fate(long.trace) != Fate::Undecided;
        if !triggers.slow || is_decided || is_sampled(long.trace, self.options.ratio) {
            return;
        }
        if self.may_keep(long.operation, triggers, now_ns) {
            self.want(long.trace, KeepReason::Slow, long.is_fragment, now_ns);
            self.settle(long.trace, out);
        }
    }

    /// A word of another agent.
    pub(crate) fn hear(&mut self, word: Word, out: &mut Vec<Span>, now_ns: u64) {
        let known = self.words.get(&word.rpc);
        if known.is_some_and(|known| known.trace.is_some() || word.trace.is_none()) {
            return;
        }
        if known.is_none() {
            self.counters.words_heard += 1;
            self.words_due.push_back((now_ns.saturating_add(self.hold_ns), word.rpc));
        }
        self.words.insert(word.rpc, word);
        while self.words_due.len() > WORDS_MAX {
            self.counters.words_lost += 1;
            self.forget_word();
        }
        // The part of the trace below the RPC, or the one that made the call.
        let below = word.rpc.as_root_trace();
        for trace in [Some(below), self.trees.of_call(word.rpc)].into_iter().flatten() {
            if self.trees.contains(trace) {
                self.keep_by_word(trace, &word, self.trees.is_fragment(trace), now_ns);
                self.settle(trace, out);
            }
        }
    }

    fn keep_by_word(&mut self, trace: TraceId, word: &Word, is_fragment: bool, now_ns: u64) {
        let fate = match (self.trees.fate(trace), word.trace) {
            (Fate::Kept(kept), _) => Fate::Kept(kept),
            // Asked from below: a part that has no name asks further up.
            (_, None) if is_fragment && self.options.has_peers => Fate::Wanted(word.reason),
            _ => Fate::Kept(Kept { name: word.trace, probability: word.probability, reason: word.reason }),
        };
        self.trees.set(trace, fate, now_ns);
    }

    /// The word about a span's trace that came before it.
    fn word_about(&self, span: &Span) -> Option<Word> {
        if self.words.is_empty() {
            return None;
        }
        let topmost = SpanId(span.trace_id.0 as u64);
        self.words
            .get(&topmost)
            .filter(|word| word.trace.is_some())
            .or_else(|| self.words.get(&span.span_id))
            .copied()
    }

    /// Gives out what is held of a trace that is kept, and tells others; asks for the name of one that is wanted.
    fn settle(&mut self, trace: TraceId, out: &mut Vec<Span>) {
        match self.trees.fate(trace) {
            Fate::Kept(kept) => {
                while let Some(span) = self.trees.take(trace) {
                    self.give(span, kept, out);
                }
            }
            Fate::Wanted(reason) => {
                if let Some((to, rpc)) = self.trees.ask_above(trace) {
                    self.said.push((to, Word { rpc, trace: None, probability: 1.0, reason }));
                }
            }
            Fate::Undecided => {}
        }
    }

    /// A span of a kept trace goes out, and the agent at the other end of a call is told.
    fn give(&mut self, mut span: Span, kept: Kept, out: &mut Vec<Span>) {
        if let Some(name) = kept.name {
            span.trace_id = name;
            span.flags.0 &= !SpanFlags::FRAGMENT.0;
        }
        (span.probability, span.reason) = (kept.probability, kept.reason);
        self.counters.kept[kept.reason as usize - 1] += 1;
        if self.options.has_peers
            && kept.reason != KeepReason::Unconfirmed
            && let (Some(client), None) = (&span.client, &span.server)
        {
            let is_named = !span.flags.contains(SpanFlags::FRAGMENT);
            let word = Word {
                rpc: span.span_id,
                trace: is_named.then_some(span.trace_id),
                probability: kept.probability,
                reason: kept.reason,
            };
            self.said.push((client.peer, word));
        }
        out.push(span);
    }

    fn hold(&mut self, span: Span, out: &mut Vec<Span>, now_ns: u64) {
        self.trees.hold(span, now_ns);
        while let Some(span) = self.trees.take_surplus(now_ns) {
            self.counters.evicted += 1;
            self.give_up(span, out);
        }
    }

    /// Nothing was heard of a span's trace while it was held.
    fn give_up(&mut self, GivenUp { span, fate, caller }: GivenUp, out: &mut Vec<Span>) {
        let is_fragment = span.flags.contains(SpanFlags::FRAGMENT);
        let reason = match fate {
            Fate::Kept(kept) => return self.give(span, kept, out),
            // It keeps its own name, and readers stitch it.
            Fate::Wanted(reason) => Some((reason, 1.0)),
            Fate::Undecided
                if is_fragment
                    && is_sampled(span.trace_id, self.options.ratio)
                    && !self.would_have_heard_of(caller) =>
            {
                Some((KeepReason::Unconfirmed, self.options.ratio))
            }
            Fate::Undecided => None,
        };
        match reason {
            Some((reason, probability)) => {
                self.give(span, Kept { name: None, probability, reason }, out);
            }
            None => self.counters.forgotten += 1,
        }
    }

    fn would_have_heard_of(&self, caller: Option<IpAddr>) -> bool {
        self.reach.as_ref().zip(caller).is_some_and(|(reach, caller)| reach.reaches(caller))
    }

    /// Everything whose time is over by now.
    pub(crate) fn expire(&mut self, out: &mut Vec<Span>, now_ns: u64) {
        while let Some(span) = self.trees.take_due(now_ns) {
            self.give_up(span, out);
        }
        while self.words_due.front().is_some_and(|(due_ns, _)| *due_ns <= now_ns) {
            self.forget_word();
        }
    }

    /// The stream ended: nothing more will be heard.
    pub(crate) fn finish(&mut self, out: &mut Vec<Span>) {
        self.expire(out, u64::MAX);
    }

    fn forget_word(&mut self) {
        if let Some((_, rpc)) = self.words_due.pop_front() {
            self.words.remove(&rpc);
        }
    }
}

/// The address of the agent that may know more of a part of a trace, and the RPC that both see.
fn caller_of(span: &Span) -> Option<(SocketAddr, SpanId)> {
    let half = span.server.as_ref().filter(|_| span.client.is_none())?;
    Some((half.peer, span.span_id))
}
