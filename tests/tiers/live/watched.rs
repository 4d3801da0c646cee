//! What is watched is changed under load: other ports, protocols turned off and on again. What stays is complete, what
//! goes leaves nothing, and what comes is taken up, however old it is.

use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dprof_common::model::{HalfFlags, Span, Status};
use dprof_tests::agent::{Agent, binary};
use dprof_tests::program::Program;
use dprof_tests::steady::Steady;
use dprof_tests::subject::{self, Subject};
use dprof_tests::wire::Protocol;
use dprof_tests::{cli, poll};

use super::control::{end, in_force, set, wait_for};
use crate::harness::resp::{Resp, command};
use crate::harness::{Live, finish, halves_to};

/// Requests of each kind.
const CALLS: usize = 50;
/// How long a load goes on: over every change.
const SECONDS: u64 = 15;
/// How long figures may take to be those of now.
const FIGURES_WITHIN: Duration = Duration::from_secs(5);

/// Events of one call: two ends, a send and a receive each, and their announcements.
const EVENTS_OF_CALL_MAX: u64 = 8;

/// A Redis with a folder of its own.
fn redis(live: &Live, name: &str) -> Result<Subject> {
    let folder = live.path().join(name);
    fs::create_dir_all(&folder)?;
    subject::redis(&folder)
}

/// Some hundred requests a second to `server`, over every change.
fn load(folder: &Path, server: SocketAddr, protocol: Protocol, command: &str) -> Result<Program> {
    let load = Steady {
        targets: vec![server],
        protocol,
        connections: 4,
        per_second: 100,
        seconds: SECONDS,
        keys: 1_000,
        commands: vec![command.to_owned()],
        seed: 7,
        dial: folder.join("no.dial"),
    };
    let file = folder.join("load.json");
    fs::write(&file, serde_json::to_string(&load)?)?;
    Program::start("load", folder, Command::new(binary("test-steady")).arg(file))
}

/// The same request many times.
fn ask(connection: &mut Resp, words: &[&str]) -> Result<()> {
    (0..CALLS).try_for_each(|_| connection.call(words).map(drop))
}

/// Sets keys, and waits until the agent obeys this version.
fn told(store: &str, version: u64, pairs: &[&str]) -> Result<()> {
    set(store, pairs)?;
    wait_for(store, &["lone"], &format!("{pairs:?} in force"), in_force(version))
}

/// Asked on connections that were taken up while something was under way: until they rest, their pairs are marked.
const MARKED: [&str; 2] = ["ZCARD", "LLEN"];

/// How many RPCs of an operation have both halves, each `ok`; all that have a half must.
#[track_caller]
fn whole(spans: &[Span], operation: &str) -> usize {
    let is = |span: &&Span| span.nearest().is_some_and(|half| half.operation == operation);
    let found: Vec<&Span> = spans.iter().filter(is).collect();
    for span in &found {
        let (Some(client), Some(server)) = (&span.client, &span.server) else {
            panic!("one half: {span:#?}");
        };
        for half in [client, server] {
            assert!(matches!(half.status, Status::Ok), "{half:#?}");
            let is_marked = half.flags.contains(HalfFlags::INCOMPLETE);
            assert!(!is_marked || MARKED.contains(&operation), "{half:#?}");
        }
    }
    found.len()
}

/// Events so far.
fn events(metrics: SocketAddr) -> Result<u64> {
    let text = subject::get(metrics, "/metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix("dprof_capture_events_total "));
    line.context("the agent counts its events")?.trim().parse().context("a number")
}

#[test]
fn other_ports_are_watched_from_then_on_and_connections_that_stay_lose_nothing() -> Result<()> {
    change_ports(true)
}

/// Without programs that not every machine has: this is for kernels.
#[test]
fn connections_go_and_come_with_their_ports_whatever_their_age() -> Result<()> {
    change_ports(false)
}

/// Connections whose port is watched all the time, then no more, then again, and only later; with a load on the first.
fn change_ports(is_loaded: bool) -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let (stays, goes, comes) = (redis(&live, "stays")?, redis(&live, "goes")?, redis(&live, "comes")?);
    let metrics: SocketAddr = ([127, 0, 0, 1], subject::free_port()?).into();
    let first = format!("{},{}", stays.port, goes.port);
    let metrics_at = metrics.to_string();
    let options = ["--port", &first, "--host", "lone", "--metrics", &metrics_at, "-v"];
    // Older than the agent.
    let mut old = Resp::connect(comes.address())?;
    old.call(&["PING"])?;
    let agent = Agent::start(live.path(), &options)?;
    let store = agent.store.clone();
    let load = is_loaded.then(|| load(live.path(), stays.address(), Protocol::Redis, "GET {key}"));
    let (mut left, mut joined) = (Resp::connect(goes.address())?, Resp::connect(comes.address())?);
    let mut waits = Resp::connect(goes.address())?;
    ask(&mut left, &["STRLEN", "k"])?;
    ask(&mut joined, &["EXISTS", "k"])?;
    // Silent while its port is not watched.
    let mut idle = Resp::connect(goes.address())?;
    ask(&mut idle, &["STRLEN", "k"])?;
    // Its answer comes when nobody looks.
    waits.stream().write_all(&command(&["BLPOP", "list", "0"]))?;
    left.call(&["ECHO", "x"])?;

    told(&store, 1, &[&format!("filter.ports={},{}", stays.port, comes.port)])?;
    left.call(&["RPUSH", "list", "x"])?;
    waits.reply()?;
    ask(&mut left, &["TTL", "k"])?;
    ask(&mut joined, &["PTTL", "k"])?;
    ask(&mut old, &["TYPE", "k"])?;
    let mut new = Resp::connect(comes.address())?;
    ask(&mut new, &["GETRANGE", "k", "0", "1"])?;
    // Asked when nobody looks, answered when somebody does.
    waits.stream().write_all(&command(&["BLPOP", "list", "0"]))?;
    ask(&mut left, &["SCARD", "k"])?;

    told(&store, 2, &[&format!("filter.ports={},{}", stays.port, goes.port)])?;
    left.call(&["LPUSH", "list", "x"])?;
    waits.reply()?;
    ask(&mut left, &["HLEN", "k"])?;
    ask(&mut waits, &["ZCARD", "k"])?;
    ask(&mut idle, &["GETBIT", "k", "0"])?;
    ask(&mut joined, &["PERSIST", "k"])?;

    told(&store, 3, &["filter.ports=all"])?;
    ask(&mut joined, &["STRLEN", "k"])?;
    let answers = load.transpose()?.map_or(Ok(0), |load| end(load, SECONDS))?;

    // Nobody is watched: no event.
    told(&store, 4, &["filter.ports=1"])?;
    let before = events(metrics)?;
    ask(&mut joined, &["HLEN", "k"])?;
    ask(&mut left, &["TTL", "k"])?;
    told(&store, 5, &[&format!("filter.ports={}", stays.port)])?;
    let mut last = Resp::connect(stays.address())?;
    last.call(&["DBSIZE"])?;
    let after = poll::until(FIGURES_WITHIN, "the last call is counted", || {
        events(metrics).ok().filter(|now| *now > before)
    })?;
    assert!(after - before <= EVENTS_OF_CALL_MAX, "{} events of one call", after - before);

    let (spans, ended) = finish(agent)?;
    let said = ended.stderr;
    if is_loaded {
        assert_eq!(cli::count(&store, "server", "GET")?, answers, "{said}");
    }
    assert_eq!(whole(&spans, "GET") as u64, answers, "{said}");
    for (operation, expected) in [
        ("STRLEN", 3 * CALLS),
        ("GETBIT", CALLS),
        ("ECHO", 1),
        ("EXISTS", 0),
        ("BLPOP", 0),
        ("RPUSH", 0),
        ("TTL", 0),
        ("PTTL", CALLS),
        ("TYPE", CALLS),
        ("GETRANGE", CALLS),
        ("SCARD", 0),
        ("LPUSH", 1),
        ("HLEN", CALLS),
        ("ZCARD", CALLS),
        ("PERSIST", 0),
        ("DBSIZE", 1),
    ] {
        assert_eq!(whole(&spans, operation), expected, "{operation}: {said}");
    }
    assert!(said.contains("connections_unwatched") && said.contains("requests_unwatched"), "{said}");
    for wrong in ["calls_without_socket", "gaps", "boundaries_lost", "mistaken", "timeouts", "no_reply"] {
        assert!(!said.contains(&format!("{wrong} ")), "{wrong}: {said}");
    }
    Ok(())
}

#[test]
fn a_protocol_is_turned_off_and_on_again_and_the_others_lose_nothing() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let (web, keys) = (subject::nginx(live.path())?, redis(&live, "keys")?);
    let ports = format!("{},{}", web.port, keys.port);
    let agent = Agent::start(live.path(), &["--port", &ports, "--host", "lone", "-v"])?;
    let store = agent.store.clone();
    let load = load(live.path(), web.address(), Protocol::Http, "GET /item/{key}")?;
    let (mut asks, mut waits) = (Resp::connect(keys.address())?, Resp::connect(keys.address())?);
    ask(&mut asks, &["STRLEN", "k"])?;
    waits.stream().write_all(&command(&["BLPOP", "list", "0"]))?;
    asks.call(&["ECHO", "x"])?;

    let refused = cli::run(&store, &["config", "set", "capture.protocols=http,resp"])?;
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("did you mean redis?"), "{why}");
    told(&store, 1, &["capture.protocols=http"])?;
    asks.call(&["RPUSH", "list", "x"])?;
    waits.reply()?;
    ask(&mut asks, &["TTL", "k"])?;
    let mut new = Resp::connect(keys.address())?;
    ask(&mut new, &["PTTL", "k"])?;
    // The first half of a message that will be in the middle when the protocol is turned on again.
    let large = command(&["SET", "large", &"x".repeat(100_000)]);
    let (before, after) = large.split_at(40_000);
    new.stream().write_all(before)?;

    told(&store, 2, &["capture.protocols=http,redis"])?;
    new.stream().write_all(after)?;
    new.reply()?;
    ask(&mut new, &["LLEN", "k"])?;
    ask(&mut asks, &["HLEN", "k"])?;
    ask(&mut waits, &["ZCARD", "k"])?;
    let answers = end(load, SECONDS)?;
    let (spans, ended) = finish(agent)?;
    let said = ended.stderr;
    let [clients, servers] = halves_to(&spans, web.port);
    assert_eq!((clients.len() as u64, servers.len() as u64), (answers, answers), "{said}");
    for (operation, expected) in [
        ("STRLEN", CALLS),
        ("ECHO", 1),
        ("BLPOP", 0),
        ("RPUSH", 0),
        ("TTL", 0),
        ("PTTL", 0),
        ("SET", 0),
        ("LLEN", CALLS),
        ("HLEN", CALLS),
        ("ZCARD", CALLS),
    ] {
        assert_eq!(whole(&spans, operation), expected, "{operation}: {said}");
    }
    assert!(said.contains("protocols_off") && said.contains("requests_unwatched"), "{said}");
    for wrong in ["calls_without_socket", "gaps", "mistaken", "timeouts", "no_reply"] {
        assert!(!said.contains(&format!("{wrong} ")), "{wrong}: {said}");
    }
    Ok(())
}
