//! What a service of ours does with a request besides asking others, and what goes wrong with it.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock;

/// What one request costs and causes. Durations are microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Behaviour {
    /// Waited for, as for a disk.
    pub wait_us: u64,
    /// Computed, on a CPU.
    pub compute_us: u64,
    /// Waited for while a lock of the whole process is held.
    pub locked_us: u64,
    /// Keys asked of Redis.
    pub calls: u32,
    /// Of a hundred requests so many fail.
    pub failing_percent: u64,
    /// Of a thousand requests so many wait besides.
    pub slow_per_mille: u64,
    /// For so long.
    pub slow_us: u64,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            wait_us: 0,
            compute_us: 0,
            locked_us: 0,
            calls: 1,
            failing_percent: 0,
            slow_per_mille: 0,
            slow_us: 0,
        }
    }
}

/// The lock of the whole process.
static LOCK: Mutex<()> = Mutex::new(());

/// Requests of the whole process so far.
static SERVED: AtomicU64 = AtomicU64::new(0);

impl Behaviour {
    /// Whether the request of this number waits besides: one in the middle of a thousand first.
    const fn is_slow(&self, number: u64) -> bool {
        // 379 and 1000 have no common divisor: they are spread.
        number.wrapping_mul(379).wrapping_add(500) % 1000 < self.slow_per_mille
    }

    /// Spends the time.
    pub fn spend(&self) {
        if self.locked_us > 0 {
            let _held = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
            thread::sleep(Duration::from_micros(self.locked_us));
        }
        if self.wait_us > 0 {
            thread::sleep(Duration::from_micros(self.wait_us));
        }
        if self.is_slow(SERVED.fetch_add(1, Ordering::Relaxed)) {
            thread::sleep(Duration::from_micros(self.slow_us));
        }
        // CPU time, not time: a process that gets no CPU computes no faster for it.
        let until_ns = clock::thread_cpu_ns() + self.compute_us * 1_000;
        let mut sum = 0_u64;
        while self.compute_us > 0 && clock::thread_cpu_ns() < until_ns {
            sum = black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
    }

    /// Whether the request of this number fails.
    pub const fn fails(&self, number: u64) -> bool {
        // 37 and 100 have no common divisor: failures are spread.
        number.wrapping_mul(37) % 100 < self.failing_percent
    }
}

#[cfg(test)]
mod tests {
    use super::Behaviour;

    #[test]
    fn of_a_hundred_requests_as_many_fail_as_were_asked_for() {
        for failing_percent in [0, 1, 20, 100] {
            let behaviour = Behaviour { failing_percent, ..Behaviour::default() };
            let failed = (500..600).filter(|number| behaviour.fails(*number)).count();
            assert_eq!(failed as u64, failing_percent);
        }
    }

    #[test]
    fn of_a_thousand_requests_as_many_are_slow_as_were_asked_for() {
        for slow_per_mille in [0, 1, 10, 500, 1000] {
            let behaviour = Behaviour { slow_per_mille, ..Behaviour::default() };
            let slow = (0..1000).filter(|number| behaviour.is_slow(*number)).count();
            assert_eq!(slow as u64, slow_per_mille);
        }
    }
}
