//! Every back end gives the same spans of the same traffic: agents of all of them watch one exchange at once.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, anyhow, ensure};
use dprof_common::model::{Half, Span};
use dprof_tests::agent::{Agent, binary};

use crate::harness::exchange::read;
use crate::harness::resp::command;
use crate::harness::socket::{self, Recv, Send, pair, recv_all};
use crate::harness::{Live, check_order, stored};

/// Bytes of a message that fits neither a segment nor a socket's buffer.
const LARGE: usize = 3_000_000;

/// Ways of capturing that this kernel has: back end, and how events come.
fn ways() -> Result<Vec<(String, &'static str)>> {
    let output = Command::new(binary("dprof-agent")).arg("doctor").output().context("start dprof-agent")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let usable = |line: &str| {
        let (name, rest) = line.strip_prefix("back end ")?.split_once(' ')?;
        rest.trim_start().starts_with("usable").then(|| name.to_owned())
    };
    let backends: Vec<String> = said.lines().filter_map(usable).collect();
    let first = backends.first().with_context(|| format!("no back end: {said}"))?.clone();
    // Buffers of CPUs are for the first back end of the newest kernels.
    let percpu = (first == "tp_btf").then(|| (first.clone(), "percpu"));
    let ring = backends.into_iter().map(|name| (name, "ring"));
    Ok(percpu.into_iter().chain(ring).chain([(first, "perf")]).collect())
}

/// What does not depend on when and by which agent a half was seen.
fn timeless(half: &Half) -> String {
    let Half { operation, query_text, status, request_bytes, response_bytes, local, peer, .. } = half;
    format!("{operation} {query_text:?} {status:?} {request_bytes} {response_bytes} {local} {peer}")
}

/// A line per span, sorted: its id, and what is timeless of its halves.
fn lines(spans: &[Span]) -> Vec<String> {
    let half = |half: &Option<Half>| half.as_ref().map_or_else(|| "-".to_owned(), timeless);
    let mut lines: Vec<_> = spans
        .iter()
        .map(|span| {
            format!("{:?} client: {} server: {}", span.span_id, half(&span.client), half(&span.server))
        })
        .collect();
    lines.sort_unstable();
    lines
}

#[test]
#[expect(clippy::print_stdout, reason = "which ways this kernel has, for whoever runs it with --nocapture")]
fn every_back_end_sees_the_same_spans_of_the_same_traffic() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port().to_string();
    let old = pair(&listener)?;
    let agents = ways()?
        .into_iter()
        .map(|(backend, events)| {
            let folder = live.path().join(format!("{backend}-{events}"));
            fs::create_dir(&folder)?;
            let agent = Agent::start(&folder, &["--port", &port, "--backend", &backend, "--events", events])?;
            Ok((format!("{backend} by {events}"), agent))
        })
        .collect::<Result<Vec<_>>>()?;
    let expected = exchange(&listener, &old)?;
    drop(old);
    let mut first: Option<(String, Vec<String>)> = None;
    for (way, agent) in agents {
        let store = agent.store.clone();
        let ended = agent.stop()?;
        let spans = stored(&store)?;
        println!("{way}: {} spans", spans.len());
        ensure!(ended.stderr.contains("lost: none"), "{way}: {}", ended.stderr);
        assert_eq!(spans.len(), expected, "{way}: {:#?}\n{}", lines(&spans), ended.stderr);
        let whole = spans.iter().filter(|span| span.client.is_some() && span.server.is_some()).count();
        assert_eq!(whole, expected, "{way}: {:#?}", lines(&spans));
        check_order(&spans);
        let lines = lines(&spans);
        match &first {
            None => first = Some((way, lines)),
            Some((other, expected)) => assert_eq!(&lines, expected, "{way}, and {other}"),
        }
    }
    Ok(())
}

/// Requests and responses of many shapes, on `old`, which is older than the agents, and on connections of their own;
/// how many.
fn exchange(listener: &TcpListener, old: &(TcpStream, TcpStream)) -> Result<usize> {
    const VALUE: &[u8] = b"$5\r\nvalue\r\n";
    let mut count = 0;
    let small =
        |(client, server): &(TcpStream, TcpStream), key: &str, send: Send, recv: Recv| -> Result<()> {
            let request = command(&["GET", key]);
            send.all(client, &request)?;
            ensure!(recv.once(server, 4096)? == request, "{key}");
            send.all(server, VALUE)?;
            ensure!(recv.once(client, 4096)? == VALUE, "{key}");
            Ok(())
        };
    for (send, recv) in Send::ALL.into_iter().zip(Recv::ALL) {
        small(old, &format!("old-{send:?}."), send, recv)?;
        small(&pair(listener)?, &format!("new-{send:?}."), send, recv)?;
        count += 2;
    }
    // Several in one write, read by one call.
    let (client, server) = pair(listener)?;
    let requests: Vec<u8> = (0..20).flat_map(|n| command(&["GET", &format!("batch-{n}.")])).collect();
    (&client).write_all(&requests)?;
    recv_all(&server, requests.len())?;
    (&server).write_all(&VALUE.repeat(20))?;
    recv_all(&client, VALUE.len() * 20)?;
    count += 20;
    // One that sleeps in the send and in the receive: both ends' calls give the lock back in between.
    let set = command(&["SET", "large", &"x".repeat(LARGE)]);
    thread::scope(|scope| {
        let reader = scope.spawn(|| recv_all(&server, set.len()));
        (&client).write_all(&set)?;
        reader.join().map_err(|_| anyhow!("the reader panicked"))??;
        Ok::<_, anyhow::Error>(())
    })?;
    (&server).write_all(b"+OK\r\n")?;
    read(&client, 5)?;
    // A reply by sendfile, and one more message after it, whose place must be right.
    let folder = tempfile::tempdir()?;
    let body = folder.path().join("body");
    fs::write(&body, vec![b'y'; 30_000])?;
    (&client).write_all(&command(&["GET", "by-sendfile"]))?;
    read(&server, command(&["GET", "by-sendfile"]).len())?;
    (&server).write_all(b"$30000\r\n")?;
    socket::sendfile(&server, &fs::File::open(&body)?, 30_000)?;
    (&server).write_all(b"\r\n")?;
    read(&client, 8 + 30_000 + 2)?;
    small(&(client, server), "last", Send::Write, Recv::Read)?;
    Ok(count + 3)
}
