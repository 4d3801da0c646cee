//! What an agent says of itself every few seconds.

use std::collections::BTreeMap;

use dprof_common::settings::Values;
use serde::{Deserialize, Serialize};

/// An agent's row: as of `seen_unix_ns`, by its own clock.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentState {
    /// Host name, or what it was told to call itself.
    pub host: String,
    /// Its run, 32 hexadecimal digits.
    pub run_id: String,
    /// Addresses of the host, loopback left out.
    pub addresses: Vec<String>,
    /// Local addresses of the connections that it has watched, loopback left out.
    pub watches: Vec<String>,
    /// Where it hears which traces other agents keep, `address:port`; empty: it does not.
    pub hears: Vec<String>,
    /// How many agents it tells which traces it keeps.
    pub tells: u64,
    /// The kernel's id of this boot: loopback addresses lead to this agent where it is the same.
    pub boot_id: String,
    /// Kernel release.
    pub kernel: String,
    /// Capture back end, or `replay`.
    pub backend: String,
    /// Version of dprof.
    pub version: String,
    /// When it was started, nanoseconds since the epoch.
    pub started_unix_ns: u64,
    /// When it wrote this row.
    pub seen_unix_ns: u64,
    /// It has ended, and this is its last word.
    pub ended: bool,
    /// What it obeys.
    pub config: ConfigState,
    /// Records from the kernel a second, since the last row.
    pub events_per_s: f64,
    /// Spans stored a second, since the last row.
    pub spans_per_s: f64,
    /// What was lost since the start, by cause; causes that cost nothing are left out.
    pub lost: BTreeMap<String, u64>,
    /// Why the store takes no spans now; empty = it does.
    pub store_error: String,
    /// Bytes that wait on disk for the store.
    pub spool_bytes: u64,
    /// How long spans of undecided traces are held now, milliseconds; 0 = every trace is kept at once.
    pub keep_horizon_ms: u64,
    /// Its wall clock.
    pub clock: Clock,
    /// CPU that the agent itself uses, parts of one core, since the last row.
    pub cpu_share: f64,
    /// Time that its kernel programs took, nanoseconds a second; `None`: the kernel does not count.
    pub kernel_ns_per_s: Option<f64>,
}

/// What an agent obeys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigState {
    /// How it stands with what the store says.
    pub status: ConfigStatus,
    /// Versions that it has seen last, by scope: in force, or refused.
    pub versions: BTreeMap<String, u64>,
    /// Why it refuses them; empty unless it does.
    pub reason: String,
    /// Versions in force, by scope.
    pub in_force: BTreeMap<String, u64>,
    /// Keys that it does not know, and leaves alone.
    pub unknown: Vec<String>,
    /// Keys that were changed and wait for a restart.
    pub at_restart: Vec<String>,
    /// What its file and its options say of the same keys: in force where nothing is configured.
    pub started_with: Values,
}

/// How an agent stands with what the store says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigStatus {
    /// It has not yet asked.
    #[default]
    Starting,
    /// All of it is in force.
    InForce,
    /// It refuses the newest; what was in force before still is.
    Refused,
    /// The store cannot be asked: the last good copy is in force.
    LastGood,
}

impl ConfigStatus {
    /// As tables show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::InForce => "in force",
            Self::Refused => "refused",
            Self::LastGood => "last good copy",
        }
    }
}

/// An agent's wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Clock {
    /// Whether something keeps it synchronised, by the kernel's word (adjtimex).
    pub synchronised: bool,
    /// How far it may be off, nanoseconds; `None`: nothing says so, it is not synchronised.
    pub error_ns: Option<u64>,
}
