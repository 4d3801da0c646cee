//! The keys that requests named most, with bounds on each count, and how large values were.
//!
//! Counted by SpaceSaving (Metwally, Agrawal, El Abbadi: "Efficient computation of frequent and top-k elements in data
//! streams", ICDT 2005): a listed key was seen at most `count` and at least `count - error` times, and a key that is
//! not listed at most `bound` times. Summaries add up and keep that promise, the bounds adding up as well (Agarwal and
//! others: "Mergeable summaries", PODS 2012).
//!
//! What a reader would get wrong: the keys are as redaction left them. A hashed key is a key here.

use super::Sketch;
use super::sketch::{SketchDecodeError, put_varint, take_varint};

/// First byte of the encoding.
const VERSION: u8 = 1;

/// Keys in one stored summary at most: hostile bytes cannot make a large one.
pub const HOT_KEYS_MAX: usize = 64;

/// Longest key in a stored summary, bytes: statements are shorter.
const KEY_BYTES_MAX: usize = 1024;

/// A key and how often it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HotKey {
    /// The key as it may be stored.
    pub key: String,
    /// At most this often.
    pub count: u64,
    /// At least `count - error` times.
    pub error: u64,
}

impl HotKey {
    /// At least this often.
    pub const fn at_least(&self) -> u64 {
        self.count.saturating_sub(self.error)
    }
}

/// Keys and values of the requests of one rollup.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyStats {
    /// Keys named, repetitions counted.
    pub total: u64,
    /// A key that is not listed was seen at most this often.
    pub bound: u64,
    /// The most frequent keys, in no order.
    pub keys: Vec<HotKey>,
    /// Sizes of values written or read, bytes.
    pub sizes: Sketch,
}

impl KeyStats {
    /// Adds another part's counts. All keys of both stay listed: see [`KeyStats::top`].
    pub fn merge(&mut self, other: &Self) {
        for mine in &mut self.keys {
            let theirs = other.keys.iter().find(|theirs| theirs.key == mine.key);
            let (count, error) =
                theirs.map_or((other.bound, other.bound), |theirs| (theirs.count, theirs.error));
            mine.count += count;
            mine.error += error;
        }
        let known = self.keys.len();
        for theirs in &other.keys {
            if !self.keys[..known].iter().any(|mine| mine.key == theirs.key) {
                let HotKey { key, count, error } = theirs.clone();
                self.keys.push(HotKey { key, count: count + self.bound, error: error + self.bound });
            }
        }
        self.total += other.total;
        self.bound += other.bound;
        self.sizes.merge(&other.sizes);
    }

    /// Keeps the `limit` keys that were surely seen most, most frequent first. What is dropped raises the bound.
    pub fn top(&mut self, limit: usize) {
        self.keys.sort_by(|a, b| (b.at_least(), &a.key).cmp(&(a.at_least(), &b.key)));
        if let Some(dropped) = self.keys.get(limit..) {
            self.bound = dropped.iter().map(|key| key.count).fold(self.bound, u64::max);
            self.keys.truncate(limit);
        }
    }

    /// The stored form: version byte, then LEB128 numbers, each string after its length. At most [`HOT_KEYS_MAX`]
    /// keys: those beyond raise the bound.
    pub fn encode(&self) -> Vec<u8> {
        if self.keys.len() > HOT_KEYS_MAX {
            let mut top = self.clone();
            top.top(HOT_KEYS_MAX);
            return top.encode();
        }
        let mut bytes = vec![VERSION];
        let sizes = self.sizes.encode();
        put_varint(&mut bytes, sizes.len() as u64);
        bytes.extend(sizes);
        for number in [self.total, self.bound, self.keys.len() as u64] {
            put_varint(&mut bytes, number);
        }
        for HotKey { key, count, error } in &self.keys {
            put_varint(&mut bytes, key.len() as u64);
            bytes.extend(key.bytes());
            put_varint(&mut bytes, *count);
            put_varint(&mut bytes, *error);
        }
        bytes
    }

    /// Reads [`KeyStats::encode`]'s bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, SketchDecodeError> {
        let Some((&VERSION, mut rest)) = bytes.split_first() else { return Err(SketchDecodeError) };
        let sizes = Sketch::decode(take(&mut rest, bytes.len())?)?;
        let (total, bound) = (take_varint(&mut rest)?, take_varint(&mut rest)?);
        let n = usize::try_from(take_varint(&mut rest)?).ok().filter(|n| *n <= HOT_KEYS_MAX);
        let mut keys = Vec::new();
        for _ in 0..n.ok_or(SketchDecodeError)? {
            let key =
                str::from_utf8(take(&mut rest, KEY_BYTES_MAX)?).map_err(|_| SketchDecodeError)?.to_owned();
            keys.push(HotKey { key, count: take_varint(&mut rest)?, error: take_varint(&mut rest)? });
        }
        if rest.is_empty() { Ok(Self { total, bound, keys, sizes }) } else { Err(SketchDecodeError) }
    }
}

/// A length, at most `max`, and so many bytes.
fn take<'a>(bytes: &mut &'a [u8], max: usize) -> Result<&'a [u8], SketchDecodeError> {
    let len = usize::try_from(take_varint(bytes)?).ok().filter(|len| *len <= max).ok_or(SketchDecodeError)?;
    let (taken, rest) = bytes.split_at_checked(len).ok_or(SketchDecodeError)?;
    *bytes = rest;
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(total: u64, bound: u64, keys: &[(&str, u64, u64)]) -> KeyStats {
        let keys =
            keys.iter().map(|&(key, count, error)| HotKey { key: key.to_owned(), count, error }).collect();
        let mut sizes = Sketch::new();
        sizes.add(total);
        KeyStats { total, bound, keys, sizes }
    }

    #[test]
    fn parts_add_up_with_their_bounds() {
        let mut sum = stats(100, 5, &[("a", 50, 0), ("b", 20, 3)]);
        sum.merge(&stats(10, 1, &[("b", 4, 1), ("c", 3, 0)]));
        sum.top(10);
        let mut expected = stats(110, 6, &[("a", 51, 1), ("b", 24, 4), ("c", 8, 5)]);
        expected.sizes.clone_from(&sum.sizes);
        assert_eq!((&sum, sum.sizes.count()), (&expected, 2));
        sum.top(1);
        assert_eq!((sum.keys.len(), sum.bound), (1, 24));
    }

    #[test]
    fn the_stored_form_comes_back_and_damage_is_refused() {
        let whole = stats(1000, 7, &[("user:42", 900, 2), ("", 1, 0), ("käse", 300, 300)]);
        let bytes = whole.encode();
        assert_eq!(KeyStats::decode(&bytes), Ok(whole));
        for len in 0..bytes.len() {
            assert_eq!(KeyStats::decode(&bytes[..len]), Err(SketchDecodeError), "{len} bytes");
        }
        assert_eq!(KeyStats::decode(&[&bytes[..], &[0]].concat()), Err(SketchDecodeError));
    }
}
