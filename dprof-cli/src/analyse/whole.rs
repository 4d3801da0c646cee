//! Whole traces: one line per trace, and one line per kind of request over many traces.
//!
//! What a reader would get wrong: a trace's duration is that of its request, which the caller waited for. Work
//! that outlives it (detached) is told apart as `extent_ns`. Roots of kind `unlinked` are calls whose cause was not
//! found: they are counted apart, never as requests.

use std::collections::{BTreeMap, BTreeSet};

use dprof_common::model::{RootKind, Span, SpanFlags};
use serde::Serialize;

use super::attribution::{Attribution, shares};
use super::confidence::Confidence;
use super::critical_path::critical_path;
use super::estimate::{Distribution, Latency, weight};
use super::latency::Part;
use super::place::place;
use super::row::halves;
use super::tree::Tree;
use crate::units;

/// What kind of root a request has, for people and programs.
pub fn root_name(span: &Span) -> &'static str {
    if span.flags.contains(SpanFlags::FRAGMENT) {
        // Its own caller's agent would know more.
        return "fragment";
    }
    span.root.map_or("unknown", RootKind::name)
}

/// A trace in one line. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TraceSummary {
    /// 32 hex digits.
    pub trace_id: String,
    /// Who served the request.
    pub service: String,
    /// What was asked.
    pub operation: String,
    /// `edge`, `unlinked`, `fragment` or `unknown`.
    pub root: &'static str,
    /// RFC 3339, UTC.
    pub start_time: String,
    /// Of the request.
    pub duration_ns: u64,
    /// From the request's start to the end of the last RPC that it caused, as drawn.
    pub extent_ns: u64,
    /// RPCs, the request included.
    pub rpcs: usize,
    /// Failed ones.
    pub errors: usize,
    /// Services.
    pub services: usize,
    /// Hosts.
    pub hosts: usize,
    /// Service and operation of the hop that the critical path spent most time in.
    pub mostly_service: String,
    /// Its operation.
    pub mostly_operation: String,
    /// Which part of it.
    pub mostly_part: &'static str,
    /// How long.
    pub mostly_ns: u64,
}

/// The line of the trace that `spans` are; `None` if there are none.
pub fn summary(spans: &[Span]) -> Option<TraceSummary> {
    let tree = Tree::new(spans);
    let root = tree.request()?;
    let placed = place(&tree);
    let span = tree.nodes[root].span;
    let near = span.nearest()?;
    let mut on_path: BTreeMap<(usize, Part), u64> = BTreeMap::new();
    for step in critical_path(&tree, &placed, root) {
        *on_path.entry((step.idx, step.part)).or_default() += step.ns();
    }
    let mostly = on_path.into_iter().max_by_key(|(_, ns)| *ns);
    let mostly_near = mostly.and_then(|((idx, _), _)| tree.nodes[idx].span.nearest());
    let all = || tree.nodes.iter().flat_map(|node| halves(node.span));
    let end = placed
        .iter()
        .filter(|placed| !placed.is_guess && placed.client_shift.or(placed.server_shift).is_some())
        .map(super::place::Placed::end)
        .max()
        .unwrap_or(0);
    Some(TraceSummary {
        trace_id: span.trace_id.to_string(),
        service: near.process.service.clone(),
        operation: near.operation.clone(),
        root: root_name(span),
        start_time: units::rfc3339(span.start_ns()),
        duration_ns: span.duration_ns(),
        extent_ns: end.saturating_sub(placed[root].start).max(span.duration_ns() as i64) as u64,
        rpcs: tree.nodes.len(),
        errors: tree.nodes.iter().filter(|node| node.span.is_error()).count(),
        services: all().map(|half| half.process.service.as_str()).collect::<BTreeSet<_>>().len(),
        hosts: all().map(|half| half.host.host.as_str()).collect::<BTreeSet<_>>().len(),
        mostly_service: mostly_near.map_or(String::new(), |half| half.process.service.clone()),
        mostly_operation: mostly_near.map_or(String::new(), |half| half.operation.clone()),
        mostly_part: mostly.map_or("", |((_, part), _)| part.name()),
        mostly_ns: mostly.map_or(0, |(_, ns)| ns),
    })
}

/// Requests of one kind, over whole traces. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RequestRow {
    /// Who served it.
    pub service: String,
    /// What was asked.
    pub operation: String,
    /// `edge`: requests. `unlinked`: calls whose cause was not found. `fragment`, `unknown`: their callers' agents
    /// would know.
    pub root: &'static str,
    /// Estimated number.
    pub count: u64,
    /// Of them failed at the root, estimated.
    pub errors: u64,
    /// Durations of the requests.
    #[serde(flatten)]
    pub latency: Latency,
    /// How far count and percentiles may be off, since not every trace was kept; null where every one was.
    pub confidence: Option<Confidence>,
    /// Sum of the durations, estimated.
    pub total_ns: u64,
    /// Stored spans that the figures above stand on.
    pub spans: u64,
    /// Whole traces that the figures below stand on.
    pub traces: u64,
    /// RPCs per trace, mean. Of a call that serves several requests, as of all below, by submitter a share.
    pub rpcs_per_trace: f64,
    /// Sum of the durations of the RPCs below the request, mean per trace, in such shares.
    pub calls_ns: u64,
    /// Traces with a failed RPC anywhere, share.
    pub failing_share: f64,
    /// Hop that the critical paths spent most time in: service and operation.
    pub mostly: String,
    /// Part of it.
    pub mostly_part: &'static str,
    /// Share of all time on the paths.
    pub mostly_share: f64,
}

#[derive(Default)]
struct Requests {
    durations: Distribution,
    errors: f64,
    traces: u64,
    rpcs: f64,
    calls_ns: f64,
    failing: u64,
    path_ns: u64,
    on_path: BTreeMap<(String, Part), u64>,
}

/// Adds requests up by service, operation and kind of root.
#[derive(Default)]
pub struct RequestStats(BTreeMap<(String, String, &'static str), Requests>);

impl RequestStats {
    fn of(&mut self, root: &Span) -> Option<&mut Requests> {
        let near = root.nearest()?;
        let key = (near.process.service.clone(), near.operation.clone(), root_name(root));
        Some(self.0.entry(key).or_default())
    }

    /// Counts a request by its root span. Examples (see [`super::estimate`]) count for nothing.
    pub fn add_root(&mut self, root: &Span) {
        let Some(weight) = weight(root) else { return };
        let Some(requests) = self.of(root) else { return };
        requests.durations.add(root.duration_ns(), weight);
        requests.errors += if root.is_error() { weight } else { 0.0 };
    }

    /// How many whole traces of this kind of request were added.
    pub fn traces_of(&mut self, root: &Span) -> u64 {
        self.of(root).map_or(0, |requests| requests.traces)
    }

    /// Adds a whole trace of a request that was counted.
    pub fn add_trace(&mut self, tree: &Tree<'_>, root: usize, attribution: Attribution) {
        let placed = place(tree);
        let steps = critical_path(tree, &placed, root);
        let Some(requests) = self.of(tree.nodes[root].span) else { return };
        requests.traces += 1;
        for (idx, share) in shares(tree, attribution).into_iter().enumerate() {
            requests.rpcs += share;
            if idx != root {
                requests.calls_ns += share * tree.nodes[idx].span.duration_ns() as f64;
            }
        }
        requests.failing += u64::from(tree.nodes.iter().any(|node| node.span.is_error()));
        for step in steps {
            let Some(near) = tree.nodes[step.idx].span.nearest() else { continue };
            requests.path_ns += step.ns();
            let hop = format!("{} {}", near.process.service, near.operation);
            *requests.on_path.entry((hop, step.part)).or_default() += step.ns();
        }
    }

    /// The rows: edges first, then by total time.
    pub fn rows(self) -> Vec<RequestRow> {
        let mut rows: Vec<RequestRow> = self
            .0
            .into_iter()
            .filter(|(_, requests)| requests.durations.seen > 0)
            .map(|((service, operation, root), requests)| {
                let mostly = requests.on_path.iter().max_by_key(|(_, ns)| **ns);
                let per_trace = |n: f64| n / requests.traces.max(1) as f64;
                RequestRow {
                    service,
                    operation,
                    root,
                    count: requests.durations.count(),
                    errors: requests.errors.round() as u64,
                    confidence: requests.durations.confidence(),
                    latency: requests.durations.latency(),
                    total_ns: requests.durations.total_ns(),
                    spans: requests.durations.seen,
                    traces: requests.traces,
                    rpcs_per_trace: per_trace(requests.rpcs),
                    calls_ns: per_trace(requests.calls_ns) as u64,
                    failing_share: per_trace(requests.failing as f64),
                    mostly: mostly.map_or(String::new(), |((hop, _), _)| hop.clone()),
                    mostly_part: mostly.map_or("", |((_, part), _)| part.name()),
                    mostly_share: mostly.map_or(0.0, |(_, ns)| *ns as f64 / requests.path_ns.max(1) as f64),
                }
            })
            .collect();
        rows.sort_by_key(|row| (row.root != "edge", row.root, std::cmp::Reverse(row.total_ns)));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;
    use dprof_common::model::Status;

    /// A request of 1 ms whose server (200 to 800 us) calls redis for 300 us and then, detached, for 2 ms.
    fn trace() -> Vec<Span> {
        let mut spans = vec![
            rpc(1).of("web", "GET /").by("curl").hosts("web-1", "web-1").build(),
            rpc(2).under(1).by("web").hosts("web-1", "web-1").at(300, 300).status(Status::Error).build(),
            rpc(3).under(1).of("redis", "SET").by("web").hosts("web-1", "web-1").at(700, 2_000).build(),
        ];
        spans[2].flags = SpanFlags::DETACHED;
        spans
    }

    #[test]
    fn a_trace_in_one_line() {
        let line = summary(&trace()).expect("has a request");
        assert_eq!((line.service.as_str(), line.operation.as_str(), line.root), ("web", "GET /", "edge"));
        assert_eq!((line.duration_ns, line.extent_ns), (1_000_000, 2_700_000));
        assert_eq!((line.rpcs, line.errors, line.services, line.hosts), (3, 1, 3, 1));
        // web's own service: 600 us less the 300 us of the call.
        assert_eq!(
            (line.mostly_service.as_str(), line.mostly_part, line.mostly_ns),
            ("web", "service", 300_000)
        );
        assert_eq!(summary(&[]), None);
    }

    #[test]
    fn requests_add_up_by_kind_and_unlinked_roots_stay_apart() {
        let mut stats = RequestStats::default();
        let spans = trace();
        for _ in 0..3 {
            stats.add_root(&spans[0]);
        }
        let tree = Tree::new(&spans);
        stats.add_trace(&tree, 0, Attribution::Trigger);
        let mut lost = rpc(9).of("web", "GET /").at(0, 500).build();
        lost.root = Some(RootKind::Unlinked);
        lost.probability = 0.5;
        stats.add_root(&lost);
        let mut example = rpc(10).of("web", "GET /").at(0, 90_000).build();
        example.reason = dprof_common::model::KeepReason::Slow;
        stats.add_root(&example);
        let rows = stats.rows();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].root, rows[0].count, rows[0].latency.max_ns), ("edge", 3, 1_000_000));
        assert_eq!((rows[0].traces, rows[0].rpcs_per_trace, rows[0].failing_share), (1, 3.0, 1.0));
        assert_eq!((rows[0].mostly.as_str(), rows[0].mostly_part), ("web GET /", "service"));
        assert!((rows[0].mostly_share - 0.3).abs() < 1e-9);
        assert_eq!((rows[1].root, rows[1].count, rows[1].total_ns), ("unlinked", 2, 1_000_000));
    }
}
