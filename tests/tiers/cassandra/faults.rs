//! Nodes that die, hang and come back while an agent's delivery writes to them.
//!
//! The delivery is the agent's own (packing, queue, spool, sender), fed with generated spans at a steady rate. What
//! it counted as stored must be in the store exactly once, and nothing may be lost, since the spool has room.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use dprof_agent::deliver::{Delivery, SpoolOptions, deliver};
use dprof_agent::live::Live;
use dprof_agent::pipeline::StoreCounters;
use dprof_agent::queue::queue;
use dprof_common::model::{EvidenceKind, Link, SpanId};
use dprof_store::conformance::{EPOCH_NS, Maker, Random, run, slowest, span};
use dprof_store::{Batch, RunInfo, open_reader, open_writer};

use dprof_tests::poll;

use super::Keyspace;

/// Spans of a batch, and the pause after it: about 1,000 spans a second.
const BATCH_SPANS: u64 = 100;
const PAUSE: Duration = Duration::from_millis(100);
/// Spans that may wait between engine and delivery, as in the agent.
const WAITING_MAX: usize = 10_000;
/// What came during some seconds without a ring is sent within this, seconds, also on a busy machine; and what came during
/// two minutes.
const DRAINED_WITHIN_S: [u64; 2] = [90, 900];

/// Asks for the long forms: a node hangs for half a minute, all are away for two.
const FULL: &str = "DPROF_TEST_FULL";
/// What a store that is away may cost this process in memory: what waits for the disk, and the driver's attempts.
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// Of the machines that this is run on.
const PAGE_BYTES: u64 = 4096;

/// `short`, or `long` where the long forms are asked for.
fn as_asked(short: u64, long: u64) -> Duration {
    Duration::from_secs(if std::env::var_os(FULL).is_some() { long } else { short })
}

/// Resident memory of this process, bytes: its second number in pages.
fn resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").expect("procfs is mounted");
    let pages: u64 = text.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number");
    pages * PAGE_BYTES
}

/// Traces of two RPCs, one batch after another.
struct Generator {
    maker: Maker,
    random: Random,
    seq: u64,
    ids: BTreeSet<SpanId>,
}

impl Generator {
    fn new(info: &RunInfo, seed: u64) -> Self {
        Self { maker: Maker::new(info), random: Random::new(seed), seq: 0, ids: BTreeSet::new() }
    }

    fn batch(&mut self) -> Batch {
        self.seq += 1;
        let mut spans = Vec::new();
        for n in 0..BATCH_SPANS / 2 {
            let start_ns = EPOCH_NS + self.seq * 100_000_000 + n * 1_000_000;
            let (root, call) = (SpanId(self.random.next() | 1), SpanId(self.random.next() | 1));
            let served = self.maker.half("web", "GET /cart", start_ns, 400_000 + self.random.below(400_000));
            spans.push(span(root.as_root_trace(), root, None, Some(served)));
            let calling = self.maker.half("web", "GET", start_ns + 1000, 200_000);
            let serving = self.maker.half("cache", "GET", start_ns + 2000, 100_000);
            let mut inner = span(root.as_root_trace(), call, Some(calling), Some(serving));
            inner.root = None;
            inner.link = Some(Link { parent: root, evidence: EvidenceKind::SameThread, confidence: None });
            spans.push(inner);
            self.ids.extend([root, call]);
        }
        Batch { seq: self.seq, spans, ..Batch::default() }
    }
}

/// Writes until `act` has done its work on the ring, then waits for the rest; then checks what is there.
///
/// `act` may stop the writing before it is done: what a busy machine's nodes take to come back would otherwise add to
/// what waits.
fn check(act: impl FnOnce(&Keyspace, &AtomicBool)) {
    let Some(keyspace) = Keyspace::new() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let info = run("fault-1", 77);
    let writer = keyspace
        .runtime
        .block_on(open_writer(&keyspace.url, &info, dprof_store::Retention::DEFAULT, &[]))
        .expect("opens");
    let (batches_in, batches_out) = queue::<Batch>(WAITING_MAX);
    let stop = Arc::new(AtomicBool::new(false));
    let feeding = {
        let (stop, info) = (Arc::clone(&stop), info.clone());
        thread::spawn(move || {
            let mut generator = Generator::new(&info, 5);
            while !stop.load(Ordering::Relaxed) {
                let batch = generator.batch();
                let weight = batch.spans.len();
                let displaced = batches_in.push_displacing(batch, weight).expect("the delivery runs");
                assert!(displaced.is_empty(), "delivery never waits for the store");
                thread::sleep(PAUSE);
            }
            (generator.ids, batches_in)
        })
    };
    let delivering = {
        let options = SpoolOptions { dir: folder.path().join("spool"), bytes_max: 1 << 30 };
        thread::spawn(move || {
            let mut writer = writer;
            let sender = writer.take_sender().expect("Cassandra may be away");
            let delivery =
                Delivery { spool: Some(&options), patient: false, live: &Arc::new(Live::default()) };
            deliver(writer, sender, &batches_out, &delivery)
        })
    };
    // Connected, its tables known, the first batches gone.
    thread::sleep(Duration::from_secs(2));
    let before = resident_bytes();
    act(&keyspace, &stop);
    let growth = resident_bytes().saturating_sub(before);
    assert!(growth <= GROWTH_BYTES_MAX, "{growth} bytes more than before");
    thread::sleep(Duration::from_secs(1));
    stop.store(true, Ordering::Relaxed);
    let (ids, batches_in) = feeding.join().expect("fed");
    // The agent goes on for a while: what was spooled follows.
    let spool = folder.path().join("spool");
    let is_empty = || fs::read_dir(&spool).is_ok_and(|mut entries| entries.next().is_none());
    let [short, long] = DRAINED_WITHIN_S;
    poll::until(as_asked(short, long), "the spool is empty", || is_empty().then_some(())).expect("drains");
    drop(batches_in);
    let (counters, error) = delivering.join().expect("delivered");
    assert_eq!(error, None);
    check_stored(&keyspace, &ids, counters);
}

fn check_stored(keyspace: &Keyspace, ids: &BTreeSet<SpanId>, counters: StoreCounters) {
    let n = ids.len() as u64;
    let lost = counters.spans_lost_away + counters.spans_lost_failed + counters.spans_lost_full;
    assert_eq!((counters.spans_stored, lost), (n, 0), "{counters:?}");
    // Every row before merging: no batch has two keys.
    let rows = keyspace.cql(&format!("SELECT span_count FROM {}.traces", keyspace.name));
    let n_rows: u64 = rows.iter().map(|row| row.parse::<u64>().expect("a number")).sum();
    assert_eq!(n_rows, n, "rows before merging");
    let found = keyspace.runtime.block_on(async {
        let reader = open_reader(&keyspace.url).await.expect("the ring is up");
        reader.spans(&slowest(usize::MAX)).await.expect("answers")
    });
    assert_eq!(found.warnings, Vec::<String>::new());
    let found: BTreeSet<SpanId> = found.rows.iter().map(|span| span.span_id).collect();
    assert_eq!(&found, ids, "every span, by its id");
}

fn on_all(keyspace: &Keyspace, act: impl Fn(u8)) {
    (1..=keyspace.ring.options.n_nodes).for_each(act);
}

#[test]
fn a_node_killed_while_writing_loses_nothing() {
    check(|keyspace, _| {
        keyspace.ring.signal(3, libc::SIGKILL).expect("runs");
        keyspace.ring.wait_ended(3).expect("ends");
        thread::sleep(Duration::from_secs(3));
        keyspace.ring.start_node(3).expect("starts");
        keyspace.ring.wait_ready(&|| Ok(())).expect("comes back");
    });
}

#[test]
fn a_node_that_hangs_holds_nothing_up() {
    check(|keyspace, _| {
        keyspace.ring.signal(2, libc::SIGSTOP).expect("runs");
        thread::sleep(as_asked(6, 30));
        keyspace.ring.signal(2, libc::SIGCONT).expect("runs");
        keyspace.ring.wait_ready(&|| Ok(())).expect("comes back");
    });
}

#[test]
fn what_comes_while_all_nodes_are_dead_waits_in_the_spool() {
    check(|keyspace, stop| {
        on_all(keyspace, |node| keyspace.ring.signal(node, libc::SIGKILL).expect("runs"));
        on_all(keyspace, |node| keyspace.ring.wait_ended(node).expect("ends"));
        thread::sleep(as_asked(3, 120));
        stop.store(true, Ordering::Relaxed);
        on_all(keyspace, |node| keyspace.ring.start_node(node).expect("starts"));
        keyspace.ring.wait_ready(&|| Ok(())).expect("comes back");
    });
}
