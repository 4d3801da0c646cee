//! Everything that a batch writes, as messages: what is bound to statements, and what a spool keeps.
//!
//! What a reader would get wrong: a tag of a message is never used again for something else, since segments of an
//! older version are still read.

use std::collections::BTreeMap;

use dprof_common::model::RunId;
use prost::Message;

use super::duration::DurationRow;
use super::edges::EdgesRow;
use crate::RunInfo;

/// `flags` of a row of `traces`: the partition is full, more is in the next part.
pub(super) const FLAG_GOES_ON: i32 = 1;

/// One row of `traces`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TraceRow {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) trace_id: Vec<u8>,
    #[prost(sint32, tag = "2")]
    pub(super) part: i32,
    #[prost(int64, tag = "3")]
    pub(super) seq: i64,
    #[prost(int64, tag = "4")]
    pub(super) start_ns: i64,
    #[prost(int32, tag = "5")]
    pub(super) span_count: i32,
    #[prost(int32, tag = "6")]
    pub(super) flags: i32,
    #[prost(bytes = "vec", tag = "7")]
    pub(super) spans: Vec<u8>,
}

/// One row of `service_span_name_index`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct IndexRow {
    #[prost(int32, tag = "1")]
    pub(super) bucket: i32,
    #[prost(string, tag = "2")]
    pub(super) service: String,
    #[prost(int64, tag = "3")]
    pub(super) seq: i64,
    /// Sorted.
    #[prost(string, repeated, tag = "4")]
    pub(super) names: Vec<String>,
    #[prost(int32, tag = "5")]
    pub(super) n: i32,
    #[prost(bytes = "vec", tag = "6")]
    pub(super) entries: Vec<u8>,
}

/// A name that is written again and again.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Message)]
pub(super) struct NameRow {
    #[prost(int32, tag = "1")]
    pub(super) day: i32,
    #[prost(string, tag = "2")]
    pub(super) service: String,
    /// 0 = the service itself.
    #[prost(int32, tag = "3")]
    pub(super) kind: i32,
    #[prost(string, tag = "4")]
    pub(super) name: String,
}

/// One row of `latency_rollup_60`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct MinutesRow {
    #[prost(int32, tag = "1")]
    pub(super) bucket: i32,
    #[prost(int64, tag = "2")]
    pub(super) seq: i64,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) rollups: Vec<u8>,
}

/// One row of `latency_rollup_3600`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct HourRow {
    #[prost(int32, tag = "1")]
    pub(super) bucket: i32,
    #[prost(int32, tag = "2")]
    pub(super) piece: i32,
    /// First and last `seq` of the minutes that it holds.
    #[prost(int64, tag = "3")]
    pub(super) from_seq: i64,
    #[prost(int64, tag = "4")]
    pub(super) through_seq: i64,
    #[prost(bytes = "vec", tag = "5")]
    pub(super) rollups: Vec<u8>,
    /// Of the write: the row is written again and again, and an older one that comes late must lose.
    #[prost(int64, tag = "6")]
    pub(super) timestamp_us: i64,
}

/// The row of `agents`: with the first batch, so that a run that never reached the store itself is known too.
#[derive(Clone, PartialEq, Message)]
pub(super) struct AgentRow {
    #[prost(string, tag = "1")]
    pub(super) host: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub(super) labels: BTreeMap<String, String>,
    #[prost(string, tag = "3")]
    pub(super) version: String,
    #[prost(string, tag = "4")]
    pub(super) kernel: String,
    #[prost(string, tag = "5")]
    pub(super) backend: String,
    #[prost(uint64, tag = "6")]
    pub(super) started_unix_ns: u64,
}

impl AgentRow {
    pub(super) fn of(run: &RunInfo) -> Self {
        Self {
            host: run.host.clone(),
            labels: run.labels.clone(),
            version: run.version.clone(),
            kernel: run.kernel.clone(),
            backend: run.backend.clone(),
            started_unix_ns: run.started_unix_ns,
        }
    }
}

/// Everything that a batch writes.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Rows {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) run_id: Vec<u8>,
    #[prost(sint32, tag = "2")]
    pub(super) shard: i32,
    #[prost(message, repeated, tag = "3")]
    pub(super) traces: Vec<TraceRow>,
    #[prost(message, repeated, tag = "4")]
    pub(super) index: Vec<IndexRow>,
    #[prost(message, repeated, tag = "5")]
    pub(super) durations: Vec<DurationRow>,
    #[prost(message, repeated, tag = "6")]
    pub(super) names: Vec<NameRow>,
    /// Minutes of the index that have rows.
    #[prost(int32, repeated, tag = "7")]
    pub(super) buckets: Vec<i32>,
    /// Hours that have rollups.
    #[prost(int32, repeated, tag = "10")]
    pub(super) rollup_hours: Vec<i32>,
    #[prost(message, optional, tag = "11")]
    pub(super) agent: Option<AgentRow>,
    #[prost(message, repeated, tag = "8")]
    pub(super) minutes: Vec<MinutesRow>,
    #[prost(message, repeated, tag = "9")]
    pub(super) hours: Vec<HourRow>,
    #[prost(message, repeated, tag = "12")]
    pub(super) edges: Vec<EdgesRow>,
}

impl Rows {
    /// Rows in all tables.
    pub(crate) fn n_rows(&self) -> u64 {
        let Self { run_id: _, shard: _, traces, index, durations, names, buckets, .. } = self;
        let Self { minutes, hours, rollup_hours, edges, agent, .. } = self;
        let counts = minutes.len() + hours.len() + 2 * rollup_hours.len() + edges.len();
        let small = names.len() + 2 * buckets.len() + counts;
        (traces.len() + index.len() + durations.len() + small + usize::from(agent.is_some())) as u64
    }

    /// Counts, and everything else.
    pub(crate) fn split(self) -> (Option<Self>, Option<Self>) {
        let counts = Self {
            run_id: self.run_id.clone(),
            shard: self.shard,
            minutes: self.minutes,
            hours: self.hours,
            rollup_hours: self.rollup_hours,
            edges: self.edges,
            agent: self.agent,
            ..Self::default()
        };
        let spans = Self {
            minutes: Vec::new(),
            hours: Vec::new(),
            rollup_hours: Vec::new(),
            edges: Vec::new(),
            agent: None,
            run_id: self.run_id,
            shard: self.shard,
            traces: self.traces,
            index: self.index,
            durations: self.durations,
            names: self.names,
            buckets: self.buckets,
        };
        let has_counts = !counts.minutes.is_empty()
            || !counts.hours.is_empty()
            || !counts.edges.is_empty()
            || counts.agent.is_some();
        let has_spans = !spans.traces.is_empty();
        (has_counts.then_some(counts), has_spans.then_some(spans))
    }

    pub(super) fn run_id(&self) -> RunId {
        let mut bytes = [0; 16];
        let len = self.run_id.len().min(16);
        bytes[..len].copy_from_slice(&self.run_id[..len]);
        RunId(u128::from_be_bytes(bytes))
    }
}
