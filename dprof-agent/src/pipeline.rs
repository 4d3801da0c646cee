//! The threads of a run: source → engine → writer, with a bounded queue between each two.
//!
//! What a reader would get wrong: shutdown is one cascade. The source stops (end of a recording, a signal,
//! `--for`), its queue drains into the engine, the engine gives out what is finished, the writer stores it and
//! closes; every stage just sees the end of its queue. A stage that is too slow costs at one place only: a slow
//! engine lets the ring fill (the kernel counts), a slow store displaces the oldest batches (counted here).

mod orders;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use dprof_common::model::Rollup;
use dprof_store::{Batch, Retention, StoreError, Writer};

use crate::batch::Batcher;
use crate::clock::{monotonic_ns, read_clocks};
use crate::deliver::{Delivery, SpoolOptions, deliver};
use crate::engine::{Engine, EngineCounters, Output};
use crate::keep::Word;
use crate::live::{Live, PUBLISH_EVERY_NS, StoreThread};
use crate::memory::give_back;
use crate::privilege;
use crate::queue::{Popped, Receiver, Sender, queue};
use crate::report::merge;
use crate::source::{Block, Source, SourceCounters};
use crate::words::{Exchange, WordCounters};

use self::orders::ToSource;
pub use self::orders::{Orders, Question};

/// Bytes of events between source and engine. A burst of 200,000 pipelined commands in a quarter of a second has
/// 21 MB of events, faster than an engine that shares two cores with them; in steady state next to nothing waits.
pub const EVENTS_BYTES_MAX: usize = 32 << 20;
/// Spans between engine and writer, a kilobyte each: a quarter of a second of 20,000 spans/s, two batches and a half.
/// While more come, events wait, which are a tenth of the size.
pub const SPANS_WAITING_MAX: usize = 5_000;
/// How often the engine looks whether the store has taken a batch.
const STORE_WAIT: Duration = Duration::from_millis(2);
/// How long the source is drained after the stop at most: a full ring of the default size takes a tenth.
const DRAIN_NS_MAX: u64 = 200_000_000;
/// Longest wait of a stage for its queue: how late it notices time passing.
const WAIT: Duration = Duration::from_millis(50);
/// Rollups kept apart for the summary; beyond, minutes are merged. An agent may run for weeks with a summary at its
/// end.
const ROLLUPS_KEPT_MAX: usize = 10_000;
/// Time between two calls of the store's housekeeping.
const MAINTAIN_EVERY_NS: u64 = 1_000_000_000;

/// Bytes of events after which free memory is given back at the next pause: a burst is over then.
const BURST_BYTES: usize = 8 << 20;

/// What the writer did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounters {
    /// Spans stored.
    pub spans_stored: u64,
    /// Batches stored.
    pub batches_stored: u64,
    /// Spans lost because the store had no room.
    pub spans_lost_full: u64,
    /// Spans lost because the store failed otherwise.
    pub spans_lost_failed: u64,
    /// Spans lost because the store was slower than the stream.
    pub spans_lost_slow: u64,
    /// Spans lost because the store was away and the spool had no room, or there was none.
    pub spans_lost_away: u64,
    /// Spans that went through the spool.
    pub spans_spooled: u64,
}

impl StoreCounters {
    /// Adds what another thread counted.
    pub fn add(&mut self, other: &Self) {
        let Self {
            spans_stored,
            batches_stored,
            spans_lost_full,
            spans_lost_failed,
            spans_lost_slow,
            spans_lost_away,
            spans_spooled,
        } = other;
        self.spans_stored += spans_stored;
        self.batches_stored += batches_stored;
        self.spans_lost_full += spans_lost_full;
        self.spans_lost_failed += spans_lost_failed;
        self.spans_lost_slow += spans_lost_slow;
        self.spans_lost_away += spans_lost_away;
        self.spans_spooled += spans_spooled;
    }
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// Of the source.
    pub source: SourceCounters,
    /// Of the engine.
    pub engine: EngineCounters,
    /// Of the store.
    pub store: StoreCounters,
    /// Of the words to and from other agents.
    pub words: WordCounters,
    /// All rollups of the run, if they were asked for.
    pub rollups: Vec<Rollup>,
    /// What went wrong at the end of a stage; empty = nothing.
    pub errors: Vec<String>,
}

/// What a run is made of.
pub struct Stages {
    /// Where events come from.
    pub source: Box<dyn Source>,
    /// The engine.
    pub engine: Engine,
    /// Where spans go.
    pub writer: Option<Box<dyn Writer>>,
    /// Where they wait while a store that can be away is.
    pub spool: Option<SpoolOptions>,
    /// Other agents that are told and heard.
    pub peers: Option<(Exchange, mpsc::Receiver<Word>)>,
    /// A recording waits for the stages after it; a kernel does not.
    pub patient: bool,
    /// Whether rollups are kept for the outcome.
    pub keep_rollups: bool,
}

/// A run under way.
pub struct Running {
    stop: Arc<AtomicBool>,
    questions: mpsc::Sender<Question>,
    orders: Orders,
    source: JoinHandle<(SourceCounters, Option<String>)>,
    engine: JoinHandle<Ended>,
    writer: Option<JoinHandle<(StoreCounters, Option<String>)>>,
    live: Arc<Live>,
}

/// Starts the threads.
pub fn start(stages: Stages) -> anyhow::Result<Running> {
    let stop = Arc::new(AtomicBool::new(false));
    let live = Arc::new(Live::default());
    let (events_in, events_out) = queue::<Block>(EVENTS_BYTES_MAX);
    let (limits_in, limits_out) = mpsc::channel();
    let (questions, asked) = mpsc::channel();
    let (retention_in, retention) = mpsc::channel();
    let (batches, writer) = match stages.writer {
        None => (None, None),
        Some(mut writer) => {
            let (batches_in, batches_out) = queue::<Batch>(SPANS_WAITING_MAX);
            let (spool, patient) = (stages.spool, stages.patient);
            let live = Arc::clone(&live);
            let store = move || match writer.take_sender() {
                Some(sender) => {
                    let options = Delivery { spool: spool.as_ref(), patient, live: &live };
                    deliver(writer, sender, &batches_out, &options)
                }
                None => write(writer, &batches_out, &retention, &live),
            };
            (Some(batches_in), Some(spawn("dprof-store", store)?))
        }
    };
    let orders = Orders::new(questions.clone(), limits_in.clone(), retention_in);
    let source = {
        let (source, stop, live) = (stages.source, Arc::clone(&stop), Arc::clone(&live));
        spawn("dprof-source", move || {
            let outcome = read(source, &stop, &events_in, &limits_out, &live);
            live.end_source();
            outcome
        })?
    };
    let engine = {
        let task = EngineTask {
            engine: stages.engine,
            events: events_out,
            limits: limits_in,
            asked,
            batches,
            peers: stages.peers,
            patient: stages.patient,
            keep_rollups: stages.keep_rollups,
            live: Arc::clone(&live),
        };
        spawn("dprof-engine", move || task.run())?
    };
    Ok(Running { stop, questions, orders, source, engine, writer, live })
}

fn spawn<T: Send + 'static>(
    name: &str,
    task: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(task)
        .with_context(|| format!("start thread {name}"))
}

impl Running {
    /// Tells the source to stop; the rest follows.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether the engine has ended (with its source).
    pub fn is_finished(&self) -> bool {
        self.engine.is_finished()
    }

    /// Where questions to the engine go.
    pub fn questions(&self) -> mpsc::Sender<Question> {
        self.questions.clone()
    }

    /// The way to change what it obeys.
    pub fn orders(&self) -> Orders {
        self.orders.clone()
    }

    /// Counters of every stage, now.
    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }

    /// Waits for every stage to end.
    pub fn join(self) -> anyhow::Result<Outcome> {
        let panicked = |stage: &str| anyhow!("the {stage} thread panicked: please report this");
        let mut errors = Vec::new();
        let (source, error) = self.source.join().map_err(|_| panicked("source"))?;
        errors.extend(error);
        let Ended { engine, words, rollups } = self.engine.join().map_err(|_| panicked("engine"))?;
        let mut store = StoreCounters::default();
        if let Some(writer) = self.writer {
            let (counters, error) = writer.join().map_err(|_| panicked("store"))?;
            store = counters;
            errors.extend(error);
        }
        store.spans_lost_slow = self.live.displaced();
        Ok(Outcome { source, engine, store, words, rollups, errors })
    }
}

/// The source's thread: keeps the ring empty.
fn read(
    mut source: Box<dyn Source>,
    stop: &AtomicBool,
    events: &Sender<Block>,
    told: &mpsc::Receiver<ToSource>,
    live: &Live,
) -> (SourceCounters, Option<String>) {
    // Refused without privilege, and then so be it.
    let _ = privilege::go_first();
    let mut error = None;
    let mut drained_by_ns = None;
    let mut publish_due_ns = 0;
    loop {
        let now_ns = monotonic_ns();
        if now_ns >= publish_due_ns {
            publish_due_ns = now_ns + PUBLISH_EVERY_NS;
            live.publish_source(source.counters(), source.programs());
        }
        let stopping = stop.load(Ordering::Relaxed);
        let block = match source.next_block(WAIT) {
            Ok(Some(block)) => block,
            Ok(None) => break,
            Err(cause) => {
                error = Some(format!("{cause:#}"));
                break;
            }
        };
        let was_empty = block.0.is_empty();
        let weight = block.0.len();
        if !was_empty && events.push_waiting(block, weight).is_err() {
            break;
        }
        for order in told.try_iter() {
            match order {
                ToSource::PayloadLimit(sock, bytes) => source.set_payload_limit(sock, bytes),
                ToSource::Capture(order) => order.tell(&mut *source),
            }
        }
        // What was in the ring when the stop came is taken too: until it is empty, or, under a load that never
        // ends, until that must have been taken.
        if stopping {
            let now_ns = monotonic_ns();
            if was_empty || now_ns >= *drained_by_ns.get_or_insert(now_ns + DRAIN_NS_MAX) {
                break;
            }
        }
    }
    let counters = source.counters();
    live.publish_source(counters, source.programs());
    // Detaches every program before the rest drains.
    drop(source);
    (counters, error)
}

/// What the engine's thread leaves.
struct Ended {
    engine: EngineCounters,
    words: WordCounters,
    rollups: Vec<Rollup>,
}

struct EngineTask {
    engine: Engine,
    events: Receiver<Block>,
    limits: mpsc::Sender<ToSource>,
    asked: mpsc::Receiver<Question>,
    batches: Option<Sender<Batch>>,
    peers: Option<(Exchange, mpsc::Receiver<Word>)>,
    patient: bool,
    keep_rollups: bool,
    live: Arc<Live>,
}

impl EngineTask {
    fn run(mut self) -> Ended {
        let mut out = Output::default();
        let mut batcher = Batcher::default();
        let mut kept = Vec::new();
        let mut since_pause = 0;
        loop {
            let popped = self.events.pop(WAIT);
            match &popped {
                Popped::Item(block) => {
                    since_pause += block.0.len();
                    self.engine.push(block, &mut out);
                }
                Popped::Nothing => {
                    if std::mem::take(&mut since_pause) >= BURST_BYTES {
                        give_back();
                    }
                }
                Popped::End => self.engine.finish(&mut out),
            }
            if let Some((exchange, heard)) = &self.peers {
                heard.try_iter().for_each(|word| self.engine.hear(word, &mut out));
                out.words.drain(..).for_each(|(to, word)| exchange.say(to.ip(), word));
            }
            for (sock, bytes) in out.payload_limits.drain(..) {
                // The source may be gone already.
                let _ = self.limits.send(ToSource::PayloadLimit(sock, bytes));
            }
            if self.keep_rollups {
                kept.extend(out.rollups.iter().cloned());
                if kept.len() >= ROLLUPS_KEPT_MAX {
                    kept = merge(&kept);
                }
            }
            let now_ns = monotonic_ns();
            let mut full = batcher.add(&mut out, now_ns);
            full.extend(batcher.take_due(now_ns));
            for question in self.asked.try_iter() {
                // Who asked may have gone away.
                match question {
                    Question::OpenRequests { limit, answer } => {
                        let _ = answer.send(self.engine.open_requests(limit));
                    }
                    Question::Counters { answer } => {
                        let _ = answer.send(self.engine.counters());
                    }
                    Question::LocalAddresses { answer } => {
                        let _ = answer.send(self.engine.local_addresses());
                    }
                    Question::Obey { settings, done } => {
                        self.engine.obey(&settings, &mut out);
                        let _ = done.send(());
                    }
                }
            }
            let waiting = self.batches.as_ref().map_or(0, Sender::weight);
            self.live.publish_queues(self.events.weight(), waiting);
            let is_end = matches!(popped, Popped::End);
            if is_end {
                full.extend(batcher.take_rest());
            }
            for batch in full {
                self.hand_over(batch);
            }
            if is_end {
                let words =
                    self.peers.map_or_else(WordCounters::default, |(exchange, _)| exchange.counters());
                return Ended { engine: self.engine.counters(), words, rollups: kept };
            }
        }
    }

    /// While the store is behind and events have room to wait, the engine waits: an event is a tenth of the size
    /// of its spans. Only when both queues are full are the oldest batches lost.
    fn hand_over(&self, batch: Batch) {
        let Some(batches) = &self.batches else { return };
        let weight = batch.spans.len();
        if self.patient {
            // Fails only when the writer's thread is gone, which reports itself.
            let _ = batches.push_waiting(batch, weight);
            return;
        }
        let mut batch = batch;
        while self.events.weight() < EVENTS_BYTES_MAX / 8 * 7 {
            match batches.push_or_refuse(batch, weight) {
                Ok(()) => return,
                Err(refused) => batch = refused,
            }
            if batches.is_closed() {
                return;
            }
            std::thread::sleep(STORE_WAIT);
        }
        if let Ok(displaced) = batches.push_displacing(batch, weight) {
            let n: usize = displaced.iter().map(|batch| batch.spans.len()).sum();
            self.live.add_displaced(n as u64);
        }
    }
}

/// The writer's thread. Its store may need a runtime; it gets one of its own, so that nothing else waits with it.
fn write(
    mut writer: Box<dyn Writer>,
    batches: &Receiver<Batch>,
    retention: &mpsc::Receiver<Retention>,
    live: &Live,
) -> (StoreCounters, Option<String>) {
    let mut counters = StoreCounters::default();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return (counters, Some(format!("start the store's runtime: {error}"))),
    };
    runtime.block_on(async move {
        let mut maintain_due_ns = 0;
        let mut complained = false;
        loop {
            match batches.pop(WAIT) {
                Popped::Item(batch) => {
                    let n_spans = batch.spans.len() as u64;
                    match writer.write(&batch).await {
                        Ok(()) => {
                            counters.spans_stored += n_spans;
                            counters.batches_stored += 1;
                            live.note_store(None);
                            if std::mem::take(&mut complained) {
                                log::warn!("storing again");
                            }
                        }
                        Err(error) => {
                            live.note_store(Some(&error.to_string()));
                            if matches!(error, StoreError::Full(_)) {
                                counters.spans_lost_full += n_spans;
                            } else {
                                counters.spans_lost_failed += n_spans;
                            }
                            if !std::mem::replace(&mut complained, true) {
                                log::error!("{error}");
                            }
                        }
                    }
                }
                Popped::Nothing => {}
                Popped::End => break,
            }
            live.publish_store(StoreThread::Writer, counters);
            if let Some(retention) = retention.try_iter().last() {
                writer.set_retention(retention);
            }
            let reading = read_clocks();
            if reading.monotonic_ns >= maintain_due_ns {
                maintain_due_ns = reading.monotonic_ns + MAINTAIN_EVERY_NS;
                if let Err(error) = writer.maintain(reading.unix_ns).await {
                    log::warn!("{error}");
                }
            }
        }
        (counters, writer.close().await.err().map(|error| error.to_string()))
    })
}
