//! Requests of a process that share a key: their content, a part of it, an id that they carry.
//!
//! What a reader would get wrong: a list holds answered requests too, as long as the table keeps them.

use std::collections::VecDeque;

use super::matched::LastMatched;
use super::slab::Ref;

/// Requests with one key.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The newest, or the only one.
    pub(crate) newest: Ref,
    /// How many there are, answered ones included.
    pub(crate) n: u32,
    pub(super) key: u64,
    /// All of them in the order of reading, once there was more than one.
    pub(crate) ties: Option<Box<Ties>>,
}

/// Several requests with one key.
#[derive(Debug, Default)]
pub(crate) struct Ties {
    /// In the order of reading; some may be gone.
    pub(crate) requests: VecDeque<(u64, Ref)>,
    /// Per peer (0: any), the order number of the last request that was sent on.
    pub(crate) cursors: Vec<(u64, u64)>,
    /// Calls with their content whose reply was read, in that order; some may be matched or gone.
    pub(crate) replied: VecDeque<Ref>,
    /// The last ones whose reply was an answer.
    pub(crate) matched: LastMatched,
}

/// What a key is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum KeyKind {
    Content = 0x9e37_79b9_7f4a_7c15,
    Part = 0xbf58_476d_1ce4_e5b9,
    TraceId = 0x94d0_49bb_1331_11eb,
    RequestId = 0xd6e8_feb8_6659_fd93,
}

/// A key of a process: multiply-and-fold (wyhash's step), so that equal hashes in two processes differ.
pub(crate) fn key(kind: KeyKind, tgid: u32, hash: u64) -> u64 {
    let product = u128::from(hash ^ kind as u64) * u128::from((u64::from(tgid) << 1) ^ 0xa076_1d64_78bd_642f);
    (product as u64) ^ (product >> 64) as u64
}

/// A 128-bit id in 64 bits.
pub(crate) const fn fold(id: u128) -> u64 {
    (id as u64) ^ (id >> 64) as u64
}
