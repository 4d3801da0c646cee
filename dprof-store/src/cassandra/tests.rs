//! The conformance suite and what is Cassandra's own, on a real ring: each test has a keyspace of its own.
//!
//! `DPROF_TEST_CASSANDRA` names the contact points of a ring (`cargo xtask cassandra up` prints them); without it
//! these tests do nothing, and `cargo xtask test` sets it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;

use super::{InitOptions, init};
use crate::conformance::{self, Fixture};
use crate::control::{conformance as control_conformance, open_control};
use crate::{Reader, Retention, RunInfo, StoreUrl, Writer, open_reader, open_writer};

/// Names the contact points.
const VARIABLE: &str = "DPROF_TEST_CASSANDRA";

/// Asks for the long forms of tests.
const FULL: &str = "DPROF_TEST_FULL";

/// Writers of one configuration at once: in the short form, and in the long one. Each that is first makes all others
/// begin again, so the time grows with the square.
const WRITERS: [usize; 2] = [24, 100];

/// Clients of the writers.
const CLIENTS: usize = 4;

static NEXT: AtomicU32 = AtomicU32::new(0);

struct Keyspace(StoreUrl);

#[async_trait]
impl Fixture for Keyspace {
    async fn writer(&self, run: &RunInfo) -> Box<dyn Writer> {
        let StoreUrl::Cassandra { hosts, keyspace } = &self.0 else { unreachable!("made below") };
        let mut writer = super::writer::CassandraWriter::new(hosts, keyspace, run);
        writer.connect_now().await.expect("the ring is up");
        Box::new(writer)
    }

    async fn reader(&self) -> Box<dyn Reader> {
        open_reader(&self.0).await.expect("the ring is up")
    }
}

/// Runs `test` on a fresh keyspace, if there is a ring.
fn on_a_ring<F: Future<Output = ()>>(test: impl FnOnce(StoreUrl) -> F) {
    let Ok(hosts) = std::env::var(VARIABLE) else { return };
    let name = format!("dprof_test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let url: StoreUrl = format!("cassandra://{hosts}/{name}").parse().expect("contact points");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        init(&url, &InitOptions::default()).await.expect("makes a keyspace");
        // Removing it again would take longer than the test; it goes with the ring.
        test(url).await;
    });
}

#[test]
fn spans_by_filter_and_order() {
    on_a_ring(|url| async move { conformance::check_spans(&Keyspace(url), 11).await });
}

#[test]
fn whole_traces_from_fragments() {
    on_a_ring(|url| async move { conformance::check_traces(&Keyspace(url), 12).await });
}

#[test]
fn rollups_add_up() {
    on_a_ring(|url| async move { conformance::check_rollups(&Keyspace(url), 13).await });
}

#[test]
fn edges_add_up() {
    on_a_ring(|url| async move { conformance::check_edges(&Keyspace(url), 14).await });
}

#[test]
fn runs_are_listed() {
    on_a_ring(|url| async move { conformance::check_runs(&Keyspace(url)).await });
}

#[test]
fn a_batch_written_again_changes_nothing() {
    on_a_ring(|url| async move { conformance::check_idempotence(&Keyspace(url)).await });
}

#[test]
fn what_is_written_is_read_at_once() {
    on_a_ring(|url| async move { conformance::check_reading_while_writing(&Keyspace(url)).await });
}

#[test]
fn versions_follow_each_other_in_each_scope() {
    on_a_ring(|url| async move {
        let control = open_control(&url, false).await.expect("the ring is up");
        control_conformance::check_versions(&*control).await;
    });
}

#[test]
fn an_agents_row_is_its_last_one() {
    on_a_ring(|url| async move {
        let control = open_control(&url, false).await.expect("the ring is up");
        control_conformance::check_agents(&*control).await;
    });
}

#[test]
fn minutes_of_a_host_are_found_by_time() {
    on_a_ring(|url| async move {
        let control = open_control(&url, false).await.expect("the ring is up");
        control_conformance::check_host_minutes(&*control).await;
    });
}

#[test]
fn many_writers_at_once_lose_no_update_and_the_history_is_complete() {
    on_a_ring(|url| async move {
        // A few clients, as people have; each waits for its own writes only.
        let opened = (0..CLIENTS).map(|_| open_control(&url, false));
        let clients = futures_util::future::try_join_all(opened).await.expect("the ring is up");
        let n_writers = WRITERS[usize::from(std::env::var_os(FULL).is_some())];
        let names: BTreeSet<String> = (0..n_writers).map(|number| format!("writer-{number:03}")).collect();
        let writers = names.iter().enumerate().map(|(number, name)| {
            let client = &*clients[number % CLIENTS];
            control_conformance::write_one(client, name)
        });
        futures_util::future::join_all(writers).await;
        control_conformance::check_written_by(&*clients[0], &names).await;
    });
}

#[test]
fn a_writer_opens_without_a_ring() {
    let url: StoreUrl = "cassandra://127.0.0.1:1/none".parse().expect("a store");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let run = conformance::run("a", 1);
        let mut writer = open_writer(&url, &run, Retention::DEFAULT, &[]).await.expect("opens");
        let batch = &conformance::Fleet::generate(1, 10).batches[0].1;
        let packed = writer.pack(batch).expect("packs");
        let mut sender = writer.take_sender().expect("it may be away");
        let error = sender.send(&packed).await.unwrap_err();
        assert!(matches!(error, crate::StoreError::Away(_)), "{error}");
        let Err(error) = open_reader(&url).await else { panic!("nobody listens there") };
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    });
}

#[test]
fn a_packed_batch_survives_its_bytes_and_its_parts_are_the_whole() {
    let url: StoreUrl = "cassandra://127.0.0.1:1/none".parse().expect("a store");
    let StoreUrl::Cassandra { hosts, keyspace } = &url else { unreachable!("parsed above") };
    let mut writer = super::open_writer(hosts, keyspace, &conformance::run("a", 1));
    for (_, batch) in conformance::Fleet::generate(3, 100).batches {
        let packed = writer.pack(&batch).expect("packs");
        let bytes = packed.clone().encode();
        let back = crate::Packed::decode(&bytes).expect("just packed");
        assert_eq!(back, packed);
        let (counts, spans) = packed.clone().split();
        let (counts, spans) = (counts.expect("there are rollups"), spans.expect("there are spans"));
        assert_eq!((counts.n_counted, spans.n_spans), (packed.n_counted, packed.n_spans));
        for at in (0..bytes.len()).step_by(97) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x41;
            // Refused, or read as something: never a panic.
            let _ = crate::Packed::decode(&damaged);
            let _ = crate::Packed::decode(&bytes[..at]);
        }
    }
}
