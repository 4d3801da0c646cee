//! Edges of the service map: their rows, and the sums over a window.
//!
//! What a reader would get wrong: which runs have rows in an hour is known from the rollups' marks, so an hour is one read
//! for the runs and one for each of them.

use std::collections::{BTreeMap, BTreeSet};

use dprof_common::model::{Edge, RunId};
use futures_util::{StreamExt as _, stream};
use prost::Message;
use uuid::Uuid;

use super::link::select;
use super::pack::seq_of;
use super::reader::{CassandraReader, IN_FLIGHT_MAX};
use super::tables::{ROLLUP_BUCKET_S, bucket};
use crate::edge_rows::{self, Sums, minutes_of};
use crate::{Answer, Batch, RunEdge, StoreError};

/// One row of `dependencies`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct EdgesRow {
    /// The hour that they are of.
    #[prost(int32, tag = "1")]
    pub(super) bucket: i32,
    #[prost(int64, tag = "2")]
    pub(super) seq: i64,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) edges: Vec<u8>,
}

/// The rows of a batch's edges, one or more per hour.
pub(super) fn pack(batch: &Batch, rows: &mut Vec<EdgesRow>) {
    let hour = |edge: &Edge| bucket(edge.key.minute_unix_s.saturating_mul(1_000_000_000), ROLLUP_BUCKET_S);
    let mut hours: BTreeMap<i32, Vec<Edge>> = BTreeMap::new();
    for edge in &batch.edges {
        hours.entry(hour(edge)).or_default().push(edge.clone());
    }
    for (bucket, edges) in hours {
        for (piece, (_, _, blob)) in edge_rows::pack(&edges).into_iter().enumerate() {
            rows.push(EdgesRow { bucket, seq: seq_of(batch.seq, piece as u32), edges: blob });
        }
    }
}

impl CassandraReader {
    /// The sums of each run over the minutes of the window.
    pub(super) async fn sum_edges(
        &self,
        since_unix_ns: u64,
        until_unix_ns: u64,
    ) -> Result<Answer<RunEdge>, StoreError> {
        let minutes = minutes_of(since_unix_ns, until_unix_ns);
        let mut partitions = BTreeSet::new();
        for hour in self.hours_of(since_unix_ns, until_unix_ns).await? {
            let rows: Vec<(Uuid, i16, i64, i64, Vec<u8>)> =
                select(&self.session, &self.hours, (hour,)).await?;
            partitions.extend(rows.into_iter().map(|(run_id, ..)| (hour, run_id)));
        }
        let mut reads = stream::iter(partitions)
            .map(|(hour, run_id)| async move {
                let rows: Vec<(Vec<u8>,)> = select(&self.session, &self.edges, (hour, run_id)).await?;
                Ok::<_, StoreError>((run_id, rows))
            })
            .buffer_unordered(IN_FLIGHT_MAX);
        let (mut sums, mut warnings) = (Sums::default(), Vec::new());
        while let Some(read) = reads.next().await {
            let (run_id, rows) = read?;
            for (blob,) in rows {
                if let Err(error) = sums.add(RunId(run_id.as_u128()), &blob, minutes) {
                    warnings.push(format!("edges of run {run_id}: {error}"));
                }
            }
        }
        Ok(Answer { rows: sums.rows(), warnings })
    }
}
