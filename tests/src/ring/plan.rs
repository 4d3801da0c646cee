//! A ring as data, and which of its nodes a request concerns.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::wire::Protocol;

/// When the client has its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// After the copy in the own rack; reads ask only that one.
    DcOne,
    /// After most copies of the own datacenter; reads ask all of those.
    DcQuorum,
}

/// Where nodes listen, and their datastore behind loopback: Dynomite's own defaults.
const CLIENT_PORT: u16 = 8102;
const PEER_PORT: u16 = 8101;
const DATASTORE_PORT: u16 = 22121;

/// A node: a proxy with a datastore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Datacenter.
    pub dc: String,
    /// Rack: holds every key once.
    pub rack: String,
    /// Keys whose hash is at least this, up to the next token of the rack, are this node's.
    pub token: u32,
    /// Address of its machine.
    pub ip: IpAddr,
}

impl Node {
    /// Where clients connect.
    pub fn client_address(&self) -> SocketAddr {
        (self.ip, CLIENT_PORT).into()
    }

    /// Options that have an agent label what it sees with the node's place.
    pub fn labels(&self) -> Vec<String> {
        [("dc", &self.dc), ("rack", &self.rack), ("node", &self.name)]
            .iter()
            .flat_map(|(name, value)| ["--label".to_owned(), format!("{name}={value}")])
            .collect()
    }

    /// Where other nodes connect.
    pub fn peer_address(&self) -> SocketAddr {
        (self.ip, PEER_PORT).into()
    }

    /// Its Redis or memcached, on the same machine.
    pub fn datastore_address() -> SocketAddr {
        ([127, 0, 0, 1], DATASTORE_PORT).into()
    }
}

/// How many of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Datacenters.
    pub dcs: u8,
    /// Racks of each.
    pub racks: u8,
    /// Nodes of each, which share the rack's keys.
    pub nodes: u8,
}

/// A ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ring {
    /// All nodes.
    pub nodes: Vec<Node>,
    /// When clients have their answer.
    pub consistency: Consistency,
    /// What clients and datastores speak.
    pub protocol: Protocol,
}

/// A copy of a request for another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The node, an index.
    pub to: usize,
    /// Whether that node forwards it to the other racks of its datacenter.
    pub forward: bool,
}

/// What a node does with a request of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Whether its own datastore is asked.
    pub own: bool,
    /// Who else is asked.
    pub copies: Vec<Copy>,
    /// Nodes whose replies count for the answer; one of them may be this node.
    pub counted: Vec<usize>,
    /// How many of those make the answer.
    pub needed: usize,
}

impl Ring {
    /// A ring of this shape, on `10.77.1.1` and up; node, rack and datacenter are numbered from 1.
    pub fn new(shape: Shape, consistency: Consistency, protocol: Protocol) -> Self {
        let mut nodes = Vec::new();
        for dc in 1..=shape.dcs {
            for rack in 1..=shape.racks {
                for share in 0..shape.nodes {
                    let number = nodes.len() as u8 + 1;
                    nodes.push(Node {
                        name: format!("node{number}"),
                        dc: format!("dc{dc}"),
                        rack: format!("rack{rack}"),
                        token: u32::MAX / u32::from(shape.nodes) * u32::from(share),
                        ip: [10, 77, 1, number].into(),
                    });
                }
            }
        }
        Self { nodes, consistency, protocol }
    }

    /// What node `me` does with a request of a client.
    pub fn plan(&self, me: usize, key: &[u8], is_read: bool) -> Plan {
        let own = &self.nodes[me];
        let mut plan = Plan::default();
        let near_racks = self.racks(&own.dc);
        let one_rack_is_enough = is_read && self.consistency == Consistency::DcOne;
        for rack in &near_racks {
            if one_rack_is_enough && **rack != own.rack {
                continue;
            }
            let Some(owner) = self.owner(&own.dc, rack, key) else { continue };
            if owner == me {
                plan.own = true;
            } else {
                plan.copies.push(Copy { to: owner, forward: false });
            }
            if self.consistency == Consistency::DcQuorum || **rack == own.rack {
                plan.counted.push(owner);
            }
        }
        plan.needed = match self.consistency {
            Consistency::DcOne => 1,
            Consistency::DcQuorum => near_racks.len() / 2 + 1,
        };
        if !is_read {
            for dc in self.dcs().into_iter().filter(|dc| **dc != own.dc) {
                // One node per distant datacenter takes it there for all of its racks.
                let owner = self.racks(dc).first().and_then(|rack| self.owner(dc, rack, key));
                plan.copies.extend(owner.map(|to| Copy { to, forward: true }));
            }
        }
        plan
    }

    /// Who else of its datacenter gets a request that came to `me` to be forwarded.
    pub fn forward(&self, me: usize, key: &[u8]) -> Vec<usize> {
        let own = &self.nodes[me];
        let racks = self.racks(&own.dc);
        racks
            .into_iter()
            .filter(|rack| **rack != own.rack)
            .filter_map(|rack| self.owner(&own.dc, rack, key))
            .collect()
    }

    /// Every node that serves a request which a client gives to `me`, `me` included, each once.
    pub fn serving(&self, me: usize, key: &[u8], is_read: bool) -> Vec<usize> {
        let plan = self.plan(me, key, is_read);
        let mut nodes = vec![me];
        for copy in plan.copies {
            nodes.push(copy.to);
            if copy.forward {
                nodes.extend(self.forward(copy.to, key));
            }
        }
        nodes
    }

    /// RPCs of one request that a client gives to `me`, the client's own included.
    pub fn rpcs(&self, me: usize, key: &[u8], is_read: bool) -> usize {
        let serving = self.serving(me, key, is_read).len();
        // Each is reached by one RPC and asks its datastore by another, but for a node that only forwards.
        2 * serving - usize::from(!self.plan(me, key, is_read).own)
    }

    fn dcs(&self) -> Vec<&String> {
        distinct(self.nodes.iter().map(|node| &node.dc))
    }

    fn racks(&self, dc: &str) -> Vec<&String> {
        distinct(self.nodes.iter().filter(|node| node.dc == dc).map(|node| &node.rack))
    }

    /// The node of a rack that holds a key: the largest token that is not above the key's, else the largest.
    fn owner(&self, dc: &str, rack: &str, key: &[u8]) -> Option<usize> {
        let token = fnv1a(key);
        let of_rack =
            || self.nodes.iter().enumerate().filter(move |(_, node)| node.dc == dc && node.rack == rack);
        let below = of_rack().filter(|(_, node)| node.token <= token).max_by_key(|(_, node)| node.token);
        below.or_else(|| of_rack().max_by_key(|(_, node)| node.token)).map(|(idx, _)| idx)
    }
}

fn distinct<'a>(names: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
    let mut names: Vec<_> = names.collect();
    names.sort();
    names.dedup();
    names
}

/// FNV-1a (Fowler, Noll, Vo), 32 bits: spreads keys over the tokens of a rack.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(dcs: u8, racks: u8, consistency: Consistency) -> Ring {
        Ring::new(Shape { dcs, racks, nodes: 1 }, consistency, Protocol::Redis)
    }

    /// RPCs of a SET and of a GET.
    #[track_caller]
    fn check_rpcs(ring: &Ring, set: usize, get: usize) {
        assert_eq!((ring.rpcs(0, b"k", false), ring.rpcs(0, b"k", true)), (set, get));
    }

    #[test]
    fn a_request_makes_the_hops_that_real_rings_make() {
        check_rpcs(&ring(1, 3, Consistency::DcOne), 6, 2);
        check_rpcs(&ring(1, 3, Consistency::DcQuorum), 6, 6);
        check_rpcs(&ring(1, 2, Consistency::DcOne), 4, 2);
        check_rpcs(&ring(2, 2, Consistency::DcOne), 8, 2);
        check_rpcs(&ring(2, 2, Consistency::DcQuorum), 8, 4);
    }

    #[test]
    fn nodes_that_share_a_rack_share_its_keys() {
        let shape = Shape { dcs: 1, racks: 1, nodes: 2 };
        let shared = Ring::new(shape, Consistency::DcOne, Protocol::Redis);
        let keys: Vec<String> = (0..100).map(|number| format!("key-{number}")).collect();
        let owned = keys.iter().filter(|key| shared.plan(0, key.as_bytes(), true).own).count();
        assert!((20..80).contains(&owned), "{owned} of 100 keys");
        for key in &keys {
            let plan = shared.plan(0, key.as_bytes(), false);
            assert_eq!(plan.own, plan.copies.is_empty());
            assert_eq!((plan.needed, plan.counted.len()), (1, 1));
            assert_eq!(shared.rpcs(0, key.as_bytes(), false), if plan.own { 2 } else { 3 });
        }
    }

    #[test]
    fn the_answer_waits_for_the_own_rack_or_for_most_copies() {
        let one = ring(1, 3, Consistency::DcOne).plan(1, b"k", false);
        assert_eq!((one.counted, one.needed), (vec![1], 1));
        let quorum = ring(1, 3, Consistency::DcQuorum).plan(1, b"k", false);
        assert_eq!((quorum.counted, quorum.needed), (vec![0, 1, 2], 2));
        let far = ring(2, 2, Consistency::DcQuorum).plan(0, b"k", false);
        assert_eq!((far.counted, far.needed), (vec![0, 1], 2));
        assert_eq!(far.copies, [Copy { to: 1, forward: false }, Copy { to: 2, forward: true }]);
    }
}
