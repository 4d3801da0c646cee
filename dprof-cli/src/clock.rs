//! The only place of the command line that reads a clock; everywhere else time is an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Wall clock, nanoseconds since the epoch.
#[expect(clippy::disallowed_methods, reason = "this is the one module that reads clocks")]
pub(crate) fn now_unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}
