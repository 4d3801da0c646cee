//! Rollups: every finished half counted per service, operation, side and minute, before any decision to keep.
//!
//! What a reader would get wrong: a half is counted in the minute that it *ended* in, and a minute comes out in
//! parts, one every few seconds, so that `stats` is never a minute behind: readers add rollups of one key up.

use std::sync::Arc;

use dprof_common::model::{Half, ProcessInfo, Rollup, RollupKey, Side};
use rustc_hash::FxHashMap;

use crate::heavy_hitters::HeavyHitters;
use crate::protocol::KeyRanges;

/// Operations of one service and side that are told apart in a minute; further ones count as [`OTHER`]. HTTP paths
/// that no template covers are the usual cause, and a page of 200 lines is more than anybody reads.
pub const OPERATIONS_MAX: usize = 200;
/// Services told apart in a minute.
pub const SERVICES_MAX: usize = 1000;
/// Operations whose keys are counted at once, of all services: each takes about 8 KiB, so 2 MiB.
pub const KEYED_OPERATIONS_MAX: usize = 256;
/// Name of what is beyond the limits.
pub const OTHER: &str = "(other)";
/// Counts are given out this often, nanoseconds: what `stats` lags behind.
const EVERY_NS: u64 = 5_000_000_000;
/// Places remembered, by process and operation: a host has few that are busy at the same time.
const LATELY: usize = 16;
const MINUTE_NS: u64 = 60_000_000_000;

/// Counters of what limits cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RollupCounters {
    /// Halves counted as [`OTHER`].
    pub other: u64,
    /// Halves whose keys were not counted: too many operations have some.
    pub keys_uncounted: u64,
}

/// The minutes that are still open.
#[derive(Debug, Default)]
pub struct Rollups {
    /// By minute (seconds since the epoch), then by key without the minute.
    minutes: FxHashMap<u64, Minute>,
    /// Where halves were counted lately: the next ones are mostly alike.
    lately: [Option<Place>; LATELY],
    counters: RollupCounters,
    /// Operations whose keys are counted.
    n_keyed: usize,
    due_ns: u64,
}

/// Where a half is counted.
#[derive(Debug)]
struct Place {
    minute_unix_s: u64,
    side: Side,
    process: Arc<ProcessInfo>,
    operation: String,
    /// Places of the service in its minute, and of the operation in its service.
    places: (usize, usize),
}

/// A rollup and the keys that belong to it.
#[derive(Debug)]
struct Counted {
    rollup: Rollup,
    keys: Option<Box<HeavyHitters>>,
}

/// What a half says of keys and values besides what is stored of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Named {
    /// Keys, as ranges of the half's statement.
    pub keys: KeyRanges,
    /// Bytes of the value that was written or read.
    pub value_bytes: Option<u32>,
}

/// Values by name, as many as a limit allows; all further names share [`OTHER`].
#[derive(Debug)]
struct Bounded<V> {
    places: FxHashMap<String, usize>,
    values: Vec<V>,
}

impl<V> Default for Bounded<V> {
    fn default() -> Self {
        Self { places: FxHashMap::default(), values: Vec::new() }
    }
}

/// Rollups of one service by operation, per side.
type Operations = [Bounded<Counted>; 2];

#[derive(Debug, Default)]
struct Minute {
    services: Bounded<Operations>,
}

impl<V> Bounded<V> {
    /// Where the value of `name` is, or that of [`OTHER`] when there are `max` and none of this name. The usual case is
    /// one look into the table and allocates nothing.
    fn place(&mut self, name: &str, max: usize, beyond: &mut u64, make: impl FnOnce(&str) -> V) -> usize {
        match self.places.get(name) {
            Some(place) => *place,
            None => self.add(name, max, beyond, make),
        }
    }

    #[cold]
    fn add(&mut self, name: &str, max: usize, beyond: &mut u64, make: impl FnOnce(&str) -> V) -> usize {
        let mut name = name;
        if self.values.len() >= max {
            *beyond += 1;
            name = OTHER;
            if let Some(place) = self.places.get(name) {
                return *place;
            }
        }
        self.values.push(make(name));
        self.places.insert(name.to_owned(), self.values.len() - 1);
        self.values.len() - 1
    }
}

impl Rollups {
    /// Counts a finished half.
    #[inline(never)]
    pub fn add(&mut self, side: Side, half: &Half, named: Named) {
        let minute_unix_s = half.times.end_ns / MINUTE_NS * 60;
        let minute = self.minutes.entry(minute_unix_s).or_default();
        let slot = Arc::as_ptr(&half.process) as usize >> 6 ^ half.operation.len() ^ (side as usize) << 2;
        let lately = &mut self.lately[slot % LATELY];
        let (service, operation) = match lately {
            Some(place) if place.is_of(minute_unix_s, side, half) => place.places,
            _ => minute.places(minute_unix_s, side, half, lately, &mut self.counters.other),
        };
        let operations = &mut minute.services.values[service][usize::from(side == Side::Server)];
        let counted = &mut operations.values[operation];
        if named.keys != KeyRanges::NONE || named.value_bytes.is_some() {
            if counted.keys.is_none() && self.n_keyed < KEYED_OPERATIONS_MAX {
                self.n_keyed += 1;
                counted.keys = Some(Box::new(HeavyHitters::new()));
            }
            match &mut counted.keys {
                Some(keys) => {
                    named.keys.of(&half.query_text).for_each(|key| keys.add(key));
                    if let Some(bytes) = named.value_bytes {
                        keys.add_size(bytes);
                    }
                }
                None => self.counters.keys_uncounted += 1,
            }
        }
        counted.rollup.add(
            half.times.duration_ns(),
            half.status.is_error(),
            half.request_bytes,
            half.response_bytes,
        );
    }

    /// Gives out everything that was counted since the last time, if that is [`EVERY_NS`] ago at `now_ns`.
    #[inline(never)]
    pub fn take_due(&mut self, now_ns: u64, out: &mut Vec<Rollup>) {
        if now_ns >= self.due_ns {
            self.due_ns = now_ns.saturating_add(EVERY_NS);
            self.take_all(out);
        }
    }

    /// Gives out everything: the stream ended.
    pub fn take_all(&mut self, out: &mut Vec<Rollup>) {
        self.n_keyed = 0;
        self.lately = Default::default();
        out.extend(self.minutes.drain().flat_map(|(_, minute)| minute.into_rollups()));
    }

    /// What limits cost so far.
    pub const fn counters(&self) -> RollupCounters {
        self.counters
    }
}

impl Place {
    fn is_of(&self, minute_unix_s: u64, side: Side, half: &Half) -> bool {
        self.minute_unix_s == minute_unix_s
            && self.side == side
            && Arc::ptr_eq(&self.process, &half.process)
            && self.operation == half.operation
    }
}

impl Minute {
    /// Where a half is counted, by service and operation; notes it in `lately`.
    fn places(
        &mut self,
        minute_unix_s: u64,
        side: Side,
        half: &Half,
        lately: &mut Option<Place>,
        other: &mut u64,
    ) -> (usize, usize) {
        let (service, operation): (&str, &str) = (&half.process.service, &half.operation);
        let before = *other;
        let service_place = self.services.place(service, SERVICES_MAX, other, |_| Operations::default());
        let operations = &mut self.services.values[service_place][usize::from(side == Side::Server)];
        let operation_place = operations.place(operation, OPERATIONS_MAX, other, |operation| Counted {
            rollup: Rollup::new(RollupKey {
                minute_unix_s,
                service: service.to_owned(),
                operation: operation.to_owned(),
                side,
                protocol: half.protocol.clone(),
            }),
            keys: None,
        });
        let places = (service_place, operation_place);
        // What is beyond a limit is counted each time.
        if *other == before {
            // Its memory serves again.
            let mut text = lately.take().map_or_else(String::new, |place| place.operation);
            text.clear();
            text.push_str(operation);
            let process = Arc::clone(&half.process);
            *lately = Some(Place { minute_unix_s, side, process, operation: text, places });
        }
        places
    }

    fn into_rollups(self) -> impl Iterator<Item = Rollup> {
        let counted = self.services.values.into_iter().flatten().flat_map(|operations| operations.values);
        counted.map(|Counted { mut rollup, keys }| {
            rollup.keys = keys.map(|keys| Box::new(keys.into_stats()));
            rollup
        })
    }
}

#[cfg(test)]
mod tests {
    use dprof_common::model::Status;

    use super::*;
    use crate::span::testing;

    fn half(operation: &str, end_ns: u64, duration_ns: u64) -> Half {
        let mut half = testing::half("s", operation, end_ns, duration_ns);
        half.status = if duration_ns > 50 { Status::Error } else { Status::Ok };
        half
    }

    const M: u64 = MINUTE_NS;

    #[test]
    fn every_half_comes_out_once_in_its_minute() {
        let mut rollups = Rollups::default();
        let mut out = Vec::new();
        rollups.take_due(0, &mut out);
        rollups.add(Side::Server, &half("GET", M + 1, 10), Named::default());
        rollups.add(Side::Server, &half("GET", 2 * M - 1, 60), Named::default());
        rollups.add(Side::Client, &half("GET", M + 5, 20), Named::default());
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
        rollups.add(Side::Server, &half("GET", 2 * M, 30), Named::default());
        rollups.take_all(&mut out);
        assert_eq!(out.iter().map(|r| (r.key.minute_unix_s, r.count)).collect::<Vec<_>>(), [(120, 1)]);
    }

    #[test]
    fn keys_and_values_are_counted_up_to_a_limit() {
        let mut rollups = Rollups::default();
        let named = |keys: &[(usize, usize)], value_bytes| {
            let mut ranges = KeyRanges::NONE;
            keys.iter().for_each(|&(start, end)| ranges.push(start, end));
            Named { keys: ranges, value_bytes }
        };
        let with_text =
            |operation: &str, text: &str| Half { query_text: text.into(), ..half(operation, M, 1) };
        rollups.add(Side::Server, &with_text("MGET", "MGET a bc"), named(&[(5, 6), (7, 9)], Some(10)));
        rollups.add(Side::Server, &with_text("MGET", "MGET a"), named(&[(5, 6)], None));
        rollups.add(Side::Server, &with_text("PING", "PING"), Named::default());
        for n in 0..KEYED_OPERATIONS_MAX {
            let mut half = with_text("GET", "GET a");
            half.process =
                Arc::new(ProcessInfo { service: format!("s{n}"), ..ProcessInfo::clone(&half.process) });
            rollups.add(Side::Client, &half, named(&[(4, 5)], None));
        }
        let mut out = Vec::new();
        rollups.take_all(&mut out);
        let keys = |operation: &str| {
            let found = out.iter().find(|rollup| rollup.key.operation == operation).expect("counted");
            found.keys.as_ref().map(|stats| {
                let keys = stats.keys.iter().map(|key| (key.key.as_str(), key.count)).collect::<Vec<_>>();
                (keys, stats.total, stats.sizes.count())
            })
        };
        assert_eq!(keys("MGET"), Some((vec![("a", 2), ("bc", 1)], 3, 1)));
        assert_eq!(keys("PING"), None);
        assert_eq!(rollups.counters().keys_uncounted, 1);
    }

    #[test]
    fn operations_beyond_the_limit_are_counted_together() {
        let mut rollups = Rollups::default();
        for n in 0..OPERATIONS_MAX + 50 {
            rollups.add(Side::Server, &half(&format!("op{n}"), M, 1), Named::default());
        }
        let mut out = Vec::new();
        rollups.take_all(&mut out);
        assert_eq!(out.len(), OPERATIONS_MAX + 1);
        assert_eq!(out.iter().find(|r| r.key.operation == OTHER).map(|r| r.count), Some(50));
        assert_eq!(rollups.counters().other, 50);
    }
}
