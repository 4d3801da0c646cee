//! `heatmap`: latency over time, on one screen.

use dprof_common::model::Side;

use super::stats::{load_rollups, nothing};
use crate::analyse::heatmap::{Heatmap, Size, heatmap};
use crate::args::{Format, FormatArgs, NameArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::load::Window;
use crate::render::{Screen, Tone, json};
use crate::units;

/// Columns for a file or a pipe.
const WIDTH_UNLIMITED: usize = 120;

/// `999 ms` and the edge.
const LABEL_COLUMNS: usize = 9;

/// Shades from none to most, by the logarithm of the count.
const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];
const SHADES_ASCII: [char; 5] = [' ', '.', ':', '*', '#'];

/// Draws how many requests of each minute took how long: time to the right, duration upwards.
///
/// Made of the counts per minute, so every request is in it. Shades grow with the logarithm of the count. Of kind
/// server unless only calls were seen.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    names: NameArgs,
    /// Classes of duration
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(2..=100), value_name = "N")]
    rows: u8,
    #[command(flatten)]
    output: FormatArgs,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let rollups = load_rollups(context, &*reader, &window, &args.names).await?;
    let columns = context.screen.width.unwrap_or(WIDTH_UNLIMITED).saturating_sub(LABEL_COLUMNS + 1);
    let size = Size { columns, rows: usize::from(args.rows) };
    let sides = args.names.kind.map_or(vec![Side::Server, Side::Client], |side| vec![side]);
    let found = sides.into_iter().find_map(|side| heatmap(&rollups, side, size).map(|map| (side, map)));
    let Some((side, map)) = found else {
        return nothing(context, &*reader, &window, &args.names, args.output.format).await;
    };
    context.say(&format!("{} requests, {}", side.name(), window.describe(context.now_unix_ns)));
    match args.output.format {
        Format::Json => json::document("heatmap", &map, context.out),
        Format::Table => draw(&map, context),
    }
}

fn draw(map: &Heatmap, context: &mut Context<'_>) -> Result<(), Failure> {
    let Screen { colour, unicode, .. } = context.screen;
    let most = map.cells.iter().flatten().copied().max().unwrap_or(0);
    let shades = if unicode { SHADES } else { SHADES_ASCII };
    let (edge, corner, dash) = if unicode { ('│', '└', '─') } else { ('|', '+', '-') };
    for (row, upper_ns) in map.cells.iter().zip(&map.upper_ns).rev() {
        let bar: String = row.iter().map(|n| shades[shade(*n, most)]).collect();
        let label = units::duration(*upper_ns);
        let bar = Tone::Yellow.paint(colour, bar.trim_end());
        writeln!(context.out, "{label:>LABEL_COLUMNS$}{edge}{bar}")?;
    }
    let columns = map.cells.first().map_or(0, Vec::len);
    writeln!(context.out, "{:LABEL_COLUMNS$}{corner}{}", "", dash.to_string().repeat(columns))?;
    let time = |column: usize| {
        let unix_s = map.start_unix_s + column as u64 * map.step_s;
        units::date_time(unix_s.saturating_mul(1_000_000_000)).get(11..16).unwrap_or_default().to_owned()
    };
    let mut axis = format!("{:1$}", "", LABEL_COLUMNS + 1);
    let mut column = 0;
    while column + 5 <= columns.max(5) {
        axis.push_str(&format!("{:<12}", time(column)));
        column += 12;
    }
    writeln!(context.out, "{}", axis.trim_end())?;
    context.say(&format!(
        "{} per column; {} = 1, {} = {} requests",
        units::duration(map.step_s * 1_000_000_000),
        shades[1],
        shades[4],
        units::count(most)
    ));
    Ok(())
}

/// Which of five shades: none for none, then by the logarithm.
fn shade(n: u64, most: u64) -> usize {
    if n == 0 {
        return 0;
    }
    let share = if most <= 1 { 1.0 } else { (n as f64).ln() / (most as f64).ln() };
    1 + (share * 3.0).round() as usize
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run};

    fn store() -> Memory {
        Memory::of(
            (0..100)
                .map(|id| {
                    rpc(id + 1).at(id % 5 * 60_000_000, if id % 5 == 3 { 80_000 } else { 1_000 }).build()
                })
                .collect(),
        )
    }

    #[test]
    fn slow_minutes_stand_out() {
        let (_, out, words) = run(store(), 80, "heatmap --rows 3 --kind client");
        assert_eq!(
            out,
            "  80.0 ms│   █
  18.6 ms│
  4.31 ms│███ █
         └─────
          12:00
"
        );
        assert!(words.contains("1m 00s per column; ░ = 1, █ = 20 requests"), "{words}");
    }

    #[test]
    fn programs_get_counts() {
        let (_, out, _) = run(store(), 80, "heatmap --rows 3 --format json --kind client");
        let map: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!(
            (&map["schema_version"], &map["kind"], &map["step_s"]),
            (&1.into(), &"heatmap".into(), &60.into())
        );
        assert_eq!(map["cells"][2], serde_json::json!([0, 0, 0, 20, 0]));
    }
}
