//! Measures a store: `cargo run --release -p dprof-store --example store_bench -- URL RPCS_PER_TRACE RPCS`.
//!
//! Writes generated traces of so many RPCs over the last hour, both halves of each seen, with counts, in batches of
//! 2,000 as an agent does; reads all of them back; asks the usual questions. `cargo xtask bench store` runs it.
#![expect(clippy::print_stdout, reason = "prints its result")]
#![expect(clippy::disallowed_methods, reason = "a measurement")]

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use dprof_common::model::{Edge, EvidenceKind, Link, Rollup, RunId, Side, Span, SpanId, TraceId};
use dprof_store::conformance::{Maker, Random, run, slowest, span};
use dprof_store::{
    Batch, Reader, Retention, RollupQuery, SpanQuery, StoreError, StoreUrl, open_reader, open_writer,
};

const BATCH_SPANS: usize = 2_000;
const HOUR_NS: u64 = 3_600_000_000_000;
const SERVICES: [&str; 10] =
    ["web", "cart", "cache", "session", "orders", "stock", "mail", "search", "users", "pay"];
const OPERATIONS: [&str; 10] =
    ["GET", "SET", "DEL", "INCR", "MGET", "HGET", "LPUSH", "EXPIRE", "EVAL", "SCAN"];
/// As many are read one by one for the mean.
const TRACES_ASKED: usize = 200;
/// A sender that is not connected yet is tried again this often.
const AGAIN: Duration = Duration::from_millis(50);

fn process_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec, and this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A trace: a request to one service, and calls from it to others.
fn trace(maker: &mut Maker, random: &mut Random, start_ns: u64, n: u64) -> Vec<Span> {
    // Log-normal by the sum of uniform numbers.
    let e = (0..4).map(|_| random.below(1000)).sum::<u64>() as f64 / 1000.0;
    let duration_ns = ((e * 2.0).exp() * 20_000.0) as u64 + 10_000;
    let root = SpanId(random.next() | 1);
    let service = SERVICES[random.below(10) as usize];
    let operation = OPERATIONS[random.below(10) as usize];
    let calling = maker.half("edge", operation, start_ns, duration_ns);
    let served = maker.half(service, operation, start_ns + 1_000, duration_ns - 2_000);
    let mut spans = vec![span(root.as_root_trace(), root, Some(calling), Some(served))];
    for call in 1..n {
        let at_ns = start_ns + 2_000 + call * 500;
        let operation = OPERATIONS[random.below(10) as usize];
        let calling = maker.half(service, operation, at_ns, duration_ns / 4);
        let serving =
            maker.half(SERVICES[random.below(10) as usize], operation, at_ns + 500, duration_ns / 5);
        let mut inner = span(root.as_root_trace(), SpanId(random.next() | 1), Some(calling), Some(serving));
        inner.root = None;
        inner.link = Some(Link { parent: root, evidence: EvidenceKind::SameThread, confidence: Some(0.98) });
        spans.push(inner);
    }
    spans
}

async fn timed<T>(what: &str, times: u32, mut ask: impl AsyncFnMut() -> Result<T, StoreError>) -> Result<T> {
    let start = Instant::now();
    let mut answer = ask().await?;
    let first = start.elapsed();
    let start = Instant::now();
    for _ in 0..times {
        answer = ask().await?;
    }
    let again = start.elapsed() / times.max(1);
    println!(
        "{what:<40} first {:>9.2} ms, then {:>9.2} ms",
        first.as_secs_f64() * 1e3,
        again.as_secs_f64() * 1e3
    );
    Ok(answer)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let url: StoreUrl = args.next().context("a store's URL")?.parse()?;
    let n_per_trace: u64 = args.next().context("RPCs per trace")?.parse()?;
    let n_rpcs: u64 = args.next().context("RPCs")?.parse()?;
    let now_ns = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let mut info = run("bench", 1);
    info.run_id = RunId(u128::from(now_ns) << 32 | 1);
    info.started_unix_ns = now_ns - HOUR_NS;
    let mut writer = open_writer(&url, &info, Retention::DEFAULT, &[]).await?;
    let mut sender = writer.take_sender();
    let mut maker = Maker::new(&info);
    let mut random = Random::new(7 + n_per_trace);
    let n_traces = n_rpcs / n_per_trace;
    let from_ns = now_ns - HOUR_NS;
    let step_ns = HOUR_NS / n_traces.max(1);
    let (mut wall, mut cpu, mut n_rows, mut n_written) = (Duration::ZERO, Duration::ZERO, 0_u64, 0_u64);
    let mut some = Vec::new();
    let mut spans = Vec::new();
    let mut seq = 0;
    if let Some(sender) = &mut sender {
        let mut tries = 0;
        while let Err(error) = sender.maintain(now_ns).await {
            tries += 1;
            ensure!(tries < 200, "{error}");
            tokio::time::sleep(AGAIN).await;
        }
    }
    for n in 0..n_traces {
        let trace = trace(&mut maker, &mut random, from_ns + n * step_ns, n_per_trace);
        if n % (n_traces / TRACES_ASKED as u64).max(1) == 0 {
            some.push(trace[0].trace_id);
        }
        spans.extend(trace);
        if spans.len() < BATCH_SPANS && n + 1 < n_traces {
            continue;
        }
        seq += 1;
        let (rollups, edges) = (Rollup::of(&spans), Edge::of(&spans));
        n_written += spans.len() as u64;
        let batch = Batch { seq, spans: std::mem::take(&mut spans), rollups, edges };
        let (start, cpu_start) = (Instant::now(), process_cpu());
        match &mut sender {
            Some(sender) => {
                let packed = writer.pack(&batch)?;
                n_rows += packed.n_rows();
                sender.send(&packed).await?;
            }
            None => writer.write(&batch).await?,
        }
        wall += start.elapsed();
        cpu += process_cpu().saturating_sub(cpu_start);
        // As in an agent, where the clock goes with what is seen: sums of hours are written once a minute.
        writer.maintain(from_ns + n * step_ns).await?;
    }
    writer.close().await?;
    let n = n_written as f64;
    println!(
        "{n_written} RPCs in traces of {n_per_trace}: {:.0} RPCs/s, CPU {:.1} us/RPC, {:.3} rows/RPC",
        n / wall.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / n,
        n_rows as f64 / n
    );
    let reader = open_reader(&url).await?;
    ask(reader.as_ref(), &some, from_ns, n_written).await
}

async fn ask(reader: &dyn Reader, some: &[TraceId], from_ns: u64, n_written: u64) -> Result<()> {
    let hour = SpanQuery { since_unix_ns: from_ns, ..slowest(20) };
    timed("slowest 20 of the last hour", 5, async || reader.spans(&hour).await).await?;
    let service = SpanQuery { service: Some("cart".to_owned()), ..hour.clone() };
    timed("slowest 20 of one service, last hour", 1, async || reader.spans(&service).await).await?;
    let newest = SpanQuery { order: dprof_store::Order::Newest, ..hour.clone() };
    timed("newest 20", 5, async || reader.spans(&newest).await).await?;
    let start = Instant::now();
    for id in some {
        ensure!(!reader.trace(*id).await?.rows.is_empty(), "trace {id} is not there");
    }
    println!(
        "{:<40} mean {:>9.2} ms of {}",
        "trace by id",
        start.elapsed().as_secs_f64() * 1e3 / some.len() as f64,
        some.len()
    );
    let day = RollupQuery {
        since_unix_ns: from_ns.saturating_sub(23 * HOUR_NS),
        until_unix_ns: u64::MAX,
        service: None,
        operation: None,
    };
    let sums = timed("counts of 24 h", 5, async || reader.rollup_sums(&day).await).await?;
    let counted: u64 = sums.rows.iter().filter(|sum| sum.key.side == Side::Server).map(|sum| sum.count).sum();
    ensure!(counted >= n_written, "{counted} counted of {n_written}");
    let start = Instant::now();
    let all = reader.spans(&SpanQuery { limit: usize::MAX, since_unix_ns: from_ns, ..newest }).await?;
    let found = all.rows.len() as u64;
    println!(
        "read back: {found} of {n_written} in {:.1} s {}",
        start.elapsed().as_secs_f64(),
        all.warnings.join("; ")
    );
    ensure!(found >= n_written, "{found} read back of {n_written}");
    Ok(())
}
