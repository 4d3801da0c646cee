//! Relayed content: the bytes of a command came in on one connection and go out on another. The same hash of
//! command and arguments (HTTP: method, target and body) in one process, the prior art being CaT (Middleware'21).
//! A proxy that splits a multi-key command sends its *parts* on, one that gathers commands sends several requests'
//! parts at once: then each part finds its own request, and the call is linked to all of them.
//!
//! The hash alone proves nothing: two clients may ask the same thing at the same time. So a link is *certain* only
//! if the whole message was hashed, no other request of the process had the same content (open, or answered less
//! than [`super::table::LATE_NS`] ago: a late copy of that one would look the same), no open request hides its
//! content, no connection holds bytes of a protocol that only the answer will show, nothing was lost in the process since the request arrived, and the reply that went back is the reply
//! that came (decided in [`super::linker`]). Several requests with the same bytes are not for this file: [`super::order`].
//!
//! What a reader would get wrong: uniqueness is asked at the call *and* at the end. A copy that arrives between the
//! two cannot have caused the call, but it may be the one that was mistaken for another agent's; it costs certainty.

use dprof_common::model::EvidenceKind;
use rustc_hash::FxHashSet;

use super::table::{KeyKind, Ref, Table, key};
use super::{Certainty, Evidence, Observation, Proposal};

/// Features of links that are not certain.
pub(crate) mod feature {
    /// Unique, but something was lost, is hidden, or the reply was not seen.
    pub(crate) const UNIQUE: u8 = 0;
    /// The request had been answered when the call was made.
    pub(crate) const LATE: u8 = 1;
    /// A part of a command.
    pub(crate) const PART: u8 = 2;
    /// Made of parts of several requests.
    pub(crate) const BATCH: u8 = 3;
    /// The same again to the same peer: a repetition, or another request that was not seen.
    pub(crate) const AGAIN: u8 = 4;
    /// Unique, but the reply that went back is another than the one that came.
    pub(crate) const OTHER_REPLY: u8 = 5;
}

/// Parts of one call that are looked up one by one.
const BATCH_MAX: usize = 256;
/// Requests that share a part and are looked through.
const SHARE_PART_MAX: usize = 32;

/// Processes known to send parts on.
const PARTING_MAX: usize = 4096;

/// Evidence by content.
#[derive(Debug, Default)]
pub(crate) struct RelayedContent {
    /// Processes that made a call whose whole no request had: of them, single keys are remembered too.
    parting: FxHashSet<u32>,
}

impl Evidence for RelayedContent {
    fn kind(&self) -> EvidenceKind {
        EvidenceKind::RelayedContent
    }

    fn request_read(&mut self, table: &mut Table, request: Ref, seen: &Observation<'_>) {
        if let Some(hash) = seen.content {
            table.share_content(hash, request);
        }
        if seen.parts.len() > 1 || (seen.parts.len() == 1 && self.parting.contains(&seen.tgid)) {
            table.set_parts(request, seen.parts);
            for hash in seen.parts {
                table.share(key(KeyKind::Part, seen.tgid, *hash), request);
            }
        }
    }

    fn call_made(&mut self, table: &mut Table, call: Ref, seen: &Observation<'_>) -> Option<Proposal> {
        let whole = table.shared(table.call(call).and_then(|call| call.content_at));
        if let Some(shared) = whole {
            // Ties are told apart by order.
            return (shared.n == 1).then(|| whole_of(table, shared.newest, call, seen)).flatten();
        }
        if !seen.parts.is_empty() && self.parting.len() < PARTING_MAX {
            self.parting.insert(seen.tgid);
        }
        if let Some(parent) = part_of(table, seen) {
            return Some(Proposal::one(parent, Certainty::Probable(feature::PART)));
        }
        gathered(table, seen)
    }
}

/// The call is the whole of this one request.
fn whole_of(table: &Table, parent: Ref, _call: Ref, seen: &Observation<'_>) -> Option<Proposal> {
    let request = table.request(parent)?;
    let again = request.n_calls > 0
        && table
            .newest_calls_of(request)
            .any(|(_, call)| call.peer == seen.peer && call.content == seen.content);
    let certainty = if !request.is_open() {
        Certainty::Probable(feature::LATE)
    } else if again {
        Certainty::Probable(feature::AGAIN)
    } else if table.process(seen.tgid).hides_requests() {
        Certainty::Probable(feature::UNIQUE)
    } else {
        Certainty::IfReplyPasses
    };
    Some(Proposal::one(parent, certainty))
}

/// The only request all of whose parts the call's are among.
fn part_of(table: &Table, seen: &Observation<'_>) -> Option<Ref> {
    let first = *seen.parts.first()?;
    let shared = table.shared(table.find_shared(key(KeyKind::Part, seen.tgid, first)))?;
    let has_all = |at: Ref| {
        table.request(at).is_some_and(|request| seen.parts.iter().all(|part| request.parts().contains(part)))
    };
    let Some(ties) = &shared.ties else { return Some(shared.newest).filter(|at| has_all(*at)) };
    let mut candidates: Vec<Ref> = Vec::new();
    for (_, at) in ties.requests.iter().rev().take(SHARE_PART_MAX) {
        if has_all(*at) && !candidates.contains(at) {
            candidates.push(*at);
        }
    }
    let is_open = |at: &Ref| table.request(*at).is_some_and(super::table::Request::is_open);
    candidates.retain(is_open);
    if candidates.len() > 1 {
        // Those of which this very part was not sent on yet.
        candidates.retain(|at| {
            table.request(*at).is_some_and(|request| {
                !table
                    .newest_calls_of(request)
                    .any(|(_, call)| call.content.is_some() && call.content == seen.content)
            })
        });
        // In the order of reading, as a proxy works through them.
        return candidates.last().copied();
    }
    candidates.pop()
}

/// Every part is the whole of one request: the call was gathered from them. The one read last triggered it.
fn gathered(table: &Table, seen: &Observation<'_>) -> Option<Proposal> {
    if !(2..=BATCH_MAX).contains(&seen.parts.len()) {
        return None;
    }
    let mut all: Vec<(u64, Ref)> = Vec::with_capacity(seen.parts.len());
    for part in seen.parts {
        let shared = table.shared(table.find_shared(key(KeyKind::Part, seen.tgid, *part)))?;
        let request = table.request(shared.newest)?;
        if shared.n != 1 || !request.is_open() {
            return None;
        }
        all.push((request.order, shared.newest));
    }
    all.sort_unstable_by_key(|(order, _)| *order);
    all.dedup();
    let (_, trigger) = all.pop()?;
    let further =
        all.iter().filter_map(|(_, at)| table.request(*at)).map(|request| request.span_id).collect();
    Some(Proposal { parent: trigger, further, certainty: Certainty::Probable(feature::BATCH) })
}
