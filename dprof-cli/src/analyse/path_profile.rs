//! Critical paths of many requests added up by hop and part of the split, and two such profiles held against each
//! other: where do the slow ones spend what the usual ones do not?
//!
//! What a reader would get wrong: an average is per request of the set, also of requests whose path does not touch
//! the hop. So the averages of a profile add up to the set's mean duration, and the differences between two
//! profiles to the difference of their means.

use std::collections::BTreeMap;

use dprof_common::model::Span;
use serde::Serialize;

use super::critical_path::{Step, critical_path};
use super::latency::Part;
use super::place::place;
use super::tree::Tree;

/// A place on paths: who served, what, and which part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cell {
    service: String,
    operation: String,
    part: Part,
}

#[derive(Clone, Debug, Default)]
struct Sum {
    ns: u64,
    /// By host of the service.
    hosts: BTreeMap<String, u64>,
}

/// Paths of a set of requests, added up.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// How many requests.
    pub requests: u64,
    /// Sum of their durations, nanoseconds.
    pub total_ns: u64,
    cells: BTreeMap<Cell, Sum>,
    /// RPCs of each hop in these traces, on the path or not.
    calls: BTreeMap<(String, String), u64>,
}

/// One hop and part, in two sets. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PathRow {
    /// Who served it (or called, where the server is not watched).
    pub service: String,
    /// What was asked.
    pub operation: String,
    /// Part of the split.
    pub part: &'static str,
    /// Mean time on the path per request of the first set, nanoseconds.
    pub slow_ns: u64,
    /// Of the second set.
    pub usual_ns: u64,
    /// The first less the second.
    pub added_ns: i64,
    /// Share of the whole difference between the sets' means; negative = less than usual.
    pub added_share: f64,
    /// RPCs of this hop per request, first set.
    pub slow_calls: f64,
    /// Second set.
    pub usual_calls: f64,
    /// Host on which most of the first set's time of this row passed.
    pub host: String,
    /// Share of that time.
    pub host_share: f64,
}

impl Profile {
    /// Adds the trace of `tree`, whose request is at `root`.
    pub fn add(&mut self, tree: &Tree<'_>, root: usize) {
        let placed = place(tree);
        let steps = critical_path(tree, &placed, root);
        self.requests += 1;
        self.total_ns += tree.nodes[root].span.duration_ns();
        for Step { idx, part, start, until } in steps {
            let Some(near) = tree.nodes[idx].span.nearest() else { continue };
            let cell =
                Cell { service: near.process.service.clone(), operation: near.operation.clone(), part };
            let sum = self.cells.entry(cell).or_default();
            let ns = until.saturating_sub(start).max(0) as u64;
            sum.ns += ns;
            *sum.hosts.entry(near.host.host.clone()).or_default() += ns;
        }
        for near in tree.nodes.iter().filter_map(|node| node.span.nearest()) {
            *self.calls.entry((near.process.service.clone(), near.operation.clone())).or_default() += 1;
        }
    }

    /// Adds the trace that `spans` are, if it has a request.
    pub fn add_spans(&mut self, spans: &[Span]) {
        let tree = Tree::new(spans);
        if let Some(root) = tree.request() {
            self.add(&tree, root);
        }
    }

    /// Mean duration, nanoseconds.
    pub fn avg_ns(&self) -> u64 {
        self.total_ns / self.requests.max(1)
    }

    /// RPCs of a hop per request.
    fn calls_per_request(&self, service: &str, operation: &str) -> f64 {
        let calls = self.calls.get(&(service.to_owned(), operation.to_owned())).copied().unwrap_or(0);
        calls as f64 / self.requests.max(1) as f64
    }
}

/// Where the requests of `slow` spent more than those of `usual`: largest difference first.
pub fn difference(slow: &Profile, usual: &Profile) -> Vec<PathRow> {
    let whole = slow.avg_ns() as i64 - usual.avg_ns() as i64;
    let mut cells: Vec<&Cell> = slow.cells.keys().chain(usual.cells.keys()).collect();
    cells.sort();
    cells.dedup();
    let nothing = Sum::default();
    let mut rows: Vec<PathRow> = cells
        .into_iter()
        .map(|cell| {
            let in_slow = slow.cells.get(cell).unwrap_or(&nothing);
            let in_usual = usual.cells.get(cell).unwrap_or(&nothing);
            let (slow_ns, usual_ns) =
                (in_slow.ns / slow.requests.max(1), in_usual.ns / usual.requests.max(1));
            let added_ns = slow_ns as i64 - usual_ns as i64;
            let hosts = if in_slow.ns > 0 { in_slow } else { in_usual };
            let host = hosts.hosts.iter().max_by_key(|(_, ns)| **ns);
            PathRow {
                service: cell.service.clone(),
                operation: cell.operation.clone(),
                part: cell.part.name(),
                slow_ns,
                usual_ns,
                added_ns,
                added_share: if whole == 0 { 0.0 } else { added_ns as f64 / whole as f64 },
                slow_calls: slow.calls_per_request(&cell.service, &cell.operation),
                usual_calls: usual.calls_per_request(&cell.service, &cell.operation),
                host: host.map_or(String::new(), |(host, _)| host.clone()),
                host_share: host.map_or(0.0, |(_, ns)| *ns as f64 / hosts.ns.max(1) as f64),
            }
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.added_ns));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;

    /// A request of 1 ms with one call of redis, which takes `call_us`, on `host`.
    fn trace(call_us: u64, host: &str) -> Vec<Span> {
        vec![
            rpc(1).of("web", "GET /").hosts("lb", "lb").at(0, 400 + call_us * 100 / 60).build(),
            rpc(2).under(1).of("redis", "GET").hosts("lb", host).at(300, call_us).build(),
        ]
    }

    #[test]
    fn the_differences_of_two_sets_add_up_and_name_the_hop_part_and_host() {
        let (mut slow, mut usual) = (Profile::default(), Profile::default());
        for _ in 0..3 {
            slow.add_spans(&trace(6_000, "db-3"));
        }
        slow.add_spans(&trace(6_000, "db-1"));
        for _ in 0..8 {
            usual.add_spans(&trace(600, "db-1"));
        }
        // (400 + 10,000) us and (400 + 1,000) us.
        assert_eq!((slow.avg_ns(), usual.avg_ns()), (10_400_000, 1_400_000));
        let rows = difference(&slow, &usual);
        let top = &rows[0];
        // 60 % of the call's time is redis' service: 3.6 ms of 6 ms against 0.36 ms.
        assert_eq!((top.service.as_str(), top.operation.as_str(), top.part), ("redis", "GET", "service"));
        assert_eq!((top.slow_ns, top.usual_ns, top.added_ns), (3_600_000, 360_000, 3_240_000));
        assert!((top.added_share - 0.36).abs() < 1e-9);
        assert_eq!(top.host, "db-3");
        assert!((top.host_share - 0.75).abs() < 1e-9);
        assert_eq!((top.slow_calls, top.usual_calls), (1.0, 1.0));
        let sum: i64 = rows.iter().map(|row| row.added_ns).sum();
        assert_eq!(sum, 9_000_000);
    }

    #[test]
    fn more_calls_show_as_calls_per_request() {
        let (mut slow, mut usual) = (Profile::default(), Profile::default());
        let request = || rpc(1).of("web", "GET /").hosts("lb", "lb").at(0, 10_000);
        let call = |id: u64| rpc(id).under(1).hosts("lb", "db-1").at(2_000 + id * 100, 50);
        usual.add_spans(&[request().build(), call(2).build()]);
        slow.add_spans(
            &(1..=41)
                .map(|id| if id == 1 { request().build() } else { call(id).build() })
                .collect::<Vec<_>>(),
        );
        let rows = difference(&slow, &usual);
        let row = rows.iter().find(|row| row.service == "redis").expect("on the path");
        assert_eq!((row.slow_calls, row.usual_calls), (40.0, 1.0));
    }

    #[test]
    fn nothing_differs_from_nothing() {
        assert_eq!(difference(&Profile::default(), &Profile::default()), []);
    }
}
