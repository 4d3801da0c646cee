//! Which ids a sealed chunk may hold: a Bloom filter in blocks of one cache line.
//!
//! Putze, Sanders, Singler: "Cache-, hash- and space-efficient Bloom filters" (WEA 2007): all bits of a key lie
//! in one block, so that a lookup reads 64 bytes of the file, and 200 chunks cost 200 small reads. Positions by
//! double hashing (Kirsch, Mitzenmacher: "Less hashing, same performance", ESA 2006). At 12 bits a key about
//! 1 % of foreign ids pass (tested); they cost opening a chunk for nothing.
//!
//! Each block carries a check of itself: a damaged one answers "maybe", never a wrong "no".

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a block.
pub(crate) const BLOCK_BYTES: usize = 64;
/// The first bytes hold the check.
const CHECK_BYTES: usize = 4;
const BLOCK_BITS: u64 = ((BLOCK_BYTES - CHECK_BYTES) * 8) as u64;
const BITS_PER_KEY: u64 = 12;
/// Bits set per key; ln 2 times the bits per key would be 8.3, fewer suit blocks that are unevenly full.
const PROBES: u64 = 7;

/// A filter being made.
pub(crate) struct FilterBuilder {
    blocks: Vec<[u8; BLOCK_BYTES]>,
}

/// splitmix64's finaliser, also of ids that are not hashes (adopted trace ids).
const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn block_of(key: u64, n_blocks: u64) -> u64 {
    ((u128::from(mix(key)) * u128::from(n_blocks)) >> 64) as u64
}

/// Byte and bit of each probe.
fn probes(key: u64) -> impl Iterator<Item = (usize, u8)> {
    let hash = mix(key ^ 0x6470_726f_6669_6c74);
    let (first, step) = (hash >> 32, (hash & 0xffff_ffff) | 1);
    (0..PROBES).map(move |i| {
        let bit = (first + i * step) % BLOCK_BITS;
        (CHECK_BYTES + (bit / 8) as usize, 1 << (bit % 8))
    })
}

fn check(block: &[u8; BLOCK_BYTES]) -> [u8; CHECK_BYTES] {
    checksum(&block[CHECK_BYTES..]).to_le_bytes()
}

/// FNV-1a folded to 32 bits: against damage, not against malice.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    (hash ^ (hash >> 32)) as u32
}

impl FilterBuilder {
    /// A filter for about `n_keys` keys.
    pub(crate) fn new(n_keys: u64) -> Self {
        let n_blocks = (n_keys * BITS_PER_KEY).div_ceil(BLOCK_BITS).max(1);
        Self { blocks: vec![[0; BLOCK_BYTES]; n_blocks as usize] }
    }

    /// Adds a key.
    pub(crate) fn insert(&mut self, key: u64) {
        let n_blocks = self.blocks.len() as u64;
        let block = &mut self.blocks[block_of(key, n_blocks) as usize];
        for (byte, bit) in probes(key) {
            block[byte] |= bit;
        }
    }

    /// The bytes to store.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        for block in &mut self.blocks {
            let sum = check(block);
            block[..CHECK_BYTES].copy_from_slice(&sum);
        }
        self.blocks.concat()
    }
}

/// Whether `key` may have been inserted into the filter of `n_blocks` blocks that starts at `offset` of `file`.
pub(crate) fn may_contain(file: &File, offset: u64, n_blocks: u64, key: u64) -> io::Result<bool> {
    let mut block = [0; BLOCK_BYTES];
    if n_blocks == 0 {
        return Ok(false);
    }
    file.read_exact_at(&mut block, offset + block_of(key, n_blocks) * BLOCK_BYTES as u64)?;
    Ok(block[..CHECK_BYTES] != check(&block) || probes(key).all(|(byte, bit)| block[byte] & bit != 0))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn stored(keys: impl Iterator<Item = u64>, n_keys: u64) -> (File, Vec<u8>) {
        let mut builder = FilterBuilder::new(n_keys);
        keys.for_each(|key| builder.insert(key));
        let bytes = builder.finish();
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&bytes).expect("room");
        (file, bytes)
    }

    #[test]
    fn every_key_is_found_and_few_others() {
        let n = 50_000_u64;
        let (file, bytes) = stored(0..n, n);
        let n_blocks = (bytes.len() / BLOCK_BYTES) as u64;
        for key in 0..n {
            assert!(may_contain(&file, 0, n_blocks, key).expect("reads"), "{key}");
        }
        let foreign = (n..2 * n).filter(|key| may_contain(&file, 0, n_blocks, *key).expect("reads")).count();
        assert!(foreign < n as usize * 15 / 1000, "{foreign} of {n} foreign keys pass");
    }

    #[test]
    fn a_damaged_block_says_maybe() {
        let (mut file, mut bytes) = stored([5].into_iter(), 1);
        bytes.fill(0);
        std::io::Seek::rewind(&mut file).expect("seeks");
        file.write_all(&bytes).expect("room");
        assert!(may_contain(&file, 0, 1, 6).expect("reads"));
        assert!(may_contain(&file, 1 << 20, 1, 6).is_err(), "cut off");
    }
}
