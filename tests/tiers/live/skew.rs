//! Machines with clocks that are seconds ahead or behind and run fast or slow: what is stored is right, and how far the
//! clocks are apart is found from it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dprof_common::model::{Link, RootKind, Span, SpanFlags, SpanId, Split, TraceId, split};
use dprof_tests::agent::Agent;
use dprof_tests::netns::Network;
use dprof_tests::program::Program;
use dprof_tests::subject::{self, find};
use dprof_tests::topology::{Running, Topology};
use dprof_tests::{cli, clock};

use crate::harness::{Live, stored};
use crate::live::replay::replay_into;

const OFFSET_NS: f64 = 3e9;
const DRIFT_PPM: f64 = 100.0;

/// One each 10 ms: over the time that they take, the drift is more than the delays on a loopback network.
const REQUESTS: usize = 400;

const ENDS_WITHIN: Duration = Duration::from_mins(1);
const PORT: u16 = 6379;

#[test]
fn a_clock_ahead_and_fast_is_found_within_its_stated_error() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let addresses: [IpAddr; 2] = [[10, 79, 0, 1].into(), [10, 79, 0, 2].into()];
    let network = Network::new(live.path(), &addresses)?;
    let server = addresses[1].to_string();
    let mut command = network.machine(1).command(find("redis-server"));
    let _redis = subject::redis_on(live.path(), &mut command, &[&server], PORT)?;
    let store = format!("sqlite:{}", live.path().join("store").display());
    let near = Agent::on_machine(live.path(), &store, network.machine(0), "near", &[])?;
    let options = ["--clock-offset", "3s", "--clock-drift-ppm", "100"].map(str::to_owned);
    let starting_ns = clock::unix_us() * 1_000;
    let far = Agent::on_machine(live.path(), &store, network.machine(1), "far", &options)?;
    let started_ns = clock::unix_us() * 1_000;
    let mut client = network.machine(0).command(find("redis-cli"));
    client.args(["-h", &server, "-r", &REQUESTS.to_string(), "-i", "0.01", "INCR", "n"]);
    Program::start("redis-cli", live.path(), &mut client)?.wait(ENDS_WITHIN)?.success()?;
    near.stop()?;
    far.stop()?;

    let asked: Vec<_> = stored(&store)?
        .into_iter()
        .filter(|span| span.nearest().is_some_and(|half| half.operation == "INCR"))
        .collect();
    assert_eq!(asked.len(), REQUESTS);
    for span in &asked {
        ensure!(span.client.is_some() && span.server.is_some(), "both ends are in one span: {span:#?}");
        let network_ns = split(span).network_ns.context("the network's share")?;
        ensure!((0..=span.duration_ns() as i64).contains(&network_ns), "{network_ns} ns: {span:#?}");
    }

    let rows = cli::json(&store, &["clocks", "--since", "all"])?;
    let row = rows.first().context("a pair of hosts")?;
    let number = |field: &str| row[field].as_f64().with_context(|| format!("{field} of {row}"));
    // In the order of their names: far before near, so near is behind.
    ensure!(rows.len() == 1 && row["hosts"] == serde_json::json!(["far", "near"]), "{rows:?}");
    let drift_off = (number("drift_ppm")? + DRIFT_PPM).abs();
    // A fast clock seen from a slow one drifts by a hundredth of a millionth less than the other way round.
    ensure!(drift_off <= number("drift_error_ppm")? + 0.1, "{row}");
    // It is known only between which times the fast clock began to be fast.
    let gained =
        |since_ns: u64| (number("at_unix_ns").unwrap_or(0.0) - OFFSET_NS - since_ns as f64) * DRIFT_PPM / 1e6;
    let (most, least) = (OFFSET_NS + gained(starting_ns), OFFSET_NS + gained(started_ns));
    let (found, error) = (-number("offset_ns")?, number("error_ns")?);
    ensure!(least - error <= found && found <= most + error, "{least} to {most} ns: {row}");
    ensure!(error < 1e6, "on one machine a millisecond is far off: {row}");
    Ok(())
}

/// What must not depend on clocks.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    trace: TraceId,
    link: Option<Link>,
    further: Vec<Link>,
    root: Option<RootKind>,
    flags: SpanFlags,
    split: Split,
    duration_ns: u64,
}

fn places(spans: &[Span]) -> BTreeMap<SpanId, Place> {
    let place = |span: &Span| Place {
        trace: span.trace_id,
        link: span.link,
        further: span.further_links.clone(),
        root: span.root,
        flags: span.flags,
        split: split(span),
        duration_ns: span.duration_ns(),
    };
    spans.iter().map(|span| (span.span_id, place(span))).collect()
}

#[test]
fn clocks_that_are_seconds_off_change_no_link_and_no_part() -> Result<()> {
    const REQUESTS: u64 = 600;
    const OFFSETS: [&str; 4] = ["3s", "-7s", "0s", "-1500ms"];
    const DRIFTS: [&str; 4] = ["100", "-100", "50", "-100"];
    let Some(live) = Live::begin()? else { return Ok(()) };
    let topology = Topology::named("ring-3-racks").context("the ring")?;
    let ring = topology.ring().context("a ring")?;
    let mut running = Running::start(topology, live.path())?;
    let network = running.network().context("machines")?;
    let hosts: Vec<&str> = ring.nodes.iter().map(|node| node.name.as_str()).chain(["client"]).collect();
    let store = |name: &str| format!("sqlite:{}", live.path().join(name).display());
    let recordings: Vec<PathBuf> =
        hosts.iter().map(|host| live.path().join(format!("{host}.dprof"))).collect();
    let mut agents = Vec::new();
    for ((host, machine), recording) in hosts.iter().zip(network.machines()).zip(&recordings) {
        let options = ["--record".to_owned(), recording.display().to_string(), "--record-payload".to_owned()];
        agents.push(Agent::on_machine(live.path(), &store("live"), machine, host, &options)?);
    }
    let load = running.load(10, REQUESTS, false);
    running.put_on(&load)?;
    for agent in agents {
        agent.stop()?;
    }
    running.stop(&[])?;
    // The same events twice: under the clocks as they were, and under wrong ones.
    for (n, recording) in recordings.iter().enumerate() {
        replay_into(recording, &store("right"), &[])?;
        let options = ["--clock-offset", OFFSETS[n % 4], "--clock-drift-ppm", DRIFTS[n % 4]];
        replay_into(recording, &store("wrong"), &options)?;
    }
    let (right, wrong) = (stored(&store("right"))?, stored(&store("wrong"))?);
    let n_between = right.iter().filter(|span| span.client.is_some() && span.server.is_some()).count();
    assert!(n_between as u64 > 3 * REQUESTS, "{n_between} spans have both ends");
    let (right, wrong) = (places(&right), places(&wrong));
    let difference = right.iter().find(|(id, place)| wrong.get(id) != Some(place));
    assert_eq!(difference.map(|(id, place)| (place, wrong.get(id))), None);
    assert_eq!(wrong.len(), right.len());
    Ok(())
}
