//! Measures the embedded store: `cargo run --release -p dprof-store --example ingest -- [SPANS] [BATCH] [DIR] [STEP_US]`.
//!
//! Writes generated traces of five RPCs (one request, four calls, a fifth of them with both halves), as one thread
//! would, then asks the usual questions. Only the calls of the store are timed, not the generator. With STEP_US a span
//! starts every so many microseconds instead of 20, counts per minute are written too, and in the last fifth of the
//! time `cache` takes three times as long: a store for the questions of `dprof-cli why`.
#![expect(clippy::print_stdout, reason = "prints its result")]
#![expect(clippy::disallowed_methods, reason = "a measurement")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dprof_common::model::{Edge, EvidenceKind, Link, Rollup, RollupKey, Span, SpanId};
use dprof_store::conformance::{EPOCH_NS, Maker, Random, run, slowest, span};
use dprof_store::{Batch, Order, Reader, Retention, StoreUrl, open_reader, open_writer};

const SERVICES: [&str; 10] =
    ["web", "cart", "cache", "session", "orders", "stock", "mail", "search", "users", "pay"];
const OPERATIONS: [&str; 10] =
    ["GET", "SET", "DEL", "INCR", "MGET", "HGET", "LPUSH", "EXPIRE", "EVAL", "SCAN"];

struct Generator {
    random: Random,
    maker: Maker,
    n: u64,
    root: SpanId,
    now_ns: u64,
    step_ns: u64,
    /// From here on `cache` is slow.
    slow_from_ns: u64,
}

impl Generator {
    fn next_span(&mut self) -> Span {
        let random = &mut self.random;
        self.now_ns += self.step_ns;
        let id = SpanId(random.next() | 1);
        // Log-normal by the sum of uniform numbers; one in 100,000 is slow.
        let e = (0..4).map(|_| random.below(1000)).sum::<u64>() as f64 / 1000.0;
        let slow = if random.one_in(100_000) { 100 } else { 1 };
        let duration_ns = ((e * 2.0).exp() * 20_000.0) as u64 * slow;
        let service = SERVICES[random.below(10) as usize];
        let operation = OPERATIONS[random.below(10) as usize];
        let is_slow = self.now_ns >= self.slow_from_ns && service == "cache";
        let duration_ns = if is_slow { 3 * duration_ns } else { duration_ns };
        let is_root = self.n.is_multiple_of(5);
        self.n += 1;
        if is_root {
            self.root = id;
            let served = self.maker.half(service, operation, self.now_ns, duration_ns);
            return span(id.as_root_trace(), id, None, Some(served));
        }
        let calling = self.maker.half(service, operation, self.now_ns, duration_ns);
        let served = (self.n % 5 == 2)
            .then(|| self.maker.half("cache", operation, self.now_ns + 10, duration_ns.saturating_sub(20)));
        let mut call = span(self.root.as_root_trace(), id, Some(calling), served);
        call.root = None;
        call.link =
            Some(Link { parent: self.root, evidence: EvidenceKind::SameThread, confidence: Some(0.98) });
        call
    }
}

/// Counts per minute, given out when their minute is over, as an agent does.
#[derive(Default)]
struct Minutes(BTreeMap<RollupKey, Rollup>);

impl Minutes {
    fn count(&mut self, spans: &[Span], is_last: bool) -> Vec<Rollup> {
        for rollup in Rollup::of(spans) {
            match self.0.get_mut(&rollup.key) {
                Some(sum) => sum.merge(&rollup),
                None => drop(self.0.insert(rollup.key.clone(), rollup)),
            }
        }
        let newest = self.0.keys().next_back().map_or(0, |key| key.minute_unix_s);
        let done = self.0.extract_if(.., |key, _| is_last || key.minute_unix_s < newest);
        done.map(|(_, rollup)| rollup).collect()
    }
}

fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a live timespec, and this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn folder_bytes(dir: &Path) -> u64 {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let meta = entry.metadata().expect("readable");
            if meta.is_dir() { folder_bytes(&entry.path()) } else { meta.len() }
        })
        .sum()
}

async fn timed<T>(what: &str, asked: impl Future<Output = T>) -> T {
    let start = Instant::now();
    let answer = asked.await;
    println!("{what:<44} {:>9.2} ms", start.elapsed().as_secs_f64() * 1e3);
    answer
}

async fn ask(reader: &dyn Reader, some: &[Span]) {
    for round in ["first", "again"] {
        timed(&format!("slowest 20, {round}"), reader.spans(&slowest(20))).await.expect("answers");
        let trace = timed(&format!("trace by id, {round}"), reader.trace(some[0].trace_id)).await;
        assert_eq!(trace.expect("answers").rows.len(), 5);
    }
    let start = Instant::now();
    for span in some {
        reader.trace(span.trace_id).await.expect("answers");
    }
    println!(
        "{:<44} {:>9.2} ms",
        "trace by id, mean of many",
        start.elapsed().as_secs_f64() * 1e3 / some.len() as f64
    );
    timed("trace of a span", reader.trace_of_span(some[1].span_id)).await.expect("answers").expect("known");
    timed("unknown trace", reader.trace(SpanId(12).as_root_trace())).await.expect("answers");
    timed("traces with prefix ab12", reader.traces_with_prefix("ab12", 10)).await.expect("answers");
    let web = dprof_store::SpanQuery { service: Some("web".to_owned()), ..slowest(20) };
    timed("slowest 20 of a service", reader.spans(&web)).await.expect("answers");
    let roots = dprof_store::SpanQuery { roots_only: true, ..web.clone() };
    timed("slowest 20 requests of a service", reader.spans(&roots)).await.expect("answers");
    for (name, order) in [("newest 20", Order::Newest), ("fastest 20", Order::Fastest)] {
        timed(name, reader.spans(&dprof_store::SpanQuery { order, ..slowest(20) })).await.expect("answers");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default| args.next().map_or(default, |text| text.parse().expect("a number"));
    let (n_spans, batch_spans): (u64, u64) = (number(1_000_000), number(1000));
    let dir = args.next().map_or_else(|| std::env::temp_dir().join("dprof-ingest"), PathBuf::from);
    let step_us: Option<u64> = args.next().map(|text| text.parse().expect("a number"));
    let _ = std::fs::remove_dir_all(&dir);

    let url = StoreUrl::Sqlite(dir.clone());
    let info = run("bench", 1);
    let mut writer = open_writer(&url, &info, Retention::DEFAULT, &[]).await.expect("opens");
    let mut generator = Generator {
        random: Random::new(7),
        maker: Maker::new(&info),
        n: 0,
        root: SpanId(1),
        now_ns: EPOCH_NS,
        step_ns: step_us.unwrap_or(20) * 1_000,
        slow_from_ns: step_us.map_or(u64::MAX, |us| EPOCH_NS + n_spans * us * 800),
    };
    let (mut wall, mut cpu, mut worst) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut some = Vec::new();
    let mut minutes = Minutes::default();
    for seq in 1..=n_spans / batch_spans {
        let spans: Vec<Span> = (0..batch_spans).map(|_| generator.next_span()).collect();
        if seq % (n_spans / batch_spans / 50).max(1) == 0 {
            some.push(spans[(batch_spans / 2) as usize].clone());
        }
        let is_last = seq == n_spans / batch_spans;
        let (rollups, edges) = match step_us {
            Some(_) => (minutes.count(&spans, is_last), Edge::of(&spans)),
            None => (Vec::new(), Vec::new()),
        };
        let batch = Batch { seq, spans, rollups, edges };
        let (start, cpu_start) = (Instant::now(), thread_cpu());
        writer.write(&batch).await.expect("writes");
        if seq % 50 == 0 {
            writer.maintain(generator.now_ns).await.expect("maintains");
        }
        let took = start.elapsed();
        wall += took;
        worst = worst.max(took);
        cpu += thread_cpu().saturating_sub(cpu_start);
    }
    let start = Instant::now();
    writer.close().await.expect("closes");
    let closing = start.elapsed();
    let rate = |time: Duration| n_spans as f64 / time.as_secs_f64();
    let bytes = folder_bytes(&dir);
    println!("{n_spans} spans in batches of {batch_spans}");
    println!(
        "wall {:.2} s = {:.0} spans/s; CPU {:.2} s = {:.2} us/span = {:.0} spans/s; worst batch {:.1} ms; close {:.0} ms",
        wall.as_secs_f64(),
        rate(wall),
        cpu.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / n_spans as f64,
        rate(cpu),
        worst.as_secs_f64() * 1e3,
        closing.as_secs_f64() * 1e3,
    );
    println!("{:.1} MB = {:.0} bytes/span", bytes as f64 / 1e6, bytes as f64 / n_spans as f64);
    let reader = timed("open the store", open_reader(&url)).await.expect("opens");
    ask(reader.as_ref(), &some).await;
}
