//! Folded stacks for flame graphs: `web GET /;redis GET 123456`, a path of calls and nanoseconds.
//!
//! What a reader would get wrong: the number is what the critical path spent in the last RPC of the path itself, so
//! the numbers of a trace add up to its request's duration, also with parallel calls. Detached calls are not in it.

use std::collections::BTreeMap;
use std::io::{self, Write};

use dprof_common::model::Span;

use super::Exporter;
use crate::analyse::critical_path::critical_path;
use crate::analyse::place::place;
use crate::analyse::tree::Tree;

/// Deeper paths are cut: a flame of more levels is not legible.
const LEVELS_MAX: usize = 200;

/// Writes folded stacks, added up over all traces.
#[derive(Debug, Default)]
pub(crate) struct Folded {
    ns: BTreeMap<String, u64>,
}

impl Exporter for Folded {
    fn begin(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn page(&mut self, spans: &[Span], _: &mut dyn Write) -> io::Result<()> {
        let tree = Tree::new(spans);
        let Some(root) = tree.request() else { return Ok(()) };
        for step in critical_path(&tree, &place(&tree), root) {
            let mut frames = Vec::new();
            let mut at = Some(step.idx);
            while let Some(idx) = at.filter(|_| frames.len() < LEVELS_MAX) {
                frames.push(frame(tree.nodes[idx].span));
                at = if idx == root { None } else { tree.nodes[idx].parent };
            }
            frames.reverse();
            *self.ns.entry(frames.join(";")).or_default() += step.ns();
        }
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        for (stack, ns) in &self.ns {
            writeln!(out, "{stack} {ns}")?;
        }
        Ok(())
    }

    fn wants_whole_traces(&self) -> bool {
        true
    }
}

/// A name without what the format means something by.
fn frame(span: &Span) -> String {
    let name =
        span.nearest().map_or(String::new(), |near| format!("{} {}", near.process.service, near.operation));
    name.replace(|c: char| c == ';' || c.is_control(), "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;

    #[test]
    fn paths_add_up_to_the_durations() {
        let trace = || {
            [
                rpc(1).of("web", "GET /;x").hosts("lb", "lb").at(0, 1_000).build(),
                rpc(2).under(1).by("web").hosts("lb", "db").at(300, 200).build(),
            ]
        };
        let mut exporter = Folded::default();
        let mut out = Vec::new();
        exporter.page(&trace(), &mut out).expect("memory");
        exporter.page(&trace(), &mut out).expect("memory");
        exporter.end(&mut out).expect("memory");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "web GET /_x 1600000\nweb GET /_x;redis GET 400000\n"
        );
    }
}
