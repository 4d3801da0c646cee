//! Keys of one operation → those that were named most: SpaceSaving (Metwally, Agrawal, El Abbadi, ICDT 2005).
//!
//! What a reader would get wrong: the table is never searched for the least count by itself. Counts only grow, so the
//! next least one is found by going on from where the last was, and a whole turn raises the least.

use std::hash::BuildHasher as _;

use dprof_common::model::{HotKey, KeyStats, Sketch};
use rustc_hash::FxBuildHasher;

/// Keys counted at once. A key that makes up more than 1/64 of all is surely among them, and its count is at most
/// 1/64 of all too high. About 8 KiB with keys of 100 bytes.
const COUNTERS: usize = 64;

/// Keys given out: those that a page shows.
const GIVEN_MAX: usize = 20;

/// A key is given out if it surely was one of this many.
const SHARE_MIN: u64 = 1000;

/// Counters of the most frequent keys, and the sizes of values.
#[derive(Debug)]
pub(crate) struct HeavyHitters {
    /// Of each counter's key.
    hashes: [u32; COUNTERS],
    counts: [u32; COUNTERS],
    errors: [u32; COUNTERS],
    keys: Vec<String>,
    /// Where a key of this hash was last found.
    hints: [u8; 256],
    /// Least count, and the counter from which on the next one that has it is looked for.
    least: u32,
    cursor: usize,
    total: u64,
    sizes: Sketch,
}

impl HeavyHitters {
    pub(crate) const fn new() -> Self {
        Self {
            hashes: [0; COUNTERS],
            counts: [0; COUNTERS],
            errors: [0; COUNTERS],
            keys: Vec::new(),
            hints: [0; 256],
            least: 0,
            cursor: 0,
            total: 0,
            sizes: Sketch::new(),
        }
    }

    /// A request names `key`.
    #[inline]
    pub(crate) fn add(&mut self, key: &str) {
        self.total += 1;
        let hash = FxBuildHasher.hash_one(key);
        let (tag, hint) = ((hash >> 32) as u32, usize::from((hash >> 24) as u8));
        let hinted = usize::from(self.hints[hint]);
        if self.hashes[hinted] == tag && self.keys.get(hinted).is_some_and(|known| known == key) {
            self.counts[hinted] = self.counts[hinted].saturating_add(1);
        } else {
            self.find(key, tag, hint);
        }
    }

    /// A request or its answer carries a value of this size.
    #[inline]
    pub(crate) fn add_size(&mut self, bytes: u32) {
        self.sizes.add(u64::from(bytes));
    }

    fn find(&mut self, key: &str, tag: u32, hint: usize) {
        let known = (0..self.keys.len()).find(|&at| self.hashes[at] == tag && self.keys[at] == key);
        let at = match known {
            Some(at) => {
                self.counts[at] = self.counts[at].saturating_add(1);
                at
            }
            None if self.keys.len() < COUNTERS => {
                self.keys.push(key.to_owned());
                let at = self.keys.len() - 1;
                self.counts[at] = 1;
                at
            }
            None => {
                let at = self.least();
                self.errors[at] = self.counts[at];
                self.counts[at] = self.counts[at].saturating_add(1);
                self.keys[at].clear();
                self.keys[at].push_str(key);
                at
            }
        };
        self.hashes[at] = tag;
        self.hints[hint] = at as u8;
    }

    /// A counter with the least count.
    fn least(&mut self) -> usize {
        if let Some(at) = (self.cursor..COUNTERS).find(|&at| self.counts[at] == self.least) {
            self.cursor = at + 1;
            return at;
        }
        self.least = self.counts.iter().copied().min().unwrap_or(0);
        let at = self.counts.iter().position(|count| *count == self.least).unwrap_or(0);
        self.cursor = at + 1;
        at
    }

    /// What was counted, as it is stored.
    pub(crate) fn into_stats(self) -> KeyStats {
        // Where a counter was free, every key has one.
        let bound =
            if self.keys.len() < COUNTERS { 0 } else { self.counts.iter().copied().min().unwrap_or(0) };
        let counted = self.keys.into_iter().zip(self.counts).zip(self.errors);
        let keys = counted
            .map(|((key, count), error)| HotKey { key, count: u64::from(count), error: u64::from(error) })
            .collect();
        let mut stats = KeyStats { total: self.total, bound: u64::from(bound), keys, sizes: self.sizes };
        let least = stats.total / SHARE_MIN;
        stats.top(COUNTERS);
        let worth = stats.keys.iter().take(GIVEN_MAX).take_while(|key| key.at_least() > least).count();
        stats.top(worth);
        stats
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustc_hash::FxHashMap;

    use super::*;

    fn counted(keys: &[String]) -> KeyStats {
        let mut hitters = HeavyHitters::new();
        keys.iter().for_each(|key| hitters.add(key));
        hitters.into_stats()
    }

    #[test]
    fn few_keys_are_counted_exactly() {
        let keys: Vec<String> = (0..100).map(|n| format!("key{}", n % 3)).collect();
        let stats = counted(&keys);
        let found: Vec<_> = stats.keys.iter().map(|key| (key.key.as_str(), key.count, key.error)).collect();
        assert_eq!(found, [("key0", 34, 0), ("key1", 33, 0), ("key2", 33, 0)]);
        assert_eq!((stats.total, stats.bound), (100, 0));
    }

    #[test]
    fn a_hot_key_stands_out_of_many_cold_ones() {
        let keys: Vec<String> =
            (0..100_000).map(|n| if n % 10 == 0 { "hot".to_owned() } else { format!("cold{n}") }).collect();
        let stats = counted(&keys);
        let hot = &stats.keys[0];
        assert_eq!(hot.key, "hot");
        assert!(hot.at_least() <= 10_000 && hot.count >= 10_000 && hot.error <= 100_000 / 64, "{hot:?}");
        assert_eq!(stats.keys.len(), 1, "{:?}", stats.keys);
    }

    proptest! {
        /// Parts of a stream, merged: whatever is said of a key is true.
        #[test]
        fn bounds_hold_however_the_stream_is_cut(
            numbers in prop::collection::vec(prop_oneof![0u32..4, 0u32..300], 0..3000),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
            limit in 1usize..30,
        ) {
            let keys: Vec<String> = numbers.iter().map(|n| format!("key{n}")).collect();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(keys.len() + 1)).collect();
            at.extend([0, keys.len()]);
            at.sort_unstable();
            let mut sum = KeyStats::default();
            for pair in at.windows(2) {
                sum.merge(&counted(&keys[pair[0]..pair[1]]));
            }
            sum.top(limit);
            let mut truth: FxHashMap<&str, u64> = FxHashMap::default();
            for key in &keys {
                *truth.entry(key).or_default() += 1;
            }
            prop_assert_eq!(sum.total, keys.len() as u64);
            for key in &sum.keys {
                let n = truth.remove(key.key.as_str()).unwrap_or(0);
                prop_assert!(key.at_least() <= n && n <= key.count, "{:?} was {}", key, n);
            }
            prop_assert!(truth.values().all(|n| *n <= sum.bound), "{} {:?}", sum.bound, truth);
        }
    }
}
