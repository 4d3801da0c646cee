//! Rollups to blobs: the minutes of a batch as they come, and the sum of each hour so far.
//!
//! What a reader would get wrong: the row of an hour holds the sum of *all* batches of the run up to
//! `through_seq`, and is written again about once a minute; what later batches add is in their own rows of
//! minutes. So a window of days reads one row per run and hour, and nothing is missed when an agent dies between
//! two such writes.

use std::collections::BTreeMap;

use dprof_common::model::{Rollup, RollupKey};

use super::batch_rows::{HourRow, MinutesRow};
use super::pack::seq_of;
use super::tables::{ROLLUP_BUCKET_S, bucket};
use crate::Batch;
use crate::rollup_rows::pack;

/// The sum of an hour is written this often.
const HOUR_EVERY_NS: u64 = 60_000_000_000;
/// Hours that are summed at once: the current one and late halves of the one before; a replay has more.
const HOURS_MAX: usize = 4;

/// The hour that a rollup's minute is in.
fn hour_of(rollup: &Rollup) -> i32 {
    bucket(rollup.key.minute_unix_s.saturating_mul(1_000_000_000), ROLLUP_BUCKET_S)
}

/// The rows of a batch's minutes, one or more per hour.
pub(super) fn pack_minutes(batch: &Batch, rows: &mut Vec<MinutesRow>) {
    let mut hours: BTreeMap<i32, Vec<&Rollup>> = BTreeMap::new();
    for rollup in &batch.rollups {
        hours.entry(hour_of(rollup)).or_default().push(rollup);
    }
    for (bucket, rollups) in hours {
        for (piece, blob) in pack(rollups).into_iter().enumerate() {
            rows.push(MinutesRow { bucket, seq: seq_of(batch.seq, piece as u32), rollups: blob });
        }
    }
}

/// The sum of an hour so far.
#[derive(Default)]
struct Hour {
    sums: BTreeMap<RollupKey, Rollup>,
    /// 0 = never.
    written_ns: u64,
}

/// The hours that are being summed.
///
/// A row says which batches it holds, so that what it lacks is taken from their minutes: those before an agent's
/// packer began, and those after the row was written. Batches come in order; after a gap the sums begin anew.
#[derive(Default)]
pub(super) struct Hours {
    hours: BTreeMap<i32, Hour>,
    /// First and last batch of the sums; 0 = none yet.
    from_seq: u64,
    through_seq: u64,
    last_timestamp_us: i64,
    /// Hours up to this one have been given up: what still comes of them is in the minutes only.
    given_up: Option<i32>,
}

impl Hours {
    /// Adds a batch and gives out the rows that are due.
    pub(super) fn add(&mut self, batch: &Batch, now_ns: u64, rows: &mut Vec<HourRow>) {
        if batch.seq <= self.through_seq {
            // One that was packed before, or that comes out of order.
            return;
        }
        if batch.seq != self.through_seq + 1 {
            self.hours.clear();
            self.from_seq = batch.seq;
        }
        self.from_seq = self.from_seq.max(1);
        self.through_seq = batch.seq;
        for rollup in &batch.rollups {
            let hour = hour_of(rollup);
            if self.given_up.is_some_and(|given_up| hour <= given_up) {
                continue;
            }
            let mut key = rollup.key.clone();
            key.minute_unix_s = u64::try_from(hour).unwrap_or(0) * ROLLUP_BUCKET_S;
            let sums = &mut self.hours.entry(hour).or_default().sums;
            sums.entry(key.clone()).or_insert_with(|| Rollup::new(key)).merge(rollup);
        }
        let mut hours = std::mem::take(&mut self.hours);
        while hours.len() > HOURS_MAX {
            let Some((bucket, hour)) = hours.pop_first() else { break };
            self.given_up = self.given_up.max(Some(bucket));
            self.rows_of(bucket, &hour, now_ns, rows);
        }
        for (bucket, hour) in &mut hours {
            if hour.written_ns == 0 || now_ns >= hour.written_ns + HOUR_EVERY_NS {
                hour.written_ns = now_ns.max(1);
                self.rows_of(*bucket, hour, now_ns, rows);
            }
        }
        self.hours = hours;
    }

    fn rows_of(&mut self, bucket: i32, hour: &Hour, now_ns: u64, rows: &mut Vec<HourRow>) {
        // Strictly later than the last, whatever the clock does.
        self.last_timestamp_us = (self.last_timestamp_us + 1).max((now_ns / 1000) as i64);
        for (piece, blob) in pack(hour.sums.values()).into_iter().enumerate() {
            rows.push(HourRow {
                bucket,
                piece: piece as i32,
                from_seq: seq_of(self.from_seq, 0),
                through_seq: seq_of(self.through_seq, u32::MAX),
                rollups: blob,
                timestamp_us: self.last_timestamp_us,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Fleet;
    use crate::rollup_rows::unpack;

    /// Batches in this order of their numbers: sums and the minutes that they lack count each batch once.
    #[track_caller]
    fn check_hours(order: &[u64], step_ns: u64) {
        let fleet = Fleet::generate(2, 400);
        let batches: Vec<Batch> = fleet.batches.iter().map(|(_, batch)| batch.clone()).collect();
        let mut hours = Hours::default();
        let mut newest: BTreeMap<(i32, i32), HourRow> = BTreeMap::new();
        let mut minutes: BTreeMap<(i32, i64), Vec<u8>> = BTreeMap::new();
        for (n, seq) in order.iter().enumerate() {
            let batch = Batch { seq: *seq, ..batches[*seq as usize % batches.len()].clone() };
            let (mut hour_rows, mut minute_rows) = (Vec::new(), Vec::new());
            hours.add(&batch, (n as u64 + 1) * step_ns, &mut hour_rows);
            pack_minutes(&batch, &mut minute_rows);
            for row in minute_rows {
                minutes.insert((row.bucket, row.seq), row.rollups);
            }
            for row in hour_rows {
                newest.insert((row.bucket, row.piece), row);
            }
        }
        let count = |blob: &[u8]| -> u64 {
            unpack(blob).expect("just packed").iter().map(|rollup| rollup.count).sum()
        };
        let expected: u64 = minutes.values().map(|blob| count(blob)).sum::<u64>();
        let sums: u64 = newest.values().map(|row| count(&row.rollups)).sum();
        let rest: u64 = minutes
            .iter()
            .filter(|((bucket, seq), _)| {
                newest.get(&(*bucket, 0)).is_none_or(|row| *seq < row.from_seq || *seq > row.through_seq)
            })
            .map(|(_, blob)| count(blob))
            .sum();
        assert_eq!(sums + rest, expected, "{order:?}");
    }

    #[test]
    fn sums_of_hours_and_the_minutes_they_lack_count_each_batch_once() {
        check_hours(&[1, 2, 3, 4, 5, 6], 20_000_000_000);
        check_hours(&[1, 2, 3, 4, 5, 6], 70_000_000_000);
        check_hours(&[6, 5, 4, 3, 2, 1, 1, 2, 3, 7, 8], 20_000_000_000);
        check_hours(&[3, 4, 4, 9, 10, 5, 6], 70_000_000_000);
    }
}
