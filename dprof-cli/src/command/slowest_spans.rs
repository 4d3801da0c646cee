//! `slowest-spans`: the longest RPCs of a window or of one trace.

use dprof_common::model::Span;
use dprof_store::Order;

use crate::analyse::latency;
use crate::analyse::row::SpanRow;
use crate::args::{Format, FormatArgs, SpanArgs, WindowArgs, parse_id};
use crate::context::{Context, Failure};
use crate::load::{self, Window, short_id, shown_id};
use crate::render::table::{Cell, Column, Table};
use crate::render::{Tone, json};
use crate::units;

/// From this width on, a start on another day is shown to the millisecond.
const MILLISECONDS_COLUMNS: usize = 120;

/// Lists the longest RPCs, one row each: who served it, what it was, where most of the time went.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only of this trace (an id or the start of one); the window does not apply
    #[arg(long, value_parser = parse_id, value_name = "ID", conflicts_with_all = ["since", "until"])]
    trace: Option<String>,
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    filters: SpanArgs,
    /// At most this many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    limit: u32,
    #[command(flatten)]
    output: FormatArgs,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let limit = args.limit as usize;
    let (spans, of) = if let Some(id) = &args.trace {
        let trace_id = load::resolve_trace(context, &*reader, id).await?;
        let answer = reader.trace(trace_id).await?;
        context.warn(&answer.warnings);
        let mut spans = answer.rows;
        spans.retain(|span| load::passes(span, &args.filters));
        spans.sort_by_key(|span| std::cmp::Reverse(span.duration_ns()));
        spans.truncate(limit);
        (spans, format!("of trace {}", short_id(trace_id)))
    } else {
        let query = load::query(&window, &args.filters, Order::Slowest, limit);
        let answer = reader.spans(&query).await?;
        context.warn(&answer.warnings);
        (answer.rows, format!("of {}", window.describe(context.now_unix_ns)))
    };
    if spans.is_empty() {
        let outcome = if args.trace.is_some() {
            context.say(&format!("nothing found {of} with these filters"));
            Ok(())
        } else {
            let filtered = load::is_filtered(&args.filters);
            load::explain_nothing(context, &*reader, &window, &args.filters.names, filtered).await
        };
        if args.output.format == Format::Json && outcome.is_ok() {
            json::array::<SpanRow<'_>>([], context.out)?;
        }
        return outcome;
    }
    let more = if spans.len() == limit { "; --limit N shows more" } else { "" };
    let one = if spans.len() == 1 { "span" } else { "spans" };
    context.say(&format!("the {} slowest {one} {of}{more}", spans.len()));
    match args.output.format {
        Format::Json => json::array(spans.iter().filter_map(SpanRow::new), context.out),
        Format::Table => table(&spans, context),
    }
}

fn table(spans: &[Span], context: &mut Context<'_>) -> Result<(), Failure> {
    let mut table = Table::new([
        Column::number("DURATION", 0),
        Column::text("SERVICE", 0),
        Column::text("OPERATION", 0),
        Column::text("STATUS", 1),
        Column::whole("MOSTLY", 2),
        Column::text("HOST", 5),
        Column::text("CALLER", 6),
        Column::text("STATEMENT", 8),
        Column::text("DOUBTS", 4),
        Column::whole("STARTED (UTC)", 3),
        Column::whole("SPAN", 9),
        Column::whole("TRACE", 0),
    ]);
    for span in spans {
        let Some(row) = SpanRow::new(span) else { continue };
        let mostly = latency::largest(span).map_or(String::new(), |(part, ns)| {
            format!("{} {}", part.name(), units::percent(ns, row.duration_ns))
        });
        let caller = match (row.caller_service, row.caller_host) {
            (Some(service), Some(host)) if host != row.host => format!("{service} on {host}"),
            (Some(service), _) => service.to_owned(),
            _ => row.peer.clone(),
        };
        table.row([
            units::duration(row.duration_ns).into(),
            row.service.into(),
            row.operation.into(),
            failure_cell(&row),
            mostly.into(),
            row.host.into(),
            caller.into(),
            row.query_text.unwrap_or_default().into(),
            Cell::toned(row.flags.join(" "), Tone::Yellow),
            started(row.start_time, context).into(),
            row.span_id.as_str().into(),
            shown_id(span.trace_id, context.screen.width).into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    if let Some(span) = spans.first() {
        let next = context.command(&format!("trace {}", short_id(span.trace_id)));
        context.say(&format!("next: {next}"));
    }
    Ok(())
}

/// What went wrong, empty if nothing did: a column of `ok` tells nothing.
pub(super) fn failure_cell(row: &SpanRow<'_>) -> Cell {
    match (row.status, row.status_code) {
        ("ok", _) => Cell::default(),
        (status @ ("unknown" | "one_way"), _) => Cell::toned(status, Tone::Dim),
        (status, Some(code)) => Cell::toned(format!("{status} {code}"), Tone::Red),
        (status, None) => Cell::toned(status, Tone::Red),
    }
}

/// The time of day; with the date if that is another than today's, then on a narrow screen to the second.
pub(super) fn started(unix_ns: u64, context: &Context<'_>) -> String {
    let mut text = units::date_time(unix_ns);
    match (text.split_once(' '), units::date_time(context.now_unix_ns).split_once(' ')) {
        (Some((date, time)), Some((today, _))) if date == today => time.to_owned(),
        _ => {
            if context.screen.width.is_some_and(|width| width < MILLISECONDS_COLUMNS) {
                text.truncate("2026-11-03 12:00:00".len());
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run};
    use dprof_common::model::{HalfFlags, Span, Status};

    fn spans() -> Vec<Span> {
        let mut doubtful =
            rpc(3).trace(3).of("redis-server", "MGET").query("mget a b c").at(500_000, 250).build();
        doubtful.client.as_mut().expect("seen").flags = HalfFlags::INCOMPLETE;
        vec![
            rpc(1)
                .trace(1)
                .of("nutcracker", "GET")
                .by("redis-benchmark")
                .server_only()
                .at(1_000, 104_200)
                .build(),
            rpc(2)
                .trace(0xabcd_0000_0000_0000_0000_0000_0000_0002)
                .status(Status::Timeout)
                .at(2_000, 90_000)
                .build(),
            doubtful,
        ]
    }

    #[track_caller]
    fn check(width: usize, args: &str, expected: &str) {
        let (result, out, _) = run(Memory::of(spans()), width, &format!("slowest-spans {args}"));
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(out, expected);
    }

    #[test]
    fn the_table_fits_80_columns_and_keeps_trace_ids_whole() {
        check(
            80,
            "",
            "\
DURATION  SERVICE       OPERATION  STATUS   MOSTLY       TRACE
 90.0 ms  redis         GET        timeout  service 60%  abcd000000000000
 85.4 ms  nutcracker    GET                 service 73%  0000000000000001
  250 us  redis-server  MGET                service 60%  0000000000000003
",
        );
    }

    #[test]
    fn the_table_uses_200_columns() {
        check(
            200,
            "",
            "\
DURATION  SERVICE       OPERATION  STATUS   MOSTLY       HOST  CALLER           STATEMENT   DOUBTS      STARTED (UTC)  SPAN              TRACE
 90.0 ms  redis         GET        timeout  service 60%  db-1  client on web-1  get a                   12:00:00.002   0000000000000002  abcd0000000000000000000000000002
 85.4 ms  nutcracker    GET                 service 73%  db-1  10.0.0.1:40001   get a                   12:00:05.009   0000000000000001  0000000000000001
  250 us  redis-server  MGET                service 60%  db-1  client on web-1  mget a b c  incomplete  12:00:00.500   0000000000000003  0000000000000003
",
        );
    }

    #[test]
    fn filters_and_limits_apply_also_within_a_trace() {
        for (args, expected) in [
            ("--limit 2", vec![2, 1]),
            ("--service redis", vec![2]),
            ("--operation MGET", vec![3]),
            ("--status timeout", vec![2]),
            ("--min-duration 85ms", vec![2, 1]),
            ("--min-duration 90ms", vec![2]),
            ("--min-duration 90000001ns", vec![]),
            ("--kind client", vec![]),
            ("--trace 0000000000000003", vec![3]),
            ("--trace 0000000000000003 --service redis", vec![]),
        ] {
            let (_, out, _) = run(Memory::of(spans()), 80, &format!("slowest-spans --format json {args}"));
            let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
            let ids: Vec<u64> = rows
                .as_array()
                .expect("an array")
                .iter()
                .map(|row| u64::from_str_radix(row["span_id"].as_str().expect("text"), 16).expect("hex"))
                .collect();
            assert_eq!(ids, expected, "{args}");
        }
    }

    #[test]
    fn the_window_and_the_next_step_are_said_beside_the_data() {
        let (_, _, words) = run(Memory::of(spans()), 80, "slowest-spans --limit 1");
        assert_eq!(
            words,
            "the 1 slowest span of the last 1h 00m (since 2026-11-03 11:10:00.000 UTC); --limit N shows more\n\
             next: dprof-cli trace abcd0000000000000000000000000002\n"
        );
    }
}
