//! The keep ratio: its share of traces, each whole, what failed besides, and counts of everything; on one machine, and
//! on a ring whose machines have an agent each.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dprof_common::model::{KeepReason, Span, SpanFlags, TraceId};
use dprof_tests::agent::Agent;
use dprof_tests::subject::{self, free_port};
use dprof_tests::topology::{Running, Topology};
use dprof_tests::{cli, poll};

use crate::harness::resp::Resp;
use crate::harness::{Live, finish, stored};
use crate::live::control;
use crate::live::counts::{LOAD_WITHIN, benchmark};

const REQUESTS: u64 = 20_000;
const RATIO: f64 = 0.1;
const FAILURES: usize = 5;

fn by_trace(spans: &[Span]) -> BTreeMap<TraceId, Vec<&Span>> {
    let mut traces: BTreeMap<TraceId, Vec<&Span>> = BTreeMap::new();
    for span in spans {
        traces.entry(span.trace_id).or_default().push(span);
    }
    traces
}

/// The number of traces kept by the ratio is within what chance allows, once in 100,000 runs not.
#[track_caller]
fn check_share(n_sampled: u32, of: u64, said: &str) {
    let expected = of as f64 * RATIO;
    let deviation = (f64::from(n_sampled) - expected).abs() / (expected * (1.0 - RATIO)).sqrt();
    assert!(deviation < 4.5, "{n_sampled} of {of}: {said}");
}

#[test]
fn a_tenth_of_the_traces_is_stored_whole_and_every_failure() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let proxy = subject::nutcracker(live.path(), &[&redis])?;
    let ports = format!("{},{}", redis.port, proxy.port);
    let agent = Agent::start(live.path(), &["--port", &ports, "--keep-ratio", "1/10"])?;
    let requests = REQUESTS.to_string();
    let options = ["-c", "20", "-n", &requests, "-r", "1000000", "-t", "get"];
    benchmark(&live, proxy.port, &options)?.wait(LOAD_WITHIN)?.success()?;
    let mut client = Resp::connect(proxy.address())?;
    client.call(&["SET", "word", "x"])?;
    for _ in 0..FAILURES {
        ensure!(client.call(&["INCR", "word"])?.starts_with(b"-"), "a word is no number");
    }
    let store = agent.store.clone();
    let (spans, ended) = finish(agent)?;
    let said = &ended.stderr;
    ensure!(said.contains("sampled: kept_ratio "), "{said}");
    let traces = by_trace(&spans);
    let (mut n_sampled, mut n_failed) = (0, 0);
    for spans in traces.values() {
        let operation = &spans[0].nearest().expect("an end").operation;
        // What the benchmark asks first is not for Redis.
        if !["GET", "SET", "INCR"].contains(&operation.as_str()) {
            continue;
        }
        let to = |port| {
            spans
                .iter()
                .filter(|span| span.server.as_ref().is_some_and(|half| half.local.port() == port))
                .count()
        };
        assert_eq!(
            (to(proxy.port), to(redis.port)),
            (1, 1),
            "client and proxy ask once each: {spans:#?}\n{said}"
        );
        assert!(spans.iter().all(|span| span.reason == spans[0].reason), "{spans:#?}");
        if spans[0].reason == KeepReason::Ratio && operation == "GET" {
            n_sampled += 1;
            assert!(spans.iter().all(|span| (span.probability - RATIO).abs() < 1e-9), "{spans:#?}");
        }
        n_failed += usize::from(spans.iter().any(|span| span.is_error()));
    }
    assert_eq!(n_failed, FAILURES, "{said}");
    check_share(n_sampled, REQUESTS, said);
    // Counts and percentiles are of everything seen: the client's requests and the proxy's.
    let rows = cli::json(&store, &["stats", "--since", "all", "--kind", "server", "--operation", "GET"])?;
    let counted: u64 = rows.iter().filter_map(|row| row["count"].as_u64()).sum();
    assert_eq!(counted, 2 * REQUESTS, "{rows:?} {said}");
    Ok(())
}

/// How long words and the spans that they keep may be under way.
const KEPT_WITHIN: Duration = Duration::from_secs(20);
/// Each looks for the others every few seconds.
const MET_WITHIN: Duration = Duration::from_secs(30);
/// A word is heard within a twentieth of a second, and a batch written within a fifth.
const SETTLE: Duration = Duration::from_secs(1);

#[test]
fn agents_of_a_ring_keep_the_same_traces_whole() -> Result<()> {
    const RING_REQUESTS: u64 = 3_000;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let topology = Topology::named("ring-3-racks").context("the ring")?;
    let ring = topology.ring().context("a ring")?;
    let mut running = Running::start(topology, live.path())?;
    let store = format!("sqlite:{}", live.path().join("store").display());
    let secret = live.path().join("secret");
    fs::write(&secret, "of this test and of nobody else")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    let network = running.network().context("machines")?;
    let hosts: Vec<&str> = ring.nodes.iter().map(|node| node.name.as_str()).chain(["client"]).collect();
    let mut agents = Vec::new();
    for (host, machine) in hosts.iter().zip(network.machines()) {
        // Nobody is told where the others are: the store's table of agents says it.
        let ear = format!("127.0.0.1:{}", free_port()?);
        let mut options: Vec<String> =
            ["--keep-ratio", "1/10", "--listen", &ear, "--peer-secret"].map(str::to_owned).into();
        options.push(secret.display().to_string());
        agents.push(Agent::on_machine(live.path(), &store, machine, host, &options)?);
    }
    poll::until(MET_WITHIN, "all agents have met", || {
        let rows = control::agents(&store).ok()?;
        let others = hosts.len() as u64 - 1;
        (rows.len() == hosts.len() && rows.iter().all(|agent| agent.tells == others)).then_some(())
    })?;
    let load = running.load(10, RING_REQUESTS, false);
    let commands: Vec<&str> = load.commands.iter().map(String::as_str).collect();
    let asked = running.put_on(&load)?;
    let mut before = None;
    poll::until(KEPT_WITHIN, "what is kept is stored", || {
        let n = stored(&store).ok()?.len();
        thread::sleep(SETTLE);
        (before.replace(n) == Some(n)).then_some(())
    })?;
    let mut said = String::new();
    for agent in agents {
        said += &agent.stop()?.stderr;
    }
    running.stop(&[])?;
    let spans = stored(&store)?;
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
    check_share(n_sampled, RING_REQUESTS, &said);
    assert_eq!(n_cut, 0, "of {n_sampled} traces {n_cut} are not whole\n{said}");
    let words: Vec<&str> = said.lines().filter(|line| line.contains("words: ")).collect();
    assert_eq!(words.len(), hosts.len(), "{said}");
    assert!(words.iter().all(|line| !line.contains("unsent") && !line.contains("refused")), "{words:?}");
    Ok(())
}
