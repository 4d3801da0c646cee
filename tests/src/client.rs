//! A load client: a fixed number of requests in flight, and for each what was asked, when, and what came back.
//!
//! What a reader would get wrong: it is closed-loop. The next request of a connection leaves when a reply has come,
//! so its rate is what the programs under test can do, and its own times are latencies, not response times under a
//! given rate.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::truth::{self, Asked, Place};
use crate::wire::{Protocol, redis_command};

/// A load, as data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// Whom to ask; connections take these in turn.
    pub targets: Vec<SocketAddr>,
    /// What they speak.
    pub protocol: Protocol,
    /// Connections.
    pub connections: usize,
    /// Requests in flight on each.
    pub depth: usize,
    /// Requests altogether.
    pub requests: u64,
    /// Taken in turn: words with `{key}` and `{value}`, the latter of as many bytes as `{value:BYTES}` says.
    pub commands: Vec<String>,
    /// How many different keys, taken in turn; 0: each request has one of its own.
    pub keys: u64,
    /// Where [`Asked`] records go.
    pub out: PathBuf,
}

/// Printed at the end.
pub const DONE: &str = "done";

/// A connection may say nothing for this long: longer, and the load fails instead of hanging.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// First bytes of a reply that are kept.
const REPLY_BYTES_MAX: usize = 300;

/// Bytes of one read.
const READ_BYTES_MAX: usize = 64 * 1024;

struct Connection {
    stream: TcpStream,
    local: SocketAddr,
    server: SocketAddr,
    input: Vec<u8>,
    output: Vec<u8>,
    /// Requests made so far.
    index: u64,
    /// Requests whose reply is to come, in order: which record.
    awaiting: VecDeque<usize>,
}

/// The key of a request.
pub fn key(load: &Load, request: u64) -> String {
    if load.keys == 0 { format!("key-{request:07}") } else { format!("same-{}", request % load.keys) }
}

/// The bytes of a request, and which command it is.
fn request(load: &Load, number: u64) -> Result<(Vec<u8>, String, usize)> {
    // Keys and commands are both taken in turn: the quotient lets every key meet every command.
    let turn = number.checked_div(load.keys).unwrap_or(number);
    let command = (turn % load.commands.len() as u64) as usize;
    let key = key(load, number);
    let mut words = Vec::new();
    for word in load.commands[command].split(' ') {
        let value = word.strip_prefix("{value:").and_then(|rest| rest.strip_suffix('}'));
        words.push(match value {
            Some(bytes) => "v".repeat(bytes.parse().context("size of a value")?),
            None => word.replace("{key}", &key),
        });
    }
    let bytes = match load.protocol {
        Protocol::Redis => {
            redis_command(&words.iter().map(std::string::String::as_bytes).collect::<Vec<_>>())
        }
        // `set KEY VALUE`: the value's size goes before it.
        Protocol::Memcached if words[0] == "set" && words.len() == 3 => {
            format!("set {} 0 0 {}\r\n{}\r\n", words[1], words[2].len(), words[2]).into_bytes()
        }
        Protocol::Memcached => format!("{}\r\n", words.join(" ")).into_bytes(),
        Protocol::Http => format!("{} HTTP/1.1\r\nHost: shop\r\n\r\n", words.join(" ")).into_bytes(),
    };
    Ok((bytes, key, command))
}

/// Puts the load on; what was asked, in the order of sending.
pub fn run(load: &Load) -> Result<Vec<Asked>> {
    let mut poll = Poll::new().context("create a poll")?;
    let mut connections = Vec::new();
    for number in 0..load.connections {
        let server = load.targets[number % load.targets.len()];
        let stream = TcpStream::connect(server).with_context(|| format!("connect to {server}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let fd = stream.as_raw_fd();
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut SourceFd(&fd), Token(number), interest)?;
        connections.push(Connection {
            local: stream.local_addr()?,
            stream,
            server,
            input: Vec::new(),
            output: Vec::new(),
            index: 0,
            awaiting: VecDeque::new(),
        });
    }
    let mut asked = Vec::with_capacity(load.requests as usize);
    let mut done = 0;
    for connection in &mut connections {
        connection.ask(load, &mut asked)?;
    }
    let mut events = Events::with_capacity(load.connections.max(1));
    while done < load.requests {
        match poll.poll(&mut events, Some(SILENT_MAX)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result.context("wait for replies")?,
        }
        ensure!(!events.is_empty(), "{done} of {} replies came, and then none", load.requests);
        for event in &events {
            let connection = &mut connections[event.token().0];
            done += connection.read(load, &mut asked)?;
            connection.ask(load, &mut asked)?;
        }
    }
    Ok(asked)
}

impl Connection {
    /// Sends as many requests as may be in flight, in one call.
    fn ask(&mut self, load: &Load, asked: &mut Vec<Asked>) -> Result<()> {
        let first = asked.len();
        while self.awaiting.len() < load.depth && (asked.len() as u64) < load.requests {
            let number = asked.len() as u64;
            let (bytes, key, command) = request(load, number)?;
            self.output.extend(bytes);
            self.awaiting.push_back(asked.len());
            let at = Place { client: self.local, server: self.server, index: self.index };
            self.index += 1;
            asked.push(Asked {
                request: number,
                at,
                key,
                command,
                sent_ns: 0,
                done_ns: 0,
                reply: String::new(),
            });
        }
        let now_ns = clock::monotonic_ns();
        for record in &mut asked[first..] {
            record.sent_ns = now_ns;
        }
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).with_context(|| format!("write to {}", self.server)),
            }
        }
        Ok(())
    }

    /// Reads what came; how many replies are whole.
    fn read(&mut self, load: &Load, asked: &mut [Asked]) -> Result<u64> {
        let mut buffer = vec![0; READ_BYTES_MAX];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    ensure!(self.awaiting.is_empty(), "{} closed before it answered", self.server);
                    break;
                }
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).with_context(|| format!("read from {}", self.server)),
            }
        }
        let now_ns = clock::monotonic_ns();
        let (mut taken, mut replies) = (0, 0);
        while let Some(length) = load.protocol.reply(&self.input[taken..])? {
            let record = self.awaiting.pop_front().context("a reply to nothing")?;
            let reply = &self.input[taken..taken + length];
            let is_error = match load.protocol {
                Protocol::Redis => reply.starts_with(b"-"),
                Protocol::Memcached => {
                    reply.windows(5).next() == Some(b"ERROR") || reply.starts_with(b"SERVER_")
                }
                Protocol::Http => !reply.starts_with(b"HTTP/1.1 200"),
            };
            let kept = &reply[reply.len().saturating_sub(REPLY_BYTES_MAX)..];
            let text = String::from_utf8_lossy(kept).into_owned();
            ensure!(!is_error, "request {}: {text}", asked[record].request);
            asked[record].done_ns = now_ns;
            asked[record].reply = text;
            taken += length;
            replies += 1;
        }
        self.input.drain(..taken);
        Ok(replies)
    }
}

/// Reads its load, puts it on, writes what it asked: the whole of the program `test-client`.
#[expect(clippy::print_stdout, reason = "the test that started it reads its words")]
pub fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).context("usage: test-client LOAD.json")?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let load: Load = serde_json::from_str(&text).context("load")?;
    let asked = run(&load)?;
    truth::write(&load.out, &asked)?;
    println!("{DONE}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(protocol: Protocol, command: &str, keys: u64) -> Load {
        Load {
            targets: Vec::new(),
            protocol,
            connections: 1,
            depth: 1,
            requests: 1,
            commands: vec![command.to_owned(), "GET {key}".to_owned()],
            keys,
            out: PathBuf::new(),
        }
    }

    #[track_caller]
    fn check(load: &Load, number: u64, expected: &str) {
        let (bytes, ..) = request(load, number).expect("valid");
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
    }

    #[test]
    fn commands_are_filled_in_and_written_as_their_protocol_wants() {
        let unique = load(Protocol::Redis, "SET {key} {value:3}", 0);
        check(&unique, 2, "*3\r\n$3\r\nSET\r\n$11\r\nkey-0000002\r\n$3\r\nvvv\r\n");
        check(&unique, 3, "*2\r\n$3\r\nGET\r\n$11\r\nkey-0000003\r\n");
        check(&load(Protocol::Memcached, "set {key} {value:2}", 1), 0, "set same-0 0 0 2\r\nvv\r\n");
        check(
            &load(Protocol::Http, "GET /item/{key}", 0),
            4,
            "GET /item/key-0000004 HTTP/1.1\r\nHost: shop\r\n\r\n",
        );
    }

    #[test]
    fn every_key_meets_every_command() {
        let same = load(Protocol::Redis, "SET {key} {value:1}", 2);
        let pairs: Vec<_> = (0..4)
            .map(|number| request(&same, number).map(|(_, key, command)| format!("{key}:{command}")))
            .collect::<Result<_>>()
            .expect("valid");
        assert_eq!(pairs, ["same-0:0", "same-1:0", "same-0:1", "same-1:1"]);
    }
}
