//! The tree of a trace's spans, by links.
//!
//! What a reader would get wrong: the input need not be a tree. A parent may be missing (not kept, still to
//! come) and, in damaged data, links may form a circle; every span still appears exactly once.

use std::collections::{HashMap, HashSet};

use dprof_common::model::{Span, SpanId};

/// A span in its tree.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    /// The RPC.
    pub span: &'a Span,
    /// Index of its parent's node.
    pub parent: Option<usize>,
    /// Indexes of the calls that it made, in order of start.
    pub children: Vec<usize>,
    /// Distance from its root.
    pub depth: usize,
    /// It has a link, but the parent is not among the spans (or the links form a circle).
    pub parent_missing: bool,
}

/// The spans of a trace as a forest: one tree, unless parents are missing.
#[derive(Clone, Debug)]
pub struct Tree<'a> {
    /// In the order of the input, without repetition.
    pub nodes: Vec<Node<'a>>,
    /// Spans without a parent here, in order of start.
    pub roots: Vec<usize>,
}

impl<'a> Tree<'a> {
    /// Hangs each span under the one that its link names.
    pub fn new(spans: &'a [Span]) -> Self {
        let mut nodes: Vec<Node<'a>> = Vec::with_capacity(spans.len());
        let mut by_id: HashMap<SpanId, usize> = HashMap::with_capacity(spans.len());
        for span in spans {
            by_id.entry(span.span_id).or_insert_with(|| {
                nodes.push(Node {
                    span,
                    parent: None,
                    children: Vec::new(),
                    depth: 0,
                    parent_missing: false,
                });
                nodes.len() - 1
            });
        }
        for idx in 0..nodes.len() {
            let Some(link) = nodes[idx].span.link else { continue };
            match by_id.get(&link.parent) {
                Some(&parent) if parent != idx => {
                    nodes[idx].parent = Some(parent);
                    nodes[parent].children.push(idx);
                }
                _ => nodes[idx].parent_missing = true,
            }
        }
        let mut tree = Self { nodes, roots: Vec::new() };
        tree.find_roots();
        tree
    }

    /// Sorts, sets depths, and cuts circles at the member that starts first.
    fn find_roots(&mut self) {
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        order.sort_by_key(|idx| (self.nodes[*idx].span.start_ns(), *idx));
        let mut rank = vec![0; order.len()];
        for (position, idx) in order.iter().enumerate() {
            rank[*idx] = position;
        }
        for node in &mut self.nodes {
            node.children.sort_by_key(|child| rank[*child]);
        }
        let mut reached = vec![false; self.nodes.len()];
        for &idx in order.iter().filter(|idx| self.nodes[**idx].parent.is_none()).collect::<Vec<_>>() {
            self.roots.push(idx);
            self.descend(idx, &mut reached);
        }
        for idx in order {
            if reached[idx] {
                continue;
            }
            let first = self.first_of_circle(idx, &rank);
            if let Some(parent) = self.nodes[first].parent.take() {
                self.nodes[parent].children.retain(|child| *child != first);
                self.nodes[first].parent_missing = true;
            }
            self.roots.push(first);
            self.descend(first, &mut reached);
        }
    }

    /// The member that starts first of the circle at or above `idx`, which no root reaches.
    fn first_of_circle(&self, idx: usize, rank: &[usize]) -> usize {
        let up = |idx: usize| self.nodes[idx].parent.unwrap_or(idx);
        // The first node that the walk meets twice is on the circle.
        let mut seen = HashSet::new();
        let mut on_circle = idx;
        while seen.insert(on_circle) {
            on_circle = up(on_circle);
        }
        let mut first = on_circle;
        let mut at = up(on_circle);
        while at != on_circle {
            if rank[at] < rank[first] {
                first = at;
            }
            at = up(at);
        }
        first
    }

    fn descend(&mut self, root: usize, reached: &mut [bool]) {
        let mut stack = vec![(root, 0)];
        while let Some((idx, depth)) = stack.pop() {
            reached[idx] = true;
            self.nodes[idx].depth = depth;
            stack.extend(self.nodes[idx].children.iter().map(|child| (*child, depth + 1)));
        }
    }

    /// The node of the request itself: the root whose id the trace has, else the longest root.
    pub fn request(&self) -> Option<usize> {
        let named = self.roots.iter().copied().find(|root| {
            let span = self.nodes[*root].span;
            !self.nodes[*root].parent_missing && span.span_id.as_root_trace() == span.trace_id
        });
        named.or_else(|| {
            self.roots.iter().copied().max_by_key(|root| {
                let node = &self.nodes[*root];
                (!node.parent_missing, node.span.duration_ns(), std::cmp::Reverse(*root))
            })
        })
    }

    /// Indexes of all nodes, each parent before its children, siblings in order of start.
    pub fn preorder(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.nodes.len());
        let mut stack: Vec<usize> = self.roots.iter().rev().copied().collect();
        while let Some(idx) = stack.pop() {
            order.push(idx);
            stack.extend(self.nodes[idx].children.iter().rev());
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rpc, rpc};

    /// Draws the forest as `id(children)`, a missing parent as `?id`.
    fn draw(tree: &Tree<'_>, idx: usize) -> String {
        let node = &tree.nodes[idx];
        let children: Vec<String> = node.children.iter().map(|child| draw(tree, *child)).collect();
        let mark = if node.parent_missing { "?" } else { "" };
        let id = node.span.span_id.0;
        if children.is_empty() {
            format!("{mark}{id}")
        } else {
            format!("{mark}{id}({})", children.join(" "))
        }
    }

    #[track_caller]
    fn check(rpcs: Vec<Rpc>, expected: &str) {
        let spans: Vec<_> = rpcs.into_iter().map(Rpc::build).collect();
        let tree = Tree::new(&spans);
        let drawn: Vec<String> = tree.roots.iter().map(|root| draw(&tree, *root)).collect();
        assert_eq!(drawn.join(" "), expected);
        let mut order = tree.preorder();
        order.sort_unstable();
        assert_eq!(order, (0..tree.nodes.len()).collect::<Vec<_>>(), "each span exactly once");
    }

    #[test]
    fn spans_hang_under_their_causes_in_order_of_start() {
        check(vec![], "");
        check(vec![rpc(1)], "1");
        check(vec![rpc(3).under(1).at(9, 1), rpc(2).under(1).at(5, 1), rpc(1), rpc(4).under(3)], "1(2 3(4))");
    }

    #[test]
    fn a_missing_parent_makes_a_root_that_says_so() {
        check(vec![rpc(1), rpc(3).under(2).at(5, 1), rpc(4).under(3)], "1 ?3(4)");
    }

    #[test]
    fn circles_are_cut_where_they_start() {
        check(vec![rpc(1).under(1)], "?1");
        check(vec![rpc(1).under(3).at(3, 1), rpc(2).under(1).at(1, 1), rpc(3).under(2).at(2, 1)], "?2(3(1))");
        // A span below a circle starts before it, but hangs on.
        check(vec![rpc(1), rpc(2).under(3).at(1, 1), rpc(3).under(2).at(2, 1), rpc(4).under(2)], "1 ?2(4 3)");
    }

    #[test]
    fn a_span_given_twice_appears_once() {
        check(vec![rpc(1), rpc(1), rpc(2).under(1)], "1(2)");
    }

    #[test]
    fn a_chain_of_a_hundred_thousand_does_not_overflow_the_stack() {
        let spans: Vec<_> = (1..=100_000_u64)
            .map(|id| if id == 1 { rpc(1).build() } else { rpc(id).under(id - 1).build() })
            .collect();
        let tree = Tree::new(&spans);
        assert_eq!(tree.preorder().len(), 100_000);
        assert_eq!(tree.nodes[99_999].depth, 99_999);
    }
}
