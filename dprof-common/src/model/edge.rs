//! Edges of the service map: calls per caller, callee and minute, made of everything seen, before any sampling.
//!
//! What a reader would get wrong: an edge is what *one agent* saw of the calls. Where it saw both ends, both have
//! names; where it saw one, the other is an address, and only a reader that has the other agent's edge too can name it.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use super::{Sketch, Span};

const NS_PER_MINUTE: u64 = 60_000_000_000;

/// One end of an edge.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EdgeEnd {
    /// A service that this agent watches.
    Service(String),
    /// A caller that it does not watch: its port changes with each connection.
    Caller(IpAddr),
    /// A server that it does not watch.
    Server(SocketAddr),
}

/// What an edge is of. One minute of one run.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeKey {
    /// Start of the minute that the calls ended in, seconds since the epoch.
    pub minute_unix_s: u64,
    /// Who calls.
    pub caller: EdgeEnd,
    /// Who is called.
    pub callee: EdgeEnd,
    /// Address of the end that was seen; of both, the server's. A caller's has port 0.
    pub near: SocketAddr,
    /// Protocol name.
    pub protocol: Cow<'static, str>,
}

/// Everything seen of one key.
#[derive(Clone, Debug, PartialEq)]
pub struct Edge {
    /// What of.
    pub key: EdgeKey,
    /// How many calls.
    pub calls: u64,
    /// How many failed, at either end.
    pub errors: u64,
    /// Sum of durations at the widest end seen, nanoseconds.
    pub sum_ns: u64,
    /// Shortest, nanoseconds.
    pub min_ns: u64,
    /// Longest, nanoseconds.
    pub max_ns: u64,
    /// Bytes of requests.
    pub request_bytes: u64,
    /// Bytes of responses.
    pub response_bytes: u64,
    /// Segments sent again, by the ends that were seen.
    pub retransmits: u64,
    /// Durations, nanoseconds.
    pub sketch: Sketch,
}

/// The address of the end that was seen, as [`EdgeKey::near`] has it; `None` for a span without halves.
fn near_of(span: &Span) -> Option<SocketAddr> {
    match (&span.server, &span.client) {
        (Some(server), _) => Some(canonical(server.local)),
        (None, Some(client)) => Some(SocketAddr::new(client.local.ip().to_canonical(), 0)),
        (None, None) => None,
    }
}

/// IPv4 in its own form, also where a socket of IPv6 carries it.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl EdgeKey {
    /// The edge that a span is on; `None` for a span without halves.
    pub fn of(span: &Span) -> Option<Self> {
        let near = near_of(span)?;
        let half = span.widest()?;
        let caller = match &span.client {
            Some(client) => EdgeEnd::Service(client.process.service.clone()),
            None => EdgeEnd::Caller(half.peer.ip().to_canonical()),
        };
        let callee = match &span.server {
            Some(server) => EdgeEnd::Service(server.process.service.clone()),
            None => EdgeEnd::Server(canonical(half.peer)),
        };
        let minute_unix_s = half.times.end_ns / NS_PER_MINUTE * 60;
        Some(Self { minute_unix_s, caller, callee, near, protocol: half.protocol.clone() })
    }
}

impl Edge {
    /// No calls yet.
    pub fn new(key: EdgeKey) -> Self {
        Self {
            key,
            calls: 0,
            errors: 0,
            sum_ns: 0,
            min_ns: u64::MAX,
            max_ns: 0,
            request_bytes: 0,
            response_bytes: 0,
            retransmits: 0,
            sketch: Sketch::new(),
        }
    }

    /// Counts a call.
    pub fn add(&mut self, span: &Span) {
        let Some(near) = span.nearest() else { return };
        let duration_ns = span.duration_ns();
        self.calls += 1;
        self.errors += u64::from(span.is_error());
        self.sum_ns = self.sum_ns.saturating_add(duration_ns);
        self.min_ns = self.min_ns.min(duration_ns);
        self.max_ns = self.max_ns.max(duration_ns);
        self.request_bytes += near.request_bytes;
        self.response_bytes += near.response_bytes;
        let halves = span.client.iter().chain(&span.server);
        self.retransmits += halves.map(|half| u64::from(half.retransmits)).sum::<u64>();
        self.sketch.add(duration_ns);
    }

    /// Adds another edge's counts (its key is ignored).
    pub fn merge(&mut self, other: &Self) {
        self.calls += other.calls;
        self.errors += other.errors;
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
        self.min_ns = self.min_ns.min(other.min_ns);
        self.max_ns = self.max_ns.max(other.max_ns);
        self.request_bytes += other.request_bytes;
        self.response_bytes += other.response_bytes;
        self.retransmits += other.retransmits;
        self.sketch.merge(&other.sketch);
    }

    /// The edges that these spans are on, in order of their keys: of what is kept, where an agent counts what it sees.
    pub fn of<'a>(spans: impl IntoIterator<Item = &'a Span>) -> Vec<Self> {
        let mut edges: std::collections::BTreeMap<EdgeKey, Self> = std::collections::BTreeMap::new();
        for span in spans {
            let Some(key) = EdgeKey::of(span) else { continue };
            edges.entry(key.clone()).or_insert_with(|| Self::new(key)).add(span);
        }
        edges.into_values().collect()
    }
}
