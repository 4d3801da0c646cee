//! `--explain`: a [`Reader`] that notes what it is asked, how much came back and how long that took.
//!
//! What a reader would get wrong: it changes no question and no answer. The notes are printed to stderr after the
//! command, also when it failed, so that an expensive question can be told from an expensive answer.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use dprof_common::model::{Rollup, Side, Span, SpanId, TraceId};
use dprof_store::{
    Answer, HalfQuery, Order, Reader, RollupQuery, RunEdge, RunInfo, SpanPlace, SpanQuery, StoreError,
};

use crate::clock::Stopwatch;
use crate::units;

/// Questions listed one by one; a command that opens a thousand traces says how many more there were.
const LINES_MAX: usize = 40;

/// What was asked so far.
#[derive(Debug, Default)]
pub(crate) struct Log(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    lines: Vec<String>,
    questions: usize,
    rows: usize,
    took_ns: u64,
}

impl Log {
    fn note(&self, question: &str, rows: usize, took_ns: u64) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.questions += 1;
        notes.rows += rows;
        notes.took_ns = notes.took_ns.saturating_add(took_ns);
        if notes.lines.len() < LINES_MAX {
            let (count, took) = (units::count(rows as u64), units::duration(took_ns));
            notes.lines.push(format!("read: {question}: {count} in {took}"));
        }
    }

    /// The notes as lines for people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = notes.lines.clone();
        if notes.questions > notes.lines.len() {
            lines.push(format!("read: … and {} more questions", notes.questions - notes.lines.len()));
        }
        lines.push(format!(
            "read: {} questions, {} rows, {} in the store",
            notes.questions,
            units::count(notes.rows as u64),
            units::duration(notes.took_ns)
        ));
        lines
    }
}

/// Asks `inner` and notes it in the log.
pub(crate) struct Explained {
    inner: Arc<dyn Reader>,
    log: Arc<Log>,
}

impl Explained {
    pub(crate) const fn new(inner: Arc<dyn Reader>, log: Arc<Log>) -> Self {
        Self { inner, log }
    }
}

/// `2026-11-03 12:00:00.000 to 2026-11-03 12:10:00.000`, open ends as `…`.
fn window(since_unix_ns: u64, until_unix_ns: u64) -> String {
    let shown = |unix_ns: u64, open: u64| {
        if unix_ns == open { "…".to_owned() } else { units::date_time(unix_ns) }
    };
    format!("{} to {}", shown(since_unix_ns, 0), shown(until_unix_ns, u64::MAX))
}

/// A span query in words.
fn span_question(query: &SpanQuery) -> String {
    let order = match query.order {
        Order::Slowest => "slowest",
        Order::Fastest => "fastest",
        Order::Newest => "newest",
    };
    let what = if query.roots_only { "requests" } else { "spans" };
    let limit = if query.limit == usize::MAX { "all".to_owned() } else { query.limit.to_string() };
    let mut text = format!("{limit} {order} {what}, {}", window(query.since_unix_ns, query.until_unix_ns));
    // Writing to a String does not fail.
    let mut filter = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = write!(text, ", {name} {value}");
        }
    };
    filter("service", query.service.clone());
    filter("operation", query.operation.clone());
    filter("kind", query.kind.map(|kind| kind.name().to_owned()));
    filter("status", query.status.map(|status| status.name().to_owned()));
    filter("at least", query.min_duration_ns.map(units::duration));
    text
}

/// A question for counts in words.
fn count_question(what: &str, query: &RollupQuery) -> String {
    let mut text = format!("{what}, {}", window(query.since_unix_ns, query.until_unix_ns));
    for (name, value) in [("service", &query.service), ("operation", &query.operation)] {
        if let Some(value) = value {
            let _ = write!(text, ", {name} {value}");
        }
    }
    text
}

#[async_trait]
impl Reader for Explained {
    async fn spans(&self, query: &SpanQuery) -> Result<Answer<Span>, StoreError> {
        let watch = Stopwatch::start();
        let answer = self.inner.spans(query).await?;
        self.log.note(&span_question(query), answer.rows.len(), watch.elapsed_ns());
        Ok(answer)
    }

    async fn trace(&self, trace_id: TraceId) -> Result<Answer<Span>, StoreError> {
        let watch = Stopwatch::start();
        let answer = self.inner.trace(trace_id).await?;
        self.log.note(&format!("spans of trace {trace_id}"), answer.rows.len(), watch.elapsed_ns());
        Ok(answer)
    }

    async fn traces(&self, ids: &[TraceId], spans_max: usize) -> Result<Answer<Vec<Span>>, StoreError> {
        let watch = Stopwatch::start();
        let answer = self.inner.traces(ids, spans_max).await?;
        let n_spans = answer.rows.iter().map(Vec::len).sum();
        self.log.note(&format!("spans of {} traces", ids.len()), n_spans, watch.elapsed_ns());
        Ok(answer)
    }

    async fn sample(&self, query: &HalfQuery) -> Result<Answer<SpanPlace>, StoreError> {
        let watch = Stopwatch::start();
        let answer = self.inner.sample(query).await?;
        let what = match query.side {
            Side::Server => "requests answered by",
            Side::Client => "calls by",
        };
        let mut question = format!(
            "some {} {what} {}, operation {}, {}",
            query.limit,
            query.service,
            query.operation,
            window(query.since_unix_ns, query.until_unix_ns)
        );
        if let Some(min_ns) = query.min_duration_ns {
            let _ = write!(question, ", at least {}", units::duration(min_ns));
        }
        self.log.note(&question, answer.rows.len(), watch.elapsed_ns());
        Ok(answer)
    }

    async fn trace_of_span(&self, span_id: SpanId) -> Result<Option<TraceId>, StoreError> {
        let watch = Stopwatch::start();
        let found = self.inner.trace_of_span(span_id).await?;
        self.log.note(&format!("trace of span {span_id}"), usize::from(found.is_some()), watch.elapsed_ns());
        Ok(found)
    }

    async fn traces_with_prefix(&self, prefix: &str, limit: usize) -> Result<Vec<TraceId>, StoreError> {
        let watch = Stopwatch::start();
        let found = self.inner.traces_with_prefix(prefix, limit).await?;
        self.log.note(&format!("trace ids that start with {prefix}"), found.len(), watch.elapsed_ns());
        Ok(found)
    }

    async fn rollups(&self, query: &RollupQuery) -> Result<Answer<Rollup>, StoreError> {
        let watch = Stopwatch::start();
        let answer = self.inner.rollups(query).await?;
        self.log.note(&count_question("counts per minute", query), answer.rows.len(), watch.elapsed_ns());
        Ok(answer)
    }

    async fn rollup_sums(&self, query: &RollupQuery) -> Result<Answer<Rollup>, StoreError> {
        let watch = Stopwatch::start();
        let answer = self.inner.rollup_sums(query).await?;
        self.log.note(&count_question("sums of counts", query), answer.rows.len(), watch.elapsed_ns());
        Ok(answer)
    }

    async fn edges(&self, since_unix_ns: u64, until_unix_ns: u64) -> Result<Answer<RunEdge>, StoreError> {
        let watch = Stopwatch::start();
        let answer = self.inner.edges(since_unix_ns, until_unix_ns).await?;
        let question = format!("counts per caller and callee, {}", window(since_unix_ns, until_unix_ns));
        self.log.note(&question, answer.rows.len(), watch.elapsed_ns());
        Ok(answer)
    }

    async fn runs(&self) -> Result<Vec<RunInfo>, StoreError> {
        let watch = Stopwatch::start();
        let runs = self.inner.runs().await?;
        self.log.note("runs of agents", runs.len(), watch.elapsed_ns());
        Ok(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Memory, rpc, run};

    #[test]
    fn what_is_read_is_told_in_words_and_changes_nothing() {
        let store = || Memory::of(vec![rpc(1).build(), rpc(2).build()]);
        let (_, plain, _) = run(store(), 80, "slowest-spans");
        let (_, out, words) = run(store(), 80, "slowest-spans --explain --service redis --min-duration 1ms");
        assert_eq!(out, plain);
        let line = words.lines().find(|line| line.starts_with("read: ")).expect("told");
        assert!(
            line.starts_with(
                "read: 20 slowest spans, 2026-11-03 11:10:00.000 to …, service redis, at least 1.00 ms: 2 in "
            ),
            "{line}"
        );
        assert!(words.contains("read: 1 questions, 2 rows, "), "{words}");
    }

    #[test]
    fn a_thousand_questions_are_counted_not_listed() {
        let log = Log::default();
        for n in 0..1_000 {
            log.note(&format!("q{n}"), 2, 5);
        }
        let lines = log.lines();
        assert_eq!(lines.len(), LINES_MAX + 2);
        assert_eq!(lines[LINES_MAX], "read: … and 960 more questions");
        assert_eq!(lines[LINES_MAX + 1], "read: 1000 questions, 2,000 rows, 5.00 us in the store");
    }
}
