//! To whom a call that serves several requests is charged: `--attribute trigger|submitter`.
//!
//! A proxy or a writer that gathers work sends one call for several requests. It is made while the last of them is
//! handled, so it hangs under that one: its *trigger*. The others *submitted* a part and waited as well, but their
//! trees show a gap. Dapper names this limit ("coalescing effects": Sigelman et al., "Dapper, a Large-Scale Distributed
//! Systems Tracing Infrastructure", 2010, section 7): one request is charged for the work of many.
//!
//! By trigger everything stays as it is stored. By submitter the call is in the tree of every request that it serves,
//! with all that it caused, and its time and number count in equal shares, so that sums over requests stay right.
//!
//! What a reader would get wrong: a tree holds a call once. If several of its causes are in one trace, it hangs under
//! the one that submitted first, since that is how long the work took from there.

use std::collections::{HashMap, HashSet};

use dprof_common::model::{Span, SpanFlags, SpanId, TraceId};

use super::tree::Tree;

/// To whom shared calls are charged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Attribution {
    /// To the request during which they were made.
    #[default]
    Trigger,
    /// To every request that submitted a part of them.
    Submitter,
}

/// Shared calls, found by the requests that submitted a part but did not trigger them.
#[derive(Clone, Debug, Default)]
pub struct SharedCalls {
    /// The call and its trace, by cause.
    by_cause: HashMap<SpanId, Vec<(SpanId, TraceId)>>,
    /// Calls left out for the limit.
    pub left_out: usize,
    len: usize,
}

/// Shared calls that are held at most: some megabytes.
const SHARED_MAX: usize = 50_000;

impl SharedCalls {
    /// Notes those of `spans` that are shared.
    pub fn add(&mut self, spans: &[Span]) {
        for span in spans.iter().filter(|span| !span.further_links.is_empty()) {
            if self.len == SHARED_MAX {
                self.left_out += 1;
                continue;
            }
            self.len += 1;
            for link in &span.further_links {
                self.by_cause.entry(link.parent).or_default().push((span.span_id, span.trace_id));
            }
        }
    }

    /// The calls with a part of `trace` that are not in it, and their traces.
    pub fn of(&self, trace: &[Span]) -> Vec<(SpanId, TraceId)> {
        let own: HashSet<SpanId> = trace.iter().map(|span| span.span_id).collect();
        let causes = trace.iter().filter_map(|span| self.by_cause.get(&span.span_id)).flatten();
        let mut found: Vec<_> = causes.copied().filter(|(call, _)| !own.contains(call)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Hangs the shared calls of `trace` under those who submitted them, with `lent`: whole traces that hold such calls,
/// of which this one gets the calls with a part of it and all that they caused.
pub fn charge_submitters(trace: &mut Vec<Span>, lent: &[&[Span]]) {
    let own: HashSet<SpanId> = trace.iter().map(|span| span.span_id).collect();
    let Some(trace_id) = trace.first().map(|span| span.trace_id) else { return };
    let is_cause = |span: &Span| span.further_links.iter().any(|link| own.contains(&link.parent));
    let mut taken = HashSet::new();
    for other in lent {
        let tree = Tree::new(other);
        let tops = tree.nodes.iter().enumerate().filter(|(_, node)| is_cause(node.span));
        let mut stack: Vec<usize> = tops.map(|(idx, _)| idx).collect();
        while let Some(idx) = stack.pop() {
            let span = tree.nodes[idx].span;
            if !own.contains(&span.span_id) && taken.insert(span.span_id) {
                trace.push(Span { trace_id, ..span.clone() });
            }
            stack.extend(&tree.nodes[idx].children);
        }
    }
    let answered: HashMap<SpanId, (String, u64)> = trace
        .iter()
        .filter_map(|span| {
            let server = span.server.as_ref()?;
            let until = server.times.response_first_ns.unwrap_or(server.times.end_ns);
            Some((span.span_id, (server.host.host.clone(), until)))
        })
        .collect();
    for span in trace {
        // In the order in which they were read.
        let Some(first) = span.further_links.iter().position(|link| own.contains(&link.parent)) else {
            continue;
        };
        let Some(trigger) = span.link.replace(span.further_links[first]) else { continue };
        let submitter = std::mem::replace(&mut span.further_links[first], trigger).parent;
        // Whether it was waited for is another question for another request.
        if let (Some((host, until)), Some(call)) = (answered.get(&submitter), &span.client)
            && *host == call.host.host
        {
            span.flags.0 &= !SpanFlags::DETACHED.0;
            if call.times.end_ns > *until {
                span.flags.insert(SpanFlags::DETACHED);
            }
        }
    }
}

/// Which share of each node's work is its request's own, in the order of the nodes: one of as many as the calls on
/// the way down serve.
pub fn shares(tree: &Tree<'_>, attribution: Attribution) -> Vec<f64> {
    let mut shares = vec![1.0; tree.nodes.len()];
    if attribution == Attribution::Submitter {
        for idx in tree.preorder() {
            let node = &tree.nodes[idx];
            let above = node.parent.map_or(1.0, |parent| shares[parent]);
            shares[idx] = above / (1 + node.span.further_links.len()) as f64;
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;

    /// Request 1 triggered call 10, which carries a part of requests 2 and 3, too, and caused call 11.
    fn triggering() -> Vec<Span> {
        vec![
            rpc(1).trace(1).at(5_000_000, 10_000).build(),
            rpc(10)
                .trace(1)
                .under(1)
                .and_under(2)
                .and_under(3)
                .hosts("db-1", "kv-1")
                .at(5_003_000, 4_000)
                .build(),
            rpc(11).trace(1).under(10).hosts("kv-1", "kv-2").at(10_004_000, 400).build(),
            rpc(12).trace(1).under(1).hosts("db-1", "kv-1").at(5_002_100, 100).build(),
        ]
    }

    /// Links as `parent>call` after charging submitters.
    #[track_caller]
    fn check(mut trace: Vec<Span>, lent: &[&[Span]], expected: &str) -> Vec<Span> {
        let id = trace[0].trace_id;
        charge_submitters(&mut trace, lent);
        assert!(trace.iter().all(|span| span.trace_id == id));
        let links: Vec<String> = trace
            .iter()
            .map(|span| {
                let detached = if span.flags.contains(SpanFlags::DETACHED) { "*" } else { "" };
                let parent = span.link.map_or(String::new(), |link| format!("{}>", link.parent.0));
                format!("{parent}{}{detached}", span.span_id.0)
            })
            .collect();
        assert_eq!(links.join(" "), expected);
        trace
    }

    #[test]
    fn a_submitter_gets_the_call_and_what_it_caused_but_nothing_else_of_the_trigger() {
        let submitter = || vec![rpc(2).trace(2).at(4_998_000, 20_000).build()];
        check(submitter(), &[&triggering()], "2 2>10 10>11");
        // Given again it is there once; a stranger gets nothing.
        check(submitter(), &[&triggering(), &triggering()], "2 2>10 10>11");
        check(vec![rpc(7).trace(7).build()], &[&triggering()], "7");
        check(submitter(), &[], "2");
    }

    #[test]
    fn the_trigger_keeps_its_call_and_one_trace_hangs_it_under_who_submitted_first() {
        check(triggering(), &[], "1 1>10 10>11 1>12");
        let mut one = triggering();
        one.push(rpc(3).trace(1).under(1).at(4_999_000, 20_000).build());
        one.push(rpc(2).trace(1).under(1).at(5_000_000, 20_000).build());
        let charged = check(one, &[], "1 2>10 10>11 1>12 1>3 1>2");
        let further: Vec<u64> = charged[1].further_links.iter().map(|link| link.parent.0).collect();
        assert_eq!(further, [1, 3]);
    }

    #[test]
    fn whether_a_call_was_waited_for_is_told_for_the_request_that_it_hangs_under() {
        // The trigger was answered before the call ended, the submitter waited for it.
        let mut lent = triggering();
        lent[1].flags = SpanFlags::DETACHED;
        let waits = rpc(2).trace(2).hosts("web-1", "db-1").at(0, 20_000).build();
        check(vec![waits], &[&lent], "2 2>10 10>11");
        lent[1].flags = SpanFlags::default();
        let hasty = rpc(2).trace(2).hosts("web-1", "db-1").at(0, 4_000).build();
        check(vec![hasty], &[&lent], "2 2>10* 10>11");
    }

    #[test]
    fn shares_divide_a_call_and_all_below_by_whom_it_serves() {
        let spans = triggering();
        let tree = Tree::new(&spans);
        assert_eq!(shares(&tree, Attribution::Trigger), [1.0; 4]);
        let third = 1.0 / 3.0;
        assert_eq!(shares(&tree, Attribution::Submitter), [1.0, third, third, 1.0]);
    }

    #[test]
    fn shared_calls_are_found_by_the_requests_that_they_serve() {
        let mut shared = SharedCalls::default();
        shared.add(&triggering());
        let of = |id: u64| shared.of(&[rpc(id).build()]).iter().map(|(call, _)| call.0).collect::<Vec<_>>();
        assert_eq!((of(2), of(3), of(1), of(9)), (vec![10], vec![10], vec![], vec![]));
        let mut whole = triggering();
        whole.push(rpc(2).trace(1).build());
        assert_eq!(shared.of(&whole), [], "what is in the trace need not be looked for");
    }
}
