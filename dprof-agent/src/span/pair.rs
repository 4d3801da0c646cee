//! Which request a response answers, on one connection.
//!
//! What a reader would get wrong: in FIFO order a request that was given up keeps its place, because its answer
//! may still come and must not be given to the next one. And after a loss nobody knows how many requests or
//! answers are missing: pairs are then marked until the order is certain again. It is at once on a connection that
//! was seen to ask one thing at a time for long: there a request says that all before it were answered. On others
//! only silence after an answer makes it so.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use super::Timed;
use crate::protocol::Correlation;

/// Places in one connection's FIFO, given-up ones included. A peer that sends requests and never reads answers
/// would otherwise grow it without end.
pub(crate) const FIFO_MAX: usize = 64 * 1024;

/// Answers kept that were read before their request was seen to leave (another thread sent it and lost the CPU
/// before its hook ran).
pub(crate) const EARLY_MAX: usize = 4;

/// After a loss, a connection that was silent this long after an answer has none under way: pairs are certain again.
pub(crate) const RESYNC_IDLE_NS: u64 = 20_000_000;

/// After the capture window opened, pairs are made again on a pipelined connection once its requests in flight have
/// gone back to their lowest number this often and never below: most likely it was idle then. One that never drains
/// would look the same, so those pairs are marked until silence makes the order certain.
const FLOOR_TOUCHES: u8 = 3;

/// Requests in flight on a connection of which a part was not seen, relative to when counting began.
///
/// What is in flight then is some unknown number; every answer counts it down, so the lowest level seen is the best
/// guess at "nothing in flight", and it is right as soon as the connection has drained once. A parser may pass over
/// messages until it finds its boundary again, so a direction counts from its first message on.
#[derive(Clone, Copy, Debug, Default)]
struct Floor {
    in_flight: i64,
    lowest: i64,
    touches: u8,
    /// How many are enough.
    enough: u8,
    /// Requests, responses: no message came since bytes passed unseen.
    unsettled: [bool; 2],
}

impl Floor {
    /// A message came: of requests (0) or of responses (1).
    const fn settle(&mut self, idx: usize) {
        if self.unsettled[idx] {
            self.unsettled[idx] = false;
            (self.in_flight, self.lowest, self.touches) = (0, 0, 0);
        }
    }
}
/// And at least this many times the slowest answer it ever gave: a slow server is silent, too.
const RESYNC_SLOWEST_TIMES: u64 = 4;

/// Exchanges one at a time after which a connection is taken for one that always does so: more than the handshakes of
/// clients that pipeline later (HELLO, AUTH, SELECT, CLIENT SETINFO).
pub(crate) const SEQUENTIAL_MIN: u32 = 8;

/// What a response finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The request in this slot of the open table.
    Slot(u32),
    /// A request that was given up.
    GivenUp,
    /// Nothing.
    Nothing,
}

/// Requests of a connection in the order of their answers, as slots of the open table.
#[derive(Debug, Default)]
pub(crate) struct Pairing {
    /// `None` = given up.
    fifo: VecDeque<Option<u32>>,
    by_id: FxHashMap<u64, u32>,
    /// Responses before their request.
    pub(crate) early: Vec<Timed>,
    /// Something was lost, and the order is not certain.
    uncertain: bool,
    /// Answers that were paired when no other request was open.
    n_sequential: u32,
    /// Several requests were open at once.
    pipelined: bool,
    /// Something passed outside the capture window: nothing is paired until the order is known again.
    blind: Option<Floor>,
    /// Something was lost on a connection that asks one thing at a time: true if it still does.
    suspect: bool,
    /// Something was lost at any time.
    has_lost: bool,
    /// The last message was an answer.
    answered_last: bool,
    /// Longest time from a request to its answer.
    slowest_ns: u64,
}

impl Pairing {
    /// Of a connection that is older than what was seen of it: what is under way is not known, unless it is silent.
    pub(crate) fn joined() -> Self {
        Self { uncertain: true, answered_last: true, ..Self::default() }
    }

    /// Adds a request. Returns a request whose place it takes (the same id again), and whether there is room.
    pub(crate) fn push(&mut self, correlation: Correlation, slot: u32) -> Result<Option<u32>, u32> {
        match correlation {
            Correlation::Fifo if self.fifo.len() >= FIFO_MAX => Err(slot),
            Correlation::Fifo => {
                // One at a time no more: what was lost may still be under way.
                self.uncertain |= self.suspect && !self.fifo.is_empty();
                self.answered_last = false;
                self.fifo.push_back(Some(slot));
                Ok(None)
            }
            Correlation::Id(id) => Ok(self.by_id.insert(id, slot)),
        }
    }

    /// The request that a response answers.
    pub(crate) fn take(&mut self, correlation: Correlation) -> Taken {
        match correlation {
            Correlation::Fifo => {
                let place = self.fifo.pop_front();
                self.answered_last = true;
                if !self.fifo.is_empty() {
                    self.pipelined = true;
                    self.uncertain |= self.suspect;
                } else if place.is_some() {
                    self.n_sequential = self.n_sequential.saturating_add(1);
                    self.suspect = false;
                } else {
                    self.uncertain |= self.suspect;
                }
                match place {
                    Some(Some(slot)) => Taken::Slot(slot),
                    Some(None) => Taken::GivenUp,
                    None => Taken::Nothing,
                }
            }
            Correlation::Id(id) => self.by_id.remove(&id).map_or(Taken::Nothing, Taken::Slot),
        }
    }

    /// The request in `slot` is given up.
    pub(crate) fn give_up(&mut self, correlation: Correlation, slot: u32) {
        match correlation {
            Correlation::Fifo => {
                // The oldest is given up first, so it is near the front.
                if let Some(place) = self.fifo.iter_mut().find(|place| **place == Some(slot)) {
                    *place = None;
                }
            }
            Correlation::Id(id) => {
                if self.by_id.get(&id) == Some(&slot) {
                    self.by_id.remove(&id);
                }
            }
        }
    }

    /// Whether pairs in FIFO order are to be marked.
    pub(crate) const fn is_uncertain(&self) -> bool {
        self.uncertain
    }

    /// The order was lost.
    pub(crate) const fn lose(&mut self) {
        self.uncertain = true;
        self.suspect = false;
        self.has_lost = true;
        self.answered_last = false;
    }

    /// Something was lost, but the connection [is sequential](Self::is_sequential).
    pub(crate) const fn suspect(&mut self) {
        self.suspect = true;
        self.has_lost = true;
        self.answered_last = false;
    }

    /// Something was lost; it may be forgiven where the connection was sequential until then.
    pub(crate) const fn doubt(&mut self, is_sequential: bool) {
        if is_sequential {
            self.suspect();
        } else {
            self.lose();
        }
    }

    /// Whether anything was ever lost.
    pub(crate) const fn has_lost(&self) -> bool {
        self.has_lost
    }

    /// Whether something was lost and no exchange since has shown the connection to be what it was.
    pub(crate) const fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// Several requests came in one call.
    pub(crate) const fn note_batch(&mut self) {
        self.pipelined = true;
    }

    /// A pair of certain order took this long.
    pub(crate) fn note_latency(&mut self, ns: u64) {
        self.slowest_ns = self.slowest_ns.max(ns);
    }

    /// The capture window closed: every request is given up, its place in the order stays. Their slots.
    pub(crate) fn give_up_all(&mut self) -> Vec<u32> {
        let slots = self.fifo.iter_mut().filter_map(Option::take);
        let slots = slots.chain(self.by_id.drain().map(|(_, slot)| slot)).collect();
        self.early.clear();
        slots
    }

    /// Bytes passed outside the capture window, of requests, of responses, or of either. Nothing is paired until the
    /// order is known again: at once where the connection asks one thing at a time, as is known of it or, unless it was
    /// seen to do otherwise, `by_custom` of its protocol (then pairs are marked). Slots that are dropped.
    pub(crate) fn skip_unseen(&mut self, requests: bool, responses: bool, by_custom: bool) -> Vec<u32> {
        (self.uncertain, self.suspect) = (false, false);
        let before = self.blind.map_or([false; 2], |floor| floor.unsettled);
        self.blind = Some(Floor {
            enough: if self.is_sequential() || (by_custom && !self.pipelined) { 1 } else { FLOOR_TOUCHES },
            unsettled: [before[0] || requests, before[1] || responses],
            ..Floor::default()
        });
        self.fifo.drain(..).flatten().collect()
    }

    /// A request came, after `idle_ns` of silence: whether the order is known from it on.
    pub(crate) fn is_known_at_request(&mut self, idle_ns: u64) -> bool {
        let Some(floor) = &mut self.blind else { return true };
        floor.settle(0);
        floor.touches += u8::from(floor.in_flight == floor.lowest);
        floor.in_flight += 1;
        let was_silent = idle_ns >= RESYNC_IDLE_NS;
        let is_idle = was_silent || floor.touches >= floor.enough;
        if is_idle && floor.unsettled == [false; 2] {
            self.blind = None;
            self.uncertain = !was_silent && !self.is_sequential();
        }
        self.blind.is_none()
    }

    /// A response came: whether the order is known.
    pub(crate) fn is_known_at_response(&mut self) -> bool {
        let Some(floor) = &mut self.blind else { return true };
        floor.settle(1);
        floor.in_flight -= 1;
        if floor.in_flight < floor.lowest {
            floor.lowest = floor.in_flight;
            floor.touches = 0;
        }
        false
    }

    /// Whether the connection has always asked one thing at a time: then a request says that all earlier ones
    /// were answered, seen or not.
    pub(crate) const fn is_sequential(&self) -> bool {
        !self.pipelined && self.n_sequential >= SEQUENTIAL_MIN && !self.uncertain
    }

    /// Takes out everything in FIFO order but the newest `n_kept`, oldest first.
    pub(crate) fn all_but(&mut self, n_kept: usize) -> Vec<u32> {
        let n = self.fifo.len().saturating_sub(n_kept);
        self.fifo.drain(..n).flatten().collect()
    }

    /// Whether a request that comes after `idle_ns` of silence, in which nothing was lost, makes the order certain
    /// again: nothing can be under way.
    pub(crate) const fn may_resync(&self, idle_ns: u64) -> bool {
        self.uncertain
            && self.answered_last
            && idle_ns >= RESYNC_IDLE_NS
            && idle_ns / RESYNC_SLOWEST_TIMES >= self.slowest_ns
    }

    /// Forgets the FIFO's order. Returns what was open, oldest first.
    pub(crate) fn resync(&mut self) -> impl Iterator<Item = u32> + use<> {
        self.uncertain = false;
        self.suspect = false;
        std::mem::take(&mut self.fifo).into_iter().flatten()
    }

    /// Everything open, oldest first in FIFO order, then by id.
    pub(crate) fn drain(&mut self) -> Vec<u32> {
        let mut ids: Vec<_> = std::mem::take(&mut self.by_id).into_iter().collect();
        ids.sort_unstable();
        std::mem::take(&mut self.fifo)
            .into_iter()
            .flatten()
            .chain(ids.into_iter().map(|(_, slot)| slot))
            .collect()
    }

    /// Slots in FIFO order.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = u32> {
        self.fifo.iter().copied().flatten()
    }

    /// Slots of every open request, in no order that matters.
    pub(crate) fn all(&self) -> impl Iterator<Item = u32> {
        self.in_order().chain(self.by_id.values().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `script`: `+3` request in slot 3, `+3#7` with id 7, `-` response, `-#7` with id, `x3` give up slot 3.
    #[track_caller]
    fn check(script: &str, expected: &str) {
        let (mut pairing, mut found) = (Pairing::default(), Vec::new());
        for step in script.split_whitespace() {
            let (op, rest) = step.split_at(1);
            let (slot, correlation) = match rest.split_once('#') {
                Some((slot, id)) => (slot, Correlation::Id(id.parse().expect("id"))),
                None => (rest, Correlation::Fifo),
            };
            let slot = || slot.parse().expect("slot");
            match op {
                "+" => {
                    if let Ok(Some(old)) = pairing.push(correlation, slot()) {
                        found.push(format!("old{old}"));
                    }
                }
                "x" => pairing.give_up(correlation, slot()),
                _ => found.push(match pairing.take(correlation) {
                    Taken::Slot(slot) => slot.to_string(),
                    Taken::GivenUp => "given_up".to_owned(),
                    Taken::Nothing => "nothing".to_owned(),
                }),
            }
        }
        assert_eq!(found.join(" "), expected);
    }

    #[test]
    fn responses_come_in_the_order_of_requests() {
        check("+1 +2 - +3 - - -", "1 2 3 nothing");
        check("- +1 -", "nothing 1");
    }

    #[test]
    fn a_request_that_was_given_up_keeps_its_place() {
        check("+1 +2 x1 - -", "given_up 2");
        check("+1 +2 x2 - - -", "1 given_up nothing");
    }

    #[test]
    fn ids_pair_in_any_order() {
        check("+1#7 +2#8 -#8 -#7 -#7", "2 1 nothing");
        check("+1#7 x1#7 -#7", "nothing");
        check("+1#7 +2#7 -#7", "old1 2");
    }

    #[test]
    fn the_order_has_a_limit() {
        let mut pairing = Pairing::default();
        for slot in 0..FIFO_MAX {
            assert_eq!(pairing.push(Correlation::Fifo, slot as u32), Ok(None));
        }
        assert_eq!(pairing.push(Correlation::Fifo, 0), Err(0));
    }

    #[test]
    fn after_a_loss_only_silence_makes_certain() {
        let mut pairing = Pairing::default();
        assert!(pairing.push(Correlation::Fifo, 1).is_ok());
        pairing.lose();
        assert!(pairing.push(Correlation::Fifo, 2).is_ok());
        assert!(pairing.push(Correlation::Fifo, 3).is_ok());
        assert!(!pairing.may_resync(RESYNC_IDLE_NS), "the last message was a request");
        assert_eq!(pairing.take(Correlation::Fifo), Taken::Slot(1));
        assert!(!pairing.may_resync(RESYNC_IDLE_NS - 1));
        assert!(pairing.may_resync(RESYNC_IDLE_NS));
        pairing.note_latency(RESYNC_IDLE_NS);
        assert!(!pairing.may_resync(RESYNC_IDLE_NS), "it answers as slowly as it is silent");
        assert!(pairing.may_resync(4 * RESYNC_IDLE_NS));
        assert_eq!(pairing.resync().collect::<Vec<_>>(), [2, 3]);
        assert!(!pairing.is_uncertain());
    }

    /// `script`: `q` a request, `a` an answer, on a pipelined connection of which a part passed unseen. Expected: how
    /// many messages came before the order was known; `None` = it never was.
    #[track_caller]
    fn check_blind(script: &str, expected: Option<usize>) {
        let mut pairing = Pairing::default();
        assert_eq!(pairing.skip_unseen(true, true, false), [0_u32; 0]);
        let known = script.bytes().position(|message| match message {
            b'q' => pairing.is_known_at_request(0),
            _ => pairing.is_known_at_response(),
        });
        assert_eq!(known, expected, "{script}");
    }

    #[test]
    fn after_the_window_opened_the_order_is_known_once_the_connection_was_idle() {
        check_blind("qaqaqaqa", Some(6));
        // Two answers of requests that were not seen, then three rounds of a pipeline of two.
        check_blind("aaqqaaqqaaqqaa", Some(10));
        // The first answer was passed over by its parser.
        check_blind("qqaqqaaqqaaqqaa", Some(11));
        check_blind("aqaaqaaqa", None);
    }

    #[test]
    fn who_asks_one_thing_at_a_time_by_custom_is_paired_at_once_and_marked_unless_he_pipelined() {
        let first_known = |mut pairing: Pairing| {
            let _ = pairing.skip_unseen(true, true, true);
            assert!(!pairing.is_known_at_response(), "it answers what was not seen");
            let is_known = pairing.is_known_at_request(0);
            (is_known, pairing.is_uncertain())
        };
        assert_eq!(first_known(Pairing::default()), (true, true));
        let mut pipelined = Pairing::default();
        assert!(pipelined.push(Correlation::Fifo, 1).is_ok() && pipelined.push(Correlation::Fifo, 2).is_ok());
        assert_eq!(pipelined.take(Correlation::Fifo), Taken::Slot(1));
        assert_eq!(first_known(pipelined), (false, false));
    }

    #[test]
    fn requests_given_up_at_the_edge_keep_their_place_unless_their_answers_passed_unseen() {
        let mut pairing = Pairing::default();
        assert!(pairing.push(Correlation::Fifo, 1).is_ok());
        assert_eq!(pairing.give_up_all(), [1]);
        assert!(pairing.push(Correlation::Fifo, 2).is_ok());
        assert_eq!(pairing.take(Correlation::Fifo), Taken::GivenUp);
        assert_eq!(pairing.take(Correlation::Fifo), Taken::Slot(2));
        // That connection asks one thing at a time? No: the second was open when the first was answered.
        assert!(pairing.push(Correlation::Fifo, 3).is_ok());
        assert_eq!(pairing.skip_unseen(true, false, false), [3]);
        assert!(
            !pairing.is_known_at_request(RESYNC_IDLE_NS - 1) && pairing.is_known_at_request(RESYNC_IDLE_NS)
        );
    }

    /// A connection that asked one thing at a time for long.
    fn sequential() -> Pairing {
        let mut pairing = Pairing::default();
        for _ in 0..SEQUENTIAL_MIN {
            assert!(!pairing.is_sequential());
            assert!(pairing.push(Correlation::Fifo, 1).is_ok());
            assert_eq!(pairing.take(Correlation::Fifo), Taken::Slot(1));
        }
        pairing
    }

    #[test]
    fn one_thing_at_a_time_is_learned_from_answers() {
        let mut pairing = sequential();
        assert!(pairing.is_sequential());
        // Two answers were lost: three requests seem open, two of them are not.
        for slot in 2..5 {
            assert!(pairing.push(Correlation::Fifo, slot).is_ok());
        }
        assert!(pairing.is_sequential());
        assert_eq!(pairing.all_but(1), [2, 3]);
        assert!(pairing.push(Correlation::Fifo, 5).is_ok());
        assert_eq!(pairing.take(Correlation::Fifo), Taken::Slot(4));
        assert!(!pairing.is_sequential(), "answered while a later one was open");
    }

    #[test]
    fn a_loss_is_forgiven_only_while_one_thing_is_asked_at_a_time() {
        let after_loss = || {
            let mut pairing = sequential();
            pairing.suspect();
            assert!(pairing.push(Correlation::Fifo, 2).is_ok());
            pairing
        };
        let mut pairing = after_loss();
        assert_eq!(pairing.take(Correlation::Fifo), Taken::Slot(2));
        assert!(!pairing.is_uncertain() && !pairing.is_suspect());
        let mut pairing = after_loss();
        assert!(pairing.push(Correlation::Fifo, 3).is_ok());
        assert!(pairing.is_uncertain());
        let mut pairing = sequential();
        pairing.suspect();
        assert_eq!(pairing.take(Correlation::Fifo), Taken::Nothing);
        assert!(pairing.is_uncertain());
    }
}
