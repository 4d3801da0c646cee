//! Which request the next response answers, as far as a parser must know: only requests whose response is
//! *shaped* otherwise (HEAD, CONNECT, SUBSCRIBE, …) are remembered, all others are counted.
//!
//! What a reader would get wrong: this is not pairing. Pairing is the engine's; here a wrong answer would make
//! the parser see a body where there is none, so after a loss nothing is known until both sides were idle.

use std::collections::VecDeque;

/// Special requests in flight that are remembered; with more, which one is answered next becomes unknown.
/// A client pipelines ordinary commands by the thousand, but not these.
const SPECIAL_MAX: usize = 256;

/// What is known of the request that the next response answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next<T> {
    /// An ordinary one.
    Ordinary,
    /// A special one.
    Special(T),
    /// Not known: a loss, or the response was captured before its request.
    Unknown,
}

/// Requests in flight.
#[derive(Debug)]
pub(super) struct Answers<T> {
    n_requests: u64,
    n_responses: u64,
    special: VecDeque<(u64, T)>,
    certain: bool,
    /// Nothing was ever lost: certainty is no guess.
    exact: bool,
}

impl<T: Copy> Answers<T> {
    /// None in flight; `certain` unless the connection was joined in the middle.
    pub(super) const fn new(certain: bool) -> Self {
        Self { n_requests: 0, n_responses: 0, special: VecDeque::new(), certain, exact: certain }
    }

    /// A request was sent.
    #[inline]
    pub(super) fn request(&mut self, special: Option<T>) {
        if let Some(special) = special {
            if self.special.len() < SPECIAL_MAX {
                self.special.push_back((self.n_requests, special));
            } else {
                self.lose();
            }
        }
        self.n_requests += 1;
    }

    /// What the next response answers.
    #[inline]
    pub(super) fn next(&self) -> Next<T> {
        if !self.certain || self.n_responses >= self.n_requests {
            return Next::Unknown;
        }
        match self.special.front() {
            Some(&(idx, special)) if idx == self.n_responses => Next::Special(special),
            _ => Next::Ordinary,
        }
    }

    /// A response was received.
    #[inline]
    pub(super) fn response(&mut self) {
        if self.special.front().is_some_and(|&(idx, _)| idx <= self.n_responses) {
            self.special.pop_front();
        }
        self.n_responses += 1;
    }

    /// Whether a request is known to wait for its response.
    pub(super) const fn waiting(&self) -> bool {
        self.n_requests > self.n_responses
    }

    /// Whether [`Answers::next`] can be relied upon.
    pub(super) const fn certain(&self) -> bool {
        self.certain
    }

    /// Whether certainty never broke. After a loss "idle" is concluded from the turn of the connection, and replies
    /// to requests of before may still be on their way.
    pub(super) const fn exact(&self) -> bool {
        self.exact
    }

    /// Whether more responses came than requests: what was taken for idle was not.
    pub(super) const fn overdrawn(&self) -> bool {
        !self.exact && self.n_responses > self.n_requests
    }

    /// The first special request in flight that `is` holds for, whatever its place in the order: for responses
    /// that show by themselves what they answer.
    pub(super) fn find(&self, is: impl Fn(T) -> bool) -> Option<T> {
        self.special.iter().map(|(_, special)| *special).find(|special| is(*special))
    }

    /// The same, forgotten: its response came.
    pub(super) fn forget(&mut self, is: impl Fn(T) -> bool) {
        if let Some(idx) = self.special.iter().position(|(_, special)| is(*special)) {
            self.special.remove(idx);
        }
    }

    /// Messages were lost: what is in flight is not known any more.
    pub(super) fn lose(&mut self) {
        *self = Self::new(false);
    }

    /// Both directions are idle: nothing is in flight.
    pub(super) fn idle(&mut self) {
        *self = Self { exact: self.exact, ..Self::new(true) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_requests_are_found_by_their_place_in_the_order() {
        let mut answers = Answers::new(true);
        assert_eq!(answers.next(), Next::Unknown);
        for special in [None, Some('h'), None, Some('c')] {
            answers.request(special);
        }
        for expected in [Next::Ordinary, Next::Special('h'), Next::Ordinary, Next::Special('c')] {
            assert!(answers.waiting());
            assert_eq!(answers.next(), expected);
            answers.response();
        }
        assert_eq!(answers.next(), Next::Unknown);
        assert!(!answers.waiting());
    }

    #[test]
    fn too_many_special_requests_make_the_next_unknown_until_idle() {
        let mut answers = Answers::new(true);
        (0..=SPECIAL_MAX).for_each(|_| answers.request(Some(())));
        assert_eq!(answers.next(), Next::Unknown);
        answers.idle();
        answers.request(Some(()));
        assert_eq!(answers.next(), Next::Special(()));
    }
}
