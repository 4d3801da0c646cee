//! What every stage has done so far, for those who ask while it runs: metrics, health, the agents' table.
//!
//! What a reader would get wrong: each stage owns its counters and publishes a copy now and then, so that asking never
//! makes a stage wait; two figures of one answer may be some hundred milliseconds apart.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::pipeline::StoreCounters;
use crate::source::{ProgramRuns, SourceCounters};

/// How often a stage publishes, nanoseconds: what an answer may be behind.
pub const PUBLISH_EVERY_NS: u64 = 250_000_000;

/// The stages' published counters.
#[derive(Debug, Default)]
pub struct Live {
    source: Mutex<(SourceCounters, Vec<ProgramRuns>)>,
    source_ended: AtomicBool,
    /// Of the thread that writes or packs, and of the one that sends.
    store: [Mutex<StoreCounters>; 2],
    spool: Mutex<SpoolState>,
    /// Why the store does not take spans now.
    store_error: Mutex<Option<String>>,
    store_errors: AtomicU64,
    displaced: AtomicU64,
    queued_event_bytes: AtomicU64,
    queued_spans: AtomicU64,
}

/// Which of the two threads that count for the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreThread {
    /// Writes, or packs where another sends.
    Writer,
    /// Sends what was packed.
    Sender,
}

/// What waits on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolState {
    /// Bytes that wait.
    pub bytes: u64,
    /// Bytes that may wait; 0 = there is no spool.
    pub bytes_max: u64,
    /// Spans put in so far.
    pub spans_in: u64,
    /// Spans dropped so far because the limit was reached.
    pub spans_dropped: u64,
}

/// A copy of it all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Of the source.
    pub source: SourceCounters,
    /// Of its programs, by the kernel's count.
    pub programs: Vec<ProgramRuns>,
    /// Whether the source has ended: nothing more is captured.
    pub source_ended: bool,
    /// Of the store.
    pub store: StoreCounters,
    /// On disk.
    pub spool: SpoolState,
    /// Why the store does not take spans now.
    pub store_error: Option<String>,
    /// How often the store did not take something.
    pub store_errors: u64,
    /// Bytes of events between source and engine.
    pub queued_event_bytes: u64,
    /// Spans between engine and store.
    pub queued_spans: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Copies of counters are whole whoever panics.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// The source's part.
    pub fn publish_source(&self, counters: SourceCounters, programs: Vec<ProgramRuns>) {
        *lock(&self.source) = (counters, programs);
    }

    /// The source has ended.
    pub fn end_source(&self) {
        self.source_ended.store(true, Ordering::Relaxed);
    }

    /// One store thread's part.
    pub fn publish_store(&self, thread: StoreThread, counters: StoreCounters) {
        *lock(&self.store[thread as usize]) = counters;
    }

    /// The spool's part.
    pub fn publish_spool(&self, state: SpoolState) {
        *lock(&self.spool) = state;
    }

    /// The store did not take something, or (`None`) does again.
    pub fn note_store(&self, error: Option<&str>) {
        let mut known = lock(&self.store_error);
        match error {
            Some(error) => {
                self.store_errors.fetch_add(1, Ordering::Relaxed);
                *known = Some(error.to_owned());
            }
            None => *known = None,
        }
    }

    /// What waits between the stages.
    pub fn publish_queues(&self, event_bytes: usize, spans: usize) {
        self.queued_event_bytes.store(event_bytes as u64, Ordering::Relaxed);
        self.queued_spans.store(spans as u64, Ordering::Relaxed);
    }

    /// Spans displaced because the store was slower than the stream.
    pub fn add_displaced(&self, spans: u64) {
        self.displaced.fetch_add(spans, Ordering::Relaxed);
    }

    /// How many were displaced so far.
    pub fn displaced(&self) -> u64 {
        self.displaced.load(Ordering::Relaxed)
    }

    /// Everything, as published last.
    pub fn snapshot(&self) -> Snapshot {
        let (source, programs) = lock(&self.source).clone();
        let spool = *lock(&self.spool);
        let mut store = *lock(&self.store[0]);
        store.add(&lock(&self.store[1]));
        store.spans_spooled += spool.spans_in;
        store.spans_lost_away += spool.spans_dropped;
        store.spans_lost_slow += self.displaced();
        Snapshot {
            source,
            programs,
            source_ended: self.source_ended.load(Ordering::Relaxed),
            store,
            spool,
            store_error: lock(&self.store_error).clone(),
            store_errors: self.store_errors.load(Ordering::Relaxed),
            queued_event_bytes: self.queued_event_bytes.load(Ordering::Relaxed),
            queued_spans: self.queued_spans.load(Ordering::Relaxed),
        }
    }
}
