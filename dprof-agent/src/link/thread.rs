//! Same thread: the request was read and the call made by one thread, with nothing read in between.
//!
//! What a reader would get wrong: the last request read is not enough. An event loop reads request A, asks
//! another server, reads request B, and then goes on with A: the call belongs to A, the last read was B. So what a
//! thread *holds* is the request that its last read belongs to: the request itself, or the one whose call was
//! answered. While it has one request open, a call belongs to it if it is also the one held.
//!
//! With several open, the same rule is right in programs that answer each event before they look at the next one
//! (callbacks, coroutines on one thread), and wrong in those that read many requests first and send later. Which
//! kind a process is shows without any truth: when an answer leaves, the request answered should be the one held.
//! Where that held nearly always the rule is used, else not; it says `uncalibrated` unless certain links of the same
//! process tell how often it is right. vPath (ATC'09) is the first rule alone, for a thread per request.

use dprof_common::model::{EvidenceKind, SpanId};

use super::remembered::Remembered;
use super::table::{Ref, Reply, Table};
use super::{Certainty, Evidence, Observation, Proposal};

/// Threads remembered. They are forgotten when the table is full; the next request of each starts anew.
const THREADS_MAX: usize = 64 * 1024;
/// Processes of which it is known how they answer; forgotten as threads are.
const PROCESSES_MAX: usize = 64 * 1024;
/// Answers that must have left while several requests were open before the rule for several is used…
const ANSWERS_MIN: u32 = 32;
/// …and of ten, how many must have been of the request held.
const HELD_OF_TEN: u32 = 9;
/// Counts are halved here, so that they follow a process that changes.
const ANSWERS_MAX: u32 = 1024;

/// Features.
pub(crate) mod feature {
    /// The thread had one request open.
    pub(crate) const ALONE: u8 = 0;
    /// It had several.
    pub(crate) const AMONG_SEVERAL: u8 = 1;
}

#[derive(Debug, Default)]
struct Thread {
    tgid: u32,
    /// Requests that it read and that are not answered.
    n_open: u32,
    /// The request that its last read belongs to.
    holds: Option<Ref>,
    /// Messages read since it last sent something.
    n_reads: u32,
    sent: bool,
}

impl Thread {
    fn reads(&mut self, holds: Option<Ref>) {
        self.n_reads = if std::mem::take(&mut self.sent) { 1 } else { self.n_reads.saturating_add(1) };
        self.holds = holds;
    }
}

/// Evidence by thread.
#[derive(Debug, Default)]
pub(crate) struct SameThread {
    threads: Remembered<Thread>,
    /// Per process: answers that left among several open requests, and those of the request held.
    answers: Remembered<(u32, u32)>,
}

impl SameThread {
    fn thread(&mut self, tgid: u32, tid: u32) -> &mut Thread {
        let (thread, _) = self.threads.get_or_new(tid, THREADS_MAX);
        if thread.tgid != tgid {
            // The number was used again by another process.
            *thread = Thread { tgid, sent: true, ..Thread::default() };
        }
        thread
    }
}

impl Evidence for SameThread {
    fn kind(&self) -> EvidenceKind {
        EvidenceKind::SameThread
    }

    fn request_read(&mut self, _table: &mut Table, request: Ref, seen: &Observation<'_>) {
        let thread = self.thread(seen.tgid, seen.tid);
        thread.reads(Some(request));
        thread.n_open += 1;
    }

    fn call_made(&mut self, table: &mut Table, call: Ref, seen: &Observation<'_>) -> Option<Proposal> {
        let thread = self.threads.get_mut(seen.tid).filter(|thread| thread.tgid == seen.tgid)?;
        thread.sent = true;
        let parent = thread.holds?;
        table.request(parent).filter(|request| request.is_open() && request.tid == seen.tid)?;
        if let Some(call) = table.call_mut(call) {
            call.held = Some(parent);
        }
        if thread.n_open == 1 {
            return Some(Proposal::one(parent, Certainty::Probable(feature::ALONE)));
        }
        let (answers, held) = self.answers.get(seen.tgid).copied().unwrap_or_default();
        let usual = answers >= ANSWERS_MIN && held >= answers / 10 * HELD_OF_TEN;
        (usual && thread.n_reads == 1)
            .then(|| Proposal::one(parent, Certainty::Probable(feature::AMONG_SEVERAL)))
    }

    fn reply_read(&mut self, table: &mut Table, call: Ref, seen: &Observation<'_>) {
        // What no link says the rule itself may say, so that it shows whether it holds.
        let cause = table.call(call).and_then(|call| call.parent.or(call.held));
        let cause = cause.filter(|at| table.request(*at).is_some_and(super::table::Request::is_open));
        self.thread(seen.tgid, seen.tid).reads(cause);
    }

    fn request_done(&mut self, table: &mut Table, request_at: Ref, seen: Option<&Observation<'_>>) {
        let Some(request) = table.request(request_at) else { return };
        let mut among_several = false;
        if let Some(reader) = self.threads.get_mut(request.tid).filter(|thread| thread.tgid == request.tgid) {
            among_several = reader.n_open > 1;
            reader.n_open = reader.n_open.saturating_sub(1);
        }
        if let Some(seen) = seen
            && matches!(request.reply, Reply::Seen(_))
        {
            let thread = self.thread(seen.tgid, seen.tid);
            thread.sent = true;
            if among_several {
                let held = thread.holds == Some(request_at);
                let (counts, _) = self.answers.get_or_new(seen.tgid, PROCESSES_MAX);
                *counts = (counts.0 + 1, counts.1 + u32::from(held));
                if counts.0 >= ANSWERS_MAX {
                    *counts = (counts.0 / 2, counts.1 / 2);
                }
            }
        }
    }

    fn disturbed(&mut self, tgid: u32) {
        for (_, thread) in self.threads.iter_mut().filter(|(_, thread)| tgid == 0 || thread.tgid == tgid) {
            thread.holds = None;
        }
    }
}

/// What the thread says of a call that stronger evidence has answered, for calibration.
pub(crate) fn said(table: &Table, proposal: Option<&Proposal>) -> Option<(SpanId, u8)> {
    let proposal = proposal?;
    let Certainty::Probable(feature) = proposal.certainty else { return None };
    Some((table.request(proposal.parent)?.span_id, feature))
}
