//! The pure engine: blocks of records in, spans and rollups out.
//!
//! One record at a time, in the order of capture, and nothing else has an influence: neither a clock nor how
//! records were cut into blocks. What a reader would get wrong: time is the newest time of any event; every
//! time-out follows it, so a replay ends requests exactly where the live run did.

mod capture;
mod connections;
mod counters;
mod halves;
mod messages;
#[cfg(test)]
mod tests;
mod watch;

use std::net::IpAddr;
use std::sync::Arc;

use dprof_common::drop_reason::DropReason;
use dprof_common::model::{Edge, HostInfo, KeepReason, ProcessInfo, Rollup, Span, SpanId};
use dprof_common::settings::Protocols;
use rustc_hash::{FxHashMap, FxHashSet};

pub use self::counters::EngineCounters;
use crate::args::EngineLimits;
use crate::decode::{Event, decode};
use crate::edges::Edges;
use crate::keep::{KeepOptions, Keeper, Reach, Word};
use crate::link::LinkOptions;
use crate::link::linker::Linker;
use crate::protocol::capture::Capture;
use crate::protocol::{ALL, Direction, Parsed, Protocol};
use crate::rollup::Rollups;
use crate::settings::Settings;
use crate::source::Block;
use crate::span::open::OpenTable;
use crate::span::times::Clock;
use crate::span::window::{SETTLE_NS, Window};
use crate::stream::socket::Socket;
use crate::stream::speech::Grammar;

/// What the engine is told once. Every limit has a constant with its reason beside the stage that keeps it.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This host.
    pub host: Arc<HostInfo>,
    /// Whether connections of unknown protocol become request/response spans by change of direction.
    pub unknown: bool,
    /// A request without an answer for this long becomes a span of status `timeout`, nanoseconds.
    pub max_open_ns: u64,
    /// How long a finished half waits for its other half and for its tree's root, nanoseconds.
    pub hold_ns: u64,
    /// Requests open at once, over all connections; the oldest beyond end as `timeout`, counted.
    pub open_requests_max: usize,
    /// Halves and tree nodes held at once; the oldest beyond are released early, counted.
    pub held_max: usize,
    /// Connections known at once; the least recently used beyond are forgotten, counted.
    pub connections_max: usize,
    /// Added to every wall-clock time, nanoseconds (`--clock-offset`, tests).
    pub clock_offset_ns: i64,
    /// Rate error of the host's clock, parts per million (`--clock-drift-ppm`, tests).
    pub clock_drift_ppm: f64,
    /// Which links are made.
    pub link: LinkOptions,
}

/// What a push gives.
#[derive(Debug, Default)]
pub struct Output {
    /// Spans whose trace id is settled, halves merged where both were seen here.
    pub spans: Vec<Span>,
    /// What was counted since the last time; a minute may come in parts.
    pub rollups: Vec<Rollup>,
    /// Calls per caller and callee that were counted since the last time; a minute may come in parts.
    pub edges: Vec<Edge>,
    /// Payload limits that changed: (socket cookie, bytes per call).
    pub payload_limits: Vec<(u64, u32)>,
    /// Words for the agents that watch these addresses.
    pub words: Vec<(std::net::SocketAddr, Word)>,
}

/// A request that is not answered yet.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct OpenRequest {
    /// The RPC, printed as hex.
    #[serde(serialize_with = "as_text")]
    pub span_id: SpanId,
    /// `client` or `server`.
    pub kind: dprof_common::model::Side,
    /// Service of the process.
    pub service: String,
    /// Operation.
    pub operation: String,
    /// Statement as it may be shown.
    pub query_text: String,
    /// This end.
    pub local: std::net::SocketAddr,
    /// The other.
    pub peer: std::net::SocketAddr,
    /// Start, nanoseconds since the epoch.
    pub start_unix_ns: u64,
    /// Age at the last event or clock tick, nanoseconds.
    pub age_ns: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn as_text<S: serde::Serializer>(id: &SpanId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}

/// Addresses of this host that are remembered: more than any machine has, fewer than memory minds.
const LOCAL_ADDRESSES_MAX: usize = 4096;
/// Processes that are remembered.
const PROCESSES_MAX: usize = 65_536;
/// Ports that listen.
const LISTENERS_MAX: usize = 65_536;

/// The engine's whole state.
pub struct Engine {
    config: EngineConfig,
    grammar: Grammar,
    clock: Clock,
    sockets: FxHashMap<u64, Box<Socket>>,
    /// Sockets with calls that wait for their place, and when they are looked at.
    held: Vec<u64>,
    held_due_ns: u64,
    /// Connections that ended with unread data: they are closed a little later.
    lingering: std::collections::VecDeque<(u64, dprof_common::event::CloseEvent)>,
    processes: FxHashMap<u32, Arc<ProcessInfo>>,
    /// Processes that have read a request.
    serving: FxHashSet<u32>,
    listeners: FxHashSet<(u32, u16)>,
    local_addresses: FxHashSet<IpAddr>,
    open: OpenTable,
    linker: Linker,
    window: Window,
    keeper: Keeper,
    /// Kept between calls to save allocations.
    settled: Vec<Span>,
    rollups: Rollups,
    edges: Edges,
    next_message_id: u64,
    last_lost_ns: Option<u64>,
    /// Since when every event was seen: the start, the last loss, the last edge of the capture window.
    seen_since_ns: Option<u64>,
    /// The last edge of the capture window: when, and whether it opened.
    last_edge: Option<(u64, bool)>,
    counters: EngineCounters,
    /// Kept between calls to save allocations.
    parsed: Vec<Parsed>,
    tick_due_ns: u64,
}

/// Links are final within this part of the hold time, so that a decision to keep a trace still finds its spans.
const LINK_SHARE: u64 = 3;

fn link_wait_ns(hold_ns: u64) -> u64 {
    (hold_ns / LINK_SHARE).min(SETTLE_NS)
}

/// Turns, time-outs and minutes are looked at this often, nanoseconds of event time.
const TICK_NS: u64 = 100_000_000;

impl Engine {
    /// An engine that has seen nothing.
    pub fn new(config: EngineConfig) -> Self {
        Self::with_protocols(config, ALL)
    }

    /// An engine that knows these protocols only.
    pub fn with_protocols(config: EngineConfig, protocols: &'static [&'static dyn Protocol]) -> Self {
        Self {
            grammar: Grammar {
                protocols,
                chosen: Protocols::ALL,
                unknown: config.unknown,
                capture: Capture::default(),
            },
            clock: Clock::new(config.clock_offset_ns, config.clock_drift_ppm),
            sockets: FxHashMap::default(),
            held: Vec::new(),
            held_due_ns: u64::MAX,
            lingering: std::collections::VecDeque::new(),
            processes: FxHashMap::default(),
            serving: FxHashSet::default(),
            listeners: FxHashSet::default(),
            local_addresses: FxHashSet::default(),
            open: OpenTable::default(),
            linker: Linker::new(config.link, link_wait_ns(config.hold_ns)),
            window: Window::new(config.hold_ns, config.held_max),
            keeper: Keeper::new(KeepOptions::default(), config.hold_ns, config.held_max),
            settled: Vec::new(),
            rollups: Rollups::default(),
            edges: Edges::default(),
            next_message_id: 1,
            last_lost_ns: None,
            seen_since_ns: None,
            last_edge: None,
            counters: EngineCounters::default(),
            parsed: Vec::new(),
            tick_due_ns: 0,
            config,
        }
    }

    /// What may be kept of keys and values, on connections recognised from now on.
    #[must_use]
    pub const fn with_capture(mut self, capture: Capture) -> Self {
        self.grammar.capture = capture;
        self
    }

    /// Which protocols are looked into.
    #[must_use]
    pub const fn with_chosen(mut self, protocols: Protocols) -> Self {
        self.grammar.chosen = protocols;
        self
    }

    /// Which traces are given out.
    #[must_use]
    pub fn with_keep(mut self, options: KeepOptions) -> Self {
        self.keeper.set_options(options);
        self
    }

    /// Which other agents there are.
    #[must_use]
    pub fn with_reach(mut self, reach: Arc<dyn Reach>) -> Self {
        self.keeper.set_reach(reach);
        self
    }

    /// Obeys these settings from now on. Spans that wait for a word are judged by them too.
    pub fn obey(&mut self, settings: &Settings, out: &mut Output) {
        self.keeper.set_options(settings.keep.clone());
        self.config.max_open_ns = settings.max_open_ns;
        self.set_limits(settings.limits);
        self.grammar.unknown = settings.unknown;
        self.choose_protocols(settings.protocols, out);
        if self.grammar.capture != settings.capture {
            self.grammar.capture = settings.capture;
            self.sockets.values_mut().for_each(|socket| socket.set_capture(settings.capture));
        }
    }

    /// Holds other limits from now on. What is beyond a lower one goes when the next comes, the oldest first; what
    /// waits already waits for as long as it was to.
    fn set_limits(&mut self, limits: EngineLimits) {
        let EngineLimits { open_requests_max, held_max, connections_max, hold_ns } = limits;
        let config = &mut self.config;
        (config.open_requests_max, config.connections_max) = (open_requests_max, connections_max);
        (config.held_max, config.hold_ns) = (held_max, hold_ns);
        self.linker.set_wait(link_wait_ns(hold_ns));
        self.window.set_limits(hold_ns, held_max);
        self.keeper.set_limits(hold_ns, held_max);
    }

    /// Local addresses of the connections that were watched.
    pub fn local_addresses(&self) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = self.local_addresses.iter().copied().collect();
        addresses.sort_unstable();
        addresses
    }

    /// A word of another agent about an RPC of which each sees one end.
    pub fn hear(&mut self, word: Word, out: &mut Output) {
        self.keep(out, |keeper, _, out, now_ns| keeper.hear(word, out, now_ns));
    }

    /// Takes a block in; what it settled is added to `out`. Damaged records are counted and passed over.
    pub fn push(&mut self, block: &Block, out: &mut Output) {
        for record in block.records() {
            self.counters.records += 1;
            match record.map(decode) {
                Some(Ok(event)) => self.event(event, out),
                Some(Err(_)) | None => self.counters.records_refused += 1,
            }
        }
        self.give_out(out);
    }

    /// Spans that are done with: all, or those that are kept.
    fn give_out(&mut self, out: &mut Output) {
        if self.keeper.keeps_all() {
            let before = out.spans.len();
            self.window.take(&mut out.spans);
            out.spans[before..].iter().for_each(|span| self.edges.add(span));
            self.counters.spans += (out.spans.len() - before) as u64;
        } else {
            self.keep(out, Keeper::sift);
        }
    }

    /// Has the keeper do something, and gives out what comes of it.
    fn keep(
        &mut self,
        out: &mut Output,
        what: impl FnOnce(&mut Keeper, &mut Vec<Span>, &mut Vec<Span>, u64),
    ) {
        let before = out.spans.len();
        let done = self.settled.len();
        self.window.take(&mut self.settled);
        self.settled[done..].iter().for_each(|span| self.edges.add(span));
        what(&mut self.keeper, &mut self.settled, &mut out.spans, self.clock.now_ns());
        self.keeper.take_words(&mut out.words);
        self.counters.spans += (out.spans.len() - before) as u64;
    }

    /// The stream ended: everything finished is given out. Open requests are only counted: nobody saw them end.
    pub fn finish(&mut self, out: &mut Output) {
        self.give_up_held(u64::MAX, out);
        while let Some((_, close)) = self.lingering.pop_front() {
            self.close(&close, out);
        }
        self.linker.finish();
        self.take_links(self.clock.now_ns());
        self.window.finish_all(self.clock.now_ns());
        self.give_out(out);
        self.keep(out, |keeper, _, out, _| keeper.finish(out));
        self.rollups.take_all(&mut out.rollups);
        self.edges.take_all(&mut out.edges);
    }

    /// Requests that are open now, oldest first.
    pub fn open_requests(&self, limit: usize) -> Vec<OpenRequest> {
        let now_ns = self.clock.now_ns();
        let describe = |half: &crate::span::open::OpenHalf| {
            let socket = self.sockets.get(&half.cookie)?;
            let start_ns = half.request.first.wire_ns.unwrap_or(half.request.first.hook_ns);
            Some(OpenRequest {
                span_id: half.span_id,
                kind: half.side,
                service: half.process.service.clone(),
                operation: half.request.message.operation.to_string(),
                query_text: half.request.message.text.clone(),
                local: socket.local,
                peer: socket.peer,
                start_unix_ns: half.offset.unix_ns(start_ns),
                age_ns: now_ns.saturating_sub(start_ns),
            })
        };
        self.open.iter().filter_map(describe).take(limit).collect()
    }

    /// Counters and gauges.
    pub fn counters(&self) -> EngineCounters {
        let keep = self.keeper.counters();
        let kept = |reason: KeepReason| keep.kept[reason as usize - 1];
        EngineCounters {
            kept_ratio: kept(KeepReason::Ratio),
            kept_slow: kept(KeepReason::Slow),
            kept_error: kept(KeepReason::Error),
            kept_top: kept(KeepReason::Top),
            kept_unconfirmed: kept(KeepReason::Unconfirmed),
            keep_over_budget: keep.over_budget,
            not_kept: keep.forgotten,
            not_kept_early: keep.evicted,
            words_heard: keep.words_heard,
            words_lost: keep.words_lost,
            keep_horizon_ms: keep.horizon_ns / 1_000_000,
            spans_released_early: self.window.counters().evicted,
            spans_alone: self.window.counters().alone,
            halves_doubled: self.window.counters().doubled,
            links_certain: self.linker.counters().certain,
            links_vetoed: self.linker.counters().vetoed,
            links_below_min: self.linker.counters().below_min,
            links_overdue: self.linker.counters().overdue,
            link_requests: self.linker.kept().0 as u64,
            edges_other: self.edges.other(),
            rollups_other: self.rollups.counters().other,
            keys_uncounted: self.rollups.counters().keys_uncounted,
            connections: self.sockets.len() as u64,
            open_requests: self.open.len() as u64,
            held: (self.window.held() + self.keeper.held()) as u64,
            ..self.counters
        }
    }

    fn event(&mut self, event: Event<'_>, out: &mut Output) {
        match event {
            Event::Open(open) => self.announce(&open),
            Event::Close(close) => self.closing(close, out),
            Event::Send(send, payload) => self.send(&send, payload, out),
            Event::Recv(recv, payload) => self.recv(&recv, payload, out),
            Event::Arrivals(arrivals) => {
                if let Some(socket) = self.sockets.get_mut(&arrivals.sock) {
                    socket.arrivals.clear();
                    socket.arrivals.extend(arrivals.iter());
                }
            }
            Event::FirstDeparture(first) => {
                if let Some(socket) = self.sockets.get_mut(&first.sock) {
                    socket.departing = Some((first.start_pos, first.time_ns));
                }
            }
            Event::Retransmit(resent) => {
                if let Some(socket) = self.sockets.get_mut(&resent.sock) {
                    socket.resent.note(resent.start_pos, resent.end_pos);
                    for slot in socket.pairing.all() {
                        if let Some(half) = self.open.get_mut(slot)
                            && half.request.message.direction == Direction::Out
                            && half.request.message.start < resent.end_pos
                            && resent.start_pos < half.request.message.end
                        {
                            half.retransmits += 1;
                        }
                    }
                    for span_id in socket.resent.answered_in(resent.start_pos, resent.end_pos) {
                        self.window.mark_resent(span_id);
                    }
                }
            }
            Event::Listen(listen) => {
                let key = (listen.netns, listen.port);
                if listen.header.flags & dprof_common::event::flag::GONE != 0 {
                    self.listeners.remove(&key);
                } else if self.listeners.len() < LISTENERS_MAX {
                    self.listeners.insert(key);
                }
            }
            Event::Process(process) => {
                if self.processes.len() >= PROCESSES_MAX && !self.processes.contains_key(&process.pid) {
                    self.processes.clear();
                    self.serving.clear();
                }
                self.processes.insert(process.pid, Arc::new(process));
            }
            Event::Clock(clock) => {
                self.clock.tick(&clock);
                self.seen_since_ns.get_or_insert(clock.monotonic_ns);
            }
            Event::Window(edge) => self.edge(&edge, out),
            Event::Ports(event, ports) => self.choose_ports(&event, ports, out),
            Event::Lost(lost) => {
                let loses_event = DropReason::ALL
                    .into_iter()
                    .find(|reason| *reason as u32 == lost.header.size)
                    .is_none_or(DropReason::loses_event);
                if !loses_event {
                    self.counters.payloads_lost = self.counters.payloads_lost.saturating_add(lost.count);
                    return;
                }
                // Positions show which sockets lost bytes as they move on; which thread read what does not show.
                self.counters.events_lost = self.counters.events_lost.saturating_add(lost.count);
                self.last_lost_ns = Some(self.clock.now_ns());
                self.seen_since_ns = self.last_lost_ns;
                self.linker.disturbed(0);
            }
        }
        self.pass_time(out);
    }

    /// An event of this time was seen.
    fn see(&mut self, event_ns: u64) {
        if !self.clock.see(event_ns) {
            self.counters.times_refused += 1;
        }
    }

    /// What was decided on causes goes to the window.
    #[inline]
    fn take_links(&mut self, now_ns: u64) {
        if !self.linker.has_news() {
            return;
        }
        let (window, mut n_links) = (&mut self.window, 0);
        // A call may be decided on and detached at once, and then leave: the mark comes first.
        self.linker.take_detached(|call| window.mark_detached(call));
        self.linker.take_decided(|decided| {
            n_links += u64::from(decided.link.is_some());
            window.decide(decided.call, decided.link, decided.further, now_ns);
        });
        self.counters.links += n_links;
    }

    /// Everything that is due by now.
    fn pass_time(&mut self, out: &mut Output) {
        let now_ns = self.clock.now_ns();
        if now_ns >= self.held_due_ns {
            self.give_up_held(now_ns, out);
        }
        self.linker.expire(now_ns);
        self.take_links(now_ns);
        self.window.expire(now_ns);
        // At once, or what is kept would depend on how records were cut into blocks.
        if self.window.has_ready() && !self.keeper.keeps_all() {
            self.give_out(out);
        }
        if now_ns >= self.tick_due_ns {
            self.tick_due_ns = now_ns.saturating_add(TICK_NS);
            self.tick(now_ns, out);
        }
    }
}
