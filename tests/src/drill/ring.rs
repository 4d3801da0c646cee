//! The ring as a drill's system: three racks, answers by quorum, a cable to each node.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Dice, Expected, Fault, Subject, stop_and_go};
use crate::cable::Shape;
use crate::netns::{Netns, Network};
use crate::ring::plan::{Consistency, Shape as RingShape};
use crate::steady::Steady;
use crate::topology::{ALL, Running, Stack, Topology};
use crate::wire::Protocol;

const NODES: u8 = 3;

pub(super) struct RingSystem {
    running: Running,
}

impl RingSystem {
    pub(super) fn start(folder: &Path, seed: u64) -> Result<Self> {
        let shape = RingShape { dcs: 1, racks: NODES, nodes: 1 };
        let topology = Topology {
            name: "drill",
            stack: Stack::Ring { shape, consistency: Consistency::DcQuorum },
            protocol: Protocol::Redis,
            ..ALL[0]
        };
        let cabled: Vec<usize> = (0..usize::from(NODES)).collect();
        Ok(Self { running: Running::start_cabled(&topology, folder, &cabled, seed)? })
    }

    fn shape(&self, node: usize, shape: &Shape) -> Result<()> {
        self.running.network().context("machines")?.shape(node, shape)
    }
}

impl Subject for RingSystem {
    fn network(&self) -> Option<&Network> {
        self.running.network()
    }

    fn hosts(&self) -> Vec<String> {
        (1..=NODES).map(|number| format!("node{number}")).chain(["client".to_owned()]).collect()
    }

    fn client(&self) -> Result<&Netns> {
        self.running.network().and_then(|network| network.machines().last()).context("the client's machine")
    }

    fn load(&self) -> Steady {
        Steady {
            targets: self.running.targets().to_vec(),
            protocol: Protocol::Redis,
            connections: 9,
            per_second: 12,
            seconds: 0,
            keys: 1000,
            commands: ["SET {key} value", "GET {key}"].map(str::to_owned).to_vec(),
            seed: 0,
            dial: std::path::PathBuf::new(),
        }
    }

    fn inject(&mut self, fault: Fault, dice: &mut Dice, lasting: Duration) -> Result<(String, Expected)> {
        let node = dice.below(u64::from(NODES)) as usize;
        let host = format!("node{}", node + 1);
        let hosts = vec![host.clone()];
        let expected = |kinds: &[&'static str], services: &[&'static str]| Expected {
            kinds: kinds.to_vec(),
            services: services.to_vec(),
            hosts: hosts.clone(),
        };
        let ms = Duration::from_millis;
        Ok(match fault {
            Fault::LinkDelay => {
                let delay_us = 5_000 + dice.below(15_000);
                self.shape(node, &Shape { delay_us, ..Shape::default() })?;
                (format!("{delay_us} us each way on {host}'s cable"), expected(&["network"], &[]))
            }
            Fault::Retransmissions => {
                let lost_per_mille = 80 + dice.below(60);
                self.shape(node, &Shape { lost_per_mille, ..Shape::default() })?;
                let done = format!("{lost_per_mille} of 1000 frames lost on {host}'s cable");
                (done, expected(&["retransmissions"], &[]))
            }
            Fault::SlowReplica => {
                let stopped = ms(20 + dice.below(20));
                stop_and_go(self.running.datastore(node), stopped, 2 * stopped, lasting);
                let done = format!("Redis on {host} stands still half of the time, {stopped:?} each");
                (done, expected(&["queue", "service"], &["redis-server"]))
            }
            Fault::Pause => {
                let stopped = ms(150 + dice.below(150));
                stop_and_go(self.running.node(node), stopped, ms(600), lasting);
                let done = format!("the node's process on {host} stops for {stopped:?} every 600 ms");
                (done, expected(&["queue", "service", "reply queue"], &["test-ring-node"]))
            }
            other => bail!("{} is not a fault of the ring", other.name()),
        })
    }
}
