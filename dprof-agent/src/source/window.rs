//! The capture window: when data is captured and when the kernel programs return at once (`capture.duty_cycle`).
//!
//! Windows lie at fixed places of the wall clock, the same on every host: the `k`-th begins at `k` periods since the
//! epoch. Pure: the caller says what time it is. What a reader would get wrong: a window is opened early and closed
//! late by the error of the host's clock, so that what another host sees in its window is seen here too.

use dprof_common::settings::DUTY_CYCLE_MIN;
use dprof_common::units::{UnitError, parse_part};

/// How much of the time is captured, in windows of what length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DutyCycle {
    /// Part of the time inside windows, above 0 and at most 1.
    pub ratio: f64,
    /// Length of a window, nanoseconds. Requests that last a good part of it are mostly cut: give at least twenty
    /// times the p99 of a trace.
    pub window_ns: u64,
    /// Whether this is the only host that is watched: then a clock that nothing synchronises does no harm.
    pub alone: bool,
}

/// Length of a window when nothing is said: twenty times a trace of 25 ms.
pub const WINDOW_NS_DEFAULT: u64 = 500_000_000;
/// A window grows by at most this part of its length at either edge, however bad the clock.
const GUARD_PART_MAX: u64 = 4;

/// Where windows lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    window_ns: u64,
    period_ns: u64,
}

/// What a schedule says of a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Whether the window is open.
    pub is_open: bool,
    /// Time to the next edge, nanoseconds.
    pub edge_in_ns: u64,
}

impl DutyCycle {
    /// The schedule; `None` when everything is captured.
    pub fn schedule(&self) -> Option<Schedule> {
        (self.ratio < 1.0).then(|| Schedule {
            window_ns: self.window_ns,
            period_ns: ((self.window_ns as f64 / self.ratio) as u64).max(self.window_ns + 1),
        })
    }
}

impl Schedule {
    /// Whether a window is open at `unix_ns` on a clock that errs by at most `error_ns`.
    pub fn at(&self, unix_ns: u64, error_ns: u64) -> Moment {
        let closed_ns = self.period_ns - self.window_ns;
        let guard_ns = error_ns.min(self.window_ns / GUARD_PART_MAX).min((closed_ns - 1) / 2);
        let open_ns = self.window_ns + 2 * guard_ns;
        let since_ns = (unix_ns + guard_ns) % self.period_ns;
        let is_open = since_ns < open_ns;
        Moment { is_open, edge_in_ns: if is_open { open_ns } else { self.period_ns } - since_ns }
    }
}

/// Why this host may not capture a part of the time: its windows would not be the others'.
pub fn refusal(duty_cycle: &DutyCycle, is_synchronised: bool) -> Option<&'static str> {
    (duty_cycle.ratio < 1.0 && !duty_cycle.alone && !is_synchronised).then_some(
        "a duty cycle below 1 needs a clock that is synchronised, and the kernel says that this one is not \
         (adjtimex): start chrony or systemd-timesyncd, or say --alone if no other host is watched",
    )
}

/// Reads a duty cycle: `1/16`, `0.05`, `5%`.
pub fn parse_ratio(text: &str) -> Result<f64, UnitError> {
    parse_part(text, DUTY_CYCLE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn schedule(ratio: f64, window_ns: u64) -> Schedule {
        DutyCycle { ratio, window_ns, alone: true }.schedule().expect("windows")
    }

    #[track_caller]
    fn check(unix_ns: u64, error_ns: u64, is_open: bool, edge_in_ns: u64) {
        let moment = schedule(0.1, S).at(unix_ns, error_ns);
        assert_eq!(moment, Moment { is_open, edge_in_ns }, "{unix_ns} ± {error_ns}");
    }

    #[test]
    fn windows_lie_at_whole_periods_of_the_wall_clock() {
        check(0, 0, true, S);
        check(S - 1, 0, true, 1);
        check(S, 0, false, 9 * S);
        check(10 * S - 1, 0, false, 1);
        check(1_790_000_000 * S, 0, true, S);
    }

    #[test]
    fn a_bad_clock_opens_early_and_closes_late_but_not_without_bound() {
        let ms = 1_000_000;
        check(10 * S - 5 * ms, 5 * ms, true, S + 10 * ms);
        check(10 * S - 5 * ms - 1, 5 * ms, false, 1);
        check(S + 5 * ms - 1, 5 * ms, true, 1);
        check(S + 5 * ms, 5 * ms, false, 9 * S - 10 * ms);
        check(S + S / 4, u64::MAX, false, 9 * S - S / 2);
    }

    #[test]
    fn every_moment_leads_to_the_opposite_at_its_edge() {
        for (ratio, window_ns) in [(0.001, S), (0.0625, S / 2), (0.999, S), (0.999_999_999, 20_000_000)] {
            let schedule = schedule(ratio, window_ns);
            let (mut now_ns, mut open_ns) = (7 * S, 0);
            let started_ns = now_ns;
            for _ in 0..2_000 {
                let moment = schedule.at(now_ns, 1_000_000);
                assert!(moment.edge_in_ns > 0);
                open_ns += if moment.is_open { moment.edge_in_ns } else { 0 };
                now_ns += moment.edge_in_ns;
                assert_ne!(schedule.at(now_ns, 1_000_000).is_open, moment.is_open);
            }
            let measured = open_ns as f64 / (now_ns - started_ns) as f64;
            // The guards add up to two milliseconds to each window.
            assert!((measured / ratio - 1.0).abs() < 0.12, "{ratio}: {measured}");
        }
        assert_eq!(DutyCycle { ratio: 1.0, window_ns: S, alone: false }.schedule(), None);
    }

    #[test]
    fn without_a_synchronised_clock_only_a_lone_host_captures_a_part_of_the_time() {
        let refused = |ratio, alone, is_synchronised| {
            refusal(&DutyCycle { ratio, window_ns: S, alone }, is_synchronised).is_some()
        };
        assert!(refused(0.5, false, false));
        assert!(!refused(0.5, false, true) && !refused(0.5, true, false) && !refused(1.0, false, false));
    }

    #[test]
    fn a_part_of_the_time_is_written_in_three_ways() {
        for (text, expected) in [("1/16", 0.0625), ("5%", 0.05), ("0.1 %", 0.001), ("0.25", 0.25), ("1", 1.0)]
        {
            assert_eq!(parse_ratio(text), Ok(expected), "{text}");
        }
        for bad in ["", "0", "2", "1/0", "0/16", "-1/16", "a/b", "nan", "inf", "101%", "0.000001"] {
            assert!(parse_ratio(bad).is_err(), "{bad}");
        }
    }
}
