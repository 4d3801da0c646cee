//! The conformance suite on this store, and what only an embedded store must hold.

use async_trait::async_trait;
use tempfile::TempDir;

use super::*;
use crate::conformance::{self, Fixture};

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
    for seed in 1..=4 {
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
