//! One event buffer per CPU, in memory that the programs write and the agent has mapped: where a record lies.
//!
//! The problem: the kernel's ring has one lock and one head for all CPUs, and what is put together from several pieces
//! is copied into it. The idea: each CPU has a buffer of its own, whose records are written where they stay; as perf's
//! rings and Linux's ftrace have it. What a reader would get wrong: the buffers have no order among each other; the
//! agent merges them by the times that records hold (`dprof-agent/src/source/cpu_buffers.rs`).
//!
//! A position counts all bytes that a buffer ever held. A buffer is a power of two of blocks, a record lies in one
//! block: where less than the largest record is left of one, the next record is in the next block. Both sides know that
//! rule, so nothing marks the gap.

/// Bytes of a block: an entry of the map `BLOCKS`.
pub const BLOCK_BYTES: usize = 64 * 1024;

/// Bytes of the largest record with its prefix. What is larger goes through the ring, where its size is what it costs.
pub const RECORD_BYTES_MAX: usize = 2048;

/// Before each record: its length in bytes, then how far it is from being a record at all (0, for alignment).
pub const PREFIX_BYTES: usize = 8;

/// Records begin at multiples of this.
pub const ALIGNMENT: usize = 8;

/// Fewest blocks of a CPU: one can be read while the next one is written.
pub const BLOCKS_MIN: u32 = 2;

/// Where a CPU's buffer is written and read: an entry of the map `CPU_BUFFERS`, two cache lines, one per side.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CpuBuffer {
    /// Position after the last record that is complete. Written by the programs of this CPU.
    pub written: u64,
    /// Non-zero: a program is writing. One that interrupts it takes the ring.
    pub busy: u64,
    /// The rest of the cache line.
    pub padding: [u64; 6],
    /// Position up to which all was read. Written by the agent.
    pub read: u64,
    /// The rest of the cache line.
    pub padding_after: [u64; 7],
}

const _: () = assert!(size_of::<CpuBuffer>() == 128);
const _: () = assert!(BLOCK_BYTES.is_power_of_two() && RECORD_BYTES_MAX < BLOCK_BYTES);

/// Offset in its block of the record that comes after `position`; 0 = it begins a block.
#[inline]
pub const fn offset(position: u64) -> usize {
    let at = position as usize & (BLOCK_BYTES - 1);
    if at > BLOCK_BYTES - RECORD_BYTES_MAX { 0 } else { at }
}

/// Position at which the record that comes after `position` begins.
#[inline]
pub const fn start(position: u64) -> u64 {
    let at = position & (BLOCK_BYTES as u64 - 1);
    if at > (BLOCK_BYTES - RECORD_BYTES_MAX) as u64 {
        (position | (BLOCK_BYTES as u64 - 1)) + 1
    } else {
        position
    }
}

/// Number of the block of a position, of a buffer of `blocks` (a power of two).
#[inline]
pub const fn block(position: u64, blocks: u32) -> u32 {
    (position / BLOCK_BYTES as u64) as u32 & (blocks - 1)
}

/// Position after a record of `bytes` that begins at `start`.
#[inline]
pub const fn end(start: u64, bytes: usize) -> u64 {
    start + ((PREFIX_BYTES + bytes).next_multiple_of(ALIGNMENT)) as u64
}

/// Whether the record that begins at `start` would write over what was not read: a block is begun once all that it held
/// has been.
#[inline]
pub const fn is_full(start: u64, read: u64, blocks: u32) -> bool {
    start & (BLOCK_BYTES as u64 - 1) == 0
        && start.wrapping_sub(read) > (blocks as u64 - 1) * BLOCK_BYTES as u64
}

/// Blocks per CPU such that all CPUs together hold about `bytes`.
#[cfg(feature = "user")]
pub fn blocks_per_cpu(bytes: u32, cpus: u32) -> u32 {
    let blocks = bytes / BLOCK_BYTES as u32 / cpus.max(1);
    // The power of two below.
    if blocks < BLOCKS_MIN { BLOCKS_MIN } else { 1 << blocks.ilog2() }
}

#[cfg(all(test, feature = "user"))]
mod tests {
    use super::*;

    #[test]
    fn a_record_lies_in_one_block_and_both_sides_find_it_there() {
        let block_bytes = BLOCK_BYTES as u64;
        let last = block_bytes - RECORD_BYTES_MAX as u64;
        for (position, expected) in
            [(0, 0), (8, 8), (last, last), (last + 8, block_bytes), (block_bytes, block_bytes)]
        {
            assert_eq!(start(position), expected, "{position}");
            assert_eq!(offset(position) as u64, expected % block_bytes, "{position}");
        }
        // Records of every size, round and round: none reaches beyond its block, none lies before the last.
        let mut position = 0;
        for n in 0..100_000_usize {
            let at = start(position);
            let bytes = n % (RECORD_BYTES_MAX - PREFIX_BYTES + 1);
            assert!(at >= position && at.is_multiple_of(ALIGNMENT as u64));
            position = end(at, bytes);
            assert_eq!(at / block_bytes, (position - 1) / block_bytes);
        }
    }

    #[test]
    fn memory_is_shared_out_among_cpus() {
        for (bytes, cpus, expected) in
            [(4 << 20, 2, 32), (4 << 20, 3, 16), (4 << 20, 64, BLOCKS_MIN), (4096, 1, BLOCKS_MIN)]
        {
            assert_eq!(blocks_per_cpu(bytes, cpus), expected, "{bytes} over {cpus}");
        }
    }
}
