//! What the kernel source is told once: plain values, already validated.

use std::path::PathBuf;

use dprof_common::limits::{PAYLOAD_BYTES_MAX, RING_BYTES_DEFAULT};

use super::process::ServiceRule;

/// Payload bytes captured per call of a socket that the engine has not judged yet. All that a call can give:
/// detection and the first messages of a short connection must not have holes, and the engine's word comes
/// only some milliseconds later.
pub const PAYLOAD_LIMIT_DEFAULT: u32 = PAYLOAD_BYTES_MAX as u32;

/// How to watch this machine's kernel. An empty list filters nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Kernel-side debug messages.
    pub debug: bool,
    /// Payload limit of sockets that the engine has not judged yet, bytes.
    pub payload_limit: u32,
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
            debug: false,
            payload_limit: PAYLOAD_LIMIT_DEFAULT,
            service_rules: Vec::new(),
        }
    }
}
