//! `dependencies`: who calls whom, how often, how well.

use clap::ValueEnum;
use dprof_store::Order;
use serde::Serialize;

use super::stats::errors_cell;
use crate::analyse::edges::{EdgeRow, Edges};
use crate::args::{SpanArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::load::{self, Window};
use crate::render::table::{Cell, Column, Table};
use crate::render::{Tone, graph, json};
use crate::{sample, units};

/// Shows the service map: calls, failures, latency, bytes and retransmissions of each caller and callee.
///
/// Stands on the stored spans of the window; counts are weighted by the keep probability. An end that no agent
/// watches is shown by its address.
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
    edges: Vec<EdgeRow>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let query = load::query(&window, &args.filters, Order::Newest, usize::MAX);
    let mut edges = Edges::default();
    let spans =
        sample::every(context, &*reader, query, |page| page.iter().for_each(|span| edges.add(span))).await?;
    let edges = edges.rows();
    if edges.is_empty() {
        let filtered = load::is_filtered(&args.filters);
        load::explain_nothing(context, &*reader, &window, &args.filters.names, filtered).await?;
    } else {
        context.say(&format!(
            "{}, of {} stored spans",
            window.describe(context.now_unix_ns),
            units::count(spans as u64)
        ));
    }
    match args.format {
        GraphFormat::Json => json::document("dependencies", &Map { edges }, context.out)?,
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
        assert!(words.contains("of 3 stored spans"), "{words}");
    }

    #[test]
    fn the_map_is_for_programs_too() {
        let (_, out, _) = run(store(), 80, "dependencies --format json");
        let document: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!((&document["schema_version"], &document["kind"]), (&1.into(), &"dependencies".into()));
        assert_eq!(document["edges"][0]["caller"], "web");
        assert_eq!(document["edges"][0]["p99_ns"], 1_000_000);
        let (_, out, _) = run(store(), 80, "dependencies --format mermaid --since 1m");
        assert_eq!(out, "flowchart LR\n");
        let (_, out, _) = run(store(), 80, "dependencies --format dot");
        assert!(out.starts_with("digraph dprof {") && out.contains("n2 -> n1"), "{out}");
    }
}
