//! Minutes of hosts as a table: of `agents --history`, and beside the hosts of a trace.
//!
//! What a reader would get wrong: a minute is by the host's own clock, as the halves of spans seen there are; so they
//! can be laid side by side without comparing clocks.

use std::collections::BTreeMap;

use dprof_common::model::Span;
use dprof_store::control::HostMinute;

use crate::context::{Context, Failure};
use crate::render::Tone;
use crate::render::table::{Cell, Column, Table};
use crate::units::{self, NS_PER_S};

/// A trace on more hosts, or over more minutes, is shown with the first of them.
const ROWS_MAX: usize = 32;
const MINUTE_S: u64 = 60;

/// A busy share from which it is marked: work waits for its turn more often than not.
const BUSY_SHARE: f64 = 0.8;

fn share(share: f64) -> Cell {
    let text = format!("{:.0}%", share * 100.0);
    if share >= BUSY_SHARE { Cell::toned(text, Tone::Yellow) } else { Cell::from(text) }
}

fn rate(per_s: f64) -> String {
    format!("{}/s", units::bytes(per_s.round() as u64))
}

/// One row per minute.
pub(super) fn table(minutes: &[HostMinute]) -> Table {
    let mut table = Table::new([
        Column::whole("HOST", 0),
        Column::whole("MINUTE (UTC)", 0),
        Column::number("CPUS", 4),
        Column::number("CPU", 0),
        Column::number("STOLEN", 3),
        Column::number("RUN QUEUE", 0),
        Column::number("MOST", 2),
        Column::number("LOAD", 5),
        Column::number("MEMORY", 1),
        Column::number("DISK BUSY", 1),
        Column::number("READ", 3),
        Column::number("WRITTEN", 3),
        Column::number("RECEIVED", 2),
        Column::number("SENT", 2),
        Column::number("LOST", 1),
    ]);
    for minute in minutes {
        let time = units::rfc3339(minute.minute_unix_s.saturating_mul(NS_PER_S));
        let memory = minute.memory_used_bytes as f64 / minute.memory_bytes.max(1) as f64;
        let some = |value: f64, shown: String| if value > 0.0 { shown } else { String::new() };
        let queue = format!("{:.1}", minute.run_queue);
        let queue = if minute.run_queue > f64::from(minute.n_cpus) {
            Cell::toned(queue, Tone::Yellow)
        } else {
            Cell::from(queue)
        };
        table.row([
            (&minute.host).into(),
            time.get(..16).unwrap_or_default().replace('T', " ").into(),
            minute.n_cpus.to_string().into(),
            share(minute.cpu_share),
            some(minute.steal_share, format!("{:.1}%", minute.steal_share * 100.0)).into(),
            queue,
            minute.run_queue_max.to_string().into(),
            format!("{:.2}", minute.load_1m).into(),
            share(memory),
            share(minute.disk_busy_share),
            rate(minute.disk_read_per_s).into(),
            rate(minute.disk_written_per_s).into(),
            rate(minute.net_received_per_s).into(),
            rate(minute.net_sent_per_s).into(),
            Cell::toned(some(minute.net_lost_per_s, format!("{:.1}/s", minute.net_lost_per_s)), Tone::Red),
        ]);
    }
    table
}

/// Minutes in which each host had a part in these spans, by its own clock: the first, and the one after the last.
fn minutes_of(spans: &[Span]) -> BTreeMap<&str, (u64, u64)> {
    let mut hosts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for half in spans.iter().flat_map(|span| span.client.iter().chain(&span.server)) {
        let first_s = half.times.start_ns / NS_PER_S / MINUTE_S * MINUTE_S;
        let until_s = half.times.end_ns / NS_PER_S / MINUTE_S * MINUTE_S + MINUTE_S;
        let window = hosts.entry(&half.host.host).or_insert((first_s, until_s));
        *window = (window.0.min(first_s), window.1.max(until_s));
    }
    hosts
}

/// Writes what the hosts of these spans did meanwhile, as far as their agents said; nothing, where none did.
pub(super) async fn write_beside(spans: &[Span], context: &mut Context<'_>) -> Result<(), Failure> {
    let Ok(control) = context.control(false).await else { return Ok(()) };
    let mut minutes = Vec::new();
    for (host, (since_s, until_s)) in minutes_of(spans).into_iter().take(ROWS_MAX) {
        // A trace is an answer without this too.
        minutes.extend(control.host_minutes(host, since_s, until_s).await.unwrap_or_default());
    }
    minutes.truncate(ROWS_MAX);
    if minutes.is_empty() {
        return Ok(());
    }
    writeln!(context.out)?;
    table(&minutes).write(context.screen, context.out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::Screen;
    use crate::testing::{T0, rpc};

    #[test]
    fn a_hosts_minutes_are_by_its_own_clock() {
        // The server's clock is 5 s ahead.
        let spans = [rpc(1).at(54_900_000, 200_000).build(), rpc(2).at(0, 1_000).build()];
        let minute_s = T0 / NS_PER_S;
        assert_eq!(
            minutes_of(&spans),
            BTreeMap::from([("db-1", (minute_s, minute_s + 120)), ("web-1", (minute_s, minute_s + 60))])
        );
    }

    #[test]
    fn a_minute_is_a_row() {
        let minute = HostMinute {
            host: "db-1".to_owned(),
            minute_unix_s: T0 / NS_PER_S,
            watched_s: 60.0,
            n_cpus: 2,
            cpu_share: 0.91,
            run_queue: 5.25,
            run_queue_max: 9,
            load_1m: 1.5,
            memory_bytes: 1_000,
            memory_used_bytes: 410,
            disk_busy_share: 0.02,
            net_received_per_s: 12_000_000.0,
            net_lost_per_s: 0.5,
            ..HostMinute::default()
        };
        let mut out = Vec::new();
        let screen = Screen { width: None, height: None, colour: false, unicode: true };
        table(&[minute]).write(screen, &mut out).expect("memory");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "\
HOST  MINUTE (UTC)      CPUS  CPU  RUN QUEUE  MOST  LOAD  MEMORY  DISK BUSY   READ  WRITTEN   RECEIVED   SENT   LOST
db-1  2026-11-03 12:00     2  91%        5.2     9  1.50     41%         2%  0 B/s    0 B/s  12.0 MB/s  0 B/s  0.5/s
"
        );
    }
}
