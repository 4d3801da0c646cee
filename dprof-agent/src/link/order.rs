//! Order: among requests that nothing else tells apart, who came first was sent on first; and the order in which
//! replies leave checks it.
//!
//! *Routes* come first: where an event loop sends its requests is known ([`super::routes`]), the turn tells. Else two
//! cases. *Ties*: several open requests have the same content. A proxy works through what it reads in order, so
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
use std::hash::BuildHasher as _;

use dprof_common::model::{EvidenceKind, SpanId};
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::remembered::Remembered;
use super::replies::{Blind, Rules, settle};
use super::routes::{Given, Routes, is_alike};
use super::table::{KeyKind, Ref, Request, Table, Ties, key};
use super::{Certainty, Evidence, Observation, Proposal};

/// Requests looked at for one of the same thread.
const SCAN_MAX: usize = 64;
/// Calls whose reply waits for the answer that it becomes; older ones were swallowed.
const REPLIED_MAX: usize = 4096;
/// Peers with a place in the order, per tie; of more the oldest are forgotten.
const CURSORS_MAX: usize = 64;
/// Processes with routes. They are forgotten when the table is full, and learned anew.
const PROCESSES_MAX: usize = 4096;
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
    /// Content unknown, by the turn of an event loop whose routes are known.
    pub(crate) const ROUTE: u8 = 3;
}

/// Calls made before it was known how their process works.
const EARLY_MAX: usize = 64;

/// Evidence by order.
#[derive(Debug, Default)]
pub(crate) struct Order {
    blind: Remembered<Blind>,
    routes: Remembered<Routes>,
    n_replies: u64,
    /// Kept between calls to save allocations.
    given: Vec<Given>,
}

impl Order {
    /// Something is read: calls of the turns before may be given to their requests.
    fn begin_turn(&mut self, table: &mut Table, tgid: u32) {
        let Some(routes) = self.routes.get_mut(tgid).filter(|routes| !routes.is_idle()) else { return };
        routes.begin(&mut self.given);
        if !self.given.is_empty() {
            self.give_all(table);
        }
    }

    fn give_all(&mut self, table: &mut Table) {
        for (call_at, request_at) in self.given.drain(..) {
            if give(table, call_at, request_at) {
                table.settled.push(call_at);
            }
        }
    }
}

/// Gives a call to the request that its route names; whether its cause is settled by that, or never will be.
fn give(table: &mut Table, call_at: Ref, request_at: Option<Ref>) -> bool {
    let Some(call) = table.call_mut(call_at) else { return false };
    if call.is_final || call.kind != EvidenceKind::Order || !std::mem::take(&mut call.is_provisional) {
        return false;
    }
    let (tgid, content) = (call.tgid, call.content);
    let Some((request_at, request)) = request_at.and_then(|at| Some((at, table.request(at)?))) else {
        return true;
    };
    let tied = content.filter(|hash| table.find_shared(key(KeyKind::Content, tgid, *hash)).is_some());
    if tied.is_some() && request.content.is_some() && request.content != tied {
        return true;
    }
    table.link(call_at, Some(request_at));
    if let Some(call) = table.call_mut(call_at) {
        call.is_matched = true;
        let feature = if tied.is_some() { feature::TIE } else { feature::ROUTE };
        call.certainty = Certainty::Probable(feature);
    }
    true
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

/// Which of the tied requests may have caused a call.
#[derive(Clone, Copy, Debug)]
enum Tie {
    /// All that hold what the call holds, also in another protocol's frame (DNODE before Redis); of a process that fans
    /// out once per peer.
    Content { fans_out: bool },
    /// Those of the call's protocol, and of its operation where the process hands operations on.
    Blind { relays_operations: bool },
}

/// The next request after the cursor of this peer and thread, which moves on.
fn next(ties: &mut Ties, table: &Table, seen: &Observation<'_>, tie: Tie) -> Option<Ref> {
    let (fans_out, same_protocol, same_operation) = match tie {
        Tie::Content { fans_out } => (fans_out, false, false),
        Tie::Blind { relays_operations } => (false, true, relays_operations),
    };
    let operation = if same_operation { seen.operation } else { 0 };
    let lane = if fans_out { seen.peer } else { 0 } ^ (u64::from(seen.tid) << 17) ^ operation;
    let after = ties.cursors.iter().find(|(of, _)| *of == lane).map_or(0, |(_, order)| *order);
    let mut from = first_after(&ties.requests, after);
    // Those that were answered meanwhile, of which no call was seen, are passed over for good.
    let is_answered = |at: Ref| table.request(at).is_none_or(|request| !request.is_open());
    let n_answered = ties.requests.range(from..).take_while(|(_, at)| is_answered(*at)).count();
    if n_answered > 0 {
        from += n_answered;
        move_on(&mut ties.cursors, lane, ties.requests[from - 1].0);
    }
    let is_free = |request: &Request| {
        request.is_open()
            && (!same_protocol || request.protocol == seen.protocol)
            && (!same_operation || is_alike(request.operation, seen.operation))
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
    move_on(&mut ties.cursors, lane, order);
    Some(at)
}

/// The last request of a lane that needs no call any more is number `order`.
fn move_on(cursors: &mut Vec<(u64, u64)>, lane: u64, order: u64) {
    if let Some((_, cursor)) = cursors.iter_mut().find(|(of, _)| *of == lane) {
        *cursor = order;
        return;
    }
    if cursors.len() >= CURSORS_MAX {
        cursors.remove(0);
    }
    cursors.push((lane, order));
}

/// Where the first request that was read after number `after` is. Galloping from the end (Bentley and Yao 1976): it is
/// nearly always among the last.
fn first_after(requests: &VecDeque<(u64, Ref)>, after: u64) -> usize {
    let (mut to, mut step) = (requests.len(), 1);
    while to >= step && requests[to - step].0 > after {
        to -= step;
        step *= 2;
    }
    let mut from = to.saturating_sub(step);
    while from < to {
        let middle = from.midpoint(to);
        if requests[middle].0 > after {
            to = middle;
        } else {
            from = middle + 1;
        }
    }
    to
}

/// Calls made before their process was known to be a relay, in order: each is of the first request without one.
fn catch_up(early: &mut Vec<Ref>, routes: &Routes, table: &mut Table) {
    for at in early.drain(..) {
        let Some(call) = table.call(at).filter(|call| !call.is_final && call.parent.is_none()) else {
            continue;
        };
        let first = routes.requests().iter().find(|read| {
            read.order < call.order
                && table
                    .request(read.at)
                    .is_some_and(|request| request.n_calls == 0 && request.protocol == call.protocol)
        });
        if let Some(read) = first {
            table.link(at, Some(read.at));
            table.settled.push(at);
        }
    }
}

impl Evidence for Order {
    fn kind(&self) -> EvidenceKind {
        EvidenceKind::Order
    }

    fn request_read(&mut self, table: &mut Table, request: Ref, seen: &Observation<'_>) {
        let shown = table.process(seen.tgid);
        if shown.is_leaf() {
            return;
        }
        let (is_blind_relay, is_open_relay) = (shown.is_blind_relay(), shown.is_open_relay());
        let order = table.request(request).map_or(0, |request| request.order);
        let (routes, _) = self.routes.get_or_new(seen.tgid, PROCESSES_MAX);
        if is_open_relay {
            if !routes.is_idle() {
                routes.rest(&mut self.given);
                self.give_all(table);
            }
            return;
        }
        routes.wake(order);
        routes.begin(&mut self.given);
        routes
            .read(seen.tid, (class(seen), seen.operation), order, request, |at| table.request(at).is_none());
        self.give_all(table);
        if !is_blind_relay {
            return;
        }
        let ties = &mut self.blind.get_or_new(seen.tgid, PROCESSES_MAX).0.ties;
        ties.requests.push_back((order, request));
        while ties.requests.len() > REPLIED_MAX
            || ties.requests.front().is_some_and(|(_, at)| table.request(*at).is_none_or(|r| !r.is_open()))
        {
            ties.requests.pop_front();
        }
    }

    fn call_made(&mut self, table: &mut Table, call_at: Ref, seen: &Observation<'_>) -> Option<Proposal> {
        let fans_out = table.process(seen.tgid).fans_out();
        let content_at = table.call(call_at).and_then(|call| call.content_at);
        if let Some(shared) = table.shared_mut(content_at) {
            let mut ties = shared.ties.take()?;
            let newest = shared.newest;
            let parent = next(&mut ties, table, seen, Tie::Content { fans_out }).or_else(|| {
                // All were sent on: this is one of them again.
                table
                    .request(newest)
                    .filter(|request| request.is_open() && request.n_calls > 0)
                    .map(|_| newest)
            });
            if let Some(shared) = table.shared_mut(content_at) {
                shared.ties = Some(ties);
            }
            return parent.map(|parent| Proposal::one(parent, Certainty::Probable(feature::TIE)));
        }
        let (blind, _) = self.blind.get_or_new(seen.tgid, PROCESSES_MAX);
        let process = table.process(seen.tgid);
        if !process.is_blind_relay() {
            if process.hides_content() && blind.early.len() < EARLY_MAX {
                blind.early.push(call_at);
            }
            return None;
        }
        let relays_operations = process.relays_operations();
        if let Some(routes) = self.routes.get(seen.tgid).filter(|_| !blind.early.is_empty()) {
            catch_up(&mut blind.early, routes, table);
            let open = routes.requests().iter().filter(|read| {
                table.request(read.at).is_some_and(|request| request.is_open() && request.n_calls == 0)
            });
            blind.ties.requests = open.map(|read| (read.order, read.at)).collect();
        }
        next(&mut blind.ties, table, seen, Tie::Blind { relays_operations })
            .map(|parent| Proposal::one(parent, Certainty::Probable(feature::BLIND)))
    }

    fn tells_later(&mut self, table: &mut Table, call_at: Ref, seen: &Observation<'_>) -> bool {
        let Some(routes) = self.routes.get_mut(seen.tgid).filter(|routes| !routes.is_idle()) else {
            return false;
        };
        let waits = routes.called(seen.peer, seen.operation, call_at);
        let process = table.process(seen.tgid);
        let (is_blind_relay, hides_content) = (process.is_blind_relay(), process.hides_content());
        let by_route = waits && !process.is_plain();
        let Some(call) = table.call_mut(call_at) else { return false };
        call.is_provisional = by_route;
        if call.parent.is_some() {
            return false;
        }
        let content_at = call.content_at;
        let is_tied = || table.shared(content_at).is_some_and(|shared| shared.n > 1);
        // Only of such a process calls wait to be caught up with.
        let is_early = hides_content
            && self.blind.get(seen.tgid).is_some_and(|blind| blind.early.last() == Some(&call_at));
        is_blind_relay || is_early || by_route && (hides_content || is_tied())
    }

    fn reply_read(&mut self, table: &mut Table, call_at: Ref, seen: &Observation<'_>) {
        self.begin_turn(table, seen.tgid);
        self.n_replies += 1;
        if let Some(call) = table.call_mut(call_at) {
            call.reply_number = self.n_replies;
        }
        let Some(call) =
            table.call(call_at).filter(|call| call.kind == EvidenceKind::Order && !call.is_final)
        else {
            return;
        };
        let tgid = call.tgid;
        let replied = match call.certainty {
            Certainty::Probable(feature::TIE) => {
                let shared = table.shared_mut(call.content_at);
                shared.and_then(|shared| shared.ties.as_mut()).map(|ties| &mut ties.replied)
            }
            _ => self.blind.get_mut(tgid).map(|blind| &mut blind.ties.replied),
        };
        if let Some(replied) = replied {
            replied.push_back(call_at);
            if replied.len() > REPLIED_MAX {
                replied.pop_front();
            }
        }
    }

    fn request_done(&mut self, table: &mut Table, request_at: Ref, seen: Option<&Observation<'_>>) {
        let Some(request) = table.request(request_at) else { return };
        let (tgid, content_at) = (request.tgid, request.content_at);
        if table.process(tgid).is_leaf() {
            return;
        }
        if seen.is_some()
            && let Some(routes) = self.routes.get_mut(tgid)
        {
            routes.wrote();
        }
        if let Some(mut ties) = table.shared_mut(content_at).and_then(|shared| shared.ties.take()) {
            let rules = Rules { own_first: true, same_operation: false, in_order: false, after_reply: 0 };
            settle(table, &mut ties, request_at, rules);
            if let Some(shared) = table.shared_mut(content_at) {
                shared.ties = Some(ties);
            }
        } else if let Some(blind) = self.blind.get_mut(tgid)
            && table.process(tgid).is_blind_relay()
        {
            let turn = self.routes.get(tgid).map_or(0, Routes::turn);
            let relays_operations = table.process(tgid).relays_operations();
            blind.answered(table, request_at, turn, relays_operations);
        }
    }

    fn disturbed(&mut self, tgid: u32) {
        for (_, routes) in self.routes.iter_mut().filter(|(of, _)| tgid == 0 || *of == tgid) {
            routes.disturbed();
        }
    }
}

/// What requests are alike in for an event loop.
fn class(seen: &Observation<'_>) -> u64 {
    FxBuildHasher.hash_one((seen.protocol, seen.operation))
}
