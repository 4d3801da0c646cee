//! Systems to trace, as data: programs, load, and what is known of who caused whom.
//!
//! What a reader would get wrong: *unique* and *identical* are two loads on the same programs, not two settings of
//! dprof. With unique keys every hop repeats the key, which is the truth. With identical commands in flight the
//! bytes tell nothing, and truth comes from [`crate::truth`] instead.

use std::collections::HashMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::agent::binary;
use crate::client::{DONE, Load};
use crate::netns::Network;
use crate::program::{Ended, Program};
use crate::ring::node::{Counters, IDLE, NodeConfig, READY};
use crate::ring::plan::{Consistency, Node, Ring, Shape};
use crate::service::ServiceConfig;
use crate::subject::{self, Behind, Relay, Subject, find, free_port};
use crate::truth::{self, Asked, Hop, Place};
use crate::wire::Protocol;

/// What stands between the client and the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stack {
    /// nutcracker and three servers.
    Nutcracker,
    /// HAProxy as a TCP relay, nutcracker, three servers.
    HaproxyNutcracker(Relay),
    /// nginx, a service with a thread per request, Redis and another service.
    NginxService,
    /// The ring, each node in a network namespace of its own.
    Ring {
        /// How many of what.
        shape: Shape,
        /// When clients have their answer.
        consistency: Consistency,
    },
}

/// A system and its loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Name on the command line and in tables.
    pub name: &'static str,
    /// Programs.
    pub stack: Stack,
    /// What the client speaks.
    pub protocol: Protocol,
    /// Commands with a key of their own for each request.
    pub unique: &'static [&'static str],
    /// Commands of which many equal ones are in flight.
    pub identical: &'static [&'static str],
}

/// Every system.
pub const ALL: [Topology; 10] = [
    Topology {
        name: "nutcracker-redis",
        stack: Stack::Nutcracker,
        protocol: Protocol::Redis,
        unique: &["SET {key} {value:100}", "GET {key}"],
        identical: &["INCR {key}"],
    },
    Topology {
        name: "haproxy-nutcracker-redis",
        stack: Stack::HaproxyNutcracker(Relay::Copy),
        protocol: Protocol::Redis,
        unique: &["SET {key} {value:100}", "GET {key}"],
        identical: &["INCR {key}"],
    },
    Topology {
        name: "haproxy-splice-nutcracker-redis",
        stack: Stack::HaproxyNutcracker(Relay::Splice),
        protocol: Protocol::Redis,
        unique: &["SET {key} {value:100}", "GET {key}"],
        identical: &["INCR {key}"],
    },
    Topology {
        name: "nutcracker-memcached",
        stack: Stack::Nutcracker,
        protocol: Protocol::Memcached,
        unique: &["set {key} {value:100}", "get {key}"],
        identical: &["incr {key} 1"],
    },
    Topology {
        name: "haproxy-nutcracker-memcached",
        stack: Stack::HaproxyNutcracker(Relay::Copy),
        protocol: Protocol::Memcached,
        unique: &["set {key} {value:100}", "get {key}"],
        identical: &["incr {key} 1"],
    },
    Topology {
        name: "nginx-service",
        stack: Stack::NginxService,
        protocol: Protocol::Http,
        unique: &["GET /item/{key}"],
        identical: &["GET /item/{key}"],
    },
    Topology {
        name: "ring-3-racks",
        stack: Stack::Ring { shape: Shape { dcs: 1, racks: 3, nodes: 1 }, consistency: Consistency::DcOne },
        protocol: Protocol::Redis,
        unique: &["SET {key} {value:100}", "GET {key}"],
        identical: &["SET {key} {value:100}", "GET {key}"],
    },
    Topology {
        name: "ring-2-dcs",
        stack: Stack::Ring {
            shape: Shape { dcs: 2, racks: 2, nodes: 1 },
            consistency: Consistency::DcQuorum,
        },
        protocol: Protocol::Redis,
        unique: &["SET {key} {value:100}", "GET {key}"],
        identical: &["SET {key} {value:100}", "GET {key}"],
    },
    Topology {
        name: "ring-shared-racks",
        stack: Stack::Ring { shape: Shape { dcs: 1, racks: 2, nodes: 2 }, consistency: Consistency::DcOne },
        protocol: Protocol::Redis,
        unique: &["SET {key} {value:100}", "GET {key}"],
        identical: &["SET {key} {value:100}", "GET {key}"],
    },
    Topology {
        name: "ring-memcached",
        stack: Stack::Ring {
            shape: Shape { dcs: 1, racks: 3, nodes: 1 },
            consistency: Consistency::DcQuorum,
        },
        protocol: Protocol::Memcached,
        unique: &["set {key} {value:100}", "get {key}"],
        identical: &["set {key} {value:100}", "get {key}"],
    },
];

/// Different keys of the load of identical commands: the three servers all have work, and a third of what is in
/// flight is equal.
pub const IDENTICAL_KEYS: u64 = 3;

/// How long a load may take on a busy machine.
const LOAD_WITHIN: Duration = Duration::from_mins(2);

/// How long a program may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How long copies of requests that are answered may take to be made.
const IDLE_WITHIN: Duration = Duration::from_secs(30);

/// Servers behind nutcracker.
const SERVERS: usize = 3;

impl Topology {
    /// The one with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|topology| topology.name == name)
    }

    /// The ring, if this is one.
    pub fn ring(&self) -> Option<Ring> {
        match self.stack {
            Stack::Ring { shape, consistency } => Some(Ring::new(shape, consistency, self.protocol)),
            _ => None,
        }
    }

    /// Nodes of the ring that clients use: those of the first datacenter.
    pub fn entries(ring: &Ring) -> impl Iterator<Item = &Node> {
        ring.nodes.iter().filter(|node| node.dc == ring.nodes[0].dc)
    }

    /// RPCs that a request makes, the client's own included.
    pub fn rpcs(&self, asked: &Asked, is_read: bool) -> usize {
        match (self.stack, self.ring()) {
            (Stack::Nutcracker, _) => 2,
            (Stack::HaproxyNutcracker(_), _) => 3,
            (Stack::NginxService, _) => 4,
            (Stack::Ring { .. }, ring) => ring.map_or(0, |ring| {
                let me = ring.nodes.iter().position(|node| node.client_address() == asked.at.server);
                ring.rpcs(me.unwrap_or(0), asked.key.as_bytes(), is_read)
            }),
        }
    }

    /// Whether a command of this load only reads.
    pub fn is_read(commands: &[&str], command: usize) -> bool {
        commands.get(command).is_some_and(|command| command.to_ascii_lowercase().starts_with("get "))
    }
}

/// How many connections and how many requests in flight on each make `in_flight`: clients pipeline a little.
pub fn shape(protocol: Protocol, in_flight: usize) -> (usize, usize) {
    // HTTP/1.1 clients do not pipeline.
    let depth = match (protocol, in_flight) {
        (Protocol::Http, _) | (_, 0..10) => 1,
        (_, 10..100) => 2,
        (_, 100..300) => 4,
        (_, 300..) => 5,
    };
    (in_flight / depth, depth)
}

/// A system at work.
#[derive(Debug)]
pub struct Running {
    /// What it is.
    pub topology: Topology,
    /// Options of an agent that sees all of it.
    pub watch: Vec<String>,
    targets: Vec<SocketAddr>,
    folder: PathBuf,
    haproxy: Option<Subject>,
    /// Ended in this order: who asks before who is asked.
    nodes: Vec<Program>,
    /// Of a ring: its nodes' datastores, in the same order.
    programs: Vec<Program>,
    network: Option<Network>,
}

impl Running {
    /// Starts it in a folder of its own.
    pub fn start(topology: &Topology, folder: &Path) -> Result<Self> {
        Self::start_cabled(topology, folder, &[], 0)
    }

    /// The same with [cables](crate::cable) to these nodes of a ring.
    pub fn start_cabled(topology: &Topology, folder: &Path, cabled: &[usize], seed: u64) -> Result<Self> {
        let mut running = Self {
            topology: *topology,
            watch: Vec::new(),
            targets: Vec::new(),
            folder: folder.to_owned(),
            haproxy: None,
            nodes: Vec::new(),
            programs: Vec::new(),
            network: None,
        };
        match topology.stack {
            Stack::Nutcracker | Stack::HaproxyNutcracker(_) => running.start_proxies()?,
            Stack::NginxService => running.start_service()?,
            Stack::Ring { .. } => running.start_ring(&topology.ring().context("a ring")?, cabled, seed)?,
        }
        Ok(running)
    }

    fn start_proxies(&mut self) -> Result<()> {
        let folder = self.folder.clone();
        let (behind, start): (_, fn(&Path) -> Result<Subject>) = match self.topology.protocol {
            Protocol::Memcached => (Behind::Memcached, subject::memcached),
            _ => (Behind::Redis, subject::redis),
        };
        let servers = (0..SERVERS).map(|_| start(&folder)).collect::<Result<Vec<_>>>()?;
        let proxy = subject::nutcracker_before(&folder, &servers.iter().collect::<Vec<_>>(), behind)?;
        let mut ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
        ports.push(proxy.port);
        let mut entry = proxy.address();
        if let Stack::HaproxyNutcracker(relay) = self.topology.stack {
            let haproxy = subject::haproxy(&folder, &proxy, relay)?;
            ports.push(haproxy.port);
            entry = haproxy.address();
            self.haproxy = Some(haproxy);
        }
        self.programs.push(proxy.program);
        self.programs.extend(servers.into_iter().map(|server| server.program));
        self.watch_ports(&ports);
        self.targets = vec![entry];
        if self.topology.protocol == Protocol::Memcached {
            // `incr` counts only what is there.
            for number in 0..IDENTICAL_KEYS {
                memcached_zero(entry, &format!("same-{number}"))?;
            }
        }
        Ok(())
    }

    fn start_service(&mut self) -> Result<()> {
        let folder = self.folder.clone();
        let redis = subject::redis(&folder)?;
        let (prices, prices_port) = service(&folder, "prices", ServiceConfig::default())?;
        let config = ServiceConfig {
            redis: Some(redis.address()),
            http: Some(([127, 0, 0, 1], prices_port).into()),
            ..ServiceConfig::default()
        };
        let (shop, shop_port) = service(&folder, "shop", config)?;
        let nginx = subject::nginx_before(&folder, ([127, 0, 0, 1], shop_port).into())?;
        self.watch_ports(&[redis.port, prices_port, shop_port, nginx.port]);
        self.targets = vec![nginx.address()];
        self.programs.extend([nginx.program, shop, prices, redis.program]);
        Ok(())
    }

    fn watch_ports(&mut self, ports: &[u16]) {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        self.watch = vec!["--port".to_owned(), ports.join(",")];
    }

    fn start_ring(&mut self, ring: &Ring, cabled: &[usize], seed: u64) -> Result<()> {
        let client: IpAddr = [10, 77, 0, 1].into();
        let addresses: Vec<IpAddr> = ring.nodes.iter().map(|node| node.ip).chain([client]).collect();
        let network = self.network.insert(Network::with_cables(&self.folder, &addresses, cabled, seed)?);
        self.watch = network
            .machines()
            .iter()
            .flat_map(|machine| ["--netns".to_owned(), machine.path().display().to_string()])
            .collect();
        let port = Node::datastore_address().port();
        for me in 0..ring.nodes.len() {
            let folder = node_folder(&self.folder, ring, me);
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
            let machine = network.machine(me);
            let datastore = match ring.protocol {
                Protocol::Memcached => {
                    subject::memcached_with(&folder, &mut machine.command(find("memcached")), port)?
                }
                _ => subject::redis_with(&folder, &mut machine.command(find("redis-server")), port)?,
            };
            self.programs.push(datastore.program);
            let config = NodeConfig { ring: ring.clone(), me, truth: folder.join("truth") };
            let mut command = machine.command(binary("test-ring-node"));
            self.nodes.push(Program::start_configured("node", &folder, &mut command, &config)?);
        }
        for node in &mut self.nodes {
            node.wait_until(READY_WITHIN, "is ready", |node| node.stdout().contains(READY).then_some(()))?;
        }
        self.targets = Topology::entries(ring).map(Node::client_address).collect();
        Ok(())
    }

    /// The machines of a ring.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// A load on it: `in_flight` requests at once, `requests` altogether, with a key of its own for each or with
    /// many equal.
    pub fn load(&self, in_flight: usize, requests: u64, is_identical: bool) -> Load {
        let (connections, depth) = shape(self.topology.protocol, in_flight);
        let commands = if is_identical { self.topology.identical } else { self.topology.unique };
        Load {
            targets: self.targets.clone(),
            protocol: self.topology.protocol,
            connections,
            depth,
            requests,
            commands: commands.iter().map(|&command| command.to_owned()).collect(),
            keys: if is_identical { IDENTICAL_KEYS } else { 0 },
            out: self.folder.join("asked"),
        }
    }

    /// Puts a load on, and waits until all that it caused is done.
    pub fn put_on(&mut self, load: &Load) -> Result<Vec<Asked>> {
        let asked = self.ask(load)?;
        self.wait_until_idle(load, &asked)?;
        Ok(asked)
    }

    /// Puts a load on, and waits until the client has all of its answers.
    fn ask(&self, load: &Load) -> Result<Vec<Asked>> {
        let client = binary("test-client");
        let mut command = match &self.network {
            Some(network) => network.machines().last().context("the client's machine")?.command(client),
            None => Command::new(client),
        };
        let client = Program::start_configured("client", &self.folder, &mut command, load)?;
        let ended = client.wait(LOAD_WITHIN)?.success()?;
        ensure!(ended.stdout.contains(DONE), "the client did not come to its end: {}", ended.stderr);
        truth::read(&load.out)
    }

    /// The same with the datastores of these nodes held until the client has its answer, and then let go one by
    /// one, each when the node before has nothing more to wait for.
    pub fn put_on_with_slow_replicas(&mut self, load: &Load, slow: &[usize]) -> Result<Vec<Asked>> {
        for &node in slow {
            self.programs[node].signal(libc::SIGSTOP);
        }
        let asked = self.ask(load);
        for &node in slow {
            // Also when the load failed: who is stopped does not end either.
            self.programs[node].signal(libc::SIGCONT);
            if asked.is_ok() {
                self.nodes[node].wait_until(IDLE_WITHIN, "served its copy", |node| {
                    node.stdout().contains(IDLE).then_some(())
                })?;
            }
        }
        asked
    }

    /// Where its clients connect.
    pub fn targets(&self) -> &[SocketAddr] {
        &self.targets
    }

    /// The program of a ring's node.
    pub fn node(&self, node: usize) -> &Program {
        &self.nodes[node]
    }

    /// Its datastore.
    pub fn datastore(&self, node: usize) -> &Program {
        &self.programs[node]
    }

    /// Ids of its programs, a ring's nodes apart.
    pub fn program_pids(&self) -> Vec<u32> {
        self.programs.iter().map(Program::pid).collect()
    }

    /// Ids of the ring's nodes.
    pub fn node_pids(&self) -> Vec<u32> {
        self.nodes.iter().map(Program::pid).collect()
    }

    /// Copies of requests go on after their clients were answered: waits until every node served all of its own.
    fn wait_until_idle(&mut self, load: &Load, asked: &[Asked]) -> Result<()> {
        let Some(ring) = self.topology.ring() else { return Ok(()) };
        let mut expected = vec![0; ring.nodes.len()];
        let commands: Vec<&str> = load.commands.iter().map(String::as_str).collect();
        for asked in asked {
            let me = ring.nodes.iter().position(|node| node.client_address() == asked.at.server);
            let is_read = Topology::is_read(&commands, asked.command);
            for node in ring.serving(me.context("a node was asked")?, asked.key.as_bytes(), is_read) {
                expected[node] += 1;
            }
        }
        for (node, expected) in self.nodes.iter_mut().zip(expected) {
            let word = format!("{IDLE}{expected}\n");
            node.wait_until(IDLE_WITHIN, "served its copies", |node| {
                (expected == 0 || node.stdout().contains(&word)).then_some(())
            })?;
        }
        Ok(())
    }

    /// Ends it; what is known of who caused whom besides what the client `asked`, and what the ring's nodes counted.
    pub fn stop(self, asked: &[Asked]) -> Result<(Vec<Hop>, Vec<Counters>)> {
        let (mut hops, mut counters) = (Vec::new(), Vec::new());
        let ring = self.topology.ring();
        for (me, node) in self.nodes.into_iter().enumerate() {
            let ended = node.stop(libc::SIGTERM)?.success()?;
            let ring = ring.as_ref().context("nodes are of a ring")?;
            hops.extend(truth::read::<Hop>(&node_folder(&self.folder, ring, me).join("truth"))?);
            let last = ended.stdout.lines().last().context("a node says what it counted")?;
            counters.push(serde_json::from_str(last)?);
        }
        if let Some(haproxy) = self.haproxy {
            let ended = haproxy.program.stop(libc::SIGTERM)?;
            hops.extend(relayed(&ended, asked));
        }
        for program in self.programs {
            // They have no word on the truth, and how they end is not what is tested.
            drop(program);
        }
        Ok((hops, counters))
    }
}

fn node_folder(folder: &Path, ring: &Ring, me: usize) -> PathBuf {
    folder.join(&ring.nodes[me].name)
}

/// A service of ours on a free port.
pub fn service(folder: &Path, name: &str, config: ServiceConfig) -> Result<(Program, u16)> {
    let port = free_port()?;
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let config = ServiceConfig { listen: Some(address), ..config };
    let mut command = Command::new(binary("test-service"));
    let mut program = Program::start_configured(name, folder, &mut command, &config)?;
    program.wait_until(READY_WITHIN, "accepts connections", |_| TcpStream::connect(address).ok())?;
    Ok((program, port))
}

/// Every request that HAProxy relayed: what it says of connections, and how many requests the client made on each.
fn relayed(ended: &Ended, asked: &[Asked]) -> Vec<Hop> {
    let mut requests: HashMap<SocketAddr, u64> = HashMap::new();
    for asked in asked {
        *requests.entry(asked.at.client).or_default() += 1;
    }
    let mut hops = Vec::new();
    for line in ended.stdout.lines() {
        let addresses: Vec<SocketAddr> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        // Other lines are about its start and end; a connection that never reached the server has none of its own.
        let [client, own, out, server] = addresses[..] else { continue };
        hops.extend((0..requests.get(&client).copied().unwrap_or(0)).map(|index| Hop {
            at: Place { client: out, server, index },
            cause: Place { client, server: own, index },
        }));
    }
    hops
}

/// Sets a counter to 0.
fn memcached_zero(server: SocketAddr, key: &str) -> Result<()> {
    let mut stream = TcpStream::connect(server).with_context(|| format!("connect to {server}"))?;
    stream.set_read_timeout(Some(READY_WITHIN))?;
    stream.write_all(format!("set {key} 0 0 1\r\n0\r\n").as_bytes())?;
    let mut reply = [0; 8];
    stream.read_exact(&mut reply).context("read memcached's reply")?;
    ensure!(&reply == b"STORED\r\n", "memcached said {:?}", String::from_utf8_lossy(&reply));
    Ok(())
}
