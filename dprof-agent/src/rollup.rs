//! Rollups: every finished half counted per service, operation, side and minute, before any decision to keep.
//!
//! What a reader would get wrong: a half is counted in the minute that it *ended* in, and a minute comes out in
//! parts, one every few seconds, so that `stats` is never a minute behind: readers add rollups of one key up.

use dprof_common::model::{Half, Rollup, RollupKey, Side};
use rustc_hash::FxHashMap;

/// Operations of one service and side that are told apart in a minute; further ones count as [`OTHER`]. HTTP paths
/// that no template covers are the usual cause, and a page of 200 lines is more than anybody reads.
pub const OPERATIONS_MAX: usize = 200;
/// Services told apart in a minute.
pub const SERVICES_MAX: usize = 1000;
/// Name of what is beyond the limits.
pub const OTHER: &str = "(other)";
/// Counts are given out this often, nanoseconds: what `stats` lags behind.
const EVERY_NS: u64 = 5_000_000_000;
const MINUTE_NS: u64 = 60_000_000_000;

/// Counters of what limits cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RollupCounters {
    /// Halves counted as [`OTHER`].
    pub other: u64,
}

/// The minutes that are still open.
#[derive(Debug, Default)]
pub struct Rollups {
    /// By minute (seconds since the epoch), then by key without the minute.
    minutes: FxHashMap<u64, Minute>,
    counters: RollupCounters,
    due_ns: u64,
}

/// Rollups of one service by operation, per side.
type Operations = [FxHashMap<String, Rollup>; 2];

#[derive(Debug, Default)]
struct Minute {
    services: FxHashMap<String, Operations>,
}

/// The value of `key`, or of [`OTHER`] when the map is full and lacks it. Looks up by reference: the usual case
/// allocates nothing.
fn bounded<'a, V>(
    map: &'a mut FxHashMap<String, V>,
    key: &str,
    max: usize,
    beyond: &mut u64,
    make: impl FnOnce(&str) -> V,
) -> &'a mut V {
    let mut key = key;
    if !map.contains_key(key) {
        if map.len() >= max {
            *beyond += 1;
            key = OTHER;
        }
        if !map.contains_key(key) {
            map.insert(key.to_owned(), make(key));
        }
    }
    map.get_mut(key).expect("looked up or inserted just now")
}

impl Rollups {
    /// Counts a finished half.
    pub fn add(&mut self, side: Side, half: &Half) {
        let minute_unix_s = half.times.end_ns / MINUTE_NS * 60;
        let minute = self.minutes.entry(minute_unix_s).or_default();
        let (service, operation): (&str, &str) = (&half.process.service, &half.operation);
        let other = &mut self.counters.other;
        let services = bounded(&mut minute.services, service, SERVICES_MAX, other, |_| Operations::default());
        let operations = &mut services[usize::from(side == Side::Server)];
        let rollup = bounded(operations, operation, OPERATIONS_MAX, other, |operation| {
            Rollup::new(RollupKey {
                minute_unix_s,
                service: service.to_owned(),
                operation: operation.to_owned(),
                side,
                protocol: half.protocol.clone(),
            })
        });
        rollup.add(half.times.duration_ns(), half.status.is_error(), half.request_bytes, half.response_bytes);
    }

    /// Gives out everything that was counted since the last time, if that is [`EVERY_NS`] ago at `now_ns`.
    pub fn take_due(&mut self, now_ns: u64, out: &mut Vec<Rollup>) {
        if now_ns >= self.due_ns {
            self.due_ns = now_ns.saturating_add(EVERY_NS);
            self.take_all(out);
        }
    }

    /// Gives out everything: the stream ended.
    pub fn take_all(&mut self, out: &mut Vec<Rollup>) {
        out.extend(self.minutes.drain().flat_map(|(_, minute)| minute.into_rollups()));
    }

    /// What limits cost so far.
    pub const fn counters(&self) -> RollupCounters {
        self.counters
    }
}

impl Minute {
    fn into_rollups(self) -> impl Iterator<Item = Rollup> {
        self.services.into_values().flatten().flat_map(FxHashMap::into_values)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dprof_common::model::{HalfFlags, HalfTimes, HostInfo, MessageId, ProcessInfo, RunId, Status};

    use super::*;

    fn half(operation: &str, end_ns: u64, duration_ns: u64) -> Half {
        let address = "127.0.0.1:1".parse().expect("an address");
        Half {
            host: Arc::new(HostInfo {
                host: "h".into(),
                run_id: RunId(1),
                labels: std::collections::BTreeMap::default(),
            }),
            process: Arc::new(ProcessInfo { pid: 1, comm: "c".into(), service: "s".into(), container: None }),
            tid: 1,
            local: address,
            peer: address,
            netns: 1,
            tuple_key: 0,
            protocol: "redis".into(),
            operation: operation.into(),
            query_text: String::new(),
            status: if duration_ns > 50 { Status::Error } else { Status::Ok },
            status_code: String::new(),
            attributes: Vec::new(),
            times: HalfTimes { start_ns: end_ns - duration_ns, end_ns, ..HalfTimes::default() },
            request_bytes: 10,
            response_bytes: 20,
            request_message_id: MessageId(1),
            response_message_id: MessageId(2),
            batch: 1,
            flags: HalfFlags::default(),
            retransmits: 0,
            srtt_us: 0,
            connect_ns: None,
        }
    }

    const M: u64 = MINUTE_NS;

    #[test]
    fn every_half_comes_out_once_in_its_minute() {
        let mut rollups = Rollups::default();
        let mut out = Vec::new();
        rollups.take_due(0, &mut out);
        rollups.add(Side::Server, &half("GET", M + 1, 10));
        rollups.add(Side::Server, &half("GET", 2 * M - 1, 60));
        rollups.add(Side::Client, &half("GET", M + 5, 20));
        rollups.take_due(EVERY_NS - 1, &mut out);
        assert!(out.is_empty());
        rollups.take_due(EVERY_NS, &mut out);
        out.sort_by_key(|rollup| rollup.key.side);
        let seen: Vec<_> = out
            .iter()
            .map(|r| (r.key.side, r.key.minute_unix_s, r.count, r.errors, r.min_ns, r.max_ns, r.sum_ns))
            .collect();
        assert_eq!(seen, [(Side::Client, 60, 1, 0, 20, 20, 20), (Side::Server, 60, 2, 1, 10, 60, 70)]);
        out.clear();
        rollups.add(Side::Server, &half("GET", 2 * M, 30));
        rollups.take_all(&mut out);
        assert_eq!(out.iter().map(|r| (r.key.minute_unix_s, r.count)).collect::<Vec<_>>(), [(120, 1)]);
    }

    #[test]
    fn operations_beyond_the_limit_are_counted_together() {
        let mut rollups = Rollups::default();
        for n in 0..OPERATIONS_MAX + 50 {
            rollups.add(Side::Server, &half(&format!("op{n}"), M, 1));
        }
        let mut out = Vec::new();
        rollups.take_all(&mut out);
        assert_eq!(out.len(), OPERATIONS_MAX + 1);
        assert_eq!(out.iter().find(|r| r.key.operation == OTHER).map(|r| r.count), Some(50));
        assert_eq!(rollups.counters().other, 50);
    }
}
