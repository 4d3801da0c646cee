//! Order: among requests that nothing else tells apart, who came first was sent on first; and the order in which
//! replies leave checks it.
//!
//! Two cases. *Ties*: several open requests have the same content. A proxy works through what it reads in order, so
//! the oldest not sent on yet is the cause (per peer where requests fan out, per reading thread where there are
//! several). *Blind*: nothing of the content is known (encrypted, rewritten), but the process makes one call of the
//! same protocol per request. Then calls say little, since a proxy writes per upstream, not per client; the replies
//! say more: each that is read leaves soon after on the connection of its request, in the order of reading.
//!
//! The check: an answer cannot leave before the reply that it passes on was read, and if both are hashed they are
//! equal. Where the believed call fails this, the oldest call that passes is the cause, and the two change places.
//! A proxy that reorders is put right by it, and so is a request of which the agent missed the beginning.
//!
//! What a reader would get wrong: this is never certain. Equal commands with equal replies that a proxy reorders
//! within one tie are exchanged without a trace, and it does not matter to any answer but whose they were.

use std::collections::VecDeque;

use dprof_common::model::{EvidenceKind, SpanId};
use rustc_hash::FxHashMap;

use super::table::{KeyKind, Ref, Reply, Request, Table, Ties, key};
use super::{Certainty, Evidence, Observation, Proposal};

/// Requests looked at for one of the same thread.
const SCAN_MAX: usize = 64;
/// Calls whose reply waits for the answer that it becomes; older ones were swallowed.
const REPLIED_MAX: usize = 4096;
/// Replies looked through for the one that an answer passes on: more than are read between two writes.
const MATCH_MAX: usize = 512;
/// Peers with a place in the order, per tie; of more the oldest are forgotten.
const CURSORS_MAX: usize = 64;
/// Peers of all processes whose order is watched for calibration.
const PEERS_MAX: usize = 16 * 1024;

/// Features.
pub(crate) mod feature {
    /// Same content.
    pub(crate) const TIE: u8 = 0;
    /// Content unknown, by the order of calls alone.
    pub(crate) const BLIND: u8 = 1;
    /// Content unknown, by the order of replies.
    pub(crate) const BLIND_CHECKED: u8 = 2;
}

/// Evidence by order.
#[derive(Debug, Default)]
pub(crate) struct Order {
    /// Of processes whose content is not known: all open requests.
    blind: FxHashMap<u32, Ties>,
}

/// Whether causes come in the order of reading, per process and peer.
#[derive(Debug, Default)]
pub(crate) struct InOrder {
    /// The order number of the last certain cause.
    last: FxHashMap<u64, u64>,
}

impl InOrder {
    /// What order says of a call that stronger evidence has answered: that cause if it is no older than the last one
    /// of this peer, else nobody. So certain links tell how good order is where there is nothing better.
    pub(crate) fn said(&mut self, peer: u64, parent: &Request) -> (SpanId, u8) {
        if self.last.len() >= PEERS_MAX {
            self.last.clear();
        }
        let last = self.last.entry(peer ^ (u64::from(parent.tgid) << 32)).or_default();
        let in_order = parent.order >= *last;
        *last = parent.order.max(*last);
        (if in_order { parent.span_id } else { SpanId(0) }, feature::TIE)
    }
}

/// The next request after the cursor of this peer and thread, which moves on.
fn next(ties: &mut Ties, table: &Table, seen: &Observation<'_>, fans_out: bool) -> Option<Ref> {
    let lane = if fans_out { seen.peer } else { 0 } ^ (u64::from(seen.tid) << 17);
    let after = ties.cursors.iter().find(|(of, _)| *of == lane).map_or(0, |(_, order)| *order);
    let from = ties.requests.partition_point(|(order, _)| *order <= after);
    let is_free = |request: &Request| {
        request.is_open()
            && request.protocol == seen.protocol
            && (request.n_calls == 0 || fans_out && request.last_peer != seen.peer)
    };
    let mut other = None;
    let mut found = None;
    for (order, at) in ties.requests.range(from..).take(SCAN_MAX) {
        let Some(request) = table.request(*at).filter(|request| is_free(request)) else { continue };
        if request.tid == seen.tid {
            found = Some((*order, *at));
            break;
        }
        other = other.or(Some(*at));
    }
    let Some((order, at)) = found else { return other };
    if let Some((_, cursor)) = ties.cursors.iter_mut().find(|(of, _)| *of == lane) {
        *cursor = order;
    } else {
        if ties.cursors.len() >= CURSORS_MAX {
            ties.cursors.remove(0);
        }
        ties.cursors.push((lane, order));
    }
    Some(at)
}

/// The oldest call whose reply may be the one that answers `request`.
fn matching(replied: &VecDeque<Ref>, table: &Table, request: &Request) -> Option<Ref> {
    let Reply::Seen(answer) = request.reply else { return None };
    replied.iter().take(MATCH_MAX).copied().find(|at| {
        table.call(*at).is_some_and(|call| {
            let Reply::Seen(reply) = call.reply else { return false };
            !call.is_final
                && !call.is_matched
                && call.order > request.order
                && (reply == answer || reply.is_none() || answer.is_none())
        })
    })
}

/// `request` has been answered: gives it the call whose reply that was. `exchange`: only if its own cannot be it.
fn settle(table: &mut Table, mut replied: VecDeque<Ref>, at: Ref, own_first: bool) -> VecDeque<Ref> {
    let Some(request) = table.request(at) else { return replied };
    let Reply::Seen(answer) = request.reply else { return replied };
    let own = table
        .newest_calls_of(request)
        .find(|(_, call)| {
            let Reply::Seen(reply) = call.reply else { return false };
            reply == answer || reply.is_none() || answer.is_none()
        })
        .map(|(at, _)| at);
    let found = own.filter(|_| own_first).or_else(|| matching(&replied, table, request)).or(own);
    let Some(found) = found else { return replied };
    let displaced = table.newest_calls_of(request).map(|(at, _)| at).next().filter(|at| *at != found);
    let former = table.call(found).and_then(|call| call.parent);
    if former != Some(at) {
        // One whose request was answered needs no other call.
        let needs_one = former.and_then(|at| table.request(at)).is_none_or(Request::is_open);
        let ours = displaced
            .filter(|at| needs_one && table.call(*at).is_some_and(|call| !call.is_final && !call.is_matched));
        table.link(found, Some(at));
        if let Some(ours) = ours {
            table.link(ours, former);
        }
    }
    if let Some(call) = table.call_mut(found) {
        call.is_matched = true;
        call.certainty = match call.certainty {
            Certainty::Probable(feature::BLIND) => Certainty::Probable(feature::BLIND_CHECKED),
            other => other,
        };
        let peer = call.peer;
        if let Some(request) = table.request_mut(at) {
            request.matched_peer = Some(peer);
        }
    }
    let done = |at: Ref| table.call(at).is_none_or(|call| call.is_final || call.is_matched);
    while replied.front().is_some_and(|at| done(*at)) {
        replied.pop_front();
    }
    replied
}

impl Evidence for Order {
    fn kind(&self) -> EvidenceKind {
        EvidenceKind::Order
    }

    fn request_read(&mut self, table: &mut Table, request: Ref, seen: &Observation<'_>) {
        let blind = table.process(seen.tgid).is_blind_relay();
        if !blind {
            return;
        }
        let order = table.request(request).map_or(0, |request| request.order);
        let ties = self.blind.entry(seen.tgid).or_default();
        ties.requests.push_back((order, request));
        while ties.requests.len() > REPLIED_MAX
            || ties.requests.front().is_some_and(|(_, at)| table.request(*at).is_none_or(|r| !r.is_open()))
        {
            ties.requests.pop_front();
        }
    }

    fn call_made(&mut self, table: &mut Table, _call: Ref, seen: &Observation<'_>) -> Option<Proposal> {
        let process = table.process(seen.tgid);
        let key = seen.content.map(|hash| key(KeyKind::Content, seen.tgid, hash));
        if let Some(shared) = key.and_then(|key| table.shared_mut(key)) {
            let mut ties = shared.ties.take()?;
            let newest = shared.newest;
            let parent = next(&mut ties, table, seen, process.fans_out()).or_else(|| {
                // All were sent on: this is one of them again.
                table
                    .request(newest)
                    .filter(|request| request.is_open() && request.n_calls > 0)
                    .map(|_| newest)
            });
            if let Some(shared) = key.and_then(|key| table.shared_mut(key)) {
                shared.ties = Some(ties);
            }
            return parent.map(|parent| Proposal::one(parent, Certainty::Probable(feature::TIE)));
        }
        if !process.is_blind_relay() {
            return None;
        }
        let ties = self.blind.get_mut(&seen.tgid)?;
        next(ties, table, seen, false)
            .map(|parent| Proposal::one(parent, Certainty::Probable(feature::BLIND)))
    }

    fn reply_read(&mut self, table: &mut Table, call_at: Ref, _seen: &Observation<'_>) {
        let Some(call) =
            table.call(call_at).filter(|call| call.kind == EvidenceKind::Order && !call.is_final)
        else {
            return;
        };
        let tgid = call.tgid;
        let replied = match call.certainty {
            Certainty::Probable(feature::TIE) => {
                let Some(hash) = call.content else { return };
                let shared = table.shared_mut(key(KeyKind::Content, tgid, hash));
                shared.and_then(|shared| shared.ties.as_mut()).map(|ties| &mut ties.replied)
            }
            _ => self.blind.get_mut(&tgid).map(|ties| &mut ties.replied),
        };
        if let Some(replied) = replied {
            replied.push_back(call_at);
            if replied.len() > REPLIED_MAX {
                replied.pop_front();
            }
        }
    }

    fn request_done(&mut self, table: &mut Table, request_at: Ref, _seen: Option<&Observation<'_>>) {
        let Some(request) = table.request(request_at) else { return };
        let tgid = request.tgid;
        let tied = request.content.map(|hash| key(KeyKind::Content, tgid, hash));
        if let Some(tied) = tied
            && let Some(ties) = table.shared_mut(tied).and_then(|shared| shared.ties.as_mut())
        {
            let replied = std::mem::take(&mut ties.replied);
            let replied = settle(table, replied, request_at, true);
            if let Some(ties) = table.shared_mut(tied).and_then(|shared| shared.ties.as_mut()) {
                ties.replied = replied;
            }
        } else if let Some(ties) = self.blind.get_mut(&tgid) {
            let replied = std::mem::take(&mut ties.replied);
            ties.replied = settle(table, replied, request_at, false);
        }
    }
}
