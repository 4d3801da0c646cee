//! The only place of xtask that reads a clock.

use std::time::Instant;

/// Monotonic time.
#[expect(clippy::disallowed_methods, reason = "this is the clock module")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
