//! `check`: conditions for pipelines, answered by the exit code.

use dprof_store::Reader;
use serde::Serialize;

use super::stats::load_rollups;
use crate::analyse::condition::{Condition, Verdict, parse_condition};
use crate::args::{Format, FormatArgs, NameArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::load::{self, Window};
use crate::render::table::{Cell, Column, Table};
use crate::render::{Tone, json};
use crate::units;

/// Checks conditions on latency, failures and rates; exit code 4 if one does not hold, 3 if nothing was seen.
///
/// A condition is 'SERVICE OPERATION METRIC < VALUE' with <, <=, > or >=; service and operation may be left out.
/// Metrics: p50 to p99.9 (any percentile), avg, min, max, errors (a count or a share in %), count, rate (per second).
/// Of everything seen in whole minutes; of requests answered where the service was watched, else of calls made.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Such as 'redis GET p99 < 2ms'
    #[arg(required = true, value_parser = parse_condition, value_name = "CONDITION")]
    conditions: Vec<Condition>,
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    output: FormatArgs,
}

/// What is printed for programs.
#[derive(Serialize)]
struct Verdicts {
    holds: bool,
    verdicts: Vec<Verdict>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let mut verdicts = Vec::new();
    for condition in &args.conditions {
        verdicts.push(judge(condition, context, &*reader, &window).await?);
    }
    let broken: Vec<&Verdict> = verdicts.iter().filter(|verdict| !verdict.holds).collect();
    let failure = broken.first().map(|first| {
        let more = if broken.len() > 1 { format!(" and {} more", broken.len() - 1) } else { String::new() };
        Failure::Violated(format!("does not hold: {} (it is {}){more}", first.condition, first.actual))
    });
    match args.output.format {
        Format::Json => {
            json::document("check", &Verdicts { holds: failure.is_none(), verdicts }, context.out)?;
        }
        Format::Table => table(&verdicts, context)?,
    }
    failure.map_or(Ok(()), Err)
}

async fn judge(
    condition: &Condition,
    context: &mut Context<'_>,
    reader: &dyn Reader,
    window: &Window,
) -> Result<Verdict, Failure> {
    let names =
        NameArgs { service: condition.service.clone(), operation: condition.operation.clone(), kind: None };
    let rollups = load_rollups(context, reader, window, &names).await?;
    let now = context.now_unix_ns;
    let seen_from = rollups.iter().map(|rollup| rollup.key.minute_unix_s * 1_000_000_000).min().unwrap_or(0);
    let from_ns = window.since_unix_ns.max(seen_from);
    let window_s = window.until_unix_ns.min(now.max(from_ns)).saturating_sub(from_ns) as f64 / 1e9;
    if let Some(verdict) = condition.judge(&rollups, window_s) {
        return Ok(verdict);
    }
    load::explain_nothing(context, reader, window, &names, true).await?;
    Err(Failure::NotFound(
        "nothing was seen that the condition is about: it neither holds nor fails".to_owned(),
    ))
}

fn table(verdicts: &[Verdict], context: &mut Context<'_>) -> Result<(), Failure> {
    let mut table = Table::new([
        Column::whole("", 0),
        Column::text("CONDITION", 0),
        Column::number("IT IS", 0),
        Column::number("OF", 1),
        Column::whole("KIND", 2),
    ]);
    for verdict in verdicts {
        table.row([
            if verdict.holds { Cell::toned("ok", Tone::Green) } else { Cell::toned("FAILS", Tone::Red) },
            verdict.condition.as_str().into(),
            verdict.actual.as_str().into(),
            units::count(verdict.count).into(),
            verdict.kind.into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run_command};
    use std::sync::Arc;

    #[track_caller]
    fn check(conditions: &[&str], exit_code: u8, expected: &str) -> String {
        let store = Memory::of((0..10).map(|id| rpc(id + 1).at(id, 1_000).build()).collect());
        let args = ["dprof-cli", "check"].iter().chain(conditions);
        let cli: crate::args::Cli = clap::Parser::try_parse_from(args).expect("valid arguments");
        let (result, out, _) = run_command(Arc::new(store), 80, cli.command, false);
        let (code, said) = result.map_or_else(|f| (f.exit_code(), f.to_string()), |()| (0, String::new()));
        assert_eq!((code, said.as_str()), (exit_code, expected));
        out
    }

    #[test]
    fn the_exit_code_is_the_answer() {
        let out = check(&["redis GET p99 < 2ms", "redis errors < 1%"], 0, "");
        assert_eq!(
            out,
            "    CONDITION             IT IS  OF  KIND
ok  redis GET p99 < 2ms  820 us  10  server
ok  redis errors < 1%    0.000%  10  server
"
        );
        let out = check(
            &["redis GET max < 2ms", "redis GET max < 0.5ms", "count > 100"],
            4,
            "does not hold: redis GET max < 0.5ms (it is 820 us) and 1 more",
        );
        assert_eq!(out.lines().filter(|line| line.starts_with("FAILS")).count(), 2);
        check(
            &["redis SET p99 < 2ms"],
            3,
            "no operation 'SET' was seen lately: did you mean 'GET'? dprof-cli operations lists them",
        );
    }
}
