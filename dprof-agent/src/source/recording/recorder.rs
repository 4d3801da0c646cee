//! Records while the agent runs: its own thread, fed through a bounded queue, so that a slow disk costs the
//! recording and never the capture.
//!
//! What a reader would get wrong: what the recorder loses is written into the recording as a loss
//! ([`EventKind::Lost`](dprof_common::event::EventKind)), so a replay does not take a hole for silence.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytemuck::bytes_of;
use dprof_common::drop_reason::DropReason;
use serde::Serialize;

use super::{RecordingError, RecordingHeader, RecordingWriter, Scrub};
use crate::clock::monotonic_ns;
use crate::queue::{Popped, Receiver, Sender, queue};
use crate::source::Block;
use crate::source::record::lost_record;
use crate::source::redact::Redactor;

/// Bytes of blocks that wait for the disk. They are shared with the engine's queue, so this is memory only while
/// the disk is slower than the engine.
const QUEUE_BYTES_MAX: usize = 8 << 20;
/// Records wait for at most this long before they go to the file: what a killed agent loses.
const FLUSH_EVERY_NS: u64 = 1_000_000_000;
/// Larger records do not exist (payload lengths have 16 bits); a damaged recording that is recorded again may
/// claim one.
const RECORD_BYTES_MAX: usize = 128 << 10;
/// How often the thread looks at the time when nothing comes.
const WAIT: Duration = Duration::from_millis(200);

/// What the recorder wrote and lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RecorderCounters {
    /// Records handed to it.
    pub records: u64,
    /// Bytes in the file.
    pub file_bytes: u64,
    /// Records lost because the disk was slower than the stream.
    pub lost_queue_full: u64,
    /// Records lost because a write failed.
    pub lost_write_failed: u64,
}

#[derive(Debug, Default)]
struct Shared {
    records: AtomicU64,
    file_bytes: AtomicU64,
    lost_queue_full: AtomicU64,
    lost_write_failed: AtomicU64,
}

impl Shared {
    fn counters(&self) -> RecorderCounters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RecorderCounters {
            records: get(&self.records),
            file_bytes: get(&self.file_bytes),
            lost_queue_full: get(&self.lost_queue_full),
            lost_write_failed: get(&self.lost_write_failed),
        }
    }
}

/// How a recording is made.
#[derive(Debug)]
pub struct RecorderOptions {
    /// Values are masked.
    pub redacted: bool,
    /// A full queue blocks instead of losing: for a replay, which has time.
    pub patient: bool,
    /// The agent's own login, to be left out.
    pub scrub: Option<Scrub>,
}

/// A recording under way.
#[derive(Debug)]
pub struct Recorder {
    sender: Option<Sender<Block>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    /// Wait for the disk rather than lose: for a replay, which has time.
    patient: bool,
}

impl Recorder {
    /// Creates the file and starts the thread. `patient`: a full queue blocks instead of losing.
    pub fn start(path: &Path, header: &RecordingHeader, patient: bool) -> Result<Self, RecordingError> {
        let writer = RecordingWriter::create(path, header)?;
        Self::with(writer, RecorderOptions { redacted: header.redacted, patient, scrub: None })
    }

    /// Starts the thread over a file that is there already.
    pub fn with(writer: RecordingWriter, options: RecorderOptions) -> Result<Self, RecordingError> {
        let RecorderOptions { redacted, patient, scrub } = options;
        let (sender, receiver) = queue(QUEUE_BYTES_MAX);
        let shared = Arc::new(Shared::default());
        let path = writer.path().to_owned();
        let task = Task {
            redactor: redacted.then(Redactor::default),
            scrub,
            receiver,
            shared: Arc::clone(&shared),
            path: path.clone(),
            writer,
        };
        let spawned = std::thread::Builder::new().name("dprof-record".to_owned()).spawn(move || task.run());
        let thread = spawned.map_err(|cause: io::Error| RecordingError::Io { path, cause })?;
        Ok(Self { sender: Some(sender), thread: Some(thread), shared, patient })
    }

    /// Reads the counters from anywhere, for as long as it likes.
    pub fn watch(&self) -> impl Fn() -> RecorderCounters + Send + Sync + use<> {
        let shared = Arc::clone(&self.shared);
        move || shared.counters()
    }

    /// Hands a block over. Copies nothing.
    pub fn offer(&self, block: &Block) {
        let Some(sender) = self.sender.as_ref().filter(|_| !block.0.is_empty()) else { return };
        let n_records = block.records().count() as u64;
        self.shared.records.fetch_add(n_records, Ordering::Relaxed);
        let weight = block.0.len();
        let is_lost = if self.patient {
            sender.push_waiting(block.clone(), weight).is_err()
        } else {
            sender.push_or_refuse(block.clone(), weight).is_err()
        };
        if is_lost {
            self.shared.lost_queue_full.fetch_add(n_records, Ordering::Relaxed);
        }
    }

    /// Counters so far.
    pub fn counters(&self) -> RecorderCounters {
        self.shared.counters()
    }

    /// Writes the rest and the end mark.
    pub fn finish(mut self) -> RecorderCounters {
        self.stop();
        self.counters()
    }

    fn stop(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the recording thread failed: the recording ends early");
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Task {
    writer: RecordingWriter,
    redactor: Option<Redactor>,
    scrub: Option<Scrub>,
    receiver: Receiver<Block>,
    shared: Arc<Shared>,
    path: PathBuf,
}

impl Task {
    fn run(mut self) {
        let mut flushed_ns = monotonic_ns();
        let mut told_lost = 0;
        let mut said = false;
        loop {
            match self.receiver.pop(WAIT) {
                Popped::Item(block) => {
                    told_lost = self.tell_losses(told_lost);
                    self.add(&block, &mut said);
                }
                Popped::Nothing => {}
                Popped::End => break,
            }
            let now_ns = monotonic_ns();
            if now_ns >= flushed_ns + FLUSH_EVERY_NS {
                flushed_ns = now_ns;
                let result = self.writer.flush();
                self.count(result, &mut said);
            }
        }
        self.tell_losses(told_lost);
        // The flush and the end mark apart: a failure of one is counted once.
        let result = self.writer.flush();
        self.count(result, &mut said);
        if let Err((error, _)) = self.writer.finish()
            && !said
        {
            log::error!("recording: {error}");
        }
    }

    fn add(&mut self, block: &Block, said: &mut bool) {
        for record in block.records() {
            // A damaged length cannot come from our own sources; the engine counts it.
            let Some(record) = record else { break };
            if record.len() > RECORD_BYTES_MAX {
                self.shared.lost_write_failed.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            let record = match &mut self.redactor {
                Some(redactor) => redactor.redact(record),
                None => record,
            };
            let record = match &mut self.scrub {
                Some(scrub) => scrub.clean(record),
                None => record,
            };
            self.writer.push(&[record]);
            if self.writer.should_flush() {
                let result = self.writer.flush();
                self.count(result, said);
            }
        }
    }

    /// Puts losses since the last call into the recording.
    fn tell_losses(&mut self, told: u64) -> u64 {
        let lost = self.shared.lost_queue_full.load(Ordering::Relaxed)
            + self.shared.lost_write_failed.load(Ordering::Relaxed);
        if lost > told {
            self.writer.push(&[bytes_of(&lost_record(DropReason::RingFull, lost - told, monotonic_ns()))]);
        }
        lost
    }

    fn count(&mut self, result: Result<(), (RecordingError, u64)>, said: &mut bool) {
        self.shared.file_bytes.store(self.writer.file_bytes(), Ordering::Relaxed);
        if let Err((error, lost)) = result {
            self.shared.lost_write_failed.fetch_add(lost, Ordering::Relaxed);
            if !std::mem::replace(said, true) {
                log::error!("recording: {error}; the agent goes on, {} has a hole", self.path.display());
            }
        }
    }
}
