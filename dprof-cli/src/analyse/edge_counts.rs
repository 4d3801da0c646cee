//! The service map from what every agent counted: each agent names the ends that it saw, and together they name more.
//!
//! What a reader would get wrong: a call between two hosts is counted by both agents, as "service A calls an address"
//! and as "an address calls service B". Where the addresses fit, those are the same calls, and the caller's count
//! speaks for them. Where they do not (the path translates addresses), both edges stay, each with one end unnamed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use dprof_common::model::{Edge, EdgeEnd, EdgeKey, RunId};
use dprof_store::RunEdge;

use super::edges::EdgeRow;
use super::estimate::Latency;

/// An address as seen by a run: those that every host has mean one host only.
fn scope(run_id: RunId, ip: IpAddr) -> Option<RunId> {
    ip.is_loopback().then_some(run_id)
}

/// Address of a server, and whose address it is.
type At = (Option<RunId>, SocketAddr);

/// Ends as they are shown.
type Names = (String, String);

#[derive(Default)]
struct Sum {
    protocols: BTreeSet<String>,
    /// Of the callers' counts, or of the servers' where no caller is watched.
    counts: Option<Edge>,
}

impl Sum {
    fn add(&mut self, edge: &Edge) {
        self.protocols.insert(edge.key.protocol.to_string());
        self.counts.get_or_insert_with(|| Edge::new(edge.key.clone())).merge(edge);
    }
}

/// The edges, most calls first.
pub fn rows(counted: &[RunEdge]) -> Vec<EdgeRow> {
    let mut services: HashMap<At, &str> = HashMap::new();
    for RunEdge { run_id, edge } in counted {
        if let EdgeEnd::Service(service) = &edge.key.callee {
            services.entry((scope(*run_id, edge.key.near.ip()), edge.key.near)).or_insert(service);
        }
    }
    let mut sums: BTreeMap<Names, Sum> = BTreeMap::new();
    // Calls of watched callers, by their address and the server's.
    let mut claims: HashMap<(IpAddr, At), Names> = HashMap::new();
    let mut others = Vec::new();
    for RunEdge { run_id, edge } in counted {
        let EdgeKey { caller, callee, near, .. } = &edge.key;
        match (caller, callee) {
            (EdgeEnd::Service(caller), EdgeEnd::Service(callee)) => {
                sums.entry((caller.clone(), callee.clone())).or_default().add(edge);
            }
            (EdgeEnd::Service(caller), EdgeEnd::Server(address)) => {
                let at = (scope(*run_id, address.ip()), *address);
                let callee = services.get(&at).map_or_else(|| address.to_string(), |name| (*name).to_owned());
                let names = (caller.clone(), callee);
                claims.entry((near.ip(), at)).or_insert_with(|| names.clone());
                sums.entry(names).or_default().add(edge);
            }
            _ => others.push((*run_id, edge)),
        }
    }
    for (run_id, edge) in others {
        let EdgeKey { caller, callee, near, .. } = &edge.key;
        let (EdgeEnd::Caller(ip), EdgeEnd::Service(callee)) = (caller, callee) else { continue };
        match claims.get(&(*ip, (scope(run_id, near.ip()), *near))) {
            Some(names) => {
                // Counted already, but for what only this end knows.
                if let Some(counts) = sums.get_mut(names).and_then(|sum| sum.counts.as_mut()) {
                    counts.retransmits += edge.retransmits;
                }
            }
            None => sums.entry((ip.to_string(), callee.clone())).or_default().add(edge),
        }
    }
    let row = |((caller, callee), Sum { protocols, counts }): (Names, Sum)| {
        let counts = counts?;
        let quantile = |q| counts.sketch.quantile(q).map_or(0, |ns| ns.min(counts.max_ns).max(counts.min_ns));
        Some(EdgeRow {
            caller,
            callee,
            protocols: protocols.into_iter().collect(),
            calls: counts.calls,
            errors: counts.errors,
            latency: Latency {
                min_ns: counts.min_ns,
                avg_ns: counts.sum_ns / counts.calls.max(1),
                p50_ns: quantile(0.5),
                p90_ns: quantile(0.9),
                p99_ns: quantile(0.99),
                max_ns: counts.max_ns,
            },
            request_bytes: counts.request_bytes,
            response_bytes: counts.response_bytes,
            retransmits: counts.retransmits,
            spans: 0,
        })
    };
    let mut rows: Vec<EdgeRow> = sums.into_iter().filter_map(row).collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.calls));
    rows
}

#[cfg(test)]
mod tests {
    use dprof_common::model::Span;

    use super::*;
    use crate::testing::rpc;

    /// What an agent counts of these spans.
    fn run(number: u128, spans: &[Span]) -> Vec<RunEdge> {
        Edge::of(spans).into_iter().map(|edge| RunEdge { run_id: RunId(number), edge }).collect()
    }

    #[track_caller]
    fn check(counted: &[Vec<RunEdge>], expected: &[(&str, &str, u64)]) {
        let rows = rows(&counted.concat());
        let found: Vec<(&str, &str, u64)> =
            rows.iter().map(|row| (row.caller.as_str(), row.callee.as_str(), row.calls)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_call_counted_at_both_ends_is_one() {
        let call = |n| rpc(n).by("web").client_only().build();
        let answer = |n| rpc(n).by("web").server_only().build();
        let (calls, answers) = ([call(1), call(2), call(3)], [answer(1), answer(2), answer(3)]);
        check(&[run(1, &calls), run(2, &answers)], &[("web", "redis", 3)]);
        // Each alone knows one name.
        check(&[run(1, &calls)], &[("web", "10.0.0.2:6379", 3)]);
        check(&[run(2, &answers)], &[("10.0.0.1", "redis", 3)]);
    }

    #[test]
    fn retransmissions_of_both_ends_count() {
        let mut call = rpc(1).by("web").client_only().build();
        call.client.as_mut().expect("seen").retransmits = 2;
        let mut answer = rpc(1).by("web").server_only().build();
        answer.server.as_mut().expect("seen").retransmits = 3;
        let rows = rows(&[run(1, &[call]), run(2, &[answer])].concat());
        assert_eq!((rows.len(), rows[0].calls, rows[0].retransmits), (1, 1, 5));
    }

    #[test]
    fn loopback_means_the_same_host_only() {
        let moved = |mut span: Span| {
            for half in span.client.iter_mut().chain(&mut span.server) {
                half.local.set_ip(IpAddr::from([127, 0, 0, 1]));
                half.peer.set_ip(IpAddr::from([127, 0, 0, 1]));
            }
            span
        };
        let call = moved(rpc(1).by("web").client_only().build());
        let answer = moved(rpc(1).by("web").server_only().build());
        check(
            &[run(1, std::slice::from_ref(&call)), run(2, std::slice::from_ref(&answer))],
            &[("127.0.0.1", "redis", 1), ("web", "127.0.0.1:6379", 1)],
        );
        check(&[run(1, &[call, answer])], &[("web", "redis", 1)]);
    }

    #[test]
    fn minutes_and_runs_add_up_with_latency_and_failures() {
        use dprof_common::model::Status;
        let spans = [
            rpc(1).by("web").at(0, 1_000).bytes(77, 5).build(),
            rpc(2).by("web").at(120_000_000, 3_000).status(Status::Error).bytes(77, 5).build(),
        ];
        let rows = rows(&[run(1, &spans[..1]), run(2, &spans[1..])].concat());
        let [row] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((row.calls, row.errors, row.request_bytes, row.response_bytes), (2, 1, 154, 10));
        assert_eq!(
            (row.latency.min_ns, row.latency.avg_ns, row.latency.max_ns),
            (1_000_000, 2_000_000, 3_000_000)
        );
    }
}
