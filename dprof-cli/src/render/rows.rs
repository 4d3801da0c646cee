//! Which lines a trace is shown in: each span its own, but siblings alike beyond a few as one.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::analyse::row::failing_half;
use crate::analyse::tree::Tree;

/// Of siblings alike (service, operation, status), so many are shown, the slowest ones; the rest is one line.
const SIBLINGS_SHOWN: usize = 3;

/// Fewer siblings alike than this are shown one by one: a line "× 1" would save nothing.
const SIBLINGS_ALIKE_MIN: usize = SIBLINGS_SHOWN + 2;

/// Lines without `--all`: some screens full; more is for `--format json`.
const LINES_MAX: usize = 200;

/// Levels of branches that are drawn at most; deeper trees show how many levels are folded.
const LEVELS_MAX: usize = 16;

/// A line of the waterfall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A node of the tree.
    Span(usize),
    /// Several siblings alike, with all below them.
    Alike(Vec<usize>),
}

/// A line with what its branches need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// What it shows.
    pub(crate) line: Line,
    /// Distance from its root.
    pub(crate) depth: usize,
    /// For each of the last levels down to its own: whether siblings follow below.
    pub(crate) continues: Vec<bool>,
    /// By which the tables below refer to it; lines of siblings alike have none.
    pub(crate) number: Option<usize>,
}

/// The lines of `tree`, and how many spans are on none of them because there are too many lines.
pub(crate) fn rows(tree: &Tree<'_>, all: bool) -> (Vec<Row>, usize) {
    let lines = |siblings: &[usize]| {
        if all { siblings.iter().map(|idx| Line::Span(*idx)).collect() } else { collapse(tree, siblings) }
    };
    let mut rows: Vec<Row> = Vec::new();
    let mut shown = 0;
    let mut stack: Vec<Row> = Vec::new();
    for line in lines(&tree.roots).into_iter().rev() {
        stack.push(Row { line, depth: 0, continues: Vec::new(), number: None });
    }
    while let Some(mut row) = stack.pop() {
        if !all && rows.len() == LINES_MAX {
            break;
        }
        match &row.line {
            Line::Alike(alike) => shown += alike.iter().map(|idx| spans_at(tree, *idx)).sum::<usize>(),
            Line::Span(idx) => {
                shown += 1;
                row.number = Some(1 + rows.iter().rev().find_map(|row| row.number).unwrap_or(0));
                let children = lines(&tree.nodes[*idx].children);
                let last = children.len().saturating_sub(1);
                for (position, line) in children.into_iter().enumerate().rev() {
                    let above = &row.continues[row.continues.len().saturating_sub(LEVELS_MAX - 1)..];
                    let continues = above.iter().copied().chain([position < last]).collect();
                    stack.push(Row { line, depth: row.depth + 1, continues, number: None });
                }
            }
        }
        rows.push(row);
    }
    (rows, tree.nodes.len() - shown)
}

/// How many spans the subtree of `idx` has.
fn spans_at(tree: &Tree<'_>, idx: usize) -> usize {
    let mut count = 0;
    let mut stack = vec![idx];
    while let Some(idx) = stack.pop() {
        count += 1;
        stack.extend(&tree.nodes[idx].children);
    }
    count
}

/// Siblings alike beyond [`SIBLINGS_SHOWN`] become one line where the last of them would be. A failure is never
/// alike a success.
fn collapse(tree: &Tree<'_>, siblings: &[usize]) -> Vec<Line> {
    let mut groups: BTreeMap<(&str, &str, u8), Vec<usize>> = BTreeMap::new();
    for idx in siblings {
        let span = tree.nodes[*idx].span;
        let Some(near) = span.nearest() else { continue };
        let status = failing_half(span).unwrap_or(near).status;
        groups.entry((&near.process.service, &near.operation, status as u8)).or_default().push(*idx);
    }
    let mut collapsed: HashSet<usize> = HashSet::new();
    let mut alike_at: HashMap<usize, Vec<usize>> = HashMap::new();
    for group in groups.into_values().filter(|group| group.len() >= SIBLINGS_ALIKE_MIN) {
        let mut by_duration = group.clone();
        by_duration.sort_by_key(|idx| std::cmp::Reverse(tree.nodes[*idx].span.duration_ns()));
        let rest: HashSet<usize> = by_duration.split_off(SIBLINGS_SHOWN).into_iter().collect();
        let last = group[group.len() - 1];
        alike_at.insert(last, group.into_iter().filter(|idx| rest.contains(idx)).collect());
        collapsed.extend(rest);
    }
    let mut lines = Vec::new();
    for idx in siblings {
        if !collapsed.contains(idx) {
            lines.push(Line::Span(*idx));
        }
        lines.extend(alike_at.remove(idx).map(Line::Alike));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rpc, rpc};
    use dprof_common::model::Status;

    /// Lines as `span` or `×count`, indented by depth; then how many spans are left out.
    #[track_caller]
    fn check(rpcs: Vec<Rpc>, all: bool, expected: &[&str], expected_left_out: usize) {
        let spans: Vec<_> = rpcs.into_iter().map(Rpc::build).collect();
        let tree = Tree::new(&spans);
        let (rows, left_out) = rows(&tree, all);
        let lines: Vec<String> = rows
            .iter()
            .map(|row| {
                let what = match &row.line {
                    Line::Span(idx) => tree.nodes[*idx].span.span_id.0.to_string(),
                    Line::Alike(alike) => format!("×{}", alike.len()),
                };
                format!("{}{what}", "-".repeat(row.depth))
            })
            .collect();
        assert_eq!(
            (lines.iter().map(String::as_str).collect::<Vec<_>>(), left_out),
            (expected.to_vec(), expected_left_out)
        );
    }

    fn siblings(count: u64) -> Vec<Rpc> {
        let calls = (2..2 + count).map(|id| rpc(id).under(1).at(id, 100 - id));
        [rpc(1)].into_iter().chain(calls).collect()
    }

    #[test]
    fn few_siblings_are_shown_and_many_become_the_slowest_and_a_count() {
        check(siblings(4), false, &["1", "-2", "-3", "-4", "-5"], 0);
        check(siblings(5), false, &["1", "-2", "-3", "-4", "-×2"], 0);
        check(siblings(5), true, &["1", "-2", "-3", "-4", "-5", "-6"], 0);
    }

    #[test]
    fn failures_and_other_operations_are_not_hidden_among_the_alike() {
        let mut rpcs = siblings(9);
        rpcs[7] = rpcs[7].clone().status(Status::Timeout);
        rpcs[8] = rpcs[8].clone().of("redis", "SET");
        check(rpcs, false, &["1", "-2", "-3", "-4", "-8", "-9", "-×4"], 0);
    }

    #[test]
    fn what_hangs_below_the_alike_is_counted_with_them() {
        let mut rpcs = siblings(6);
        rpcs.push(rpc(100).under(7));
        check(rpcs, false, &["1", "-2", "-3", "-4", "-×3"], 0);
    }

    #[test]
    fn a_huge_trace_is_cut_and_says_by_how_much() {
        let rpcs: Vec<Rpc> = (1..=300).map(|id| rpc(id).of("redis", &format!("OP{id}")).at(id, 1)).collect();
        let spans: Vec<_> = rpcs.into_iter().map(Rpc::build).collect();
        let (lines, left_out) = rows(&Tree::new(&spans), false);
        assert_eq!((lines.len(), left_out), (200, 100));
        let (lines, left_out) = rows(&Tree::new(&spans), true);
        assert_eq!((lines.len(), left_out), (300, 0));
    }
}
