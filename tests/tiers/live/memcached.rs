//! memcached, asked by a client of our own: every command one RPC, with what it found; counts as the server's own.

use anyhow::{Result, ensure};
use dprof_common::model::{Half, HalfFlags, Span, Status};
use dprof_tests::subject;

use crate::harness::memcached::{Memcached, packet};
use crate::harness::{Live, attribute, check_order, finish, only};

/// A span's server half: operation, status, status code, hit.
fn outcome(span: &Span) -> (&str, Status, &str, Option<&str>) {
    let half: &Half = span.server.as_ref().expect("memcached is on this host");
    (&half.operation, half.status, &half.status_code, attribute(half, "dprof.cache.hit"))
}

#[test]
fn every_text_command_of_memcached_is_one_rpc_with_what_it_found() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let memcached = subject::memcached(live.path())?;
    let agent = live.agent_on(memcached.port)?;
    let mut client = Memcached::connect(memcached.address())?;
    ensure!(client.call("set k-set 0 0 6\r\nsecret\r\n")? == "STORED");
    client.send(b"get k-set\r\nget k-miss\r\n")?;
    ensure!(client.values()? == [6] && client.values()?.is_empty());
    client.send(b"gets k-set k-none\r\n")?;
    ensure!(client.values()? == [6]);
    ensure!(client.call("cas k-cas 0 0 1 7\r\nx\r\n")? == "NOT_FOUND");
    ensure!(client.call("incr k-incr 1\r\n")? == "NOT_FOUND");
    ensure!(client.call("touch k-touch 0\r\n")? == "NOT_FOUND");
    ensure!(client.call("bogus k\r\n")? == "ERROR");
    ensure!(client.call("incr k-set 1\r\n")?.starts_with("CLIENT_ERROR"));
    // Meta: the first is silent, the second speaks up.
    client.send(b"mg k-quiet v q O1\r\nmg k-set v q O2\r\nmn\r\n")?;
    ensure!(client.line()? == "VA 6 O2" && client.line()? == "secret" && client.line()? == "MN");
    client.send(b"set k-noreply 0 0 1 noreply\r\nx\r\n")?;
    // Refused: its own answer, not the next one's.
    client.send(b"set k-large 0 0 2000000\r\n")?;
    client.send(&vec![b'x'; 2_000_000])?;
    client.send(b"\r\nget k-noreply\r\n")?;
    ensure!(client.line()?.starts_with("SERVER_ERROR object too large"));
    ensure!(client.values()? == [1]);
    ensure!(client.counter("cmd_get")? == 7);
    let (spans, ended) = finish(agent)?;
    let said = &ended.stderr;
    assert_eq!(outcome(only(&spans, "set k-set")), ("set", Status::Ok, "", None), "{said}");
    assert_eq!(outcome(only(&spans, "get k-miss")), ("get", Status::Ok, "", Some("false")));
    assert_eq!(outcome(only(&spans, "gets k-set k-none")), ("gets", Status::Ok, "", Some("true")));
    assert_eq!(outcome(only(&spans, "cas k-cas")), ("cas", Status::Ok, "NOT_FOUND", Some("false")));
    assert_eq!(outcome(only(&spans, "incr k-incr")), ("incr", Status::Ok, "NOT_FOUND", Some("false")));
    assert_eq!(outcome(only(&spans, "touch k-touch")), ("touch", Status::Ok, "NOT_FOUND", Some("false")));
    assert_eq!(outcome(only(&spans, "incr k-set")), ("incr", Status::Error, "CLIENT_ERROR", None));
    assert_eq!(outcome(only(&spans, "set k-noreply")), ("set", Status::OneWay, "", None));
    assert_eq!(outcome(only(&spans, "set k-large")), ("set", Status::Error, "TOO_LARGE", None));
    assert_eq!(outcome(only(&spans, "get k-noreply")), ("get", Status::Ok, "", Some("true")));
    assert_eq!(outcome(only(&spans, "mg k-quiet")), ("mg", Status::Ok, "", Some("false")));
    assert_eq!(outcome(only(&spans, "mg k-set")), ("mg", Status::Ok, "", Some("true")));
    assert!(!format!("{spans:?}").contains("secret"), "a value was stored");
    check_order(&spans);
    Ok(())
}

#[test]
fn binary_packets_are_paired_with_their_requests_quiet_ones_too() -> Result<()> {
    const KEYS: u32 = 200;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let memcached = subject::memcached(live.path())?;
    let agent = live.agent_on(memcached.port)?;
    let mut client = Memcached::connect(memcached.address())?;
    // Every other key is there, its value as long as its number says.
    let mut batch = Vec::new();
    for n in (0..KEYS).step_by(2) {
        batch.extend(packet(0x11, &[0; 8], &format!("key{n}"), &vec![b'x'; n as usize], n));
    }
    batch.extend(packet(0x0a, &[], "", b"", 0));
    client.send(&batch)?;
    ensure!(client.packet()? == (0x0a, 0, 0));
    let mut batch = Vec::new();
    for n in 0..KEYS {
        batch.extend(packet(0x0d, &[], &format!("key{n}"), b"", n + 1));
    }
    batch.extend(packet(0x0a, &[], "", b"", KEYS + 1));
    client.send(&batch)?;
    for n in (0..KEYS).step_by(2) {
        ensure!(client.packet()? == (0x0d, 0, n + 1));
    }
    ensure!(client.packet()? == (0x0a, 0, KEYS + 1));
    client.send(&packet(0x10, &[], "", b"", 7))?;
    // Statistics, then an empty packet: what ends them has no body, which the client need not know here.
    client.send(&packet(0x0a, &[], "", b"", 8))?;
    while client.packet()?.0 != 0x0a {}
    let mut text = Memcached::connect(memcached.address())?;
    let (gets, sets) = (text.counter("cmd_get")?, text.counter("cmd_set")?);
    let (spans, ended) = finish(agent)?;
    let of = |operation| {
        spans.iter().filter(move |span| span.server.as_ref().is_some_and(|half| half.operation == operation))
    };
    assert_eq!((of("get").count() as u64, of("set").count() as u64), (gets, sets), "{}", ended.stderr);
    // The text client's two, and one packet.
    assert_eq!(of("stats").count(), 3);
    for span in of("get") {
        for half in [span.client.as_ref(), span.server.as_ref()].into_iter().flatten() {
            let n: u64 = half.query_text.trim_start_matches("get key").parse()?;
            let expected =
                if n.is_multiple_of(2) { 24 + 4 + half.query_text.len() as u64 - 4 + n } else { 0 };
            let hit = attribute(half, "dprof.cache.hit");
            assert_eq!(
                (half.response_bytes, hit),
                (expected, Some(if n.is_multiple_of(2) { "true" } else { "false" })),
                "{half:#?}"
            );
            assert!(!half.flags.contains(HalfFlags::INCOMPLETE));
        }
    }
    check_order(&spans);
    Ok(())
}
