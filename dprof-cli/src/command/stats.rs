//! `stats`: counts and latencies per service and operation, of everything seen before any sampling; by other fields
//! and over whole traces, of what is stored.

use dprof_common::model::Rollup;
use dprof_store::{Reader, RollupQuery};

use super::stats_by;
use crate::analyse::attribution::Attribution;
use crate::analyse::group::Field;
use crate::analyse::stats::{SortBy, StatRow, merge, rows};
use crate::args::{Format, FormatArgs, NameArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::load::{self, Window};
use crate::render::table::{Cell, Column, Table};
use crate::render::{Tone, json};
use crate::units;

/// Shows counts, failures and latencies per service, operation and kind, of everything seen.
///
/// Rows of kind server are requests that the service answered, of kind client calls that it made: an RPC between two
/// watched services is in one of each. Whole minutes count. Percentiles are within 1 %; minimum, mean and
/// maximum are exact. With --by or --traces the figures stand on stored spans instead, weighted by the keep
/// probability.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) window: WindowArgs,
    #[command(flatten)]
    pub(super) names: NameArgs,
    /// Largest first by total, count, errors, avg, p50, p99 or max; or by name
    #[arg(long, value_enum, default_value_t = SortBy::Total, value_name = "COLUMN", hide_possible_values = true)]
    pub(super) sort: SortBy,
    /// At most this many rows [default: all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    pub(super) limit: Option<u32>,
    /// Group stored RPCs by any of service, operation, peer, host, rack, dc, status
    #[arg(long, value_enum, value_delimiter = ',', value_name = "FIELDS", hide_possible_values = true)]
    by: Vec<Field>,
    /// Per kind of request over whole traces: RPCs per trace, failures anywhere, where the time goes
    #[arg(long, conflicts_with = "by")]
    traces: bool,
    /// With --traces: charge a call that serves several requests to the one that triggered it, or to each submitter of
    /// a part, in equal shares [default: trigger]
    #[arg(
        long,
        value_enum,
        requires = "traces",
        value_name = "trigger|submitter",
        hide_possible_values = true
    )]
    pub(super) attribute: Option<Attribution>,
    #[command(flatten)]
    pub(super) output: FormatArgs,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    if args.traces {
        return stats_by::traces(&args, context).await;
    }
    if !args.by.is_empty() {
        return stats_by::grouped(&args, args.by.clone(), context).await;
    }
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let rollups = load_sums(context, &*reader, &window, &args.names).await?;
    let mut rows = rows(&merge(&rollups, args.names.kind), args.sort);
    if rows.is_empty() {
        return nothing(context, &*reader, &window, &args.names, args.output.format).await;
    }
    let all = rows.len();
    rows.truncate(args.limit.map_or(usize::MAX, |limit| limit as usize));
    let cut = if rows.len() < all { format!("; {} of {all} rows", rows.len()) } else { String::new() };
    context.say(&format!("{} (whole minutes){cut}", window.describe(context.now_unix_ns)));
    match args.output.format {
        Format::Json => json::array(&rows, context.out),
        Format::Table => table(&rows, context),
    }
}

fn query(window: &Window, names: &NameArgs) -> RollupQuery {
    RollupQuery {
        since_unix_ns: window.since_unix_ns,
        until_unix_ns: window.until_unix_ns,
        service: names.service.clone(),
        operation: names.operation.clone(),
    }
}

/// Rollups of the window, by the minute; also what `services` and `operations` list.
pub(super) async fn load_rollups(
    context: &mut Context<'_>,
    reader: &dyn Reader,
    window: &Window,
    names: &NameArgs,
) -> Result<Vec<Rollup>, Failure> {
    let answer = reader.rollups(&query(window, names)).await?;
    context.warn(&answer.warnings);
    Ok(answer.rows)
}

/// The same counts in as few rows as the store has them.
async fn load_sums(
    context: &mut Context<'_>,
    reader: &dyn Reader,
    window: &Window,
    names: &NameArgs,
) -> Result<Vec<Rollup>, Failure> {
    let answer = reader.rollup_sums(&query(window, names)).await?;
    context.warn(&answer.warnings);
    Ok(answer.rows)
}

/// Says why there are no rows; programs get their empty array.
pub(super) async fn nothing(
    context: &mut Context<'_>,
    reader: &dyn Reader,
    window: &Window,
    names: &NameArgs,
    format: Format,
) -> Result<(), Failure> {
    let filtered = names.service.is_some() || names.operation.is_some() || names.kind.is_some();
    load::explain_nothing(context, reader, window, names, filtered).await?;
    if format == Format::Json { json::array::<StatRow>([], context.out) } else { Ok(()) }
}

/// A count of failures: blank if none, so that the eye finds the others.
pub(super) fn errors_cell(errors: u64, count: u64) -> Cell {
    if errors == 0 {
        Cell::default()
    } else {
        Cell::toned(format!("{} ({})", units::count(errors), units::percent(errors, count)), Tone::Red)
    }
}

fn table(rows: &[StatRow], context: &mut Context<'_>) -> Result<(), Failure> {
    let mut table = Table::new([
        Column::text("SERVICE", 0),
        Column::text("OPERATION", 0),
        Column::whole("KIND", 0),
        Column::number("COUNT", 0),
        Column::number("ERRORS", 0),
        Column::number("MIN", 4),
        Column::number("AVG", 3),
        Column::number("P50", 0),
        Column::number("P90", 2),
        Column::number("P99", 0),
        Column::number("MAX", 1),
        Column::number("TOTAL", 5),
        Column::number("REQUESTS", 6),
        Column::number("RESPONSES", 7),
    ]);
    for row in rows {
        table.row([
            row.service.as_str().into(),
            row.operation.as_str().into(),
            row.kind.into(),
            units::count(row.count).into(),
            errors_cell(row.errors, row.count),
            units::duration(row.min_ns).into(),
            units::duration(row.avg_ns).into(),
            units::duration(row.p50_ns).into(),
            units::duration(row.p90_ns).into(),
            units::duration(row.p99_ns).into(),
            units::duration(row.max_ns).into(),
            units::duration(row.total_ns).into(),
            units::bytes(row.request_bytes).into(),
            units::bytes(row.response_bytes).into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run};
    use dprof_common::model::{Span, Status};

    fn spans() -> Vec<Span> {
        let mut spans: Vec<Span> = (1..=99)
            .map(|id| rpc(id).of("redis-server", "GET").by("nutcracker").at(id, 100 + id).build())
            .collect();
        spans.push(
            rpc(100).of("redis-server", "GET").by("nutcracker").status(Status::Error).at(7, 50_000).build(),
        );
        spans.push(rpc(101).of("redis-server", "SET").by("nutcracker").at(7, 99).build());
        spans
    }

    #[track_caller]
    fn check(width: usize, args: &str, expected: &str) {
        let (result, out, _) = run(Memory::of(spans()), width, &format!("stats {args}"));
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(out, expected);
    }

    #[test]
    fn the_table_fits_80_columns() {
        check(
            80,
            "",
            "\
SERVICE       OPERATION  KIND    COUNT  ERRORS      P50      P99      MAX
nutcracker    GET        client    100  1 (1%)   149 us   201 us  50.0 ms
redis-server  GET        server    100  1 (1%)   122 us   164 us  41.0 ms
nutcracker    SET        client      1          99.0 us  99.0 us  99.0 us
redis-server  SET        server      1          81.2 us  81.2 us  81.2 us
",
        );
    }

    #[test]
    fn the_table_uses_200_columns() {
        check(
            200,
            "--kind server",
            "\
SERVICE       OPERATION  KIND    COUNT  ERRORS      MIN      AVG      P50      P90      P99      MAX    TOTAL  REQUESTS  RESPONSES
redis-server  GET        server    100  1 (1%)  82.8 us   532 us   122 us   155 us   164 us  41.0 ms  53.2 ms   7.70 kB      500 B
redis-server  SET        server      1          81.2 us  81.2 us  81.2 us  81.2 us  81.2 us  81.2 us  81.2 us      77 B        5 B
",
        );
    }

    #[test]
    fn json_has_the_columns_that_programs_rely_on() {
        let (_, out, _) = run(Memory::of(spans()), 80, "stats --format json --kind server --sort count");
        let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
        let row = &rows[0];
        assert_eq!(row["service"], "redis-server");
        assert_eq!(row["operation"], "GET");
        assert_eq!(row["kind"], "server");
        assert_eq!(row["count"], 100);
        assert_eq!(row["errors"], 1);
        // 82 % of the client's duration is the server's.
        assert_eq!(row["min_ns"], 101 * 820);
        assert_eq!(row["max_ns"], 41_000_000);
        let (p50, p99) = (row["p50_ns"].as_u64().expect("number"), row["p99_ns"].as_u64().expect("number"));
        assert!((121_000..=126_000).contains(&p50), "{p50}");
        assert!((160_000..=165_000).contains(&p99), "{p99}");
        assert!(row["avg_ns"].is_u64() && row["p90_ns"].is_u64());
        assert_eq!(rows.as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn a_limit_says_what_it_cut() {
        let (_, _, words) = run(Memory::of(spans()), 80, "stats --limit 1");
        assert_eq!(
            words,
            "the last 1h 00m (since 2026-11-03 11:10:00.000 UTC) (whole minutes); 1 of 4 rows\n"
        );
    }
}
