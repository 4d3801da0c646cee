//! From the store, by what the command line says: windows, ids, and what to say when there is nothing.

use std::collections::BTreeSet;

use dprof_common::model::{Span, SpanId, TraceId};
use dprof_store::{Order, Reader, RollupQuery, SpanQuery};

use crate::analyse::suggest::nearest;
use crate::args::{NameArgs, SpanArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::units::{self, When};

/// Without `--since`: long enough to find what just hurt, short enough to be about now.
const SINCE_DEFAULT_NS: u64 = 3_600_000_000_000;

/// Names for "did you mean" come from this long before the newest span at most, so that a typing error does not
/// cost a scan of a week.
const NAMES_LOOKBACK_NS: u64 = 24 * 3_600_000_000_000;

/// ... and from this many of the newest spans, whose minute may not be rolled up yet.
const NAMES_SPANS_MAX: usize = 1_000;

/// From this width on, tables show ids of 32 digits in full.
const WHOLE_IDS_COLUMNS: usize = 120;

/// As many ambiguous ids are listed.
const AMBIGUOUS_SHOWN: usize = 4;

/// The window asked for: `since <= start < until`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Nanoseconds since the epoch.
    pub(crate) since_unix_ns: u64,
    /// Nanoseconds since the epoch; `u64::MAX` = open, so that a host whose clock is ahead is not cut off.
    pub(crate) until_unix_ns: u64,
    /// Whether it is the default one.
    pub(crate) is_default: bool,
}

impl Window {
    /// Resolves `args` at `now`.
    pub(crate) fn new(args: WindowArgs, now_unix_ns: u64) -> Result<Self, Failure> {
        let resolve = |when: When, unbounded: u64| match when {
            When::Ago(ns) => now_unix_ns.saturating_sub(ns),
            When::At(unix_ns) => unix_ns,
            When::Unbounded => unbounded,
        };
        let until_unix_ns = args.until.map_or(u64::MAX, |until| resolve(until, u64::MAX));
        let since_unix_ns = match args.since {
            Some(since) => resolve(since, 0),
            // `--until` alone: the hour before it.
            None => until_unix_ns.min(now_unix_ns).saturating_sub(SINCE_DEFAULT_NS),
        };
        if since_unix_ns >= until_unix_ns {
            return Err(Failure::Usage(format!(
                "the window is empty: --since {} is not before --until {}",
                units::rfc3339(since_unix_ns),
                units::rfc3339(until_unix_ns)
            )));
        }
        Ok(Self { since_unix_ns, until_unix_ns, is_default: args.since.is_none() && args.until.is_none() })
    }

    /// As said to people: `the last 1h 00m (since 2026-11-03 11:00:00.000 UTC)`.
    pub(crate) fn describe(&self, now_unix_ns: u64) -> String {
        let since = units::date_time(self.since_unix_ns);
        match (self.since_unix_ns, self.until_unix_ns) {
            (0, u64::MAX) => "all time".to_owned(),
            (0, until) => format!("before {} UTC", units::date_time(until)),
            (_, u64::MAX) => {
                let ago = units::duration(now_unix_ns.saturating_sub(self.since_unix_ns));
                format!("the last {ago} (since {since} UTC)")
            }
            (_, until) => format!("{since} to {} UTC", units::date_time(until)),
        }
    }
}

/// The store's query for these arguments.
pub(crate) fn query(window: &Window, args: &SpanArgs, order: Order, limit: usize) -> SpanQuery {
    SpanQuery {
        since_unix_ns: window.since_unix_ns,
        until_unix_ns: window.until_unix_ns,
        service: args.names.service.clone(),
        operation: args.names.operation.clone(),
        kind: args.names.kind,
        status: args.status,
        min_duration_ns: args.min_duration,
        roots_only: false,
        order,
        limit,
    }
}

/// Whether any filter is set.
pub(crate) fn is_filtered(filters: &SpanArgs) -> bool {
    let SpanArgs { names, status, min_duration } = filters;
    names.service.is_some()
        || names.operation.is_some()
        || names.kind.is_some()
        || status.is_some()
        || min_duration.is_some()
}

/// Whether `span` passes the filters that a [`SpanQuery`] would apply (for spans that came by trace id).
pub(crate) fn passes(span: &Span, args: &SpanArgs) -> bool {
    let Some(near) = span.nearest() else { return false };
    let named = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    named(&args.names.service, &near.process.service)
        && named(&args.names.operation, &near.operation)
        && args.names.kind.is_none_or(|kind| kind == span.kind())
        && args.min_duration.is_none_or(|min_ns| span.duration_ns() >= min_ns)
        && args
            .status
            .is_none_or(|status| crate::analyse::row::halves(span).any(|half| half.status == status))
}

/// The trace that `id` (an id or the start of one, or a span's id) names.
pub(crate) async fn resolve_trace(
    context: &mut Context<'_>,
    reader: &dyn Reader,
    id: &str,
) -> Result<TraceId, Failure> {
    let mut found = reader.traces_with_prefix(id, AMBIGUOUS_SHOWN + 1).await?;
    if found.len() > 1 {
        // A whole id may also be the start of another one.
        if matches!(id.len(), 16 | 32)
            && let Ok(whole) = id.parse::<TraceId>()
            && found.contains(&whole)
        {
            return Ok(whole);
        }
        let more = if found.len() > AMBIGUOUS_SHOWN { ", …" } else { "" };
        found.truncate(AMBIGUOUS_SHOWN);
        let ids: Vec<String> = found.iter().map(|id| short_id(*id)).collect();
        return Err(Failure::NotFound(format!(
            "'{id}' is the start of several trace ids ({}{more}): give more digits",
            ids.join(", ")
        )));
    }
    if let Some(trace_id) = found.pop() {
        return Ok(trace_id);
    }
    if id.len() == 16
        && let Ok(span_id) = id.parse::<SpanId>()
        && let Some(trace_id) = reader.trace_of_span(span_id).await?
    {
        context.say(&format!("{span_id} is a span of trace {}", short_id(trace_id)));
        return Ok(trace_id);
    }
    Err(Failure::NotFound(format!(
        "no trace or span '{id}': it may have expired or not been kept; dprof-cli slowest-spans lists those there are"
    )))
}

/// A trace id in as few digits as a screen of this width has room for: on a narrow one the first 16, which
/// `trace` takes as well.
pub(crate) fn shown_id(id: TraceId, width: Option<usize>) -> String {
    let mut digits = short_id(id);
    if width.is_some_and(|width| width < WHOLE_IDS_COLUMNS) {
        digits.truncate(16);
    }
    digits
}

/// A trace id without the upper half where that is zero, as in all ids that dprof makes.
pub(crate) fn short_id(id: TraceId) -> String {
    let digits = id.to_string();
    match digits.strip_prefix("0000000000000000") {
        Some(short) => short.to_owned(),
        None => digits,
    }
}

/// Says why an answer is empty and what there is instead. A service or operation that nothing knows is an error.
pub(crate) async fn explain_nothing(
    context: &mut Context<'_>,
    reader: &dyn Reader,
    window: &Window,
    names: &NameArgs,
    filtered: bool,
) -> Result<(), Failure> {
    let newest = newest_spans(reader).await?;
    let Some(last) = newest.first() else {
        let hint = if reader.runs().await?.is_empty() {
            "no agent has written to it yet: start dprof-agent, or name another --store"
        } else {
            "agents ran, but saw no request yet (dprof-agent doctor says what they can see)"
        };
        context.say(&format!("nothing found: the store holds no spans; {hint}"));
        return Ok(());
    };
    unknown_names(reader, window, names, &newest).await?;
    let now = context.now_unix_ns;
    let in_window = (window.since_unix_ns..window.until_unix_ns).contains(&last.start_ns());
    let filters = if filtered { " with these filters" } else { "" };
    let mut line = format!("nothing found in {}{filters}", window.describe(now));
    if !in_window {
        let age_ns = now.saturating_sub(last.start_ns());
        let (last, age) = (units::date_time(last.start_ns()), units::duration(age_ns));
        let hint = since_hint(age_ns);
        line = format!("{line}; the newest span is of {last} UTC ({age} ago): try --since {hint}");
    } else if filtered {
        line.push_str(", but other spans are there: loosen a filter, or try --since all");
    } else {
        line.push_str(
            ": spans are there, but counts are written when a minute is over or the agent stops; try again, or slowest-spans",
        );
    }
    context.say(&line);
    Ok(())
}

/// A window that holds something so long ago, in one unit.
fn since_hint(age_ns: u64) -> String {
    let minutes = age_ns / 60_000_000_000 + 1;
    match minutes {
        0..120 => format!("{minutes}m"),
        120..2_880 => format!("{}h", minutes / 60 + 1),
        _ => format!("{}d", minutes / 1_440 + 1),
    }
}

async fn newest_spans(reader: &dyn Reader) -> Result<Vec<Span>, Failure> {
    let everything = Window { since_unix_ns: 0, until_unix_ns: u64::MAX, is_default: false };
    let query = query(&everything, &SpanArgs::default(), Order::Newest, NAMES_SPANS_MAX);
    Ok(reader.spans(&query).await?.rows)
}

/// Fails if a service or operation was asked for that nothing near the window knows.
async fn unknown_names(
    reader: &dyn Reader,
    window: &Window,
    names: &NameArgs,
    newest: &[Span],
) -> Result<(), Failure> {
    if names.service.is_none() && names.operation.is_none() {
        return Ok(());
    }
    let last_ns = newest.first().map_or(0, Span::start_ns);
    let query = RollupQuery {
        since_unix_ns: window.since_unix_ns.max(last_ns.saturating_sub(NAMES_LOOKBACK_NS)).min(last_ns),
        until_unix_ns: u64::MAX,
        service: None,
        operation: None,
    };
    let rollups = reader.rollups(&query).await?.rows;
    let mut services: BTreeSet<&str> = rollups.iter().map(|rollup| rollup.key.service.as_str()).collect();
    let mut operations: BTreeSet<&str> = rollups.iter().map(|rollup| rollup.key.operation.as_str()).collect();
    for half in newest.iter().flat_map(crate::analyse::row::halves) {
        services.insert(&half.process.service);
        operations.insert(&half.operation);
    }
    for (what, list, given, known) in [
        ("service", "services", &names.service, &services),
        ("operation", "operations", &names.operation, &operations),
    ] {
        let Some(given) = given else { continue };
        if !known.contains(given.as_str()) {
            let meant = nearest(given, known.iter().copied())
                .map_or(String::new(), |name| format!(" did you mean '{name}'?"));
            return Err(Failure::NotFound(format!(
                "no {what} '{given}' was seen lately:{meant} dprof-cli {list} lists them"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Memory, T0, rpc, run};

    const MINUTE_NS: u64 = 60_000_000_000;

    #[track_caller]
    fn check_window(since: Option<&str>, until: Option<&str>, expected: &str) {
        let parse = |text: &str| units::parse_when(text).expect("valid");
        let args = WindowArgs { since: since.map(parse), until: until.map(parse) };
        let window = Window::new(args, T0 + 10 * MINUTE_NS);
        assert_eq!(
            window.map_or_else(|failure| failure.to_string(), |w| w.describe(T0 + 10 * MINUTE_NS)),
            expected
        );
    }

    #[test]
    fn windows_resolve_against_now() {
        check_window(None, None, "the last 1h 00m (since 2026-11-03 11:10:00.000 UTC)");
        check_window(Some("5m"), None, "the last 5m 00s (since 2026-11-03 12:05:00.000 UTC)");
        check_window(Some("all"), None, "all time");
        check_window(Some("all"), Some("now"), "before 2026-11-03 12:10:00.000 UTC");
        check_window(None, Some("5m"), "2026-11-03 11:05:00.000 to 2026-11-03 12:05:00.000 UTC");
        check_window(
            Some("5m"),
            Some("5m"),
            "the window is empty: --since 2026-11-03T12:05:00.000000000Z is not before --until \
             2026-11-03T12:05:00.000000000Z",
        );
    }

    #[test]
    fn hints_cover_the_newest_span() {
        for (age_ns, hint) in
            [(0, "1m"), (59 * MINUTE_NS, "60m"), (120 * MINUTE_NS, "3h"), (3 * 1_440 * MINUTE_NS, "4d")]
        {
            assert_eq!(since_hint(age_ns), hint);
            assert!(units::parse_duration(hint).expect("valid") > age_ns);
        }
    }

    /// Words and exit code of `slowest-spans` with `args` on a store with one GET by redis, 10 minutes ago.
    #[track_caller]
    fn check_nothing(args: &str, exit_code: u8, expected: &str) {
        let (result, out, words) =
            run(Memory::of(vec![rpc(1).build()]), 80, &format!("slowest-spans {args}"));
        let (code, said) = match result {
            Ok(()) => (0, words),
            Err(failure) => (failure.exit_code(), failure.to_string()),
        };
        assert_eq!((code, said.trim_end()), (exit_code, expected));
        assert_eq!(out, if args.contains("json") && code == 0 { "[]\n" } else { "" });
    }

    #[test]
    fn an_empty_answer_says_what_there_is() {
        check_nothing(
            "--since 5m",
            0,
            "nothing found in the last 5m 00s (since 2026-11-03 12:05:00.000 UTC); the newest span is of \
             2026-11-03 12:00:00.000 UTC (10m 00s ago): try --since 11m",
        );
        check_nothing(
            "--min-duration 2ms --format json",
            0,
            "nothing found in the last 1h 00m (since 2026-11-03 11:10:00.000 UTC) with these filters, but other \
             spans are there: loosen a filter, or try --since all",
        );
        check_nothing(
            "--service rediss",
            3,
            "no service 'rediss' was seen lately: did you mean 'redis'? dprof-cli services lists them",
        );
        check_nothing(
            "--operation FLUSHALL",
            3,
            "no operation 'FLUSHALL' was seen lately: dprof-cli operations lists them",
        );
    }

    #[test]
    fn an_empty_store_says_so() {
        let (result, _, words) = run(Memory::default(), 80, "slowest-spans");
        assert!(result.is_ok());
        assert_eq!(
            words,
            "nothing found: the store holds no spans; no agent has written to it yet: start dprof-agent, or name \
             another --store\n"
        );
    }

    #[track_caller]
    fn check_trace(id: &str, expected: &str) {
        let spans = vec![
            rpc(0xab).trace(0xab).build(),
            rpc(0xcd).trace(0xab).under(0xab).build(),
            rpc(0xac).trace(0xac00_0000_0000_0000).build(),
            rpc(0xad).trace(0xac11_0000_0000_0000).build(),
        ];
        let (result, out, words) = run(Memory::of(spans), 80, &format!("trace {id} --format json"));
        let shown = match result {
            Ok(()) => {
                let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
                format!(
                    "{}: {}",
                    rows.as_array().expect("array").len(),
                    words.lines().next().unwrap_or_default()
                )
            }
            Err(failure) => format!("{} {failure}", failure.exit_code()),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn traces_are_found_by_id_by_prefix_and_by_span() {
        check_trace("000000000000000000000000000000ab", "2: ");
        check_trace("00000000000000AB", "2: ");
        check_trace("00000000000000a", "2: ");
        check_trace("ac00", "1: ");
        check_trace("00000000000000cd", "2: 00000000000000cd is a span of trace 00000000000000ab");
        check_trace(
            "ac",
            "3 'ac' is the start of several trace ids (ac00000000000000, ac11000000000000): give more digits",
        );
        check_trace(
            "ffff",
            "3 no trace or span 'ffff': it may have expired or not been kept; dprof-cli slowest-spans lists those \
             there are",
        );
    }
}
