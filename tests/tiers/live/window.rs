//! The capture window: whole requests inside it are exact, whatever passed outside.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dprof_common::model::{Span, Status};
use dprof_tests::behaviour::Behaviour;
use dprof_tests::dial::turn;
use dprof_tests::service::ServiceConfig;
use dprof_tests::topology::service;
use dprof_tests::wire::Protocol;
use dprof_tests::{clock, subject};

use crate::harness::fleet::by_trace;
use crate::harness::resp::{Resp, command};
use crate::harness::{Live, check_order, finish};

/// Load goes on for this long: some ten windows.
const LOAD: Duration = Duration::from_secs(3);

/// Commands in one write: one that succeeds, one that fails, and again.
const PIPELINE: usize = 6;

#[test]
fn requests_seen_in_windows_are_paired_with_their_own_answers() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let options = ["--port", &redis.port.to_string(), "--duty-cycle", "1/3", "--window", "100ms", "--alone"];
    let agent = dprof_tests::agent::Agent::start(live.path(), &options)?;
    let (mut alternating, mut pipelined) = (Resp::connect(redis.address())?, Resp::connect(redis.address())?);
    alternating.call(&["SET", "word", "x"])?;
    let batch: Vec<u8> = (0..PIPELINE)
        .flat_map(|n| if n % 2 == 0 { command(&["STRLEN", "word"]) } else { command(&["INCR", "word"]) })
        .collect();
    let until = clock::now() + LOAD;
    let mut n_calls = 0;
    while clock::now() < until {
        alternating.call(&["STRLEN", "word"])?;
        alternating.call(&["INCR", "word"])?;
        pipelined.stream().write_all(&batch)?;
        for _ in 0..PIPELINE {
            pipelined.reply()?;
        }
        n_calls += 2 + PIPELINE;
    }
    let (spans, ended) = finish(agent)?;
    ensure!(ended.stderr.contains("captured: "), "the report says what was outside:\n{}", ended.stderr);
    // An answer given to another request would show: every second one is an error.
    for half in spans.iter().flat_map(|span| span.client.iter().chain(&span.server)) {
        let expected = match half.operation.as_str() {
            "STRLEN" | "SET" => Status::Ok,
            "INCR" => Status::Error,
            other => panic!("nobody asked for {other}"),
        };
        assert_eq!(half.status, expected, "{half:#?}");
        assert!(half.times.duration_ns() < 1_000_000_000, "it crosses a pause: {half:#?}");
    }
    check_order(&spans);
    // A third of the time, less what the edges cost.
    let part = spans.len() as f64 / n_calls as f64;
    assert!((0.1..0.6).contains(&part), "{} spans of {n_calls} calls\n{}", spans.len(), ended.stderr);
    Ok(())
}

/// Windows of a tenth of the time, by the wall clock.
const WINDOW_NS: u64 = 100_000_000;
const PERIOD_NS: u64 = 10 * WINDOW_NS;
/// Load goes on for this long: so many windows, and the part of one.
const TENTH_LOAD: Duration = Duration::from_secs(10);
/// What a slow request waits: half a window, so that half of those are whole that would be if they took no time.
const SLOW_US: u64 = WINDOW_NS / 2_000;
const SLOW_CONNECTIONS: usize = 20;
/// Quick requests, each after a rest of some milliseconds: they show when the window was really open.
const QUICK_CONNECTIONS: usize = 6;
/// After a silence of 20 ms it is known that a connection owes no answer (`RESYNC_IDLE_NS`).
const REST: Duration = Duration::from_millis(5);

/// A request as its client knows it, nanoseconds since the epoch.
#[derive(Clone, Copy, Debug)]
struct Asked {
    port: u16,
    sent_ns: u64,
    done_ns: u64,
}

/// Asks one thing after the other on a connection for as long as the load goes on.
fn ask(server: SocketAddr, rest: Duration) -> Result<Vec<Asked>> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let port = stream.local_addr()?.port();
    let mut asked = Vec::new();
    let until = clock::now() + TENTH_LOAD;
    let mut buffer = [0; 4096];
    while clock::now() < until {
        let sent_ns = clock::unix_us() * 1_000;
        let key = format!("{port}-{}", asked.len());
        stream.write_all(format!("GET /item/{key} HTTP/1.1\r\nHost: shop\r\n\r\n").as_bytes())?;
        let mut input = Vec::new();
        while Protocol::Http.reply(&input)?.is_none() {
            let n = stream.read(&mut buffer)?;
            ensure!(n > 0, "the service closed the connection");
            input.extend_from_slice(&buffer[..n]);
        }
        asked.push(Asked { port, sent_ns, done_ns: clock::unix_us() * 1_000 });
        thread::sleep(rest);
    }
    Ok(asked)
}

/// The same on so many connections at once.
fn ask_all(server: SocketAddr, connections: usize, rest: Duration) -> Result<Vec<Asked>> {
    let threads: Vec<_> = (0..connections).map(|_| thread::spawn(move || ask(server, rest))).collect();
    let asked = threads.into_iter().map(|thread| thread.join().expect("a client does not panic"));
    Ok(asked.collect::<Result<Vec<_>>>()?.concat())
}

/// Whether a trace is whole: the client's request and the service's own call, seen at both ends.
fn is_whole(trace: &[&Span]) -> bool {
    trace.len() == 2
        && trace.iter().all(|span| span.client.is_some() && span.server.is_some())
        && trace.iter().filter(|span| span.link.is_none()).count() == 1
}

/// When the window was open for certain, by its number: from the first to the last moment of a stored span in it.
fn seen_windows(spans: &[Span]) -> BTreeMap<u64, [u64; 2]> {
    let mut windows: BTreeMap<u64, [u64; 2]> = BTreeMap::new();
    for half in spans.iter().flat_map(|span| span.client.iter().chain(&span.server)) {
        let (start_ns, end_ns) = (half.times.start_ns, half.times.end_ns);
        let window = windows.entry(start_ns / PERIOD_NS).or_insert([start_ns, end_ns]);
        *window = [window[0].min(start_ns), window[1].max(end_ns)];
    }
    windows
}

#[test]
fn in_windows_of_a_tenth_of_the_time_traces_are_whole_edges_counted_and_long_ones_rarer() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let (back, back_port) = service(live.path(), "back", ServiceConfig::default())?;
    let http = Some(SocketAddr::from(([127, 0, 0, 1], back_port)));
    let (quick, quick_port) =
        service(live.path(), "quick", ServiceConfig { http, ..ServiceConfig::default() })?;
    let dial = live.path().join("slow.dial");
    turn(&dial, &Behaviour { wait_us: SLOW_US, ..Behaviour::default() })?;
    let config = ServiceConfig { http, dial: Some(dial), ..ServiceConfig::default() };
    let (slow, slow_port) = service(live.path(), "slow", config)?;
    let ports = format!("{back_port},{quick_port},{slow_port}");
    let options = ["--port", &ports, "--duty-cycle", "1/10", "--window", "100ms", "--alone"];
    let agent = dprof_tests::agent::Agent::start(live.path(), &options)?;
    let of = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let asking = thread::spawn(move || ask_all(of(slow_port), SLOW_CONNECTIONS, REST));
    let quick_asked = ask_all(of(quick_port), QUICK_CONNECTIONS, REST)?;
    let slow_asked = asking.join().expect("clients do not panic")?;
    let (spans, ended) = finish(agent)?;
    drop((back, quick, slow));
    let said = &ended.stderr;
    check_order(&spans);

    let traces = by_trace(&spans);
    // By the client's port and the time: what was stored whole, each the trace of one request.
    let mut whole: BTreeMap<u16, Vec<u64>> = BTreeMap::new();
    for trace in traces.values().filter(|trace| is_whole(trace)) {
        let root = trace.iter().find_map(|span| span.client.as_ref().filter(|_| span.link.is_none()));
        let root = root.with_context(|| format!("a root: {trace:#?}"))?;
        whole.entry(root.local.port()).or_default().push(root.times.start_ns);
    }
    let n_stored = |asked: &Asked| {
        let of_port = whole.get(&asked.port).map(Vec::as_slice).unwrap_or_default();
        of_port.iter().filter(|start_ns| (asked.sent_ns..=asked.done_ns).contains(start_ns)).count()
    };
    let windows = seen_windows(&spans);
    let inside = |asked: &Asked| {
        windows
            .get(&(asked.sent_ns / PERIOD_NS))
            .is_some_and(|[first_ns, last_ns]| *first_ns <= asked.sent_ns && asked.done_ns <= *last_ns)
    };
    // A connection's first messages in a window are left out as long as nobody can know which answer is whose, and are
    // counted. So it is with the requests that are whole and with the calls behind them.
    let (mut shares, mut n_left_out) = (Vec::new(), 0);
    for asked in [&quick_asked, &slow_asked] {
        let (n_inside, n_kept) = asked
            .iter()
            .filter(|asked| inside(asked))
            .fold((0, 0), |(all, kept), asked| (all + 1, kept + n_stored(asked).min(1)));
        assert!(n_kept * 5 >= n_inside * 3, "{n_kept} of {n_inside} inside are whole\n{said}");
        n_left_out += n_inside - n_kept;
        shares.push(asked.iter().map(n_stored).sum::<usize>() as f64 / asked.len() as f64);
    }
    let n_whole: usize = whole.values().map(Vec::len).sum();
    assert!(n_left_out * 7 <= n_whole, "{n_left_out} are not, of {n_whole} that are\n{said}");
    let is_asked = |span: &&Span| span.server.as_ref().is_some_and(|half| half.local.port() != back_port);
    let n_without_call =
        spans.iter().filter(is_asked).filter(|span| traces[&span.trace_id].len() != 2).count();
    assert!(n_without_call * 20 <= n_whole, "{n_without_call} requests without their call\n{said}");
    let n_known: usize = quick_asked.iter().chain(&slow_asked).map(n_stored).sum();
    assert_eq!(n_known, n_whole, "a trace of nobody's request\n{said}");

    // A tenth of the quick ones, and of the slow ones at most half as many, give or take.
    let [quick_share, slow_share] = shares[..] else { unreachable!("two kinds") };
    assert!((0.05..0.2).contains(&quick_share), "{quick_share}\n{said}");
    let bias = slow_share / quick_share;
    assert!((0.15..0.7).contains(&bias), "{slow_share} to {quick_share}\n{said}");
    ensure!(said.contains(" 50 %: durations lean to the short"), "the report says so:\n{said}");
    // Each connection that waits for a slow answer has one when a window closes, on both of its ends.
    let n_windows = ended.number_before(" windows of ").context("how many windows")?;
    let n_cut = ended.number_before(" requests cut at edges").context("how many were cut")?;
    let n_seen = windows.len() as f64;
    ensure!(n_windows >= n_seen && n_seen >= 8.0, "{n_seen} windows were seen\n{said}");
    ensure!(n_cut >= n_left_out as f64, "{n_left_out} were left out, {n_cut} counted\n{said}");
    ensure!(n_cut >= n_seen * SLOW_CONNECTIONS as f64 / 2.0, "{n_cut} cut\n{said}");
    Ok(())
}
