//! Some spans of many, spread over a window, for a store that has no quicker way than the newest of each slice.

use dprof_common::model::{Side, Span};

use crate::{Answer, HalfQuery, Order, Reader, SpanPlace, SpanQuery, StoreError};

/// Slices that a sample is spread over: a change in a twelfth of the window is still in it.
const SLICES: u64 = 12;

/// Of calls, only whom they asked can be filtered by the store, so as many times more are read.
const CALLS_READ: usize = 2;

/// [`Reader::sample`] by [`Reader::spans`].
pub(crate) async fn by_slices<R: Reader + ?Sized>(
    reader: &R,
    query: &HalfQuery,
) -> Result<Answer<SpanPlace>, StoreError> {
    let is_server = query.side == Side::Server;
    let limit = if is_server { query.limit } else { CALLS_READ * query.limit };
    let ask = |since_unix_ns, until_unix_ns, limit| SpanQuery {
        since_unix_ns,
        until_unix_ns,
        // An RPC is listed under who served it, if that was watched.
        service: is_server.then(|| query.service.clone()),
        operation: Some(query.operation.clone()),
        kind: is_server.then_some(Side::Server),
        status: None,
        min_duration_ns: query.min_duration_ns,
        roots_only: false,
        order: Order::Newest,
        limit,
    };
    // One more than asked for tells whether that was everything.
    let mut answer = reader.spans(&ask(query.since_unix_ns, query.until_unix_ns, limit + 1)).await?;
    let newest_ns = answer.rows.first().map_or(0, Span::start_ns);
    if answer.rows.len() > limit && newest_ns > query.since_unix_ns {
        let slice_ns = ((newest_ns - query.since_unix_ns) / SLICES).max(1);
        answer.rows.clear();
        for slice in (0..SLICES).rev() {
            let since = query.since_unix_ns + slice * slice_ns;
            let until = if slice + 1 == SLICES { query.until_unix_ns } else { since + slice_ns };
            let part = reader.spans(&ask(since, until, (limit / SLICES as usize).max(1))).await?;
            answer.rows.extend(part.rows);
            answer.warnings.extend(part.warnings);
        }
    }
    answer.rows.retain(|span| query.matches(span));
    answer.rows.truncate(query.limit);
    let places =
        answer.rows.iter().map(|span| SpanPlace { trace_id: span.trace_id, span_id: span.span_id }).collect();
    Ok(Answer { rows: places, warnings: answer.warnings })
}
