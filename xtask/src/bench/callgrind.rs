//! Instructions by stage: callgrind's call graph, folded into a few names.
//!
//! A function that belongs to a stage is charged to it; every other one (the allocator, copies, hash tables) to the
//! stages of its callers, in proportion to what it did for each, as gprof does (Graham, Kessler, McKusick, 1982).
//! What a reader would get wrong: callgrind counts each repetition of a string instruction (`rep movsb`), so a copy
//! of a kilobyte can look like a thousand instructions. Compare counts with counts, not with times.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// A stage and the functions that are it: any function whose name contains one of the parts.
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) functions: &'static [&'static str],
}

#[derive(Default)]
struct Function {
    own: u64,
    /// Caller and instructions spent in this function and below it for that caller.
    callers: Vec<(usize, u64)>,
}

/// Shares flow from callers to callees this often: as often as the graph is deep is enough, cycles settle before.
const ROUNDS: usize = 64;

/// Call graph of one run.
#[derive(Default)]
struct Graph {
    ids: HashMap<String, usize>,
    names: Vec<String>,
    functions: Vec<Function>,
}

/// Instructions of each stage, in the order of `stages`, then those of none.
pub(super) fn by_stage(path: &Path, stages: &[Stage]) -> Result<Vec<f64>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let graph = Graph::read(&text);
    ensure!(!graph.functions.is_empty(), "{} holds no function", path.display());
    Ok(graph.fold(stages))
}

impl Graph {
    /// Reads callgrind's format (valgrind manual, section "Callgrind Format Specification").
    fn read(text: &str) -> Self {
        let mut graph = Self::default();
        // Callgrind shortens names: `(id) name` the first time, `(id)` after that.
        let mut short: HashMap<&str, usize> = HashMap::new();
        let (mut current, mut callee) = (None, None);
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("fn=") {
                current = Some(graph.function(name, &mut short));
            } else if let Some(name) = line.strip_prefix("cfn=") {
                callee = Some(graph.function(name, &mut short));
            } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
                let cost = line.split(' ').nth(1).and_then(|cost| cost.parse().ok()).unwrap_or(0);
                match (current, callee.take()) {
                    (Some(caller), Some(callee)) => graph.functions[callee].callers.push((caller, cost)),
                    (Some(current), None) => graph.functions[current].own += cost,
                    (None, _) => {}
                }
            }
        }
        graph
    }

    fn function<'a>(&mut self, name: &'a str, short: &mut HashMap<&'a str, usize>) -> usize {
        let (id, name) =
            name.split_once(") ").map_or((name.trim_end_matches(')'), None), |(id, name)| (id, Some(name)));
        match name {
            None => short.get(id).copied().unwrap_or_else(|| self.named(id)),
            Some(name) => {
                let function = self.named(name);
                short.insert(id, function);
                function
            }
        }
    }

    fn named(&mut self, name: &str) -> usize {
        if let Some(function) = self.ids.get(name) {
            return *function;
        }
        self.functions.push(Function::default());
        self.names.push(name.to_owned());
        let function = self.functions.len() - 1;
        self.ids.insert(name.to_owned(), function);
        function
    }

    fn fold(&self, stages: &[Stage]) -> Vec<f64> {
        let none = stages.len();
        // Share of each stage in what is charged to a function.
        let mut shares: Vec<Vec<f64>> = vec![vec![0.0; none + 1]; self.functions.len()];
        let fixed: Vec<Option<usize>> = self
            .names
            .iter()
            .map(|name| {
                stages.iter().position(|stage| stage.functions.iter().any(|part| name.contains(part)))
            })
            .collect();
        for (shares, fixed) in shares.iter_mut().zip(&fixed) {
            shares[fixed.unwrap_or(none)] = 1.0;
        }
        for _ in 0..ROUNDS {
            for (function, fixed) in fixed.iter().enumerate() {
                let callers = &self.functions[function].callers;
                let total: u64 = callers.iter().map(|(_, cost)| cost).sum();
                if fixed.is_some() || total == 0 {
                    continue;
                }
                let mut mixed = vec![0.0; none + 1];
                for (caller, cost) in callers {
                    let weight = *cost as f64 / total as f64;
                    for (mixed, share) in mixed.iter_mut().zip(&shares[*caller]) {
                        *mixed += weight * share;
                    }
                }
                shares[function] = mixed;
            }
        }
        let mut sums = vec![0.0; none + 1];
        for (function, shares) in self.functions.iter().zip(&shares) {
            for (sum, share) in sums.iter_mut().zip(shares) {
                *sum += function.own as f64 * share;
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::{Graph, Stage};

    const STAGES: [Stage; 2] =
        [Stage { name: "decode", functions: &["decode::"] }, Stage { name: "link", functions: &["link::"] }];

    #[test]
    fn shared_functions_are_charged_to_those_who_call_them() {
        let text = "events: Ir\n\nfn=(1) main\n0 10\ncfn=(2) decode::decode\ncalls=5 0\n0 300\n\
                    cfn=(3) link::find\ncalls=5 0\n0 200\n\nfn=(2)\n0 100\ncfn=(4) malloc\ncalls=1 0\n0 200\n\n\
                    fn=(3)\n0 100\ncfn=(4)\ncalls=1 0\n0 100\n\nfn=(4)\n0 300\n";
        let sums = Graph::read(text).fold(&STAGES);
        assert_eq!(sums.iter().map(|sum| sum.round()).collect::<Vec<_>>(), [300.0, 200.0, 10.0]);
    }

    #[test]
    fn a_recursion_is_charged_once() {
        let text =
            "fn=(1) link::a\n0 10\ncfn=(2) walk\ncalls=1 0\n0 50\n\nfn=(2)\n0 50\ncfn=(2)\ncalls=9 0\n0 40\n";
        let sums = Graph::read(text).fold(&STAGES);
        assert_eq!(sums.iter().map(|sum| sum.round()).collect::<Vec<_>>(), [0.0, 60.0, 0.0]);
    }
}
