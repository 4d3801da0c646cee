//! Routes: which requests an event loop sends where, learned from its own rhythm.
//!
//! *The idea.* An event loop works in turns: it reads what has come, works through it in that order, and then writes.
//! So the calls that one turn writes to a peer are caused by requests of that turn, in the order of reading; only
//! *which* of them go there is not known. But it is the same for all requests of a class (protocol and operation): a
//! `SET` of a client goes to the datastore and to every other rack, a `GET` to the datastore alone. Per turn, the
//! calls to a peer are the sum over the classes of requests read times 0 or 1; over some turns of different mixture
//! these numbers follow from least squares. Where they come out as 0 and 1, the *n*-th call of a turn to a peer
//! belongs to the *n*-th request of the classes that go there.
//!
//! *Why not simpler ones*: first come first served must be told how many calls a request makes, and fails where one
//! makes three and another one; the thread's last request (vPath, ATC'09) fails when two are read in one turn; the
//! most likely delay (WAP5, WWW'06; TraceWeaver, SIGCOMM'24, which is told the calls and their order) knows no turns,
//! and all of a turn's calls leave within microseconds.
//!
//! *What stays uncertain*: a proxy that spreads requests of one class over several servers has fractions here, and is
//! left to the order of replies ([`super::order`]). A lost event shifts the order until the next turn in which calls
//! and requests are as many again.
//!
//! What a reader would get wrong: a turn is over when something is *read* after something was written; only then are
//! its calls given out.

use std::collections::VecDeque;

use super::table::Ref;

/// Classes told apart; a process with more has no routes.
const CLASSES_MAX: usize = 8;
/// Peers and operations of calls told apart; a process with more has no routes.
const LEGS_MAX: usize = 32;
/// Turns with calls before anything is concluded, and between conclusions.
const TURNS_MIN: u32 = 16;
/// Turns after which a leg that nothing explains is given up.
const LEARNING_TURNS_MAX: u32 = 128;
/// Sums are halved here, so that they follow a process that changes.
const TURNS_MAX: u32 = 1024;
/// A coefficient this near to 0 or 1 is one.
const NEAR: f64 = 0.1;
/// Keeps the equations solvable while a class was not seen, and is too small to matter once it was.
const RIDGE: f64 = 1e-3;
/// Requests kept: more than are read between a request and its last call.
pub(crate) const REQUESTS_MAX: usize = 4096;
/// Calls that wait for a conclusion, per leg.
const CALLS_MAX: usize = 4096;

/// A request that was read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Read {
    /// Number in the order of reading.
    pub(crate) order: u64,
    turn: u32,
    class: u8,
    /// The request.
    pub(crate) at: Ref,
}

/// Calls of one operation to one peer.
#[derive(Debug)]
struct Leg {
    peer: u64,
    operation: u64,
    /// Classes that cause them, a bit each; `None`: not known.
    causes: Option<u8>,
    /// The last request that was given one.
    cursor: u64,
    /// Calls not given out, and their turn.
    calls: VecDeque<(u32, Ref)>,
    /// Some of them wait for their cause.
    has_waiting: bool,
    /// Calls of this turn.
    n_now: u32,
    /// Per class, the sum over the turns of requests times calls.
    sums: [f64; CLASSES_MAX],
}

/// What an event loop sends where.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// The thread; a process in which several read requests has no routes.
    tid: u32,
    is_unfit: bool,
    /// Nobody asks for them now.
    is_idle: bool,
    /// Class and operation.
    classes: Vec<(u64, u64)>,
    legs: Vec<Leg>,
    requests: VecDeque<Read>,
    turn: u32,
    /// Turns in which calls were made.
    n_turns: u32,
    /// Turns in the sums.
    n_summed: u32,
    has_written: bool,
    has_called: bool,
    n_now: [u32; CLASSES_MAX],
    /// Over the turns, requests of one class times requests of another.
    gram: [[f64; CLASSES_MAX]; CLASSES_MAX],
}

/// A call, and the request that it is given to, if its leg is known.
pub(crate) type Given = (Ref, Option<Ref>);

impl Routes {
    /// Nobody asks for routes for now: nothing is learned, and what was is kept. Calls that wait are given to nobody.
    pub(crate) fn rest(&mut self, given: &mut Vec<Given>) {
        self.is_idle = true;
        self.requests.clear();
        self.n_now = [0; CLASSES_MAX];
        (self.has_written, self.has_called) = (false, false);
        for leg in &mut self.legs {
            given.extend(leg.calls.drain(..).map(|(_, at)| (at, None)));
            leg.n_now = 0;
        }
    }

    /// Whether nothing is learned.
    pub(crate) const fn is_idle(&self) -> bool {
        self.is_idle
    }

    /// Somebody does again: what is read from now on is in order.
    pub(crate) fn wake(&mut self, order: u64) {
        if std::mem::take(&mut self.is_idle) {
            self.legs.iter_mut().for_each(|leg| leg.cursor = order.saturating_sub(1));
        }
    }

    /// Turns begun.
    pub(crate) const fn turn(&self) -> u32 {
        self.turn
    }

    /// Requests read, in order.
    pub(crate) const fn requests(&self) -> &VecDeque<Read> {
        &self.requests
    }

    /// A request was read. `is_gone`: whether a request was forgotten.
    pub(crate) fn read(
        &mut self,
        tid: u32,
        (class, operation): (u64, u64),
        order: u64,
        at: Ref,
        is_gone: impl Fn(Ref) -> bool,
    ) {
        if self.tid == 0 {
            self.tid = tid;
        }
        if self.tid != tid {
            self.fail();
        }
        while self.requests.len() >= REQUESTS_MAX
            || self.requests.front().is_some_and(|read| is_gone(read.at))
        {
            self.requests.pop_front();
        }
        let mut idx = 0;
        if !self.is_unfit {
            idx = self.classes.iter().position(|(known, _)| *known == class).unwrap_or_else(|| {
                self.classes.push((class, operation));
                self.classes.len() - 1
            });
            if idx >= CLASSES_MAX {
                self.fail();
                idx = 0;
            }
            self.n_now[idx] += 1;
        }
        self.requests.push_back(Read { order, turn: self.turn, class: idx as u8, at });
    }

    /// A call was made. Whether it waits for its cause, because those of this operation to this peer are known, or may
    /// be soon.
    pub(crate) fn called(&mut self, peer: u64, operation: u64, at: Ref) -> bool {
        self.has_written = true;
        if self.is_unfit {
            return false;
        }
        self.has_called = true;
        let found = self.legs.iter().position(|leg| (leg.peer, leg.operation) == (peer, operation));
        let idx = found.unwrap_or(self.legs.len());
        if idx >= LEGS_MAX {
            self.fail();
            return false;
        }
        if found.is_none() {
            self.legs.push(Leg::of(peer, operation));
        }
        let leg = &mut self.legs[idx];
        leg.n_now += 1;
        let waits = leg.causes.is_some() || self.n_turns < LEARNING_TURNS_MAX;
        leg.has_waiting |= waits;
        if leg.calls.len() >= CALLS_MAX {
            leg.calls.pop_front();
        }
        leg.calls.push_back((self.turn, at));
        waits
    }

    /// Something else was sent.
    pub(crate) const fn wrote(&mut self) {
        self.has_written = !self.is_idle;
    }

    /// Something is read: if that begins a turn, calls of those before are given out.
    pub(crate) fn begin(&mut self, given: &mut Vec<Given>) {
        if !std::mem::take(&mut self.has_written) {
            return;
        }
        self.turn = self.turn.wrapping_add(1);
        if self.is_unfit {
            return;
        }
        // Before the first call there is nothing to explain.
        if self.legs.is_empty() {
            self.n_now = [0; CLASSES_MAX];
        } else {
            self.sum();
        }
        if std::mem::take(&mut self.has_called) {
            self.n_turns = self.n_turns.saturating_add(1);
            if self.n_turns.is_multiple_of(TURNS_MIN) {
                self.conclude();
            }
        }
        if self.n_turns < TURNS_MIN {
            return;
        }
        for leg in self.legs.iter_mut().filter(|leg| !leg.calls.is_empty()) {
            if leg.causes.is_some() {
                leg.give_out(&self.requests, given);
            } else if self.n_turns >= LEARNING_TURNS_MAX && !std::mem::take(&mut leg.has_waiting) {
                leg.calls.clear();
            } else if self.n_turns >= LEARNING_TURNS_MAX {
                given.extend(leg.calls.drain(..).map(|(_, at)| (at, None)));
            }
        }
    }

    /// Something was not seen.
    pub(crate) fn disturbed(&mut self) {
        for leg in &mut self.legs {
            leg.cursor = self.requests.back().map_or(leg.cursor, |read| read.order);
        }
    }

    fn fail(&mut self) {
        self.is_unfit = true;
        self.legs = Vec::new();
        self.classes = Vec::new();
    }

    fn sum(&mut self) {
        let now = &mut self.n_now[..self.classes.len()];
        self.n_summed += 1;
        if now.iter().all(|n| *n == 0) {
            self.legs.iter_mut().for_each(|leg| leg.n_now = 0);
            return;
        }
        for (row, n) in self.gram.iter_mut().zip(&*now).filter(|(_, n)| **n > 0) {
            for (sum, m) in row.iter_mut().zip(&*now) {
                *sum += f64::from(*n) * f64::from(*m);
            }
        }
        for leg in self.legs.iter_mut().filter(|leg| leg.n_now > 0) {
            for (sum, n) in leg.sums.iter_mut().zip(&*now) {
                *sum += f64::from(leg.n_now) * f64::from(*n);
            }
            leg.n_now = 0;
        }
        now.fill(0);
        if self.n_summed >= TURNS_MAX {
            self.n_summed /= 2;
            self.gram.iter_mut().flatten().for_each(|sum| *sum /= 2.0);
            self.legs.iter_mut().flat_map(|leg| &mut leg.sums).for_each(|sum| *sum /= 2.0);
        }
    }

    /// Least squares, by the normal equations. Classes that always come together cannot be told apart by numbers, so
    /// what a proxy does is tried first: calls ask for what their requests ask for.
    fn conclude(&mut self) {
        for idx in 0..self.legs.len() {
            let leg = &self.legs[idx];
            let all = 0..self.classes.len();
            let alike: Vec<usize> =
                all.clone().filter(|class| is_alike(self.classes[*class].1, leg.operation)).collect();
            let causes = self.causes(leg, &alike).or_else(|| self.causes(leg, &all.collect::<Vec<_>>()));
            self.legs[idx].causes = causes;
        }
    }

    /// Which of `classes` cause the calls of a leg, if that explains them.
    fn causes(&self, leg: &Leg, classes: &[usize]) -> Option<u8> {
        // The usual case, and its solution.
        if let [class] = *classes {
            let share = leg.sums[class] / (self.gram[class][class] + RIDGE);
            return ((share - 1.0).abs() <= NEAR).then_some(1 << class);
        }
        let mut gram = [[0.0; CLASSES_MAX]; CLASSES_MAX];
        for (row, class) in gram.iter_mut().zip(classes) {
            for (sum, other) in row.iter_mut().zip(classes) {
                *sum = self.gram[*class][*other];
            }
        }
        let inverse = inverse(&gram, classes.len())?;
        let mut causes = 0;
        for (row, class) in inverse.iter().zip(classes) {
            let share: f64 = row.iter().zip(classes).map(|(factor, other)| factor * leg.sums[*other]).sum();
            match share {
                _ if (share - 1.0).abs() <= NEAR => causes |= 1 << class,
                _ if share.abs() <= NEAR => {}
                _ => return None,
            }
        }
        (causes != 0).then_some(causes)
    }
}

impl Leg {
    fn of(peer: u64, operation: u64) -> Self {
        let (calls, sums) = (VecDeque::new(), [0.0; CLASSES_MAX]);
        Self { peer, operation, causes: None, cursor: 0, calls, has_waiting: false, n_now: 0, sums }
    }

    /// Gives every call to a request: of its turn if there are as many, else to the next in order.
    fn give_out(&mut self, requests: &VecDeque<Read>, given: &mut Vec<Given>) {
        let causes = self.causes.unwrap_or(0);
        while let Some((turn, _)) = self.calls.front().copied() {
            let n_calls = self.calls.iter().take_while(|(of, _)| *of == turn).count();
            // It is nearly always the last turn.
            let n_since = requests.iter().rev().take_while(|read| read.turn >= turn).count();
            let from_turn = requests.len() - n_since;
            let of_turn = requests.range(from_turn..).take_while(|read| read.turn == turn);
            let n_of_turn = of_turn.filter(|read| causes & 1 << read.class != 0).count();
            let first = if n_of_turn == n_calls {
                from_turn
            } else {
                requests.partition_point(|read| read.order <= self.cursor)
            };
            let next = requests.range(first..).take_while(|read| read.turn <= turn);
            let mut next = next.filter(|read| causes & 1 << read.class != 0);
            for (_, call) in self.calls.drain(..n_calls) {
                let read = next.next();
                self.cursor = read.map_or(self.cursor, |read| read.order);
                given.push((call, read.map(|read| read.at)));
            }
        }
    }
}

/// Whether two operations are the same but for being handed on.
pub(crate) const fn is_alike(operation: u64, other: u64) -> bool {
    operation >> 1 == other >> 1
}

/// The inverse of the first `n` rows and columns, by Gauss and Jordan; `None` if there is none.
fn inverse(
    matrix: &[[f64; CLASSES_MAX]; CLASSES_MAX],
    n: usize,
) -> Option<[[f64; CLASSES_MAX]; CLASSES_MAX]> {
    let (mut left, mut right) = (*matrix, [[0.0; CLASSES_MAX]; CLASSES_MAX]);
    for idx in 0..n {
        left[idx][idx] += RIDGE;
        right[idx][idx] = 1.0;
    }
    for column in 0..n {
        let pivot = (column..n).max_by(|a, b| left[*a][column].abs().total_cmp(&left[*b][column].abs()))?;
        left.swap(column, pivot);
        right.swap(column, pivot);
        let scale = left[column][column];
        if scale.abs() < RIDGE / 2.0 {
            return None;
        }
        for idx in 0..n {
            left[column][idx] /= scale;
            right[column][idx] /= scale;
        }
        for row in (0..n).filter(|row| *row != column) {
            let factor = left[row][column];
            for idx in 0..n {
                left[row][idx] -= factor * left[column][idx];
                right[row][idx] -= factor * right[column][idx];
            }
        }
    }
    Some(right)
}

#[cfg(test)]
mod tests {
    use super::super::table::Ref;
    use super::*;

    /// Turns, a word each: requests `a` to `d` by class and then calls `1` to `9` by peer, as `ab/112`; `!` instead of a
    /// peer is a call that was not seen. Of the calls of the last turn: which of its requests each is given to, `?` an
    /// earlier one, `-` none.
    #[track_caller]
    fn check(turns: &str, expected: &str) {
        let (mut routes, mut given) = (Routes::default(), Vec::new());
        let (mut order, mut n_calls, mut before) = (0, 0, 0);
        for turn in turns.split_whitespace() {
            let (reads, calls) = turn.split_once('/').expect("reads/calls");
            routes.begin(&mut given);
            given.clear();
            before = order;
            for class in reads.bytes() {
                order += 1;
                routes.read(1, (u64::from(class), 0), order, Ref::numbered(order as u32), |_| false);
            }
            for peer in calls.bytes().filter(|peer| *peer != b'!') {
                n_calls += 1;
                let at = Ref::numbered(n_calls);
                if !routes.called(u64::from(peer), 0, at) {
                    given.push((at, None));
                }
            }
            routes.wrote();
        }
        routes.begin(&mut given);
        given.sort_by_key(|(call, _)| call.number());
        let show = |at: &Option<Ref>| match at.map(|at| u64::from(at.number())) {
            None => "-".to_owned(),
            Some(number) if number <= before => "?".to_owned(),
            Some(number) => (number - before).to_string(),
        };
        let found: Vec<String> = given.iter().map(|(_, at)| show(at)).collect();
        assert_eq!(found.join(""), expected, "{turns}");
    }

    /// 16 turns in which `a` goes to 1, 2 and 3, `b` and `c` to 1.
    const RING: &str = "a/123 b/1 ab/1123 c/1 abc/11123 ca/1123 bb/11 cc/11 aab/1112233 cab/11123 ac/1123 bca/11123 \
                        cba/11123 abab/11112233 caca/11112233 bcbc/1111";

    #[test]
    fn requests_of_a_class_go_where_they_always_go() {
        check(&format!("{RING} bacac/111112233"), "123452424");
        check(&format!("{RING} bacac/221111133"), "241234524");
    }

    #[test]
    fn classes_that_always_come_together_are_told_apart_by_what_they_ask_for() {
        let mut routes = Routes::default();
        let (mut given, set, get) = (Vec::new(), 2, 4);
        for order in (1..=60).step_by(3) {
            routes.begin(&mut given);
            for (class, operation) in [(1, set), (2, get), (3, set)] {
                let order = order + class - 1;
                routes.read(1, (class, operation), order, Ref::numbered(order as u32), |_| false);
            }
            for (peer, operation) in [(1, set), (1, get), (1, set), (2, set)] {
                routes.called(peer, operation, Ref::numbered(0));
            }
        }
        // The third class always comes with the first, and asks for the same: nobody knows.
        let known = |peer, operation| {
            routes
                .legs
                .iter()
                .any(|leg| (leg.peer, leg.operation) == (peer, operation) && leg.causes.is_some())
        };
        assert!(known(1, get) && known(1, set) && !known(2, set));
    }

    #[test]
    fn at_rest_nothing_waits_and_what_is_known_stays() {
        let (mut routes, mut given) = (Routes::default(), Vec::new());
        let turn = |routes: &mut Routes, given: &mut Vec<Given>, order: u64| {
            routes.begin(given);
            routes.read(1, (1, 0), order, Ref::numbered(order as u32), |_| false);
            routes.called(9, 0, Ref::numbered(order as u32 + 100));
        };
        (1..=20).for_each(|order| turn(&mut routes, &mut given, order));
        given.clear();
        routes.rest(&mut given);
        assert_eq!(given, [(Ref::numbered(120), None)]);
        given.clear();
        routes.wrote();
        // Meanwhile others were read.
        routes.wake(31);
        turn(&mut routes, &mut given, 31);
        assert_eq!(given, []);
        routes.begin(&mut given);
        assert_eq!(given, [(Ref::numbered(131), Some(Ref::numbered(31)))]);
    }

    #[test]
    fn nothing_is_given_out_before_the_routes_are_known() {
        check("a/123 b/1 ab/1123", "");
    }

    #[test]
    fn requests_that_go_to_one_peer_or_another_have_no_route() {
        let spread = "a/1 a/2 aa/12 aa/11 aaa/122 a/1 aa/22 a/2 a/1 a/1 aa/12 aaa/112 a/2 a/2 aa/12 a/1 ";
        check(&format!("{spread} aa/12"), "");
        check(&format!("{} aa/12", spread.repeat(8)), "--");
    }

    #[test]
    fn a_call_that_was_not_seen_shifts_the_order_until_a_turn_that_is_whole() {
        check(&format!("{RING} bb/1!"), "1");
        check(&format!("{RING} bb/1! ba/1123"), "1222");
    }
}
