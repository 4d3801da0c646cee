//! Delay on one link between datacenters: a ring of three datacenters of two racks replicates writes after their
//! answers; the frames between two of the datacenters, drawn by seed, are held back. Which link do the traces blame?
//!
//! What a reader would get wrong: no request of a client is slow, since answers wait for the own rack only. The delay
//! is seen in copies that nobody waits for.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::agent::Agent;
use crate::bottleneck::Bottleneck;
use crate::cable::Shape;
use crate::cli;
use crate::drill::Dice;
use crate::ring::plan::{Consistency, Node, Ring, Shape as RingShape};
use crate::topology::{ALL, Running, Stack, Topology};
use crate::wire::Protocol;

const SHAPE: RingShape = RingShape { dcs: 3, racks: 2, nodes: 1 };

/// Writes of a run: each link between datacenters has a third of the copies.
const WRITES: u64 = 300;
/// One connection to each node, so that every link between datacenters carries copies; few at once, so that calls wait
/// for links and not for processors.
const IN_FLIGHT: usize = 6;

/// The ring's nodes are programs of this name, their datastores of that.
const DATASTORE: &str = "redis-server";
const CLIENT: &str = "test-client";

/// What holds frames back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DelayBy {
    /// A [cable](crate::cable) that is a program, as netem does it.
    Cable,
    /// The kernel's own queue before a slow link that a neighbour keeps full: a [`Bottleneck`].
    Queue,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The two datacenters whose link was delayed.
    pub delayed: [String; 2],
    /// By how much, each way.
    pub delay_us: u64,
    /// The links that `dprof-cli replication` says are delayed.
    pub blamed: Vec<[String; 2]>,
    /// What it prints: lag per replica, network time per link.
    pub table: String,
    /// One trace: the client's answer and each replica's write in the order of time.
    pub figure: Vec<Moment>,
}

/// Something that happened in a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Time of day, `07:22:14.984652`.
    pub time: String,
    /// Datacenter, rack and node.
    pub place: String,
    /// What.
    pub what: &'static str,
    /// The message.
    pub operation: String,
}

impl Moment {
    /// Seconds of the day; `None`: it has no time.
    pub fn seconds(&self) -> Option<f64> {
        let mut seconds = 0.0;
        for part in self.time.split(':') {
            seconds = seconds * 60.0 + part.parse::<f64>().ok()?;
        }
        Some(seconds)
    }

    /// A line of a table.
    pub fn line(&self) -> String {
        format!("{}  {:<16}  {:<25}  {}", self.time, self.place, self.what, self.operation)
    }
}

impl Outcome {
    /// Whether the delayed link is blamed, and no other.
    pub fn is_right(&self) -> bool {
        self.blamed == std::slice::from_ref(&self.delayed)
    }
}

/// Runs it once in a folder of its own.
pub fn run(seed: u64, delay_by: DelayBy, folder: &Path) -> Result<Outcome> {
    let mut dice = Dice(seed);
    let topology = Topology {
        name: "replication",
        stack: Stack::Ring { shape: SHAPE, consistency: Consistency::DcOne },
        protocol: Protocol::Redis,
        ..ALL[0]
    };
    let ring = topology.ring().context("a ring")?;
    let cabled: Vec<usize> = match delay_by {
        DelayBy::Cable => (0..ring.nodes.len()).collect(),
        DelayBy::Queue => Vec::new(),
    };
    let mut running = Running::start_cabled(&topology, folder, &cabled, seed)?;
    let store = format!("sqlite:{}", folder.join("store").display());
    // Before the agents start, which takes longer than cables take to look: no call goes without the delay.
    let link = draw_a_link(&ring, &mut dice);
    let bottlenecks = match delay_by {
        DelayBy::Cable => delay_by_cable(&running, &ring, &link).map(|()| Vec::new()),
        DelayBy::Queue => delay_by_queue(&running, &ring, &link, folder),
    }?;
    let agents = agents(&running, &ring, folder, &store)?;
    let mut load = running.load(IN_FLIGHT, WRITES, false);
    load.commands.retain(|command| command.starts_with("SET"));
    // Clients of every datacenter, so that every link between them carries copies.
    load.targets = ring.nodes.iter().map(Node::client_address).collect::<Vec<SocketAddr>>();
    running.put_on(&load)?;
    for agent in agents {
        agent.stop()?;
    }
    drop((bottlenecks, running));
    let said = cli::text(&store, &["replication", "--since", "all", "--format", "json"])?;
    let said: Value = serde_json::from_str(&said).with_context(|| format!("replication: {said}"))?;
    let widest = said["widest_trace_id"].as_str().context("a write that went to several replicas")?;
    Ok(Outcome {
        delayed: link.ends,
        delay_us: link.delay_us,
        blamed: blamed(&said),
        table: cli::text(&store, &["replication", "--since", "all"])?,
        figure: figure(&cli::json(&store, &["trace", widest, "--messages"])?),
    })
}

/// An agent on each node's machine with its place as labels, and one with the client.
fn agents(running: &Running, ring: &Ring, folder: &Path, store: &str) -> Result<Vec<Agent>> {
    let machines = running.network().context("machines")?.machines();
    let mut agents = Vec::new();
    for (idx, machine) in machines.iter().enumerate() {
        let Some(node) = ring.nodes.get(idx) else {
            agents.push(Agent::on_machine(folder, store, machine, "client", &[])?);
            continue;
        };
        agents.push(Agent::on_machine(folder, store, machine, &node.name, &node.labels())?);
    }
    Ok(agents)
}

/// A link between datacenters that is to be delayed.
struct Link {
    ends: [String; 2],
    delay_us: u64,
}

fn draw_a_link(ring: &Ring, dice: &mut Dice) -> Link {
    let mut names: Vec<&String> = ring.nodes.iter().map(|node| &node.dc).collect();
    names.dedup();
    // Leaving one out of three draws a link.
    names.remove(dice.below(names.len() as u64) as usize);
    let ends = [names[0].clone(), names[1].clone()];
    Link { ends, delay_us: 5_000 + dice.below(15_000) }
}

/// Numbers and addresses of a datacenter's nodes.
fn nodes_of(ring: &Ring, dc: &str) -> Vec<(usize, IpAddr)> {
    let nodes = ring.nodes.iter().enumerate().filter(|(_, node)| node.dc == dc);
    nodes.map(|(idx, node)| (idx, node.ip)).collect()
}

/// Has the cables of one end hold back frames from and to the other.
fn delay_by_cable(running: &Running, ring: &Ring, link: &Link) -> Result<()> {
    let [near, far] = link.ends.each_ref().map(|dc| nodes_of(ring, dc));
    let peers = far.iter().map(|(_, ip)| *ip).collect();
    let shape = Shape { delay_us: link.delay_us, peers, ..Shape::default() };
    let network = running.network().context("machines")?;
    near.iter().try_for_each(|(idx, _)| network.shape(*idx, &shape))
}

/// Has what leaves either end for the other wait in a queue.
fn delay_by_queue(running: &Running, ring: &Ring, link: &Link, folder: &Path) -> Result<Vec<Bottleneck>> {
    let network = running.network().context("machines")?;
    let [near, far] = link.ends.each_ref().map(|dc| nodes_of(ring, dc));
    let mut bottlenecks = Vec::new();
    for (from, to) in [(&near, &far), (&far, &near)] {
        let peers: Vec<IpAddr> = to.iter().map(|(_, ip)| *ip).collect();
        for (idx, _) in from {
            let (name, machine) = (format!("neighbour{idx}"), network.machine(*idx));
            bottlenecks.push(Bottleneck::new(folder, &name, machine, &peers, link.delay_us)?);
        }
    }
    Ok(bottlenecks)
}

fn blamed(said: &Value) -> Vec<[String; 2]> {
    let links = said["links"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |link: &Value, end: usize| link["dcs"][end].as_str().unwrap_or_default().to_owned();
    let delayed = links.iter().filter(|link| link["is_delayed"] == true);
    delayed.map(|link| [name(link, 0), name(link, 1)]).collect()
}

/// The client's request and answer, and each replica's write.
fn figure(rows: &[Value]) -> Vec<Moment> {
    let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    let mut moments = Vec::new();
    for row in rows {
        let (service, message) = (text(row, "service"), text(row, "message"));
        let what = match (service.as_str(), message.as_str()) {
            (CLIENT, "request") => "the client asks",
            (CLIENT, "response") => "the client has its answer",
            (DATASTORE, "request") => "the replica writes",
            _ => continue,
        };
        let place = [text(row, "datacenter"), text(row, "rack"), text(row, "node")];
        let place: Vec<String> = place.into_iter().filter(|part| !part.is_empty()).collect();
        let timestamp = text(row, "timestamp");
        moments.push(Moment {
            time: timestamp.get(11..26).unwrap_or_default().to_owned(),
            place: place.join("/"),
            what,
            operation: text(row, "operation"),
        });
    }
    moments
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_answer_and_the_writes_are_shown_with_their_places() {
        let row = |service: &str, message: &str, dc: Option<&str>| {
            json!({
                "service": service, "message": message, "datacenter": dc, "rack": dc.map(|_| "rack1"),
                "node": "node1", "timestamp": "2026-11-29T06:00:00.123456789Z", "operation": "bytes",
            })
        };
        let rows = [
            row("test-client", "response", None),
            row("test-ring-node", "request", Some("dc1")),
            row("redis-server", "request", Some("dc1")),
            row("redis-server", "response", Some("dc1")),
        ];
        let moments = figure(&rows);
        assert_eq!(
            moments.iter().map(Moment::line).collect::<Vec<_>>(),
            [
                "06:00:00.123456  node1             the client has its answer  bytes",
                "06:00:00.123456  dc1/rack1/node1   the replica writes         bytes",
            ]
        );
        assert_eq!(moments[0].seconds(), Some(21_600.123_456));
        assert_eq!(Moment { time: String::new(), ..moments[0].clone() }.seconds(), None);
    }

    #[test]
    fn one_link_must_be_blamed_and_no_other() {
        let said = |delayed: [bool; 2]| {
            json!({ "links": [
                { "dcs": ["dc1", "dc2"], "is_delayed": delayed[0] },
                { "dcs": ["dc1", "dc3"], "is_delayed": delayed[1] },
            ]})
        };
        for (delayed, expected) in
            [([true, false], true), ([false, true], false), ([true, true], false), ([false, false], false)]
        {
            let outcome = Outcome {
                delayed: ["dc1", "dc2"].map(str::to_owned),
                delay_us: 5_000,
                blamed: blamed(&said(delayed)),
                table: String::new(),
                figure: Vec::new(),
            };
            assert_eq!(outcome.is_right(), expected, "{delayed:?}");
        }
    }
}
