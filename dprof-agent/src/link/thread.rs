//! Same thread: the request was read and the call made by one thread, with nothing read in between.
//!
//! What a reader would get wrong: the last request read is not enough. An event loop reads request A, asks
//! another server, reads request B, and then goes on with A: the call belongs to A, the last read was B. So a
//! link is made only if exactly one request of the thread is open, it is the last thing that the thread read,
//! and every reply read since belongs to a call that this very request made. Everything else gets no link.

use dprof_common::model::{EvidenceKind, SpanId};
use rustc_hash::FxHashMap;

use super::{Candidate, Evidence, Observation};

/// Threads remembered. A thread is forgotten when the table is full; its next request starts anew.
const THREADS_MAX: usize = 64 * 1024;

/// Open requests told apart per thread; a thread with more never gets a link until all are done.
const OPEN_MAX: usize = 4096;

/// Linked calls whose reply is still to come.
const CALLS_MAX: usize = 64 * 1024;

#[derive(Debug, Default)]
struct Thread {
    tgid: u32,
    /// Requests that it read and that are not answered.
    open: Vec<SpanId>,
    /// The last request that it read, while nothing foreign was read since.
    holds: Option<SpanId>,
}

/// Evidence by thread.
#[derive(Debug, Default)]
pub struct SameThread {
    threads: FxHashMap<u32, Thread>,
    /// Linked calls and their cause.
    calls: FxHashMap<SpanId, SpanId>,
}

impl Evidence for SameThread {
    fn kind(&self) -> EvidenceKind {
        EvidenceKind::SameThread
    }

    fn request_read(&mut self, seen: &Observation<'_>) {
        if self.threads.len() >= THREADS_MAX && !self.threads.contains_key(&seen.tid) {
            self.threads.clear();
        }
        let thread = self.threads.entry(seen.tid).or_default();
        if thread.tgid != seen.tgid {
            // The number was used again by another process.
            *thread = Thread { tgid: seen.tgid, ..Thread::default() };
        }
        thread.holds = Some(seen.span_id);
        if thread.open.len() >= OPEN_MAX {
            thread.holds = None;
        } else {
            thread.open.push(seen.span_id);
        }
    }

    fn call_made(&mut self, seen: &Observation<'_>) -> Option<Candidate> {
        let thread = self.threads.get(&seen.tid).filter(|thread| thread.tgid == seen.tgid)?;
        let parent = match (&thread.open[..], thread.holds) {
            ([only], Some(holds)) if *only == holds => holds,
            _ => return None,
        };
        if self.calls.len() >= CALLS_MAX {
            self.calls.clear();
        }
        self.calls.insert(seen.span_id, parent);
        Some(Candidate { parent, confidence: None })
    }

    fn reply_read(&mut self, seen: &Observation<'_>) {
        let cause = self.calls.remove(&seen.span_id);
        if let Some(thread) = self.threads.get_mut(&seen.tid)
            && thread.holds != cause
        {
            thread.holds = None;
        }
    }

    fn request_done(&mut self, span_id: SpanId, _tgid: u32, tid: u32) {
        if let Some(thread) = self.threads.get_mut(&tid) {
            // Almost always the only one; else the oldest are done first.
            if let Some(idx) = thread.open.iter().position(|open| *open == span_id) {
                thread.open.remove(idx);
            }
        }
    }

    fn disturbed(&mut self, tgid: u32) {
        for thread in self.threads.values_mut().filter(|thread| tgid == 0 || thread.tgid == tgid) {
            thread.holds = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Direction, Message, MessageKind};

    /// `script`: `R5@1` thread 1 reads request 5, `C7@1` makes call 7, `A7@1` reads its answer, `D5@1` request 5
    /// read by thread 1 is done, `X@1` process 1 lost bytes. All threads are of process 1. Expected: call=cause.
    #[track_caller]
    fn check(script: &str, expected: &str) {
        let mut evidence = SameThread::default();
        let message = Message::new(Direction::Out, MessageKind::Request, 0, 1);
        let mut links = Vec::new();
        for step in script.split_whitespace() {
            let (what, tid) = step.split_once('@').expect("thread");
            let (op, id) = what.split_at(1);
            let tid = tid.parse().expect("tid");
            let span_id = SpanId(id.parse().unwrap_or(0));
            let seen =
                Observation { span_id, tgid: 1, tid, sock: 0, time_ns: 0, batch: 1, message: &message };
            match op {
                "R" => evidence.request_read(&seen),
                "C" => links.push(match evidence.call_made(&seen) {
                    Some(cause) => format!("{id}={}", cause.parent.0),
                    None => format!("{id}=none"),
                }),
                "A" => evidence.reply_read(&seen),
                "D" => evidence.request_done(span_id, 1, tid),
                _ => evidence.disturbed(1),
            }
        }
        assert_eq!(links.join(" "), expected);
    }

    #[test]
    fn a_thread_that_holds_one_request_causes_its_calls() {
        check("R5@1 C7@1 A7@1 C8@1 A8@1 D5@1", "7=5 8=5");
        check("R5@1 C7@1 C8@1 A8@1 C9@1", "7=5 8=5 9=5");
    }

    #[test]
    fn another_thread_or_no_request_causes_nothing() {
        check("C7@1", "7=none");
        check("R5@1 C7@2", "7=none");
        check("R5@1 D5@1 C7@1", "7=none");
    }

    #[test]
    fn two_open_requests_cause_nothing() {
        check("R5@1 R6@1 C7@1", "7=none");
        // The older one is done, and the last read was the one that is left.
        check("R5@1 R6@1 D5@1 C7@1", "7=6");
        // The newer one is done: the call may belong to the older, but it was not the last read.
        check("R5@1 R6@1 D6@1 C7@1", "7=none");
    }

    #[test]
    fn a_reply_to_a_foreign_call_breaks_the_hold() {
        // Call 7 was made before the request was read.
        check("C7@1 R5@1 A7@1 C8@1", "7=none 8=none");
        // Call 7 belongs to request 5, which is done; its reply is read while 6 is held.
        check("R5@1 C7@1 D5@1 R6@1 A7@1 C8@1", "7=5 8=none");
        check("R5@1 C7@1 D5@1 R6@1 A7@1 R9@1 D6@1 C8@1", "7=5 8=9");
    }

    #[test]
    fn lost_bytes_break_every_hold_of_the_process() {
        check("R5@1 X@1 C7@1 D5@1 R6@1 C8@1", "7=none 8=6");
    }

    #[test]
    fn state_is_bounded() {
        let mut evidence = SameThread::default();
        let message = Message::new(Direction::In, MessageKind::Request, 0, 1);
        for id in 0..(2 * OPEN_MAX as u64) {
            let seen = Observation {
                span_id: SpanId(id),
                tgid: 1,
                tid: 1,
                sock: 0,
                time_ns: 0,
                batch: 1,
                message: &message,
            };
            evidence.request_read(&seen);
        }
        assert!(evidence.threads[&1].open.len() <= OPEN_MAX);
    }
}
