//! Rows back to spans and index entries. Bytes may be damaged: an error, never a panic.

use dprof_common::model::{Span, SpanId, TraceId};
use prost::Message;

use super::pack::{Entries, PackedTrace};
use crate::rows::{RowError, unpack_body};
use crate::schema::Bits;
use crate::words::Unwords;

/// The spans of a row of `traces`.
pub(super) fn spans(trace_id: TraceId, base_ns: u64, bytes: &[u8]) -> Result<Vec<Span>, RowError> {
    let packed = PackedTrace::decode(bytes).map_err(|error| RowError(error.to_string().into()))?;
    if packed.span_ids.len() != packed.bodies.len() {
        return Err(RowError("as many ids as bodies".into()));
    }
    let mut words = Unwords::new(&packed.texts, &packed.origins)?;
    let ids = packed.span_ids.iter().zip(&packed.bodies);
    ids.map(|(id, body)| unpack_body(trace_id, SpanId(*id), body, base_ns, &mut words)).collect()
}

/// What the index knows of one row of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) trace_id: TraceId,
    pub(super) span_id: SpanId,
    pub(super) start_ns: u64,
    pub(super) duration_ns: u64,
    /// Place in the row's names.
    pub(super) name: usize,
    pub(super) bits: Bits,
}

/// The entries of a row of the index.
pub(super) fn entries(bytes: &[u8], n_names: usize) -> Result<Vec<Entry>, RowError> {
    let packed = Entries::decode(bytes).map_err(|error| RowError(error.to_string().into()))?;
    let damaged = |cause: &'static str| RowError(cause.into());
    let n = packed.span_ids.len();
    let columns = [
        packed.starts.len(),
        packed.durations.len(),
        packed.traces.len(),
        packed.names.len(),
        packed.bits.len(),
    ];
    if columns.iter().any(|len| *len != n) {
        return Err(damaged("columns of different length"));
    }
    if !packed.trace_highs.is_empty() && packed.trace_highs.len() != packed.trace_ids.len() {
        return Err(damaged("halves of trace ids"));
    }
    let mut start_ns = packed.base_ns;
    (0..n)
        .map(|idx| {
            start_ns = start_ns.wrapping_add(packed.starts[idx]);
            let span_id = SpanId(packed.span_ids[idx]);
            let trace_id = match packed.traces[idx] {
                0 => span_id.as_root_trace(),
                place => {
                    let place = place as usize - 1;
                    let low = *packed.trace_ids.get(place).ok_or_else(|| damaged("unknown trace"))?;
                    let high = packed.trace_highs.get(place).copied().unwrap_or(0);
                    TraceId(u128::from(high) << 64 | u128::from(low))
                }
            };
            let name = packed.names[idx] as usize;
            if name >= n_names {
                return Err(damaged("unknown name"));
            }
            Ok(Entry {
                trace_id,
                span_id,
                start_ns,
                duration_ns: packed.durations[idx],
                name,
                bits: Bits(i64::from(packed.bits[idx])),
            })
        })
        .collect()
}
