//! `slowest-traces`, and what `fastest-traces` shares with it: whole traces, one line each.

use dprof_common::model::{RootKind, Span, SpanFlags};
use dprof_store::{Order, Reader, SpanQuery};

use super::slowest_spans::started;
use crate::analyse::whole::{TraceSummary, summary};
use crate::args::{Format, FormatArgs, SpanArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::load::{self, Window, short_id, shown_id};
use crate::render::table::{Cell, Column, Table};
use crate::render::{Tone, json};
use crate::{sample, units};

/// Where most roots are of another kind than asked for, so many are looked at before giving up.
const ROOTS_LOOKED_AT_MAX: usize = 50_000;

/// Lists the longest requests with what their traces hold: RPCs, services, failures, and where the time went.
///
/// The duration is that of the request, which its caller waited for. MOSTLY is the largest share of its critical
/// path. Roots whose cause was not found (unlinked) are no requests and are left out; --unlinked lists them alone.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    filters: SpanArgs,
    /// Instead of requests, calls whose cause was not found
    #[arg(long)]
    unlinked: bool,
    /// At most this many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    limit: u32,
    #[command(flatten)]
    output: FormatArgs,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    list(args, Order::Slowest, context).await
}

/// Lists traces in `order` of their requests' durations.
pub(super) async fn list(args: Args, order: Order, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let limit = args.limit as usize;
    let query = SpanQuery { roots_only: true, ..load::query(&window, &args.filters, order, limit) };
    let roots = roots(context, &*reader, query, args.unlinked).await?;
    let traces = sample::traces_of(context, &*reader, &roots).await?;
    let lines: Vec<TraceSummary> = traces.iter().filter_map(|spans| summary(spans)).collect();
    if lines.is_empty() {
        let filtered = args.unlinked || load::is_filtered(&args.filters);
        load::explain_nothing(context, &*reader, &window, &args.filters.names, filtered).await?;
        return if args.output.format == Format::Json {
            json::array::<TraceSummary>([], context.out)
        } else {
            Ok(())
        };
    }
    let which = if order == Order::Fastest { "fastest" } else { "slowest" };
    let more = if lines.len() == limit { "; --limit N shows more" } else { "" };
    let one = if lines.len() == 1 { "trace" } else { "traces" };
    let of = window.describe(context.now_unix_ns);
    context.say(&format!("the {} {which} {one} of {of}{more}", lines.len()));
    match args.output.format {
        Format::Json => json::array(&lines, context.out),
        Format::Table => table(&traces, &lines, context),
    }
}

/// Roots of the kind asked for, in the order of `query`, at most `query.limit`.
pub(super) async fn roots(
    context: &mut Context<'_>,
    reader: &dyn Reader,
    query: SpanQuery,
    unlinked: bool,
) -> Result<Vec<Span>, Failure> {
    let wanted = query.limit;
    let mut query = query;
    loop {
        let answer = reader.spans(&query).await?;
        let is_all = answer.rows.len() < query.limit || query.limit >= ROOTS_LOOKED_AT_MAX;
        let mut roots = answer.rows;
        roots.retain(|span| is_root(span, unlinked));
        if roots.len() >= wanted || is_all {
            context.warn(&answer.warnings);
            roots.truncate(wanted);
            return Ok(roots);
        }
        query.limit = query.limit.saturating_mul(4).min(ROOTS_LOOKED_AT_MAX);
    }
}

/// Whether `span` is a request, or, with `unlinked`, a call whose cause was not found.
pub(super) fn is_root(span: &Span, unlinked: bool) -> bool {
    let is_unlinked = span.root == Some(RootKind::Unlinked);
    span.link.is_none() && is_unlinked == unlinked && !span.flags.contains(SpanFlags::FRAGMENT)
}

fn table(traces: &[Vec<Span>], lines: &[TraceSummary], context: &mut Context<'_>) -> Result<(), Failure> {
    let mut table = Table::new([
        Column::number("DURATION", 0),
        Column::text("SERVICE", 0),
        Column::text("OPERATION", 0),
        Column::number("RPCS", 1),
        Column::number("ERRORS", 1),
        Column::text("MOSTLY", 0),
        Column::number("SERVICES", 6),
        Column::number("HOSTS", 6),
        Column::number("UNTIL LAST", 7),
        Column::whole("STARTED (UTC)", 4),
        Column::whole("TRACE", 0),
    ]);
    for (line, spans) in lines.iter().zip(traces) {
        let Some(first) = spans.first() else { continue };
        let mostly = format!(
            "{} {} {} {}",
            units::percent(line.mostly_ns, line.duration_ns),
            line.mostly_part,
            line.mostly_service,
            line.mostly_operation
        );
        let start = spans.iter().find(|span| span.span_id.as_root_trace() == first.trace_id).unwrap_or(first);
        table.row([
            units::duration(line.duration_ns).into(),
            line.service.as_str().into(),
            line.operation.as_str().into(),
            units::count(line.rpcs as u64).into(),
            if line.errors == 0 { Cell::default() } else { Cell::toned(line.errors.to_string(), Tone::Red) },
            mostly.into(),
            line.services.to_string().into(),
            line.hosts.to_string().into(),
            if line.extent_ns > line.duration_ns {
                units::duration(line.extent_ns).into()
            } else {
                Cell::default()
            },
            started(start.start_ns(), context).into(),
            shown_id(first.trace_id, context.screen.width).into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    if let Some(first) = traces.first().and_then(|spans| spans.first()) {
        let next = context.command(&format!("trace {}", short_id(first.trace_id)));
        context.say(&format!("next: {next}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run};
    use dprof_common::model::{RootKind, Span, Status};

    fn spans() -> Vec<Span> {
        let mut lost = rpc(7).trace(7).of("redis", "DEL").at(900, 80_000).build();
        lost.root = Some(RootKind::Unlinked);
        vec![
            rpc(1).trace(1).of("web", "GET /").by("curl").hosts("lb", "lb").at(0, 10_000).build(),
            rpc(2)
                .trace(1)
                .under(1)
                .by("web")
                .hosts("lb", "db")
                .at(2_500, 5_000)
                .status(Status::Error)
                .build(),
            rpc(4).trace(4).of("web", "POST /").by("curl").at(50, 2_000).build(),
            lost,
        ]
    }

    #[test]
    fn traces_are_listed_with_what_they_hold_and_unlinked_calls_apart() {
        let (_, out, words) = run(Memory::of(spans()), 100, "slowest-traces");
        assert_eq!(
            out,
            "\
DURATION  SERVICE  OPERATION  RPCS  ERRORS  MOSTLY                  STARTED (UTC)  TRACE
 10.0 ms  web      GET /         2       1  30% service redis GET   12:00:00.000   0000000000000001
 2.00 ms  web      POST /        1          60% service web POST /  12:00:00.000   0000000000000004
"
        );
        assert!(words.ends_with("next: dprof-cli trace 0000000000000001\n"), "{words}");
        let (_, out, _) = run(Memory::of(spans()), 80, "fastest-traces --limit 1 --format json");
        let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!((&rows[0]["operation"], &rows[0]["rpcs"]), (&"POST /".into(), &1.into()));
        assert_eq!(rows.as_array().map(Vec::len), Some(1));
        let (_, out, _) = run(Memory::of(spans()), 80, "slowest-traces --unlinked --format json");
        let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!((&rows[0]["operation"], &rows[0]["root"]), (&"DEL".into(), &"unlinked".into()));
        assert_eq!(rows.as_array().map(Vec::len), Some(1));
    }

    #[test]
    fn an_empty_window_says_so() {
        let (result, out, words) = run(Memory::of(spans()), 80, "slowest-traces --since 1m --format json");
        assert!(result.is_ok());
        assert_eq!(out, "[]\n");
        assert!(words.contains("try --since 10m"), "{words}");
    }
}
