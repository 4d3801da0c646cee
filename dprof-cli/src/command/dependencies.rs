//! `dependencies`: who calls whom, how often, how well.

use clap::ValueEnum;
use dprof_common::model::Span;
use dprof_store::Order;
use serde::Serialize;

use super::stats::errors_cell;
use crate::analyse::edge_counts;
use crate::analyse::edges::{EdgeRow, Edges};
use crate::args::{SpanArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::load::{self, Window};
use crate::render::table::{Cell, Column, Table};
use crate::render::{Tone, graph, json};
use crate::{sample, units};

/// Shows the service map: calls, failures, latency, bytes and retransmissions of each caller and callee.
///
/// Without filters it stands on what the agents counted of everything that they saw, up to half a minute ago; with
/// filters on the stored spans of the window, weighted by the keep probability. An end that no agent watches is shown
/// by its address.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    filters: SpanArgs,
    /// Output: table for people, dot (Graphviz), mermaid, or json for programs
    #[arg(long, value_enum, default_value_t = GraphFormat::Table, value_name = "FORMAT", hide_possible_values = true)]
    format: GraphFormat,
}

/// How to print the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GraphFormat {
    /// For people
    Table,
    /// Graphviz
    Dot,
    /// Mermaid
    Mermaid,
    /// For programs
    Json,
}

/// What is printed for programs.
#[derive(Serialize)]
struct Map {
    /// `counts` of everything seen, or estimated from stored `spans`.
    source: &'static str,
    edges: Vec<EdgeRow>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let filtered = load::is_filtered(&args.filters);
    let mut counted = Vec::new();
    if !filtered {
        let answer = reader.edges(window.since_unix_ns, window.until_unix_ns).await?;
        context.warn(&answer.warnings);
        counted = edge_counts::rows(&answer.rows);
    }
    let is_counted = !counted.is_empty();
    let (edges, spans) = if is_counted {
        (counted, 0)
    } else {
        // A filter asks for more than was counted; older dprofs counted no edges.
        let query = load::query(&window, &args.filters, Order::Newest, usize::MAX);
        let mut edges = Edges::default();
        let add = |page: &[Span]| page.iter().for_each(|span| edges.add(span));
        let spans = sample::every(context, &*reader, query, add).await?;
        (edges.rows(), spans)
    };
    if edges.is_empty() {
        load::explain_nothing(context, &*reader, &window, &args.filters.names, filtered).await?;
    } else if is_counted {
        context.say(&format!("{}, of all calls that were seen", window.describe(context.now_unix_ns)));
    } else {
        context.say(&format!(
            "{}, of {} stored spans",
            window.describe(context.now_unix_ns),
            units::count(spans as u64)
        ));
    }
    match args.format {
        GraphFormat::Json => {
            let source = if is_counted { "counts" } else { "spans" };
            json::document("dependencies", &Map { source, edges }, context.out)?;
        }
        GraphFormat::Dot => graph::dot(&edges, context.out)?,
        GraphFormat::Mermaid => graph::mermaid(&edges, context.out)?,
        GraphFormat::Table if edges.is_empty() => {}
        GraphFormat::Table => table(&edges, context)?,
    }
    Ok(())
}

fn table(edges: &[EdgeRow], context: &mut Context<'_>) -> Result<(), Failure> {
    let mut table = Table::new([
        Column::text("CALLER", 0),
        Column::text("CALLEE", 0),
        Column::text("PROTOCOL", 5),
        Column::number("CALLS", 0),
        Column::number("ERRORS", 0),
        Column::number("AVG", 4),
        Column::number("P50", 1),
        Column::number("P90", 6),
        Column::number("P99", 0),
        Column::number("MAX", 3),
        Column::number("REQUESTS", 6),
        Column::number("RESPONSES", 6),
        Column::number("RETRANSMITS", 2),
    ]);
    for edge in edges {
        let latency = &edge.latency;
        table.row([
            edge.caller.as_str().into(),
            edge.callee.as_str().into(),
            edge.protocols.join(" ").into(),
            units::count(edge.calls).into(),
            errors_cell(edge.errors, edge.calls),
            units::duration(latency.avg_ns).into(),
            units::duration(latency.p50_ns).into(),
            units::duration(latency.p90_ns).into(),
            units::duration(latency.p99_ns).into(),
            units::duration(latency.max_ns).into(),
            units::bytes(edge.request_bytes).into(),
            units::bytes(edge.response_bytes).into(),
            if edge.retransmits == 0 {
                Cell::default()
            } else {
                Cell::toned(units::count(edge.retransmits), Tone::Yellow)
            },
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run};

    fn store() -> Memory {
        let mut resent = rpc(3).by("web").build();
        resent.client.as_mut().expect("seen").retransmits = 2;
        Memory::of(vec![rpc(1).by("web").build(), rpc(2).of("web", "GET /").server_only().build(), resent])
    }

    #[test]
    fn the_map_is_a_table() {
        let (_, out, words) = run(store(), 80, "dependencies");
        assert_eq!(
            out,
            "\
CALLER    CALLEE  CALLS      AVG      P50      P99      MAX  RETRANSMITS
web       redis       2  1.00 ms  1.00 ms  1.00 ms  1.00 ms            2
10.0.0.1  web         1   820 us   820 us   820 us   820 us
"
        );
        assert!(words.contains("of all calls that were seen"), "{words}");
    }

    #[test]
    fn filters_and_older_stores_have_it_from_spans() {
        let (_, out, words) = run(store(), 80, "dependencies --service redis");
        assert!(out.contains("web     redis   redis         2"), "{out}");
        assert!(words.contains("of 2 stored spans"), "{words}");
        let counted = run(store(), 80, "dependencies").1;
        let older = Memory { edges: Vec::new(), ..store() };
        let (_, out, words) = run(older, 80, "dependencies");
        assert_eq!(out, counted);
        assert!(words.contains("of 3 stored spans"), "{words}");
    }

    #[test]
    fn the_map_is_for_programs_too() {
        let (_, out, _) = run(store(), 80, "dependencies --format json");
        let document: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!((&document["schema_version"], &document["kind"]), (&1.into(), &"dependencies".into()));
        assert_eq!(document["source"], "counts");
        assert_eq!(document["edges"][0]["caller"], "web");
        assert_eq!(document["edges"][0]["p99_ns"], 1_000_000);
        let (_, out, _) = run(store(), 80, "dependencies --format mermaid --since 1m");
        assert_eq!(out, "flowchart LR\n");
        let (_, out, _) = run(store(), 80, "dependencies --format dot");
        assert!(out.starts_with("digraph dprof {") && out.contains("n2 -> n1"), "{out}");
    }
}
