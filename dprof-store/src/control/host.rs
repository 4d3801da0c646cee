//! What a host did in a minute: the machine's side of what its traces show.

use serde::{Deserialize, Serialize};

/// Minutes are kept for this long, seconds: as long as spans are by default.
pub const HOST_LIFE_S: u64 = 7 * 86_400;

/// A minute of a host, as its kernel counts (`/proc`). Rates are over the part of the minute that was watched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostMinute {
    /// Host name.
    pub host: String,
    /// Start of the minute, seconds since the epoch.
    pub minute_unix_s: u64,
    /// How much of it was watched, seconds.
    pub watched_s: f64,
    /// CPUs.
    pub n_cpus: u32,
    /// Part of all CPUs' time in which they worked, 0 to 1.
    pub cpu_share: f64,
    /// Part in which they were taken by a hypervisor, 0 to 1.
    pub steal_share: f64,
    /// Tasks that ran or wanted to, on average over a look every few seconds.
    pub run_queue: f64,
    /// The most of them at one look.
    pub run_queue_max: u32,
    /// Load average of the last minute.
    pub load_1m: f64,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Memory that is neither free nor could be freed at once, bytes.
    pub memory_used_bytes: u64,
    /// Read from disks, bytes a second.
    pub disk_read_per_s: f64,
    /// Written to disks, bytes a second.
    pub disk_written_per_s: f64,
    /// Part of the time in which the busiest disk worked, 0 to 1.
    pub disk_busy_share: f64,
    /// Received by network interfaces other than loopback, bytes a second.
    pub net_received_per_s: f64,
    /// Sent by them, bytes a second.
    pub net_sent_per_s: f64,
    /// Packets that they dropped or found broken, a second.
    pub net_lost_per_s: f64,
}
