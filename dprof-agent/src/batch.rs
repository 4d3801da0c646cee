//! Batches: spans and rollups gathered until there are enough of them or they are old enough to be stored.
//!
//! Pure: the caller says what time it is. What a reader would get wrong: a batch gets its number when it is
//! formed, and keeps it however often it is written, so writing it twice changes nothing.

use dprof_store::Batch;

use crate::engine::Output;

/// Spans in a batch at most: one transaction of some milliseconds.
pub const SPANS_MAX: usize = 2_000;
/// A batch with anything in it is given out at this age, nanoseconds: what `kill -9` can lose, and how long a
/// reader waits for the newest span.
pub const AGE_MAX_NS: u64 = 200_000_000;

/// The batch that is being formed.
#[derive(Debug, Default)]
pub struct Batcher {
    batch: Batch,
    seq: u64,
    oldest_ns: u64,
}

impl Batcher {
    /// Adds what the engine gave out at `now_ns` (monotonic), emptying its lists, and gives out every batch that is full
    /// by then.
    pub fn add(&mut self, out: &mut Output, now_ns: u64) -> Vec<Batch> {
        let mut full = Vec::new();
        if self.is_empty() {
            self.oldest_ns = now_ns;
        }
        self.batch.rollups.append(&mut out.rollups);
        self.batch.edges.append(&mut out.edges);
        let mut rest = out.spans.drain(..);
        loop {
            let room = SPANS_MAX - self.batch.spans.len();
            self.batch.spans.extend(rest.by_ref().take(room));
            if self.batch.spans.len() < SPANS_MAX {
                return full;
            }
            full.push(self.form());
            self.oldest_ns = now_ns;
        }
    }

    /// The batch if it is old enough at `now_ns`.
    pub fn take_due(&mut self, now_ns: u64) -> Option<Batch> {
        (!self.is_empty() && now_ns >= self.oldest_ns.saturating_add(AGE_MAX_NS)).then(|| self.form())
    }

    /// Whatever there is: the stream ended.
    pub fn take_rest(&mut self) -> Option<Batch> {
        (!self.is_empty()).then(|| self.form())
    }

    fn is_empty(&self) -> bool {
        self.batch.spans.is_empty() && self.batch.rollups.is_empty() && self.batch.edges.is_empty()
    }

    fn form(&mut self) -> Batch {
        self.seq += 1;
        Batch { seq: self.seq, ..std::mem::take(&mut self.batch) }
    }
}

#[cfg(test)]
mod tests {
    use dprof_common::model::{KeepReason, Span, SpanFlags, SpanId};

    use super::*;

    fn spans(n: usize) -> Vec<Span> {
        let span = |id: usize| {
            let span_id = SpanId(id as u64 + 1);
            Span {
                trace_id: span_id.as_root_trace(),
                span_id,
                link: None,
                further_links: Vec::new(),
                root: None,
                flags: SpanFlags::default(),
                probability: 1.0,
                reason: KeepReason::Ratio,
                client: None,
                server: None,
            }
        };
        (0..n).map(span).collect()
    }

    #[test]
    fn batches_are_full_or_old_and_numbered_without_holes() {
        let mut batcher = Batcher::default();
        let mut add = |n, now| batcher.add(&mut Output { spans: spans(n), ..Output::default() }, now);
        assert!(add(SPANS_MAX - 1, 100).is_empty());
        let full = add(2 * SPANS_MAX + 3, 200);
        assert_eq!(
            full.iter().map(|b| (b.seq, b.spans.len())).collect::<Vec<_>>(),
            [(1, SPANS_MAX), (2, SPANS_MAX), (3, SPANS_MAX)]
        );
        assert_eq!(batcher.take_due(200 + AGE_MAX_NS - 1), None);
        let due = batcher.take_due(200 + AGE_MAX_NS).expect("old enough");
        assert_eq!((due.seq, due.spans.len()), (4, 2));
        assert_eq!(batcher.take_due(u64::MAX), None);
        assert_eq!(batcher.take_rest(), None);
    }
}
