//! What the live tests share: who may run, a folder, an agent, and its spans.

pub(crate) mod dissector;
pub(crate) mod exchange;
pub(crate) mod fleet;
pub(crate) mod memcached;
pub(crate) mod memory;
pub(crate) mod resp;
pub(crate) mod socket;

use std::env;
use std::io::{Write as _, stderr};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use anyhow::{Context as _, Result, bail};
use dprof_common::model::{Half, HalfFlags, Span};
use dprof_store::{Order, SpanQuery, StoreUrl, open_reader};
use dprof_tests::agent::Agent;
use dprof_tests::program::Ended;
use tempfile::TempDir;

/// Turns the live tier on.
const VARIABLE: &str = "DPROF_TEST_LIVE";

/// Live tests run one at a time: each counts all that it sees, and the machine is small.
static ALONE: Mutex<()> = Mutex::new(());

/// A live test that may run: alone, with a folder of its own.
pub(crate) struct Live {
    folder: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Live {
    /// `None` when the tier is off: the test passes, and one line says what turns it on.
    pub(crate) fn begin() -> Result<Option<Self>> {
        Self::begin_with(VARIABLE)
    }

    /// The same for the tier that `variable` turns on.
    pub(crate) fn begin_with(variable: &str) -> Result<Option<Self>> {
        static SAID: Once = Once::new();
        if env::var_os(variable).is_none_or(|value| value.is_empty() || value == "0") {
            // Straight to the file: what goes through the macro is shown for failed tests only.
            SAID.call_once(|| {
                let _ = writeln!(
                    stderr(),
                    "live tests are skipped: set {variable}=1, as root, or cargo xtask test"
                );
            });
            return Ok(None);
        }
        // A test that failed while it held the lock left nothing behind that matters to the next.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix("dprof-test-").tempdir().context("create a folder")?;
        Ok(Some(Self { folder, _alone: alone }))
    }

    /// Folder of the test.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// An agent that watches these ports.
    pub(crate) fn agent_on_all(&self, ports: &[u16]) -> Result<Agent> {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        Agent::start(self.path(), &["--port", &ports.join(",")])
    }

    /// An agent that watches one port.
    pub(crate) fn agent_on(&self, port: u16) -> Result<Agent> {
        Agent::start(self.path(), &["--port", &port.to_string()])
    }
}

/// Whether the back end under test sees calls before anything that sits between them and TCP: its own, unless
/// another is asked for, is the newest kernels' tracepoints.
pub(crate) fn calls_are_seen_above_tcp() -> bool {
    env::var_os("DPROF_TEST_BACKEND").is_none_or(|name| name == "tp_btf")
}

/// Stops the agent; all that it stored, in the order of start, and what it said at the end.
pub(crate) fn finish(agent: Agent) -> Result<(Vec<Span>, Ended)> {
    let store = agent.store.clone();
    let ended = agent.stop()?;
    Ok((stored(&store)?, ended))
}

/// All spans of a store, in the order of start.
pub(crate) fn stored(store: &str) -> Result<Vec<Span>> {
    let url: StoreUrl = store.parse()?;
    let query = SpanQuery {
        since_unix_ns: 0,
        until_unix_ns: u64::MAX,
        service: None,
        operation: None,
        kind: None,
        status: None,
        min_duration_ns: None,
        roots_only: false,
        order: Order::Newest,
        limit: usize::MAX,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async { open_reader(&url).await?.spans(&query).await })?;
    if !answer.warnings.is_empty() {
        bail!("the store is not complete: {:?}", answer.warnings);
    }
    let mut spans = answer.rows;
    spans.sort_by_key(Span::start_ns);
    Ok(spans)
}

/// The only span whose statement holds `word`.
#[track_caller]
pub(crate) fn only<'a>(spans: &'a [Span], word: &str) -> &'a Span {
    let found: Vec<_> = with_text(spans, word).collect();
    assert_eq!(found.len(), 1, "spans about {word:?} among {:#?}", texts(spans));
    found[0]
}

/// Spans whose statement holds `word`.
pub(crate) fn with_text<'a>(spans: &'a [Span], word: &str) -> impl Iterator<Item = &'a Span> {
    spans.iter().filter(move |span| span.nearest().is_some_and(|half| half.query_text.contains(word)))
}

/// Halves on connections to `port`: clients' and servers'.
pub(crate) fn halves_to(spans: &[Span], port: u16) -> [Vec<&Half>; 2] {
    let clients =
        spans.iter().filter_map(|span| span.client.as_ref()).filter(|half| half.peer.port() == port);
    let servers =
        spans.iter().filter_map(|span| span.server.as_ref()).filter(|half| half.local.port() == port);
    [clients.collect(), servers.collect()]
}

/// An attribute of a half.
pub(crate) fn attribute<'a>(half: &'a Half, name: &str) -> Option<&'a str> {
    half.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// Statements, for messages.
pub(crate) fn texts(spans: &[Span]) -> Vec<String> {
    const SHOWN: usize = 20;
    spans.iter().filter_map(Span::nearest).map(|half| half.query_text.clone()).take(SHOWN).collect()
}

/// Fails unless every time of every span comes after what caused it, both ends being on one clock here. Only where it
/// is flagged a departure may be left out: of a call of several segments the last byte's is exact, that of bytes
/// before it an upper bound. Those are a message's first byte, and its last where other messages share the call.
#[track_caller]
pub(crate) fn check_order(spans: &[Span]) {
    for span in spans {
        let (Some(client), Some(server)) = (&span.client, &span.server) else { continue };
        let exact = |half: &Half, flag| !half.flags.contains(flag);
        let request = exact(client, HalfFlags::REQUEST_TIME_APPROXIMATE);
        let response = exact(server, HalfFlags::RESPONSE_TIME_APPROXIMATE);
        let (request_last, response_last) = (request || client.batch == 1, response || server.batch == 1);
        let (client, server) = (&client.times, &server.times);
        let first_bytes = [
            ("request departed (first)", client.request_first_ns.filter(|_| request)),
            ("request arrived (first)", server.request_first_ns),
            ("request read", server.request_read_ns),
            ("response departed (first)", server.response_first_ns.filter(|_| response)),
            ("response arrived (first)", client.response_first_ns),
            ("response read", client.response_read_ns),
        ];
        let last_bytes = [
            ("request departed (last)", client.request_last_ns.filter(|_| request_last)),
            ("request arrived (last)", server.request_last_ns),
            ("request read", server.request_read_ns),
            ("response departed (last)", server.response_last_ns.filter(|_| response_last)),
            ("response arrived (last)", client.response_last_ns),
            ("response read", client.response_read_ns),
        ];
        for order in [first_bytes, last_bytes] {
            let known: Vec<_> = order.into_iter().filter_map(|(name, time)| Some((name, time?))).collect();
            for pair in known.windows(2) {
                assert!(
                    pair[0].1 <= pair[1].1,
                    "{} is {} ns after {} in {span:#?}",
                    pair[0].0,
                    pair[0].1 - pair[1].1,
                    pair[1].0
                );
            }
        }
    }
}
