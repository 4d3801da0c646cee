//! Same-thread evidence: one thread read the request and made the call, with no other request open on it.
//!
//! The problem: a thread that serves a request calls others on its behalf; nothing in the bytes says for which
//! request. The idea (vPath: Tak, Tang, Zhang, Govindan, Urgaonkar, Chang, "vPath: Precise Discovery of Request
//! Processing Paths from Black-Box Observations of Thread and Network Activities", USENIX ATC 2009): in a
//! thread-per-request server whatever a thread does between reading a request and answering it, it does for that
//! request. Why the simpler idea, "the last request read", fails: an event loop reads many requests before it
//! makes the first call, and each call would get the wrong parent (OBI #2259, #2551). So a link is made only while
//! exactly one request that this thread has read is unanswered, and the call does not share its write with calls
//! of other requests. What stays uncertain: a call that the thread makes for nobody (a heartbeat) while it holds
//! one request is linked to that request; hence the links are uncalibrated until surer evidence is at hand.

use dprof_common::model::{EvidenceKind, SpanId};
use rustc_hash::FxHashMap;

use super::{Candidate, Evidence, Observation};

/// Threads remembered. One that is forgotten makes no links until it reads a request again.
const THREADS_MAX: usize = 65_536;
/// Open requests remembered of one thread: two already mean "no link", the rest must only be known to end.
const OPEN_PER_THREAD_MAX: usize = 4_096;

/// See the module.
#[derive(Debug, Default)]
pub struct SameThread {
    /// Unanswered requests by the thread that read them.
    open: FxHashMap<u32, Vec<SpanId>>,
}

impl Evidence for SameThread {
    fn kind(&self) -> EvidenceKind {
        EvidenceKind::SameThread
    }

    fn request_read(&mut self, seen: &Observation<'_>) {
        if self.open.len() >= THREADS_MAX && !self.open.contains_key(&seen.tid) {
            // All of them: which one is idle is not known, and forgetting only costs links.
            self.open.clear();
        }
        let open = self.open.entry(seen.tid).or_default();
        if open.len() < OPEN_PER_THREAD_MAX {
            open.push(seen.span_id);
        }
    }

    fn call_made(&mut self, seen: &Observation<'_>) -> Option<Candidate> {
        match self.open.get(&seen.tid)?.as_slice() {
            [parent] if *parent != seen.span_id => Some(Candidate { parent: *parent, confidence: None }),
            _ => None,
        }
    }

    fn reply_read(&mut self, _seen: &Observation<'_>) {}

    fn request_done(&mut self, span_id: SpanId, _tgid: u32, tid: u32) {
        // Usually the thread that read it; in a pool another one may answer.
        if let Some(open) = self.open.get_mut(&tid)
            && let Some(idx) = open.iter().position(|id| *id == span_id)
        {
            open.swap_remove(idx);
            if open.is_empty() {
                self.open.remove(&tid);
            }
        }
    }

    fn disturbed(&mut self, _tgid: u32) {
        // A lost request or answer leaves a set that is too small or too large. Too small could link wrongly.
        self.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Direction, Message, MessageKind};

    /// Steps in words: `r1` request 1 read, `d1` done, `c9` call 9 made, `x` events lost; a leading `2:` names
    /// the thread (else 1). Gives the parents of the calls, `-` for none.
    #[track_caller]
    fn check(steps: &str, expected: &str) {
        let mut evidence = SameThread::default();
        let message = Message::new(Direction::In, MessageKind::Request, 0, 1);
        let mut parents = Vec::new();
        for step in steps.split_whitespace() {
            let (tid, step) =
                step.split_once(':').map_or((1, step), |(t, s)| (t.parse().expect("thread"), s));
            let id = SpanId(step[1..].parse().unwrap_or(0));
            let seen =
                Observation { span_id: id, tgid: 7, tid, sock: 1, time_ns: 0, batch: 1, message: &message };
            match &step[..1] {
                "r" => evidence.request_read(&seen),
                "d" => evidence.request_done(id, 7, tid),
                "c" => parents.push(
                    evidence
                        .call_made(&seen)
                        .map_or("-".to_owned(), |candidate| candidate.parent.0.to_string()),
                ),
                _ => evidence.disturbed(7),
            }
        }
        assert_eq!(parents.join(" "), expected, "{steps}");
    }

    #[test]
    fn only_the_one_open_request_of_the_thread_is_a_parent() {
        check("c9", "-");
        check("r1 c9", "1");
        check("r1 c8 c9 d1 c7", "1 1 -");
        check("r1 r2 c9 d1 c8 d2 c7", "- 2 -");
        check("r1 2:c9", "-");
        check("r1 2:r2 2:c9 c8", "2 1");
        check("r1 x c9 r2 c8", "- 2");
        check("r1 d1 r2 c9", "2");
        check("r1 2:d1 r2 c9", "-");
    }
}
