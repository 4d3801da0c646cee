//! Delivery to a store that may be away: packed here, sent by a thread of its own, spooled when that is behind.
//!
//! ```text
//! batches ─▶ pack ─▶ bounded queue ─▶ send ─▶ store
//!               └──────▶ spool ◀───────┘└◀── drained beside
//! ```
//!
//! What a reader would get wrong: packing never waits for the store. What does not fit the queue, and everything
//! while the store is away, goes to disk; live batches are sent before spooled ones, which follow at a bounded rate.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dprof_store::{Batch, Packed, StoreError, Writer};

use crate::clock::{monotonic_ns, read_clocks};
use crate::live::{Live, SpoolState, StoreThread};
use crate::pipeline::StoreCounters;
use crate::queue::{Popped, Receiver, Sender, queue};
use crate::spool::Spool;

/// Spans packed but not sent: two batches and a half. Beyond, the store is slow and the disk takes them.
const SENDING_SPANS_MAX: usize = 5_000;
/// Longest wait for a batch: how late time is noticed.
const WAIT: Duration = Duration::from_millis(50);
/// The store is looked for this often while it is away.
const LOOK_EVERY_NS: u64 = 1_000_000_000;
/// Spooled batches are sent at most this fast, in spans: live ones of a busy host are a tenth.
const DRAIN_SPANS_PER_S: u64 = 50_000;
/// Unused rate is kept for this long.
const DRAIN_BURST_SPANS: u64 = 5_000;
/// Time at the end of a run for what waits in the spool, anew after each batch that goes; the rest is the next
/// agent's.
const LAST_DRAIN_NS: u64 = 5_000_000_000;
/// All of that time, unless the run is a recording's: service managers kill after a minute and a half.
const LAST_DRAIN_NS_MAX: u64 = 30_000_000_000;
/// After a failure live batches go to the spool at once for this long, so that a store that hangs costs one batch's
/// time a second, not each.
const AWAY_FOR_NS: u64 = 1_000_000_000;

/// Where batches wait while the store is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolOptions {
    /// Folder, made if it is not there.
    pub dir: PathBuf,
    /// Bytes at most; the oldest are dropped.
    pub bytes_max: u64,
}

/// How to deliver.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// Where batches wait; `None`: nowhere.
    pub spool: Option<&'a SpoolOptions>,
    /// A recording waits for the store; a kernel does not.
    pub patient: bool,
    /// Where counters are published.
    pub live: &'a Arc<Live>,
}

/// What both threads share.
struct Shared {
    spool: Mutex<Option<Spool>>,
    is_away: AtomicBool,
    live: Arc<Live>,
}

impl Shared {
    /// Puts a batch into the spool; how many spans are lost if that fails.
    fn put(&self, packed: Packed) -> u64 {
        let n_spans = packed.n_spans;
        let mut spool = self.spool.lock().unwrap_or_else(PoisonError::into_inner);
        let put = spool.as_mut().map(|spool| spool.put(packed));
        self.publish(spool.as_ref());
        match put {
            Some(Ok(())) => 0,
            Some(Err(error)) => {
                log::error!("{error:#}");
                n_spans
            }
            None => n_spans,
        }
    }

    fn with<T>(&self, ask: impl FnOnce(&mut Spool) -> T) -> Option<T> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(ask)
    }

    fn publish(&self, spool: Option<&Spool>) {
        if let Some(spool) = spool {
            self.live.publish_spool(state(spool));
        }
    }
}

fn state(spool: &Spool) -> SpoolState {
    let counters = spool.counters();
    SpoolState {
        bytes: spool.bytes(),
        bytes_max: spool.bytes_max(),
        spans_in: counters.spans_in,
        spans_dropped: counters.spans_dropped,
    }
}

/// Packs and delivers until the batches end; counters, and what went wrong at the end.
pub fn deliver(
    mut writer: Box<dyn Writer>,
    sender: Box<dyn dprof_store::Sender>,
    batches: &Receiver<Batch>,
    options: &Delivery<'_>,
) -> (StoreCounters, Option<String>) {
    let &Delivery { spool, patient, live } = options;
    let mut counters = StoreCounters::default();
    let spool = spool.map(|options| Spool::open(&options.dir, options.bytes_max)).transpose();
    let spool = spool.unwrap_or_else(|error| {
        // It runs on: while the store is there nothing is lost.
        log::error!("{error:#}");
        None
    });
    let waiting = spool.as_ref().map_or(0, Spool::bytes);
    if waiting > 0 {
        log::warn!("the spool holds {waiting} bytes of an earlier run: they are sent too");
    }
    let shared =
        Arc::new(Shared { spool: Mutex::new(spool), is_away: AtomicBool::new(true), live: Arc::clone(live) });
    // Until it has been reached once, it is away.
    live.note_store(Some("not connected yet"));
    shared.with(|spool| live.publish_spool(state(spool)));
    let (packed_in, packed_out) = queue::<Packed>(SENDING_SPANS_MAX);
    let thread = {
        let shared = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("dprof-send".to_owned())
            .spawn(move || send(sender, &packed_out, &shared, patient))
    };
    let thread = match thread {
        Ok(thread) => thread,
        Err(error) => return (counters, Some(format!("start thread dprof-send: {error}"))),
    };
    let result = pack(&mut *writer, batches, &packed_in, &shared, patient, &mut counters);
    // The sender sees the end.
    drop(packed_in);
    match thread.join() {
        Ok(sent) => counters.add(&sent),
        Err(_) => return (counters, Some("the sending thread panicked: please report this".to_owned())),
    }
    if let Some(left) = shared.with(|spool| state(spool)) {
        counters.spans_spooled = left.spans_in;
        counters.spans_lost_away += left.spans_dropped;
        if left.bytes > 0 {
            log::warn!("the spool still holds {} bytes: the next agent with it sends them", left.bytes);
        }
    }
    (counters, result.err().map(|error| error.to_string()))
}

/// Packs until the batches end.
fn pack(
    writer: &mut dyn Writer,
    batches: &Receiver<Batch>,
    packed_in: &Sender<Packed>,
    shared: &Shared,
    patient: bool,
    counters: &mut StoreCounters,
) -> Result<(), StoreError> {
    // Housekeeping of a packer waits for nothing, so any runtime will do.
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| {
        StoreError::Other(anyhow::Error::new(error).context("start the packer's runtime"))
    })?;
    let mut maintain_due_ns = 0;
    loop {
        match batches.pop(WAIT) {
            Popped::Item(batch) => match writer.pack(&batch) {
                Ok(packed) => {
                    let weight = packed.n_spans as usize;
                    let refused = if shared.is_away.load(Ordering::Relaxed) {
                        Err(packed)
                    } else if patient {
                        // A recording waits; it fails only when the sender is gone, which reports itself.
                        let _ = packed_in.push_waiting(packed, weight);
                        Ok(())
                    } else {
                        packed_in.push_or_refuse(packed, weight)
                    };
                    if let Err(packed) = refused {
                        counters.spans_lost_away += shared.put(packed);
                    }
                }
                Err(error) => {
                    log::error!("{error}");
                    counters.spans_lost_failed += batch.spans.len() as u64;
                }
            },
            Popped::Nothing => {}
            Popped::End => break,
        }
        shared.live.publish_store(StoreThread::Writer, *counters);
        let reading = read_clocks();
        if reading.monotonic_ns >= maintain_due_ns {
            maintain_due_ns = reading.monotonic_ns + LOOK_EVERY_NS;
            runtime.block_on(writer.maintain(reading.unix_ns))?;
        }
    }
    Ok(())
}

/// How many spans may be drained now.
struct Rate {
    tokens: u64,
    last_ns: u64,
}

impl Rate {
    const fn new(now_ns: u64) -> Self {
        Self { tokens: DRAIN_BURST_SPANS, last_ns: now_ns }
    }

    fn refill(&mut self, now_ns: u64) {
        let earned = now_ns.saturating_sub(self.last_ns) * DRAIN_SPANS_PER_S / 1_000_000_000;
        if earned > 0 {
            self.last_ns = now_ns;
            self.tokens = (self.tokens + earned).min(DRAIN_BURST_SPANS);
        }
    }

    /// A batch of counts weighs as much as a hundred spans.
    fn take(&mut self, n_spans: u64) {
        self.tokens = self.tokens.saturating_sub(n_spans.max(100));
    }
}

/// The sending thread.
fn send(
    sender: Box<dyn dprof_store::Sender>,
    packed: &Receiver<Packed>,
    shared: &Shared,
    patient: bool,
) -> StoreCounters {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let task = SendTask {
                sender,
                shared,
                patient,
                counters: StoreCounters::default(),
                away_until_ns: 0,
                look_due_ns: 0,
                said: None,
            };
            let counters = runtime.block_on(task.run(packed));
            // A connection that hangs must not hold up the end.
            runtime.shutdown_background();
            counters
        }
        Err(error) => {
            log::error!("start the sender's runtime: {error}");
            StoreCounters::default()
        }
    }
}

struct SendTask<'a> {
    sender: Box<dyn dprof_store::Sender>,
    shared: &'a Shared,
    patient: bool,
    counters: StoreCounters,
    away_until_ns: u64,
    look_due_ns: u64,
    /// What was said last about the store, to say it once.
    said: Option<String>,
}

impl SendTask<'_> {
    async fn run(mut self, packed: &Receiver<Packed>) -> StoreCounters {
        let mut rate = Rate::new(monotonic_ns());
        loop {
            let now_ns = monotonic_ns();
            if now_ns >= self.look_due_ns {
                self.look_due_ns = now_ns + LOOK_EVERY_NS;
                let looked = self.sender.maintain(read_clocks().unix_ns).await;
                self.note(looked.err());
                self.publish();
            }
            // The runtime's other tasks (connections, time) run while this one waits, so it waits in their way.
            match packed.pop(Duration::ZERO) {
                Popped::Item(packed) => self.send_live(packed).await,
                Popped::End => break,
                Popped::Nothing => {
                    rate.refill(monotonic_ns());
                    if rate.tokens == 0 || !self.drain_one(&mut rate).await {
                        tokio::time::sleep(IDLE).await;
                    }
                    continue;
                }
            }
            // Beside a stream of live batches too, or a busy store's spool would never empty.
            rate.refill(monotonic_ns());
            if rate.tokens > 0 {
                self.drain_one(&mut rate).await;
            }
        }
        let mut until_ns = monotonic_ns() + LAST_DRAIN_NS;
        let until_ns_max = if self.patient { u64::MAX } else { monotonic_ns() + LAST_DRAIN_NS_MAX };
        while monotonic_ns() < until_ns {
            // The store may be coming just now.
            let looked = self.sender.maintain(read_clocks().unix_ns).await;
            let is_empty = self.shared.with(|spool| spool.is_empty()).unwrap_or(true);
            if is_empty {
                break;
            }
            self.note(looked.err());
            rate.tokens = DRAIN_BURST_SPANS;
            if self.drain_one(&mut rate).await {
                until_ns = (monotonic_ns() + LAST_DRAIN_NS).min(until_ns_max);
            } else {
                tokio::time::sleep(WAIT).await;
            }
        }
        self.counters
    }

    async fn send_live(&mut self, packed: Packed) {
        if monotonic_ns() < self.away_until_ns {
            self.counters.spans_lost_away += self.shared.put(packed);
            return;
        }
        match self.sender.send(&packed).await {
            Ok(()) => self.stored(packed.n_spans),
            Err(error) if is_away(&error) => {
                self.counters.spans_lost_away += self.shared.put(packed);
                self.note(Some(error));
            }
            Err(error) => {
                self.counters.spans_lost_failed += packed.n_spans;
                self.note(Some(error));
            }
        }
    }

    /// Sends the oldest spooled batch; whether there was one and it went.
    async fn drain_one(&mut self, rate: &mut Rate) -> bool {
        if monotonic_ns() < self.away_until_ns || self.shared.is_away.load(Ordering::Relaxed) {
            return false;
        }
        let Some(packed) = self.shared.with(Spool::oldest).flatten() else { return false };
        match self.sender.send(&packed).await {
            Ok(()) => {
                rate.take(packed.n_spans);
                self.stored(packed.n_spans);
                self.shared.with(|spool| spool.taken(&packed));
                true
            }
            Err(error) if is_away(&error) => {
                self.note(Some(error));
                false
            }
            Err(error) => {
                // It can never be stored: without it the others can.
                self.counters.spans_lost_failed += packed.n_spans;
                self.shared.with(|spool| spool.taken(&packed));
                self.note(Some(error));
                true
            }
        }
    }

    fn publish(&self) {
        self.shared.live.publish_store(StoreThread::Sender, self.counters);
        self.shared.with(|spool| self.shared.live.publish_spool(state(spool)));
    }

    fn stored(&mut self, n_spans: u64) {
        self.counters.spans_stored += n_spans;
        self.counters.batches_stored += 1;
        self.note(None);
    }

    /// Says once that the store is away and why, and once that it is back.
    fn note(&mut self, error: Option<StoreError>) {
        self.shared.is_away.store(error.as_ref().is_some_and(is_away), Ordering::Relaxed);
        self.shared.live.note_store(error.as_ref().map(ToString::to_string).as_deref());
        if let Some(error) = error {
            self.away_until_ns = monotonic_ns() + AWAY_FOR_NS;
            let text = error.to_string();
            if self.said.as_ref() != Some(&text) {
                log::error!("{text}; spans go to the spool until it is back");
                self.said = Some(text);
            }
        } else {
            self.away_until_ns = 0;
            if self.said.take().is_some() {
                log::warn!("storing again");
            }
        }
    }
}

/// Pause while there is nothing to send.
const IDLE: Duration = Duration::from_millis(10);

/// Whether the same batch may be taken later. A keyspace that is not there yet will be made.
const fn is_away(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Away(_) | StoreError::NotFound(_) | StoreError::Unsupported(_) | StoreError::Newer { .. }
    )
}
