//! The conformance suite on this store, and what only an embedded store must hold.

mod crash;
mod damage;
mod expiry;
mod full;
mod log;
mod lookup;
mod permission;

use std::path::PathBuf;

use async_trait::async_trait;
use dprof_common::model::{Span, SpanId, TraceId};
use tempfile::TempDir;

use super::*;
use crate::Batch;
use crate::conformance::{self, EPOCH_NS, Fixture, Maker, Random, slowest};

/// Chunks so small that every test has many.
const TINY: Retention =
    Retention { max_age_s: u64::MAX, max_bytes: u64::MAX, chunk_s: u64::MAX, chunk_bytes: 200_000 };

struct Folder {
    dir: TempDir,
    retention: Retention,
}

impl Folder {
    fn new(retention: Retention) -> Self {
        Self { dir: tempfile::tempdir().expect("a folder"), retention }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn open(&self, run: &RunInfo) -> writer::SqliteWriter {
        writer::SqliteWriter::open(self.path(), run, self.retention, &[], access::Access::of_process())
            .expect("opens")
    }

    fn read(&self) -> reader::SqliteReader {
        reader::SqliteReader::open(self.path()).expect("opens")
    }

    /// Files of all runs with this ending.
    fn files(&self, suffix: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for run in run::list_runs(self.path()).expect("lists").0 {
            for entry in std::fs::read_dir(&run.path).expect("lists") {
                let path = entry.expect("lists").path();
                if path.to_string_lossy().ends_with(suffix) {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }
}

/// Batches of one-RPC traces, a millisecond apart.
struct Source {
    random: Random,
    maker: Maker,
    seq: u64,
    n: u64,
}

impl Source {
    fn new(run: &RunInfo) -> Self {
        Self { random: Random::new(3), maker: Maker::new(run), seq: 0, n: 0 }
    }

    fn batch(&mut self, n_spans: usize) -> Batch {
        self.seq += 1;
        let spans = (0..n_spans).map(|_| self.span()).collect();
        Batch { seq: self.seq, spans, ..Batch::default() }
    }

    fn span(&mut self) -> Span {
        self.n += 1;
        let id = SpanId(self.random.next() | 1);
        let served =
            self.maker.half("web", "GET", EPOCH_NS + self.n * 1_000_000, 1000 + self.random.below(9000));
        conformance::span(id.as_root_trace(), id, None, Some(served))
    }
}

/// Waits until `done`, by asking again and again; panics after half a minute.
fn poll(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("still not: {what}");
}

/// Runs the named test of this binary again as another process, with `DPROF_TEST_DIR` set.
fn child(test: &str, dir: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().expect("has a path"));
    command.args(["--exact", "--nocapture", "--test-threads=1", test]).env("DPROF_TEST_DIR", dir);
    command
}

/// The folder to work in, if this process is such a child.
fn child_dir() -> Option<PathBuf> {
    std::env::var_os("DPROF_TEST_DIR").map(PathBuf::from)
}

#[async_trait]
impl Fixture for Folder {
    async fn writer(&self, run: &RunInfo) -> Box<dyn Writer> {
        open_writer(self.dir.path(), run, self.retention, &[]).expect("opens")
    }
    async fn reader(&self) -> Box<dyn Reader> {
        open_reader(self.dir.path()).expect("opens")
    }
}

#[tokio::test]
async fn random_questions_are_answered_rightly_from_many_chunks_and_from_one() {
    for seed in 1..=3 {
        conformance::check_spans(&Folder::new(TINY), seed).await;
    }
    conformance::check_spans(&Folder::new(Retention::DEFAULT), 5).await;
}

#[tokio::test]
async fn traces_are_stitched() {
    for seed in 1..=3 {
        conformance::check_traces(&Folder::new(TINY), seed).await;
    }
    conformance::check_traces(&Folder::new(Retention::DEFAULT), 4).await;
}

#[tokio::test]
async fn rollups_come_back_per_run() {
    conformance::check_rollups(&Folder::new(TINY), 1).await;
    conformance::check_rollups(&Folder::new(Retention::DEFAULT), 2).await;
}

#[tokio::test]
async fn edges_come_back_per_run() {
    conformance::check_edges(&Folder::new(TINY), 1).await;
    conformance::check_edges(&Folder::new(Retention::DEFAULT), 2).await;
}

#[tokio::test]
async fn runs_are_listed() {
    conformance::check_runs(&Folder::new(TINY)).await;
}

#[tokio::test]
async fn batches_written_twice_count_once() {
    conformance::check_idempotence(&Folder::new(TINY)).await;
    conformance::check_idempotence(&Folder::new(Retention::DEFAULT)).await;
}

#[tokio::test]
async fn readers_see_what_is_being_written() {
    conformance::check_reading_while_writing(&Folder::new(TINY)).await;
    conformance::check_reading_while_writing(&Folder::new(Retention::DEFAULT)).await;
}

/// Says why a test did not run.
#[expect(clippy::print_stderr, reason = "tests have no other voice")]
fn not_run(why: &str) {
    eprintln!("not run: {why}");
}
