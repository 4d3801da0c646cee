//! A real ring of three: faults, the command line, the spool. The conformance suite runs beside this module's tests,
//! in `dprof-store`.
//!
//! What a reader would get wrong: the ring is shared and tests stop its nodes, so they run one at a time, and a test
//! leaves all nodes running.

mod agent;
mod by_hand;
mod control;
mod faults;
mod fleet;
mod secure;

use std::sync::atomic::{AtomicU32, Ordering};

use dprof_store::StoreUrl;
use dprof_store::cassandra::{InitOptions, cql, init};
use dprof_tests::cassandra::Ring;
use tokio::runtime::Runtime;

/// Turns the tier on: the contact points of the ring that `cargo xtask cassandra up --nodes 3` started.
pub(crate) const VARIABLE: &str = "DPROF_TEST_CASSANDRA";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A keyspace of a test's own; it goes with the ring.
pub(crate) struct Keyspace {
    pub(crate) ring: Ring,
    pub(crate) url: StoreUrl,
    pub(crate) name: String,
    pub(crate) hosts: Vec<String>,
    pub(crate) runtime: Runtime,
}

impl Keyspace {
    /// `None` while the tier is off.
    pub(crate) fn new() -> Option<Self> {
        let hosts = std::env::var(VARIABLE).ok()?;
        let ring = Ring::find().expect("readable").expect("the ring that the variable names is up");
        let name = format!("dprof_tier_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let url: StoreUrl = format!("cassandra://{hosts}/{name}").parse().expect("contact points");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(init(&url, &InitOptions::default())).expect("makes a keyspace");
        let hosts = hosts.split(',').map(str::to_owned).collect();
        Some(Self { ring, url, name, hosts, runtime })
    }

    /// Rows of a statement, columns between tabs, without the names.
    pub(crate) fn cql(&self, statement: &str) -> Vec<String> {
        let rows = self
            .runtime
            .block_on(cql(&self.hosts.clone().into(), statement))
            .expect("the statement is right");
        rows.into_iter().skip(1).collect()
    }
}
