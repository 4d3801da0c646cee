//! The slowest and fastest of everything, from `duration_index`: some rows per run and ten minutes instead of all.
//!
//! The idea: the best candidates are completed from their traces and those are certain that rank above every floor
//! (`duration.rs`): what was left out of the index cannot be better. If too few are certain the answer is `None`,
//! and the caller searches the minutes.
//!
//! What a reader would get wrong: a span's rank is that of its client half, an index row may be the server's. A
//! server's row that is certainly among the longest needs no caller's row to be sought: the caller's duration is
//! longer still, so its row would be in the index too. Among the shortest that does not hold, and only spans with a
//! client half are taken as certain.

use dprof_common::model::{RootKind, Span, SpanId, TraceId};
use futures_util::{StreamExt as _, stream};
use rustc_hash::FxHashMap;

use super::duration::{FASTEST, LEVEL_SPANS, LONGEST_ALL, SLOWEST};
use super::reader::{CassandraReader, IN_FLIGHT_MAX};
use super::search::{self, Rank, SKEW_NS, rank};
use super::tables::{DURATION_BUCKET_S, INDEX_BUCKET_S, bucket, bucket_start_ns};
use crate::{Order, SpanQuery, StoreError};

/// Windows that are looked at: a week has a thousand.
const BUCKETS_MAX: usize = 1_500;
/// Candidates are completed so many at a time, each by a read or two…
const GROUP: usize = 64;
/// …and so many times at most.
const GROUPS_MAX: usize = 8;

/// A row of the index.
pub(super) struct Candidate {
    pub(super) duration_ns: u64,
    pub(super) span_id: SpanId,
    pub(super) trace_id: TraceId,
    /// What its run left out of the window is at most (among the shortest: at least) this long; `None` = nothing
    /// was left out yet.
    pub(super) floor_ns: Option<u64>,
}

/// The spans asked for, if the index alone can tell.
pub(super) async fn select(
    reader: &CassandraReader,
    query: &SpanQuery,
    warnings: &mut Vec<String>,
) -> Result<Option<Vec<Span>>, StoreError> {
    let which = match query.order {
        Order::Slowest => SLOWEST,
        Order::Fastest => FASTEST,
        Order::Newest => return Ok(None),
    };
    let has_filter = query.service.is_some() || query.operation.is_some() || query.status.is_some();
    if has_filter || query.kind.is_some() || query.roots_only || query.limit > LONGEST_ALL {
        return Ok(None);
    }
    let window = (query.since_unix_ns.saturating_sub(SKEW_NS), query.until_unix_ns.saturating_add(SKEW_NS));
    let mut buckets: Vec<i32> = search::minutes(reader, window)
        .await?
        .into_iter()
        .map(|minute| bucket(bucket_start_ns(minute, INDEX_BUCKET_S), DURATION_BUCKET_S))
        .collect();
    buckets.dedup();
    if buckets.len() > BUCKETS_MAX {
        return Ok(None);
    }
    let mut reads = stream::iter(reader.partitions(&buckets))
        .map(|(bucket, shard)| reader.durations(LEVEL_SPANS as i8, bucket, which as i8, shard))
        .buffer_unordered(IN_FLIGHT_MAX);
    let mut rows: FxHashMap<SpanId, (Rank, Vec<TraceId>)> = FxHashMap::default();
    // The best that may have been left out.
    let mut left_out = u64::MAX;
    while let Some(partition) = reads.next().await {
        for row in partition? {
            // A run's floor only ever gets tighter: the last one bounds all that it left out.
            if let Some(floor_ns) = row.floor_ns {
                left_out = left_out.min(rank(query.order, 0, floor_ns, SpanId(0)).0);
            }
            let rank = rank(query.order, 0, row.duration_ns, row.span_id);
            let known = rows.entry(row.span_id).or_insert((rank, Vec::new()));
            known.0 = known.0.min(rank);
            // The second: a half that another agent stored as a fragment of its own.
            known.1.extend([row.trace_id, row.span_id.as_root_trace()]);
        }
    }
    let mut ranks: Vec<(Rank, SpanId)> = rows.iter().map(|(id, (rank, _))| (*rank, *id)).collect();
    ranks.sort_unstable();
    // Rows outside the window are candidates too until their span is complete.
    let mut certain: Vec<(Rank, Span)> = Vec::new();
    for group in ranks.chunks(GROUP).take(GROUPS_MAX) {
        let wanted = group.iter().filter_map(|(_, id)| Some((*id, rows.get(id)?.1.clone()))).collect();
        for (span_id, span) in search::complete(reader, wanted, warnings).await? {
            // Whose caller is not watched has no client half anywhere.
            let is_whole = span.client.is_some() || span.root == Some(RootKind::Edge);
            if query.order == Order::Fastest && !is_whole {
                return Ok(None);
            }
            let in_window = (query.since_unix_ns..query.until_unix_ns).contains(&span.start_ns());
            if in_window && query.min_duration_ns.is_none_or(|min| span.duration_ns() >= min) {
                certain.push((rank(query.order, 0, span.duration_ns(), span_id), span));
            }
        }
        certain.sort_by_key(|(rank, _)| *rank);
        // A span's rank is that of one of its rows: seen, or left out.
        let seen_to = group.last().map_or(0, |(rank, _)| rank.0);
        let n = certain.partition_point(|(rank, _)| rank.0 < left_out.min(seen_to));
        if n >= query.limit {
            break;
        }
    }
    let all_seen = ranks.len() <= GROUP * GROUPS_MAX;
    // What was left out is too short to be asked for.
    let nothing_left_out = left_out == u64::MAX
        || (query.order == Order::Slowest && query.min_duration_ns.is_some_and(|min| left_out > !min));
    let n = certain.partition_point(|(rank, _)| rank.0 < left_out);
    if n < query.limit && !(all_seen && nothing_left_out) {
        return Ok(None);
    }
    certain.truncate(query.limit);
    Ok(Some(certain.into_iter().map(|(_, span)| span).collect()))
}
