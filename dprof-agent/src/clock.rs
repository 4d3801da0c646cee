//! The only reader of clocks in the agent. Everywhere else a time is an argument.
//!
//! What a reader would get wrong: events carry `CLOCK_MONOTONIC` (as `bpf_ktime_get_ns` does), which stands
//! still while the machine sleeps and is not the wall clock. One [`ClockReading`] ties the two together.

use std::time::Duration;

/// How many pairs are read to find a close one: an interrupt between two reads is rare.
const TRIES: u32 = 4;
/// A pair read within this is close enough.
const CLOSE_NS: u64 = 500;

/// Both clocks at (nearly) one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME`, nanoseconds since the epoch.
    pub unix_ns: u64,
}

impl ClockReading {
    /// What both clocks would have said this much earlier.
    #[must_use]
    pub const fn before(self, ns: u64) -> Self {
        Self { monotonic_ns: self.monotonic_ns.saturating_sub(ns), unix_ns: self.unix_ns.saturating_sub(ns) }
    }
}

/// Reads both clocks together: the wall clock between two readings of the monotonic one, the tightest of a few
/// tries.
pub fn read_clocks() -> ClockReading {
    let mut best = (u64::MAX, ClockReading { monotonic_ns: 0, unix_ns: 0 });
    for _ in 0..TRIES {
        let before = monotonic_ns();
        let unix_ns = clock_ns(libc::CLOCK_REALTIME);
        let width = monotonic_ns() - before;
        if width < best.0 {
            best = (width, ClockReading { monotonic_ns: before + width / 2, unix_ns });
        }
        if width <= CLOSE_NS {
            break;
        }
    }
    best.1
}

/// `CLOCK_MONOTONIC`, nanoseconds.
pub fn monotonic_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// How far the wall clock may be from the true time, nanoseconds; `None` when nothing keeps it synchronised.
pub fn wall_clock_error_ns() -> Option<u64> {
    // SAFETY: a struct of plain integers, for which zeros are a value: "change nothing".
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `timex` is a valid, writable struct for the duration of the call.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    let is_synchronised = state >= 0 && state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0;
    is_synchronised.then(|| u64::try_from(timex.maxerror).unwrap_or(0).saturating_mul(1000))
}

/// CPU time that this process has used, user and system.
pub fn process_cpu() -> Duration {
    Duration::from_nanos(clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID))
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid, writable timespec for the duration of the call.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    // The clocks used here exist on every Linux; a failure would leave zeros, which only looks old.
    debug_assert_eq!(result, 0);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_go_forward_and_lie_between_their_neighbours() {
        let before = monotonic_ns();
        let reading = read_clocks();
        let after = monotonic_ns();
        assert!(before <= reading.monotonic_ns && reading.monotonic_ns <= after);
        // 2020-01-01: the wall clock is an epoch time, not an uptime.
        assert!(reading.unix_ns > 1_577_836_800_000_000_000);
    }
}
