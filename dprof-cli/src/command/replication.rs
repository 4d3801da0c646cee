//! `replication`: which replica lags, and which link between datacenters delays it.

use dprof_store::{Order, SpanQuery};
use serde::Serialize;

use crate::analyse::dc_link::{DcLinkRow, DcLinks};
use crate::analyse::replication::{ReplicaRow, Replication};
use crate::args::{Format, FormatArgs, NameArgs, SpanArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::load::{self, Window};
use crate::render::table::{Cell, Column, Table};
use crate::render::{Tone, json};
use crate::{sample, units};

/// Shows writes that go to several replicas: how far each replica lags behind the first, by datacenter and rack.
///
/// Copies of a write are RPCs of one trace with the same operation and statement on different hosts. Datacenter and
/// rack are the agents' labels dc and rack. A lag is right to half the network time of the calls between, since
/// clocks of two hosts cannot be compared. Of each link between datacenters it shows how long calls are on the network;
/// delayed is a link nearly all of whose calls take longer than half of the calls of the others' middle one.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    window: WindowArgs,
    /// Only requests to this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only requests of this operation
    #[arg(long, value_name = "NAME")]
    operation: Option<String>,
    /// Also operations that are known to only read
    #[arg(long)]
    reads: bool,
    /// How many traces to look at, spread over the window
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    sample: u32,
    #[command(flatten)]
    output: FormatArgs,
}

/// What is printed for programs.
#[derive(Serialize)]
struct Replicas {
    writes: u64,
    replicas: Vec<ReplicaRow>,
    links: Vec<DcLinkRow>,
    /// Trace of the write whose last replica lags most.
    widest_trace_id: Option<String>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let names = NameArgs { service: args.service, operation: args.operation, kind: None };
    let filters = SpanArgs { names: names.clone(), ..SpanArgs::default() };
    let query = SpanQuery { roots_only: true, ..load::query(&window, &filters, Order::Newest, 0) };
    let roots = sample::spread(context, &*reader, &query, args.sample as usize).await?;
    let (mut replication, mut links) = (Replication::default(), DcLinks::default());
    for spans in sample::traces_of(context, &*reader, &roots).await? {
        replication.add(&spans, args.reads);
        links.add(&spans);
    }
    let writes = replication.writes;
    let widest = replication.widest();
    let links = links.rows();
    let rows = replication.rows();
    if rows.is_empty() {
        if roots.is_empty() {
            let filtered = names.service.is_some() || names.operation.is_some();
            load::explain_nothing(context, &*reader, &window, &names, filtered).await?;
        } else {
            context.say(&format!(
                "none of {} traces of {} has a write that went to several hosts; --reads looks at reads too",
                units::count(roots.len() as u64),
                window.describe(context.now_unix_ns)
            ));
        }
    } else {
        context.say(&format!(
            "{} writes to several hosts in {} traces of {}",
            units::count(writes),
            units::count(roots.len() as u64),
            window.describe(context.now_unix_ns)
        ));
    }
    match args.output.format {
        Format::Json => {
            let widest_trace_id = widest.map(|trace_id| trace_id.to_string());
            json::document(
                "replication",
                &Replicas { writes, replicas: rows, links, widest_trace_id },
                context.out,
            )
        }
        Format::Table if rows.is_empty() => Ok(()),
        Format::Table => {
            table(writes, &rows, context)?;
            link_table(&links, context)?;
            if let Some(trace_id) = widest {
                context.say(&format!(
                    "the last replica lags most in: dprof-cli trace {} --messages",
                    load::short_id(trace_id)
                ));
            }
            Ok(())
        }
    }
}

/// Calls between datacenters, if there are any.
fn link_table(links: &[DcLinkRow], context: &mut Context<'_>) -> Result<(), Failure> {
    if links.is_empty() {
        return Ok(());
    }
    writeln!(context.out).map_err(Failure::Output)?;
    let mut table = Table::new([
        Column::text("LINK", 0),
        Column::number("CALLS", 0),
        Column::text("", 0),
        Column::number("NETWORK MIN", 2),
        Column::number("AVG", 4),
        Column::number("P50", 0),
        Column::number("P90", 3),
        Column::number("P99", 1),
        Column::number("MAX", 5),
    ]);
    for link in links {
        let delayed = if link.is_delayed { Cell::toned("delayed", Tone::Yellow) } else { Cell::default() };
        table.row([
            link.dcs.join(" - ").into(),
            units::count(link.calls).into(),
            delayed,
            units::duration(link.network.min_ns).into(),
            units::duration(link.network.avg_ns).into(),
            units::duration(link.network.p50_ns).into(),
            units::duration(link.network.p90_ns).into(),
            units::duration(link.network.p99_ns).into(),
            units::duration(link.network.max_ns).into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

fn table(writes: u64, rows: &[ReplicaRow], context: &mut Context<'_>) -> Result<(), Failure> {
    let mut table = Table::new([
        Column::text("DC", 0),
        Column::text("RACK", 0),
        Column::text("HOST", 0),
        Column::number("WRITES", 0),
        Column::number("ERRORS", 0),
        Column::number("FIRST", 4),
        Column::number("LAST", 1),
        Column::number("LAG AVG", 3),
        Column::number("P50", 0),
        Column::number("P90", 5),
        Column::number("P99", 0),
        Column::number("MAX", 2),
    ]);
    for row in rows {
        let is_laggard = rows.len() > 2 && row.last * 2 > writes;
        table.row([
            row.dc.as_str().into(),
            row.rack.as_str().into(),
            row.host.as_str().into(),
            units::count(row.writes).into(),
            super::stats::errors_cell(row.errors, row.writes),
            units::percent(row.first, row.writes).into(),
            Cell::toned(
                units::percent(row.last, row.writes),
                if is_laggard { Tone::Yellow } else { Tone::Plain },
            ),
            units::duration(row.lag.avg_ns).into(),
            units::duration(row.lag.p50_ns).into(),
            units::duration(row.lag.p90_ns).into(),
            units::duration(row.lag.p99_ns).into(),
            units::duration(row.lag.max_ns).into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run};
    use dprof_common::model::Span;

    fn spans() -> Vec<Span> {
        let set = |id: u64, trace: u64, at_us, us, host: &str, rack: &str| {
            rpc(id)
                .trace(u128::from(trace))
                .under(trace)
                .of("redis", "SET")
                .query("set a ?")
                .hosts("n1", host)
                .labels(rack, "east")
                .at(at_us, us)
                .build()
        };
        let mut spans = Vec::new();
        for n in 0..4_u64 {
            let (trace, at) = (n * 10 + 1, n * 100_000);
            spans.push(
                rpc(trace)
                    .trace(u128::from(trace))
                    .of("dyn", "SET")
                    .query("set a ?")
                    .hosts("n1", "n1")
                    .at(at, 9_000)
                    .build(),
            );
            spans.push(set(trace + 1, trace, at + 2_000, 100, "n1", "r1"));
            spans.push(set(trace + 2, trace, at + 2_000, 5_000, "n2", "r2"));
        }
        spans
    }

    #[test]
    fn lags_are_shown_by_rack() {
        let (_, out, words) = run(Memory::of(spans()), 80, "replication");
        assert_eq!(
            out,
            "\
DC    RACK  HOST  WRITES  FIRST  LAST  LAG AVG      P50      P99      MAX
east  r1    n1         4   100%    0%     0 ns     0 ns     0 ns     0 ns
east  r2    n2         4     0%  100%  3.92 ms  3.92 ms  3.92 ms  3.92 ms
"
        );
        assert!(words.starts_with("4 writes to several hosts in 4 traces"), "{words}");
        assert!(
            words.ends_with("the last replica lags most in: dprof-cli trace 000000000000001f --messages\n"),
            "{words}"
        );
    }

    #[test]
    fn without_writes_it_says_so() {
        let (_, out, words) = run(Memory::of(vec![rpc(1).build()]), 80, "replication --format json");
        let document: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!(document["replicas"], serde_json::json!([]));
        assert!(words.starts_with("none of 1 traces"), "{words}");
    }
}
