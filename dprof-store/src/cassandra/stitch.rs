//! A whole trace from what several agents stored of it: the same rules as in the embedded store, level by level,
//! all partitions of a level at once.
//!
//! What a reader would get wrong: only fragments are climbed from. The id of a trace that is none leads nowhere
//! else, and to look anyway would read the index.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use dprof_common::model::{Span, SpanFlags, SpanId, TraceId};
use rustc_hash::FxHashSet;

use super::reader::CassandraReader;
use super::search::SKEW_NS;
use crate::StoreError;

/// Levels of fragments under fragments: one per host that a request passes.
const DEPTH_MAX: usize = 32;
/// Rows of one trace that are read; more is a trace that was linked wrongly without end.
const ROWS_MAX: usize = 200_000;

/// All spans of a trace, merged, in order of start.
pub(super) async fn whole_trace(
    reader: &CassandraReader,
    asked: TraceId,
    warnings: &mut Vec<String>,
) -> Result<Vec<Span>, StoreError> {
    let mut first = Some(reader.rows_of_trace(asked, warnings).await?);
    let mut top = asked;
    if let Some(rows) = &first
        && !rows.is_empty()
        && rows.iter().all(|row| row.flags.contains(SpanFlags::FRAGMENT))
    {
        top = climb(reader, asked, rows, warnings).await?;
        if top != asked {
            first = None;
        }
    }
    let mut spans: BTreeMap<SpanId, Span> = BTreeMap::new();
    let mut seen = FxHashSet::default();
    let mut level = vec![top];
    let mut n_rows = 0;
    let mut top_is_fragment = true;
    for _ in 0..DEPTH_MAX {
        if level.is_empty() || n_rows > ROWS_MAX {
            break;
        }
        let rows = match first.take() {
            Some(rows) => rows,
            None => reader.rows_of_traces(&level, warnings).await?,
        };
        n_rows += rows.len();
        seen.extend(level.drain(..));
        for row in rows {
            top_is_fragment &= row.trace_id != top || row.flags.contains(SpanFlags::FRAGMENT);
            match spans.entry(row.span_id) {
                Entry::Vacant(place) => drop(place.insert(row)),
                Entry::Occupied(mut place) => place.get_mut().merge(row),
            }
        }
        let missing = spans.values().filter(|span| span.server.is_none());
        level.extend(missing.map(|span| span.span_id.as_root_trace()).filter(|id| !seen.contains(id)));
    }
    if !level.is_empty() {
        warnings.push(format!("trace {top}: stitching stopped at {DEPTH_MAX} levels or {ROWS_MAX} rows"));
    }
    let mut spans: Vec<Span> = spans.into_values().collect();
    for span in &mut spans {
        span.trace_id = top;
        if !top_is_fragment {
            span.flags.0 &= !SpanFlags::FRAGMENT.0;
        }
    }
    spans.sort_by_key(|span| (span.start_ns(), span.span_id));
    Ok(spans)
}

/// The trace that a fragment with these rows belongs to; `id` itself if its caller was not stored.
pub(super) async fn climb(
    reader: &CassandraReader,
    id: TraceId,
    rows: &[Span],
    warnings: &mut Vec<String>,
) -> Result<TraceId, StoreError> {
    let mut id = id;
    let mut start_ns = rows.iter().map(Span::start_ns).min().unwrap_or(0);
    let mut seen = FxHashSet::default();
    while seen.len() < DEPTH_MAX && seen.insert(id) {
        // A fragment's id is the span id of its topmost RPC, so its upper half is zero.
        let Ok(low) = u64::try_from(id.0) else { break };
        let window = (start_ns.saturating_sub(SKEW_NS), start_ns.saturating_add(SKEW_NS));
        let above = reader.entries_of(SpanId(low), window, warnings).await?;
        let Some(above) = above
            .into_iter()
            .find(|entry| entry.trace_id != id && entry.bits.0 & crate::schema::Bits::CLIENT != 0)
        else {
            break;
        };
        id = above.trace_id;
        start_ns = above.start_ns;
        let rows = reader.rows_of_trace(id, warnings).await?;
        if !rows.iter().all(|row| row.flags.contains(SpanFlags::FRAGMENT)) {
            break;
        }
    }
    Ok(id)
}
