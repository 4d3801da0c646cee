//! A proxy with one event loop between many clients and a few servers, simulated, as its kernel would report it:
//! records out, with the true cause of every call beside them.
//!
//! What a reader would get wrong: the truth is in *message numbers*. The engine numbers messages in the order of
//! capture, and the simulator knows that order, so identical commands have a truth too, and nothing in the bytes
//! gives it away.

use std::collections::{HashMap, VecDeque};

use crate::traffic::{CLIENT, Connection, Machine, Process, SERVER, command};

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    /// Clients, each with one request in flight (or as many as `pipeline` says).
    pub(crate) n_clients: usize,
    /// Requests a client sends at once.
    pub(crate) pipeline: usize,
    /// Requests in all.
    pub(crate) n_requests: usize,
    /// Every request has a key of its own; else all are the same.
    pub(crate) unique: bool,
    /// Every reply is different; else all are the same.
    pub(crate) replies_differ: bool,
    /// Servers that each request is sent to, of [`SERVERS`]: more than one is a quorum of one.
    pub(crate) copies: usize,
    /// The proxy turns the order of what it writes to a server around, now and then.
    pub(crate) reorders: bool,
    /// Seed.
    pub(crate) seed: u64,
}

/// What nothing special is asked of.
pub(crate) const PLAIN: Scenario = Scenario {
    n_clients: 10,
    pipeline: 1,
    n_requests: 1000,
    unique: true,
    replies_differ: true,
    copies: 1,
    reorders: false,
    seed: 1,
};

/// Servers behind the proxy.
pub(crate) const SERVERS: usize = 3;
/// The proxy's process.
pub(crate) const PROXY_PID: u32 = 20;
/// Messages in one write, as twemproxy gathers them.
const WRITE_MAX: usize = 128;

/// What came of it.
pub(crate) struct Simulated {
    /// Records in the order of capture.
    pub(crate) records: Vec<Vec<u8>>,
    /// Per call of the proxy, the number of its cause's message.
    pub(crate) cause_of: HashMap<u64, u64>,
    /// What "first come first served" says instead.
    pub(crate) first_come: HashMap<u64, u64>,
    /// What "the latest open request" says instead.
    pub(crate) latest: HashMap<u64, u64>,
}

struct Random(u64);

impl Random {
    /// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016).
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn shuffled(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for idx in (1..n).rev() {
            order.swap(idx, self.below(idx + 1));
        }
        order
    }
}

/// A request inside the proxy.
struct Asked {
    client: usize,
    message: u64,
    bytes: Vec<u8>,
    /// Number of the request over all: its key, if keys are unique.
    n: usize,
    forwarded: bool,
    answered: bool,
}

struct Upstream {
    connection: Connection,
    /// Requests to send, by index into `asked`.
    queue: VecDeque<usize>,
    /// Sent, not answered.
    at_server: VecDeque<usize>,
    /// Answered, not read.
    replies: VecDeque<(usize, Vec<u8>)>,
}

struct Downstream {
    connection: Connection,
    /// Sent by the client, not read by the proxy.
    unread: VecDeque<(usize, Vec<u8>)>,
    /// In the order of asking, with the reply once it is there.
    waiting: VecDeque<(usize, Option<Vec<u8>>)>,
}

struct Loop {
    scenario: Scenario,
    random: Random,
    machine: Machine,
    n_messages: u64,
    n_sent: usize,
    asked: Vec<Asked>,
    clients: Vec<Downstream>,
    servers: Vec<Upstream>,
    out: Simulated,
}

/// Runs a scenario.
pub(crate) fn simulate(scenario: Scenario) -> Simulated {
    let mut machine = Machine::new();
    let client = machine.process(10, "client");
    let proxy = machine.process(PROXY_PID, "proxy");
    let servers: Vec<Process> = (0..SERVERS as u32).map(|idx| machine.process(30 + idx, "redis")).collect();
    machine.listen(22_121);
    let clients = (0..scenario.n_clients)
        .map(|_| Downstream {
            connection: machine.connect(client, proxy, 22_121),
            unread: VecDeque::new(),
            waiting: VecDeque::new(),
        })
        .collect();
    let servers = servers
        .into_iter()
        .zip(6379..)
        .map(|(server, port)| {
            machine.listen(port);
            Upstream {
                connection: machine.connect(proxy, server, port),
                queue: VecDeque::new(),
                at_server: VecDeque::new(),
                replies: VecDeque::new(),
            }
        })
        .collect();
    let mut this = Loop {
        scenario,
        random: Random(scenario.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        machine,
        n_messages: 0,
        n_sent: 0,
        asked: Vec::new(),
        clients,
        servers,
        out: Simulated {
            records: Vec::new(),
            cause_of: HashMap::new(),
            first_come: HashMap::new(),
            latest: HashMap::new(),
        },
    };
    while this.turn() {}
    this.machine.wait(200_000_000);
    this.out.records = std::mem::take(&mut this.machine.records);
    this.out
}

impl Loop {
    /// One turn of everything; false when all is done.
    fn turn(&mut self) -> bool {
        for client in self.random.shuffled(self.clients.len()) {
            self.ask(client);
        }
        // What one poll of the proxy returns: some of the ready connections, in any order.
        for client in self.random.shuffled(self.clients.len()) {
            if !self.random.one_in(4) {
                self.read_request(client);
            }
        }
        for server in self.random.shuffled(SERVERS) {
            self.write_requests(server);
        }
        for server in self.random.shuffled(SERVERS) {
            self.serve(server);
        }
        for server in self.random.shuffled(SERVERS) {
            if !self.random.one_in(3) {
                self.read_replies(server);
            }
        }
        for client in 0..self.clients.len() {
            self.write_replies(client);
        }
        self.n_sent < self.scenario.n_requests
            || self.clients.iter().any(|client| !client.waiting.is_empty() || !client.unread.is_empty())
            || self.servers.iter().any(|server| !server.at_server.is_empty() || !server.replies.is_empty())
    }

    fn step(&mut self) {
        let ns = 500 + self.random.below(1500) as u64;
        self.machine.wait(ns);
    }

    fn ask(&mut self, client: usize) {
        let idle = self.clients[client].waiting.is_empty() && self.clients[client].unread.is_empty();
        if !idle || self.n_sent >= self.scenario.n_requests {
            return;
        }
        let mut all = Vec::new();
        let mut each = Vec::new();
        for _ in 0..self.scenario.pipeline {
            let n = self.n_sent;
            self.n_sent += 1;
            let key = if self.scenario.unique { format!("key:{n:012}") } else { "counter".to_owned() };
            let bytes = command(&["INCR", &key]);
            all.extend_from_slice(&bytes);
            each.push((n, bytes));
        }
        self.n_messages += each.len() as u64;
        self.clients[client].unread.extend(each);
        self.machine.send(&mut self.clients[client].connection, CLIENT, &all, 0);
        self.step();
    }

    fn read_request(&mut self, client: usize) {
        let unread = std::mem::take(&mut self.clients[client].unread);
        if unread.is_empty() {
            return;
        }
        let all: Vec<u8> = unread.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        self.machine.recv(&self.clients[client].connection, SERVER, &all, 0);
        self.step();
        for (n, bytes) in unread {
            self.n_messages += 1;
            let asked =
                Asked { client, message: self.n_messages, bytes, n, forwarded: false, answered: false };
            let idx = self.asked.len();
            self.asked.push(asked);
            self.clients[client].waiting.push_back((idx, None));
            // A key lives on one server; its copies on the next ones. Equal keys spread: else two servers idle.
            let home = (n.wrapping_mul(2_654_435_761) >> 7) % SERVERS;
            let home = if self.scenario.unique { home } else { 0 };
            for copy in 0..self.scenario.copies {
                self.servers[(home + copy) % SERVERS].queue.push_back(idx);
            }
        }
    }

    fn write_requests(&mut self, server: usize) {
        let n = self.servers[server].queue.len().min(WRITE_MAX);
        if n == 0 {
            return;
        }
        let mut batch: Vec<usize> = self.servers[server].queue.drain(..n).collect();
        if self.scenario.reorders && self.random.one_in(10) {
            batch.reverse();
        }
        let bytes: Vec<u8> = batch.iter().flat_map(|idx| self.asked[*idx].bytes.iter().copied()).collect();
        for idx in &batch {
            self.n_messages += 1;
            let call = self.n_messages;
            self.out.cause_of.insert(call, self.asked[*idx].message);
            let open = || self.asked.iter().rev().take(4096).filter(|asked| !asked.answered);
            if let Some(latest) = open().next() {
                self.out.latest.insert(call, latest.message);
            }
            let first = self.asked.iter().rev().take(4096).rfind(|asked| !asked.forwarded);
            if let Some(message) = first.map(|asked| asked.message) {
                self.out.first_come.insert(call, message);
                if let Some(asked) = self.asked.iter_mut().rev().find(|asked| asked.message == message) {
                    asked.forwarded = true;
                }
            }
        }
        self.machine.send(&mut self.servers[server].connection, CLIENT, &bytes, 0);
        self.step();
        self.machine.recv(&self.servers[server].connection, SERVER, &bytes, 0);
        self.n_messages += n as u64;
        self.step();
        self.servers[server].at_server.extend(batch);
    }

    fn serve(&mut self, server: usize) {
        let open = self.servers[server].at_server.len();
        if open == 0 {
            return;
        }
        // Some stay for the next turn.
        let n = 1 + self.random.below(open);
        let batch: Vec<usize> = self.servers[server].at_server.drain(..n).collect();
        let mut all = Vec::new();
        for idx in batch {
            let value = if self.scenario.replies_differ { self.asked[idx].n } else { 1 };
            let reply = format!(":{value}\r\n").into_bytes();
            all.extend_from_slice(&reply);
            self.servers[server].replies.push_back((idx, reply));
        }
        self.machine.send(&mut self.servers[server].connection, SERVER, &all, 0);
        self.n_messages += n as u64;
        self.step();
    }

    fn read_replies(&mut self, server: usize) {
        let replies = std::mem::take(&mut self.servers[server].replies);
        if replies.is_empty() {
            return;
        }
        let all: Vec<u8> = replies.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
        self.machine.recv(&self.servers[server].connection, CLIENT, &all, 0);
        self.n_messages += replies.len() as u64;
        self.step();
        for (idx, reply) in replies {
            let client = self.asked[idx].client;
            // The first copy answers; the reply to a later one finds nobody and is swallowed.
            if let Some(waiting) =
                self.clients[client].waiting.iter_mut().find(|(waiting, _)| *waiting == idx)
                && waiting.1.is_none()
            {
                waiting.1 = Some(reply);
            }
        }
    }

    fn write_replies(&mut self, client: usize) {
        let mut all = Vec::new();
        let mut n = 0;
        while let Some((idx, Some(_))) = self.clients[client].waiting.front() {
            let idx = *idx;
            self.asked[idx].answered = true;
            if let Some((_, Some(reply))) = self.clients[client].waiting.pop_front() {
                all.extend_from_slice(&reply);
                n += 1;
            }
        }
        if n == 0 {
            return;
        }
        self.machine.send(&mut self.clients[client].connection, SERVER, &all, 0);
        self.n_messages += n;
        self.step();
        self.machine.recv(&self.clients[client].connection, CLIENT, &all, 0);
        self.n_messages += n;
        self.step();
    }
}
