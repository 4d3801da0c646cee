//! `hot-keys`: the keys that an operation was asked for most, and how large its values were.

use dprof_common::model::{KeyStats, Rollup};
use serde::Serialize;

use super::stats::{load_rollups, nothing};
use crate::analyse::stats::merge;
use crate::args::{Format, FormatArgs, NameArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::load::Window;
use crate::render::json;
use crate::render::table::{Column, Table};
use crate::units;

/// Shows the keys named most per service and operation, and sizes of values, of everything seen.
///
/// A key was seen at least COUNT times and at most MORE times more. Keys are as redaction leaves them. Whole minutes
/// count. Sizes of values are those of the operation, within 1 %.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    names: NameArgs,
    /// At most this many keys of each operation
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), default_value_t = 5, value_name = "N")]
    limit: u32,
    #[command(flatten)]
    output: FormatArgs,
}

/// A key. Field names are the JSON schema.
#[derive(Debug, Serialize)]
struct KeyRow<'a> {
    service: &'a str,
    operation: &'a str,
    kind: &'static str,
    key: &'a str,
    /// At least this often, and at most.
    count_min: u64,
    count_max: u64,
    /// Of all keys named by the operation.
    share: f64,
    /// Sizes of the operation's values, bytes; null if it had none.
    value_p50_bytes: Option<u64>,
    value_p99_bytes: Option<u64>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let rollups = load_rollups(context, &*reader, &window, &args.names).await?;
    let merged: Vec<(Rollup, KeyStats)> = merge(&rollups, args.names.kind)
        .into_iter()
        .filter_map(|mut rollup| {
            let mut keys = *rollup.keys.take()?;
            keys.top(args.limit as usize);
            Some((rollup, keys))
        })
        .collect();
    let rows: Vec<KeyRow<'_>> = merged.iter().flat_map(|(rollup, keys)| rows(rollup, keys)).collect();
    if rows.is_empty() {
        return nothing(context, &*reader, &window, &args.names, args.output.format).await;
    }
    context.say(&format!("{} (whole minutes)", window.describe(context.now_unix_ns)));
    if args.output.format == Format::Json {
        return json::array(rows, context.out);
    }
    let mut table = Table::new([
        Column::text("SERVICE", 0),
        Column::text("OPERATION", 0),
        Column::whole("KIND", 1),
        Column::text("KEY", 0),
        Column::number("COUNT", 0),
        Column::number("MORE", 0),
        Column::number("SHARE", 0),
        Column::number("VALUE P50", 1),
        Column::number("VALUE P99", 1),
    ]);
    for row in rows {
        let more = |n: u64| if n == 0 { String::new() } else { units::count(n) };
        let size = |size: Option<u64>| size.map_or_else(String::new, units::bytes);
        table.row([
            row.service.into(),
            row.operation.into(),
            row.kind.into(),
            row.key.into(),
            units::count(row.count_min).into(),
            more(row.count_max - row.count_min).into(),
            format!("{:.1}%", row.share * 100.0).into(),
            size(row.value_p50_bytes).into(),
            size(row.value_p99_bytes).into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

fn rows<'a>(rollup: &'a Rollup, stats: &'a KeyStats) -> impl Iterator<Item = KeyRow<'a>> {
    stats.keys.iter().map(|key| KeyRow {
        service: &rollup.key.service,
        operation: &rollup.key.operation,
        kind: rollup.key.side.name(),
        key: &key.key,
        count_min: key.at_least(),
        count_max: key.count,
        share: key.at_least() as f64 / stats.total.max(1) as f64,
        value_p50_bytes: stats.sizes.quantile(0.5),
        value_p99_bytes: stats.sizes.quantile(0.99),
    })
}

#[cfg(test)]
mod tests {
    use dprof_common::model::{HotKey, KeyStats};

    use crate::testing::{Memory, rpc, run};

    fn store() -> Memory {
        let mut store =
            Memory::of(vec![rpc(1).of("redis", "GET").build(), rpc(2).of("redis", "PING").build()]);
        for rollup in store.rollups.iter_mut().filter(|rollup| rollup.key.operation == "GET") {
            let key = |key: &str, count, error| HotKey { key: key.to_owned(), count, error };
            let mut stats = KeyStats {
                total: 1000,
                bound: 9,
                keys: vec![key("b", 100, 0), key("a", 510, 10)],
                ..KeyStats::default()
            };
            stats.sizes.add(1);
            rollup.keys = Some(Box::new(stats));
        }
        store
    }

    #[test]
    fn keys_are_listed_most_frequent_first_with_what_is_not_certain() {
        let (_, out, _) = run(store(), 120, "hot-keys --service redis");
        assert_eq!(
            out,
            "\
SERVICE  OPERATION  KIND    KEY  COUNT  MORE  SHARE  VALUE P50  VALUE P99
redis    GET        server  a      500    10  50.0%        0 B        0 B
redis    GET        server  b      100        10.0%        0 B        0 B
"
        );
    }

    #[test]
    fn the_limit_is_per_operation_and_json_has_both_bounds() {
        let (_, out, _) = run(store(), 80, "hot-keys --operation GET --limit 1 --format json");
        let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
        // Of both ends.
        assert_eq!(rows.as_array().map(Vec::len), Some(2));
        assert_eq!(
            (&rows[0]["key"], &rows[0]["count_min"], &rows[0]["count_max"]),
            (&"a".into(), &500.into(), &510.into())
        );
    }
}
