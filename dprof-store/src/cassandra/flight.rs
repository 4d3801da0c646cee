//! Many writes at once, as many as the ring can take.
//!
//! The limit follows TCP's rule (Chiu and Jain: "Analysis of the increase and decrease algorithms for congestion
//! avoidance in computer networks", 1989): one more after each round that went well, half after a time-out or an
//! "overloaded". What a reader would get wrong: the limit belongs to the writer, not to a batch, so it remembers.

use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use scylla::client::session::Session;
use scylla::errors::{DbError, ExecutionError, RequestAttemptError};
use uuid::Uuid;

use super::link::away;
use super::statements::{Statements, Write};
use crate::StoreError;

/// In flight at the start and after the worst: enough for a ring that answers within 10 ms.
const LIMIT_START: f64 = 64.0;
const LIMIT_MIN: f64 = 4.0;
/// More does not help: each waits in a queue of the server.
const LIMIT_MAX: f64 = 512.0;
/// How often one write is tried before the batch is given up (and spooled).
const TRIES_MAX: u32 = 4;
/// Pause before another try, doubled each time.
const PAUSE: Duration = Duration::from_millis(100);

/// What the ring could take so far.
#[derive(Debug)]
pub(super) struct Flight {
    limit: f64,
    /// Writes that were tried again.
    pub(super) n_retried: u64,
}

impl Flight {
    pub(super) const fn new() -> Self {
        Self { limit: LIMIT_START, n_retried: 0 }
    }

    fn went_well(&mut self) {
        self.limit = (self.limit + 1.0 / self.limit).min(LIMIT_MAX);
    }

    fn went_badly(&mut self) {
        self.limit = (self.limit / 2.0).max(LIMIT_MIN);
    }

    /// Does all writes, in any order. Fails with the first that failed [`TRIES_MAX`] times.
    pub(super) async fn run(
        &mut self,
        session: &Session,
        statements: &Statements,
        run_id: Uuid,
        shard: i16,
        writes: Vec<Write<'_>>,
    ) -> Result<(), StoreError> {
        let mut waiting = writes.into_iter();
        let mut flying = FuturesUnordered::new();
        let start = |write, tries: u32| async move {
            if tries > 0 {
                tokio::time::sleep(PAUSE * (1 << (tries - 1))).await;
            }
            let result = statements.write(session, run_id, shard, &write).await;
            (write, tries, result)
        };
        // A time-out hits all that fly at once: that is one sign, not hundreds.
        let mut deaf_for = 0_usize;
        loop {
            while flying.len() < self.limit as usize {
                let Some(write) = waiting.next() else { break };
                flying.push(start(write, 0));
            }
            let Some((write, tries, result)) = flying.next().await else { return Ok(()) };
            deaf_for = deaf_for.saturating_sub(1);
            match result {
                Ok(()) => self.went_well(),
                Err(error) => {
                    if is_overload(&error) && deaf_for == 0 {
                        deaf_for = flying.len();
                        self.went_badly();
                    }
                    if tries + 1 >= TRIES_MAX || is_final(&error) {
                        return Err(away("write", &error));
                    }
                    self.n_retried += 1;
                    flying.push(start(write, tries + 1));
                }
            }
        }
    }
}

/// The server, or the way to it, has too much to do.
fn is_overload(error: &ExecutionError) -> bool {
    match error {
        ExecutionError::RequestTimeout(_) => true,
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, _)) => {
            matches!(error, DbError::Overloaded | DbError::WriteTimeout { .. } | DbError::Unavailable { .. })
        }
        _ => false,
    }
}

/// Trying again gives the same: the statement itself is wrong.
fn is_final(error: &ExecutionError) -> bool {
    match error {
        ExecutionError::BadQuery(_) => true,
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, _)) => {
            matches!(
                error,
                DbError::Invalid | DbError::SyntaxError | DbError::Unauthorized | DbError::ConfigError
            )
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_grows_by_one_a_round_and_halves() {
        let mut flight = Flight::new();
        for _ in 0..64 {
            flight.went_well();
        }
        assert!((64.9..65.1).contains(&flight.limit), "{}", flight.limit);
        flight.went_badly();
        assert!((32.4..32.6).contains(&flight.limit), "{}", flight.limit);
        for _ in 0..10 {
            flight.went_badly();
        }
        assert!((LIMIT_MIN..LIMIT_MIN + 0.1).contains(&flight.limit));
        for _ in 0..1_000_000 {
            flight.went_well();
        }
        assert!(flight.limit <= LIMIT_MAX);
    }
}
