//! The service map as text for graph programs: Graphviz's DOT and Mermaid's flowchart.
//!
//! What a reader would get wrong: names come from other people's traffic, so nodes get numbers as their ids and
//! names only as quoted labels.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::text::clean;
use crate::analyse::edges::EdgeRow;
use crate::units;

/// Numbers for the ends, in order of name.
fn nodes(edges: &[EdgeRow]) -> BTreeMap<&str, usize> {
    let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
    for edge in edges {
        nodes.insert(&edge.caller, 0);
        nodes.insert(&edge.callee, 0);
    }
    for (number, value) in nodes.values_mut().enumerate() {
        *value = number;
    }
    nodes
}

fn label(edge: &EdgeRow) -> String {
    let mut text =
        format!("{} calls, p99 {}", units::count(edge.calls), units::duration(edge.latency.p99_ns));
    if edge.errors > 0 {
        text.push_str(&format!(", {} errors", units::count(edge.errors)));
    }
    if edge.retransmits > 0 {
        text.push_str(&format!(", {} retransmits", units::count(edge.retransmits)));
    }
    text
}

/// Graphviz: `dprof-cli dependencies --format dot | dot -Tsvg`.
pub(crate) fn dot(edges: &[EdgeRow], out: &mut dyn Write) -> io::Result<()> {
    let quoted = |text: &str| clean(text).replace('\\', "\\\\").replace('"', "\\\"");
    let nodes = nodes(edges);
    writeln!(out, "digraph dprof {{\n  rankdir=LR;\n  node [shape=box];")?;
    for (name, number) in &nodes {
        writeln!(out, "  n{number} [label=\"{}\"];", quoted(name))?;
    }
    for edge in edges {
        let colour = if edge.errors > 0 { ", color=red" } else { "" };
        writeln!(
            out,
            "  n{} -> n{} [label=\"{}\"{colour}];",
            nodes[edge.caller.as_str()],
            nodes[edge.callee.as_str()],
            label(edge)
        )?;
    }
    writeln!(out, "}}")
}

/// Mermaid, as GitHub and GitLab draw it in a page.
pub(crate) fn mermaid(edges: &[EdgeRow], out: &mut dyn Write) -> io::Result<()> {
    // Mermaid knows entity codes inside quotes.
    let quoted = |text: &str| clean(text).replace('#', "#35;").replace('"', "#quot;");
    let nodes = nodes(edges);
    writeln!(out, "flowchart LR")?;
    for (name, number) in &nodes {
        writeln!(out, "  n{number}[\"{}\"]", quoted(name))?;
    }
    for edge in edges {
        let (from, to) = (nodes[edge.caller.as_str()], nodes[edge.callee.as_str()]);
        writeln!(out, "  n{from} -->|\"{}\"| n{to}", label(edge))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyse::edges::Edges;
    use crate::testing::rpc;
    use dprof_common::model::Status;

    fn edges() -> Vec<EdgeRow> {
        let mut edges = Edges::default();
        edges.add(&rpc(1).by("we\"b").at(0, 2_000).status(Status::Error).build());
        edges.rows()
    }

    #[test]
    fn names_are_quoted_labels_never_syntax() {
        let mut out = Vec::new();
        dot(&edges(), &mut out).expect("memory");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "digraph dprof {\n  rankdir=LR;\n  node [shape=box];\n  n0 [label=\"redis\"];\n  n1 [label=\"we\\\"b\"];\n  \
             n1 -> n0 [label=\"1 calls, p99 2.00 ms, 1 errors\", color=red];\n}\n"
        );
        let mut out = Vec::new();
        mermaid(&edges(), &mut out).expect("memory");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "flowchart LR\n  n0[\"redis\"]\n  n1[\"we#quot;b\"]\n  n1 -->|\"1 calls, p99 2.00 ms, 1 errors\"| n0\n"
        );
    }
}
