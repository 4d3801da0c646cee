//! A whole trace from what several agents stored of it.
//!
//! An agent that did not learn a trace's id stored its part under the id of the part's own topmost RPC
//! ([`SpanFlags::FRAGMENT`]). The caller's side of that RPC is in the trace, without a server half: so every
//! client half without a server half is looked up as a trace id, and what is found again, level by level. The
//! other way round, asked for a fragment, the search first climbs to the trace that holds its topmost RPC.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use dprof_common::model::{Span, SpanFlags, SpanId, TraceId};
use rustc_hash::FxHashSet;

use super::session::{Session, merge_rows};
use crate::StoreError;

/// Levels of fragments under fragments: one per host that a request passes.
const DEPTH_MAX: usize = 32;
/// Rows of one trace that are read; more is a trace that was linked wrongly without end.
const ROWS_MAX: usize = 200_000;

/// All spans of a trace, merged, in order of start.
pub(crate) fn whole_trace(session: &mut Session, asked: TraceId) -> Result<Vec<Span>, StoreError> {
    let top = climb(session, asked)?;
    let mut spans: BTreeMap<SpanId, Span> = BTreeMap::new();
    let mut seen = FxHashSet::default();
    let mut level = FxHashSet::from_iter([top]);
    let mut rows_left = ROWS_MAX;
    let mut top_is_fragment = true;
    for _ in 0..DEPTH_MAX {
        if level.is_empty() || rows_left == 0 {
            break;
        }
        let rows = session.rows_of_traces(&level, rows_left)?;
        rows_left -= rows.len();
        seen.extend(level.drain());
        for row in rows {
            top_is_fragment &= row.trace_id != top || row.flags.contains(SpanFlags::FRAGMENT);
            match spans.entry(row.span_id) {
                Entry::Vacant(place) => {
                    place.insert(row);
                }
                Entry::Occupied(mut place) => place.get_mut().merge(row),
            }
        }
        level.extend(
            spans
                .values()
                .filter(|span| span.server.is_none())
                .map(|span| span.span_id.as_root_trace())
                .filter(|id| !seen.contains(id)),
        );
    }
    if !level.is_empty() {
        session.warn(format!("trace {top}: stitching stopped at {DEPTH_MAX} levels or {ROWS_MAX} rows"));
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

/// The trace that a fragment belongs to; `id` itself if it is no fragment, or its caller was not stored.
pub(crate) fn climb(session: &mut Session, id: TraceId) -> Result<TraceId, StoreError> {
    let mut id = id;
    let mut seen = FxHashSet::default();
    while seen.len() < DEPTH_MAX && seen.insert(id) {
        // A fragment's id is the span id of its topmost RPC, so its upper half is zero; and an RPC that was
        // stored as part of another trace is no root.
        let Ok(low) = u64::try_from(id.0) else { break };
        let topmost = SpanId(low);
        let rows = session.rows_of_spans(&[topmost])?.remove(&topmost).unwrap_or_default();
        let Some(above) = rows.iter().find(|row| row.trace_id != id && row.client.is_some()) else { break };
        id = above.trace_id;
    }
    Ok(id)
}

/// The trace that holds a span.
pub(crate) fn trace_of(session: &mut Session, span_id: SpanId) -> Result<Option<TraceId>, StoreError> {
    let rows = session.rows_of_spans(&[span_id])?.remove(&span_id);
    let Some(span) = rows.and_then(merge_rows) else { return Ok(None) };
    if span.flags.contains(SpanFlags::FRAGMENT) {
        climb(session, span.trace_id).map(Some)
    } else {
        Ok(Some(span.trace_id))
    }
}
