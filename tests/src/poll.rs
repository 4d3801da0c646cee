//! Waiting for something to become true, with a deadline: nothing else here waits.

use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::clock;

/// Pause between two looks: short against every start-up time, long against a look.
const PAUSE: Duration = Duration::from_millis(5);

/// Looks until `look` gives something, at most for `within`. `what` completes "not within 5 s: ".
pub fn until<T>(within: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = clock::now() + within;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if clock::now() >= deadline {
            bail!("not within {} s: {what}", within.as_secs_f64());
        }
        thread::sleep(PAUSE);
    }
}
