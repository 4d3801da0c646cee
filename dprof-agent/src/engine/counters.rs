//! Every way in which the engine lost or doubted data, each with its own counter.

macro_rules! counters {
    ($(#[doc = $doc:literal] $name:ident,)*) => {
        /// Counters since the start, and gauges of now.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct EngineCounters {
            $(#[doc = $doc] pub $name: u64,)*
        }

        impl EngineCounters {
            /// Name and value of each.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }

            /// Name, meaning and value of each.
            pub fn described(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), $doc, self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Records seen.
    records,
    /// Records refused: unknown kind, cut short, damaged.
    records_refused,
    /// Events that the source says were lost.
    events_lost,
    /// Halves made before the wall clock was known.
    halves_without_clock,
    /// Times far ahead of the clock: not believed.
    times_refused,
    /// Events that the source says came without payload.
    payloads_lost,
    /// Calls on a socket whose announcement was lost.
    calls_without_socket,
    /// Calls at a position that no stream has.
    positions_impossible,
    /// Ranges of a stream that were not seen.
    gaps,
    /// Bytes in them.
    gap_bytes,
    /// Calls whose bytes were seen before.
    overlaps,
    /// Bursts of calls by several threads on one socket, put in order.
    reordered,
    /// Connections whose positions are not those of their calls (kTLS, sockmap): sizes are counted.
    positions_counted,
    /// Calls merged in a timeline: times within their messages are approximate.
    timelines_merged,
    /// Connections that no protocol recognises.
    unrecognised,
    /// Connections of a protocol that is turned off (`capture.protocols`), as often as one is found or turned off.
    protocols_off,
    /// Connections that were no longer watched because other ports were (`filter.ports`).
    connections_unwatched,
    /// Requests that were open when their connection or its protocol was no longer watched: dropped.
    requests_unwatched,
    /// Times that a parser lost the boundary of messages.
    boundaries_lost,
    /// Connections taken for the wrong protocol at first.
    mistaken,
    /// Messages found.
    messages,
    /// Messages that came unasked.
    pushes,
    /// Responses whose request was not seen.
    responses_without_request,
    /// Responses to requests that were given up.
    responses_late,
    /// Responses that were read before their request was seen to leave.
    responses_early,
    /// Pairs made while the order was not certain.
    paired_across_gap,
    /// Times that the capture window opened.
    windows,
    /// Event time inside capture windows, milliseconds.
    windows_open_ms,
    /// Event time between capture windows, milliseconds.
    windows_closed_ms,
    /// Requests that crossed an edge of the capture window, or came before the order was certain in it: dropped.
    window_dropped,
    /// Ranges of a stream that passed outside the capture window.
    window_gaps,
    /// Requests in the direction of responses.
    requests_reversed,
    /// Requests beyond the order's or the table's limit.
    requests_beyond_limit,
    /// Requests that ended without an answer, by close.
    no_reply,
    /// Requests that ended by reset.
    reset,
    /// Requests that ended by `max_open`.
    timeouts,
    /// Requests whose answer cannot be told after a loss.
    unpaired_after_loss,
    /// Halves whose times contradict each other.
    times_contradictory,
    /// Halves finished.
    halves,
    /// Spans given out.
    spans,
    /// Spans given out before their hold was over.
    spans_released_early,
    /// Spans of this host's own traffic given out with one half.
    spans_alone,
    /// Spans given out because their trace's id lies below the keep ratio, while there is one below 1.
    kept_ratio,
    /// Spans given out because their trace was slow.
    kept_slow,
    /// Spans given out because their trace failed.
    kept_error,
    /// Spans given out because one of their trace was among the slowest of its operation.
    kept_top,
    /// Spans of which no word came whether their trace is kept, given out by the hash of what is known here.
    kept_unconfirmed,
    /// Traces that would have been kept but for the budget of their operation.
    keep_over_budget,
    /// Spans of traces that were not kept.
    not_kept,
    /// Of these and others, spans whose trace was decided on before its time, because too many were held.
    not_kept_early,
    /// Words of other agents.
    words_heard,
    /// Words of other agents forgotten before their RPC was seen.
    words_lost,
    /// Gauge: how long spans wait for a word on their trace, 0 where all are kept, milliseconds.
    keep_horizon_ms,
    /// Halves that came twice for one RPC.
    halves_doubled,
    /// Calls linked to their cause.
    links,
    /// Of these, links that nothing else explains.
    links_certain,
    /// Links dropped because the reply that left was not the one that came.
    links_vetoed,
    /// Links not made because they were less sure than asked for.
    links_below_min,
    /// Links decided without the replies, because time was up.
    links_overdue,
    /// Gauge: requests that calls can be linked to, those answered a moment ago included.
    link_requests,
    /// Calls counted under a caller and callee `(other)`.
    edges_other,
    /// Halves counted under an operation or service `(other)`.
    rollups_other,
    /// Halves whose keys were not counted: too many operations have some.
    keys_uncounted,
    /// Connections forgotten because there were too many.
    connections_forgotten,
    /// Gauge: connections known.
    connections,
    /// Gauge: requests open.
    open_requests,
    /// Gauge: RPCs open or held.
    held,
}
