//! A whole trace from what several agents stored of it.
//!
//! An agent that did not learn a trace's id stored its part under the id of the part's own topmost RPC
//! ([`SpanFlags::FRAGMENT`]). The caller's side of that RPC is in the trace, without a server half: so every
//! client half without a server half is looked up as a trace id, and what is found again, level by level. The
//! other way round, asked for a fragment, the search first climbs to the trace that holds its topmost RPC.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use dprof_common::model::{Span, SpanFlags, SpanId, TraceId};
use rustc_hash::{FxHashMap, FxHashSet};

use super::session::{Session, merge_rows};
use crate::StoreError;

/// Levels of fragments under fragments: one per host that a request passes.
const DEPTH_MAX: usize = 32;
/// Rows of one trace that are read; more is a trace that was linked wrongly without end.
const ROWS_MAX: usize = 200_000;

/// All spans of a trace, merged, in order of start.
pub(crate) fn whole_trace(session: &mut Session, asked: TraceId) -> Result<Vec<Span>, StoreError> {
    Ok(whole_traces(session, &[asked], ROWS_MAX)?.pop().unwrap_or_default())
}

/// A trace being put together.
struct Stitched {
    top: TraceId,
    spans: BTreeMap<SpanId, Span>,
    is_fragment: bool,
}

/// The same for several, those that are known, in the order asked for, each once; those whose rows would come after
/// `rows_max` are left out, and said.
pub(crate) fn whole_traces(
    session: &mut Session,
    asked: &[TraceId],
    rows_max: usize,
) -> Result<Vec<Vec<Span>>, StoreError> {
    let mut traces: Vec<Stitched> = Vec::new();
    // Every id that is looked up, and the trace that it is part of.
    let mut parts: FxHashMap<TraceId, usize> = FxHashMap::default();
    let mut level = FxHashSet::default();
    for top in climb_all(session, asked)? {
        parts.entry(top).or_insert_with(|| {
            level.insert(top);
            traces.push(Stitched { top, spans: BTreeMap::new(), is_fragment: true });
            traces.len() - 1
        });
    }
    let mut rows_left = rows_max;
    for _ in 0..DEPTH_MAX {
        if level.is_empty() || rows_left == 0 {
            break;
        }
        let rows = session.rows_of_traces(&level, rows_left)?;
        rows_left -= rows.len();
        level.clear();
        let mut touched = FxHashSet::default();
        for row in rows {
            let Some(&at) = parts.get(&row.trace_id) else { continue };
            let trace = &mut traces[at];
            touched.insert(at);
            trace.is_fragment &= row.trace_id != trace.top || row.flags.contains(SpanFlags::FRAGMENT);
            match trace.spans.entry(row.span_id) {
                Entry::Vacant(place) => {
                    place.insert(row);
                }
                Entry::Occupied(mut place) => place.get_mut().merge(row),
            }
        }
        for at in touched {
            for span in traces[at].spans.values().filter(|span| span.server.is_none()) {
                let id = span.span_id.as_root_trace();
                parts.entry(id).or_insert_with(|| {
                    level.insert(id);
                    at
                });
            }
        }
    }
    if !level.is_empty() {
        session.warn(format!("{}: stitching stopped at {DEPTH_MAX} levels or {rows_max} rows", names(asked)));
    }
    Ok(traces.into_iter().map(Stitched::finish).filter(|spans| !spans.is_empty()).collect())
}

fn names(asked: &[TraceId]) -> String {
    match asked {
        [one] => format!("trace {one}"),
        many => format!("{} traces", many.len()),
    }
}

impl Stitched {
    fn finish(self) -> Vec<Span> {
        let mut spans: Vec<Span> = self.spans.into_values().collect();
        for span in &mut spans {
            span.trace_id = self.top;
            if !self.is_fragment {
                span.flags.0 &= !SpanFlags::FRAGMENT.0;
            }
        }
        spans.sort_by_key(|span| (span.start_ns(), span.span_id));
        spans
    }
}

/// The trace that a fragment belongs to; `id` itself if it is no fragment, or its caller was not stored.
pub(crate) fn climb(session: &mut Session, id: TraceId) -> Result<TraceId, StoreError> {
    Ok(climb_all(session, &[id])?.pop().unwrap_or(id))
}

/// The same for several, in their order.
fn climb_all(session: &mut Session, ids: &[TraceId]) -> Result<Vec<TraceId>, StoreError> {
    let mut tops = ids.to_vec();
    let mut climbing: Vec<usize> = (0..tops.len()).collect();
    let mut seen = vec![FxHashSet::default(); tops.len()];
    for _ in 0..DEPTH_MAX {
        // A fragment's id is the span id of its topmost RPC, so its upper half is zero; and an RPC that was
        // stored as part of another trace is no root.
        climbing.retain(|&at| seen[at].insert(tops[at]) && u64::try_from(tops[at].0).is_ok());
        if climbing.is_empty() {
            break;
        }
        let topmost: Vec<SpanId> = climbing.iter().map(|&at| SpanId(tops[at].0 as u64)).collect();
        let rows = session.rows_of_spans(&topmost)?;
        climbing.retain(|&at| {
            let id = tops[at];
            let above = rows
                .get(&SpanId(id.0 as u64))
                .and_then(|rows| rows.iter().find(|row| row.trace_id != id && row.client.is_some()));
            tops[at] = above.map_or(id, |row| row.trace_id);
            above.is_some()
        });
    }
    Ok(tops)
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
