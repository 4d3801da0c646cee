//! `trace ID`: the tree of a trace, where its time went, and on what its links stand.

use std::collections::{BTreeMap, BTreeSet};

use dprof_common::model::{RootKind, Span, SpanFlags, split};
use serde::Serialize;

use crate::analyse::attribution::Attribution;
use crate::analyse::latency::{self, Part};
use crate::analyse::message::messages;
use crate::analyse::place::{Placed, place};
use crate::analyse::repeat::repeats;
use crate::analyse::row::{SpanRow, halves};
use crate::analyse::skew::SteadySkew;
use crate::analyse::tree::Tree;
use crate::analyse::trust::TrustArgs;
use crate::args::{AttributeArgs, Format, FormatArgs, parse_id};
use crate::context::{Context, Failure};
use crate::load::{self, short_id};
use crate::render::rows::{Line, Row, rows};
use crate::render::table::{Cell, Column, Table};
use crate::render::{Tone, json, waterfall};
use crate::{sample, units};

use super::slowest_spans::failure_cell;

/// From this width on, one table says both where the time went and how it is known.
const WIDE_COLUMNS: usize = 160;

/// From this width on, messages show the date.
const DATED_COLUMNS: usize = 120;

/// Spans with the same doubts are listed up to this many.
const DOUBTED_SHOWN: usize = 8;

/// As many N+1 patterns are told; the costliest come first.
const REPEATS_SHOWN: usize = 3;

/// Shows a trace: who called whom, when, what the time went on, and on what evidence each link stands.
///
/// Numbers are exact differences on one clock each. Bars of different hosts are fitted into each other with the
/// network split evenly, since clocks of two hosts cannot be compared; where two hosts exchange several RPCs, by the
/// offset of their clocks that fits all of these. Marks: ! failed, ~ approximate,
/// ? the parent is not stored, < the longest of siblings alike.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A trace id or the start of one, or a whole span id
    #[arg(value_parser = parse_id, value_name = "ID")]
    id: String,
    /// List the messages instead: id, time, caller, what was sent and received
    #[arg(long)]
    messages: bool,
    /// Show every span, also of many alike
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    attribute: AttributeArgs,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    output: FormatArgs,
}

/// A span of the tree for programs.
#[derive(Debug, Serialize)]
struct TraceRow<'a> {
    #[serde(flatten)]
    row: SpanRow<'a>,
    /// Distance from the root.
    depth: usize,
    /// Of the service time, how long the server waited for its own calls.
    waiting_for_calls_ns: u64,
    /// The link names a parent that is not stored.
    parent_missing: bool,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let reader = context.reader().await?;
    let trace_id = load::resolve_trace(context, &*reader, &args.id).await?;
    let mut answer = reader.trace(trace_id).await?;
    context.warn(&answer.warnings);
    if args.attribute.attribute == Attribution::Submitter {
        let windows = sample::at_work(&answer.rows);
        sample::submitted(context, &*reader, &windows, std::slice::from_mut(&mut answer.rows)).await?;
    }
    args.trust.apply(&mut answer.rows);
    if answer.rows.is_empty() {
        return Err(Failure::NotFound(format!(
            "no spans of trace {}: it expired while it was looked up; dprof-cli slowest-spans lists those there are",
            short_id(trace_id)
        )));
    }
    let tree = Tree::new(&answer.rows);
    let placed = place(&tree);
    match (args.messages, args.output.format) {
        (true, Format::Json) => json::array(messages(&tree, &placed), context.out),
        (true, Format::Table) => message_table(&tree, &placed, context),
        (false, Format::Json) => {
            let rows = tree.preorder().into_iter().filter_map(|idx| {
                Some(TraceRow {
                    row: SpanRow::new(tree.nodes[idx].span)?,
                    depth: tree.nodes[idx].depth,
                    waiting_for_calls_ns: latency::waiting_for_calls_ns(&tree, idx),
                    parent_missing: tree.nodes[idx].parent_missing,
                })
            });
            json::array(rows, context.out)
        }
        (false, Format::Table) => {
            picture(&tree, &placed, &short_id(trace_id), args.all, context)?;
            super::hosts::write_beside(&answer.rows, context).await
        }
    }
}

fn message_table(tree: &Tree<'_>, placed: &[Placed], context: &mut Context<'_>) -> Result<(), Failure> {
    let mut table = Table::new([
        Column::whole("TRACE", 5),
        Column::whole("SPAN", 1),
        Column::number("MESSAGE", 0),
        Column::whole("TIMESTAMP (UTC)", 0),
        Column::text("CALLER", 0),
        Column::text("SERVICE", 6),
        Column::text("OPERATION", 0),
    ]);
    // A narrow screen has no room for the date, which is the trace's.
    let start = if context.screen.width.is_none_or(|width| width >= DATED_COLUMNS) { 0 } else { 11 };
    for row in messages(tree, placed) {
        let timestamp = units::rfc3339(row.timestamp);
        table.row([
            row.trace_id.strip_prefix("0000000000000000").unwrap_or(&row.trace_id).into(),
            row.span_id.as_str().into(),
            row.message_id.to_string().into(),
            timestamp.get(start..29).unwrap_or_default().replace('T', " ").into(),
            row.caller().into(),
            row.service.into(),
            row.operation.as_str().into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    context.say("in causal order; timestamps are each host's own clock and cannot be compared between hosts");
    Ok(())
}

fn picture(
    tree: &Tree<'_>,
    placed: &[Placed],
    trace: &str,
    all: bool,
    context: &mut Context<'_>,
) -> Result<(), Failure> {
    let (rows, left_out) = rows(tree, all);
    let screen = context.screen;
    for line in summary(tree, placed, trace, &rows) {
        writeln!(context.out, "{line}")?;
    }
    writeln!(context.out)?;
    waterfall::write(tree, placed, &rows, screen, context.out)?;
    writeln!(context.out)?;
    if screen.width.is_none_or(|width| width >= WIDE_COLUMNS) {
        write_table(tree, &rows, &[Half::Split, Half::Facts], context)?;
    } else {
        write_table(tree, &rows, &[Half::Split], context)?;
        writeln!(context.out)?;
        write_table(tree, &rows, &[Half::Facts], context)?;
    }
    write_doubts(tree, placed, &rows, context)?;
    say_clocks(tree, context);
    if left_out > 0 {
        context.say(&format!("{} more spans are not shown: --all shows them", units::count(left_out as u64)));
    }
    Ok(())
}

/// Says by which clocks hosts were drawn.
fn say_clocks(tree: &Tree<'_>, context: &mut Context<'_>) {
    for (hosts, offset) in SteadySkew::of(tree.nodes.iter().map(|node| node.span)).pairs() {
        let (ahead, behind) = if offset.ns < 0 { (&hosts[0], &hosts[1]) } else { (&hosts[1], &hosts[0]) };
        context.say(&format!(
            "drawn with the clock of {ahead} {} ahead of {behind}'s, at most {} off",
            units::duration(offset.ns.unsigned_abs()),
            units::duration(offset.error_ns)
        ));
    }
}

/// What to know before looking at bars.
fn summary(tree: &Tree<'_>, placed: &[Placed], trace: &str, rows: &[Row]) -> Vec<String> {
    let all_halves = || tree.nodes.iter().flat_map(|node| halves(node.span));
    let services: BTreeSet<&str> = all_halves().map(|half| half.process.service.as_str()).collect();
    let hosts: BTreeSet<&str> = all_halves().map(|half| half.host.host.as_str()).collect();
    let counted =
        |n: usize, one: &str| format!("{} {one}{}", units::count(n as u64), if n == 1 { "" } else { "s" });
    let Some(first) = tree.roots.first().map(|root| tree.nodes[*root].span) else { return Vec::new() };
    let mut lines = vec![
        format!(
            "trace {trace}: {}, {}, {}, {}",
            counted(tree.nodes.len(), "RPC"),
            counted(services.len(), "service"),
            counted(hosts.len(), "host"),
            units::duration(first.duration_ns())
        ),
        format!(
            "started {} UTC on {}",
            units::date_time(first.start_ns()),
            first.widest().map_or("", |half| &half.host.host)
        ),
    ];
    if let Some(culprit) = latency::culprit(tree) {
        let span = tree.nodes[culprit.idx].span;
        let at = rows.iter().find(|row| row.line == Line::Span(culprit.idx)).and_then(|row| row.number);
        // A call that outlives the request has no share in it.
        let share = if culprit.ns > first.duration_ns() {
            String::new()
        } else {
            format!(" ({})", units::percent(culprit.ns, first.duration_ns()))
        };
        lines.push(format!(
            "largest part: {}{share} is {} of {}{}{}",
            units::duration(culprit.ns),
            culprit.part.name(),
            span.nearest()
                .map_or(String::new(), |half| format!("{} {}", half.process.service, half.operation)),
            span.nearest().map_or(String::new(), |half| format!(" on {}", half.host.host)),
            at.map_or(String::new(), |number| format!(" (#{number})")),
        ));
    }
    lines.extend(repeats(tree, placed).into_iter().take(REPEATS_SHOWN).map(|repeat| {
        let near = tree.nodes[repeat.parent].span.nearest();
        let by =
            near.map_or(String::new(), |half| format!(" by {} {}", half.process.service, half.operation));
        format!(
            "N+1: {} {} × {}{by}, one after the other, {} in all",
            repeat.service,
            repeat.operation,
            units::count(repeat.calls as u64),
            units::duration(repeat.total_ns)
        )
    }));
    lines.extend(incompleteness(tree));
    lines.iter().map(|line| crate::render::text::clean(line).into_owned()).collect()
}

/// What is missing from the tree, if anything.
fn incompleteness(tree: &Tree<'_>) -> Option<String> {
    let count =
        |of: &dyn Fn(&crate::analyse::tree::Node<'_>) -> bool| tree.nodes.iter().filter(|n| of(n)).count();
    let mut missing = Vec::new();
    for (n, what) in [
        (count(&|node| node.parent_missing), "whose caller is not stored"),
        (count(&|node| node.span.root == Some(RootKind::Unlinked)), "whose cause was not found"),
        (count(&|node| node.span.flags.contains(SpanFlags::FRAGMENT)), "of fragments"),
        (
            count(&|node| {
                halves(node.span).any(|half| half.flags.contains(dprof_common::model::HalfFlags::INCOMPLETE))
            }),
            "with lost events",
        ),
    ] {
        if n > 0 {
            missing.push(format!("{n} {what}"));
        }
    }
    (!missing.is_empty()).then(|| format!("incomplete: {}", missing.join(", ")))
}

/// What a table of the spans tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    /// Where the time went.
    Split,
    /// Where it ran, and how that is known.
    Facts,
}

fn write_table(
    tree: &Tree<'_>,
    rows: &[Row],
    halves: &[Half],
    context: &mut Context<'_>,
) -> Result<(), Failure> {
    let mut columns = vec![Column::number("#", 0)];
    for half in halves {
        columns.extend(match half {
            Half::Split => vec![
                Column::number("SEND", 2),
                Column::number("NETWORK", 0),
                Column::number("QUEUE", 0),
                Column::number("SERVICE", 0),
                Column::number("(CALLS)", 1),
                Column::number("STREAM", 0),
                Column::number("REPLY Q", 0),
                Column::number("REMOTE", 0),
                Column::number("REST", 0),
            ],
            Half::Facts => vec![
                Column::text("HOST", 0),
                Column::text("CALLER", 2),
                Column::text("STATEMENT", 1),
                Column::text("STATUS", 0),
                Column::whole("LINK", 0),
                Column::whole("SPAN", 5),
                Column::number("REQUEST", 6),
                Column::number("RESPONSE", 7),
            ],
        });
    }
    let mut table = Table::new(columns);
    for row in rows {
        let (Line::Span(idx), Some(number)) = (&row.line, row.number) else { continue };
        let mut cells: Vec<Cell> = vec![number.to_string().into()];
        for half in halves {
            match half {
                Half::Split => cells.extend(split_cells(tree, *idx)),
                Half::Facts => cells.extend(fact_cells(tree, *idx)),
            }
        }
        table.row(cells);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

/// Lines such as `#2, #4: incomplete, 2 retransmitted`: what to doubt about which spans.
fn write_doubts(
    tree: &Tree<'_>,
    placed: &[Placed],
    rows: &[Row],
    context: &mut Context<'_>,
) -> Result<(), Failure> {
    let mut by_doubt: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in rows {
        let (Line::Span(idx), Some(number)) = (&row.line, row.number) else { continue };
        let doubts = waterfall::doubts(tree, &placed[*idx], *idx);
        if !doubts.is_empty() {
            by_doubt.entry(doubts).or_default().push(format!("#{number}"));
        }
    }
    for (idx, (doubts, mut numbers)) in by_doubt.into_iter().enumerate() {
        if idx == 0 {
            writeln!(context.out)?;
        }
        let more = numbers.len().saturating_sub(DOUBTED_SHOWN);
        numbers.truncate(DOUBTED_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let line = format!("{}{more}: {doubts}", numbers.join(", "));
        writeln!(context.out, "{}", Tone::Yellow.paint(context.screen.colour, &line))?;
    }
    Ok(())
}

fn split_cells(tree: &Tree<'_>, idx: usize) -> Vec<Cell> {
    let span = tree.nodes[idx].span;
    let known = latency::parts(span);
    let mark = if split(span).approximate { "~" } else { "" };
    let mut cells = Vec::new();
    for part in Part::ALL {
        cells.push(match known.iter().find(|(known, _)| *known == part) {
            Some((_, ns)) if *ns < 0 => {
                Cell::toned(format!("{mark}{}", units::signed_duration(*ns)), Tone::Red)
            }
            Some((_, ns)) => format!("{mark}{}", units::signed_duration(*ns)).into(),
            None => Cell::default(),
        });
        if part == Part::Service {
            let calls_ns = latency::waiting_for_calls_ns(tree, idx);
            cells.push(if calls_ns == 0 {
                Cell::default()
            } else {
                Cell::toned(format!("({})", units::duration(calls_ns)), Tone::Dim)
            });
        }
    }
    cells
}

fn fact_cells(tree: &Tree<'_>, idx: usize) -> Vec<Cell> {
    let node = &tree.nodes[idx];
    let Some(row) = SpanRow::new(node.span) else { return vec![Cell::default(); 8] };
    let caller = match (row.caller_service, row.caller_host) {
        (Some(service), Some(host)) if host != row.host => format!("{service} on {host}"),
        (Some(service), _) => service.to_owned(),
        _ => row.peer.clone(),
    };
    // Of a server that is not watched, the address is known.
    let host = if row.kind == "client" { row.peer.as_str() } else { row.host };
    vec![
        host.into(),
        caller.into(),
        row.query_text.unwrap_or(row.operation).into(),
        failure_cell(&row),
        link_cell(node.span, node.parent_missing),
        row.span_id.as_str().into(),
        units::bytes(row.request_bytes).into(),
        units::bytes(row.response_bytes).into(),
    ]
}

/// On what the link to the parent stands, and how sure it is.
fn link_cell(span: &Span, parent_missing: bool) -> Cell {
    let Some(link) = span.link else {
        return match span.root {
            Some(RootKind::Edge) => "root".into(),
            Some(RootKind::Unlinked) => Cell::toned("no cause found", Tone::Yellow),
            None => Cell::toned("unknown", Tone::Yellow),
        };
    };
    let evidence = link.evidence.name().replace('_', " ");
    let confidence = match link.confidence {
        // 99.7 % is not certainty.
        Some(confidence) if confidence < 1.0 => format!("{:.0}%", (confidence * 100.0).min(99.0)),
        Some(_) => "certain".to_owned(),
        None => "uncalibrated".to_owned(),
    };
    let further = match span.further_links.len() {
        0 => String::new(),
        n => format!(", +{n} more"),
    };
    let text = format!("{evidence} {confidence}{further}");
    if parent_missing { Cell::toned(format!("{text}, parent not stored"), Tone::Yellow) } else { text.into() }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, gathered, rpc, run};
    use dprof_common::model::{HalfFlags, Span, Status};

    /// A client calls a proxy on another host, which asks one redis twice and another not watched one.
    fn spans() -> Vec<Span> {
        let mut doubtful = rpc(4).of("redis", "SET").query("set b ?").by("nutcracker").under(1);
        doubtful = doubtful.hosts("proxy-1", "db-2").at(5_050_000, 25_000).status(Status::Error);
        let mut doubtful = doubtful.build();
        let server = doubtful.server.as_mut().expect("seen");
        server.flags = HalfFlags(HalfFlags::INCOMPLETE.0 | HalfFlags::REQUEST_TIME_APPROXIMATE.0);
        server.retransmits = 2;
        server.status_code = "WRONGTYPE".into();
        vec![
            rpc(1).of("nutcracker", "GET").query("get a").hosts("web-1", "proxy-1").at(0, 104_200).build(),
            rpc(2).by("nutcracker").under(1).hosts("proxy-1", "db-1").at(5_022_000, 20_000).build(),
            rpc(3).by("nutcracker").under(1).hosts("proxy-1", "proxy-1").at(5_043_000, 5_000).build(),
            doubtful,
            rpc(5)
                .by("nutcracker")
                .of("nutcracker", "PING")
                .under(1)
                .client_only()
                .hosts("proxy-1", "?")
                .at(5_076_000, 4_000)
                .build(),
        ]
    }

    #[track_caller]
    fn check(spans: Vec<Span>, width: usize, args: &str, expected: &str) {
        let (result, out, _) = run(Memory::of(spans), width, &format!("trace 0000000000000001 {args}"));
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(out, expected);
    }

    #[test]
    fn the_waterfall_fits_80_columns() {
        check(
            spans(),
            80,
            "",
            "\
trace 0000000000000001: 5 RPCs, 3 services, 4 hosts, 104 ms
started 2026-11-03 12:00:00.000 UTC on web-1
largest part: 16.7 ms (16%) is network of nutcracker GET on proxy-1 (#1)
incomplete: 1 with lost events

»» send  ── network  ▒▒ queue  ██ service  ▄▄ streaming  ░░ reply queue  ╌╌ remote
                     0        26.1 ms     52.1 ms     78.2 ms  104 ms
1 nutcracker GET    ▕»────▒▒▒▒▒████████████████████████████▄▄▄▄▄────░▏   104 ms
2 ├ redis GET       ▕          ─▒██████─░                            ▏  20.0 ms
3 ├ redis GET       ▕                   ─██─                         ▏  5.00 ms
4 ├ redis SET       ▕                       ─▒███████▄──             ▏ !25.0 ms
5 └ nutcracker PING ▕                                   ╌╌           ▏  4.00 ms

#     SEND   NETWORK     QUEUE   SERVICE    (CALLS)    STREAM  REPLY Q   REMOTE
1  2.08 ms   16.7 ms   10.4 ms   62.5 ms  (54.0 ms)   10.4 ms  2.08 ms
2   400 us   3.20 ms   2.00 ms   12.0 ms              2.00 ms   400 us
3   100 us    800 us    500 us   3.00 ms               500 us   100 us
4  ~500 us  ~4.00 ms  ~2.50 ms  ~15.0 ms             ~2.50 ms  ~500 us
5  80.0 us                                             400 us  80.0 us  3.44 ms

#  HOST           CALLER             STATEMENT  STATUS           LINK
1  proxy-1        client on web-1    get a                       root
2  db-1           nutcracker on pr…  get a                       same thread 98%
3  proxy-1        nutcracker         get a                       same thread 98%
4  db-2           nutcracker on pr…  set b ?    error WRONGTYPE  same thread 98%
5  10.0.0.2:6379  nutcracker         get a                       same thread 98%

#4: incomplete, request time approximate, 2 retransmitted
",
        );
    }

    #[test]
    fn the_waterfall_uses_200_columns() {
        check(
            spans(),
            200,
            "",
            "\
trace 0000000000000001: 5 RPCs, 3 services, 4 hosts, 104 ms
started 2026-11-03 12:00:00.000 UTC on web-1
largest part: 16.7 ms (16%) is network of nutcracker GET on proxy-1 (#1)
incomplete: 1 with lost events

»» send  ── network  ▒▒ queue  ██ service  ▄▄ streaming  ░░ reply queue  ╌╌ remote
                     0                                      26.1 ms                                   52.1 ms                                   78.2 ms                                104 ms
1 nutcracker GET    ▕»»»──────────────▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒████████████████████████████████████████████████████████████████████████████████████████████████████▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄▄──────────────░░░▏   104 ms
2 ├ redis GET       ▕                                   »───▒▒▒███████████████████▄▄▄───░                                                                                                    ▏  20.0 ms
3 ├ redis GET       ▕                                                                     ─▒█████▄─                                                                                          ▏  5.00 ms
4 ├ redis SET       ▕                                                                                »────▒▒▒▒████████████████████████▄▄▄▄───░                                               ▏ !25.0 ms
5 └ nutcracker PING ▕                                                                                                                          ╌╌╌╌╌╌▄                                       ▏  4.00 ms

#     SEND   NETWORK     QUEUE   SERVICE    (CALLS)    STREAM  REPLY Q   REMOTE  HOST           CALLER                 STATEMENT  STATUS           LINK             SPAN              REQUEST  RESPONSE
1  2.08 ms   16.7 ms   10.4 ms   62.5 ms  (54.0 ms)   10.4 ms  2.08 ms           proxy-1        client on web-1        get a                       root             0000000000000001     77 B       5 B
2   400 us   3.20 ms   2.00 ms   12.0 ms              2.00 ms   400 us           db-1           nutcracker on proxy-1  get a                       same thread 98%  0000000000000002     77 B       5 B
3   100 us    800 us    500 us   3.00 ms               500 us   100 us           proxy-1        nutcracker             get a                       same thread 98%  0000000000000003     77 B       5 B
4  ~500 us  ~4.00 ms  ~2.50 ms  ~15.0 ms             ~2.50 ms  ~500 us           db-2           nutcracker on proxy-1  set b ?    error WRONGTYPE  same thread 98%  0000000000000004     77 B       5 B
5  80.0 us                                             400 us  80.0 us  3.44 ms  10.0.0.2:6379  nutcracker             get a                       same thread 98%  0000000000000005     77 B       5 B

#4: incomplete, request time approximate, 2 retransmitted
",
        );
    }

    #[test]
    fn siblings_alike_are_one_line_and_lost_parents_are_said() {
        let mut spans: Vec<Span> = (2..50)
            .map(|id| rpc(id).under(1).hosts("db-1", "db-1").at(5_000_200 + id * 10, 9).build())
            .collect();
        spans.push(rpc(1).build());
        spans.push(rpc(60).under(59).hosts("x", "x").at(5_000_000, 50).build());
        check(
            spans,
            80,
            "",
            "\
trace 0000000000000001: 50 RPCs, 2 services, 3 hosts, 1.00 ms
started 2026-11-03 12:00:00.000 UTC on web-1
largest part: 168 us (17%) is service of redis GET on db-1 (#1)
N+1: redis GET × 48 by redis GET, one after the other, 432 us in all
incomplete: 1 whose caller is not stored

»» send  ── network  ▒▒ queue  ██ service  ▄▄ streaming  ░░ reply queue
                                  0             500 us        1.00 ms
1 redis GET                      ▕»───▒▒▒█████████████████████▄▄▄▄──░▏  1.00 ms
2 ├ redis GET                    ▕       █─                          ▏  9.00 us
3 ├ redis GET                    ▕        █                          ▏  9.00 us
4 ├ redis GET                    ▕        █                          ▏  9.00 us
  └ redis GET × 45, total 405 us ▕        ████─██████─█████          ▏ <9.00 us
5 ? redis GET                    ▕                ▒█▄                ▏  50.0 us

#     SEND  NETWORK    QUEUE  SERVICE   (CALLS)   STREAM  REPLY Q
1  20.0 us   160 us   100 us   600 us  (432 us)   100 us  20.0 us
2   180 ns  1.44 us   900 ns  5.40 us             900 ns   180 ns
3   180 ns  1.44 us   900 ns  5.40 us             900 ns   180 ns
4   180 ns  1.44 us   900 ns  5.40 us             900 ns   180 ns
5  1.00 us  8.00 us  5.00 us  30.0 us            5.00 us  1.00 us

#  HOST  CALLER           STATEMENT  LINK
1  db-1  client on web-1  get a      root
2  db-1  client           get a      same thread 98%
3  db-1  client           get a      same thread 98%
4  db-1  client           get a      same thread 98%
5  x     client           get a      same thread 98%, parent not stored

#5: place on the line is a guess
",
        );
    }

    #[test]
    fn messages_are_the_papers_table() {
        check(
            spans().drain(..2).collect(),
            120,
            "--messages",
            "\
TRACE             SPAN              MESSAGE  TIMESTAMP (UTC)                CALLER           OPERATION
0000000000000001  0000000000000001        2  2026-11-03 12:00:00.000000000  dc1/r1/n1:40001  sent 77 bytes
0000000000000001  0000000000000001        2  2026-11-03 12:00:05.020840000  dc1/r1/n1:6379   received \"get a\"
0000000000000001  0000000000000002        4  2026-11-03 12:00:05.022000000  dc1/r1/n1:40001  sent 77 bytes
0000000000000001  0000000000000002        4  2026-11-03 12:00:10.026000000  dc1/r1/n1:6379   received \"get a\"
0000000000000001  0000000000000002        5  2026-11-03 12:00:10.038000000  dc1/r1/n1:6379   sent 5 bytes
0000000000000001  0000000000000002        5  2026-11-03 12:00:05.042000000  dc1/r1/n1:40001  received 5 bytes
0000000000000001  0000000000000001        3  2026-11-03 12:00:05.083360000  dc1/r1/n1:6379   sent 5 bytes
0000000000000001  0000000000000001        3  2026-11-03 12:00:00.104200000  dc1/r1/n1:40001  received 5 bytes
",
        );
    }

    #[test]
    fn json_is_the_tree_in_order() {
        let (_, out, _) = run(Memory::of(spans()), 80, "trace 0000000000000001 --format json");
        let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
        let rows = rows.as_array().expect("an array");
        let shape: Vec<String> = rows
            .iter()
            .map(|row| format!("{} {} {}", row["depth"], row["span_id"], row["parent_span_id"]))
            .collect();
        assert_eq!(
            shape,
            [
                "0 \"0000000000000001\" null",
                "1 \"0000000000000002\" \"0000000000000001\"",
                "1 \"0000000000000003\" \"0000000000000001\"",
                "1 \"0000000000000004\" \"0000000000000001\"",
                "1 \"0000000000000005\" \"0000000000000001\"",
            ]
        );
        assert_eq!(rows[0]["waiting_for_calls_ns"], 54_000_000);
        assert_eq!(rows[1]["evidence"], "same_thread");
        assert_eq!(rows[3]["status"], "error");
        assert_eq!(rows[3]["flags"], serde_json::json!(["incomplete", "request_time_approximate"]));
        assert_eq!(rows[4]["kind"], "client");
    }

    #[test]
    fn a_call_made_for_another_request_is_shown_to_who_submitted_a_part() {
        let shape = |args: &str| {
            let (result, out, _) = run(Memory::of(gathered()), 80, &format!("trace {args} --format json"));
            assert!(result.is_ok(), "{result:?}");
            let rows: Vec<serde_json::Value> = serde_json::from_str(&out).expect("json");
            let of = |row: &serde_json::Value| {
                let id =
                    |field: &str| row[field].as_str().map_or("-", |id| id.trim_start_matches('0')).to_owned();
                format!("{}>{} of {}", id("parent_span_id"), id("span_id"), id("trace_id"))
            };
            rows.iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(shape("0000000000000001"), ["->1 of 1"]);
        assert_eq!(shape("0000000000000001 --attribute submitter"), ["->1 of 1", "1>3 of 1"]);
        assert_eq!(shape("0000000000000002 --attribute submitter"), ["->2 of 2", "2>3 of 2"]);
    }

    #[test]
    fn message_rows_for_programs() {
        let (_, out, _) = run(Memory::of(spans()), 80, "trace 0000000000000001 --messages --format json");
        let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!(rows.as_array().map(Vec::len), Some(18));
        assert_eq!(rows[1]["operation"], "received \"get a\"");
        assert_eq!(rows[1]["datacenter"], "dc1");
        assert_eq!(rows[1]["port"], 6379);
        assert_eq!(rows[1]["message_id"], 2);
    }
}
