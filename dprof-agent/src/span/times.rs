//! Monotonic times of a half → wall-clock times of the model.
//!
//! What a reader would get wrong: a half has *one* offset, fixed when its request is seen, so differences within
//! it are exact even when the wall clock is stepped meanwhile.

use dprof_common::event::ClockEvent;
use dprof_common::model::{Half, HalfFlags, HalfTimes, Side};

use super::Timed;

/// Events are at most this much newer than the last clock record, which comes about once a second; a time
/// further ahead is damage and does not move the engine's clock.
const CLOCK_LEAD_MAX_NS: u64 = 30_000_000_000;

/// Wall clock less monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WallOffset(i64);

impl WallOffset {
    /// Nanoseconds since the epoch.
    pub(crate) const fn unix_ns(self, monotonic_ns: u64) -> u64 {
        monotonic_ns.wrapping_add_signed(self.0)
    }
}

/// The engine's clock: the newest time of any event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    now_ns: u64,
    /// The last clock record: monotonic time, offset.
    last: Option<(u64, i64)>,
    /// Monotonic time of the first clock record: drift counts from here.
    first_ns: u64,
    offset_ns: i64,
    drift_ppm: f64,
}

impl Clock {
    /// A clock that adds `offset_ns`, growing by `drift_ppm`, to what the host's wall clock says.
    pub(crate) const fn new(offset_ns: i64, drift_ppm: f64) -> Self {
        Self { now_ns: 0, last: None, first_ns: 0, offset_ns, drift_ppm }
    }

    /// Newest time seen, monotonic.
    pub(crate) const fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Whether a clock record was seen.
    pub(crate) const fn is_set(&self) -> bool {
        self.last.is_some()
    }

    /// An event of this time was seen. Returns whether the time is plausible.
    pub(crate) fn see(&mut self, event_ns: u64) -> bool {
        if event_ns <= self.now_ns {
            return true;
        }
        let plausible =
            self.last.is_none_or(|(tick_ns, _)| event_ns.saturating_sub(tick_ns) <= CLOCK_LEAD_MAX_NS);
        if plausible {
            self.now_ns = event_ns;
        }
        plausible
    }

    /// Both clocks were read.
    pub(crate) fn tick(&mut self, event: &ClockEvent) {
        if self.last.is_none() {
            self.first_ns = event.monotonic_ns;
            // Times seen before the first reading could not be judged.
            self.now_ns = event.monotonic_ns;
        }
        self.now_ns = self.now_ns.max(event.monotonic_ns);
        self.last = Some((event.monotonic_ns, event.unix_ns.wrapping_sub(event.monotonic_ns) as i64));
    }

    /// Offset for a half that starts now.
    pub(crate) fn offset(&self) -> WallOffset {
        let host = self.last.map_or(0, |(_, offset)| offset);
        let drift = if self.drift_ppm == 0.0 {
            0
        } else {
            (self.now_ns.saturating_sub(self.first_ns) as f64 * self.drift_ppm / 1e6) as i64
        };
        WallOffset(host.wrapping_add(self.offset_ns).wrapping_add(drift))
    }
}

/// How a half ended, for its times.
pub(crate) enum Ended<'a> {
    /// By this response.
    Response(&'a Timed),
    /// Without one, given up at this time.
    At(u64),
    /// None was expected.
    OneWay,
}

/// The times of a half, and whether they contradict each other (an end before its start, an answer that arrived
/// before its question left): then a time was misread, and the half is to be marked.
pub(crate) fn half_times(
    side: Side,
    request: &Timed,
    ended: &Ended<'_>,
    offset: WallOffset,
) -> (HalfTimes, bool) {
    let unix = |ns: u64| offset.unix_ns(ns);
    let request_read = (side == Side::Server).then_some(request.last.hook_ns);
    let start = request.first.wire_ns.unwrap_or(request.first.hook_ns);
    let (response, end) = match ended {
        Ended::Response(response) => (Some(*response), response.done_ns()),
        Ended::At(ns) => (None, (*ns).max(start)),
        Ended::OneWay => (None, request.done_ns()),
    };
    let response_first = response.and_then(|response| response.first.wire_ns);
    let contradictory = end < start
        || reversed(request.last.wire_ns, response_first)
        || reversed(request_read, response_first)
        || reversed(request.last.wire_ns, request_read);
    let times = HalfTimes {
        start_ns: unix(start),
        end_ns: unix(end),
        request_first_ns: request.first.wire_ns.map(unix),
        request_last_ns: request.last.wire_ns.map(unix),
        request_read_ns: request_read.map(unix),
        response_first_ns: response_first.map(unix),
        response_last_ns: response.and_then(|response| response.last.wire_ns).map(unix),
        response_read_ns: response
            .filter(|_| side == Side::Client)
            .map(|response| unix(response.last.hook_ns)),
    };
    (times, contradictory)
}

/// Whether both are known, and the later one is before the earlier one.
fn reversed(before: Option<u64>, after: Option<u64>) -> bool {
    before.zip(after).is_some_and(|(before, after)| after < before)
}

/// Marks a departure that lies after the arrival at the other end, both halves being of one clock.
///
/// Bytes of one call leave when the windows of the connection let them, and the call's end knows only when the last of
/// them left: of those before it that is an upper bound, which the arrival can disprove.
pub(crate) fn mark_late_departures(client: &mut Half, server: &mut Half) {
    let (asked, served) = (&client.times, &server.times);
    if reversed(asked.request_first_ns, served.request_first_ns)
        || reversed(asked.request_last_ns, served.request_last_ns)
    {
        client.flags.insert(HalfFlags::REQUEST_TIME_APPROXIMATE);
    }
    if reversed(served.response_first_ns, asked.response_first_ns)
        || reversed(served.response_last_ns, asked.response_last_ns)
    {
        server.flags.insert(HalfFlags::RESPONSE_TIME_APPROXIMATE);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::half;
    use super::*;

    fn tick(monotonic_ns: u64, unix_ns: u64) -> ClockEvent {
        ClockEvent { monotonic_ns, unix_ns, ..ClockEvent::default() }
    }

    #[test]
    fn the_clock_follows_events_but_not_damage() {
        let mut clock = Clock::new(0, 0.0);
        assert!(clock.see(u64::MAX));
        clock.tick(&tick(1_000, 5_000));
        assert_eq!(clock.now_ns(), 1_000);
        assert!(clock.see(2_000) && clock.see(1_500));
        assert_eq!(clock.now_ns(), 2_000);
        assert!(!clock.see(u64::MAX));
        assert_eq!(clock.now_ns(), 2_000);
        assert_eq!(clock.offset().unix_ns(2_000), 6_000);
    }

    #[test]
    fn offset_and_drift_add_to_the_wall_clock_only() {
        let mut clock = Clock::new(-100, 100.0);
        clock.tick(&tick(0, 1_000_000));
        assert_eq!(clock.offset().unix_ns(0), 999_900);
        clock.tick(&tick(10_000_000, 11_000_000));
        // 100 ppm of 10 ms are 1 µs.
        assert_eq!(clock.offset().unix_ns(10_000_000), 11_000_000 - 100 + 1_000);
    }

    #[track_caller]
    fn check_late(request: [u64; 2], response: [u64; 2], expected: [HalfFlags; 2]) {
        let [mut client, mut server] = [half("a", "GET", 100, 100), half("a", "GET", 100, 100)];
        (client.times.request_first_ns, server.times.request_first_ns) = (Some(request[0]), Some(request[1]));
        (server.times.response_last_ns, client.times.response_last_ns) =
            (Some(response[0]), Some(response[1]));
        mark_late_departures(&mut client, &mut server);
        assert_eq!([client.flags, server.flags], expected);
    }

    #[test]
    fn a_departure_after_its_arrival_is_approximate() {
        const EXACT: HalfFlags = HalfFlags(0);
        check_late([10, 10], [20, 21], [EXACT, EXACT]);
        check_late([11, 10], [20, 21], [HalfFlags::REQUEST_TIME_APPROXIMATE, EXACT]);
        check_late([9, 10], [22, 21], [EXACT, HalfFlags::RESPONSE_TIME_APPROXIMATE]);
    }

    #[test]
    fn a_wall_clock_before_its_epoch_wraps_and_does_not_panic() {
        let mut clock = Clock::new(i64::MIN, f64::NAN);
        clock.tick(&tick(u64::MAX, 0));
        let _ = clock.offset().unix_ns(u64::MAX);
    }
}
