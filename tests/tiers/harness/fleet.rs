//! The agents of a ring's machines, which keep a part of its traces: those of each one whole, on whatever store.
//!
//! What a reader would get wrong: nobody is told where the others are. The store's table of agents says it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dprof_common::model::{KeepReason, Span, SpanFlags, TraceId};
use dprof_tests::agent::Agent;
use dprof_tests::poll;
use dprof_tests::subject::free_port;
use dprof_tests::topology::{Running, Topology};

use super::{Live, stored};
use crate::live::control;

/// How long words and the spans that they keep may be under way.
const KEPT_WITHIN: Duration = Duration::from_secs(20);
/// Each looks for the others every few seconds.
const MET_WITHIN: Duration = Duration::from_secs(30);
/// A word is heard within a twentieth of a second, and a batch written within a fifth.
const SETTLE: Duration = Duration::from_secs(1);

/// The part of the traces that is kept.
pub(crate) const RATIO: f64 = 0.1;

/// The spans of each trace.
pub(crate) fn by_trace(spans: &[Span]) -> BTreeMap<TraceId, Vec<&Span>> {
    let mut traces: BTreeMap<TraceId, Vec<&Span>> = BTreeMap::new();
    for span in spans {
        traces.entry(span.trace_id).or_default().push(span);
    }
    traces
}

/// The number of traces kept by the ratio is within what chance allows, once in 100,000 runs not.
#[track_caller]
pub(crate) fn check_share(n_sampled: u32, of: u64, said: &str) {
    let expected = of as f64 * RATIO;
    let deviation = (f64::from(n_sampled) - expected).abs() / (expected * (1.0 - RATIO)).sqrt();
    assert!(deviation < 4.5, "{n_sampled} of {of}: {said}");
}

/// A ring of three machines and a client, an agent on each with `more` options by its number and all with one store;
/// puts `requests` on it. While the agents run `meanwhile` may look at the store.
///
/// Of the requests a tenth is stored by the ratio, every trace of them whole and seen at both ends of each RPC.
pub(crate) fn check_ring(
    live: &Live,
    store: &str,
    requests: u64,
    more: impl Fn(usize) -> Vec<String>,
    meanwhile: impl FnOnce(&[&str]) -> Result<()>,
) -> Result<()> {
    let topology = Topology::named("ring-3-racks").context("the ring")?;
    let ring = topology.ring().context("a ring")?;
    let mut running = Running::start(topology, live.path())?;
    let secret = live.path().join("secret");
    fs::write(&secret, "of this test and of nobody else")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    let network = running.network().context("machines")?;
    let hosts: Vec<&str> = ring.nodes.iter().map(|node| node.name.as_str()).chain(["client"]).collect();
    let mut agents = Vec::new();
    for (number, (host, machine)) in hosts.iter().zip(network.machines()).enumerate() {
        let ear = format!("127.0.0.1:{}", free_port()?);
        let mut options: Vec<String> =
            ["--keep-ratio", "1/10", "--listen", &ear, "--peer-secret"].map(str::to_owned).into();
        options.push(secret.display().to_string());
        options.extend(more(number));
        agents.push(Agent::on_machine(live.path(), store, machine, host, &options)?);
    }
    poll::until(MET_WITHIN, "all agents have met", || {
        let rows = control::agents(store).ok()?;
        let others = hosts.len() as u64 - 1;
        (rows.len() == hosts.len() && rows.iter().all(|agent| agent.tells == others)).then_some(())
    })?;
    let load = running.load(10, requests, false);
    let commands: Vec<&str> = load.commands.iter().map(String::as_str).collect();
    let asked = running.put_on(&load)?;
    let mut before = None;
    poll::until(KEPT_WITHIN, "what is kept is stored", || {
        let n = stored(store).ok()?.len();
        thread::sleep(SETTLE);
        (before.replace(n) == Some(n)).then_some(())
    })?;
    meanwhile(&hosts)?;
    let mut said = String::new();
    for agent in agents {
        said += &agent.stop()?.stderr;
    }
    running.stop(&[])?;
    let spans = stored(store)?;
    let (mut n_sampled, mut n_cut) = (0, 0);
    for spans in by_trace(&spans).values() {
        let mut texts = spans.iter().filter_map(|span| span.nearest()).map(|half| half.query_text.as_str());
        let of = |text: &str| asked.iter().find(|asked| text.split(' ').any(|word| word == asked.key));
        let Some(asked) = texts.find_map(of) else { continue };
        if spans[0].reason != KeepReason::Ratio {
            continue;
        }
        n_sampled += 1;
        let is_read = Topology::is_read(&commands, asked.command);
        let is_whole = spans.len() == topology.rpcs(asked, is_read)
            && spans.iter().all(|span| span.client.is_some() && span.server.is_some())
            && spans.iter().all(|span| !span.flags.contains(SpanFlags::FRAGMENT));
        n_cut += u32::from(!is_whole);
        assert!(spans.iter().all(|span| span.reason == KeepReason::Ratio), "{spans:#?}");
    }
    check_share(n_sampled, requests, &said);
    assert_eq!(n_cut, 0, "of {n_sampled} traces {n_cut} are not whole\n{said}");
    let words: Vec<&str> = said.lines().filter(|line| line.contains("words: ")).collect();
    assert_eq!(words.len(), hosts.len(), "{said}");
    assert!(words.iter().all(|line| !line.contains("unsent") && !line.contains("refused")), "{words:?}");
    Ok(())
}
