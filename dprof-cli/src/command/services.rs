//! `services`: what was seen to serve or to call.

use std::collections::{BTreeMap, BTreeSet};

use dprof_common::model::{Rollup, RollupKey, Side};
use serde::Serialize;

use super::stats::{errors_cell, load_rollups, nothing};
use crate::args::{Format, FormatArgs, NameArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::load::Window;
use crate::render::json;
use crate::render::table::{Column, Table};
use crate::units;

/// Lists the services seen: what they answered and what they called.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    output: FormatArgs,
}

/// A service. Field names are the JSON schema.
#[derive(Debug, Serialize)]
struct ServiceRow<'a> {
    service: &'a str,
    server_count: u64,
    server_errors: u64,
    server_p50_ns: Option<u64>,
    server_p99_ns: Option<u64>,
    client_count: u64,
    client_errors: u64,
    operations: usize,
    protocols: Vec<&'a str>,
    /// Start of the last minute in which it was seen.
    last_seen: String,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let names = NameArgs::default();
    let rollups = load_rollups(context, &*reader, &window, &names).await?;
    if rollups.is_empty() {
        return nothing(context, &*reader, &window, &names, args.output.format).await;
    }
    context.say(&window.describe(context.now_unix_ns));
    let rows = rows(&rollups);
    if args.output.format == Format::Json {
        return json::array(&rows, context.out);
    }
    let mut table = Table::new([
        Column::text("SERVICE", 0),
        Column::text("PROTOCOLS", 4),
        Column::number("OPERATIONS", 3),
        Column::number("REQUESTS", 0),
        Column::number("ERRORS", 0),
        Column::number("P50", 1),
        Column::number("P99", 1),
        Column::number("CALLS", 0),
        Column::number("CALL ERRORS", 0),
        Column::whole("LAST SEEN (UTC)", 2),
    ]);
    for row in rows {
        let latency = |ns: Option<u64>| ns.map_or(String::new(), units::duration);
        let counted = |n: u64| if n == 0 { String::new() } else { units::count(n) };
        table.row([
            row.service.into(),
            row.protocols.join(" ").into(),
            units::count(row.operations as u64).into(),
            counted(row.server_count).into(),
            errors_cell(row.server_errors, row.server_count),
            latency(row.server_p50_ns).into(),
            latency(row.server_p99_ns).into(),
            counted(row.client_count).into(),
            errors_cell(row.client_errors, row.client_count),
            row.last_seen.get(..16).unwrap_or_default().replace('T', " ").into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

fn rows(rollups: &[Rollup]) -> Vec<ServiceRow<'_>> {
    let mut by_service: BTreeMap<&str, Vec<&Rollup>> = BTreeMap::new();
    for rollup in rollups {
        by_service.entry(&rollup.key.service).or_default().push(rollup);
    }
    by_service.into_iter().map(|(service, rollups)| row(service, &rollups)).collect()
}

fn row<'a>(service: &'a str, rollups: &[&'a Rollup]) -> ServiceRow<'a> {
    let end = |side: Side| {
        let mut sum = Rollup::new(RollupKey {
            minute_unix_s: 0,
            service: String::new(),
            operation: String::new(),
            side,
            protocol: "".into(),
        });
        for rollup in rollups.iter().filter(|rollup| rollup.key.side == side) {
            sum.merge(rollup);
        }
        sum
    };
    let (server, client) = (end(Side::Server), end(Side::Client));
    let operations: BTreeSet<(&str, Side)> =
        rollups.iter().map(|rollup| (rollup.key.operation.as_str(), rollup.key.side)).collect();
    let protocols: BTreeSet<&str> = rollups.iter().map(|rollup| &*rollup.key.protocol).collect();
    let last_s = rollups.iter().map(|rollup| rollup.key.minute_unix_s).max().unwrap_or(0);
    ServiceRow {
        service,
        server_count: server.count,
        server_errors: server.errors,
        server_p50_ns: server.quantile(0.5),
        server_p99_ns: server.quantile(0.99),
        client_count: client.count,
        client_errors: client.errors,
        operations: operations.len(),
        protocols: protocols.into_iter().collect(),
        last_seen: units::rfc3339(last_s.saturating_mul(1_000_000_000)),
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run};
    use dprof_common::model::Status;

    fn store() -> Memory {
        Memory::of(vec![
            rpc(1).of("nutcracker", "GET").by("redis-benchmark").build(),
            rpc(2).of("redis", "GET").by("nutcracker").status(Status::Error).build(),
            rpc(3).of("redis", "SET").by("nutcracker").build(),
        ])
    }

    #[test]
    fn a_service_shows_what_it_answered_and_what_it_called() {
        let (_, out, words) = run(store(), 120, "services");
        assert_eq!(words, "the last 1h 00m (since 2026-11-03 11:10:00.000 UTC)\n");
        assert_eq!(out, "\
SERVICE          PROTOCOLS  OPERATIONS  REQUESTS   ERRORS     P50     P99  CALLS  CALL ERRORS  LAST SEEN (UTC)
nutcracker       redis               3         1           820 us  820 us      2      1 (50%)  2026-11-03 12:00
redis            redis               2         2  1 (50%)  820 us  820 us                      2026-11-03 12:00
redis-benchmark  redis               1                                         1               2026-11-03 12:00
");
    }

    #[test]
    fn json_counts_both_ends() {
        let (_, out, _) = run(store(), 80, "services --format json");
        let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
        let nutcracker = &rows[0];
        assert_eq!(nutcracker["service"], "nutcracker");
        assert_eq!((&nutcracker["server_count"], &nutcracker["client_count"]), (&1.into(), &2.into()));
        assert_eq!((&nutcracker["operations"], &nutcracker["client_errors"]), (&3.into(), &1.into()));
        assert_eq!(nutcracker["last_seen"], "2026-11-03T12:00:00.000000000Z");
        assert_eq!(rows[2]["service"], "redis-benchmark");
        assert_eq!(rows[2]["server_p50_ns"], serde_json::Value::Null);
    }
}
