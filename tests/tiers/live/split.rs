//! Where the time went, checked against programs that know: each delays at one place on purpose.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
use dprof_common::model::Span;

use crate::harness::exchange::{ClientTimes, ServerTimes, ask, check_split, read, timed};
use crate::harness::socket::{pair, peek, recv_all, set_option};
use crate::harness::{Live, check_order, finish, only, resp};

/// A stall that the agent has to see; the checks use clock readings, not this number.
const STALL: Duration = Duration::from_millis(100);

const OK: &[u8] = b"+OK\r\n";

/// Runs client and server on one connection under an agent; gives what both measured and the spans.
fn scene<C: Send, S: Send>(
    client: impl FnOnce(&TcpStream) -> Result<C> + Send,
    server: impl FnOnce(&TcpStream) -> Result<S> + Send,
) -> Result<Option<(C, S, Vec<Span>)>> {
    let Some(live) = Live::begin()? else { return Ok(None) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let agent = live.agent_on(listener.local_addr()?.port())?;
    // Room for everything at once, both ways: whoever stalls must not stop the other.
    set_option(&listener, libc::SO_RCVBUFFORCE, 4 << 20)?;
    let (near, far) = pair(&listener)?;
    set_option(&near, libc::SO_SNDBUFFORCE, 4 << 20)?;
    let (asked, served) = thread::scope(|scope| {
        let served = scope.spawn(|| server(&far));
        let asked = client(&near);
        served.join().map_err(|_| anyhow!("the server panicked")).and_then(|served| Ok((asked?, served?)))
    })?;
    drop((near, far));
    let (spans, _) = finish(agent)?;
    check_order(&spans);
    Ok(Some((asked, served, spans)))
}

/// Reads a request of `length` bytes and answers it; `before` delays between.
fn serve(mut stream: &TcpStream, length: usize, response: &[u8]) -> Result<ServerTimes> {
    let read_last = read(stream, length)?;
    let ((), wrote) = timed(|| stream.write_all(response))?;
    Ok(ServerTimes { read_last, wrote_first: wrote, wrote_last: wrote })
}

#[test]
fn a_server_that_stalls_before_reading_has_a_queue_not_a_network() -> Result<()> {
    let request = resp::command(&["GET", "stalled"]);
    let Some((client, server, spans)) = scene(
        |stream| ask(stream, &request, OK.len()),
        |stream| {
            thread::sleep(STALL);
            serve(stream, request.len(), OK)
        },
    )?
    else {
        return Ok(());
    };
    check_split(only(&spans, "stalled"), &client, &server);
    Ok(())
}

#[test]
fn a_slow_service_is_service() -> Result<()> {
    let request = resp::command(&["GET", "thinking"]);
    let Some((client, server, spans)) = scene(
        |stream| ask(stream, &request, OK.len()),
        |mut stream| {
            let read_last = read(stream, request.len())?;
            thread::sleep(STALL);
            let ((), wrote) = timed(|| stream.write_all(OK))?;
            Ok(ServerTimes { read_last, wrote_first: wrote, wrote_last: wrote })
        },
    )?
    else {
        return Ok(());
    };
    check_split(only(&spans, "thinking"), &client, &server);
    Ok(())
}

#[test]
fn a_write_before_the_read_does_not_move_the_arrival() -> Result<()> {
    let (first, second) = (resp::command(&["GET", "earlier"]), resp::command(&["GET", "later"]));
    let Some((client, server, spans)) = scene(
        |mut stream| {
            let ((), wrote_earlier) = timed(|| stream.write_all(&first))?;
            // A call of its own, so that the server reads the first without the second.
            thread::sleep(STALL / 10);
            let ((), wrote_later) = timed(|| stream.write_all(&second))?;
            let read_earlier = read(stream, OK.len())?;
            let read_later = read(stream, OK.len())?;
            let times = |wrote, read_last| ClientTimes { wrote_first: wrote, wrote_last: wrote, read_last };
            Ok([times(wrote_earlier, read_earlier), times(wrote_later, read_later)])
        },
        |mut stream| {
            let read_earlier = read(stream, first.len())?;
            thread::sleep(STALL / 2);
            let ((), wrote_earlier) = timed(|| stream.write_all(OK))?;
            thread::sleep(STALL / 2);
            let later = serve(stream, second.len(), OK)?;
            let earlier = ServerTimes {
                read_last: read_earlier,
                wrote_first: wrote_earlier,
                wrote_last: wrote_earlier,
            };
            Ok([earlier, later])
        },
    )?
    else {
        return Ok(());
    };
    check_split(only(&spans, "earlier"), &client[0], &server[0]);
    check_split(only(&spans, "later"), &client[1], &server[1]);
    Ok(())
}

#[test]
fn a_peek_before_the_read_does_not_move_the_arrival() -> Result<()> {
    let request = resp::command(&["GET", "peeked"]);
    let Some((client, server, spans)) = scene(
        |stream| ask(stream, &request, OK.len()),
        |stream| {
            thread::sleep(STALL / 2);
            peek(stream)?;
            thread::sleep(STALL / 2);
            serve(stream, request.len(), OK)
        },
    )?
    else {
        return Ok(());
    };
    check_split(only(&spans, "peeked"), &client, &server);
    Ok(())
}

#[test]
fn five_messages_read_at_once_have_five_arrivals() -> Result<()> {
    let keys = ["one", "two", "three", "four", "five"];
    let requests = keys.map(|key| resp::command(&["GET", key]));
    let length: usize = requests.iter().map(Vec::len).sum();
    let Some((client, server, spans)) = scene(
        |mut stream| {
            let mut wrote = Vec::new();
            for request in &requests {
                wrote.push(timed(|| stream.write_all(request))?.1);
                thread::sleep(STALL / 10);
            }
            let read_last = read(stream, OK.len() * keys.len())?;
            Ok(wrote.into_iter().map(move |wrote| ClientTimes {
                wrote_first: wrote,
                wrote_last: wrote,
                read_last,
            }))
        },
        |mut stream| {
            thread::sleep(STALL);
            let (_, read_last) = timed(|| recv_all(stream, length))?;
            let ((), wrote) = timed(|| stream.write_all(&OK.repeat(keys.len())))?;
            Ok(ServerTimes { read_last, wrote_first: wrote, wrote_last: wrote })
        },
    )?
    else {
        return Ok(());
    };
    for (key, client) in keys.into_iter().zip(client) {
        check_split(only(&spans, key), &client, &server);
    }
    Ok(())
}

#[test]
fn a_large_request_read_in_one_call_has_the_arrival_of_its_last_byte() -> Result<()> {
    let request = resp::command(&["SET", "large", &"x".repeat(400_000)]);
    let Some((client, server, spans)) = scene(
        |stream| ask(stream, &request, OK.len()),
        |mut stream| {
            thread::sleep(STALL);
            let (_, read_last) = timed(|| recv_all(stream, request.len()))?;
            let ((), wrote) = timed(|| stream.write_all(OK))?;
            Ok(ServerTimes { read_last, wrote_first: wrote, wrote_last: wrote })
        },
    )?
    else {
        return Ok(());
    };
    let span = only(&spans, "large");
    check_split(span, &client, &server);
    assert_eq!(span.server.as_ref().map(|half| half.request_bytes), Some(request.len() as u64));
    Ok(())
}

#[test]
fn a_large_reply_streams() -> Result<()> {
    let request = resp::command(&["GET", "megabyte"]);
    let value = "y".repeat(1 << 20);
    let response = format!("${}\r\n{value}\r\n", value.len()).into_bytes();
    let Some((client, mut server, spans)) = scene(
        |stream| ask(stream, &request, response.len()),
        |stream| serve(stream, request.len(), &response),
    )?
    else {
        return Ok(());
    };
    // The socket takes bytes before it may send them: the last departs by the time the client has it.
    server.wrote_last = server.wrote_last.until(client.read_last);
    let span = only(&spans, "megabyte");
    check_split(span, &client, &server);
    assert_eq!(span.client.as_ref().map(|half| half.response_bytes), Some(response.len() as u64));
    Ok(())
}

#[test]
fn a_paced_reply_does_not_depart_in_the_future() -> Result<()> {
    let request = resp::command(&["GET", "paced"]);
    let value = "z".repeat(100_000);
    let response = format!("${}\r\n{value}\r\n", value.len()).into_bytes();
    let Some((client, mut server, spans)) = scene(
        |stream| ask(stream, &request, response.len()),
        |stream| {
            // About 100 ms for the whole reply.
            set_option(stream, libc::SO_MAX_PACING_RATE, 1_000_000u32)?;
            serve(stream, request.len(), &response)
        },
    )?
    else {
        return Ok(());
    };
    server.wrote_last = server.wrote_last.until(client.read_last);
    check_split(only(&spans, "paced"), &client, &server);
    Ok(())
}
