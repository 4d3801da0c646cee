//! A quantile sketch of durations with 1 % relative error.
//!
//! DDSketch (Masson, Rim, Lee: "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
//! guarantees", VLDB 2019): value v falls into bucket ⌈log_γ v⌉ with γ = (1+α)/(1-α); any value of a bucket is
//! within α of its middle. Buckets of two sketches with the same γ add up, so the merge of all agents' sketches
//! equals the sketch of all values. Our own 100 lines rather than a crate because the bytes are a stored format.

use std::fmt;
use std::sync::LazyLock;

/// Relative error α of every quantile.
const RELATIVE_ERROR: f64 = 0.01;

/// First byte of the encoding.
const VERSION: u8 = 1;

/// Highest bucket: 2^64 ns lies below it, so hostile bytes cannot make a large sketch.
const BUCKET_MAX: usize = 2300;

/// Counts per logarithmic bucket. Values are nanoseconds, but any `u64` works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sketch {
    /// Bucket index of `counts[0]`.
    first: usize,
    /// Dense: latencies of one operation span a few hundred neighbouring buckets.
    counts: Vec<u64>,
}

/// The bytes are not a sketch of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SketchDecodeError;

impl fmt::Display for SketchDecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the latency sketch is damaged or of a newer version")
    }
}

impl std::error::Error for SketchDecodeError {}

fn ln_gamma() -> f64 {
    ((1.0 + RELATIVE_ERROR) / (1.0 - RELATIVE_ERROR)).ln()
}

/// The definition; 0 and 1 share bucket 0: a duration below 2 ns does not occur.
fn defined_bucket(value: u64) -> usize {
    if value <= 1 { 0 } else { ((value as f64).ln() / ln_gamma()).ceil() as usize }
}

/// Leading bits of a value, after the first, that choose where the search for its bucket begins: a 32nd of an octave
/// has two or three buckets.
const LEADING_BITS: u32 = 5;
/// Values below this have their bucket looked up: four hours as nanoseconds, and whole numbers that a float holds.
const LOOKED_UP_BELOW: u64 = 1 << 44;

/// Buckets of values up to [`LOOKED_UP_BELOW`] without a logarithm.
struct Lookup {
    /// The largest value of each bucket.
    largest: Vec<u64>,
    /// By place of the highest bit and the bits after it: the bucket of the smallest such value.
    first: Vec<u16>,
}

static LOOKUP: LazyLock<Lookup> = LazyLock::new(Lookup::new);

impl Lookup {
    fn new() -> Self {
        let n_buckets = defined_bucket(LOOKED_UP_BELOW) + 1;
        let largest = |bucket: usize| {
            let near = (bucket as f64 * ln_gamma()).exp() as u64;
            (near.saturating_sub(1)..=near + 1).rev().find(|value| defined_bucket(*value) <= bucket)
        };
        let largest = (0..n_buckets).map(|bucket| largest(bucket).unwrap_or(0)).collect();
        let steps = LOOKED_UP_BELOW.trailing_zeros() << LEADING_BITS;
        let smallest = |step: u32| {
            let (octave, leading) = (step >> LEADING_BITS, u64::from(step & ((1 << LEADING_BITS) - 1)));
            (1_u64 << octave) | ((leading << octave) >> LEADING_BITS)
        };
        let first = (0..steps).map(|step| defined_bucket(smallest(step)) as u16).collect();
        Self { largest, first }
    }
}

/// The bucket of a value.
fn bucket(value: u64) -> usize {
    if value <= 1 || value >= LOOKED_UP_BELOW {
        return defined_bucket(value);
    }
    let octave = value.ilog2();
    let leading = ((value << LEADING_BITS) >> octave) & ((1 << LEADING_BITS) - 1);
    let mut bucket = usize::from(LOOKUP.first[(octave << LEADING_BITS) as usize | leading as usize]);
    while LOOKUP.largest[bucket] < value {
        bucket += 1;
    }
    bucket
}

/// The value within α of all values of the bucket.
fn value(bucket: usize) -> u64 {
    if bucket == 0 {
        return 0;
    }
    let gamma = (1.0 + RELATIVE_ERROR) / (1.0 - RELATIVE_ERROR);
    (2.0 * (bucket as f64 * ln_gamma()).exp() / (gamma + 1.0)).round() as u64
}

impl Sketch {
    /// An empty sketch.
    pub const fn new() -> Self {
        Self { first: 0, counts: Vec::new() }
    }

    /// Counts one value.
    pub fn add(&mut self, value: u64) {
        self.add_count(bucket(value), 1);
    }

    /// Counts `n` equal values: a sampled value stands for as many.
    pub fn add_many(&mut self, value: u64, n: u64) {
        if n > 0 {
            self.add_count(bucket(value), n);
        }
    }

    /// Each value that was counted, within 1 %, with how often; smallest first.
    pub fn values(&self) -> impl Iterator<Item = (u64, u64)> {
        self.counts.iter().enumerate().filter(|(_, n)| **n > 0).map(|(idx, n)| (value(self.first + idx), *n))
    }

    fn add_count(&mut self, bucket: usize, count: u64) {
        if self.counts.is_empty() {
            self.first = bucket;
            self.counts.push(0);
        } else if bucket < self.first {
            let missing = self.first - bucket;
            self.counts.splice(0..0, std::iter::repeat_n(0, missing));
            self.first = bucket;
        } else if bucket >= self.first + self.counts.len() {
            self.counts.resize(bucket - self.first + 1, 0);
        }
        self.counts[bucket - self.first] += count;
    }

    /// How many values were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The value at quantile `q` (0 to 1) within 1 %; `None` when empty.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = (q.clamp(0.0, 1.0) * (count - 1) as f64).floor() as u64;
        let mut below = 0;
        for (idx, n) in self.counts.iter().enumerate() {
            below += n;
            if below > rank {
                return Some(value(self.first + idx));
            }
        }
        None
    }

    /// Adds the counts of `other`.
    pub fn merge(&mut self, other: &Self) {
        for (idx, n) in other.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            self.add_count(other.first + idx, *n);
        }
    }

    /// The stored form: version byte, then LEB128 pairs (distance to the last bucket with a count, count).
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        let mut last = 0;
        for (idx, n) in self.counts.iter().enumerate().filter(|(_, n)| **n > 0) {
            put_varint(&mut bytes, (self.first + idx - last) as u64);
            put_varint(&mut bytes, *n);
            last = self.first + idx;
        }
        bytes
    }

    /// Reads [`Sketch::encode`]'s bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, SketchDecodeError> {
        let Some((&VERSION, mut rest)) = bytes.split_first() else { return Err(SketchDecodeError) };
        let mut sketch = Self::new();
        let mut bucket = 0_usize;
        while !rest.is_empty() {
            let distance = take_varint(&mut rest)?;
            let count = take_varint(&mut rest)?;
            bucket = usize::try_from(distance)
                .ok()
                .and_then(|distance| bucket.checked_add(distance))
                .filter(|bucket| *bucket <= BUCKET_MAX)
                .ok_or(SketchDecodeError)?;
            sketch.add_count(bucket, count);
        }
        Ok(sketch)
    }
}

pub(super) fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

pub(super) fn take_varint(bytes: &mut &[u8]) -> Result<u64, SketchDecodeError> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(SketchDecodeError)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(SketchDecodeError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(values: impl Iterator<Item = u64>) {
        let mut values: Vec<u64> = values.collect();
        let mut sketch = Sketch::new();
        for value in &values {
            sketch.add(*value);
        }
        values.sort_unstable();
        for q in [0.0, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let exact = values[(q * (values.len() - 1) as f64).floor() as usize] as f64;
            let estimate = sketch.quantile(q).expect("not empty") as f64;
            let error = (estimate - exact).abs();
            assert!(error <= exact * RELATIVE_ERROR + 1.0, "q {q}: {estimate} for {exact}");
        }
        assert_eq!(Sketch::decode(&sketch.encode()), Ok(sketch));
    }

    #[test]
    fn quantiles_are_within_one_percent() {
        check([5].into_iter());
        check(1..10_000);
        check((0..5_000_u64).map(|i| (i * 2_654_435_761) % 1_000_000_007));
        check([0, 1, 2, u64::MAX].into_iter());
    }

    #[test]
    fn looked_up_buckets_are_the_defined_ones() {
        let steps = (0..64_u32 * 64).map(|step| {
            let (octave, leading) = (step / 64, u64::from(step % 64));
            (1_u64 << octave) | ((u128::from(leading) << octave >> 6) as u64)
        });
        let edges = LOOKUP.largest.iter().flat_map(|value| [value.saturating_sub(1), *value, value + 1]);
        let many = (0..200_000_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (n % 64));
        for value in steps.chain(edges).chain(many).chain([0, 1, u64::MAX, LOOKED_UP_BELOW]) {
            assert_eq!(bucket(value), defined_bucket(value), "{value}");
        }
    }

    #[test]
    fn the_merge_of_sketches_is_the_sketch_of_all_values() {
        let (mut left, mut right, mut all) = (Sketch::new(), Sketch::new(), Sketch::new());
        for value in 0..10_000_u64 {
            if value % 3 == 0 {
                left.add(value * value);
            } else {
                right.add(value * 7);
            }
            all.add(if value % 3 == 0 { value * value } else { value * 7 });
        }
        left.merge(&right);
        assert_eq!(left.count(), all.count());
        assert_eq!(left.quantile(0.5), all.quantile(0.5));
        assert_eq!(left.encode(), all.encode());
    }

    #[test]
    fn values_come_back_within_one_percent_with_their_counts() {
        let mut sketch = Sketch::new();
        sketch.add_many(1_000, 3);
        sketch.add_many(5_000, 0);
        sketch.add(2_000_000);
        let values: Vec<(u64, u64)> = sketch.values().collect();
        assert_eq!(values.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [3, 1]);
        assert!(values[0].0.abs_diff(1_000) <= 10 && values[1].0.abs_diff(2_000_000) <= 20_000);
    }

    #[test]
    fn damaged_bytes_are_refused_not_obeyed() {
        for bytes in [&[][..], &[9], &[1, 0x80], &[1, 5], &[1, 0xff, 0xff, 0x7f, 1], &[1; 40]] {
            let decoded = Sketch::decode(bytes);
            assert!(decoded.is_err() || decoded.is_ok_and(|s| s.counts.len() <= BUCKET_MAX + 1));
        }
        assert_eq!(Sketch::new().quantile(0.5), None);
    }
}
