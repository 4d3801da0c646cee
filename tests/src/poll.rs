//! Waiting for something to become true, with a deadline: nothing else here waits.

use std::sync::LazyLock;
use std::time::Duration;
use std::{env, thread};

use anyhow::{Result, bail};

use crate::clock;

/// Pause between two looks: short against every start-up time, long against a look.
const PAUSE: Duration = Duration::from_millis(5);

/// How many times longer everything may take, by `DPROF_TEST_PATIENCE`: emulated machines are slow. Looks are as many.
pub static PATIENCE: LazyLock<u32> =
    LazyLock::new(|| env::var("DPROF_TEST_PATIENCE").ok().and_then(|times| times.parse().ok()).unwrap_or(1));

/// Looks until `look` gives something, at most for `within`. `what` completes "not within 5 s: ".
pub fn until<T>(within: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let within = within * *PATIENCE;
    let deadline = clock::now() + within;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if clock::now() >= deadline {
            bail!("not within {} s: {what}", within.as_secs_f64());
        }
        thread::sleep(PAUSE * *PATIENCE);
    }
}
