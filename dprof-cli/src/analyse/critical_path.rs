//! The critical path of a request: which RPC, and which part of it, the answer was waiting for at each instant.
//!
//! The algorithm is CRISP's (Zhang, Ramanathan, Raj, Parwal, Sherwood, Chabbi: "CRISP: Critical Path Analysis of
//! Large-Scale Microservice Architectures", USENIX ATC 2022), which carries the critical path of a program activity
//! graph (Yang, Miller: "Critical Path Analysis for the Execution of Parallel and Distributed Programs", ICDCS
//! 1988) over to trees of RPCs: go back from the end of the request; the call that returned last before this
//! instant is what was waited for; follow it to its start, then go on in its caller. Time between is the caller's
//! own. Ours differs in one point: own time is split into the parts of the RPC (network, queue, service, …).
//!
//! What a reader would get wrong: a call that overlaps the end of the last-returning one is *not* on the path,
//! however long it took, since the caller was still waiting for the other one. Detached calls, which nobody waits
//! for, are never on it. A call that outlives its caller is cut where the caller ends, as in CRISP.

use dprof_common::model::SpanFlags;

use super::latency::Part;
use super::place::Placed;
use super::tree::Tree;

/// A stretch of the path, on the drawn line of [`super::place::place`]: exact within one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Node of the tree.
    pub idx: usize,
    /// Which part of it.
    pub part: Part,
    /// Start, nanoseconds on the drawn line.
    pub start: i64,
    /// End; after the start.
    pub until: i64,
}

impl Step {
    /// How long, nanoseconds.
    pub fn ns(&self) -> u64 {
        self.until.saturating_sub(self.start).max(0) as u64
    }
}

/// An RPC being walked through, backwards.
struct Frame {
    idx: usize,
    start: i64,
    /// Everything after this is done.
    cursor: i64,
    /// Calls that are left, the last-returning one at the end: start, end, node.
    calls: Vec<(i64, i64, usize)>,
}

impl Frame {
    fn new(tree: &Tree<'_>, placed: &[Placed], idx: usize, start: i64, until: i64) -> Self {
        let mut calls: Vec<(i64, i64, usize)> = tree.nodes[idx]
            .children
            .iter()
            .filter(|child| !tree.nodes[**child].span.flags.contains(SpanFlags::DETACHED))
            .filter(|child| placed[**child].client_shift.or(placed[**child].server_shift).is_some())
            .map(|child| (placed[*child].start.max(start), placed[*child].end().min(until), *child))
            .filter(|(from, to, _)| from < to)
            .collect();
        // The last to return is taken first; of those that return together, the one that began first.
        calls.sort_by_key(|(from, to, child)| (*to, std::cmp::Reverse(*from), std::cmp::Reverse(*child)));
        Self { idx, start, cursor: until, calls }
    }
}

/// The path of the request at `root`, in the order of time; its steps touch each other and add up to the
/// request's duration.
pub fn critical_path(tree: &Tree<'_>, placed: &[Placed], root: usize) -> Vec<Step> {
    let (start, until) = (placed[root].start, placed[root].end());
    let mut steps = Vec::new();
    let mut stack = vec![Frame::new(tree, placed, root, start, until)];
    while let Some(frame) = stack.last_mut() {
        let Some((from, to, child)) = frame.calls.pop() else {
            own_time(&placed[frame.idx], frame.idx, frame.start, frame.cursor, &mut steps);
            stack.pop();
            continue;
        };
        if to > frame.cursor {
            continue;
        }
        own_time(&placed[frame.idx], frame.idx, to, frame.cursor, &mut steps);
        frame.cursor = from;
        stack.push(Frame::new(tree, placed, child, from, to));
    }
    steps.reverse();
    steps
}

/// Adds the node's own time between two instants by part, last part first.
fn own_time(placed: &Placed, idx: usize, from: i64, to: i64, steps: &mut Vec<Step>) {
    let mut begin = placed.start;
    let mut own = Vec::new();
    for segment in &placed.segments {
        let (start, until) = (begin.max(from), segment.until.min(to));
        begin = segment.until;
        if start < until {
            own.push(Step { idx, part: segment.part, start, until });
        }
    }
    steps.extend(own.into_iter().rev());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyse::place::place;
    use crate::testing::{Rpc, rpc};
    use dprof_common::model::Span;
    use dprof_store::conformance::Random;

    /// The path as `id part ns`, in microseconds.
    #[track_caller]
    fn check(rpcs: Vec<Rpc>, detached: &[u64], expected: &[(u64, Part, u64)]) {
        let mut spans: Vec<Span> = rpcs.into_iter().map(Rpc::build).collect();
        for span in spans.iter_mut().filter(|span| detached.contains(&span.span_id.0)) {
            span.flags = SpanFlags::DETACHED;
        }
        let tree = Tree::new(&spans);
        let placed = place(&tree);
        let steps = critical_path(&tree, &placed, tree.roots[0]);
        let shown: Vec<(u64, Part, u64)> = steps
            .iter()
            .map(|step| (tree.nodes[step.idx].span.span_id.0, step.part, step.ns() / 1_000))
            .collect();
        assert_eq!(shown, expected);
        let sum: u64 = steps.iter().map(Step::ns).sum();
        assert_eq!(sum, tree.nodes[tree.roots[0]].span.duration_ns(), "the path is as long as the request");
    }

    /// A request at a server that shares its callee's caller's clock: 0 to 1,000 us; the server holds it from
    /// 200 to 800.
    fn request() -> Rpc {
        rpc(1).hosts("web-1", "web-1")
    }

    /// A call of `id` by the request's server, all of whose time is remote.
    fn call(id: u64, start_us: u64, duration_us: u64) -> Rpc {
        rpc(id).under(1).hosts("web-1", "db-1").client_only().at(start_us, duration_us)
    }

    #[test]
    fn a_request_without_calls_is_its_own_parts() {
        check(
            vec![request()],
            &[],
            &[
                (1, Part::Send, 20),
                (1, Part::Network, 80),
                (1, Part::Queue, 100),
                (1, Part::Service, 600),
                (1, Part::Streaming, 100),
                (1, Part::Network, 80),
                (1, Part::ReplyQueue, 20),
            ],
        );
    }

    #[test]
    fn of_two_overlapping_calls_the_one_that_returns_last_was_waited_for() {
        // 300 to 500 and 400 to 700: from 400 on the second was waited for, before that nothing ended; the first
        // one ends inside it and is not on the path.
        check(
            vec![request(), call(2, 300, 200), call(3, 400, 300)],
            &[],
            &[
                (1, Part::Send, 20),
                (1, Part::Network, 80),
                (1, Part::Queue, 100),
                (1, Part::Service, 200),
                (3, Part::Send, 6),
                (3, Part::Remote, 258),
                (3, Part::Streaming, 30),
                (3, Part::ReplyQueue, 6),
                (1, Part::Service, 100),
                (1, Part::Streaming, 100),
                (1, Part::Network, 80),
                (1, Part::ReplyQueue, 20),
            ],
        );
    }

    #[test]
    fn calls_one_after_the_other_are_all_on_it_and_detached_ones_never() {
        let parts = |steps: &[(u64, Part, u64)]| {
            let mut all = vec![(1, Part::Send, 20), (1, Part::Network, 80), (1, Part::Queue, 100)];
            all.extend(steps);
            all.extend([(1, Part::Streaming, 100), (1, Part::Network, 80), (1, Part::ReplyQueue, 20)]);
            all
        };
        let of = |id: u64| {
            [
                (id, Part::Send, 2),
                (id, Part::Remote, 86),
                (id, Part::Streaming, 10),
                (id, Part::ReplyQueue, 2),
            ]
        };
        let own = |us: u64| [(1, Part::Service, us)];
        check(
            vec![request(), call(2, 300, 100), call(3, 500, 100)],
            &[],
            &parts(&[&own(100)[..], &of(2), &own(100), &of(3), &own(200)].concat()),
        );
        check(
            vec![request(), call(2, 300, 100), call(3, 500, 400)],
            &[3],
            &parts(&[&own(100)[..], &of(2), &own(400)].concat()),
        );
    }

    /// The rule, taken at its word instant by instant: at `at` (the instant just before it), who is waited for?
    /// Calls entered stay waited for until they begin.
    fn brute_force(tree: &Tree<'_>, placed: &[Placed], root: usize) -> Vec<usize> {
        let mut owners = Vec::new();
        let mut inside = vec![(root, placed[root].start, placed[root].end())];
        let mut at = placed[root].end();
        while at > placed[root].start {
            // Leave what begins here…
            while inside.last().is_some_and(|(_, start, _)| *start == at) {
                inside.pop();
            }
            // … and enter, as deep as it goes, what ends here: of several the longest, then the first given.
            while let Some(&(idx, start, until)) = inside.last() {
                let entered = tree.nodes[idx]
                    .children
                    .iter()
                    .filter(|child| !tree.nodes[**child].span.flags.contains(SpanFlags::DETACHED))
                    .map(|child| (placed[*child].start.max(start), placed[*child].end().min(until), *child))
                    .filter(|(from, to, _)| *to == at && from < to)
                    .min();
                match entered {
                    Some((from, to, child)) => inside.push((child, from, to)),
                    None => break,
                }
            }
            owners.push(inside.last().expect("the root is left at its start only").0);
            at -= 1;
        }
        owners.reverse();
        owners
    }

    #[test]
    fn ten_thousand_random_trees_agree_with_the_rule_taken_at_its_word() {
        for seed in 0..10_000_u64 {
            let mut random = Random::new(seed);
            let n = 1 + random.below(14);
            let mut spans: Vec<Span> = Vec::new();
            let mut times: Vec<(u64, u64)> = Vec::new();
            for id in 1..=n {
                let (parent, start, length) = if id == 1 {
                    (0, 0, 20 + random.below(100))
                } else {
                    let parent = 1 + random.below(id - 1);
                    let (from, long) = times[parent as usize - 1];
                    // Some begin or end together, some outlive their caller, some take no time.
                    (parent, from + random.below(long + 1), random.below(long + 4))
                };
                times.push((start, length));
                let mut rpc = rpc(id).hosts("one", "one").at(0, 0);
                if parent != 0 {
                    rpc = rpc.under(parent);
                }
                let mut span = rpc.build();
                if random.one_in(8) && id != 1 {
                    span.flags = SpanFlags::DETACHED;
                }
                // Nanoseconds, so that the walk instant by instant is short; one part only.
                for half in span.client.iter_mut().chain(span.server.iter_mut()) {
                    let t = &mut half.times;
                    let (from, to) = (crate::testing::T0 + start, crate::testing::T0 + start + length);
                    *t = dprof_common::model::HalfTimes {
                        start_ns: from,
                        end_ns: to,
                        request_first_ns: Some(from),
                        request_last_ns: Some(from),
                        request_read_ns: t.request_read_ns.map(|_| from),
                        response_first_ns: Some(to),
                        response_last_ns: Some(to),
                        response_read_ns: t.response_read_ns.map(|_| to),
                    };
                }
                spans.push(span);
            }
            let tree = Tree::new(&spans);
            let placed = place(&tree);
            let steps = critical_path(&tree, &placed, tree.roots[0]);
            let owners: Vec<usize> =
                steps.iter().flat_map(|step| std::iter::repeat_n(step.idx, step.ns() as usize)).collect();
            assert_eq!(owners, brute_force(&tree, &placed, tree.roots[0]), "seed {seed}");
        }
    }

    #[test]
    fn a_chain_of_a_hundred_thousand_calls_is_walked_without_recursion() {
        let spans: Vec<Span> = (1..=100_000_u64)
            .map(|id| {
                let rpc = rpc(id).hosts("one", "one").at(id, 400_000 - 2 * id);
                if id == 1 { rpc.build() } else { rpc.under(id - 1).build() }
            })
            .collect();
        let tree = Tree::new(&spans);
        let steps = critical_path(&tree, &place(&tree), 0);
        assert_eq!(steps.iter().map(Step::ns).sum::<u64>(), spans[0].duration_ns());
    }
}
