//! The endpoint of a running agent, asked by those who mean well and by those who do not.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dprof_tests::agent::{Agent, binary};
use dprof_tests::program::Program;
use dprof_tests::{poll, subject};

use super::counts::{LOAD_WITHIN, benchmark};
use crate::harness::Live;
use crate::harness::memory::footprint;

const WITHIN: Duration = Duration::from_secs(20);

/// Status and body of one request.
fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: agent\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no answer: {text:?}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    Ok((status, body.to_owned()))
}

/// The sum of a family's samples.
fn value(text: &str, name: &str) -> f64 {
    let of = |line: &str| {
        let (sample, value) = line.rsplit_once(' ')?;
        (sample.split('{').next() == Some(name)).then(|| value.parse::<f64>().ok())?
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(of).sum()
}

#[test]
fn what_an_agent_does_is_told_while_it_does_it() -> Result<()> {
    const COMMANDS: u32 = 20_000;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let address: SocketAddr = ([127, 0, 0, 1], subject::free_port()?).into();
    let recording = live.path().join("recording").display().to_string();
    let port = redis.port.to_string();
    let agent = Agent::start(
        live.path(),
        &["--port", &port, "--metrics", &address.to_string(), "--record", &recording],
    )?;
    assert_eq!(get(address, "/healthz")?, (200, "ok\n".to_owned()));
    assert_eq!(get(address, "/readyz")?, (200, "ready\n".to_owned()));
    benchmark(&live, redis.port, &["-n", &COMMANDS.to_string(), "-t", "set"])?
        .wait(LOAD_WITHIN)?
        .success()?;
    let text = poll::until(WITHIN, "all spans are told as stored", || {
        let (_, text) = get(address, "/metrics").ok()?;
        (value(&text, "dprof_spans_stored_total") >= f64::from(COMMANDS)).then_some(text)
    })?;
    for name in [
        "dprof_capture_events_total",
        "dprof_capture_bytes_total",
        "dprof_messages_total",
        "dprof_spans_total",
        "dprof_batches_stored_total",
        "dprof_recording_events_total",
        "dprof_recording_bytes",
        "dprof_kernel_memory_bytes",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        "dprof_store_up",
    ] {
        assert!(value(&text, name) > 0.0, "{name}\n{text}");
    }
    for name in ["dprof_capture_lost_total", "dprof_spans_lost_total", "dprof_store_errors_total"] {
        assert!(value(&text, name).abs() < 0.5, "{name}\n{text}");
        assert!(text.contains(&format!("# TYPE {name} counter")), "{name}");
    }
    assert_eq!(get(address, "/other")?.0, 404);
    agent.stop()?;
    Ok(())
}

#[test]
fn slow_huge_and_many_clients_cost_nothing_and_keep_nobody_out() -> Result<()> {
    const CONNECTIONS: usize = 2_000;
    /// What some thousands of bounded connections may cost.
    const MORE_KB: u64 = 8 << 10;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let address: SocketAddr = ([127, 0, 0, 1], subject::free_port()?).into();
    let agent =
        Agent::start(live.path(), &["--port", &redis.port.to_string(), "--metrics", &address.to_string()])?;
    assert_eq!(get(address, "/readyz")?.0, 200);
    let before = footprint(agent.program.pid())?.total_kb();
    // Heads that never end, a few hundred at once, the last of them kept.
    let mut held = std::collections::VecDeque::new();
    for idx in 0..CONNECTIONS {
        let mut stream = TcpStream::connect_timeout(&address, WITHIN)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nX: ")?;
        held.push_back(stream);
        if held.len() > 300 {
            held.pop_front();
        }
        if idx % 500 == 0 {
            assert_eq!(get(address, "/healthz")?.0, 200, "beside {idx} others");
        }
    }
    // A head of 1 MiB: refused, or cut off while it is sent.
    let mut stream = TcpStream::connect_timeout(&address, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    let sent = stream.write_all(&[b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 1 << 20]].concat());
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{sent:?} {read:?}");
    // Garbage, and a method that changes things.
    for request in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"\r\n\r\n\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect_timeout(&address, WITHIN)?;
        stream.set_read_timeout(Some(WITHIN))?;
        stream.write_all(request)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(get(address, "/metrics")?.0, 200);
    let after = footprint(agent.program.pid())?.total_kb();
    assert!(after < before + MORE_KB, "{before} kB before, {after} kB after");
    // Those who never finish are dropped in time, though nobody else comes.
    let mut slow = held.pop_back().context("held")?;
    slow.set_read_timeout(Some(WITHIN))?;
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
    agent.stop()?;
    Ok(())
}

#[test]
fn a_store_that_is_away_is_named_by_readyz_and_health_stays() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let address: SocketAddr = ([127, 0, 0, 1], subject::free_port()?).into();
    let mut command = Command::new(binary("dprof-agent"));
    command.args(["--store", "cassandra://127.0.0.1:1/dprof", "--metrics", &address.to_string()]);
    command.args(["--port", &redis.port.to_string(), "--spool"]).arg(live.path().join("spool"));
    command.arg("--socket").arg(live.path().join("agent.sock"));
    let mut agent = Program::start("dprof-agent", live.path(), &mut command)?;
    agent.wait_until(WITHIN, "is ready", |program| program.stderr().contains("ready").then_some(()))?;
    benchmark(&live, redis.port, &["-n", "1000", "-t", "set"])?.wait(LOAD_WITHIN)?.success()?;
    poll::until(WITHIN, "readyz says that the store is away and that there is a spool", || {
        let (status, said) = get(address, "/readyz").ok()?;
        let (_, text) = get(address, "/metrics").ok()?;
        let is_told = status == 503 && said.contains("store: cannot connect to Cassandra at 127.0.0.1:1");
        (is_told && value(&text, "dprof_spool_bytes") > 0.0 && value(&text, "dprof_store_up") < 0.5)
            .then_some(())
    })?;
    assert_eq!(get(address, "/healthz")?.0, 200);
    agent.stop(libc::SIGTERM)?.success()?;
    Ok(())
}
