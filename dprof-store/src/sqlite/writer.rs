//! The agent's end: batches into the live chunk, which is exchanged by age, by size, and when a reader keeps its
//! log from being emptied.
//!
//! Blocks its thread for the length of a transaction (10 ms per 1,000 spans); call it where that does no harm.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use async_trait::async_trait;
use rusqlite::OptionalExtension;

use super::access::Access;
use super::chunk::{open_for_reading, sqlite_error};
use super::expire::expire;
use super::live::LiveChunk;
use super::lock::{Lock, lock_netns, lock_run};
use super::run::{RunDir, chunk_path, create_run, list_chunks};
use super::seal::{Job, Sealed, leftovers, seal};
use crate::{Batch, Retention, RunInfo, StoreError, Writer};

/// Between looks at all files of the store, nanoseconds.
const EXPIRE_INTERVAL_NS: u64 = 5_000_000_000;

/// Writes one run of an embedded store.
pub(crate) struct SqliteWriter {
    dir: PathBuf,
    run: RunDir,
    retention: Retention,
    access: Access,
    live: Option<LiveChunk>,
    next_chunk: u32,
    written: Written,
    now_ns: u64,
    expired_ns: u64,
    to_seal: VecDeque<Job>,
    sealing: Option<(PathBuf, JoinHandle<Result<Sealed, StoreError>>)>,
    _locks: Vec<Lock>,
}

impl SqliteWriter {
    /// Locks, makes the run's folder, and looks for what earlier agents left.
    pub(crate) fn open(
        dir: &Path,
        info: &RunInfo,
        retention: Retention,
        netns: &[u32],
        access: Access,
    ) -> Result<Self, StoreError> {
        access.create_store(dir)?;
        let mut locks = lock_netns(dir, netns, access)?;
        let run = create_run(dir, info, access)?;
        match lock_run(&run.path, access)? {
            Some(lock) => locks.push(lock),
            None => {
                return Err(StoreError::Other(anyhow::anyhow!(
                    "run {} is already being written: start with a new run id",
                    info.run_id
                )));
            }
        }
        let mut written = Written::default();
        let mut next_chunk = 1;
        let mut to_seal: VecDeque<Job> = leftovers(dir, &run.path, access)?.into();
        for chunk in list_chunks(&run.path)? {
            written.read_from(&chunk.path)?;
            next_chunk = chunk.number + 1;
            if chunk.sealed.is_none() {
                to_seal.push_back(Job { path: chunk.path, connection: None, run_lock: None });
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            run,
            retention,
            access,
            live: None,
            next_chunk,
            written,
            now_ns: info.started_unix_ns,
            expired_ns: 0,
            to_seal,
            sealing: None,
            _locks: locks,
        })
    }

    fn write_batch(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.written.contains(batch.seq) {
            return Ok(());
        }
        if self.live.as_ref().is_some_and(|live| live.bytes() >= self.retention.chunk_bytes) {
            self.rotate();
        }
        if self.live.is_none() {
            let first_ns = batch.spans.first().map_or_else(
                || batch.rollups.first().map_or(self.now_ns, |r| r.key.minute_unix_s * 1_000_000_000),
                dprof_common::model::Span::start_ns,
            );
            let path = chunk_path(&self.run.path, self.next_chunk);
            self.live = Some(LiveChunk::create(path, first_ns, self.now_ns, self.access)?);
            self.next_chunk += 1;
        }
        let live = self.live.as_mut().expect("made above");
        live.write(batch)?;
        self.written.insert(batch.seq);
        if !live.bound_wal() {
            log::warn!("{}: a reader keeps the log from being emptied: new chunk", live.path.display());
            self.rotate();
        }
        Ok(())
    }

    /// Ends the live chunk; the next batch makes a new one.
    fn rotate(&mut self) {
        if let Some(live) = self.live.take() {
            let LiveChunk { connection, path, .. } = live;
            self.to_seal.push_back(Job { path, connection: Some(connection), run_lock: None });
            self.expired_ns = 0;
            self.seal_next();
        }
    }

    /// One chunk at a time, on its own thread.
    fn seal_next(&mut self) {
        if let Some((path, thread)) = self.sealing.take_if(|(_, thread)| thread.is_finished()) {
            let result = thread.join().unwrap_or_else(|_| {
                Err(StoreError::Other(anyhow::anyhow!("the thread that seals {} failed", path.display())))
            });
            self.sealed(path, result);
        }
        if self.sealing.is_none()
            && let Some(job) = self.to_seal.pop_front()
        {
            let access = self.access;
            let path = job.path.clone();
            match std::thread::Builder::new().name("dprof-seal".to_owned()).spawn(move || seal(job, access)) {
                Ok(thread) => self.sealing = Some((path, thread)),
                Err(error) => log::warn!("cannot start a thread to seal {}: {error}", path.display()),
            }
        }
    }

    fn sealed(&mut self, path: PathBuf, result: Result<Sealed, StoreError>) {
        match result {
            Ok(Sealed::Whole) | Err(StoreError::NotFound(_)) => {}
            // At the end of the queue, so that one stuck reader does not hold up the others.
            Ok(Sealed::LogKept) | Err(StoreError::Full(_)) => {
                self.to_seal.push_back(Job { path, connection: None, run_lock: None });
            }
            Err(error) => log::warn!("not sealed: {error}"),
        }
    }

    fn maintain_at(&mut self, now_ns: u64) -> Result<(), StoreError> {
        self.now_ns = now_ns;
        let chunk_ns = self.retention.chunk_s.saturating_mul(1_000_000_000);
        if self.live.as_ref().is_some_and(|live| {
            now_ns.saturating_sub(live.opened_ns) >= chunk_ns || live.bytes() >= self.retention.chunk_bytes
        }) {
            self.rotate();
        }
        self.seal_next();
        if now_ns.saturating_sub(self.expired_ns) >= EXPIRE_INTERVAL_NS {
            self.expired_ns = now_ns;
            let live = self.live.as_ref().map(|live| live.path.as_path());
            expire(&self.dir, &self.run.path, live, &self.retention, now_ns)?;
        }
        Ok(())
    }

    fn close_now(mut self) -> Result<(), StoreError> {
        if let Some((path, thread)) = self.sealing.take() {
            let result = thread.join().unwrap_or(Ok(Sealed::Whole));
            self.sealed(path, result);
        }
        if let Some(LiveChunk { connection, path, .. }) = self.live.take() {
            self.to_seal.push_back(Job { path, connection: Some(connection), run_lock: None });
        }
        let mut first_error = Ok(());
        for job in std::mem::take(&mut self.to_seal) {
            let own = job.run_lock.is_none();
            match seal(job, self.access) {
                // Readers and the next agent manage with the log.
                Ok(_) | Err(StoreError::NotFound(_)) => {}
                Err(error) if own && first_error.is_ok() => first_error = Err(error),
                Err(error) => log::warn!("not sealed: {error}"),
            }
        }
        first_error
    }

    /// For tests: the connection of the live chunk.
    #[cfg(test)]
    pub(crate) fn live_connection(&self) -> Option<&rusqlite::Connection> {
        self.live.as_ref().map(|live| &live.connection)
    }
}

impl Drop for SqliteWriter {
    fn drop(&mut self) {
        // The thread must not outlive the run's lock.
        if let Some((_, thread)) = self.sealing.take() {
            let _ = thread.join();
        }
    }
}

#[async_trait]
impl Writer for SqliteWriter {
    async fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.write_batch(batch)
    }

    async fn maintain(&mut self, now_unix_ns: u64) -> Result<(), StoreError> {
        self.maintain_at(now_unix_ns)
    }

    fn set_retention(&mut self, retention: Retention) {
        if self.retention != retention {
            self.retention = retention;
            // What is now too old or too much goes at once.
            self.expired_ns = 0;
        }
    }

    async fn close(self: Box<Self>) -> Result<(), StoreError> {
        self.close_now()
    }
}

/// Which batches are stored: ranges, so that a run of weeks takes a few bytes.
#[derive(Default)]
struct Written {
    /// First to last, both included.
    ranges: BTreeMap<u64, u64>,
}

impl Written {
    fn contains(&self, seq: u64) -> bool {
        self.ranges.range(..=seq).next_back().is_some_and(|(_, last)| seq <= *last)
    }

    fn insert(&mut self, seq: u64) {
        if self.contains(seq) {
            return;
        }
        let mut first = seq;
        let mut last = seq;
        if let Some((&before, &end)) = self.ranges.range(..seq).next_back()
            && end + 1 == seq
        {
            first = before;
        }
        if let Some(next) = seq.checked_add(1)
            && let Some(end) = self.ranges.remove(&next)
        {
            last = end;
        }
        self.ranges.insert(first, last);
    }

    /// Adds the batches of a chunk that an earlier writer of this run left. A damaged one is passed over.
    fn read_from(&mut self, chunk: &Path) -> Result<(), StoreError> {
        let read = || {
            let opened = open_for_reading(chunk)?;
            if opened.is_empty {
                return Ok(Vec::new());
            }
            let mut select = opened
                .connection
                .prepare("SELECT seq FROM batches")
                .map_err(|error| sqlite_error(chunk, error))?;
            let seqs = select
                .query_map([], |row| row.get::<_, i64>(0))
                .and_then(Iterator::collect::<rusqlite::Result<Vec<_>>>)
                .optional()
                .map_err(|error| sqlite_error(chunk, error))?;
            Ok(seqs.unwrap_or_default())
        };
        match read() {
            Ok(seqs) => {
                for seq in seqs {
                    self.insert(seq as u64);
                }
                Ok(())
            }
            Err(error @ StoreError::Newer { .. }) => Err(error),
            Err(error) => {
                log::warn!("passed over: {error}");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_batches_join_to_ranges() {
        let mut written = Written::default();
        for seq in [5, 3, 4, 1, 9, u64::MAX, 5, 2] {
            written.insert(seq);
        }
        let ranges: Vec<_> = written.ranges.iter().map(|(first, last)| (*first, *last)).collect();
        assert_eq!(ranges, [(1, 5), (9, 9), (u64::MAX, u64::MAX)]);
        for (seq, expected) in [(0, false), (1, true), (5, true), (6, false), (9, true), (u64::MAX, true)] {
            assert_eq!(written.contains(seq), expected, "{seq}");
        }
    }
}
