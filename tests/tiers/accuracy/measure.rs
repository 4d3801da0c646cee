//! One measurement: a system started anew, a load on it, dprof watching; what the client and the system's own
//! programs know, and what dprof stored.
//!
//! What a reader would get wrong: the weaker evidence is not measured on another run. The events are recorded, and
//! replayed with the stronger evidence switched off: the same halves, other links.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dprof_common::model::{EvidenceKind, Span, SpanId};
use dprof_tests::agent::{Agent, binary};
use dprof_tests::topology::{Running, Topology};
use dprof_tests::truth::{Asked, Hop};

use crate::harness::stored;

/// What a load asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Keys {
    /// A key of its own in each request: truth and content agree.
    Unique,
    /// Equal commands in flight: content tells nothing.
    Identical,
}

/// What is to be measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) topology: &'static Topology,
    pub(super) keys: Keys,
    pub(super) in_flight: usize,
    pub(super) requests: u64,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) asked: Vec<Asked>,
    pub(super) hops: Vec<Hop>,
    /// As watched.
    pub(super) spans: Vec<Span>,
    /// The same events without evidence from content; `None` if this agent cannot choose.
    pub(super) without_content: Option<Vec<Span>>,
    /// What the agent said at its end.
    pub(super) said: String,
}

/// Folder to keep recordings in, for whoever looks for the cause of a figure: `SYSTEM-IN_FLIGHT-KEYS.dprof`.
const KEEP: &str = "DPROF_ACCURACY_KEEP";

/// Room for a burst while the agent is held up by the load on the same two cores.
const RING_BYTES: &str = "16MiB";

/// How long the agent watches before the load: what a program had read before may be under way for a tenth of a second.
const WATCHED_FOR: Duration = Duration::from_millis(200);

/// Runs it.
pub(super) fn measure(case: &Case, folder: &Path) -> Result<Measured> {
    let folder = tempfile::Builder::new().prefix("case-").tempdir_in(folder)?;
    let mut running = Running::start(case.topology, folder.path())?;
    let load = running.load(case.in_flight, case.requests, case.keys == Keys::Identical);
    let recording = folder.path().join("events.dprof").display().to_string();
    let can_choose = case.keys == Keys::Unique && has_option("--evidence")?;
    let mut options = running.watch.clone();
    options.extend(["--ring-bytes".to_owned(), RING_BYTES.to_owned()]);
    let keep = env::var_os(KEEP).map(PathBuf::from);
    if can_choose || keep.is_some() {
        options.extend(["--record-payload".to_owned(), "--record".to_owned(), recording.clone()]);
    }
    let agent = Agent::start(folder.path(), &options)?;
    // Nothing is certain before, and a load is over in a fraction of a second.
    thread::sleep(WATCHED_FOR);
    let asked = running.put_on(&load)?;
    let store = agent.store.clone();
    let said = agent.stop()?.stderr;
    let (hops, _) = running.stop(&asked)?;
    if let Some(keep) = keep {
        let name = format!("{}-{}-{:?}.dprof", case.topology.name, case.in_flight, case.keys).to_lowercase();
        fs::copy(&recording, keep.join(name)).context("keep a recording")?;
    }
    let spans = merged(stored(&store)?);
    let without_content =
        can_choose.then(|| replay_without_content(&recording, folder.path())).transpose()?;
    Ok(Measured { asked, hops, spans, without_content, said })
}

/// Whether the agent of this tree knows an option.
fn has_option(name: &str) -> Result<bool> {
    let output = Command::new(binary("dprof-agent")).arg("--help").output().context("start dprof-agent")?;
    Ok(String::from_utf8_lossy(&output.stdout).contains(name))
}

/// Every kind of evidence that does not look at what a request says: neither what it asks nor an id in it.
fn without_content() -> String {
    let content = [EvidenceKind::ExplicitId, EvidenceKind::RelayedContent];
    let kinds = EvidenceKind::ALL.into_iter().filter(|kind| !content.contains(kind));
    kinds.map(EvidenceKind::name).collect::<Vec<_>>().join(",")
}

fn replay_without_content(recording: &str, folder: &Path) -> Result<Vec<Span>> {
    let store = format!("sqlite:{}", folder.join("without-content").display());
    let output = Command::new(binary("dprof-agent"))
        .args(["--store", &store, "--replay", recording, "--evidence", &without_content()])
        .output()
        .context("start dprof-agent --replay")?;
    ensure!(output.status.success(), "replay: {}", String::from_utf8_lossy(&output.stderr));
    let spans = merged(stored(&store)?);
    fs::remove_file(recording).context("remove the recording")?;
    Ok(spans)
}

/// The halves that different agents stored of one RPC, as one span.
pub(super) fn merged(spans: Vec<Span>) -> Vec<Span> {
    let mut by_id: BTreeMap<SpanId, Span> = BTreeMap::new();
    for span in spans {
        match by_id.entry(span.span_id) {
            Entry::Vacant(place) => drop(place.insert(span)),
            Entry::Occupied(mut place) => place.get_mut().merge(span),
        }
    }
    by_id.into_values().collect()
}
