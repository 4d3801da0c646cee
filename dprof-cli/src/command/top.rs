//! `top`: operations as they are now, redrawn every few seconds.

use std::time::Duration;

use dprof_store::RollupQuery;
use serde::Serialize;

use crate::analyse::live::{LiveRow, live};
use crate::args::{Format, FormatArgs, NameArgs};
use crate::clock::now_unix_ns;
use crate::context::{Context, Failure};
use crate::render::table::{Cell, Column, Table};
use crate::render::{Tone, json};
use crate::units::{self, parse_duration};

/// Minutes of the sparkline.
const MINUTES: u64 = 15;

/// From empty to full.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const BARS_ASCII: [char; 8] = ['_', '.', ':', '-', '=', '+', '*', '#'];

/// Lines that are not rows: heading, table heading, and one to spare.
const OTHER_LINES: usize = 3;

/// Shows the operations that take most time now: rate, failures, p50, p99, and p99 of the last 15 minutes.
///
/// Redrawn until Ctrl-C on a terminal; once into a file or a pipe.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    names: NameArgs,
    /// Time between two looks
    #[arg(long, value_parser = parse_duration, default_value = "2s", value_name = "DURATION")]
    interval: u64,
    /// Look this often, then end [default: on a terminal without end, else once]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    count: Option<u32>,
    /// At most this many rows [default: what fits the screen]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    limit: Option<u32>,
    #[command(flatten)]
    output: FormatArgs,
}

/// What is printed for programs, once per look.
#[derive(Serialize)]
struct Look {
    time: String,
    rows: Vec<LiveRow>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let reader = context.reader().await?;
    let is_redrawn = context.screen.height.is_some() && args.output.format == Format::Table;
    let looks = args.count.or((!is_redrawn).then_some(1));
    let mut now_ns = context.now_unix_ns;
    let mut done = 0;
    loop {
        let query = RollupQuery {
            since_unix_ns: now_ns.saturating_sub(MINUTES * 60_000_000_000),
            until_unix_ns: u64::MAX,
            service: args.names.service.clone(),
            operation: args.names.operation.clone(),
        };
        let answer = reader.rollups(&query).await?;
        let mut rows = live(&answer.rows, now_ns, MINUTES);
        rows.retain(|row| args.names.kind.is_none_or(|kind| kind.name() == row.kind));
        let fits = context.screen.height.map_or(usize::MAX, |lines| lines.saturating_sub(OTHER_LINES).max(1));
        rows.truncate(args.limit.map_or(fits, |limit| limit as usize));
        if args.output.format == Format::Json {
            json::document("top", &Look { time: units::rfc3339(now_ns), rows }, context.out)?;
        } else {
            // Home and clear to the end: no flicker, and what scrolled before stays.
            if is_redrawn {
                write!(context.out, "\u{1b}[H\u{1b}[2J")?;
            }
            writeln!(context.out, "{} UTC, {} operations", units::date_time(now_ns), rows.len())?;
            table(&rows, context)?;
        }
        context.out.flush()?;
        done += 1;
        if looks.is_some_and(|looks| done >= looks) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_nanos(args.interval)).await;
        now_ns = now_unix_ns();
    }
}

fn table(rows: &[LiveRow], context: &mut Context<'_>) -> Result<(), Failure> {
    let mut table = Table::new([
        Column::text("SERVICE", 0),
        Column::text("OPERATION", 0),
        Column::whole("KIND", 3),
        Column::number("RATE", 0),
        Column::number("ERRORS", 1),
        Column::number("P50", 1),
        Column::number("P99", 0),
        Column::whole("P99, 15 MINUTES", 2),
    ]);
    for row in rows {
        table.row([
            row.service.as_str().into(),
            row.operation.as_str().into(),
            row.kind.into(),
            format!("{:.1}/s", row.rate).into(),
            if row.error_share > 0.0 {
                Cell::toned(format!("{:.1}%", row.error_share * 100.0), Tone::Red)
            } else {
                Cell::default()
            },
            units::duration(row.p50_ns).into(),
            units::duration(row.p99_ns).into(),
            spark(&row.p99_by_minute_ns, context.screen.unicode).into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

/// A bar per minute, as high as its share of the highest; a minute without requests is blank.
fn spark(values: &[Option<u64>], unicode: bool) -> String {
    let most = values.iter().flatten().copied().max().unwrap_or(0).max(1);
    let bars = if unicode { BARS } else { BARS_ASCII };
    values
        .iter()
        .map(|value| value.map_or(' ', |ns| bars[(ns as f64 / most as f64 * 7.0).round() as usize]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Memory, rpc, run};

    #[test]
    fn one_look_into_a_pipe() {
        // The test's clock stands ten minutes after the start.
        let spans = (0..60).map(|n| rpc(n + 1).at(550_000_000 + n * 1_000, 1_000).build()).collect();
        let (result, out, _) = run(Memory::of(spans), 80, "top --kind server");
        assert!(result.is_ok());
        assert_eq!(
            out,
            "\
2026-11-03 12:10:00.000 UTC, 1 operations
SERVICE  OPERATION  KIND     RATE     P50     P99  P99, 15 MINUTES
redis    GET        server  1.0/s  820 us  820 us               █\u{20}
"
        );
    }

    #[test]
    fn bars_are_shares_of_the_highest() {
        assert_eq!(spark(&[Some(0), None, Some(50), Some(100)], true), "▁ ▅█");
        assert_eq!(spark(&[Some(100), Some(1)], false), "#_");
        assert_eq!(spark(&[], true), "");
    }
}
