//! Replies: which call an answer passes on. A proxy passes each reply on soon after it was read, so replies tell
//! what calls did not.
//!
//! Whether the first request not sent on yet is a better guess than the reply that came first differs from process to
//! process, and shows: where the call that was guessed had its reply when its request was answered, guesses stand.
//! Even then they must keep what a proxy keeps: on one connection calls come in the order of their causes, and the
//! first answers of connections leave in the order in which their replies came (later ones on the same connection
//! may have waited for them).
//!
//! What a reader would get wrong: nothing here is proof. Where guesses fail often, the oldest reply that keeps the
//! rules is taken instead.

use rustc_hash::FxHashMap;

use super::Certainty;
use super::matched::Matched;
use super::order::feature;
use super::routes::is_alike;
use super::table::{Call, Ref, Reply, Request, Table, Ties};

/// Replies looked through for the one that an answer passes on: more than are read between two writes.
const MATCH_MAX: usize = 512;
/// Answers after which it is known whether the first guess holds in a process…
const GUESSES_MIN: u32 = 16;
/// …and of ten, how many guesses must have held for it to stand.
const HELD_OF_TEN: u32 = 9;
/// Counts are halved here, so that they follow a process that changes.
const GUESSES_MAX: u32 = 1024;
/// Of this many first answers the guesses for one may put replies out of order: else guesses are wrong.
const REVERSED_ONE_IN: u32 = 10;
/// Connections whose last answer is remembered.
const CONNECTIONS_MAX: usize = 16 * 1024;

/// A process whose content is not known.
#[derive(Debug, Default)]
pub(crate) struct Blind {
    /// All open requests.
    pub(crate) ties: Ties,
    /// Calls without a guess.
    pub(crate) early: Vec<Ref>,
    /// Answered requests, and those whose guessed call had its reply.
    n_guesses: u32,
    n_held: u32,
    /// Per connection, the turn in which it was answered last.
    answered: FxHashMap<u64, u32>,
    /// The reply that the last first answer of a turn passed on.
    last_reply: u64,
    /// First answers, and those whose guess would put replies out of order.
    n_first: u32,
    n_reversed: u32,
}

impl Blind {
    fn note_guess(&mut self, held: bool) {
        self.n_guesses += 1;
        self.n_held += u32::from(held);
        if self.n_guesses >= GUESSES_MAX {
            (self.n_guesses, self.n_held) = (self.n_guesses / 2, self.n_held / 2);
            (self.n_first, self.n_reversed) = (self.n_first / 2, self.n_reversed / 2);
        }
    }

    /// `request` has been answered: gives it the call whose reply that was. `turn`: of the process.
    pub(crate) fn answered(&mut self, table: &mut Table, at: Ref, turn: u32, same_operation: bool) {
        let Some(request) = table.request(at) else { return };
        let guess = request.first_believed.and_then(|at| table.call(at));
        self.note_guess(guess.is_some_and(|call| matches!(call.reply, Reply::Seen(_))));
        if self.answered.len() >= CONNECTIONS_MAX {
            self.answered.clear();
        }
        let is_first = self.answered.insert(request.sock, turn) != Some(turn);
        if is_first {
            self.n_first += 1;
            self.n_reversed += u32::from(guess.is_some_and(|call| call.reply_number <= self.last_reply));
        }
        let own_first = self.guesses_hold();
        let after_reply = if is_first && own_first { self.last_reply } else { 0 };
        let rules = Rules { own_first, same_operation, in_order: true, after_reply };
        let found = settle(table, &mut self.ties, at, rules);
        if is_first && let Some(found) = found.and_then(|at| table.call(at)) {
            self.last_reply = found.reply_number;
        }
    }

    /// Whether guesses have been answered in time, and in the order of replies.
    const fn guesses_hold(&self) -> bool {
        (self.n_guesses < GUESSES_MIN || self.n_held >= self.n_guesses / 10 * HELD_OF_TEN)
            && (self.n_first < GUESSES_MIN || self.n_reversed <= self.n_first / REVERSED_ONE_IN)
    }
}

/// What is known of a process whose replies are matched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// The call that a request was guessed to have made is its own unless it cannot be.
    pub(crate) own_first: bool,
    /// A call asks for what its request asks for.
    pub(crate) same_operation: bool,
    /// Calls on one connection come in the order of their causes: nothing is repeated.
    pub(crate) in_order: bool,
    /// The reply was read after this one.
    pub(crate) after_reply: u64,
}

impl Rules {
    /// Whether `call` may be of `request`.
    fn allow(self, ties: &Ties, call: &Call, request: &Request) -> bool {
        call.reply_number > self.after_reply
            && (!self.same_operation || is_alike(call.operation, request.operation))
            && (!self.in_order || ties.matched.keep_order(call.sock, call.number, request.order))
    }
}

/// The oldest call whose reply may be the one that answers `request`.
fn matching(ties: &Ties, table: &Table, request: &Request, rules: Rules) -> Option<Ref> {
    let Reply::Seen(answer) = request.reply else { return None };
    ties.replied.iter().take(MATCH_MAX).copied().find(|at| {
        table.call(*at).is_some_and(|call| {
            let Reply::Seen(reply) = call.reply else { return false };
            !call.is_final
                && !call.is_matched
                && call.order > request.order
                && rules.allow(ties, call, request)
                && (reply == answer || reply.is_none() || answer.is_none())
        })
    })
}

/// A request has been answered: gives it the call whose reply that was, which is returned.
pub(crate) fn settle(table: &mut Table, ties: &mut Ties, at: Ref, rules: Rules) -> Option<Ref> {
    let request = table.request(at)?;
    let Reply::Seen(answer) = request.reply else { return None };
    let own = table
        .newest_calls_of(request)
        .find(|(_, call)| {
            let Reply::Seen(reply) = call.reply else { return false };
            reply == answer || reply.is_none() || answer.is_none()
        })
        .map(|(at, _)| at);
    let is_allowed = |at: &Ref| table.call(*at).is_some_and(|call| rules.allow(ties, call, request));
    let found = own.filter(|at| rules.own_first && is_allowed(at));
    let found = found.or_else(|| matching(ties, table, request, rules)).or(own)?;
    let displaced = table.newest_calls_of(request).map(|(at, _)| at).next().filter(|at| *at != found);
    let former = table.call(found).and_then(|call| call.parent);
    let order = request.order;
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
        let (peer, sock, number) = (call.peer, call.sock, call.number);
        if let Some(request) = table.request_mut(at) {
            request.matched_peer = Some(peer);
        }
        ties.matched.push(Matched { sock, call: number, request: order });
    }
    let done = |at: Ref| table.call(at).is_none_or(|call| call.is_final || call.is_matched);
    while ties.replied.front().is_some_and(|at| done(*at)) {
        ties.replied.pop_front();
    }
    Some(found)
}
