//! Which request a response answers, on one connection.
//!
//! What a reader would get wrong: in FIFO order a request that was given up keeps its place, because its answer
//! may still come and must not be given to the next one. And after a loss nobody knows how many requests or
//! answers are missing: pairs are then marked until the order is certain again.

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

/// After a loss, a connection that was silent this long has no answer under way: pairs are certain again.
pub(crate) const RESYNC_IDLE_NS: u64 = 20_000_000;

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
    /// An answer was paired.
    paired: bool,
    /// When an answer was paired a later request was open already.
    pipelined: bool,
}

impl Pairing {
    /// Adds a request. Returns a request whose place it takes (the same id again), and whether there is room.
    pub(crate) fn push(&mut self, correlation: Correlation, slot: u32) -> Result<Option<u32>, u32> {
        match correlation {
            Correlation::Fifo if self.fifo.len() >= FIFO_MAX => Err(slot),
            Correlation::Fifo => {
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
                self.paired |= place.is_some();
                self.pipelined |= !self.fifo.is_empty();
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
    }

    /// Whether the connection has always asked one thing at a time: then a request says that all earlier ones
    /// were answered, seen or not.
    pub(crate) const fn is_sequential(&self) -> bool {
        self.paired && !self.pipelined
    }

    /// Takes out everything in FIFO order but the newest, oldest first.
    pub(crate) fn all_but_newest(&mut self) -> Vec<u32> {
        let n = self.fifo.len().saturating_sub(1);
        self.fifo.drain(..n).flatten().collect()
    }

    /// Whether a request that comes after `idle_ns` of silence makes the order certain again: nothing can be
    /// under way.
    pub(crate) const fn may_resync(&self, idle_ns: u64) -> bool {
        self.uncertain && idle_ns >= RESYNC_IDLE_NS
    }

    /// Forgets the FIFO's order. Returns what was open, oldest first.
    pub(crate) fn resync(&mut self) -> impl Iterator<Item = u32> + use<> {
        self.uncertain = false;
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
        assert!(!pairing.may_resync(RESYNC_IDLE_NS - 1));
        assert!(pairing.may_resync(RESYNC_IDLE_NS));
        assert_eq!(pairing.resync().collect::<Vec<_>>(), [1, 2]);
        assert!(!pairing.is_uncertain());
    }

    #[test]
    fn one_thing_at_a_time_is_learned_from_answers() {
        let mut pairing = Pairing::default();
        assert!(!pairing.is_sequential(), "nothing is known yet");
        assert!(pairing.push(Correlation::Fifo, 1).is_ok());
        assert_eq!(pairing.take(Correlation::Fifo), Taken::Slot(1));
        assert!(pairing.is_sequential());
        // Two answers were lost: three requests seem open, two of them are not.
        for slot in 2..5 {
            assert!(pairing.push(Correlation::Fifo, slot).is_ok());
        }
        assert!(pairing.is_sequential());
        assert_eq!(pairing.all_but_newest(), [2, 3]);
        assert!(pairing.push(Correlation::Fifo, 5).is_ok());
        assert_eq!(pairing.take(Correlation::Fifo), Taken::Slot(4));
        assert!(!pairing.is_sequential(), "answered while a later one was open");
    }
}
