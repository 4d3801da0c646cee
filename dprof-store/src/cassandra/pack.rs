//! A batch to the rows that will be stored, and to the bytes that a spool keeps: pure, and the same whenever it is
//! done, so that a row written twice is one row.
//!
//! What a reader would get wrong: keys and bytes are fixed *here*, when the batch is formed, never when it is
//! written. Every key names the run and the batch, so nothing overwrites what another run or batch wrote, but for
//! two kinds of rows that are the same whoever writes them (names) or only ever grow (hours, with a timestamp of
//! their own).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI16, Ordering};

use dprof_common::model::{Span, TraceId};
use prost::Message;
use rustc_hash::{FxHashMap, FxHashSet};

use super::batch_rows::{AgentRow, FLAG_GOES_ON, IndexRow, NameRow, Rows, TraceRow};
use super::duration::Longest;
use super::edges;
use super::rollup::{self, Hours};
use super::tables::{DAY_S, INDEX_BUCKET_S, bucket};
use crate::rows::pack_body;
use crate::schema::Bits;
use crate::words::Words;
use crate::{Batch, RunInfo, StoreError};

/// Bytes of a blob at most: Cassandra's advice is below a megabyte, and a mutation of more than half a commit log
/// segment (4 MiB here) is refused.
const BLOB_BYTES_MAX: usize = 256 << 10;
/// Spans of one trace that one run may put into a partition; more go to the next part. Guards against traces that
/// were linked wrongly without end.
const PART_SPANS_MAX: u32 = 10_000;
/// Traces whose size is remembered, beyond a batch: only large ones are.
const LARGE_SPANS: u32 = 500;
const LARGE_TRACES_MAX: usize = 10_000;
/// Pieces of one batch in one partition: the batch's number has the upper bits of `seq`.
const PIECE_BITS: u32 = 8;
/// How long a name or bucket that was written is taken as known: another run's or a dropped batch's row is missed
/// for no longer than this.
const KNOWN_NS: u64 = 10_000_000_000;
const KNOWN_MAX: usize = 100_000;

/// The run's own row is written again this often, so that it lives as long as what it wrote.
const AGENT_EVERY_NS: u64 = 3_600_000_000_000;

/// Spans of one row of `traces`, with what they share.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PackedTrace {
    #[prost(string, repeated, tag = "1")]
    pub(super) texts: Vec<String>,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(super) origins: Vec<Vec<u8>>,
    #[prost(fixed64, repeated, tag = "3")]
    pub(super) span_ids: Vec<u64>,
    #[prost(bytes = "vec", repeated, tag = "4")]
    pub(super) bodies: Vec<Vec<u8>>,
}

/// Entries of one row of the index, in columns; sorted by start.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Entries {
    #[prost(fixed64, tag = "1")]
    pub(super) base_ns: u64,
    /// Each to the one before.
    #[prost(uint64, repeated, tag = "2")]
    pub(super) starts: Vec<u64>,
    #[prost(uint64, repeated, tag = "3")]
    pub(super) durations: Vec<u64>,
    #[prost(fixed64, repeated, tag = "4")]
    pub(super) span_ids: Vec<u64>,
    /// 0 = the span's own id is the trace's; else one more than the place in `trace_ids`.
    #[prost(uint32, repeated, tag = "5")]
    pub(super) traces: Vec<u32>,
    /// Low halves.
    #[prost(fixed64, repeated, tag = "6")]
    pub(super) trace_ids: Vec<u64>,
    /// High halves, by place in `trace_ids`; empty = all zero.
    #[prost(fixed64, repeated, tag = "7")]
    pub(super) trace_highs: Vec<u64>,
    /// Place in the row's sorted names.
    #[prost(uint32, repeated, tag = "8")]
    pub(super) names: Vec<u32>,
    /// [`Bits`].
    #[prost(uint32, repeated, tag = "9")]
    pub(super) bits: Vec<u32>,
}

/// A trace id as a key: as short as `trace` prints it.
pub(super) fn trace_key(id: TraceId) -> Vec<u8> {
    match u64::try_from(id.0) {
        Ok(low) => low.to_be_bytes().to_vec(),
        Err(_) => id.0.to_be_bytes().to_vec(),
    }
}

/// [`trace_key`] back.
pub(super) fn trace_of_key(bytes: &[u8]) -> Option<TraceId> {
    match bytes.len() {
        8 => Some(TraceId(u128::from(u64::from_be_bytes(bytes.try_into().ok()?)))),
        16 => Some(TraceId(u128::from_be_bytes(bytes.try_into().ok()?))),
        _ => None,
    }
}

/// Turns batches of one run into rows.
pub(super) struct Packer {
    run: RunInfo,
    shards: Arc<AtomicI16>,
    longest: Longest,
    hours: Hours,
    /// Spans written of traces that are large.
    large: FxHashMap<TraceId, u32>,
    known: FxHashMap<NameRow, u64>,
    known_buckets: FxHashMap<i32, u64>,
    known_hours: FxHashMap<i32, u64>,
    now_ns: u64,
    agent_written_ns: Option<u64>,
}

impl Packer {
    /// `shards`: how many the keyspace has, 0 = not known yet.
    pub(super) fn new(run: &RunInfo, shards: Arc<AtomicI16>) -> Self {
        Self {
            run: run.clone(),
            shards,
            agent_written_ns: None,
            longest: Longest::default(),
            hours: Hours::default(),
            large: FxHashMap::default(),
            known: FxHashMap::default(),
            known_buckets: FxHashMap::default(),
            known_hours: FxHashMap::default(),
            now_ns: run.started_unix_ns,
        }
    }

    /// Wall clock, from housekeeping.
    pub(super) fn set_now(&mut self, now_ns: u64) {
        self.now_ns = self.now_ns.max(now_ns);
    }

    /// The rows of a batch.
    pub(super) fn pack(&mut self, batch: &Batch) -> Result<Rows, StoreError> {
        let run_id = self.run.run_id;
        // Until it is known how many there are, everything goes to the first, which always is.
        let shards = self.shards.load(Ordering::Relaxed).max(1).unsigned_abs();
        let shard = (run_id.0 % u128::from(shards)) as i32;
        let mut rows = Rows { run_id: run_id.0.to_be_bytes().to_vec(), shard, ..Rows::default() };
        if self.agent_written_ns.is_none_or(|at_ns| self.now_ns >= at_ns + AGENT_EVERY_NS) {
            self.agent_written_ns = Some(self.now_ns);
            rows.agent = Some(AgentRow::of(&self.run));
        }
        self.pack_traces(batch, &mut rows)?;
        self.pack_index(batch, &mut rows);
        rows.durations = self.longest.take_rows(batch);
        rollup::pack_minutes(batch, &mut rows.minutes);
        edges::pack(batch, &mut rows.edges);
        let hours = rows.minutes.iter().map(|row| row.bucket).chain(rows.edges.iter().map(|row| row.bucket));
        for hour in hours {
            if is_new(&mut self.known_hours, &hour, self.now_ns) && !rows.rollup_hours.contains(&hour) {
                rows.rollup_hours.push(hour);
            }
        }
        self.hours.add(batch, self.now_ns, &mut rows.hours);
        Ok(rows)
    }

    fn pack_traces(&mut self, batch: &Batch, rows: &mut Rows) -> Result<(), StoreError> {
        let mut by_trace: FxHashMap<TraceId, Vec<&Span>> = FxHashMap::default();
        // In the order of arrival, so that the same batch gives the same rows.
        let mut order = Vec::new();
        for span in &batch.spans {
            let spans = by_trace.entry(span.trace_id).or_default();
            if spans.is_empty() {
                order.push(span.trace_id);
            }
            spans.push(span);
        }
        rows.traces.reserve(order.len());
        for trace_id in order {
            let spans = &by_trace[&trace_id];
            let mut part = 0;
            let known = self.large.get(&trace_id).copied();
            if known.is_some() || spans.len() as u32 >= LARGE_SPANS {
                let before = known.unwrap_or(0);
                part = (before / PART_SPANS_MAX) as i32;
                let after = before.saturating_add(spans.len() as u32);
                if self.large.len() < LARGE_TRACES_MAX || known.is_some() {
                    self.large.insert(trace_id, after);
                }
                if part > 0 {
                    rows.traces.push(TraceRow {
                        trace_id: trace_key(trace_id),
                        part: part - 1,
                        seq: seq_of(batch.seq, 0),
                        flags: FLAG_GOES_ON,
                        ..TraceRow::default()
                    });
                }
            }
            let mut piece = 0;
            let mut rest = spans.as_slice();
            while !rest.is_empty() {
                let (row, n) = pack_trace(trace_id, rest)?;
                rows.traces.push(TraceRow { part, seq: seq_of(batch.seq, piece), ..row });
                rest = &rest[n..];
                piece += 1;
            }
        }
        Ok(())
    }

    fn pack_index(&mut self, batch: &Batch, rows: &mut Rows) {
        let mut groups: BTreeMap<(i32, &str), Vec<&Span>> = BTreeMap::new();
        for span in &batch.spans {
            let Some(near) = span.nearest() else { continue };
            groups
                .entry((bucket(span.start_ns(), INDEX_BUCKET_S), near.process.service.as_str()))
                .or_default()
                .push(span);
        }
        let mut pieces: FxHashMap<(i32, &str), u32> = FxHashMap::default();
        for ((minute, service), spans) in &mut groups {
            spans.sort_by_key(|span| (span.start_ns(), span.span_id));
            // About 25 bytes each.
            for chunk in spans.chunks(BLOB_BYTES_MAX / 64) {
                let piece = pieces.entry((*minute, service)).or_default();
                rows.index.push(index_row(*minute, service, chunk, seq_of(batch.seq, *piece)));
                *piece += 1;
            }
            if is_new(&mut self.known_buckets, minute, self.now_ns) && !rows.buckets.contains(minute) {
                rows.buckets.push(*minute);
            }
            let day = bucket(u64::try_from(*minute).unwrap_or(0) * INDEX_BUCKET_S * 1_000_000_000, DAY_S);
            let mut names: FxHashSet<NameRow> = FxHashSet::default();
            let name = |kind, name: &str| NameRow {
                day,
                service: (*service).to_owned(),
                kind,
                name: name.to_owned(),
            };
            names.insert(name(0, ""));
            let mut last = None;
            for span in spans.iter() {
                let operation = span.nearest().map_or("", |half| half.operation.as_str());
                // Neighbours are mostly alike.
                if last != Some((span.kind(), operation)) {
                    last = Some((span.kind(), operation));
                    names.insert(name(span.kind() as i32, operation));
                }
            }
            let mut new: Vec<NameRow> =
                names.into_iter().filter(|name| is_new(&mut self.known, name, self.now_ns)).collect();
            new.sort();
            rows.names.extend(new);
        }
    }
}

/// Whether `key` was not written lately; from now on it was.
fn is_new<K: Clone + Eq + std::hash::Hash>(known: &mut FxHashMap<K, u64>, key: &K, now_ns: u64) -> bool {
    if known.get(key).is_some_and(|at_ns| now_ns < at_ns + KNOWN_NS) {
        return false;
    }
    if known.len() >= KNOWN_MAX {
        known.clear();
    }
    known.insert(key.clone(), now_ns);
    true
}

/// `seq` of a row: the batch and the piece of it.
pub(super) fn seq_of(batch_seq: u64, piece: u32) -> i64 {
    ((batch_seq << PIECE_BITS) | u64::from(piece.min((1 << PIECE_BITS) - 1))) as i64
}

/// One row of as many spans as it may hold, at least one; how many those are.
fn pack_trace(trace_id: TraceId, spans: &[&Span]) -> Result<(TraceRow, usize), StoreError> {
    let base_ns = spans[0].start_ns();
    let mut words = Words::default();
    let mut packed = PackedTrace::default();
    let mut bytes = 0;
    for span in spans {
        let body = pack_body(span, base_ns, &mut words)?;
        bytes += body.len() + 16;
        packed.span_ids.push(span.span_id.0);
        packed.bodies.push(body);
        if bytes > BLOB_BYTES_MAX {
            break;
        }
    }
    (packed.texts, packed.origins) = words.into_parts();
    let n = packed.span_ids.len();
    let row = TraceRow {
        trace_id: trace_key(trace_id),
        part: 0,
        seq: 0,
        start_ns: base_ns as i64,
        span_count: n as i32,
        flags: 0,
        spans: packed.encode_to_vec(),
    };
    Ok((row, n))
}

fn index_row(bucket: i32, service: &str, spans: &[&Span], seq: i64) -> IndexRow {
    let operation = |span: &Span| span.nearest().map_or("", |half| half.operation.as_str()).to_owned();
    let names: BTreeSet<String> = spans.iter().map(|span| operation(span)).collect();
    let names: Vec<String> = names.into_iter().collect();
    let mut entries = Entries { base_ns: spans[0].start_ns(), ..Entries::default() };
    let mut places: FxHashMap<TraceId, u32> = FxHashMap::default();
    let mut last_ns = entries.base_ns;
    for span in spans {
        entries.starts.push(span.start_ns() - last_ns);
        last_ns = span.start_ns();
        entries.durations.push(span.duration_ns());
        entries.span_ids.push(span.span_id.0);
        let trace = if span.trace_id == span.span_id.as_root_trace() {
            0
        } else {
            *places.entry(span.trace_id).or_insert_with(|| {
                entries.trace_ids.push(span.trace_id.0 as u64);
                entries.trace_highs.push((span.trace_id.0 >> 64) as u64);
                entries.trace_ids.len() as u32
            })
        };
        entries.traces.push(trace);
        let near = span.nearest().map_or("", |half| half.operation.as_str());
        entries.names.push(names.partition_point(|name| name.as_str() < near) as u32);
        entries.bits.push(Bits::of(span).0 as u32);
    }
    if entries.trace_highs.iter().all(|high| *high == 0) {
        entries.trace_highs.clear();
    }
    IndexRow {
        bucket,
        service: service.to_owned(),
        seq,
        names,
        n: spans.len() as i32,
        entries: entries.encode_to_vec(),
    }
}
