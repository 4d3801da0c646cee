//! The slowest of each operation and ten minutes, as they come: a span that is among them when it ends is kept, so
//! that the slowest list of a store can be followed to a trace. Of n spans about K (1 + ln(n / K)) enter.

use rustc_hash::FxHashMap;

/// Places per operation.
const PLACES: usize = 10;

/// The lists begin anew this often: the windows of the duration index.
const WINDOW_NS: u64 = 600_000_000_000;

/// Operations with a list; of others none is kept for being slow.
const OPERATIONS_MAX: usize = 4096;

/// All lists.
#[derive(Debug, Default)]
pub(super) struct Tops {
    window: u64,
    /// Durations, shortest first.
    lists: FxHashMap<u64, Vec<u64>>,
}

impl Tops {
    /// Whether a span of this duration enters its operation's list.
    pub(super) fn enters(&mut self, operation: u64, duration_ns: u64, now_ns: u64) -> bool {
        let window = now_ns / WINDOW_NS;
        if std::mem::replace(&mut self.window, window) != window {
            self.lists.clear();
        }
        if self.lists.len() >= OPERATIONS_MAX && !self.lists.contains_key(&operation) {
            return false;
        }
        let list = self.lists.entry(operation).or_default();
        if list.len() == PLACES {
            if duration_ns <= list[0] {
                return false;
            }
            list.remove(0);
        }
        let place = list.partition_point(|known| *known < duration_ns);
        list.insert(place, duration_ns);
        true
    }
}
