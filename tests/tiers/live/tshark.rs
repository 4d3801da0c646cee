//! The same traffic seen by dprof and by tshark: messages, operations, pairs, bytes and times agree.
//!
//! tshark dissects packets; so where one packet carries one message its length, time and neighbour are compared too,
//! and where packets carry several, what they say. Known to differ, and left out: tshark 4.0 has no meta commands of
//! memcached and does not name an integer reply of it; it pairs HTTP only.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use dprof_common::model::{Half, Span, Status};
use dprof_tests::subject;

use crate::harness::dissector::{Capture, Packet, dissect, from_hex};
use crate::harness::memcached::Memcached;
use crate::harness::resp::{Resp, command};
use crate::harness::{Live, check_order, finish};

/// The capture stamps a packet between its departure and its arrival, by another clock that is read once a second.
const MARGIN_NS: u64 = 1_000_000;

/// Requests one at a time, and batches of several.
const SINGLE: usize = 60;
const BATCHES: usize = 20;
const DEPTH: usize = 5;

/// Commands by turns; every seventh fails.
fn redis_command(n: usize) -> Vec<String> {
    let words: &[&str] = match n % 7 {
        0 => &["SET", "key", "some value"],
        1 => &["GET", "key"],
        2 => &["GET", "missing"],
        3 => &["INCR", "number"],
        4 => &["RPUSH", "list", "a", "b"],
        5 => &["LRANGE", "list", "0", "3"],
        _ => &["LPUSH", "key", "fails"],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn encoded(words: &[String]) -> Vec<u8> {
    command(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Like [`Resp::reply`], for replies that may be errors.
fn skip_reply(reader: &mut impl std::io::BufRead) -> Result<()> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let count = || line[1..].trim_end().parse::<i64>();
    match line.as_bytes().first() {
        Some(b'$') => {
            if let Ok(length) = usize::try_from(count()?) {
                reader.read_exact(&mut vec![0; length + 2])?;
            }
        }
        Some(b'*') => (0..count()?).try_for_each(|_| skip_reply(reader))?,
        _ => {}
    }
    Ok(())
}

fn talk_redis(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    for n in 0..SINGLE {
        reader.get_mut().write_all(&encoded(&redis_command(n)))?;
        skip_reply(&mut reader)?;
    }
    for batch in 0..BATCHES {
        let commands: Vec<u8> = (0..DEPTH).flat_map(|n| encoded(&redis_command(batch + n))).collect();
        reader.get_mut().write_all(&commands)?;
        (0..DEPTH).try_for_each(|_| skip_reply(&mut reader))?;
    }
    Ok(())
}

fn memcached_command(n: usize) -> (&'static str, &'static str, &'static str) {
    match n % 5 {
        0 => ("set key 0 0 5\r\nhello\r\n", "set", "key"),
        1 => ("get key\r\n", "get", "key"),
        2 => ("get missing\r\n", "get", "missing"),
        3 => ("gets key key\r\n", "gets", "key;key"),
        _ => ("delete other\r\n", "delete", "other"),
    }
}

fn talk_memcached(client: &mut Memcached) -> Result<()> {
    for n in 0..SINGLE {
        let (line, name, _) = memcached_command(n);
        client.send(line.as_bytes())?;
        if name.starts_with("get") {
            client.values()?;
        } else {
            client.line()?;
        }
    }
    Ok(())
}

fn talk_http(stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    for n in 0..SINGLE {
        let (method, path) = (["GET", "HEAD"][n % 2], ["/page", "/missing"][n / 2 % 2]);
        // In one call: one packet.
        let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        reader.get_mut().write_all(request.as_bytes())?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse()?;
            }
            if line == "\r\n" {
                break;
            }
        }
        reader.read_exact(&mut vec![0; if method == "HEAD" { 0 } else { length }])?;
    }
    Ok(())
}

/// Spans to `port` in the order of their requests.
fn to_port(spans: &[Span], port: u16) -> Vec<&Span> {
    let client = |span: &&Span| span.client.as_ref().is_some_and(|half| half.peer.port() == port);
    let mut spans: Vec<&Span> = spans.iter().filter(client).collect();
    spans.sort_by_key(|span| span.client.as_ref().map(|half| half.request_message_id));
    spans
}

/// A packet lies between the departure and the arrival of what it carries.
#[track_caller]
fn check_time(packet: &Packet, departed_ns: Option<u64>, arrived_ns: Option<u64>) {
    let (Some(departed), Some(arrived)) = (departed_ns, arrived_ns) else { return };
    assert!(
        departed <= packet.time_ns + MARGIN_NS && packet.time_ns <= arrived + MARGIN_NS,
        "captured at {}, departed {departed}, arrived {arrived}",
        packet.time_ns
    );
}

/// One packet asks and the next one answers: their bytes and times are the span's.
#[track_caller]
fn check_pair(span: &Span, request: &Packet, response: &Packet) {
    let (client, server): (&Half, &Half) = match (&span.client, &span.server) {
        (Some(client), Some(server)) => (client, server),
        _ => panic!("one half is missing: {span:#?}"),
    };
    assert_eq!((client.request_bytes, client.response_bytes), (request.bytes, response.bytes), "{client:#?}");
    check_time(request, client.times.request_last_ns, server.times.request_last_ns);
    check_time(response, server.times.response_first_ns, client.times.response_first_ns);
}

#[test]
fn tshark_sees_the_same_messages_pairs_and_times() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let (redis, memcached) = (subject::redis(live.path())?, subject::memcached(live.path())?);
    let nginx = subject::nginx(live.path())?;
    std::fs::write(live.path().join("html/page"), "a page")?;
    let ports = [redis.port, memcached.port, nginx.port];
    let agent = live.agent_on_all(&ports)?;
    let capture = Capture::start(live.path(), &ports)?;
    talk_redis(TcpStream::connect(redis.address())?)?;
    talk_memcached(&mut Memcached::connect(memcached.address())?)?;
    talk_http(TcpStream::connect(nginx.address())?)?;
    Resp::connect(redis.address())?.call(&["PING", "the last packet"])?;
    let file = capture.stop_after(b"the last packet")?;
    let (spans, ended) = finish(agent)?;
    let said = &ended.stderr;
    let read = |port, protocol, fields: &[&str]| dissect(live.path(), &file, port, protocol, fields);

    let packets = read(redis.port, "resp", &["resp.array.length", "resp.bulk_string.value", "resp.error"])?;
    let mut of_redis = to_port(&spans, redis.port);
    of_redis.retain(|span| span.client.as_ref().is_some_and(|half| half.operation != "PING"));
    compare_redis(&of_redis, &packets, redis.port).with_context(|| said.clone())?;

    let packets = read(memcached.port, "memcache", &["memcache.command", "memcache.key"])?;
    let of_memcached = to_port(&spans, memcached.port);
    ensure!(
        of_memcached.len() == SINGLE && packets.len() == 2 * SINGLE,
        "{} {}",
        of_memcached.len(),
        packets.len()
    );
    for (n, (span, pair)) in of_memcached.iter().zip(packets.chunks(2)).enumerate() {
        let half = span.client.as_ref().context("client")?;
        let (_, name, keys) = memcached_command(n);
        assert_eq!(
            (pair[0].fields[0].join(";"), pair[0].fields[1].join(";")),
            (name.to_owned(), keys.to_owned())
        );
        assert_eq!(half.operation, name, "{said}");
        assert!(half.query_text.starts_with(&format!("{name} {}", keys.replace(';', " "))), "{half:#?}");
        check_pair(span, &pair[0], &pair[1]);
    }

    let fields = ["http.request.method", "http.request.uri", "http.response.code", "http.request_in"];
    let packets = read(nginx.port, "http", &fields)?;
    compare_http(&to_port(&spans, nginx.port), &packets, nginx.port).with_context(|| said.clone())?;
    check_order(&spans);
    Ok(())
}

fn compare_redis(spans: &[&Span], packets: &[Packet], port: u16) -> Result<()> {
    // All arrays of a request are outermost, and its strings follow in order.
    let mut names = Vec::new();
    for packet in packets.iter().filter(|packet| packet.from_port != port) {
        let mut strings = packet.fields[1].iter();
        for length in &packet.fields[0] {
            let words: Vec<String> =
                strings.by_ref().take(length.parse()?).map(|hex| from_hex(hex)).collect();
            names.push(words[0].clone());
        }
    }
    names.retain(|name| name != "PING");
    let ours: Vec<&str> =
        spans.iter().filter_map(|span| span.client.as_ref()).map(|half| half.operation.as_str()).collect();
    assert_eq!(ours, names);
    let errors: usize = packets.iter().map(|packet| packet.fields[2].len()).sum();
    let failed =
        spans.iter().filter(|span| span.client.as_ref().is_some_and(|half| half.status == Status::Error));
    let failed: Vec<&str> =
        failed.filter_map(|span| Some(span.client.as_ref()?.query_text.as_str())).collect();
    assert_eq!(failed.len(), errors, "{failed:?}");
    for (span, pair) in spans.iter().zip(packets.chunks(2)).take(SINGLE) {
        ensure!(pair[0].from_port != port && pair[1].from_port == port, "by turns");
        check_pair(span, &pair[0], &pair[1]);
    }
    Ok(())
}

fn compare_http(spans: &[&Span], packets: &[Packet], port: u16) -> Result<()> {
    let requests: Vec<&Packet> = packets.iter().filter(|packet| packet.from_port != port).collect();
    ensure!(requests.len() == spans.len() && spans.len() == SINGLE, "{} and {}", requests.len(), spans.len());
    for (span, request) in spans.iter().zip(requests) {
        let half = span.client.as_ref().context("client")?;
        let of_request = |packet: &&Packet| packet.fields[3].first() == Some(&request.number.to_string());
        let response = packets.iter().find(of_request).context("tshark paired it")?;
        assert_eq!(half.operation, format!("{} {}", request.fields[0].join(""), request.fields[1].join("")));
        assert_eq!(half.status_code, response.fields[2].join(""));
        assert_eq!(half.request_bytes, request.bytes);
        let server = span.server.as_ref().context("server")?;
        check_time(request, half.times.request_last_ns, server.times.request_last_ns);
    }
    Ok(())
}
