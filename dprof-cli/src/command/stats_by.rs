//! `stats --by` and `stats --traces`: what the counts per minute do not tell, of stored spans.

use dprof_common::model::Span;
use dprof_store::{Order, SpanQuery};

use super::stats::{Args, errors_cell, nothing};
use crate::analyse::attribution::Attribution;
use crate::analyse::confidence::{Confidence, Interval};
use crate::analyse::estimate::Latency;
use crate::analyse::group::{Field, GroupRow, Groups};
use crate::analyse::stats::SortBy;
use crate::analyse::tree::Tree;
use crate::analyse::whole::{RequestRow, RequestStats};
use crate::args::{Format, SpanArgs};
use crate::context::{Context, Failure};
use crate::load::{self, Window};
use crate::render::json;
use crate::render::table::{Cell, Column, Table};
use crate::{sample, units};

/// Whole traces read per kind of request: their means are known to a few percent, and reading each costs a
/// millisecond at most.
const TRACES_PER_KIND: u64 = 100;

/// Kinds of requests of which whole traces are read, the rest only counted.
const KINDS_MAX: usize = 50;

/// What rows are sorted by.
const fn sort_key(sort: SortBy, count: u64, errors: u64, total_ns: u64, latency: &Latency) -> u64 {
    match sort {
        SortBy::Total => total_ns,
        SortBy::Count => count,
        SortBy::Errors => errors,
        SortBy::Avg => latency.avg_ns,
        SortBy::P50 => latency.p50_ns,
        SortBy::P99 => latency.p99_ns,
        SortBy::Max => latency.max_ns,
        SortBy::Name => 0,
    }
}

/// `--by`.
pub(super) async fn grouped(args: &Args, by: Vec<Field>, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let filters = SpanArgs { names: args.names.clone(), ..SpanArgs::default() };
    let query = load::query(&window, &filters, Order::Newest, usize::MAX);
    let mut groups = Groups::new(by.clone());
    let spans =
        sample::every(context, &*reader, query, |page| page.iter().for_each(|s| groups.add(s))).await?;
    let mut rows = groups.rows();
    if rows.is_empty() {
        return nothing(context, &*reader, &window, &args.names, args.output.format).await;
    }
    rows.sort_by_key(|row| {
        std::cmp::Reverse(sort_key(args.sort, row.count, row.errors, row.total_ns, &row.latency))
    });
    rows.truncate(args.limit.map_or(usize::MAX, |limit| limit as usize));
    let of = window.describe(context.now_unix_ns);
    context.say(&format!("{of}, of {} stored spans", units::count(spans as u64)));
    match args.output.format {
        Format::Json => json::array(&rows, context.out),
        Format::Table => group_table(&by, &rows, context),
    }
}

fn group_table(by: &[Field], rows: &[GroupRow], context: &mut Context<'_>) -> Result<(), Failure> {
    let title = |field: &Field| match field {
        Field::Service => "SERVICE",
        Field::Operation => "OPERATION",
        Field::Peer => "PEER",
        Field::Host => "HOST",
        Field::Rack => "RACK",
        Field::Dc => "DC",
        Field::Status => "STATUS",
    };
    let mut columns: Vec<Column> = by.iter().map(|field| Column::text(title(field), 0)).collect();
    columns.extend(latency_columns());
    columns.extend([Column::number("REQUESTS", 6), Column::number("RESPONSES", 7)]);
    let mut table = Table::new(columns);
    for row in rows {
        let value = |field: &Field| match row.fields.get(field.name()).and_then(|value| value.as_str()) {
            Some("") | None => Cell::toned("-", crate::render::Tone::Dim),
            Some(text) => text.into(),
        };
        let mut cells: Vec<Cell> = by.iter().map(value).collect();
        cells.extend(latency_cells(row.count, row.errors, row.total_ns, &row.latency));
        cells.extend([units::bytes(row.request_bytes).into(), units::bytes(row.response_bytes).into()]);
        table.row(cells);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

fn latency_columns() -> [Column; 9] {
    [
        Column::number("COUNT", 0),
        Column::number("ERRORS", 0),
        Column::number("MIN", 6),
        Column::number("AVG", 3),
        Column::number("P50", 0),
        Column::number("P90", 2),
        Column::number("P99", 0),
        Column::number("MAX", 1),
        Column::number("TOTAL", 5),
    ]
}

fn latency_cells(count: u64, errors: u64, total_ns: u64, latency: &Latency) -> [Cell; 9] {
    [
        units::count(count).into(),
        errors_cell(errors, count),
        units::duration(latency.min_ns).into(),
        units::duration(latency.avg_ns).into(),
        units::duration(latency.p50_ns).into(),
        units::duration(latency.p90_ns).into(),
        units::duration(latency.p99_ns).into(),
        units::duration(latency.max_ns).into(),
        units::duration(total_ns).into(),
    ]
}

/// Between which values the truth is, where not every trace was kept.
fn confidence_cells(confidence: Option<&Confidence>) -> [Cell; 3] {
    let Some(confidence) = confidence else { return [(); 3].map(|()| Cell::default()) };
    let text = |interval: &Interval, unit: fn(u64) -> String| {
        Cell::from(match interval.high {
            Some(high) => format!("{} - {}", unit(interval.low), unit(high)),
            None => format!("from {}", unit(interval.low)),
        })
    };
    [
        text(&confidence.count, units::count),
        text(&confidence.p50_ns, units::duration),
        text(&confidence.p99_ns, units::duration),
    ]
}

/// `--traces`.
pub(super) async fn traces(args: &Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let filters = SpanArgs { names: args.names.clone(), ..SpanArgs::default() };
    let query = SpanQuery { roots_only: true, ..load::query(&window, &filters, Order::Newest, usize::MAX) };
    let mut stats = RequestStats::default();
    let mut examples: std::collections::BTreeMap<_, Vec<Span>> = std::collections::BTreeMap::new();
    let roots = sample::every(context, &*reader, query, |page| {
        for span in page {
            stats.add_root(span);
            let Some(near) = span.nearest() else { continue };
            let kind = (near.process.service.clone(), near.operation.clone(), span.root.map(|r| r as u8));
            if examples.len() < KINDS_MAX || examples.contains_key(&kind) {
                let of_kind = examples.entry(kind).or_default();
                if (of_kind.len() as u64) < TRACES_PER_KIND {
                    of_kind.push(span.clone());
                }
            }
        }
    })
    .await?;
    let examples: Vec<Span> = examples.into_values().flatten().collect();
    let attribution = args.attribute.unwrap_or_default();
    let mut traces = sample::traces_of(context, &*reader, &examples).await?;
    if attribution == Attribution::Submitter {
        let bounds = [(window.since_unix_ns, window.until_unix_ns)];
        sample::submitted(context, &*reader, &bounds, &mut traces).await?;
    }
    for spans in &traces {
        let tree = Tree::new(spans);
        if let Some(root) = tree.request() {
            stats.add_trace(&tree, root, attribution);
        }
    }
    let mut rows = stats.rows();
    if rows.is_empty() {
        return nothing(context, &*reader, &window, &args.names, args.output.format).await;
    }
    rows.sort_by_key(|row| {
        (
            row.root != "edge",
            row.root,
            std::cmp::Reverse(sort_key(args.sort, row.count, row.errors, row.total_ns, &row.latency)),
        )
    });
    rows.truncate(args.limit.map_or(usize::MAX, |limit| limit as usize));
    let of = window.describe(context.now_unix_ns);
    context.say(&format!("{of}, of {} stored roots", units::count(roots as u64)));
    match args.output.format {
        Format::Json => json::array(&rows, context.out),
        Format::Table => request_table(&rows, context),
    }
}

fn request_table(rows: &[RequestRow], context: &mut Context<'_>) -> Result<(), Failure> {
    let mut columns =
        vec![Column::whole("ROOT", 1), Column::text("SERVICE", 0), Column::text("OPERATION", 0)];
    columns.extend(latency_columns());
    let sampled = rows.iter().any(|row| row.confidence.is_some());
    if sampled {
        columns.extend([
            Column::number("COUNT 99%", 1),
            Column::number("P50 99%", 3),
            Column::number("P99 99%", 1),
        ]);
    }
    columns.extend([
        Column::number("RPCS", 1),
        Column::number("IN CALLS", 5),
        Column::number("FAILING", 4),
        Column::text("MOSTLY", 4),
    ]);
    let mut table = Table::new(columns);
    for row in rows {
        let mut cells: Vec<Cell> =
            vec![row.root.into(), row.service.as_str().into(), row.operation.as_str().into()];
        cells.extend(latency_cells(row.count, row.errors, row.total_ns, &row.latency));
        if sampled {
            cells.extend(confidence_cells(row.confidence.as_ref()));
        }
        let known = |text: String| if row.traces == 0 { Cell::default() } else { text.into() };
        cells.extend([
            known(format!("{:.1}", row.rpcs_per_trace)),
            known(units::duration(row.calls_ns)),
            if row.failing_share > 0.0 {
                Cell::toned(format!("{:.0}%", row.failing_share * 100.0), crate::render::Tone::Red)
            } else {
                Cell::default()
            },
            known(format!("{:.0}% {} {}", row.mostly_share * 100.0, row.mostly_part, row.mostly)),
        ]);
        table.row(cells);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run};
    use dprof_common::model::{KeepReason, RootKind, Span};

    fn spans() -> Vec<Span> {
        let mut spans = Vec::new();
        for n in 0..4_u64 {
            let id = 10 * (n + 1);
            let (trace, at) = (u128::from(id), n * 100_000);
            spans.push(rpc(id).trace(trace).of("web", "GET /").hosts("lb", "lb").at(at, 10_000).build());
            spans.push(
                rpc(id + 1)
                    .trace(trace)
                    .under(id)
                    .by("web")
                    .hosts("lb", if n == 0 { "db-2" } else { "db-1" })
                    .labels(if n == 0 { "r2" } else { "r1" }, "dc1")
                    .at(at + 2_500, 5_000)
                    .build(),
            );
        }
        let mut lost = rpc(99).trace(99).at(9, 700).build();
        lost.root = Some(RootKind::Unlinked);
        spans.push(lost);
        spans
    }

    #[test]
    fn stored_rpcs_group_by_host_and_rack() {
        let (_, out, words) = run(Memory::of(spans()), 100, "stats --by host,rack --service redis");
        assert_eq!(
            out,
            "\
HOST  RACK  COUNT      MIN      AVG      P50      P90      P99      MAX    TOTAL  REQUESTS
db-1  r1        4   700 us  3.92 ms  5.00 ms  5.00 ms  5.00 ms  5.00 ms  15.7 ms     308 B
db-2  r2        1  5.00 ms  5.00 ms  5.00 ms  5.00 ms  5.00 ms  5.00 ms  5.00 ms      77 B
"
        );
        assert!(words.contains("of 5 stored spans"), "{words}");
    }

    #[test]
    fn requests_over_whole_traces_keep_unlinked_roots_apart() {
        let (_, out, _) = run(Memory::of(spans()), 200, "stats --traces");
        assert_eq!(
            out,
            "\
ROOT      SERVICE  OPERATION  COUNT      MIN      AVG      P50      P90      P99      MAX    TOTAL  RPCS  IN CALLS  MOSTLY
edge      web      GET /          4  10.0 ms  10.0 ms  10.0 ms  10.0 ms  10.0 ms  10.0 ms  40.0 ms   2.0   5.00 ms  30% service redis GET
unlinked  redis    GET            1   700 us   700 us   700 us   700 us   700 us   700 us   700 us   1.0      0 ns  60% service redis GET
"
        );
        let (_, out, _) = run(Memory::of(spans()), 80, "stats --traces --format json");
        let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!(
            (&rows[0]["root"], &rows[0]["count"], &rows[0]["rpcs_per_trace"]),
            (&"edge".into(), &4.into(), &2.0.into())
        );
    }

    /// A request of 10 ms that triggers a call of 6 ms with parts of two others, which wait for it as well.
    #[track_caller]
    fn check_shared(args: &str, expected: [(&str, f64, u64); 2]) {
        let request = |id: u64, operation: &str| {
            rpc(id).trace(u128::from(id)).of("writer", operation).hosts("web-1", "web-1").at(0, 10_000)
        };
        let call = rpc(4).trace(1).under(1).and_under(2).and_under(3).by("writer").hosts("web-1", "db-1");
        let spans = vec![
            request(1, "FLUSH").build(),
            request(2, "SET").build(),
            request(3, "SET").build(),
            call.at(2_500, 6_000).build(),
        ];
        let args = format!("stats --traces --format json {args}");
        let (result, out, _) = run(Memory::of(spans), 80, &args);
        assert!(result.is_ok(), "{result:?}");
        let mut rows: Vec<serde_json::Value> = serde_json::from_str(&out).expect("json");
        rows.sort_by_key(|row| row["operation"].to_string());
        let shown: Vec<_> = rows
            .iter()
            .map(|row| {
                let (rpcs, ns) = (row["rpcs_per_trace"].as_f64(), row["calls_ns"].as_u64());
                (row["operation"].as_str().expect("text"), rpcs.expect("a number"), ns.expect("a number"))
            })
            .collect();
        assert_eq!(shown, expected, "{args}");
    }

    #[test]
    fn a_call_for_several_requests_counts_for_its_trigger_or_in_equal_shares() {
        check_shared("", [("FLUSH", 2.0, 6_000_000), ("SET", 1.0, 0)]);
        let third = 1.0 / 3.0;
        let expected = [("FLUSH", 1.0 + third, 2_000_000), ("SET", 1.0 + third, 2_000_000)];
        check_shared("--attribute submitter", expected);
    }

    #[test]
    fn of_sampled_traces_the_figures_say_how_far_they_may_be_off() {
        let mut spans = Vec::new();
        for n in 1..=400_u64 {
            let mut span = rpc(n).trace(u128::from(n)).hosts("lb", "lb").at(n, 100 + n).build();
            span.probability = if n % 2 == 0 { 0.01 } else { 1.0 };
            span.reason = if n % 2 == 0 { KeepReason::Ratio } else { KeepReason::Slow };
            spans.push(span);
        }
        let (_, out, _) = run(Memory::of(spans.clone()), 200, "stats --traces");
        assert!(
            out.contains("COUNT 99%") && out.contains("16,326 - 23,674") && out.contains("from "),
            "{out}"
        );
        let (_, out, _) = run(Memory::of(spans), 80, "stats --traces --format json");
        let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!(rows[0]["confidence"]["count"], serde_json::json!({ "low": 16_326, "high": 23_674 }));
        assert_eq!(rows[0]["confidence"]["p99_ns"]["high"], serde_json::Value::Null);
    }

    #[test]
    fn nothing_stored_is_an_empty_array() {
        for args in ["stats --traces", "stats --by host"] {
            let (result, out, _) = run(Memory::of(spans()), 80, &format!("{args} --since 1m --format json"));
            assert!(result.is_ok());
            assert_eq!(out, "[]\n");
        }
    }
}
