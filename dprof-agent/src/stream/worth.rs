//! How many payload bytes of each call a socket is worth, in few classes, so that it changes seldom.
//!
//! What a reader would get wrong: a parser's wish is not all. Where messages are large their insides are passed over
//! by arithmetic, and bulk data captured whole would push out of the ring what others have to say.

use dprof_common::limits::{PAYLOAD_BYTES_BUSY, PAYLOAD_BYTES_MAX};

/// Limits that are asked for.
const CLASSES: [u32; 6] = [0, 256, 1024, 4096, BULK, START];

/// What a new socket gets, and the most that a call gives.
pub(crate) const START: u32 = PAYLOAD_BYTES_MAX as u32;

/// What a socket gets whose last call beyond this had messages of more than [`BULK_MESSAGE_BYTES`] on average.
const BULK: u32 = PAYLOAD_BYTES_BUSY as u32;

/// Far above a pipelined command; a value of this size in a call of many is still seen whole.
const BULK_MESSAGE_BYTES: u64 = 4096;

/// What was asked for, and what the last large call was like.
#[derive(Debug)]
pub(crate) struct Worth {
    limit: u32,
    is_bulk: bool,
}

impl Worth {
    /// Of a new socket.
    pub(crate) const fn new() -> Self {
        Self { limit: START, is_bulk: false }
    }

    /// A call of `size` bytes gave `n_messages`.
    #[inline]
    pub(crate) fn judge(&mut self, size: u64, n_messages: usize) {
        if size > u64::from(BULK) {
            self.is_bulk = size / (n_messages as u64).max(1) > BULK_MESSAGE_BYTES;
        }
    }

    /// The limit to ask for, if it is another one now; `wanted` by whoever reads the bytes.
    pub(crate) fn changed(&mut self, wanted: u32) -> Option<u32> {
        let wanted = if self.is_bulk { wanted.min(BULK) } else { wanted };
        let class = CLASSES.into_iter().find(|class| *class >= wanted).unwrap_or(START);
        (std::mem::replace(&mut self.limit, class) != class).then_some(class)
    }
}

#[cfg(test)]
mod tests {
    use super::{BULK, START, Worth};

    /// Calls (bytes, messages) of which all that can be had is wanted; the limits that are asked for.
    #[track_caller]
    fn check(calls: &[(u64, usize)], expected: &[u32]) {
        let mut worth = Worth::new();
        let asked: Vec<u32> = calls
            .iter()
            .filter_map(|(size, n_messages)| {
                worth.judge(*size, *n_messages);
                worth.changed(START)
            })
            .collect();
        assert_eq!(asked, expected, "{calls:?}");
    }

    #[test]
    fn many_small_messages_in_a_large_call_keep_all_of_it() {
        check(&[(30, 1), (64_000, 1600), (16_320, 3)], &[]);
    }

    #[test]
    fn large_messages_cost_a_part_of_it_until_a_large_call_has_small_ones_again() {
        check(&[(1 << 20, 1), (1 << 20, 0), (30, 1), (64_000, 1600)], &[BULK, START]);
    }

    #[test]
    fn a_call_that_fits_the_smaller_limit_says_nothing() {
        check(&[(u64::from(BULK), 0), (u64::from(BULK) + 1, 0)], &[BULK]);
    }

    #[test]
    fn a_smaller_wish_is_rounded_up_to_a_class() {
        let mut worth = Worth::new();
        assert_eq!(
            [1000, 1024, 1, 0].map(|wanted| worth.changed(wanted)),
            [Some(1024), None, Some(256), Some(0)]
        );
    }
}
