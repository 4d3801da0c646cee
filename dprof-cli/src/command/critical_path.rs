//! `critical-path`: what one request waited for, or what the slowest requests waited for that usual ones do not.

use dprof_common::model::Span;
use dprof_store::{Order, Reader, SpanQuery};
use serde::Serialize;

use super::slowest_traces::{is_root, roots};
use crate::analyse::attribution::Attribution;
use crate::analyse::critical_path::critical_path;
use crate::analyse::path_profile::{PathRow, Profile, difference};
use crate::analyse::place::place;
use crate::analyse::tree::Tree;
use crate::args::{AttributeArgs, Format, FormatArgs, NameArgs, SpanArgs, WindowArgs, parse_id};
use crate::context::{Context, Failure};
use crate::load::{self, Window, short_id};
use crate::render::table::{Cell, Column, Table};
use crate::render::{Tone, json};
use crate::{sample, units};

/// Requests looked at to find the usual ones: their median is within 2 % of the true rank.
const MEDIAN_OF: usize = 3_000;

/// Rows of the table without --all: what explains less is noise.
const ROWS_SHOWN: usize = 12;

/// Shows what a request waited for, hop by hop and part by part; without an ID, where the slowest requests lose the
/// time that those around the median do not.
///
/// Critical path after CRISP (Zhang et al., USENIX ATC 2022): from the end of the request back, always the call that
/// returned last. Calls that nobody waited for (detached) are left out. Without an ID, requests of one operation are
/// compared, by default that of most of the slowest.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A trace id or the start of one, or a whole span id [default: the slowest against the median]
    #[arg(value_parser = parse_id, value_name = "ID", conflicts_with_all = ["since", "until", "service", "operation", "slowest"])]
    id: Option<String>,
    #[command(flatten)]
    window: WindowArgs,
    /// Only requests to this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only requests of this operation
    #[arg(long, value_name = "NAME")]
    operation: Option<String>,
    /// How many of the slowest requests, and as many around the median
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000), value_name = "N")]
    slowest: u32,
    /// Show every row
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    attribute: AttributeArgs,
    #[command(flatten)]
    output: FormatArgs,
}

/// A stretch of the path for programs.
#[derive(Serialize)]
struct StepRow<'a> {
    span_id: String,
    service: &'a str,
    operation: &'a str,
    host: &'a str,
    part: &'static str,
    /// After the request's start, as drawn.
    start_ns: i64,
    duration_ns: u64,
    depth: usize,
}

/// One trace's path for programs.
#[derive(Serialize)]
struct Path<'a> {
    trace_id: String,
    duration_ns: u64,
    steps: Vec<StepRow<'a>>,
}

/// Two sets for programs.
#[derive(Serialize)]
struct Comparison {
    service: String,
    operation: String,
    slow_requests: u64,
    slow_avg_ns: u64,
    usual_requests: u64,
    usual_avg_ns: u64,
    rows: Vec<PathRow>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let reader = context.reader().await?;
    match &args.id {
        Some(id) => one(id, &args, context, &*reader).await,
        None => slow_against_usual(&args, context, &*reader).await,
    }
}

async fn one(id: &str, args: &Args, context: &mut Context<'_>, reader: &dyn Reader) -> Result<(), Failure> {
    let trace_id = load::resolve_trace(context, reader, id).await?;
    let mut answer = reader.trace(trace_id).await?;
    context.warn(&answer.warnings);
    if args.attribute.attribute == Attribution::Submitter {
        let windows = sample::at_work(&answer.rows);
        sample::submitted(context, reader, &windows, std::slice::from_mut(&mut answer.rows)).await?;
    }
    let tree = Tree::new(&answer.rows);
    let Some(root) = tree.request() else {
        return Err(Failure::NotFound(format!(
            "no spans of trace {}: it expired while it was looked up; dprof-cli slowest-traces lists those there are",
            short_id(trace_id)
        )));
    };
    let placed = place(&tree);
    let steps: Vec<StepRow<'_>> = critical_path(&tree, &placed, root)
        .into_iter()
        .filter_map(|step| {
            let node = &tree.nodes[step.idx];
            let near = node.span.nearest()?;
            Some(StepRow {
                span_id: node.span.span_id.to_string(),
                service: &near.process.service,
                operation: &near.operation,
                host: &near.host.host,
                part: step.part.name(),
                start_ns: step.start - placed[root].start,
                duration_ns: step.ns(),
                depth: node.depth,
            })
        })
        .collect();
    let duration_ns = tree.nodes[root].span.duration_ns();
    if args.output.format == Format::Json {
        let path = Path { trace_id: trace_id.to_string(), duration_ns, steps };
        return json::document("critical_path", &path, context.out);
    }
    context.say(&format!("critical path of trace {}, {}", short_id(trace_id), units::duration(duration_ns)));
    let mut table = Table::new([
        Column::number("AT", 0),
        Column::number("FOR", 0),
        Column::number("SHARE", 0),
        Column::whole("PART", 0),
        Column::text("HOP", 0),
        Column::text("HOST", 1),
        Column::whole("SPAN", 5),
    ]);
    for step in &steps {
        let share = units::percent(step.duration_ns, duration_ns);
        let is_large = step.duration_ns * 4 >= duration_ns;
        table.row([
            units::signed_duration(step.start_ns).into(),
            Cell::toned(units::duration(step.duration_ns), if is_large { Tone::Bold } else { Tone::Plain }),
            share.into(),
            step.part.into(),
            format!("{}{} {}", "  ".repeat(step.depth.min(8)), step.service, step.operation).into(),
            step.host.into(),
            step.span_id.as_str().into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

/// Requests to compare: the slowest, and as many around the median.
pub(super) struct Sets {
    pub(super) service: String,
    pub(super) operation: String,
    pub(super) slow: Vec<Span>,
    pub(super) usual: Vec<Span>,
}

/// Finds both sets; `None` if there are no requests. Without a name the operation of most of the slowest is taken.
pub(super) async fn sets(
    context: &mut Context<'_>,
    reader: &dyn Reader,
    window: &Window,
    names: &NameArgs,
    n: usize,
) -> Result<Option<Sets>, Failure> {
    let filters = SpanArgs { names: names.clone(), ..SpanArgs::default() };
    let query = |filters: &SpanArgs, order, limit| SpanQuery {
        roots_only: true,
        ..load::query(window, filters, order, limit)
    };
    let slow = roots(context, reader, query(&filters, Order::Slowest, n), false).await?;
    let mut kinds = std::collections::BTreeMap::new();
    for near in slow.iter().filter_map(Span::nearest) {
        *kinds.entry((near.process.service.clone(), near.operation.clone())).or_insert(0) += 1;
    }
    let Some(((service, operation), _)) = kinds.into_iter().max_by_key(|(_, n)| *n) else { return Ok(None) };
    let filters = SpanArgs {
        names: NameArgs { service: Some(service.clone()), operation: Some(operation.clone()), kind: None },
        ..SpanArgs::default()
    };
    let slow = roots(context, reader, query(&filters, Order::Slowest, n), false).await?;
    let mut usual = sample::spread(context, reader, &query(&filters, Order::Newest, 0), MEDIAN_OF).await?;
    usual.retain(|span| is_root(span, false));
    usual.sort_by_key(Span::duration_ns);
    let half = (n / 2).min(usual.len() / 2);
    let middle = usual.len() / 2;
    let usual = usual[middle - half..(middle + half.max(1)).min(usual.len())].to_vec();
    Ok(Some(Sets { service, operation, slow, usual }))
}

async fn slow_against_usual(
    args: &Args,
    context: &mut Context<'_>,
    reader: &dyn Reader,
) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let names = NameArgs { service: args.service.clone(), operation: args.operation.clone(), kind: None };
    let Some(sets) = sets(context, reader, &window, &names, args.slowest as usize).await? else {
        let filtered = names.service.is_some() || names.operation.is_some();
        load::explain_nothing(context, reader, &window, &names, filtered).await?;
        return Ok(());
    };
    let (mut slow, mut usual) = (Profile::default(), Profile::default());
    for (profile, spans) in [(&mut slow, &sets.slow), (&mut usual, &sets.usual)] {
        let mut traces = sample::traces_of(context, reader, spans).await?;
        if args.attribute.attribute == Attribution::Submitter {
            let bounds = [(window.since_unix_ns, window.until_unix_ns)];
            sample::submitted(context, reader, &bounds, &mut traces).await?;
        }
        traces.iter().for_each(|trace| profile.add_spans(trace));
    }
    let rows = difference(&slow, &usual);
    context.say(&format!(
        "{} {}: the {} slowest requests of {} take {} on average, {} around the median {}",
        sets.service,
        sets.operation,
        slow.requests,
        window.describe(context.now_unix_ns),
        units::duration(slow.avg_ns()),
        usual.requests,
        units::duration(usual.avg_ns()),
    ));
    if args.output.format == Format::Json {
        let comparison = Comparison {
            service: sets.service,
            operation: sets.operation,
            slow_requests: slow.requests,
            slow_avg_ns: slow.avg_ns(),
            usual_requests: usual.requests,
            usual_avg_ns: usual.avg_ns(),
            rows,
        };
        return json::document("critical_path_comparison", &comparison, context.out);
    }
    table(&rows, args.all, context)?;
    if let Some(span) = sets.slow.first() {
        let next = context.command(&format!("critical-path {}", short_id(span.trace_id)));
        context.say(&format!("next: {next}"));
    }
    Ok(())
}

fn table(rows: &[PathRow], all: bool, context: &mut Context<'_>) -> Result<(), Failure> {
    let mut table = Table::new([
        Column::number("ADDED", 0),
        Column::number("SHARE", 0),
        Column::whole("PART", 0),
        Column::text("HOP", 0),
        Column::number("SLOW", 1),
        Column::number("USUAL", 1),
        Column::text("HOST", 2),
        Column::number("CALLS", 3),
        Column::number("USUALLY", 3),
    ]);
    let mut ranked: Vec<&PathRow> = rows.iter().collect();
    ranked.sort_by_key(|row| std::cmp::Reverse(row.added_ns.unsigned_abs()));
    let shown = if all { ranked.len() } else { ranked.len().min(ROWS_SHOWN) };
    for row in &ranked[..shown] {
        let host = if row.host_share < 0.995 {
            format!("{} ({:.0}%)", row.host, row.host_share * 100.0)
        } else {
            row.host.clone()
        };
        table.row([
            Cell::toned(
                units::signed_duration(row.added_ns),
                if row.added_share >= 0.25 { Tone::Bold } else { Tone::Plain },
            ),
            format!("{:.0}%", row.added_share * 100.0).into(),
            row.part.into(),
            format!("{} {}", row.service, row.operation).into(),
            units::duration(row.slow_ns).into(),
            units::duration(row.usual_ns).into(),
            host.into(),
            format!("{:.1}", row.slow_calls).into(),
            format!("{:.1}", row.usual_calls).into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    if shown < ranked.len() {
        context.say(&format!("{} smaller rows are not shown: --all shows them", ranked.len() - shown));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, gathered, rpc, run};
    use dprof_common::model::Span;

    /// A hundred requests of 1 ms, each with a call of 300 us; the last five with one of 20 ms on db-3.
    fn spans() -> Vec<Span> {
        let mut spans = Vec::new();
        for n in 0..100_u64 {
            let id = 10 * (n + 1);
            let is_slow = n >= 95;
            let (call_us, host) = if is_slow { (20_000, "db-3") } else { (300, "db-1") };
            let trace = u128::from(id);
            spans.push(
                rpc(id)
                    .trace(trace)
                    .of("web", "GET /")
                    .hosts("lb", "lb")
                    .at(n * 1_000_000, if is_slow { 40_000 } else { 1_000 })
                    .build(),
            );
            let start_us = n * 1_000_000 + if is_slow { 9_000 } else { 250 };
            spans.push(
                rpc(id + 1).trace(trace).under(id).by("web").hosts("lb", host).at(start_us, call_us).build(),
            );
        }
        spans
    }

    #[test]
    fn the_slowest_are_held_against_the_median() {
        let (result, out, words) = run(Memory::of(spans()), 100, "critical-path --slowest 5");
        assert!(result.is_ok(), "{result:?}");
        assert!(
            words.starts_with("web GET /: the 5 slowest requests of the last 1h 00m")
                && words.contains("take 40.0 ms on average, 4 around the median 1.00 ms"),
            "{words}"
        );
        let first: Vec<&str> = out.lines().nth(1).expect("a row").split_whitespace().collect();
        // 60 % of the call's 20 ms against 60 % of 300 us, of 39 ms in all.
        assert_eq!(first[..6], ["11.8", "ms", "30%", "service", "redis", "GET"]);
        assert!(out.lines().nth(1).expect("a row").contains("db-3"), "{out}");
        let (_, out, _) = run(Memory::of(spans()), 80, "critical-path --slowest 5 --format json");
        let document: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!(document["rows"][0]["added_ns"], 12_000_000 - 180_000);
        assert_eq!((&document["slow_avg_ns"], &document["usual_requests"]), (&40_000_000.into(), &4.into()));
        let added: i64 = document["rows"]
            .as_array()
            .expect("rows")
            .iter()
            .map(|r| r["added_ns"].as_i64().expect("a number"))
            .sum();
        assert_eq!(added, 39_000_000);
    }

    #[test]
    fn one_trace_is_shown_step_by_step() {
        let (_, out, words) = run(Memory::of(spans()), 100, "critical-path 0000000000000014");
        assert_eq!(words.lines().last(), Some("critical path of trace 0000000000000014, 1.00 ms"));
        let row = out.lines().find(|line| line.contains("redis")).expect("the call is on it");
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(
            words,
            ["250", "us", "6.00", "us", "<1%", "send", "redis", "GET", "db-1", "0000000000000015"]
        );
        let (_, out, _) = run(Memory::of(spans()), 80, "critical-path 0000000000000014 --format json");
        let document: serde_json::Value = serde_json::from_str(&out).expect("json");
        let sum: u64 = document["steps"]
            .as_array()
            .expect("steps")
            .iter()
            .map(|s| s["duration_ns"].as_u64().expect("a number"))
            .sum();
        assert_eq!(sum, 1_000_000);
    }

    /// Service time of the writer and of redis on the path of a request, milliseconds.
    #[track_caller]
    fn check_gathered(args: &str, expected: (f64, f64)) {
        let (result, out, _) =
            run(Memory::of(gathered()), 80, &format!("critical-path {args} --format json"));
        assert!(result.is_ok(), "{result:?}");
        let document: serde_json::Value = serde_json::from_str(&out).expect("json");
        let steps = document["steps"].as_array().expect("steps");
        let of = |service: &str| {
            let its = steps.iter().filter(|step| step["service"] == service && step["part"] == "service");
            its.map(|step| step["duration_ns"].as_f64().expect("a number")).sum::<f64>() / 1e6
        };
        assert_eq!((of("writer"), of("redis")), expected, "{args}");
    }

    #[test]
    fn deferred_work_is_on_the_path_of_who_triggered_it_or_of_all_who_submitted_a_part() {
        // Of 40 ms the writer serves 60 %; by submitter it waits 4 ms of them for redis, of which 60 % is its service.
        check_gathered("0000000000000001", (24.0, 0.0));
        check_gathered("0000000000000001 --attribute submitter", (20.0, 2.4));
        check_gathered("0000000000000002", (14.0, 2.4));
        check_gathered("0000000000000002 --attribute submitter", (14.0, 2.4));
    }

    #[test]
    fn unknown_names_and_traces_are_told() {
        let (result, ..) = run(Memory::of(spans()), 80, "critical-path --service wbe");
        assert!(result.expect_err("unknown").to_string().contains("did you mean 'web'?"));
        let (result, ..) = run(Memory::of(spans()), 80, "critical-path ffff");
        assert_eq!(result.expect_err("unknown").exit_code(), 3);
    }
}
