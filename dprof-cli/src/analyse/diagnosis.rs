//! From a symptom to a cause: of requests before and after a change, which hop, which part of it, which host, and
//! what the slow RPCs of that hop share.
//!
//! The added time is ranked by critical paths ([`super::path_profile`]); of the first hop the slow RPCs are held
//! against the others ([`super::compare`]). Failures are followed down to the deepest RPC that failed, since a
//! failure travels up.
//!
//! What a reader would get wrong: each request is looked at from the RPC that the symptom is of, which need not be
//! the root of its trace.

use std::collections::BTreeMap;

use dprof_common::model::{Span, SpanId, TraceId};
use serde::Serialize;

use super::cause::{Cause, causes};
use super::compare::{ValueRow, shared_values};
use super::path_profile::{PathRow, Profile, difference};
use super::row::failing_half;
use super::tree::Tree;

/// Rows that add less than this share of the whole are no causes.
const ADDED_SHARE_MIN: f64 = 0.05;

/// A hop that is called so many times as often as before, and so many times more, is told as more calls.
const CALLS_FACTOR_MIN: f64 = 1.5;
const CALLS_MORE_MIN: f64 = 2.0;

/// Of the first hop's RPCs before the change, this share is faster than what counts as slow.
const SLOW_QUANTILE: f64 = 0.95;

/// A whole trace and which RPC of it is looked at.
pub struct Request {
    /// All spans of the trace.
    pub spans: Vec<Span>,
    /// The RPC.
    pub at: SpanId,
}

/// Where failures come from. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FailingRow {
    /// Service that failed, or that called what failed.
    pub service: String,
    /// Operation.
    pub operation: String,
    /// Host.
    pub host: String,
    /// `error`, `timeout`, …
    pub status: &'static str,
    /// The protocol's word.
    pub status_code: String,
    /// Failed requests whose deepest failure this is.
    pub requests: u64,
    /// Their share.
    pub share: f64,
}

/// What is behind a symptom. Field names are the JSON schema.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Diagnosis {
    /// Requests looked at after the change.
    pub requests: u64,
    /// And before.
    pub requests_before: u64,
    /// Mean of those after, nanoseconds.
    pub avg_ns: u64,
    /// Of those before.
    pub avg_before_ns: u64,
    /// What is behind it, the most likely first.
    pub causes: Vec<Cause>,
    /// Hops and parts that add time, the largest first.
    pub added: Vec<PathRow>,
    /// A hop called more often than before: service, operation, calls per request after and before.
    pub more_calls: Option<(String, String, f64, f64)>,
    /// What the slow RPCs of the first hop share that the others lack, that which explains most first.
    pub shared: Vec<ValueRow>,
    /// Where failures come from.
    pub failing: Vec<FailingRow>,
    /// Trace of the request that shows it best.
    pub example: Option<String>,
}

/// Compares requests after the change with those before; `is_failure`: more fail, rather than take longer.
pub fn diagnose(after: &[Request], before: &[Request], is_failure: bool) -> Diagnosis {
    let (now, was) = (profile(after), profile(before));
    let rows = difference(&now, &was);
    let more_calls = rows
        .iter()
        .filter(|row| {
            row.slow_calls >= CALLS_FACTOR_MIN * row.usual_calls
                && row.slow_calls - row.usual_calls >= CALLS_MORE_MIN
        })
        .max_by(|a, b| (a.slow_calls - a.usual_calls).total_cmp(&(b.slow_calls - b.usual_calls)))
        .map(|row| (row.service.clone(), row.operation.clone(), row.slow_calls, row.usual_calls));
    let whole = now.avg_ns() as i64 - was.avg_ns() as i64;
    let added: Vec<PathRow> = rows
        .into_iter()
        .filter(|row| whole > 0 && row.added_ns > 0 && row.added_share >= ADDED_SHARE_MIN)
        .collect();
    let shared = added.first().map_or(Vec::new(), |first| shared(first, after, before));
    let example = after
        .iter()
        .max_by_key(|request| example_rank(request, added.first()))
        .and_then(|request| request.spans.first())
        .map(|span| span.trace_id)
        .map(|TraceId(id)| TraceId(id).to_string());
    let failing = failing(after);
    Diagnosis {
        causes: causes(after, before, &failing, is_failure),
        requests: now.requests,
        requests_before: was.requests,
        avg_ns: now.avg_ns(),
        avg_before_ns: was.avg_ns(),
        added,
        more_calls,
        shared,
        failing,
        example,
    }
}

fn profile(requests: &[Request]) -> Profile {
    let mut profile = Profile::default();
    for request in requests {
        let tree = Tree::new(&request.spans);
        let at = tree.nodes.iter().position(|node| node.span.span_id == request.at);
        if let Some(at) = at {
            profile.add(&tree, at);
        }
    }
    profile
}

/// The RPCs of a hop.
fn of_hop<'a>(row: &'a PathRow, requests: &'a [Request]) -> impl Iterator<Item = &'a Span> {
    requests.iter().flat_map(|request| &request.spans).filter(move |span| {
        span.nearest()
            .is_some_and(|near| near.process.service == row.service && near.operation == row.operation)
    })
}

/// What the hop's slow RPCs after the change share; the others after and all before are the controls.
fn shared(first: &PathRow, after: &[Request], before: &[Request]) -> Vec<ValueRow> {
    let mut was: Vec<u64> = of_hop(first, before).map(Span::duration_ns).collect();
    was.sort_unstable();
    let threshold_ns = was.get((was.len() as f64 * SLOW_QUANTILE) as usize).copied().unwrap_or(0);
    let (slow, mut rest): (Vec<&Span>, Vec<&Span>) =
        of_hop(first, after).partition(|span| span.duration_ns() > threshold_ns);
    rest.extend(of_hop(first, before));
    let mut rows = shared_values(slow, rest);
    // The hop's own name is known already, and how it ended is no cause.
    rows.retain(|row| !matches!(row.field, "service" | "operation" | "protocol" | "status" | "connection"));
    rows
}

/// The longest request that touches the first hop's main host.
fn example_rank(request: &Request, first: Option<&PathRow>) -> (bool, bool, u64) {
    let span = request.spans.iter().find(|span| span.span_id == request.at);
    let touches = first.is_some_and(|row| {
        request.spans.iter().filter_map(Span::nearest).any(|near| {
            near.host.host == row.host
                && near.process.service == row.service
                && near.operation == row.operation
        })
    });
    let fails = first.is_none() && span.is_some_and(Span::is_error);
    (fails, touches, span.map_or(0, Span::duration_ns))
}

/// The deepest failure of each failed request, counted.
fn failing(requests: &[Request]) -> Vec<FailingRow> {
    let mut counts: BTreeMap<(String, String, String, &'static str, String), u64> = BTreeMap::new();
    let mut failed = 0;
    for request in requests {
        let tree = Tree::new(&request.spans);
        let Some(at) = tree.nodes.iter().position(|node| node.span.span_id == request.at) else { continue };
        if !tree.nodes[at].span.is_error() {
            continue;
        }
        failed += 1;
        let mut deepest = at;
        let mut stack = vec![at];
        while let Some(idx) = stack.pop() {
            let node = &tree.nodes[idx];
            if node.span.is_error() && node.depth > tree.nodes[deepest].depth {
                deepest = idx;
            }
            stack.extend(&node.children);
        }
        let span = tree.nodes[deepest].span;
        let (Some(near), Some(half)) = (span.nearest(), failing_half(span)) else { continue };
        let key = (
            near.process.service.clone(),
            near.operation.clone(),
            near.host.host.clone(),
            half.status.name(),
            half.status_code.clone(),
        );
        *counts.entry(key).or_default() += 1;
    }
    let mut rows: Vec<FailingRow> = counts
        .into_iter()
        .map(|((service, operation, host, status, status_code), requests)| FailingRow {
            service,
            operation,
            host,
            status,
            status_code,
            requests,
            share: requests as f64 / f64::from(failed.max(1)),
        })
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.requests));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;
    use dprof_common::model::Status;

    /// A request with one call of redis on `host` that takes `call_us`, all of it in redis' queue if `queued`.
    fn request(n: u64, host: &str, call_us: u64, status: Status) -> Request {
        let id = n * 10 + 1;
        let spans = vec![
            rpc(id)
                .trace(u128::from(id))
                .of("web", "GET /")
                .hosts("lb", "lb")
                .status(status)
                .at(0, call_us + 700)
                .build(),
            rpc(id + 1)
                .trace(u128::from(id))
                .under(id)
                .by("web")
                .hosts("lb", host)
                .status(status)
                .at(300, call_us)
                .build(),
        ];
        Request { spans, at: SpanId(id) }
    }

    #[test]
    fn the_slow_host_is_named_by_path_and_by_what_the_slow_share() {
        let host = |n: u64| ["db-1", "db-2", "db-3"][n as usize % 3];
        let before: Vec<Request> = (0..150).map(|n| request(n, host(n), 1_000 + n, Status::Ok)).collect();
        let after: Vec<Request> = (0..150)
            .map(|n| request(1_000 + n, host(n), if n % 3 == 2 { 20_000 } else { 1_000 + n }, Status::Ok))
            .collect();
        let found = diagnose(&after, &before, false);
        assert_eq!((found.requests, found.requests_before), (150, 150));
        let host = found.shared.iter().find(|row| row.field == "host").expect("shared");
        assert_eq!((host.value.as_str(), host.slow), ("db-3", 50));
        assert!(
            found
                .added
                .iter()
                .any(|row| row.service == "redis" && row.part == "service" && row.host == "db-3")
        );
        assert_eq!((found.more_calls, found.failing), (None, vec![]));
        let example = found.example.expect("there is one");
        assert!(after.iter().any(|r| r.spans[0].trace_id.to_string() == example
            && r.spans[1].server.as_ref().is_some_and(|s| s.host.host == "db-3")));
    }

    #[test]
    fn failures_are_followed_to_the_deepest_one() {
        let after: Vec<Request> = (0..20)
            .map(|n| request(n, "db-2", 100, if n % 2 == 0 { Status::Timeout } else { Status::Ok }))
            .collect();
        let found = diagnose(&after, &[], true);
        assert_eq!(found.failing.len(), 1);
        let row = &found.failing[0];
        assert_eq!(
            (row.service.as_str(), row.host.as_str(), row.status, row.requests),
            ("redis", "db-2", "timeout", 10)
        );
    }

    #[test]
    fn more_calls_than_before_are_told() {
        let calls = |n: u64, count: u64| {
            let id = n * 100 + 1;
            let mut spans =
                vec![rpc(id).of("web", "GET /").hosts("lb", "lb").at(0, 200 * count + 1_000).build()];
            spans.extend((0..count).map(|c| {
                rpc(id + 1 + c).under(id).by("web").hosts("lb", "db").at(200 + c * 100, 90).build()
            }));
            Request { spans, at: SpanId(id) }
        };
        let before: Vec<Request> = (0..10).map(|n| calls(n, 1)).collect();
        let after: Vec<Request> = (10..20).map(|n| calls(n, 20)).collect();
        let found = diagnose(&after, &before, false);
        assert_eq!(found.more_calls, Some(("redis".to_owned(), "GET".to_owned(), 20.0, 1.0)));
    }
}
