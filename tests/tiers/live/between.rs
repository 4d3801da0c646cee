//! What sits between calls and the wire: a socket in a sockmap.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};

use anyhow::{Context as _, Result, ensure};
use dprof_common::model::{Half, HalfFlags};

use crate::harness::exchange::read;
use crate::harness::resp::command;
use crate::harness::socket::{SockMap, pair};
use crate::harness::{Live, calls_are_seen_above_tcp, finish, texts, with_text};

/// One command and its reply.
fn call(client: &TcpStream, server: &TcpStream, key: &str) -> Result<()> {
    let request = command(&["GET", key]);
    (&mut &*client).write_all(&request)?;
    read(server, request.len())?;
    (&mut &*server).write_all(b"+OK\r\n")?;
    read(client, 5)?;
    Ok(())
}

/// In a sockmap a socket's receives go through other functions than TCP's: bytes may come that were never on the wire.
/// So that end says that it has no position, and its halves have ids of their own, or it has none; the other end is as
/// always.
#[test]
fn a_socket_in_a_sockmap_says_that_it_has_no_stream_position() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let agent = live.agent_on(listener.local_addr()?.port())?;
    let (client, server) = pair(&listener)?;
    call(&client, &server, "before")?;
    let map = SockMap::of(&client).context("put a socket into a sockmap")?;
    for key in ["within-1", "within-2"] {
        call(&client, &server, key)?;
    }
    let (spans, ended) = finish(agent)?;
    drop(map);
    let said = || format!("{:?}\n{}", texts(&spans), ended.stderr);
    let halves = |key: &str| -> Vec<Half> {
        with_text(&spans, key).flat_map(|span| [span.client.clone(), span.server.clone()]).flatten().collect()
    };
    let has_none = |half: &Half| half.flags.contains(HalfFlags::NO_STREAM_POSITION);
    ensure!(halves("before").len() == 2 && !halves("before").iter().any(has_none), "{}", said());
    // The server's half, which has a position, and the client's, which says that it has none: of calls that are seen
    // in TCP itself no buffer is read then, so there is nothing to make one of.
    let halves = halves("within-2");
    let without = usize::from(calls_are_seen_above_tcp());
    assert_eq!(halves.iter().map(has_none).filter(|none| *none).count(), without, "{halves:#?}\n{}", said());
    assert_eq!(halves.len(), 1 + without, "{}", said());
    Ok(())
}
