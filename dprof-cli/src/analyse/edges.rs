//! The service map: one edge per caller and callee, with calls, failures, latency, bytes and retransmissions.
//!
//! What a reader would get wrong: an end that no agent watches has no name, only an address; it is still an edge. A
//! client's port changes with each connection, so an unwatched caller is its IP address alone, while an unwatched
//! server keeps its port.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

use dprof_common::model::Span;
use serde::Serialize;

use super::estimate::{Distribution, Latency, weight};
use super::row::halves;

/// An edge of the service map. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EdgeRow {
    /// Service that calls, or an address.
    pub caller: String,
    /// Service that is called, or an address.
    pub callee: String,
    /// Protocols, in order of name.
    pub protocols: Vec<String>,
    /// Estimated number of calls.
    pub calls: u64,
    /// Of them failed, estimated.
    pub errors: u64,
    /// Durations at the widest end seen.
    #[serde(flatten)]
    pub latency: Latency,
    /// Bytes of requests, estimated.
    pub request_bytes: u64,
    /// Bytes of responses, estimated.
    pub response_bytes: u64,
    /// Segments sent again, both ends, estimated.
    pub retransmits: u64,
    /// Stored spans that this stands on; 0 = on counts of everything seen.
    pub spans: u64,
}

#[derive(Default)]
struct Sum {
    protocols: BTreeSet<String>,
    durations: Distribution,
    errors: f64,
    request_bytes: f64,
    response_bytes: f64,
    retransmits: f64,
}

/// Adds spans up by edge.
#[derive(Default)]
pub struct Edges {
    edges: BTreeMap<(End, End), Sum>,
    /// Which service was seen to answer at an address.
    servers: HashMap<SocketAddr, String>,
}

/// One end of an edge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Service(String),
    Caller(std::net::IpAddr),
    Server(SocketAddr),
}

impl Edges {
    /// Counts a span; examples (see [`super::estimate`]) count for nothing.
    pub fn add(&mut self, span: &Span) {
        let caller = match (&span.client, &span.server) {
            (Some(client), _) => End::Service(client.process.service.clone()),
            (None, Some(server)) => End::Caller(server.peer.ip().to_canonical()),
            (None, None) => return,
        };
        let callee = match (&span.server, &span.client) {
            (Some(server), _) => {
                self.servers.entry(server.local).or_insert_with(|| server.process.service.clone());
                End::Service(server.process.service.clone())
            }
            (None, Some(client)) => End::Server(client.peer),
            (None, None) => return,
        };
        let (Some(weight), Some(near)) = (weight(span), span.nearest()) else { return };
        let sum = self.edges.entry((caller, callee)).or_default();
        sum.protocols.insert(near.protocol.to_string());
        sum.durations.add(span.duration_ns(), weight);
        sum.errors += if span.is_error() { weight } else { 0.0 };
        sum.request_bytes += near.request_bytes as f64 * weight;
        sum.response_bytes += near.response_bytes as f64 * weight;
        sum.retransmits += halves(span).map(|half| f64::from(half.retransmits)).sum::<f64>() * weight;
    }

    /// The edges, most calls first. A server known by address only, at which some service was seen to answer, is
    /// marked with that service's name.
    pub fn rows(self) -> Vec<EdgeRow> {
        let name = |end: &End| match end {
            End::Service(service) => service.clone(),
            End::Caller(ip) => ip.to_string(),
            End::Server(address) => match self.servers.get(address) {
                Some(service) => format!("{service} ({address})"),
                None => address.to_string(),
            },
        };
        let mut rows: Vec<EdgeRow> = self
            .edges
            .iter()
            .map(|((caller, callee), sum)| EdgeRow {
                caller: name(caller),
                callee: name(callee),
                protocols: sum.protocols.iter().cloned().collect(),
                calls: sum.durations.count(),
                errors: sum.errors.round() as u64,
                latency: sum.durations.latency(),
                request_bytes: sum.request_bytes.round() as u64,
                response_bytes: sum.response_bytes.round() as u64,
                retransmits: sum.retransmits.round() as u64,
                spans: sum.durations.seen,
            })
            .collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.calls));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;
    use dprof_common::model::Status;

    fn edges(spans: &[Span]) -> Vec<EdgeRow> {
        let mut edges = Edges::default();
        for span in spans {
            edges.add(span);
        }
        edges.rows()
    }

    #[test]
    fn calls_between_watched_services_add_up_per_edge() {
        let mut sampled = rpc(3).by("web").at(0, 3_000).build();
        sampled.probability = 0.25;
        sampled.client.as_mut().expect("seen").retransmits = 2;
        let rows = edges(&[
            rpc(1).by("web").at(0, 1_000).bytes(77, 5).build(),
            rpc(2).by("web").at(0, 2_000).status(Status::Error).build(),
            sampled,
            rpc(4).by("mail").build(),
        ]);
        assert_eq!(rows.len(), 2);
        let edge = &rows[0];
        assert_eq!((edge.caller.as_str(), edge.callee.as_str(), edge.calls), ("web", "redis", 6));
        assert_eq!((edge.errors, edge.retransmits, edge.spans), (1, 8, 3));
        assert_eq!((edge.request_bytes, edge.response_bytes), (6 * 77, 6 * 5));
        assert_eq!(
            (edge.latency.min_ns, edge.latency.avg_ns, edge.latency.max_ns),
            (1_000_000, 2_500_000, 3_000_000)
        );
        assert_eq!(edge.protocols, ["redis"]);
    }

    #[test]
    fn unwatched_ends_are_addresses_and_a_known_address_has_a_name() {
        let rows = edges(&[rpc(1).by("web").client_only().build(), rpc(2).server_only().build()]);
        let names: Vec<(&str, &str)> =
            rows.iter().map(|row| (row.caller.as_str(), row.callee.as_str())).collect();
        assert_eq!(names, [("web", "redis (10.0.0.2:6379)"), ("10.0.0.1", "redis")]);
        let rows = edges(&[rpc(1).by("web").client_only().build()]);
        assert_eq!(rows[0].callee, "10.0.0.2:6379");
    }
}
