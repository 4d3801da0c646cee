//! An HTTP service with a thread per request, as many are written: the thread reads the request, asks Redis and
//! another service one after the other over pooled connections, and answers.
//!
//! What a reader would get wrong: pooled connections go from thread to thread, so neither a connection nor the
//! order on it tells whose call it carries; the thread does. The answer's body says which calls it made, so that
//! the client knows the truth when all requests are the same.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::behaviour::Behaviour;
use crate::dial::Dial;
use crate::poll;
use crate::truth::Place;
use crate::wire::{Protocol, redis_command};

/// What the service asks to answer a request; nothing: it answers at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceConfig {
    /// Where it listens.
    pub listen: Option<SocketAddr>,
    /// Redis to ask for the key.
    pub redis: Option<SocketAddr>,
    /// HTTP service to ask for its price.
    pub http: Option<SocketAddr>,
    /// What else it does: a [`Behaviour`], turned while it runs.
    #[serde(default)]
    pub dial: Option<PathBuf>,
}

/// Body of an answer: the request as the service saw it, and the calls that it made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Where the request came.
    pub at: Place,
    /// What was asked because of it.
    pub calls: Vec<Place>,
}

/// A server that ends is expected back within this time, by then as another process.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// A client that says nothing for this long is given up.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// Requests at once: each has a thread. More than any load of ours has in flight.
const THREADS_MAX: usize = 1024;

struct Pooled {
    stream: TcpStream,
    at: Place,
}

impl Pooled {
    fn ask(&mut self, protocol: Protocol, request: &[u8]) -> Result<Vec<u8>> {
        self.stream.write_all(request)?;
        let mut input = Vec::new();
        let mut buffer = vec![0; 65536];
        while protocol.reply(&input)?.is_none() {
            let count = read(&mut self.stream, &mut buffer)?;
            ensure!(count > 0, "it closed before it answered");
            input.extend_from_slice(&buffer[..count]);
        }
        Ok(input)
    }
}

/// A read with a time-out ends early when the process was stopped and goes on (signal(7)).
fn read(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Connections to one server, used by whoever needs one.
struct Pool {
    server: SocketAddr,
    protocol: Protocol,
    idle: Mutex<Vec<Pooled>>,
}

impl Pool {
    fn new(server: SocketAddr, protocol: Protocol) -> Self {
        Self { server, protocol, idle: Mutex::new(Vec::new()) }
    }

    /// One request and its reply; where it was made, and what came.
    fn call(&self, request: &[u8]) -> Result<(Place, Vec<u8>)> {
        let taken = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let what = format!("{} is there", self.server);
        let connect = || poll::until(BACK_WITHIN, &what, || self.connect().ok());
        let mut pooled = if let Some(pooled) = taken { pooled } else { connect()? };
        let mut answered = pooled.ask(self.protocol, request);
        if answered.is_err() {
            // The server may have ended, to come back as another process: then the idle connections are as dead.
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
            pooled = connect()?;
            answered = pooled.ask(self.protocol, request);
        }
        let reply = answered.with_context(|| format!("ask {}", self.server))?;
        let at = pooled.at;
        pooled.at.index += 1;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(pooled);
        Ok((at, reply))
    }

    fn connect(&self) -> Result<Pooled> {
        let stream =
            TcpStream::connect(self.server).with_context(|| format!("connect to {}", self.server))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENT_MAX))?;
        let at = Place { client: stream.local_addr()?, server: self.server, index: 0 };
        Ok(Pooled { stream, at })
    }
}

struct Service {
    redis: Option<Pool>,
    http: Option<Pool>,
    behaviour: Dial<Behaviour>,
    /// Requests so far per pair of addresses: a port may come again.
    seen: Mutex<HashMap<(SocketAddr, SocketAddr), u64>>,
}

impl Service {
    /// Serves a connection to its end.
    fn serve(&self, mut stream: TcpStream) -> Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENT_MAX))?;
        let (client, server) = (stream.peer_addr()?, stream.local_addr()?);
        let mut input = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            while let Some(request) = Protocol::Http.request(&input)? {
                input.drain(..request.length);
                let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                let index = seen.entry((client, server)).or_default();
                let at = Place { client, server, index: *index };
                *index += 1;
                drop(seen);
                let key = String::from_utf8_lossy(&request.key).into_owned();
                let key = key.rsplit('/').next().unwrap_or_default();
                stream.write_all(&self.answer(at, key)?)?;
            }
            let count = read(&mut stream, &mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            input.extend_from_slice(&buffer[..count]);
        }
    }
}

impl Service {
    /// Does what a request for `key` takes; the answer.
    fn answer(&self, at: Place, key: &str) -> Result<Vec<u8>> {
        let behaviour = self.behaviour.get();
        behaviour.spend();
        let mut is_failed = behaviour.fails(at.index);
        let mut calls = Vec::new();
        if let Some(redis) = &self.redis {
            for number in 0..behaviour.calls {
                let other = format!("{key}:{number}");
                let key = if number == 0 { key } else { &other };
                calls.push(redis.call(&redis_command(&[b"GET", key.as_bytes()]))?.0);
            }
        }
        if let Some(http) = &self.http {
            let request = format!("GET /price/{key} HTTP/1.1\r\nHost: prices\r\n\r\n");
            let (place, reply) = http.call(request.as_bytes())?;
            calls.push(place);
            is_failed |= !reply.starts_with(b"HTTP/1.1 200");
        }
        let body = serde_json::to_string(&Answer { at, calls })?;
        let status = if is_failed { "500 Internal Server Error" } else { "200 OK" };
        let length = body.len();
        Ok(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes())
    }
}

/// Serves until the process is ended.
pub fn run(config: &ServiceConfig) -> Result<()> {
    let listener = TcpListener::bind(config.listen.context("where to listen")?).context("listen")?;
    let service = Arc::new(Service {
        redis: config.redis.map(|server| Pool::new(server, Protocol::Redis)),
        http: config.http.map(|server| Pool::new(server, Protocol::Http)),
        behaviour: match &config.dial {
            Some(path) => Dial::watch(path.clone(), Behaviour::default()),
            None => Dial::fixed(Behaviour::default()),
        },
        seen: Mutex::default(),
    });
    let threads = Arc::new(());
    for stream in listener.incoming() {
        let (stream, service, thread) =
            (stream.context("accept")?, Arc::clone(&service), Arc::clone(&threads));
        ensure!(Arc::strong_count(&threads) <= THREADS_MAX, "more than {THREADS_MAX} connections");
        thread::spawn(move || {
            // The client sees a closed connection, and says which request failed.
            let _ = service.serve(stream);
            drop(thread);
        });
    }
    Ok(())
}

/// Reads its configuration and serves: the whole of the program `test-service`.
pub fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).context("usage: test-service CONFIG.json")?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    run(&serde_json::from_str(&text).context("configuration")?)
}
