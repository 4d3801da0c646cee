//! A token bucket per operation: an error storm in one must not fill the store, nor use up what another may keep.

use rustc_hash::FxHashMap;

const SECOND_NS: f64 = 1e9;

/// Operations with a bucket of their own; what comes beyond shares one.
const OPERATIONS_MAX: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    filled_ns: u64,
}

/// All buckets. Each holds a second's worth, at least one.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    buckets: FxHashMap<u64, Bucket>,
}

impl Budgets {
    /// Whether one more may be kept for this operation, at `per_s` a second.
    pub(super) fn take(&mut self, operation: u64, per_s: f64, now_ns: u64) -> bool {
        let is_known = self.buckets.contains_key(&operation) || self.buckets.len() < OPERATIONS_MAX;
        let size = per_s.max(1.0);
        let bucket = self
            .buckets
            .entry(if is_known { operation } else { 0 })
            .or_insert(Bucket { tokens: size, filled_ns: now_ns });
        let passed_s = now_ns.saturating_sub(bucket.filled_ns) as f64 / SECOND_NS;
        bucket.tokens = (bucket.tokens + passed_s * per_s).min(size);
        bucket.filled_ns = bucket.filled_ns.max(now_ns);
        if per_s <= 0.0 || bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}
