//! A batch with its keys and bytes fixed: what a spool keeps while the store is away.
//!
//! What a reader would get wrong: a packed batch is never packed again. Written twice, before and after a restart of
//! the agent, it is the same rows under the same keys; its run is in it.

use dprof_common::model::Rollup;
use prost::Message;

use crate::Batch;
use crate::cassandra::Rows;
use crate::rows::RowError;

/// A batch as it will be stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// Number of the batch in its run.
    pub seq: u64,
    /// Spans in it.
    pub n_spans: u64,
    /// Requests that its rollups count.
    pub n_counted: u64,
    rows: Rows,
}

/// The bytes of a [`Packed`].
#[derive(Clone, PartialEq, Message)]
struct Bytes {
    #[prost(uint64, tag = "1")]
    seq: u64,
    #[prost(uint64, tag = "2")]
    n_spans: u64,
    #[prost(uint64, tag = "3")]
    n_counted: u64,
    #[prost(message, optional, tag = "4")]
    rows: Option<Rows>,
}

impl Packed {
    pub(crate) fn new(batch: &Batch, rows: Rows) -> Self {
        let n_counted = |rollups: &[Rollup]| rollups.iter().map(|rollup| rollup.count).sum();
        Self { seq: batch.seq, n_spans: batch.spans.len() as u64, n_counted: n_counted(&batch.rollups), rows }
    }

    pub(crate) const fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Rows that it writes, in all tables.
    pub fn n_rows(&self) -> u64 {
        self.rows.n_rows()
    }

    /// Counts and spans apart: counts are small, and matter more when room or time is short.
    pub fn split(self) -> (Option<Self>, Option<Self>) {
        let (counts, spans) = self.rows.split();
        let part = |rows, n_spans, n_counted| Self { seq: self.seq, n_spans, n_counted, rows };
        (counts.map(|rows| part(rows, 0, self.n_counted)), spans.map(|rows| part(rows, self.n_spans, 0)))
    }

    /// The bytes.
    pub fn encode(self) -> Vec<u8> {
        let Self { seq, n_spans, n_counted, rows } = self;
        Bytes { seq, n_spans, n_counted, rows: Some(rows) }.encode_to_vec()
    }

    /// [`Packed::encode`]'s bytes back.
    pub fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let Bytes { seq, n_spans, n_counted, rows } =
            Bytes::decode(bytes).map_err(|error| RowError(error.to_string().into()))?;
        let rows = rows.ok_or(RowError("a batch without rows".into()))?;
        Ok(Self { seq, n_spans, n_counted, rows })
    }
}
