//! Network namespaces joined by a bridge: machines of their own, as far as TCP can tell.
//!
//! What a reader would get wrong: they have no name in `/run/netns`. Each is held by a process, so the kernel takes
//! it away, and the bridge and the cables with it, when that process ends, however that comes about.

use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::agent::binary;
use crate::cable::{CableConfig, READY, Shape};
use crate::dial::turn;
use crate::program::Program;
use crate::subject::find;

/// How long a namespace may take to be there.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// Bits of the network part: all of a test's machines are on one.
const PREFIX: u8 = 16;

/// A machine.
#[derive(Debug)]
pub struct Netns {
    holder: Program,
}

impl Netns {
    /// A new one in which only loopback is up.
    fn add(name: &str, folder: &Path) -> Result<Self> {
        let mut command = Command::new(find("unshare"));
        let mut holder = Program::start(name, folder, command.args(["--net", "sleep", "infinity"]))?;
        // The namespace is new once the program that holds it runs.
        let comm = PathBuf::from(format!("/proc/{}/comm", holder.pid()));
        holder.wait_until(READY_WITHIN, "has a network namespace", |_| {
            fs::read_to_string(&comm).is_ok_and(|comm| comm.trim_end() == "sleep").then_some(())
        })?;
        let netns = Self { holder };
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// The namespace's file, for `--netns`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.pid()))
    }

    /// A command that runs `program` inside.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(find("nsenter"));
        let mut net = std::ffi::OsString::from("--net=");
        net.push(self.path());
        command.arg(net).arg("--").arg(program);
        command
    }

    /// Has the machine pass packets on by these rules of nftables.
    pub fn translate(&self, rules: &str) -> Result<()> {
        self.run("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
        self.run("nft", &[rules])
    }

    /// Shapes what leaves the machine, by arguments of `tc`.
    pub fn tc(&self, arguments: &str) -> Result<()> {
        self.run("tc", &arguments.split(' ').collect::<Vec<_>>())
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        self.run("ip", arguments)
    }

    /// Runs a program inside, which must succeed.
    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let output = self.command(find(program)).args(arguments).output().context("start nsenter")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), said.trim_end());
        Ok(())
    }
}

fn start_cable(folder: &Path, name: &str, config: &CableConfig) -> Result<Program> {
    let mut command = Command::new(binary("test-cable"));
    let mut cable = Program::start_configured(name, folder, &mut command, config)?;
    cable.wait_until(READY_WITHIN, "has both ends", |cable| cable.stdout().contains(READY).then_some(()))?;
    Ok(cable)
}

/// Machines on one network.
#[derive(Debug)]
pub struct Network {
    /// Cables that are programs, and which machine each is of.
    cables: Vec<(usize, Program, PathBuf)>,
    /// Dropped first: a cable goes with either end.
    machines: Vec<Netns>,
    bridge: Netns,
}

impl Network {
    /// A machine per address, all on one bridge.
    pub fn new(folder: &Path, addresses: &[IpAddr]) -> Result<Self> {
        Self::with_cables(folder, addresses, &[], 0)
    }

    /// The same with [cables](crate::cable) to these machines that can be told to delay and lose frames; which they
    /// lose, `seed` says.
    pub fn with_cables(folder: &Path, addresses: &[IpAddr], cabled: &[usize], seed: u64) -> Result<Self> {
        let mut cables = Vec::new();
        let bridge = Netns::add("bridge", folder)?;
        bridge.ip(&["link", "add", "br0", "type", "bridge"])?;
        bridge.ip(&["link", "set", "br0", "up"])?;
        let mut machines = Vec::new();
        for (number, address) in addresses.iter().enumerate() {
            let machine = Netns::add(&format!("machine{number}"), folder)?;
            let (near, far) = (format!("port{number}"), machine.holder.pid().to_string());
            if cabled.contains(&number) {
                let ends = [(machine.path(), "eth0".to_owned()), (bridge.path(), near.clone())];
                let dial = folder.join(format!("cable{number}.dial"));
                let config = CableConfig { ends, dial: dial.clone(), seed: seed + number as u64 };
                cables.push((number, start_cable(folder, &format!("cable{number}"), &config)?, dial));
            } else {
                bridge.ip(&["link", "add", &near, "type", "veth", "peer", "name", "eth0", "netns", &far])?;
            }
            bridge.ip(&["link", "set", &near, "master", "br0", "up"])?;
            machine.ip(&["address", "add", &format!("{address}/{PREFIX}"), "dev", "eth0"])?;
            machine.ip(&["link", "set", "eth0", "up"])?;
            machines.push(machine);
        }
        Ok(Self { cables, machines, bridge })
    }

    /// Has the cable of a machine delay and lose frames.
    pub fn shape(&self, machine: usize, shape: &Shape) -> Result<()> {
        let cable = self.cables.iter().find(|(number, ..)| *number == machine);
        let (.., dial) = cable.context("the machine has such a cable")?;
        turn(dial, shape)
    }

    /// The machine with the address of this index.
    pub fn machine(&self, number: usize) -> &Netns {
        &self.machines[number]
    }

    /// All machines, without the bridge.
    pub fn machines(&self) -> &[Netns] {
        &self.machines
    }

    /// The bridge's own namespace, to shape its ports.
    pub fn bridge(&self) -> &Netns {
        &self.bridge
    }
}
