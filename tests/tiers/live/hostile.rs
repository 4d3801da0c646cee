//! Odd shapes and bad manners: right spans or counted gaps, bounded memory, never a crash.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use dprof_common::model::{Status, split};
use dprof_tests::{cli, subject};

use super::counts::{LOAD_WITHIN, benchmark};
use crate::harness::exchange::{read, timed};
use crate::harness::resp::{Resp, calls, command};
use crate::harness::socket::{pair, reset_on_close};
use crate::harness::{Live, check_order, finish, only, with_text};

#[test]
fn a_request_in_one_byte_writes_is_one_rpc() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = live.agent_on(redis.port)?;
    let mut client = Resp::connect(redis.address())?;
    let request = command(&["SET", "slowly", "value"]);
    for byte in &request {
        client.stream().write_all(&[*byte])?;
    }
    ensure!(client.reply()? == b"+OK");
    let (spans, _) = finish(agent)?;
    let span = only(&spans, "slowly");
    assert_eq!(spans.len(), 1);
    assert_eq!(span.client.as_ref().map(|half| half.request_bytes), Some(request.len() as u64));
    assert_eq!(span.server.as_ref().map(|half| half.request_bytes), Some(request.len() as u64));
    check_order(&spans);
    Ok(())
}

#[test]
fn a_value_of_64_mib_is_two_rpcs_of_the_right_size() -> Result<()> {
    const BYTES: usize = 64 << 20;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = live.agent_on(redis.port)?;
    let mut client = Resp::connect(redis.address())?;
    client.call(&["SET", "huge", &"v".repeat(BYTES)])?;
    ensure!(client.call(&["GET", "huge"])?.len() == BYTES);
    client.call(&["SET", "after", "v"])?;
    let (spans, ended) = finish(agent)?;
    assert_eq!(spans.len(), 3, "{}", ended.stderr);
    let sizes = |span: &dprof_common::model::Span| {
        span.nearest().map(|half| (half.operation.clone(), half.request_bytes, half.response_bytes))
    };
    let (request, header) = (command(&["SET", "huge", ""]).len() + BYTES + 7, format!("${BYTES}\r\n").len());
    assert_eq!(sizes(&spans[0]), Some(("SET".into(), request as u64, 5)));
    let get = command(&["GET", "huge"]).len() as u64;
    assert_eq!(sizes(&spans[1]), Some(("GET".into(), get, (header + BYTES + 2) as u64)));
    only(&spans, "after");
    check_order(&spans);
    Ok(())
}

#[test]
fn thousands_of_commands_in_one_write_are_thousands_of_rpcs() -> Result<()> {
    const COMMANDS: usize = 4000;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = live.agent_on(redis.port)?;
    let mut client = Resp::connect(redis.address())?;
    // 56,000 bytes: all of it is captured.
    client.stream().write_all(&command(&["PING"]).repeat(COMMANDS))?;
    for _ in 0..COMMANDS {
        ensure!(client.reply()? == b"+PONG");
    }
    let store = agent.store.clone();
    let (spans, ended) = finish(agent)?;
    assert_eq!(cli::count(&store, "server", "PING")?, COMMANDS as u64, "{}", ended.stderr);
    assert_eq!(spans.len(), COMMANDS);
    assert!(spans.iter().all(|span| span.client.as_ref().is_some_and(|half| half.batch > 1)));
    check_order(&spans);
    Ok(())
}

#[test]
fn commands_beyond_what_is_captured_of_a_write_are_counted_as_lost() -> Result<()> {
    const COMMANDS: usize = 3000;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = live.agent_on(redis.port)?;
    let mut client = Resp::connect(redis.address())?;
    // 81,000 bytes in one write, of which 60 KiB are captured; the server reads them in several calls.
    client.stream().write_all(&command(&["INCR", "counter"]).repeat(COMMANDS))?;
    for expected in 1..=COMMANDS {
        ensure!(client.reply()? == format!(":{expected}").as_bytes());
    }
    let (spans, ended) = finish(agent)?;
    assert!(ended.stderr.contains("boundaries_lost"), "{}", ended.stderr);
    assert!(spans.len() <= COMMANDS, "{}", spans.len());
    assert!(spans.iter().filter_map(|span| span.nearest()).all(|half| half.operation == "INCR"));
    check_order(&spans);
    Ok(())
}

#[test]
fn a_reset_before_the_answer_is_a_span_of_status_reset() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let agent = live.agent_on(listener.local_addr()?.port())?;
    let (whole, half) = (command(&["GET", "whole"]), command(&["GET", "half-sent"]));
    let (mut client, server) = pair(&listener)?;
    client.write_all(&whole)?;
    client.write_all(&half[..half.len() / 2])?;
    read(&server, whole.len() + half.len() / 2)?;
    reset_on_close(&client)?;
    drop(client);
    // The reset arrives: reading fails or ends.
    let mut rest = Vec::new();
    let _ = (&server).read_to_end(&mut rest);
    drop(server);
    let (spans, _) = finish(agent)?;
    let span = only(&spans, "whole");
    assert_eq!(span.server.as_ref().map(|half| half.status), Some(Status::Reset), "{span:#?}");
    assert_eq!(with_text(&spans, "half-sent").count(), 0, "a request that never was: {spans:#?}");
    Ok(())
}

#[test]
fn a_close_before_the_answer_is_a_span_without_reply() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let agent = live.agent_on(listener.local_addr()?.port())?;
    let request = command(&["GET", "unanswered"]);
    let (mut client, server) = pair(&listener)?;
    client.write_all(&request)?;
    read(&server, request.len())?;
    server.shutdown(Shutdown::Both)?;
    drop(server);
    let mut rest = Vec::new();
    client.read_to_end(&mut rest)?;
    drop(client);
    let (spans, _) = finish(agent)?;
    let span = only(&spans, "unanswered");
    assert_eq!(span.client.as_ref().map(|half| half.status), Some(Status::NoReply), "{span:#?}");
    Ok(())
}

#[test]
fn garbage_invents_nothing_and_harms_nobody_else() -> Result<()> {
    const CONNECTIONS: usize = 50;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let ports = [redis.port, listener.local_addr()?.port()].map(|port| port.to_string());
    let agent = dprof_tests::agent::Agent::start(live.path(), &["--port", &ports[0], "--port", &ports[1]])?;
    let mut random = Random(0x0d15_ea5e);
    for idx in 0..CONNECTIONS {
        let (mut client, mut server) = pair(&listener)?;
        client.write_all(&random.bytes(1000 + 37 * idx))?;
        server.write_all(&random.bytes(1000))?;
        // Redis answers garbage with an error and closes; what it answers does not matter here.
        let mut stream = TcpStream::connect(redis.address())?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(&random.bytes(500))?;
        stream.shutdown(Shutdown::Write)?;
        let _ = stream.read_to_end(&mut Vec::new());
    }
    Resp::connect(redis.address())?.call(&["SET", "sane", "v"])?;
    let (spans, ended) = finish(agent)?;
    only(&spans, "sane");
    let invented: Vec<_> = spans
        .iter()
        .filter(|span| span.nearest().is_some_and(|half| half.local.port().to_string() == ports[1]))
        .collect();
    assert!(invented.is_empty(), "{invented:#?}\n{}", ended.stderr);
    Ok(())
}

#[test]
fn twenty_thousand_short_connections_are_all_seen() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = live.agent_on(redis.port)?;
    benchmark(&live, redis.port, &["-k", "0", "-c", "20", "-n", "20000", "-t", "ping_mbulk"])?
        .wait(LOAD_WITHIN)?
        .success()?;
    let store = agent.store.clone();
    let (spans, ended) = finish(agent)?;
    let expected = calls(redis.address(), |name| name == "ping")?;
    assert!(expected >= 20_000);
    assert_eq!(cli::count(&store, "server", "PING")?, expected, "{}", ended.stderr);
    check_order(&spans);
    Ok(())
}

#[test]
fn two_threads_writing_one_socket_are_not_mixed_up() -> Result<()> {
    // A server that is late reads up to 32 KiB of it at once.
    const EACH: usize = 500;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = live.agent_on(redis.port)?;
    let mut client = Resp::connect(redis.address())?;
    let stream = client.stream().try_clone()?;
    thread::scope(|scope| {
        let writers = ["left", "right"].map(|key| {
            let stream = &stream;
            scope.spawn(move || {
                let request = command(&["INCR", key]);
                (0..EACH).try_for_each(|_| (&*stream).write_all(&request))
            })
        });
        for _ in 0..2 * EACH {
            client.reply()?;
        }
        writers.into_iter().try_for_each(|writer| {
            writer.join().map_err(|_| anyhow!("a writer panicked"))?.map_err(anyhow::Error::from)
        })
    })?;
    let (spans, ended) = finish(agent)?;
    // The server reads one stream, whoever wrote it: nothing is missing there.
    for key in ["left", "right"] {
        assert_eq!(
            with_text(&spans, key).filter(|span| span.server.is_some()).count(),
            EACH,
            "{}",
            ended.stderr
        );
    }
    assert_eq!(spans.len(), 2 * EACH, "{}", ended.stderr);
    for span in &spans {
        assert!(split(span).parts().all(|(_, part)| part >= 0) || split(span).approximate, "{span:#?}");
    }
    Ok(())
}

#[test]
fn a_request_open_for_longer_than_max_open_is_given_up() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port().to_string();
    let agent = dprof_tests::agent::Agent::start(live.path(), &["--port", &port, "--max-open", "200ms"])?;
    let (client, server) = pair(&listener)?;
    let request = command(&["BLPOP", "waiting", "0"]);
    timed(|| (&client).write_all(&request))?;
    read(&server, request.len())?;
    let store = agent.store.clone();
    dprof_tests::poll::until(Duration::from_secs(20), "a span of status timeout is stored", || {
        let rows = cli::json(&store, &["slowest-spans", "--since", "all", "--status", "timeout"]).ok()?;
        (rows.len() == 1).then_some(())
    })?;
    drop((client, server));
    let (spans, _) = finish(agent)?;
    assert_eq!(only(&spans, "waiting").server.as_ref().map(|half| half.status), Some(Status::Timeout));
    Ok(())
}

/// Reproducible bytes (xorshift64).
struct Random(u64);

impl Random {
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length)
            .map(|_| {
                self.0 ^= self.0 << 13;
                self.0 ^= self.0 >> 7;
                self.0 ^= self.0 << 17;
                self.0 as u8
            })
            .collect()
    }
}
