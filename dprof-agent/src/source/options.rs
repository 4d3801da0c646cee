//! What the kernel source is told once: plain values, already validated.

use std::path::PathBuf;

use dprof_common::limits::{PAYLOAD_BYTES_MAX, RING_BYTES_DEFAULT};

use super::plan::Wish;
use super::process::ServiceRule;
use super::window::{DutyCycle, WINDOW_NS_DEFAULT};

/// Payload bytes captured per call of a socket that the engine has not judged yet. All that a call can give:
/// detection and the first messages of a short connection must not have holes, and the engine's word comes
/// only some milliseconds later.
pub const PAYLOAD_LIMIT_DEFAULT: u32 = PAYLOAD_BYTES_MAX as u32;

/// How to watch this machine's kernel. An empty list filters nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelOptions {
    /// Only sockets whose local or peer port is one of these.
    pub ports: Vec<u16>,
    /// Only these processes.
    pub pids: Vec<u32>,
    /// Only processes in these cgroups: existing folders of the cgroup2 file system.
    pub cgroups: Vec<PathBuf>,
    /// Only sockets of these network namespaces: existing files such as `/run/netns/NAME`.
    pub netns: Vec<PathBuf>,
    /// Size of the event ring: a power of two and a multiple of the page.
    pub ring_bytes: u32,
    /// Which back end, and how events come.
    pub wish: Wish,
    /// Kernel-side debug messages.
    pub debug: bool,
    /// Payload limit of sockets that the engine has not judged yet, bytes.
    pub payload_limit: u32,
    /// When data is captured.
    pub duty_cycle: DutyCycle,
    /// Names for services; see [`super::process::ProcessTable`].
    pub service_rules: Vec<ServiceRule>,
}

impl KernelOptions {
    /// Everything on this machine, default sizes.
    pub const fn everything() -> Self {
        Self {
            ports: Vec::new(),
            pids: Vec::new(),
            cgroups: Vec::new(),
            netns: Vec::new(),
            ring_bytes: RING_BYTES_DEFAULT,
            wish: Wish { backend: None, events: None },
            debug: false,
            payload_limit: PAYLOAD_LIMIT_DEFAULT,
            duty_cycle: DutyCycle { ratio: 1.0, window_ns: WINDOW_NS_DEFAULT, alone: false },
            service_rules: Vec::new(),
        }
    }
}
