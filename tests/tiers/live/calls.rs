//! Every system call that moves bytes of a socket.

use std::fs::{self, File};
use std::io::{Write as _, pipe};
use std::net::TcpListener;
use std::thread;

use anyhow::{Result, anyhow, ensure};

use crate::harness::exchange::read;
use crate::harness::resp::command;
use crate::harness::socket::{self, Recv, Send, pair};
use crate::harness::{Live, check_order, finish, only, texts};

#[test]
fn every_form_of_sending_and_receiving_shows_its_bytes() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let agent = live.agent_on(listener.local_addr()?.port())?;
    let forms = || Send::ALL.into_iter().flat_map(|send| Recv::ALL.map(|recv| (send, recv)));
    for (send, recv) in forms() {
        let (client, server) = pair(&listener)?;
        let request = command(&["GET", &format!("{send:?}-{recv:?}.")]);
        let response = b"$5\r\nvalue\r\n";
        send.all(&client, &request)?;
        ensure!(recv.once(&server, 4096)? == request, "{send:?} {recv:?}");
        send.all(&server, response)?;
        ensure!(recv.once(&client, 4096)? == response, "{send:?} {recv:?}");
    }
    let (spans, ended) = finish(agent)?;
    assert_eq!(spans.len(), forms().count(), "{:?}\n{}", texts(&spans), ended.stderr);
    for (send, recv) in forms() {
        let span = only(&spans, &format!("{send:?}-{recv:?}."));
        for half in [&span.client, &span.server] {
            let half = half.as_ref().ok_or_else(|| anyhow!("{send:?} {recv:?}: one half is missing"))?;
            assert_eq!((half.operation.as_str(), half.response_bytes), ("GET", 11), "{send:?} {recv:?}");
        }
    }
    check_order(&spans);
    Ok(())
}

/// `sendfile` and `splice` show no bytes; the range is exact all the same, so the next message is found.
#[test]
fn bytes_by_sendfile_and_splice_are_counted_exactly() -> Result<()> {
    const BYTES: usize = 300_000;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let agent = live.agent_on(listener.local_addr()?.port())?;
    let (client, server) = pair(&listener)?;
    let body = live.path().join("body");
    fs::write(&body, vec![b'x'; BYTES])?;
    let file = File::open(&body)?;
    let (get, set) = (command(&["GET", "by-sendfile"]), command(&["SET", "by-splice", ""]));
    // The command up to the value's length, then the value through a pipe, then the end of line.
    let set_head = String::from_utf8_lossy(&set).replace("$0\r\n\r\n", &format!("${BYTES}\r\n")).into_bytes();
    let after = command(&["GET", "after-both"]);
    let head = format!("${BYTES}\r\n").into_bytes();
    thread::scope(|scope| {
        let served = scope.spawn(|| -> Result<()> {
            read(&server, get.len())?;
            (&server).write_all(&head)?;
            socket::sendfile(&server, &file, BYTES)?;
            (&server).write_all(b"\r\n")?;
            read(&server, set_head.len())?;
            let (out, into) = pipe()?;
            drain(&server, &out, &into, BYTES)?;
            read(&server, 2)?;
            (&server).write_all(b"+OK\r\n")?;
            read(&server, after.len())?;
            (&server).write_all(b"$-1\r\n")?;
            Ok(())
        });
        (&client).write_all(&get)?;
        read(&client, head.len() + BYTES + 2)?;
        (&client).write_all(&set_head)?;
        let (out, into) = pipe()?;
        fill(&client, &out, &into, BYTES)?;
        (&client).write_all(b"\r\n")?;
        read(&client, 5)?;
        (&client).write_all(&after)?;
        read(&client, 5)?;
        served.join().map_err(|_| anyhow!("the server panicked"))?
    })?;
    let (spans, ended) = finish(agent)?;
    assert_eq!(spans.len(), 3, "{:?}\n{}", texts(&spans), ended.stderr);
    let bytes = |word| {
        let span = only(&spans, word);
        [&span.client, &span.server]
            .map(|half| half.as_ref().map(|half| (half.request_bytes, half.response_bytes)))
    };
    let get = Some((get.len() as u64, (head.len() + BYTES + 2) as u64));
    let set = Some(((set_head.len() + BYTES + 2) as u64, 5));
    assert_eq!(bytes("by-sendfile"), [get, get], "{}", ended.stderr);
    assert_eq!(bytes("by-splice"), [set, set], "{}", ended.stderr);
    assert_eq!(bytes("after-both"), [Some((after.len() as u64, 5)); 2], "{}", ended.stderr);
    Ok(())
}

/// Neither does `io_uring`, whose work may run at the exit of any call: its ranges are exact, and what it moves is not
/// taken from another call's buffers.
#[test]
fn bytes_by_io_uring_are_counted_exactly() -> Result<()> {
    const BYTES: usize = 100_000;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let agent = live.agent_on(listener.local_addr()?.port())?;
    let (client, server) = pair(&listener)?;
    let (get, after) = (command(&["GET", "by-io-uring"]), command(&["GET", "after-it"]));
    let head = format!("${BYTES}\r\n").into_bytes();
    thread::scope(|scope| {
        let served = scope.spawn(|| -> Result<()> {
            read(&server, get.len())?;
            (&server).write_all(&head)?;
            socket::by_io_uring(&server, &mut vec![b'x'; BYTES], true)?;
            (&server).write_all(b"\r\n")?;
            read(&server, after.len())?;
            (&server).write_all(b"$-1\r\n")?;
            Ok(())
        });
        (&client).write_all(&get)?;
        read(&client, head.len())?;
        socket::by_io_uring(&client, &mut vec![0; BYTES], false)?;
        read(&client, 2)?;
        (&client).write_all(&after)?;
        read(&client, 5)?;
        served.join().map_err(|_| anyhow!("the server panicked"))?
    })?;
    let (spans, ended) = finish(agent)?;
    assert_eq!(spans.len(), 2, "{:?}\n{}", texts(&spans), ended.stderr);
    for (word, request, response) in [("by-io-uring", &get, head.len() + BYTES + 2), ("after-it", &after, 5)]
    {
        for half in [&only(&spans, word).client, &only(&spans, word).server] {
            let half = half.as_ref().ok_or_else(|| anyhow!("{word}: one half is missing"))?;
            let bytes = (half.request_bytes, half.response_bytes);
            assert_eq!(bytes, (request.len() as u64, response as u64), "{word}\n{}", ended.stderr);
        }
    }
    check_order(&spans);
    Ok(())
}

/// Sends `length` bytes by `splice` out of a pipe that is filled as it empties.
fn fill(
    to: &std::net::TcpStream,
    out: &std::io::PipeReader,
    mut into: &std::io::PipeWriter,
    length: usize,
) -> Result<()> {
    let chunk = vec![b'x'; 32 << 10];
    let mut left = length;
    while left > 0 {
        let count = left.min(chunk.len());
        into.write_all(&chunk[..count])?;
        socket::splice(out, to, count)?;
        left -= count;
    }
    Ok(())
}

/// Receives `length` bytes by `splice` into a pipe that is emptied as it fills.
fn drain(
    from: &std::net::TcpStream,
    out: &std::io::PipeReader,
    into: &std::io::PipeWriter,
    length: usize,
) -> Result<()> {
    let null = File::options().write(true).open("/dev/null")?;
    let mut left = length;
    while left > 0 {
        let count = left.min(32 << 10);
        socket::splice(from, into, count)?;
        socket::splice(out, &null, count)?;
        left -= count;
    }
    Ok(())
}
