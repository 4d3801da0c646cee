//! Rollups of a window: sums of hours where they lie wholly in it, minutes where not.
//!
//! What a reader would get wrong: the row of an hour says which batches it holds; what later ones added is in the rows
//! of their minutes, and is read beside it.

use std::collections::BTreeMap;

use dprof_common::model::{Rollup, RollupKey, RunId};
use futures_util::{StreamExt as _, stream};
use uuid::Uuid;

use super::link::select;
use super::pack::seq_of;
use super::reader::{CassandraReader, IN_FLIGHT_MAX};
use super::tables::{KIND_HOURS, PIECE_MARK, ROLLUP_BUCKET_S, bucket_start_ns};
use crate::rollup_rows;
use crate::{Answer, RollupQuery, StoreError};

/// A run's rollups of an hour.
#[derive(Default)]
struct HourOfRun {
    /// `seq` of the minutes that the sum holds, first and last; (0, 0) = none.
    summed: (i64, i64),
    sums: Vec<Vec<u8>>,
}

impl CassandraReader {
    /// Hours with rollups that the window touches.
    pub(super) async fn hours_of(
        &self,
        since_unix_ns: u64,
        until_unix_ns: u64,
    ) -> Result<Vec<i32>, StoreError> {
        let hours: Vec<(i32,)> = select(&self.session, &self.buckets, (KIND_HOURS, 0)).await?;
        let touches = |hour: &i32| {
            let start_ns = bucket_start_ns(*hour, ROLLUP_BUCKET_S);
            start_ns < until_unix_ns
                && start_ns.saturating_add(ROLLUP_BUCKET_S * 1_000_000_000) > since_unix_ns
        };
        Ok(hours.into_iter().map(|(hour,)| hour).filter(touches).collect())
    }

    /// One hour: every run's sum, or what it has of minutes.
    async fn rollups_of_hour(
        &self,
        hour: i32,
        query: &RollupQuery,
        by_minute: bool,
    ) -> Result<(Vec<(RunId, Rollup)>, Vec<String>), StoreError> {
        let rows: Vec<(Uuid, i16, i64, i64, Vec<u8>)> = select(&self.session, &self.hours, (hour,)).await?;
        let mut runs: BTreeMap<Uuid, HourOfRun> = BTreeMap::new();
        for (run_id, piece, from_seq, through_seq, rollups) in rows {
            let run = runs.entry(run_id).or_default();
            if piece != PIECE_MARK && !by_minute {
                // All pieces of a sum are written with one range; one that failed half-way is told by its ranges.
                if run.sums.is_empty() || run.summed == (from_seq, through_seq) {
                    run.summed = (from_seq, through_seq);
                    run.sums.push(rollups);
                } else {
                    run.sums.clear();
                    run.summed = (0, 0);
                }
            }
        }
        let mut blobs: Vec<(Uuid, Vec<u8>)> = Vec::new();
        let mut ranges = Vec::new();
        for (run_id, run) in runs {
            if run.sums.is_empty() {
                ranges.push((run_id, i64::MIN, i64::MAX));
            } else {
                ranges.push((run_id, run.summed.1.saturating_add(1), i64::MAX));
                if run.summed.0 > seq_of(1, 0) {
                    ranges.push((run_id, i64::MIN, run.summed.0 - 1));
                }
            }
            blobs.extend(run.sums.into_iter().map(|blob| (run_id, blob)));
        }
        let mut reads = stream::iter(ranges)
            .map(|(run_id, from, to)| async move {
                let rows: Vec<(i64, Vec<u8>)> =
                    select(&self.session, &self.minutes, (hour, run_id, from, to)).await?;
                Ok::<_, StoreError>((run_id, rows))
            })
            .buffer_unordered(IN_FLIGHT_MAX);
        while let Some(read) = reads.next().await {
            let (run_id, rows) = read?;
            blobs.extend(rows.into_iter().map(|(_, blob)| (run_id, blob)));
        }
        let mut found = Vec::new();
        let mut warnings = Vec::new();
        for (run_id, blob) in blobs {
            match rollup_rows::unpack(&blob) {
                Ok(rollups) => {
                    let wanted = rollups.into_iter().filter(|rollup| !by_minute || in_window(query, rollup));
                    let named = wanted.filter(|rollup| {
                        query.service.as_ref().is_none_or(|service| *service == rollup.key.service)
                            && query
                                .operation
                                .as_ref()
                                .is_none_or(|operation| *operation == rollup.key.operation)
                    });
                    found.extend(named.map(|rollup| (RunId(run_id.as_u128()), rollup)));
                }
                Err(error) => warnings.push(format!("rollups of run {run_id}: {error}")),
            }
        }
        Ok((found, warnings))
    }

    pub(super) async fn sum_rollups(
        &self,
        query: &RollupQuery,
        by_minute: bool,
    ) -> Result<Answer<Rollup>, StoreError> {
        let hours = self.hours_of(query.since_unix_ns, query.until_unix_ns).await?;
        let mut sums: BTreeMap<(RollupKey, RunId), Rollup> = BTreeMap::new();
        let mut warnings = Vec::new();
        let mut reads = stream::iter(hours)
            .map(|hour| {
                let start_ns = bucket_start_ns(hour, ROLLUP_BUCKET_S);
                let whole = start_ns >= query.since_unix_ns
                    && start_ns.saturating_add(ROLLUP_BUCKET_S * 1_000_000_000) <= query.until_unix_ns;
                self.rollups_of_hour(hour, query, by_minute || !whole)
            })
            .buffer_unordered(IN_FLIGHT_MAX);
        while let Some(read) = reads.next().await {
            let (rollups, said) = read?;
            warnings.extend(said);
            for (run_id, rollup) in rollups {
                match sums.get_mut(&(rollup.key.clone(), run_id)) {
                    Some(sum) => sum.merge(&rollup),
                    None => drop(sums.insert((rollup.key.clone(), run_id), rollup)),
                }
            }
        }
        Ok(Answer { rows: sums.into_values().collect(), warnings })
    }
}

/// Whether the window touches the rollup's minute.
fn in_window(query: &RollupQuery, rollup: &Rollup) -> bool {
    let minute_ns = rollup.key.minute_unix_s.saturating_mul(1_000_000_000);
    minute_ns < query.until_unix_ns && minute_ns.saturating_add(60_000_000_000) > query.since_unix_ns
}
