//! `compare`: what the slow ones share, or what changed between two windows.

use dprof_common::model::Span;
use dprof_store::{Order, Reader};
use serde::Serialize;

use super::stats::load_rollups;
use crate::analyse::compare::{NumberRow, OperationChange, ValueRow, numbers, operations, shared_values};
use crate::analyse::estimate::weight;
use crate::args::{Format, FormatArgs, NameArgs, SpanArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::load::{self, Window};
use crate::render::table::{Cell, Column, Table};
use crate::render::{Tone, json};
use crate::sample;
use crate::units::{self, parse_duration, parse_when};

/// Rows of each table without --all.
const ROWS_SHOWN: usize = 10;

/// Shows what sets slow RPCs apart from the rest, or with --against what changed since an earlier window.
///
/// Values (operation, host, peer, key, size, …) are ranked by how many of the slow ones they explain: the
/// attributable fraction (Miettinen 1974) at the lower end of the odds ratio's 95 % interval (Woolf 1955). Parts and
/// sizes are ranked by the Kolmogorov-Smirnov statistic D between the groups. Operations of two windows are ranked by
/// the time that they add. Association is no cause.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    window: WindowArgs,
    /// Compare with this earlier window: FROM..TO in the forms of --since, such as 2h..1h
    #[arg(long, value_name = "FROM..TO")]
    against: Option<String>,
    #[command(flatten)]
    names: NameArgs,
    /// Slow = at least this long: 250us, 1.5ms [default: the slowest 5 %; with --against, 95 % of the earlier window are faster]
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    slower_than: Option<u64>,
    /// How many RPCs of each window to look at, spread over it
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(10..), value_name = "N")]
    sample: u32,
    /// Show every row
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    output: FormatArgs,
}

/// What is printed for programs.
#[derive(Serialize)]
struct Comparison {
    /// Slow = at least this long.
    threshold_ns: u64,
    slow: usize,
    rest: usize,
    values: Vec<ValueRow>,
    numbers: Vec<NumberRow>,
    /// Only between two windows.
    operations: Vec<OperationChange>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let earlier = args.against.as_deref().map(|text| earlier(text, context.now_unix_ns)).transpose()?;
    let reader = context.reader().await?;
    let now = sampled(&args, context, &*reader, &window).await?;
    let before = match &earlier {
        Some(earlier) => sampled(&args, context, &*reader, earlier).await?,
        None => Vec::new(),
    };
    if now.is_empty() || (earlier.is_some() && before.is_empty()) {
        let of = if now.is_empty() { &window } else { earlier.as_ref().unwrap_or(&window) };
        let filtered = args.names.service.is_some() || args.names.operation.is_some();
        return load::explain_nothing(context, &*reader, of, &args.names, filtered).await;
    }
    let threshold_ns = args.slower_than.unwrap_or_else(|| {
        let mut durations: Vec<u64> =
            (if earlier.is_some() { &before } else { &now }).iter().map(Span::duration_ns).collect();
        durations.sort_unstable();
        durations[durations.len() * 95 / 100].saturating_add(u64::from(earlier.is_some()))
    });
    let (slow, rest): (Vec<&Span>, Vec<&Span>) = now
        .iter()
        .filter(|span| span.duration_ns() >= threshold_ns || weight(span).is_some())
        .partition(|span| span.duration_ns() >= threshold_ns);
    // Parts: the slow against the rest, or all of now against all of before.
    let (group, other): (Vec<&Span>, Vec<&Span>) = match &earlier {
        None => (slow.clone(), rest.clone()),
        Some(_) => (now.iter().collect(), before.iter().collect()),
    };
    let mut comparison = Comparison {
        threshold_ns,
        slow: slow.len(),
        rest: rest.len(),
        values: shared_values(slow.iter().copied(), rest.iter().copied()),
        numbers: numbers(&group, &other),
        operations: Vec::new(),
    };
    if let Some(earlier) = &earlier {
        let of_now = load_rollups(context, &*reader, &window, &args.names).await?;
        let of_before = load_rollups(context, &*reader, earlier, &args.names).await?;
        let seconds = |window: &Window| {
            let until = window.until_unix_ns.min(context.now_unix_ns);
            until.saturating_sub(window.since_unix_ns) as f64 / 1e9
        };
        comparison.operations = operations((&of_now, seconds(&window)), (&of_before, seconds(earlier)));
    }
    say_groups(&comparison, &window, earlier.as_ref(), context);
    match args.output.format {
        Format::Json => json::document("compare", &comparison, context.out),
        Format::Table => tables(&comparison, earlier.is_some(), args.all, context),
    }
}

/// `FROM..TO` as a window.
fn earlier(text: &str, now_unix_ns: u64) -> Result<Window, Failure> {
    let wrong = |why: String| Failure::Usage(format!("--against '{text}': {why}"));
    let (from, to) =
        text.split_once("..").ok_or_else(|| wrong("write FROM..TO, such as 2h..1h".to_owned()))?;
    let time = |text: &str| parse_when(text).map(Some).map_err(|error| wrong(error.to_string()));
    Window::new(WindowArgs { since: time(from)?, until: time(to)? }, now_unix_ns)
}

async fn sampled(
    args: &Args,
    context: &mut Context<'_>,
    reader: &dyn Reader,
    window: &Window,
) -> Result<Vec<Span>, Failure> {
    let filters = SpanArgs { names: args.names.clone(), ..SpanArgs::default() };
    let query = load::query(window, &filters, Order::Newest, 0);
    sample::spread(context, reader, &query, args.sample as usize).await
}

fn say_groups(comparison: &Comparison, window: &Window, earlier: Option<&Window>, context: &mut Context<'_>) {
    let now = context.now_unix_ns;
    let against = earlier.map_or(String::new(), |earlier| format!(", against {}", earlier.describe(now)));
    context.say(&format!(
        "{}{against}: {} RPCs of at least {}, {} others",
        window.describe(now),
        units::count(comparison.slow as u64),
        units::duration(comparison.threshold_ns),
        units::count(comparison.rest as u64)
    ));
}

fn tables(
    comparison: &Comparison,
    two_windows: bool,
    all: bool,
    context: &mut Context<'_>,
) -> Result<(), Failure> {
    let shown = |n: usize| if all { n } else { n.min(ROWS_SHOWN) };
    if two_windows {
        operation_table(&comparison.operations[..shown(comparison.operations.len())], context)?;
        writeln!(context.out)?;
    }
    if comparison.values.is_empty() {
        context.say("no value sets the slow ones apart");
    } else {
        value_table(&comparison.values[..shown(comparison.values.len())], context)?;
    }
    if !comparison.numbers.is_empty() {
        if !comparison.values.is_empty() || two_windows {
            writeln!(context.out)?;
        }
        number_table(&comparison.numbers[..shown(comparison.numbers.len())], two_windows, context)?;
    }
    Ok(())
}

fn share(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

fn value_table(rows: &[ValueRow], context: &mut Context<'_>) -> Result<(), Failure> {
    let mut table = Table::new([
        Column::number("EXPLAINS", 0),
        Column::text("FIELD", 0),
        Column::text("VALUE", 0),
        Column::number("SLOW", 1),
        Column::number("", 0),
        Column::number("REST", 1),
        Column::number("", 0),
        Column::number("ODDS", 2),
    ]);
    for row in rows {
        table.row([
            Cell::toned(share(row.explains), if row.explains >= 0.5 { Tone::Bold } else { Tone::Plain }),
            row.field.into(),
            row.value.as_str().into(),
            units::count(row.slow).into(),
            share(row.slow_share).into(),
            units::count(row.rest).into(),
            share(row.rest_share).into(),
            format!("{:.1}", row.odds_ratio).into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

fn number_table(rows: &[NumberRow], two_windows: bool, context: &mut Context<'_>) -> Result<(), Failure> {
    let [first, second, first_mean, second_mean] = if two_windows {
        ["NOW P50", "BEFORE P50", "NOW AVG", "BEFORE AVG"]
    } else {
        ["SLOW P50", "REST P50", "SLOW AVG", "REST AVG"]
    };
    let mut table = Table::new([
        Column::number("D", 0),
        Column::whole("PART OR SIZE", 0),
        Column::number(first, 0),
        Column::number(second, 0),
        Column::number(first_mean, 2),
        Column::number(second_mean, 2),
    ]);
    for row in rows {
        let name = row.number.trim_end_matches("_ns").trim_end_matches("_us").replace('_', " ");
        let shown = |value: i64| {
            if row.number.ends_with("_ns") {
                units::signed_duration(value)
            } else if row.number.ends_with("_us") {
                units::signed_duration(value.saturating_mul(1_000))
            } else if row.number.ends_with("bytes") {
                units::bytes(value.max(0) as u64)
            } else {
                value.to_string()
            }
        };
        table.row([
            format!("{:.2}", row.ks).into(),
            name.into(),
            shown(row.slow_median).into(),
            shown(row.rest_median).into(),
            shown(row.slow_mean.round() as i64).into(),
            shown(row.rest_mean.round() as i64).into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

fn operation_table(rows: &[OperationChange], context: &mut Context<'_>) -> Result<(), Failure> {
    let mut table = Table::new([
        Column::number("ADDED", 0),
        Column::text("SERVICE", 0),
        Column::text("OPERATION", 0),
        Column::whole("KIND", 3),
        Column::number("RATE", 2),
        Column::number("WAS", 2),
        Column::number("P50", 1),
        Column::number("WAS", 1),
        Column::number("P99", 0),
        Column::number("WAS", 0),
        Column::number("ERRORS", 4),
        Column::number("WAS", 4),
    ]);
    let errors = |share: f64| {
        if share > 0.0 { Cell::toned(format!("{:.2}%", share * 100.0), Tone::Red) } else { Cell::default() }
    };
    for row in rows {
        table.row([
            format!("{}/s", units::signed_duration(row.added_ns_per_s.round() as i64)).into(),
            row.service.as_str().into(),
            row.operation.as_str().into(),
            row.kind.into(),
            format!("{:.1}/s", row.rate).into(),
            format!("{:.1}/s", row.rate_before).into(),
            units::duration(row.p50_ns).into(),
            units::duration(row.p50_before_ns).into(),
            units::duration(row.p99_ns).into(),
            units::duration(row.p99_before_ns).into(),
            errors(row.error_share),
            errors(row.error_share_before),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run};
    use dprof_common::model::Span;

    /// Five minutes ago all hosts are alike; in the last two db-3 is slow.
    fn spans() -> Vec<Span> {
        (0..600_u64)
            .map(|n| {
                let host = ["db-1", "db-2", "db-3"][n as usize % 3];
                let is_slow = n >= 300 && host == "db-3";
                let at_us = if n < 300 { 300_000_000 } else { 500_000_000 } + n * 100;
                rpc(n + 1).hosts("lb", host).at(at_us, if is_slow { 20_000 } else { 1_000 + n % 7 }).build()
            })
            .collect()
    }

    #[test]
    fn the_slow_ones_share_their_host() {
        let (_, out, words) = run(Memory::of(spans()), 100, "compare --slower-than 10ms");
        assert!(words.contains("100 RPCs of at least 10.0 ms, 500 others"), "{words}");
        let host = out.lines().find(|line| line.contains("host ") && line.contains("db-3")).expect("found");
        let cells: Vec<&str> = host.split_whitespace().collect();
        assert_eq!(cells[1..7], ["host", "db-3", "100", "100%", "100", "20%"], "{out}");
        assert!(out.contains("service"), "{out}");
    }

    #[test]
    fn two_windows_show_what_changed() {
        let (_, out, words) =
            run(Memory::of(spans()), 100, "compare --since 2m --against 6m..4m --format json");
        let document: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert!(
            words.contains(", against 2026-11-03 12:04:00.000 to 2026-11-03 12:06:00.000 UTC"),
            "{words}"
        );
        assert_eq!((&document["slow"], &document["rest"]), (&100.into(), &200.into()));
        let change = &document["operations"][0];
        assert_eq!((&change["service"], &change["kind"]), (&"client".into(), &"client".into()));
        assert!(change["avg_ns"].as_u64() > change["avg_before_ns"].as_u64());
        assert!(document["values"].as_array().expect("rows").iter().any(|v| v["value"] == "db-3"), "{out}");
        let (result, ..) = run(Memory::of(spans()), 80, "compare --against 1h");
        assert_eq!(result.expect_err("no window").exit_code(), 2);
    }
}
