//! Spans and whole traces out of the store for the analyses: all of a window page by page, or some of it spread over
//! the window.
//!
//! What a reader would get wrong: a spread sample is the newest few of each slice of the window, not a random one.
//! It is good for means, medians and shares; counts come from the counts per minute or from reading everything.

use std::collections::{BTreeSet, HashMap, HashSet};

use dprof_common::model::{Span, SpanId, TraceId};
use dprof_store::{Order, Reader, SpanQuery};

use crate::analyse::attribution::{SharedCalls, charge_submitters};
use crate::args::SpanArgs;
use crate::context::{Context, Failure};
use crate::export::pages::Pages;
use crate::load::{self, Window};

/// Slices that a sample is spread over: a change in a twelfth of the window is still in it.
const SLICES: u64 = 12;

/// Traces asked for in one question: what a question costs by itself is shared by so many.
const TRACES_AT_ONCE: usize = 250;

/// Spans of traces that are held at most, about: 1 kB each.
const TRACE_SPANS_MAX: usize = 50_000;

/// Reads every span of `query`, page by page in constant memory, and gives each page to `each`. Returns how many.
pub(crate) async fn every(
    context: &mut Context<'_>,
    reader: &dyn Reader,
    query: SpanQuery,
    mut each: impl FnMut(&[Span]),
) -> Result<usize, Failure> {
    let mut progress = context.progress("reading spans");
    let mut pages = Pages::new(reader, query);
    let mut warnings = Vec::new();
    let mut count = 0;
    loop {
        let page = pages.next(&mut warnings).await?;
        if page.is_empty() {
            break;
        }
        count += page.len();
        progress.advance(page.len(), pages.share(context.now_unix_ns));
        each(&page);
    }
    drop(progress);
    context.warn(&warnings);
    Ok(count)
}

/// About `n` spans of `query` (its order and limit do not matter), spread over its window, newest first.
pub(crate) async fn spread(
    context: &mut Context<'_>,
    reader: &dyn Reader,
    query: &SpanQuery,
    n: usize,
) -> Result<Vec<Span>, Failure> {
    let ask = |since, until, limit| SpanQuery {
        since_unix_ns: since,
        until_unix_ns: until,
        order: Order::Newest,
        limit,
        ..query.clone()
    };
    // One more than asked for tells whether that was everything.
    let mut answer = reader.spans(&ask(query.since_unix_ns, query.until_unix_ns, n + 1)).await?;
    let mut warnings = std::mem::take(&mut answer.warnings);
    let mut spans = answer.rows;
    let newest_ns = spans.first().map(Span::start_ns);
    if spans.len() > n
        && let Some(newest_ns) = newest_ns
    {
        let since_ns = start_of(reader, query).await?;
        // A recording replayed today holds spans older than its run: no window to spread over but the newest.
        if newest_ns <= since_ns {
            spans.truncate(n);
        } else {
            let slice_ns = (newest_ns.saturating_sub(since_ns) / SLICES).max(1);
            let each = (n / SLICES as usize).max(1);
            let mut progress = context.progress("reading spans");
            spans.clear();
            for slice in (0..SLICES).rev() {
                let since = since_ns + slice * slice_ns;
                let until = if slice + 1 == SLICES { query.until_unix_ns } else { since + slice_ns };
                let answer = reader.spans(&ask(since, until, each)).await?;
                progress.advance(answer.rows.len(), (SLICES - slice) as f64 / SLICES as f64);
                warnings.extend(answer.warnings);
                spans.extend(answer.rows);
            }
        }
    }
    warnings.sort();
    warnings.dedup();
    context.warn(&warnings);
    Ok(spans)
}

/// Start of the window, or of the first run if it is open.
async fn start_of(reader: &dyn Reader, query: &SpanQuery) -> Result<u64, Failure> {
    if query.since_unix_ns > 0 {
        return Ok(query.since_unix_ns);
    }
    let runs = reader.runs().await?;
    Ok(runs.iter().map(|run| run.started_unix_ns).min().unwrap_or(0))
}

/// The whole traces of these spans, in their order; a trace that expired meanwhile is left out, and of several
/// spans of one trace the first counts. Of very large traces fewer are read.
pub(crate) async fn traces_of(
    context: &mut Context<'_>,
    reader: &dyn Reader,
    spans: &[Span],
) -> Result<Vec<Vec<Span>>, Failure> {
    let ids: Vec<TraceId> = spans.iter().map(|span| span.trace_id).collect();
    traces(context, reader, &ids).await
}

/// The same by trace ids, which may be fragments'.
pub(crate) async fn traces(
    context: &mut Context<'_>,
    reader: &dyn Reader,
    ids: &[TraceId],
) -> Result<Vec<Vec<Span>>, Failure> {
    let mut progress = context.progress("reading traces");
    let mut seen = HashSet::new();
    let ids: Vec<TraceId> = ids.iter().copied().filter(|id| seen.insert(*id)).collect();
    let mut traces: Vec<Vec<Span>> = Vec::new();
    let mut tops = HashSet::new();
    let mut warnings = BTreeSet::new();
    let mut n_spans = 0;
    for (idx, few) in ids.chunks(TRACES_AT_ONCE).enumerate() {
        if n_spans >= TRACE_SPANS_MAX {
            warnings.insert(format!(
                "only {} of {} traces were read: they are large",
                traces.len(),
                ids.len()
            ));
            break;
        }
        let answer = reader.traces(few, TRACE_SPANS_MAX).await?;
        let n_read: usize = answer.rows.iter().map(Vec::len).sum();
        n_spans += n_read;
        progress.advance(n_read, ((idx + 1) * TRACES_AT_ONCE) as f64 / ids.len() as f64);
        warnings.extend(answer.warnings);
        // Two fragments may be parts of one trace.
        traces.extend(answer.rows.into_iter().filter(|spans| tops.insert(spans[0].trace_id)));
    }
    drop(progress);
    context.warn(&warnings.into_iter().collect::<Vec<_>>());
    Ok(traces)
}

/// A call with a part of a request begins this long after its answer at most: agents forget requests by then.
const SHARED_AFTER_NS: u64 = 100_000_000;

/// Charges calls that serve several requests to every one of them, in `traces`: see [`charge_submitters`]. Calls are
/// looked for in `windows`, start and end.
pub(crate) async fn submitted(
    context: &mut Context<'_>,
    reader: &dyn Reader,
    windows: &[(u64, u64)],
    traces: &mut [Vec<Span>],
) -> Result<(), Failure> {
    let mut shared = SharedCalls::default();
    for (since, until) in windows {
        let until = until.saturating_add(SHARED_AFTER_NS);
        let window = Window { since_unix_ns: *since, until_unix_ns: until, is_default: false };
        let query = load::query(&window, &SpanArgs::default(), Order::Newest, usize::MAX);
        every(context, reader, query, |page| shared.add(page)).await?;
    }
    if shared.left_out > 0 {
        context.warn(&[format!(
            "{} of the calls that serve several requests were left out: ask for a shorter time",
            shared.left_out
        )]);
    }
    let wanted: Vec<Vec<(SpanId, TraceId)>> = traces.iter().map(|trace| shared.of(trace)).collect();
    let ids: Vec<TraceId> = wanted.iter().flatten().map(|(_, trace)| *trace).collect();
    let lent = if ids.is_empty() { Vec::new() } else { self::traces(context, reader, &ids).await? };
    // By call: the trace that was read may have another id than the call's record.
    let mut holder: HashMap<SpanId, usize> = HashMap::new();
    for (idx, trace) in lent.iter().enumerate() {
        holder.extend(trace.iter().map(|span| (span.span_id, idx)));
    }
    for (trace, calls) in traces.iter_mut().zip(wanted) {
        let of: BTreeSet<usize> = calls.iter().filter_map(|(call, _)| holder.get(call)).copied().collect();
        let of: Vec<&[Span]> = of.into_iter().map(|idx| lent[idx].as_slice()).collect();
        charge_submitters(trace, &of);
    }
    Ok(())
}

/// When the servers of a trace were at work, each by its own clock, which is that of the calls that it made.
pub(crate) fn at_work(trace: &[Span]) -> Vec<(u64, u64)> {
    let mut by_host: HashMap<&str, (u64, u64)> = HashMap::new();
    for server in trace.iter().filter_map(|span| span.server.as_ref()) {
        let (start, end) = (server.times.start_ns, server.times.end_ns);
        let of_host = by_host.entry(&server.host.host).or_insert((start, end));
        *of_host = (of_host.0.min(start), of_host.1.max(end));
    }
    let mut windows: Vec<(u64, u64)> = by_host.into_values().collect();
    windows.sort_unstable();
    // Those that touch are one.
    windows.dedup_by(|later, first| {
        let touch = later.0 <= first.1.saturating_add(SHARED_AFTER_NS);
        if touch {
            first.1 = first.1.max(later.1);
        }
        touch
    });
    windows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::query;
    use crate::testing::{Memory, T0, rpc, with_context};

    fn everything() -> SpanQuery {
        let window = Window { since_unix_ns: T0, until_unix_ns: u64::MAX, is_default: false };
        query(&window, &SpanArgs::default(), Order::Newest, usize::MAX)
    }

    #[test]
    fn a_small_window_is_read_whole_and_a_large_one_in_every_part() {
        let store = Memory::of((0..1_200).map(|id| rpc(id + 1).at(id * 1_000, 1).build()).collect());
        with_context(async |context| {
            let all = spread(context, &store, &everything(), 5_000).await.expect("memory");
            assert_eq!(all.len(), 1_200);
            let some = spread(context, &store, &everything(), 120).await.expect("memory");
            assert_eq!(some.len(), 120);
            for slice in 0..12 {
                let from = T0 + slice * 100_000_000;
                let n =
                    some.iter().filter(|span| (from..from + 100_000_000).contains(&span.start_ns())).count();
                assert!((9..=11).contains(&n), "slice {slice}: {n}");
            }
        });
    }

    #[test]
    fn servers_of_one_clock_are_one_window() {
        let at = |host: &str, start_us: u64| rpc(1).hosts(host, host).at(start_us, 1_000).build();
        let windows = at_work(&[at("a", 0), at("b", 60_000_000), at("a", 3_000), at("c", 50_000)]);
        let since: Vec<u64> = windows.iter().map(|(since, _)| (since - T0) / 1_000).collect();
        assert_eq!(since, [80, 60_000_080]);
        assert_eq!((windows[0].1 - T0) / 1_000, 50_900);
        assert_eq!(at_work(&[rpc(1).client_only().build()]), []);
    }

    #[test]
    fn every_span_is_given_once_and_each_trace_is_read_once() {
        let store = Memory::of((0..20).map(|id| rpc(id + 1).trace(u128::from(id / 2 + 1)).build()).collect());
        with_context(async |context| {
            let mut n = 0;
            let count = every(context, &store, everything(), |page| n += page.len()).await.expect("memory");
            assert_eq!((n, count), (20, 20));
            let traces = traces_of(context, &store, &store.spans).await.expect("memory");
            assert_eq!(traces.iter().map(Vec::len).collect::<Vec<_>>(), [2; 10]);
        });
    }
}
