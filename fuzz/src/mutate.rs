//! A bounded loop of mutations, the same for the same seed on every machine. It does not see coverage; it makes up
//! for that by seeds and words of the grammar, and by speed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::Target;

/// Longest input, bytes: enough for a conversation.
const INPUT_BYTES_MAX: usize = 2048;

/// Inputs that are mutated further.
const POOL_MAX: usize = 512;

/// xorshift64* (Vigna 2016).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `n`, which is not 0.
    pub const fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Runs `target` `executions` times on mutations of its seeds. The error names the input that failed.
pub fn run(target: &Target, executions: u64, seed: u64) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut pool = (target.seeds)();
    for input in &pool {
        judge(target, input)?;
    }
    let mut input = Vec::new();
    for n in 0..executions {
        input.clone_from(&pool[random.below(pool.len())]);
        for _ in 0..=random.below(4) {
            mutate(&mut input, &mut random, target.words, &pool);
        }
        input.truncate(INPUT_BYTES_MAX);
        judge(target, &input)?;
        // Now and then a mutation becomes a seed itself: changes add up.
        if n % 64 == 0 {
            if pool.len() < POOL_MAX {
                pool.push(input.clone());
            } else {
                let idx = POOL_MAX / 4 + random.below(POOL_MAX * 3 / 4);
                pool[idx].clone_from(&input);
            }
        }
    }
    Ok(())
}

fn judge(target: &Target, input: &[u8]) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input)))
        .map_err(|_| format!("{} fails on b\"{}\"", target.name, input.escape_ascii()))
}

fn mutate(input: &mut Vec<u8>, random: &mut Random, words: &[&[u8]], pool: &[Vec<u8>]) {
    let at = random.below(input.len() + 1);
    let end = (at + 1 + random.below(16)).min(input.len());
    match random.below(9) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.next() as u8,
        2 => input.insert(at, random.next() as u8),
        3 if at < end => {
            input.drain(at..end);
        }
        4 if at < end => {
            let part = input[at..end].to_vec();
            input.splice(at..at, part);
        }
        5 => {
            let other = &pool[random.below(pool.len())];
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        6 if at < input.len() => input[at] = b"0123456789"[random.below(10)],
        _ if !words.is_empty() => {
            let word = words[random.below(words.len())];
            input.splice(at..at, word.iter().copied());
        }
        _ => input.push(random.next() as u8),
    }
}
