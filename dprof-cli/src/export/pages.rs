//! Spans out of the store page by page, newest first, so that an export of any size takes little memory.

use std::collections::HashSet;

use dprof_common::model::{Span, SpanId};
use dprof_store::{Order, Reader, SpanQuery};

use crate::context::Failure;

/// Spans of a page: some megabytes of memory, and few enough round trips.
const PAGE_SPANS: usize = 5_000;

/// Walks through a query's answer.
pub(crate) struct Pages<'a> {
    reader: &'a dyn Reader,
    query: SpanQuery,
    /// Every span that started after this was given out, and those of `at_boundary` that started at it.
    boundary_ns: Option<u64>,
    at_boundary: HashSet<SpanId>,
    page_spans: usize,
    left: usize,
    done: bool,
    /// End of the window, and start of the newest span.
    until_ns: u64,
    first_ns: Option<u64>,
}

impl<'a> Pages<'a> {
    /// Pages of `query`'s answer (its order becomes newest first), at most `query.limit` spans in all.
    pub(crate) fn new(reader: &'a dyn Reader, query: SpanQuery) -> Self {
        Self::with_page_spans(reader, query, PAGE_SPANS)
    }

    fn with_page_spans(reader: &'a dyn Reader, query: SpanQuery, page_spans: usize) -> Self {
        Self {
            reader,
            left: query.limit,
            until_ns: query.until_unix_ns,
            first_ns: None,
            query: SpanQuery { order: Order::Newest, limit: page_spans, ..query },
            boundary_ns: None,
            at_boundary: HashSet::new(),
            page_spans,
            done: false,
        }
    }

    /// How much of the window was read, 0 to 1; unknown bounds count from the first page on.
    pub(crate) fn share(&self, now_unix_ns: u64) -> f64 {
        let end = self.until_ns.min(now_unix_ns.max(self.first_ns.unwrap_or(0)));
        let start = self.query.since_unix_ns;
        match self.boundary_ns {
            Some(at) if end > start && start > 0 => end.saturating_sub(at) as f64 / (end - start) as f64,
            _ => 0.0,
        }
    }

    /// The next page; empty = the end. Warnings of the store are added to `warnings`, each once.
    ///
    /// A page ends somewhere among spans that may have started in the same nanosecond: the next one asks for
    /// that nanosecond again and leaves out what was given already. If a page brings nothing new, the
    /// nanosecond holds more spans than a page, and the page grows.
    pub(crate) async fn next(&mut self, warnings: &mut Vec<String>) -> Result<Vec<Span>, Failure> {
        while !self.done && self.left > 0 {
            let answer = self.reader.spans(&self.query).await?;
            for warning in answer.warnings {
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
            }
            let mut spans = answer.rows;
            self.done = spans.len() < self.query.limit;
            let oldest_ns = spans.last().map(Span::start_ns);
            self.first_ns = self.first_ns.or(spans.first().map(Span::start_ns));
            if let Some(boundary_ns) = self.boundary_ns {
                spans.retain(|span| {
                    span.start_ns() < boundary_ns
                        || (span.start_ns() == boundary_ns && !self.at_boundary.contains(&span.span_id))
                });
            }
            if let Some(oldest_ns) = oldest_ns {
                self.move_to(oldest_ns, &spans);
            }
            if !spans.is_empty() {
                spans.truncate(self.left);
                self.left -= spans.len();
                return Ok(spans);
            }
        }
        Ok(Vec::new())
    }

    fn move_to(&mut self, oldest_ns: u64, new: &[Span]) {
        if self.boundary_ns == Some(oldest_ns) {
            if new.is_empty() {
                self.query.limit = self.query.limit.saturating_mul(2);
            }
        } else {
            self.at_boundary.clear();
            self.query.limit = self.page_spans;
        }
        self.boundary_ns = Some(oldest_ns);
        self.query.until_unix_ns = oldest_ns.saturating_add(1);
        self.at_boundary
            .extend(new.iter().filter(|span| span.start_ns() == oldest_ns).map(|span| span.span_id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Memory, rpc};

    /// Ids of spans with these starts, in pages of three.
    #[track_caller]
    fn check(starts_us: &[u64], limit: usize, expected: usize) {
        let spans =
            starts_us.iter().enumerate().map(|(idx, us)| rpc(idx as u64 + 1).at(*us, 1).build()).collect();
        let store = Memory::of(spans);
        let query = SpanQuery {
            since_unix_ns: 0,
            until_unix_ns: u64::MAX,
            service: None,
            operation: None,
            kind: None,
            status: None,
            min_duration_ns: None,
            roots_only: false,
            order: Order::Newest,
            limit,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let mut pages = Pages::with_page_spans(&store, query, 3);
        let mut ids = Vec::new();
        loop {
            let page = runtime.block_on(pages.next(&mut Vec::new())).expect("memory");
            if page.is_empty() {
                break;
            }
            ids.extend(page.into_iter().map(|span| span.span_id.0));
        }
        let given = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!((given, ids.len()), (expected, expected), "each span exactly once");
    }

    #[test]
    fn every_span_comes_exactly_once_whatever_the_ties() {
        check(&[], usize::MAX, 0);
        check(&[1, 2, 3], usize::MAX, 3);
        check(&[1, 2, 3, 4, 5, 6, 7, 8], usize::MAX, 8);
        check(&[1, 2, 2, 2, 3, 3, 4], usize::MAX, 7);
        check(&[5; 20], usize::MAX, 20);
        check(&[9, 5, 5, 5, 5, 5, 5, 5, 5, 1, 1, 0], usize::MAX, 12);
        check(&[9, 5, 5, 5, 5, 5, 5, 5, 5, 1, 1, 0], 7, 7);
    }
}
