//! The only place of the command line that reads a clock; everywhere else time is an argument.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Wall clock, nanoseconds since the epoch.
#[expect(clippy::disallowed_methods, reason = "this is the one module that reads clocks")]
pub(crate) fn now_unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

/// How long something takes, for people who ask what an answer cost; no answer depends on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts it.
    #[expect(clippy::disallowed_methods, reason = "this is the one module that reads clocks")]
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since the start.
    pub(crate) fn elapsed_ns(self) -> u64 {
        self.elapsed().as_nanos() as u64
    }

    /// The same.
    #[expect(clippy::disallowed_methods, reason = "this is the one module that reads clocks")]
    pub(crate) fn elapsed(self) -> Duration {
        Instant::now().duration_since(self.0)
    }
}
