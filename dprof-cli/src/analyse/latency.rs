//! Where an RPC's time went, in parts that people name: the split, less what a server spent waiting for its own
//! calls.

use dprof_common::model::{Span, SpanFlags, split};

use super::tree::Tree;

/// A part of an RPC's duration, in the order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// First to last byte of the request leaving.
    Send,
    /// On the wire, both ways.
    Network,
    /// In the server's socket, not yet read.
    Queue,
    /// In the server, from reading the request to the first byte of the response.
    Service,
    /// First to last byte of the response.
    Streaming,
    /// In the caller's socket, not yet read.
    ReplyQueue,
    /// Beyond this end; the other end, or a time, is not known.
    Remote,
    /// What no part explains.
    Rest,
}

impl Part {
    /// Every part, in the order of time.
    pub const ALL: [Self; 8] = [
        Self::Send,
        Self::Network,
        Self::Queue,
        Self::Service,
        Self::Streaming,
        Self::ReplyQueue,
        Self::Remote,
        Self::Rest,
    ];

    /// Name as printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Network => "network",
            Self::Queue => "queue",
            Self::Service => "service",
            Self::Streaming => "streaming",
            Self::ReplyQueue => "reply queue",
            Self::Remote => "remote",
            Self::Rest => "rest",
        }
    }
}

/// The known parts of `span` and the rest, signed nanoseconds; they sum to its duration.
pub fn parts(span: &Span) -> Vec<(Part, i64)> {
    let split = split(span);
    [
        (Part::Send, split.request_send_ns),
        (Part::Network, split.network_ns),
        (Part::Queue, split.server_queue_ns),
        (Part::Service, split.service_ns),
        (Part::Streaming, split.streaming_ns),
        (Part::ReplyQueue, split.client_queue_ns),
        (Part::Remote, split.remote_ns),
        (Part::Rest, Some(split.remainder_ns).filter(|rest| *rest != 0)),
    ]
    .into_iter()
    .filter_map(|(part, ns)| Some((part, ns?)))
    .collect()
}

/// The largest part of `span`; `None` when nothing took any time.
pub fn largest(span: &Span) -> Option<(Part, u64)> {
    parts(span)
        .into_iter()
        .filter_map(|(part, ns)| Some((part, u64::try_from(ns).ok().filter(|ns| *ns > 0)?)))
        .max_by_key(|(part, ns)| (*ns, std::cmp::Reverse(*part)))
}

/// How long the server of node `idx`, while it held the request, waited for calls of its own: the union of their
/// times, since parallel calls are waited for once. Detached calls and calls seen from another host (another
/// clock) do not count.
pub fn waiting_for_calls_ns(tree: &Tree<'_>, idx: usize) -> u64 {
    let Some(server) = &tree.nodes[idx].span.server else { return 0 };
    let from = server.times.request_read_ns.unwrap_or(server.times.start_ns);
    let until = server.times.response_first_ns.unwrap_or(server.times.end_ns);
    let mut calls: Vec<(u64, u64)> = tree.nodes[idx]
        .children
        .iter()
        .map(|child| tree.nodes[*child].span)
        .filter(|span| !span.flags.contains(SpanFlags::DETACHED))
        .filter_map(|span| span.client.as_ref())
        .filter(|call| call.host.host == server.host.host)
        .map(|call| (call.times.start_ns.max(from), call.times.end_ns.min(until)))
        .collect();
    calls.sort_unstable();
    let mut waited = 0;
    let mut covered = from;
    for (start, end) in calls {
        waited += end.saturating_sub(start.max(covered));
        covered = covered.max(end);
    }
    waited
}

/// One part of one RPC, as the answer to "where did the time go".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Culprit {
    /// Node of the tree.
    pub idx: usize,
    /// Its part.
    pub part: Part,
    /// How long, without the calls that it waited for.
    pub ns: u64,
}

/// The longest single part in the tree. A server's service counts without its calls; what a call's caller sees
/// as remote counts only where the other end was not watched.
pub fn culprit(tree: &Tree<'_>) -> Option<Culprit> {
    let mut longest: Option<Culprit> = None;
    for (idx, node) in tree.nodes.iter().enumerate() {
        for (part, ns) in parts(node.span) {
            let own = match part {
                Part::Service => ns.saturating_sub_unsigned(waiting_for_calls_ns(tree, idx)),
                _ => ns,
            };
            let Ok(ns) = u64::try_from(own) else { continue };
            if ns > longest.map_or(0, |culprit| culprit.ns) {
                longest = Some(Culprit { idx, part, ns });
            }
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;

    #[test]
    fn parts_sum_to_the_duration_at_either_end() {
        for span in [rpc(1).build(), rpc(1).client_only().build(), rpc(1).server_only().build()] {
            let sum: i64 = parts(&span).into_iter().map(|(_, ns)| ns).sum();
            assert_eq!(sum, span.duration_ns() as i64);
        }
        assert_eq!(largest(&rpc(1).build()), Some((Part::Service, 600_000)));
        assert_eq!(largest(&rpc(1).client_only().build()).map(|(part, _)| part), Some(Part::Remote));
        assert_eq!(largest(&rpc(1).at(0, 0).build()), None);
    }

    #[track_caller]
    fn check_waiting(calls: &[(u64, u64)], expected_us: u64) {
        // The server holds the request from 200 to 800 us; it runs on db-1, 5 s ahead of its caller.
        let mut spans = vec![rpc(1).build()];
        for (idx, (start, duration)) in calls.iter().enumerate() {
            spans.push(
                rpc(idx as u64 + 2).under(1).hosts("db-1", "db-2").at(5_000_000 + start, *duration).build(),
            );
        }
        let tree = Tree::new(&spans);
        assert_eq!(waiting_for_calls_ns(&tree, 0), expected_us * 1_000);
    }

    #[test]
    fn overlapping_calls_are_waited_for_once() {
        check_waiting(&[], 0);
        check_waiting(&[(300, 100)], 100);
        check_waiting(&[(300, 100), (500, 100)], 200);
        check_waiting(&[(300, 100), (350, 100)], 150);
        check_waiting(&[(300, 300), (350, 100)], 300);
        check_waiting(&[(0, 300)], 100);
        check_waiting(&[(700, 300)], 100);
        check_waiting(&[(900, 300)], 0);
    }

    #[test]
    fn detached_calls_and_calls_on_other_clocks_are_not_waited_for() {
        let mut spans =
            vec![rpc(1).build(), rpc(2).under(1).hosts("db-1", "db-2").at(5_000_300, 100).build()];
        spans[1].flags = SpanFlags::DETACHED;
        assert_eq!(waiting_for_calls_ns(&Tree::new(&spans), 0), 0);
        let spans = [rpc(1).build(), rpc(2).under(1).hosts("db-3", "db-2").at(5_000_300, 100).build()];
        assert_eq!(waiting_for_calls_ns(&Tree::new(&spans), 0), 0);
    }

    #[test]
    fn the_culprit_is_the_part_that_no_call_explains() {
        // 540 of the proxy's 600 us of service are its call, of which 60 % are redis' service.
        let spans = [
            rpc(1).of("proxy", "GET").build(),
            rpc(2).under(1).hosts("db-1", "db-2").at(5_000_210, 540).build(),
        ];
        let culprit = culprit(&Tree::new(&spans)).expect("time passed");
        assert_eq!((culprit.idx, culprit.part, culprit.ns), (1, Part::Service, 324_000));
    }
}
