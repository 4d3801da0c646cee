//! Fault drills: a system at work, a fault put into it half-way, and what `dprof-cli why` says of it.
//!
//! What a reader would get wrong: the drill knows the cause, `why` does not. It sees what the agents stored, and is
//! asked as a person would ask, without a hint of where or when.

mod ring;
mod shop;

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use self::ring::RingSystem;
use self::shop::Shop;
use crate::agent::{Agent, binary};
use crate::cli;
use crate::client::DONE;
use crate::clock;
use crate::dial::turn;
use crate::netns::{Netns, Network};
use crate::program::Program;
use crate::steady::{Mix, Steady};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Frames of one machine are held back.
    LinkDelay,
    /// The datastore of one node answers late.
    SlowReplica,
    /// A process gets less CPU time than it needs.
    CpuStarvation,
    /// A process does one thing at a time.
    Lock,
    /// Most requests are for one large value.
    HotKey,
    /// A service asks for keys one by one.
    MoreCalls,
    /// Frames of one machine are lost.
    Retransmissions,
    /// A process stops for a while, again and again.
    Pause,
    /// A service fails.
    Errors,
    /// A service is started anew, and is slower.
    NewVersion,
}

/// A system to put faults into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum System {
    /// A shop: an HTTP service that asks another one, and Redis behind nutcracker, on three machines.
    Shop,
    /// A ring like Dynomite of three racks, one node each.
    Ring,
}

/// What `why` should say, any of the kinds and of the places.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Kinds of cause.
    pub kinds: Vec<&'static str>,
    /// Service; empty: any.
    pub services: Vec<&'static str>,
    /// Host, or one end of a link; empty: any.
    pub hosts: Vec<String>,
}

/// One drill.
#[derive(Clone, Copy, Debug)]
pub struct Drill {
    /// Where.
    pub system: System,
    /// What; nothing: `why` must say that nothing got worse.
    pub fault: Option<Fault>,
    /// Which link, process and size, and which keys are asked for.
    pub seed: u64,
}

/// What came of a drill.
#[derive(Debug)]
pub struct Outcome {
    /// What was done, in words.
    pub done: String,
    /// What `why` should name first; `None`: nothing.
    pub expected: Option<Expected>,
    /// What it said, for programs.
    pub why: Value,
    /// And for people.
    pub text: String,
}

/// Time before and after the fault comes: a change shows after some seconds on either side.
const BEFORE: Duration = Duration::from_secs(12);
const AFTER: Duration = Duration::from_secs(11);

/// How long a load may take beyond its time.
const END_WITHIN: Duration = Duration::from_secs(30);

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 10] = [
        Self::LinkDelay,
        Self::SlowReplica,
        Self::CpuStarvation,
        Self::Lock,
        Self::HotKey,
        Self::MoreCalls,
        Self::Retransmissions,
        Self::Pause,
        Self::Errors,
        Self::NewVersion,
    ];

    /// Name on the command line and in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LinkDelay => "link-delay",
            Self::SlowReplica => "slow-replica",
            Self::CpuStarvation => "cpu-starvation",
            Self::Lock => "lock",
            Self::HotKey => "hot-key",
            Self::MoreCalls => "more-calls",
            Self::Retransmissions => "retransmissions",
            Self::Pause => "pause",
            Self::Errors => "errors",
            Self::NewVersion => "new-version",
        }
    }

    /// Where it can happen; of two systems the seed says in which.
    const fn system(self, seed: u64) -> System {
        match self {
            Self::SlowReplica => System::Ring,
            Self::LinkDelay | Self::Retransmissions | Self::Pause if seed % 2 == 1 => System::Ring,
            _ => System::Shop,
        }
    }
}

impl Drill {
    /// A drill with a fault.
    pub const fn with(fault: Fault, seed: u64) -> Self {
        Self { system: fault.system(seed), fault: Some(fault), seed }
    }

    /// A drill without one.
    pub const fn without(seed: u64) -> Self {
        Self { system: if seed % 2 == 1 { System::Ring } else { System::Shop }, fault: None, seed }
    }
}

impl Outcome {
    /// Whether `why` named the cause first, or rightly nothing.
    pub fn is_right(&self) -> bool {
        let cause = &self.why["diagnosis"]["causes"][0];
        let Some(expected) = &self.expected else { return self.why["symptom"].is_null() };
        let text = |field: &str| cause[field].as_str().unwrap_or_default();
        let hosts = [text("host"), text("other_host")];
        expected.kinds.contains(&text("kind"))
            && (expected.services.is_empty() || expected.services.contains(&text("service")))
            && (expected.hosts.is_empty() || expected.hosts.iter().any(|host| hosts.contains(&host.as_str())))
    }

    /// What `why` named first, in a line.
    pub fn first(&self) -> String {
        let cause = &self.why["diagnosis"]["causes"][0];
        match cause["text"].as_str() {
            Some(text) => text.to_owned(),
            None if self.why["symptom"].is_null() => "nothing got worse".to_owned(),
            None => "no cause".to_owned(),
        }
    }
}

/// Numbers that differ from use to use, all by one seed (splitmix64).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) const fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// What both systems offer to a drill.
trait Subject {
    fn network(&self) -> Option<&Network>;
    /// Name of each machine.
    fn hosts(&self) -> Vec<String>;
    /// Where the load runs.
    fn client(&self) -> Result<&Netns>;
    fn load(&self) -> Steady;
    /// Puts the fault in, and keeps it there for that long; what was done, and what `why` should say.
    fn inject(&mut self, fault: Fault, dice: &mut Dice, lasting: Duration) -> Result<(String, Expected)>;
}

/// Runs a drill in a folder of its own.
pub fn run(drill: Drill, folder: &Path) -> Result<Outcome> {
    let mut dice = Dice(drill.seed);
    let mut system: Box<dyn Subject> = match drill.system {
        System::Shop => Box::new(Shop::start(folder, drill.seed)?),
        System::Ring => Box::new(RingSystem::start(folder, drill.seed)?),
    };
    let store = format!("sqlite:{}", folder.join("store").display());
    let agents = agents(&*system, folder, &store)?;
    let load = Steady {
        seconds: (BEFORE + AFTER).as_secs(),
        seed: drill.seed,
        dial: folder.join("load.dial"),
        ..system.load()
    };
    let mut client = system.client()?.command(binary("test-steady"));
    let client = Program::start_configured("steady", folder, &mut client, &load)?;
    thread::sleep(BEFORE);
    let (done, expected) = match drill.fault {
        Some(fault) => {
            let (done, expected) = system.inject(fault, &mut dice, AFTER)?;
            (done, Some(expected))
        }
        None => ("nothing".to_owned(), None),
    };
    let ended = client.wait(AFTER + END_WITHIN)?.success()?;
    if !ended.stdout.contains(DONE) {
        bail!("the load did not come to its end: {}", ended.stderr);
    }
    for agent in agents {
        agent.stop()?;
    }
    drop(system);
    let why = cli::text(&store, &["why", "--since", "all", "--format", "json"])?;
    let why = serde_json::from_str(&why).with_context(|| format!("dprof-cli why: {why}"))?;
    let text = cli::text(&store, &["why", "--since", "all"])?;
    Ok(Outcome { done, expected, why, text })
}

/// An agent on each machine; all share a store.
fn agents(system: &dyn Subject, folder: &Path, store: &str) -> Result<Vec<Agent>> {
    let network = system.network().context("machines")?;
    let mut agents = Vec::new();
    for (machine, host) in network.machines().iter().zip(system.hosts()) {
        agents.push(Agent::on_machine(folder, store, machine, &host, &[])?);
    }
    Ok(agents)
}

/// Stops a process for `stopped` of each `every`, for as long as `lasting`.
fn stop_and_go(program: &Program, stopped: Duration, every: Duration, lasting: Duration) {
    let end = clock::now() + lasting;
    while clock::now() < end {
        program.signal(libc::SIGSTOP);
        thread::sleep(stopped);
        program.signal(libc::SIGCONT);
        thread::sleep(every.saturating_sub(stopped));
    }
}

/// Turns the share of requests for the hot key.
fn mix(folder: &Path, hot_percent: u64) -> Result<()> {
    turn(&folder.join("load.dial"), &Mix { hot_percent })
}
