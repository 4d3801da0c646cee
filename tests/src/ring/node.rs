//! A node of the ring: one thread, one event loop, and all connections in it, as in Dynomite.
//!
//! What a reader would get wrong: nothing is sent where it is decided. Messages queue up while the events of one
//! wait are worked on, and then every connection with something to say makes one `writev`: that is where batches
//! come from, and why the thread says nothing about which request caused a call.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use serde::{Deserialize, Serialize};

use super::dnode::{self, Type};
use super::pipe::{Calls, Pipe};
use super::plan::{Node, Ring};
use crate::poll;
use crate::truth::{self, Hop, Place};

/// What a node is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeConfig {
    /// The ring.
    pub ring: Ring,
    /// Which of its nodes this is.
    pub me: usize,
    /// Where to write who caused whom, at the end.
    pub truth: PathBuf,
}

/// What a node counted, printed at its end as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Requests of clients.
    pub client_requests: u64,
    /// Requests of other nodes.
    pub peer_requests: u64,
    /// Calls on connections of clients.
    pub clients: Calls,
    /// Calls on connections to and from other nodes.
    pub peers: Calls,
    /// Calls on the connection to the datastore.
    pub datastore: Calls,
    /// Most requests outstanding on one connection to a peer.
    pub outstanding_max: u64,
    /// Answers that were ready and waited for earlier ones of their connection.
    pub held_back: u64,
    /// Requests that were answered before all of their copies were.
    pub answered_early: u64,
    /// Replies that came after the answer.
    pub late_replies: u64,
    /// Connections to and from other nodes, and to the datastore.
    pub peer_connections: u64,
}

/// Printed when every connection is there.
pub const READY: &str = "ready";

/// Printed, with the count of requests so far, when nothing is outstanding.
pub const IDLE: &str = "idle after ";

/// How long the other nodes may take to start: generous, the machine may be busy.
const START_WITHIN: Duration = Duration::from_secs(20);

/// How long the loop waits for events before it looks at signals, and may call itself idle.
const WAIT: Duration = Duration::from_millis(50);

/// Events of one wait: all connections of a test fit.
const EVENTS_MAX: usize = 1024;

/// Requests open in a node: far more than any test has; a test that leaks ends with an error.
const OPEN_MAX: usize = 100_000;

const CLIENT_LISTENER: Token = Token(0);
const PEER_LISTENER: Token = Token(1);
const FIRST_LINK: usize = 2;

/// What a connection is for.
enum Role {
    /// Requests come in, of clients or of peers; answers leave in their order.
    Serves { is_peer: bool, order: VecDeque<u64> },
    /// Requests go out, to the datastore (`peer` none) or to a peer; replies come in their order.
    Asks { peer: Option<usize>, awaiting: VecDeque<Awaited> },
}

/// A request sent, its reply to come.
struct Awaited {
    /// DNODE's id; 0 at the datastore.
    id: u64,
    request: u64,
}

struct Link {
    pipe: Pipe,
    role: Role,
    /// Requests that went over it so far.
    n_requests: u64,
}

/// A request in work.
struct Request {
    /// The connection it came on.
    from: usize,
    /// DNODE's id, to be repeated; 0 from clients.
    id: u64,
    same_dc: bool,
    /// Nodes whose reply counts for the answer.
    counted: Vec<usize>,
    /// How many of those are still needed.
    needed: usize,
    /// Replies to come, counted or not.
    outstanding: usize,
    answer: Option<Rc<[u8]>>,
    /// Whether the answer is on its way.
    answered: bool,
}

/// A node at work.
struct NodeLoop {
    config: NodeConfig,
    poll: Poll,
    links: HashMap<usize, Link>,
    next_link: usize,
    /// The datastore's link, then per node the link to it (none to itself).
    datastore: usize,
    peers: Vec<Option<usize>>,
    requests: HashMap<u64, Request>,
    next_request: u64,
    next_message_id: u64,
    /// Links with something to send.
    dirty: Vec<usize>,
    hops: Vec<Hop>,
    counters: Counters,
}

/// Runs a node until SIGTERM; what it counted.
#[expect(clippy::print_stdout, reason = "the test that started it reads its words")]
pub fn run(config: NodeConfig) -> Result<Counters> {
    let ended = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(libc::SIGTERM, Arc::clone(&ended)).context("handle SIGTERM")?;
    let own = config.ring.nodes[config.me].clone();
    // Both listen before anything connects: the nodes of a ring start at the same time.
    let clients = listen(own.client_address())?;
    let peers = listen(own.peer_address())?;
    let mut node = NodeLoop::new(config)?;
    node.register(&clients, CLIENT_LISTENER)?;
    node.register(&peers, PEER_LISTENER)?;
    node.connect_all()?;
    println!("{READY}");
    let mut events = Events::with_capacity(EVENTS_MAX);
    let mut said = 0;
    while !ended.load(Ordering::Relaxed) {
        match node.poll.poll(&mut events, Some(WAIT)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result.context("wait for events")?,
        }
        for event in &events {
            match event.token() {
                CLIENT_LISTENER => node.accept(&clients, false)?,
                PEER_LISTENER => node.accept(&peers, true)?,
                Token(link) => node.look(link)?,
            }
        }
        node.send_all()?;
        let handled = node.counters.client_requests + node.counters.peer_requests;
        if events.is_empty() && node.requests.is_empty() && said != handled {
            println!("{IDLE}{handled}");
            said = handled;
        }
    }
    truth::write(&node.config.truth, &node.hops)?;
    Ok(node.counters)
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let what = format!("{address} accepts connections");
    poll::until(START_WITHIN, &what, || TcpStream::connect(address).ok())
}

impl NodeLoop {
    fn new(config: NodeConfig) -> Result<Self> {
        Ok(Self {
            peers: vec![None; config.ring.nodes.len()],
            config,
            poll: Poll::new().context("create a poll")?,
            links: HashMap::new(),
            next_link: FIRST_LINK,
            datastore: 0,
            requests: HashMap::new(),
            next_request: 0,
            // As in Dynomite the counter is the process's: two nodes' ids have nothing to do with each other.
            next_message_id: u64::from(std::process::id()),
            dirty: Vec::new(),
            hops: Vec::new(),
            counters: Counters::default(),
        })
    }

    fn register(&self, listener: &TcpListener, token: Token) -> Result<()> {
        let fd = listener.as_raw_fd();
        self.poll
            .registry()
            .register(&mut SourceFd(&fd), token, Interest::READABLE)
            .context("watch a listener")
    }

    fn connect_all(&mut self) -> Result<()> {
        let to_store = Role::Asks { peer: None, awaiting: VecDeque::new() };
        self.datastore = self.add(connect(Node::datastore_address())?, to_store)?;
        for peer in 0..self.peers.len() {
            if peer != self.config.me {
                let role = Role::Asks { peer: Some(peer), awaiting: VecDeque::new() };
                let stream = connect(self.config.ring.nodes[peer].peer_address())?;
                self.peers[peer] = Some(self.add(stream, role)?);
                self.counters.peer_connections += 1;
            }
        }
        Ok(())
    }

    fn add(&mut self, stream: TcpStream, role: Role) -> Result<usize> {
        let link = Link { pipe: Pipe::new(stream)?, role, n_requests: 0 };
        let number = self.next_link;
        self.next_link += 1;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let fd = link.pipe.fd();
        self.poll
            .registry()
            .register(&mut SourceFd(&fd), Token(number), interest)
            .context("watch a connection")?;
        self.links.insert(number, link);
        Ok(number)
    }

    fn accept(&mut self, listener: &TcpListener, is_peer: bool) -> Result<()> {
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    self.add(stream, Role::Serves { is_peer, order: VecDeque::new() })?;
                    self.counters.peer_connections += u64::from(is_peer);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("accept"),
            }
        }
    }

    /// Something happened on a connection: reads what came, works on every whole message, and has it written.
    fn look(&mut self, number: usize) -> Result<()> {
        let Some(link) = self.links.get_mut(&number) else { return Ok(()) };
        let calls = calls_of(&mut self.counters, &link.role);
        link.pipe.read(calls)?;
        while let Some(length) = self.message(number)? {
            if let Some(link) = self.links.get_mut(&number) {
                link.pipe.take(length);
            }
        }
        self.dirty.push(number);
        let Some(link) = self.links.get(&number) else { return Ok(()) };
        if link.pipe.closed {
            // The nodes of a ring also end one after the other.
            let owes = matches!(&link.role, Role::Asks { awaiting, .. } if !awaiting.is_empty());
            ensure!(!owes, "{} closed before it answered", link.pipe.peer);
            self.links.remove(&number);
        }
        Ok(())
    }

    /// Works on the first message of a connection; the bytes that it took.
    fn message(&mut self, number: usize) -> Result<Option<usize>> {
        let Some(link) = self.links.get(&number) else { return Ok(None) };
        let protocol = self.config.ring.protocol;
        let input = link.pipe.input();
        match link.role {
            Role::Serves { is_peer: false, .. } => {
                let Some(request) = protocol.request(input)? else { return Ok(None) };
                let payload: Rc<[u8]> = input[..request.length].into();
                self.client_request(number, &payload, &request.key, request.is_read)?;
                Ok(Some(request.length))
            }
            Role::Asks { peer: None, .. } => {
                let Some(length) = protocol.reply(input)? else { return Ok(None) };
                let reply: Rc<[u8]> = input[..length].into();
                self.reply(number, None, &reply)?;
                Ok(Some(length))
            }
            Role::Serves { is_peer: true, .. } | Role::Asks { .. } => {
                let Some(header) = dnode::parse(input)? else { return Ok(None) };
                let length = header.length + header.payload;
                let Some(payload) = input.get(header.length..length) else { return Ok(None) };
                let payload: Rc<[u8]> = payload.into();
                if header.kind == Type::Reply {
                    self.reply(number, Some(header.id), &payload)?;
                } else {
                    self.peer_request(number, &header, &payload)?;
                }
                Ok(Some(length))
            }
        }
    }

    fn client_request(&mut self, from: usize, payload: &Rc<[u8]>, key: &[u8], is_read: bool) -> Result<()> {
        self.counters.client_requests += 1;
        let plan = self.config.ring.plan(self.config.me, key, is_read);
        ensure!(plan.own || !plan.copies.is_empty(), "nobody holds the key");
        let request = self.open(from, 0, true, plan.counted, plan.needed)?;
        let cause = self.place(from);
        if plan.own {
            self.ask(self.datastore, request, payload, Type::Request, cause)?;
        }
        for copy in plan.copies {
            let kind = if copy.forward { Type::RequestForward } else { Type::Request };
            let link = self.peers[copy.to].context("a copy for oneself")?;
            self.ask(link, request, payload, kind, cause)?;
        }
        Ok(())
    }

    fn peer_request(&mut self, from: usize, header: &dnode::Header, payload: &Rc<[u8]>) -> Result<()> {
        self.counters.peer_requests += 1;
        let me = self.config.me;
        let request = self.open(from, header.id, header.same_dc, vec![me], 1)?;
        let cause = self.place(from);
        self.ask(self.datastore, request, payload, Type::Request, cause)?;
        if header.kind == Type::RequestForward {
            let parsed = self.config.ring.protocol.request(payload)?.context("a payload is one request")?;
            for to in self.config.ring.forward(me, &parsed.key) {
                let link = self.peers[to].context("a copy for oneself")?;
                self.ask(link, request, payload, Type::Request, cause)?;
            }
        }
        Ok(())
    }

    /// Notes a request that came in, last of its connection.
    fn open(
        &mut self,
        from: usize,
        id: u64,
        same_dc: bool,
        counted: Vec<usize>,
        needed: usize,
    ) -> Result<u64> {
        ensure!(self.requests.len() < OPEN_MAX, "more than {OPEN_MAX} requests are open");
        let number = self.next_request;
        self.next_request += 1;
        let link = self.links.get_mut(&from).context("the connection that is read")?;
        link.n_requests += 1;
        let Role::Serves { order, .. } = &mut link.role else { bail!("a request where replies come") };
        order.push_back(number);
        self.requests.insert(
            number,
            Request { from, id, same_dc, counted, needed, outstanding: 0, answer: None, answered: false },
        );
        Ok(number)
    }

    /// Place of the last request that came on a connection.
    fn place(&self, link: usize) -> Option<Place> {
        let link = self.links.get(&link)?;
        Some(Place { client: link.pipe.peer, server: link.pipe.local, index: link.n_requests - 1 })
    }

    /// Sends a copy of a request on.
    fn ask(
        &mut self,
        to: usize,
        request: u64,
        payload: &Rc<[u8]>,
        kind: Type,
        cause: Option<Place>,
    ) -> Result<()> {
        let me_dc = &self.config.ring.nodes[self.config.me].dc;
        let link = self.links.get_mut(&to).context("the connection is gone")?;
        let at = Place { client: link.pipe.local, server: link.pipe.peer, index: link.n_requests };
        self.hops.extend(cause.map(|cause| Hop { at, cause }));
        link.n_requests += 1;
        let Role::Asks { peer, awaiting } = &mut link.role else { bail!("a call where requests come") };
        let mut id = 0;
        if let Some(peer) = *peer {
            id = self.next_message_id;
            self.next_message_id += 1;
            let same_dc = self.config.ring.nodes[peer].dc == *me_dc;
            let header = dnode::header(id, kind, same_dc, payload.len());
            link.pipe.push([header.into(), Rc::clone(payload)]);
        } else {
            link.pipe.push([Rc::clone(payload)]);
        }
        awaiting.push_back(Awaited { id, request });
        if peer.is_some() {
            self.counters.outstanding_max = self.counters.outstanding_max.max(awaiting.len() as u64);
        }
        self.dirty.push(to);
        if let Some(request) = self.requests.get_mut(&request) {
            request.outstanding += 1;
        }
        Ok(())
    }

    /// A reply came from the datastore or a peer: it may be, or complete, the answer.
    fn reply(&mut self, link: usize, id: Option<u64>, reply: &Rc<[u8]>) -> Result<()> {
        let link = self.links.get_mut(&link).context("the connection that is read")?;
        let Role::Asks { peer, awaiting } = &mut link.role else { bail!("a reply where requests come") };
        let awaited = awaiting.pop_front().context("a reply to nothing")?;
        ensure!(id.is_none_or(|id| id == awaited.id), "replies out of order");
        let from = peer.unwrap_or(self.config.me);
        let request = self.requests.get_mut(&awaited.request).context("a request in work")?;
        request.outstanding -= 1;
        let mut is_ready = false;
        if request.answer.is_some() {
            self.counters.late_replies += 1;
        } else if request.counted.contains(&from) {
            request.needed -= 1;
            if request.needed == 0 {
                request.answer = Some(Rc::clone(reply));
                is_ready = true;
                self.counters.answered_early += u64::from(request.outstanding > 0);
            }
        }
        let from = request.from;
        if request.outstanding == 0 && request.answered {
            self.requests.remove(&awaited.request);
        }
        self.answer(from, awaited.request, is_ready);
        Ok(())
    }

    /// Hands over every answer of a connection whose turn it is, after a reply for `just` that made its answer
    /// ready or did not.
    fn answer(&mut self, to: usize, just: u64, is_ready: bool) {
        let Some(link) = self.links.get_mut(&to) else {
            // Whoever asked is gone.
            if self.requests.get(&just).is_some_and(|request| request.outstanding == 0) {
                self.requests.remove(&just);
            }
            return;
        };
        let Role::Serves { is_peer, order } = &mut link.role else { return };
        let ready = |request: Option<&Request>| request.is_some_and(|request| request.answer.is_some());
        if is_ready && order.front() != Some(&just) {
            self.counters.held_back += 1;
        }
        while let Some(front) = order.front().copied()
            && ready(self.requests.get(&front))
        {
            order.pop_front();
            let Some(request) = self.requests.get_mut(&front) else { break };
            let Some(answer) = request.answer.clone() else { break };
            request.answered = true;
            if *is_peer {
                let header = dnode::header(request.id, Type::Reply, request.same_dc, answer.len());
                link.pipe.push([header.into(), answer]);
            } else {
                link.pipe.push([answer]);
            }
            if request.outstanding == 0 {
                self.requests.remove(&front);
            }
        }
        self.dirty.push(to);
    }

    /// One `writev` (or as many as it takes) for every connection with something to say.
    fn send_all(&mut self) -> Result<()> {
        for number in std::mem::take(&mut self.dirty) {
            if let Some(link) = self.links.get_mut(&number) {
                link.pipe.write(calls_of(&mut self.counters, &link.role))?;
            }
        }
        Ok(())
    }
}

fn calls_of<'a>(counters: &'a mut Counters, role: &Role) -> &'a mut Calls {
    match role {
        Role::Serves { is_peer: false, .. } => &mut counters.clients,
        Role::Serves { is_peer: true, .. } | Role::Asks { peer: Some(_), .. } => &mut counters.peers,
        Role::Asks { peer: None, .. } => &mut counters.datastore,
    }
}

/// Reads its configuration, runs, and prints what it counted: the whole of the program `test-ring-node`.
#[expect(clippy::print_stdout, reason = "the test that started it reads its words")]
pub fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).context("usage: test-ring-node CONFIG.json")?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let counters = run(serde_json::from_str(&text).context("configuration")?)?;
    println!("{}", serde_json::to_string(&counters)?);
    Ok(())
}
