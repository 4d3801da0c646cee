//! `operations`: what was asked of each service.

use dprof_common::model::Rollup;
use serde::Serialize;

use super::stats::{errors_cell, load_rollups, nothing};
use crate::analyse::stats::merge;
use crate::args::{Format, FormatArgs, NameArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::load::Window;
use crate::render::json;
use crate::render::table::{Column, Table};
use crate::units;

/// Lists the operations seen, per service and kind.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    names: NameArgs,
    #[command(flatten)]
    output: FormatArgs,
}

/// An operation. Field names are the JSON schema.
#[derive(Debug, Serialize)]
struct OperationRow<'a> {
    service: &'a str,
    operation: &'a str,
    kind: &'static str,
    protocol: &'a str,
    count: u64,
    errors: u64,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let rollups = load_rollups(context, &*reader, &window, &args.names).await?;
    let merged = merge(&rollups, args.names.kind);
    if merged.is_empty() {
        return nothing(context, &*reader, &window, &args.names, args.output.format).await;
    }
    context.say(&window.describe(context.now_unix_ns));
    let rows = merged.iter().map(row);
    if args.output.format == Format::Json {
        return json::array(rows, context.out);
    }
    let mut table = Table::new([
        Column::text("SERVICE", 0),
        Column::text("OPERATION", 0),
        Column::whole("KIND", 0),
        Column::text("PROTOCOL", 1),
        Column::number("COUNT", 0),
        Column::number("ERRORS", 0),
    ]);
    for row in rows {
        table.row([
            row.service.into(),
            row.operation.into(),
            row.kind.into(),
            row.protocol.into(),
            units::count(row.count).into(),
            errors_cell(row.errors, row.count),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

fn row(rollup: &Rollup) -> OperationRow<'_> {
    OperationRow {
        service: &rollup.key.service,
        operation: &rollup.key.operation,
        kind: rollup.key.side.name(),
        protocol: &rollup.key.protocol,
        count: rollup.count,
        errors: rollup.errors,
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run};
    use dprof_common::model::Status;

    #[test]
    fn operations_are_listed_by_service_and_kind() {
        let store = Memory::of(vec![
            rpc(1).of("redis", "SET").build(),
            rpc(2).of("redis", "GET").status(Status::Error).build(),
            rpc(3).of("redis", "GET").build(),
        ]);
        let (_, out, _) = run(store, 80, "operations");
        assert_eq!(
            out,
            "\
SERVICE  OPERATION  KIND    PROTOCOL  COUNT   ERRORS
client   GET        client  redis         2  1 (50%)
client   SET        client  redis         1
redis    GET        server  redis         2  1 (50%)
redis    SET        server  redis         1
"
        );
    }

    #[test]
    fn one_service_may_be_chosen() {
        let store = Memory::of(vec![rpc(1).of("redis", "SET").build(), rpc(2).of("redis", "GET").build()]);
        let (_, out, _) = run(store, 80, "operations --service redis --operation GET --format json");
        let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!(rows.as_array().map(Vec::len), Some(1));
        assert_eq!((&rows[0]["operation"], &rows[0]["kind"]), (&"GET".into(), &"server".into()));
    }
}
