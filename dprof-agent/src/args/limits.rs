//! Limits of the engine, as file, store and defaults say them.

use crate::run::{CONNECTIONS_MAX, HELD_MAX, HOLD_NS, OPEN_REQUESTS_MAX};

/// Limits of the engine that can be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineLimits {
    /// Requests open at once.
    pub open_requests_max: usize,
    /// Halves and tree nodes held at once.
    pub held_max: usize,
    /// Connections known at once.
    pub connections_max: usize,
    /// How long a half waits for its tree, nanoseconds.
    pub hold_ns: u64,
}

impl EngineLimits {
    /// Where nothing is said.
    pub const DEFAULT: Self = Self {
        open_requests_max: OPEN_REQUESTS_MAX,
        held_max: HELD_MAX,
        connections_max: CONNECTIONS_MAX,
        hold_ns: HOLD_NS,
    };
}
