//! The N+1 pattern: a request that asks for many things one at a time where one call could ask for all.
//!
//! What a reader would get wrong: many alike calls in *parallel* are a fan-out, which costs the time of one. Here
//! count runs of alike calls of one request that mostly follow each other, so their times add up.

use std::collections::BTreeMap;

use dprof_common::model::SpanFlags;
use serde::Serialize;

use super::place::Placed;
use super::tree::Tree;

/// Fewer alike calls than this in a row are not called a pattern.
const CALLS_MIN: usize = 10;

/// Share of the calls that begin only after the one before has returned.
const SEQUENTIAL_SHARE_MIN: f64 = 0.8;

/// Alike calls of one request, one after the other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Repeat {
    /// Node that makes them.
    #[serde(skip)]
    pub parent: usize,
    /// Service called.
    pub service: String,
    /// Operation.
    pub operation: String,
    /// How many calls.
    pub calls: usize,
    /// Sum of their durations, nanoseconds.
    pub total_ns: u64,
}

/// The repeats of a trace, the costliest first.
pub fn repeats(tree: &Tree<'_>, placed: &[Placed]) -> Vec<Repeat> {
    let mut found = Vec::new();
    for (parent, node) in tree.nodes.iter().enumerate() {
        if node.children.len() < CALLS_MIN {
            continue;
        }
        let mut alike: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
        for child in &node.children {
            let span = tree.nodes[*child].span;
            let Some(near) = span.nearest() else { continue };
            if !span.flags.contains(SpanFlags::DETACHED) {
                alike.entry((&near.process.service, &near.operation)).or_default().push(*child);
            }
        }
        for ((service, operation), mut calls) in alike {
            calls.sort_by_key(|call| placed[*call].start);
            let sequential = calls.windows(2).filter(|w| placed[w[1]].start >= placed[w[0]].end()).count();
            if calls.len() >= CALLS_MIN
                && sequential as f64 >= SEQUENTIAL_SHARE_MIN * (calls.len() - 1) as f64
            {
                found.push(Repeat {
                    parent,
                    service: service.to_owned(),
                    operation: operation.to_owned(),
                    calls: calls.len(),
                    total_ns: calls.iter().map(|call| tree.nodes[*call].span.duration_ns()).sum(),
                });
            }
        }
    }
    found.sort_by_key(|repeat| std::cmp::Reverse(repeat.total_ns));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyse::place::place;
    use crate::testing::rpc;

    /// Calls of 100 us by one request, one every `every_us`; how many are called a repeat.
    #[track_caller]
    fn check(calls: u64, every_us: u64, expected: &[(usize, u64)]) {
        let mut spans = vec![rpc(1).hosts("one", "one").at(0, 100_000).build()];
        spans.extend(
            (0..calls)
                .map(|n| rpc(n + 2).under(1).hosts("one", "one").at(30_000 + n * every_us, 100).build()),
        );
        let tree = Tree::new(&spans);
        let found: Vec<(usize, u64)> =
            repeats(&tree, &place(&tree)).iter().map(|repeat| (repeat.calls, repeat.total_ns)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn many_alike_calls_in_a_row_are_a_repeat_and_a_fan_out_is_not() {
        check(41, 120, &[(41, 4_100_000)]);
        check(10, 100, &[(10, 1_000_000)]);
        check(9, 120, &[]);
        check(41, 0, &[]);
        check(41, 50, &[]);
    }
}
