//! A hash of content that is the same however the bytes were cut: eight bytes at a time, the rest carried over.
//!
//! Made for finding equal messages among those open in one process at the same time, not against attackers.

/// Multiplier of wyhash (public domain): odd, half of its bits set.
const K: u64 = 0xa076_1d64_78bd_642f;

/// Hashes a message bit by bit.
#[derive(Clone, Copy, Debug)]
pub(super) struct ContentHasher {
    state: u64,
    /// Bytes that do not fill a word yet, little endian; how many is `len % 8`.
    tail: u64,
    len: u64,
}

/// The hash of two things that have one each.
pub(super) const fn combine(first: u64, second: u64) -> u64 {
    fold(first ^ K.rotate_left(16), second ^ K)
}

/// 64×64 → 128 bits, folded: every input bit reaches every output bit.
const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128).wrapping_mul(b as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

impl ContentHasher {
    /// Of nothing.
    pub(super) const fn new() -> Self {
        Self { state: K, tail: 0, len: 0 }
    }

    /// More bytes.
    #[inline]
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        let mut filled = (self.len % 8) as u32;
        self.len += bytes.len() as u64;
        if filled > 0 {
            while let Some((&byte, rest)) = bytes.split_first() {
                self.tail |= u64::from(byte) << (8 * filled);
                filled += 1;
                bytes = rest;
                if filled == 8 {
                    self.state = fold(self.state ^ self.tail, K);
                    self.tail = 0;
                    break;
                }
            }
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.state = fold(self.state ^ u64::from_le_bytes(*word), K);
        }
        for (idx, &byte) in rest.iter().enumerate() {
            self.tail |= u64::from(byte) << (8 * idx);
        }
    }

    /// A number between parts, so that `ab`, `c` and `a`, `bc` differ.
    #[inline]
    pub(super) fn number(&mut self, number: u64) {
        self.state = fold(self.state ^ number, K.rotate_left(32));
    }

    /// Starts anew.
    pub(super) fn reset(&mut self) {
        *self = Self::new();
    }

    /// The hash of all so far.
    pub(super) const fn finish(&self) -> u64 {
        fold(fold(self.state ^ self.tail, K) ^ self.len, K)
    }
}

/// The hash of these bytes.
pub(super) fn content_hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = ContentHasher::new();
    hasher.update(bytes);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_of(parts: &[&[u8]]) -> u64 {
        let mut hasher = ContentHasher::new();
        for part in parts {
            hasher.update(part);
        }
        hasher.finish()
    }

    #[test]
    fn cuts_do_not_matter_and_every_byte_does() {
        let content: Vec<u8> = (0..40u8).map(|n| n.wrapping_mul(7)).collect();
        let whole = hash_of(&[&content]);
        for cut in 0..content.len() {
            for second in cut..content.len() {
                let parts = [&content[..cut], &content[cut..second], &content[second..]];
                assert_eq!(hash_of(&parts), whole, "cuts {cut}, {second}");
            }
            let mut other = content.clone();
            other[cut] ^= 1;
            assert_ne!(hash_of(&[&other]), whole, "byte {cut}");
            assert_ne!(hash_of(&[&content[..cut]]), whole, "length {cut}");
        }
    }
}
