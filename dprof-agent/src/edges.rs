//! Edges: every call that is done with, counted per caller, callee and minute, before any decision to keep.
//!
//! What a reader would get wrong: calls are told apart by the *processes* at their ends, which costs two pointers, not by
//! their names; two processes of one service become one edge when a reader adds them up.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dprof_common::model::{Edge, EdgeEnd, EdgeKey, ProcessInfo, Span};
use rustc_hash::FxHashMap;

use crate::rollup::OTHER;

/// Edges told apart between two times that they are given out; further ones are counted as one, from and to [`OTHER`].
/// A host with a thousand peers is a large one; each takes about a kilobyte.
pub(crate) const EDGES_MAX: usize = 2_000;
/// Counts are given out this often, nanoseconds: what `dependencies` lags behind, and how many rows a day has.
const EVERY_NS: u64 = 30_000_000_000;
const MINUTE_NS: u64 = 60_000_000_000;

/// What tells the edges of one process from one another without looking at names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    minute: u64,
    /// Address of the process's description, which the tally keeps alive; 0 = not seen.
    caller: usize,
    callee: usize,
    /// Of the end that was seen, without the port of a caller; of both, the server's.
    near: (IpAddr, u16),
    /// Of an end that was not seen, without the port of a caller.
    far: Option<(IpAddr, u16)>,
    /// Address of the protocol's name.
    protocol: usize,
}

/// Fewer words than a derived one: this is done for every call.
impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (ip, port) = self.far.unwrap_or(self.near);
        let ip = match ip {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64 ^ ip.to_bits() as u64,
        };
        state.write_u64(self.minute ^ (u64::from(port) << 48) ^ (ip << 8));
        state.write_usize(self.caller ^ self.callee.rotate_left(32));
    }
}

#[derive(Debug)]
struct Tally {
    edge: Edge,
    /// What [`Id`] has the addresses of.
    _ends: [Option<Arc<ProcessInfo>>; 2],
}

/// What was counted since the last time.
#[derive(Debug, Default)]
pub(crate) struct Edges {
    places: FxHashMap<Id, usize>,
    tallies: Vec<Tally>,
    /// Calls counted as [`OTHER`].
    other: u64,
    due_ns: u64,
}

fn id_of(span: &Span) -> Option<Id> {
    let end = |address: SocketAddr| (address.ip(), address.port());
    let address_of = |process: &Arc<ProcessInfo>| Arc::as_ptr(process) as usize;
    let (near, far, half) = match (&span.client, &span.server) {
        (Some(_), Some(server)) => (end(server.local), None, server),
        (None, Some(server)) => (end(server.local), Some((server.peer.ip(), 0)), server),
        (Some(client), None) => ((client.local.ip(), 0), Some(end(client.peer)), client),
        (None, None) => return None,
    };
    Some(Id {
        minute: span.widest()?.times.end_ns / MINUTE_NS,
        caller: span.client.as_ref().map_or(0, |half| address_of(&half.process)),
        callee: span.server.as_ref().map_or(0, |half| address_of(&half.process)),
        near,
        far,
        protocol: half.protocol.as_ptr() as usize,
    })
}

impl Edges {
    /// Counts a call that is done with.
    #[inline(never)]
    pub(crate) fn add(&mut self, span: &Span) {
        let Some(id) = id_of(span) else { return };
        let place = match self.places.get(&id) {
            Some(place) => *place,
            None => match self.add_edge(id, span) {
                Some(place) => place,
                None => return,
            },
        };
        self.tallies[place].edge.add(span);
    }

    #[cold]
    fn add_edge(&mut self, id: Id, span: &Span) -> Option<usize> {
        let mut key = EdgeKey::of(span)?;
        let mut id = id;
        let process = |half: Option<&dprof_common::model::Half>| half.map(|half| Arc::clone(&half.process));
        let mut ends = [process(span.client.as_ref()), process(span.server.as_ref())];
        if self.tallies.len() >= EDGES_MAX {
            self.other += 1;
            key = other(&key);
            ends = [None, None];
            id = Id { caller: 0, callee: 0, near: (key.near.ip(), 0), far: None, protocol: 0, ..id };
            if let Some(place) = self.places.get(&id) {
                return Some(*place);
            }
        }
        self.tallies.push(Tally { edge: Edge::new(key), _ends: ends });
        self.places.insert(id, self.tallies.len() - 1);
        Some(self.tallies.len() - 1)
    }

    /// Gives out everything that was counted since the last time, if that is [`EVERY_NS`] ago at `now_ns`.
    #[inline(never)]
    pub(crate) fn take_due(&mut self, now_ns: u64, out: &mut Vec<Edge>) {
        if now_ns >= self.due_ns {
            let is_first = self.due_ns == 0;
            self.due_ns = now_ns.saturating_add(EVERY_NS);
            if !is_first {
                self.take_all(out);
            }
        }
    }

    /// Gives out everything: the stream ended.
    pub(crate) fn take_all(&mut self, out: &mut Vec<Edge>) {
        self.places.clear();
        out.extend(self.tallies.drain(..).map(|tally| tally.edge));
    }

    /// Calls that the limit counted as [`OTHER`] so far.
    pub(crate) const fn other(&self) -> u64 {
        self.other
    }
}

/// The key of all calls of a minute that are beyond the limit.
fn other(key: &EdgeKey) -> EdgeKey {
    let end = || EdgeEnd::Service(OTHER.to_owned());
    let near = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0);
    EdgeKey { caller: end(), callee: end(), near, protocol: OTHER.into(), ..key.clone() }
}

#[cfg(test)]
mod tests {
    use dprof_common::model::Half;

    use super::*;
    use crate::span::testing;

    const M: u64 = MINUTE_NS;

    fn span(client: Option<Half>, server: Option<Half>) -> Span {
        testing::span(client, server)
    }

    fn half(service: &str, local: &str, peer: &str, end_ns: u64) -> Half {
        Half {
            local: local.parse().expect("an address"),
            peer: peer.parse().expect("an address"),
            ..testing::half(service, "GET", end_ns, 10)
        }
    }

    #[track_caller]
    fn check(spans: &[Span], expected: &[&str]) {
        let mut edges = Edges::default();
        spans.iter().for_each(|span| edges.add(span));
        let mut out = Vec::new();
        edges.take_all(&mut out);
        let end = |end: &EdgeEnd| match end {
            EdgeEnd::Service(service) => service.clone(),
            EdgeEnd::Caller(ip) => ip.to_string(),
            EdgeEnd::Server(address) => address.to_string(),
        };
        let shown = |edge: &Edge| {
            let EdgeKey { minute_unix_s, caller, callee, near, .. } = &edge.key;
            format!("{minute_unix_s} {} -> {} at {near}: {}", end(caller), end(callee), edge.calls)
        };
        assert_eq!(out.iter().map(shown).collect::<Vec<_>>(), expected);
        // The same as from the spans at once, whatever was told apart by process.
        let mut sums = std::collections::BTreeMap::new();
        for edge in out {
            sums.entry(edge.key.clone()).or_insert_with(|| Edge::new(edge.key.clone())).merge(&edge);
        }
        assert_eq!(sums.into_values().collect::<Vec<_>>(), Edge::of(spans));
    }

    #[test]
    fn an_edge_has_names_where_ends_were_seen_and_addresses_where_not() {
        let web = |end_ns| half("web", "10.0.0.1:40000", "10.0.0.2:6379", end_ns);
        let web_again = half("web", "10.0.0.1:40001", "10.0.0.2:6379", M + 2);
        let redis = |end_ns| half("redis", "10.0.0.2:6379", "10.0.0.1:40000", end_ns);
        let mapped = half("redis", "[::ffff:10.0.0.2]:6379", "[::ffff:10.0.0.9]:555", M);
        check(
            &[
                span(Some(web(M)), Some(redis(M))),
                span(Some(web(2 * M)), Some(redis(2 * M - 1))),
                span(Some(web(M)), None),
                span(Some(web_again), None),
                span(None, Some(redis(M))),
                span(None, Some(mapped)),
                span(None, None),
            ],
            &[
                "60 web -> redis at 10.0.0.2:6379: 1",
                "120 web -> redis at 10.0.0.2:6379: 1",
                "60 web -> 10.0.0.2:6379 at 10.0.0.1:0: 1",
                "60 web -> 10.0.0.2:6379 at 10.0.0.1:0: 1",
                "60 10.0.0.1 -> redis at 10.0.0.2:6379: 1",
                "60 10.0.0.9 -> redis at 10.0.0.2:6379: 1",
            ],
        );
    }

    #[test]
    fn edges_beyond_the_limit_are_counted_as_one() {
        let mut edges = Edges::default();
        for n in 0..EDGES_MAX + 50 {
            let address = format!("10.1.{}.{}:80", n / 250, n % 250);
            edges.add(&span(Some(half("web", "10.0.0.1:40000", &address, M)), None));
        }
        assert_eq!(edges.other(), 50);
        let mut out = Vec::new();
        edges.take_all(&mut out);
        assert_eq!(out.len(), EDGES_MAX + 1);
        let rest = out.last().expect("an edge for the rest");
        assert_eq!((&rest.key.caller, rest.calls), (&EdgeEnd::Service(OTHER.to_owned()), 50));
    }

    #[test]
    fn counts_come_out_twice_a_minute() {
        let mut edges = Edges::default();
        let mut out = Vec::new();
        edges.take_due(100, &mut out);
        edges.add(&span(Some(half("web", "10.0.0.1:1", "10.0.0.2:80", M)), None));
        edges.take_due(100 + EVERY_NS - 1, &mut out);
        assert!(out.is_empty());
        edges.take_due(100 + EVERY_NS, &mut out);
        assert_eq!(out.len(), 1);
        edges.take_due(u64::MAX, &mut out);
        assert_eq!(out.len(), 1);
    }
}
