//! Writes that go to several replicas: how far each replica lags behind the first.
//!
//! A write is found again by what it says: RPCs of one trace with the same operation and statement that end on
//! different hosts are its copies; one that was passed on as it is (a forward to another rack) is not a copy itself.
//!
//! What a reader would get wrong: when a replica had applied the write is known on its own clock only. Copies are
//! compared on the drawn line ([`super::place`]), where a host sits inside the call that reached it with the network
//! split evenly, so a lag is right to half the network time of the calls between. Where the calls share a caller,
//! that is half the difference of their network times.

use std::collections::{BTreeMap, BTreeSet};

use dprof_common::model::{Span, TraceId};
use serde::Serialize;

use super::estimate::{Distribution, Latency};
use super::latency::Part;
use super::place::{Placed, place};
use super::tree::Tree;

/// Operations that change nothing: asking several replicas is no replication.
const READS: [&str; 24] = [
    "GET",
    "MGET",
    "STRLEN",
    "EXISTS",
    "TTL",
    "TYPE",
    "HGET",
    "HMGET",
    "HGETALL",
    "LRANGE",
    "LLEN",
    "SMEMBERS",
    "SCARD",
    "SISMEMBER",
    "ZRANGE",
    "ZCARD",
    "ZSCORE",
    "SCAN",
    "PING",
    "SELECT",
    "get",
    "gets",
    "HEAD",
    "INFO",
];

/// A replica's lag. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReplicaRow {
    /// Datacenter by the host's label; empty if unknown.
    pub dc: String,
    /// Rack by the host's label.
    pub rack: String,
    /// Host, or an address where it is not watched.
    pub host: String,
    /// Copies that it applied.
    pub writes: u64,
    /// Of them failed or without an answer.
    pub errors: u64,
    /// How often it was the first to apply the write.
    pub first: u64,
    /// How often the last.
    pub last: u64,
    /// Lag behind the first replica.
    #[serde(flatten)]
    pub lag: Latency,
}

#[derive(Default)]
struct Sum {
    lags: Distribution,
    errors: u64,
    first: u64,
    last: u64,
}

/// Adds up lags over traces.
#[derive(Default)]
pub struct Replication {
    replicas: BTreeMap<(String, String, String), Sum>,
    /// Writes that went to at least two replicas.
    pub writes: u64,
    widest: Option<(i64, TraceId)>,
}

/// A copy of a write: node, and when it was applied.
struct Copy {
    idx: usize,
    applied: i64,
}

/// Whether an operation (its first word) is known to only read.
fn is_read(operation: &str) -> bool {
    let verb = operation.split(' ').next().unwrap_or_default();
    READS.contains(&verb)
}

/// When the server had the answer ready, on the drawn line; without its view, when the caller had it.
fn applied(placed: &Placed) -> i64 {
    let service = placed.segments.iter().rev().find(|segment| segment.part == Part::Service);
    service.map_or_else(|| placed.end(), |segment| segment.until)
}

/// Where the copy ended: datacenter, rack, host or address.
fn place_of(span: &Span) -> Option<(String, String, String)> {
    match (&span.server, &span.client) {
        (Some(server), _) => {
            let label = |name: &str| server.host.labels.get(name).cloned().unwrap_or_default();
            Some((label("dc"), label("rack"), server.host.host.clone()))
        }
        (None, Some(client)) => Some((String::new(), String::new(), client.peer.to_string())),
        (None, None) => None,
    }
}

impl Replication {
    /// Adds the writes of a trace. With `reads`, operations that only read count too.
    pub fn add(&mut self, spans: &[Span], reads: bool) {
        let tree = Tree::new(spans);
        let placed = place(&tree);
        let same = |a: usize, b: usize| {
            let (Some(a), Some(b)) = (tree.nodes[a].span.nearest(), tree.nodes[b].span.nearest()) else {
                return false;
            };
            a.operation == b.operation && a.query_text == b.query_text
        };
        let mut writes: BTreeMap<(&str, &str), Vec<Copy>> = BTreeMap::new();
        for (idx, node) in tree.nodes.iter().enumerate() {
            let Some(near) = node.span.nearest() else { continue };
            let is_forward = node.children.iter().any(|child| same(idx, *child));
            if is_forward || (!reads && is_read(&near.operation)) {
                continue;
            }
            let copy = Copy { idx, applied: applied(&placed[idx]) };
            writes.entry((&near.operation, &near.query_text)).or_default().push(copy);
        }
        for copies in writes.into_values() {
            let hosts: BTreeSet<_> =
                copies.iter().filter_map(|copy| place_of(tree.nodes[copy.idx].span)).collect();
            // The same host twice is a second write with the same statement, not a second replica.
            if hosts.len() >= 2 && hosts.len() == copies.len() {
                self.add_write(&tree, &copies);
            }
        }
    }

    fn add_write(&mut self, tree: &Tree<'_>, copies: &[Copy]) {
        let first = copies.iter().map(|copy| copy.applied).min().unwrap_or(0);
        let last = copies.iter().map(|copy| copy.applied).max().unwrap_or(0);
        self.writes += 1;
        if let Some(copy) = copies.first() {
            let trace_id = tree.nodes[copy.idx].span.trace_id;
            self.widest = self.widest.max(Some((last.saturating_sub(first), trace_id)));
        }
        for copy in copies {
            let span = tree.nodes[copy.idx].span;
            let Some(key) = place_of(span) else { continue };
            let sum = self.replicas.entry(key).or_default();
            sum.lags.add(copy.applied.saturating_sub(first).max(0) as u64, 1.0);
            sum.errors += u64::from(span.is_error());
            sum.first += u64::from(copy.applied == first);
            sum.last += u64::from(copy.applied == last);
        }
    }

    /// The trace of the write whose last replica lags most behind its first.
    pub fn widest(&self) -> Option<TraceId> {
        self.widest.map(|(_, trace_id)| trace_id)
    }

    /// The replicas by datacenter, rack and host.
    pub fn rows(self) -> Vec<ReplicaRow> {
        self.replicas
            .into_iter()
            .map(|((dc, rack, host), sum)| ReplicaRow {
                dc,
                rack,
                host,
                writes: sum.lags.seen,
                errors: sum.errors,
                first: sum.first,
                last: sum.last,
                lag: sum.lags.latency(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rpc, rpc};

    fn set(id: u64, host: &str, rack: &str, dc: &str) -> Rpc {
        rpc(id).of("redis", "SET").query("set a ?").by("dyn").hosts("n1", host).labels(rack, dc)
    }

    #[track_caller]
    fn check(rpcs: Vec<Rpc>, reads: bool, expected: &[(&str, u64, u64, u64)]) {
        let spans: Vec<Span> = rpcs.into_iter().map(Rpc::build).collect();
        let mut replication = Replication::default();
        replication.add(&spans, reads);
        let rows = replication.rows();
        let shown: Vec<(&str, u64, u64, u64)> =
            rows.iter().map(|row| (row.host.as_str(), row.lag.max_ns / 1_000, row.first, row.last)).collect();
        assert_eq!(shown, expected);
    }

    /// The coordinator's request, whose copies it sends to three hosts.
    fn fan_out() -> Vec<Rpc> {
        vec![
            rpc(1).of("dyn", "SET").query("set a ?").hosts("n1", "n1").at(0, 1_000),
            set(2, "n1", "r1", "east").under(1).at(250, 100),
            // 80 % of a call has passed when the server's answer is ready: 80, 160 and 3,200 us after its start.
            set(3, "n2", "r2", "east").under(1).at(250, 200),
            set(4, "n3", "r1", "west").under(1).at(300, 4_000),
        ]
    }

    #[test]
    fn each_replica_lags_behind_the_first() {
        check(fan_out(), false, &[("n1", 0, 1, 0), ("n2", 80, 0, 0), ("n3", 3_170, 0, 1)]);
    }

    #[test]
    fn the_widest_write_is_the_one_whose_last_replica_lags_most() {
        let mut replication = Replication::default();
        assert_eq!(replication.widest(), None);
        for (trace, late_us) in [(7, 4_000), (8, 9_000), (9, 2_000)] {
            let mut rpcs = fan_out();
            rpcs.push(set(5, "n5", "r2", "west").under(1).at(300, late_us));
            replication.add(&rpcs.into_iter().map(|rpc| rpc.trace(trace).build()).collect::<Vec<_>>(), false);
        }
        assert_eq!(replication.widest(), Some(TraceId(8)));
    }

    #[test]
    fn a_forward_is_no_copy_and_reads_are_not_replicated() {
        let mut rpcs = fan_out();
        // n3 passes it on to n4, which applies it.
        rpcs.push(set(5, "n4", "r2", "west").hosts("n3", "n4").under(4).at(5_000_000 + 2_000, 500));
        let spans: Vec<Span> = rpcs.into_iter().map(Rpc::build).collect();
        let mut replication = Replication::default();
        replication.add(&spans, false);
        let hosts: Vec<String> = replication.rows().into_iter().map(|row| row.host).collect();
        assert_eq!(hosts, ["n1", "n2", "n4"]);
        let reads: Vec<Rpc> = fan_out().into_iter().map(|rpc| rpc.of("redis", "GET")).collect();
        check(reads.clone(), false, &[]);
        check(reads, true, &[("n1", 0, 1, 0), ("n2", 80, 0, 0), ("n3", 3_170, 0, 1)]);
    }

    #[test]
    fn one_copy_and_the_same_host_twice_are_no_replication() {
        check(fan_out()[..2].to_vec(), false, &[]);
        check(vec![rpc(1), set(2, "n1", "r", "d").under(1), set(3, "n1", "r", "d").under(1)], false, &[]);
    }
}
