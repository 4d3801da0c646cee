//! `clocks`: how far the clocks of hosts are apart.

use dprof_store::Order;

use crate::analyse::skew::{ClockRow, SkewSum};
use crate::args::{Format, FormatArgs, SpanArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::load::{self, Window};
use crate::render::table::{Cell, Column, Table};
use crate::render::{Tone, json};
use crate::{sample, units};

/// Shows how far the clocks of each two hosts that talk are apart: offset and drift, from RPCs that both saw.
///
/// AHEAD is how far the second host's clock is ahead of the first's in the middle of the window, and at most how far
/// that is off, whatever the network does. Take a window in which clocks run evenly: one that was set has no offset.
/// Nothing stored is changed by it; trace draws by it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    window: WindowArgs,
    /// How many RPCs to look at, spread over the window
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    sample: u32,
    #[command(flatten)]
    output: FormatArgs,
}

/// Clocks of pairs of hosts, and how many RPCs were looked at.
pub(super) struct Compared {
    pub(super) clocks: Vec<ClockRow>,
    pub(super) n_rpcs: usize,
}

/// Compares clocks by about `n` RPCs spread over a window.
pub(super) async fn compare(
    window: &Window,
    n: usize,
    context: &mut Context<'_>,
) -> Result<Compared, Failure> {
    let reader = context.reader().await?;
    let query = load::query(window, &SpanArgs::default(), Order::Newest, 0);
    let spans = sample::spread(context, &*reader, &query, n).await?;
    let mut sum = SkewSum::default();
    spans.iter().for_each(|span| sum.add(span));
    Ok(Compared { clocks: sum.finish().rows(), n_rpcs: spans.len() })
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let Compared { clocks, n_rpcs } = compare(&window, args.sample as usize, context).await?;
    let rpcs: u64 = clocks.iter().map(|row| row.rpcs).sum();
    context.say(&format!(
        "{} RPCs that two hosts saw, of {} of {}",
        units::count(rpcs),
        units::count(n_rpcs as u64),
        window.describe(context.now_unix_ns)
    ));
    match args.output.format {
        Format::Json => json::array(&clocks, context.out),
        Format::Table if clocks.is_empty() => Ok(()),
        Format::Table => Ok(table(&clocks).write(context.screen, context.out)?),
    }
}

/// A row per pair.
pub(super) fn table(rows: &[ClockRow]) -> Table {
    let mut table = Table::new([
        Column::text("HOST", 0),
        Column::text("OTHER HOST", 0),
        Column::number("RPCS", 0),
        Column::number("AHEAD", 0),
        Column::number("AT MOST OFF", 0),
        Column::number("DRIFT", 0),
        Column::number("AT MOST OFF", 1),
    ]);
    for row in rows {
        let [first, second] = &row.hosts;
        let mut cells: Vec<Cell> =
            vec![first.as_str().into(), second.as_str().into(), units::count(row.rpcs).into()];
        match row.offset_ns {
            Some(offset_ns) => cells.extend([
                units::signed_duration(offset_ns).into(),
                units::duration(row.error_ns).into(),
                format!("{:.1} ppm", row.drift_ppm).into(),
                format!("{:.1} ppm", row.drift_error_ppm).into(),
            ]),
            None => cells.push(Cell::toned("was set", Tone::Yellow)),
        }
        cells.resize_with(7, Cell::default);
        table.row(cells);
    }
    table
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run};
    use dprof_common::model::Span;

    fn spans() -> Vec<Span> {
        (1..=3).map(|id| rpc(id).hosts("a", "b").at(id * 1_000, 1_000).build()).collect()
    }

    #[test]
    fn a_pair_of_hosts_is_a_row() {
        let (_, out, words) = run(Memory::of(spans()), 80, "clocks --since all");
        let words_of_row: Vec<&str> = out.lines().nth(1).unwrap_or_default().split_whitespace().collect();
        assert_eq!(words_of_row[..5], ["a", "b", "3", "5.00", "s"], "{out}");
        assert!(words.starts_with("3 RPCs that two hosts saw, of 3 of all time"), "{words}");
        let (_, out, _) = run(Memory::of(spans()), 80, "clocks --since all --format json");
        let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!(rows[0]["hosts"], serde_json::json!(["a", "b"]));
        assert_eq!((&rows[0]["rpcs"], &rows[0]["offset_ns"]), (&3.into(), &5_000_000_000_u64.into()));
        let error_ns = rows[0]["error_ns"].as_u64().expect("a number");
        assert!((80_000..90_000).contains(&error_ns), "8 % each way of 1 ms: {error_ns}");
    }

    #[test]
    fn without_other_hosts_there_are_no_rows() {
        let spans = vec![rpc(1).hosts("a", "a").build()];
        let (result, out, words) = run(Memory::of(spans), 80, "clocks --since all --format json");
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(out, "[]\n");
        assert!(words.starts_with("0 RPCs"), "{words}");
    }
}
