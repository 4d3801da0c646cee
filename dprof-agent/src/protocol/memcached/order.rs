//! Which request a memcached response answers when some requests are answered only sometimes: quiet commands
//! speak up about a hit or a failure and say nothing otherwise, and the first answer to a later, ordinary command
//! tells that they have nothing to say.
//!
//! What a reader would get wrong: this pairs quiet commands only. Ordinary ones are answered in order, which is the
//! engine's to pair; they are kept here as the fences between which quiet answers belong.

use std::collections::VecDeque;

use crate::protocol::Correlation;

/// Requests without an answer that are remembered, a quiet batch or a pipeline. The engine keeps as many places
/// per connection; beyond, quiet answers are not told apart any more.
const PENDING_MAX: usize = 64 * 1024;

/// Turns of exactly one request and one answer after which a connection that lost bytes counts as in step again.
const STEPS_CERTAIN: u8 = 2;

/// A request without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pending<C> {
    /// Kind of command: what can answer it.
    pub(super) class: C,
    /// What the answer repeats (an opaque, a key's hash); 0 = nothing.
    pub(super) token: u64,
    /// A quiet command's number among those of the connection; `None` = an ordinary one.
    quiet: Option<u64>,
    /// A quiet answer could not be told apart: it may have been this one's.
    doubtful: bool,
}

impl<C> Pending<C> {
    /// Whether it is answered only with what is remarkable.
    pub(super) const fn is_quiet(&self) -> bool {
        self.quiet.is_some()
    }
}

/// A quiet command that the server had nothing to say to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Silent<C> {
    pub(super) correlation: Correlation,
    pub(super) class: C,
    /// Whether it may have been answered after all.
    pub(super) doubtful: bool,
}

/// What a response answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answers {
    /// The next ordinary request, or this quiet one.
    Request(Correlation),
    /// One of several quiet ones that it does not tell apart.
    Ambiguous,
    /// Not what the next ordinary request can be answered with: something is missing.
    OutOfStep,
}

/// Requests of a connection without an answer.
#[derive(Debug)]
pub(super) struct Order<C> {
    pending: VecDeque<Pending<C>>,
    n_quiet: usize,
    next_quiet: u64,
    /// Answers that were captured before their request.
    ahead: u64,
    certain: bool,
    /// A quiet command may be under way of which nothing is kept: after a loss, on a connection that has them.
    strays: bool,
    /// Since the last turn: requests, answers; turns in step.
    turn: (u32, u32),
    steps: u8,
}

impl<C: Copy> Order<C> {
    pub(super) const fn new(certain: bool) -> Self {
        Self {
            pending: VecDeque::new(),
            n_quiet: 0,
            next_quiet: 0,
            ahead: 0,
            certain,
            strays: false,
            turn: (0, 0),
            steps: 0,
        }
    }

    /// Whether what is open is known.
    pub(super) const fn is_certain(&self) -> bool {
        self.certain
    }

    /// Whether an answer that any command may have got may be a quiet one's.
    pub(super) const fn has_strays(&self) -> bool {
        self.strays
    }

    /// Ordinary requests without an answer, as far as known.
    pub(super) fn waits(&self) -> bool {
        !self.pending.is_empty()
    }

    /// An ordinary request.
    pub(super) fn request(&mut self, class: C, token: u64) -> Correlation {
        self.turn.0 += 1;
        if self.ahead > 0 {
            self.ahead -= 1;
        } else if self.certain {
            self.push(Pending { class, token, quiet: None, doubtful: false });
        }
        Correlation::Fifo
    }

    /// A quiet request; `None` if its answer could not be told from others.
    pub(super) fn quiet(&mut self, class: C, token: u64) -> Option<Correlation> {
        self.turn.0 += 1;
        if !self.certain || self.ahead > 0 {
            self.lose();
            self.strays = true;
            return None;
        }
        let number = self.next_quiet;
        self.next_quiet += 1;
        self.push(Pending { class, token, quiet: Some(number), doubtful: false });
        self.certain.then_some(Correlation::Id(number))
    }

    fn push(&mut self, pending: Pending<C>) {
        if self.pending.len() < PENDING_MAX {
            self.n_quiet += usize::from(pending.quiet.is_some());
            self.pending.push_back(pending);
        } else {
            self.lose();
        }
    }

    /// A response that `can_answer` some requests: which one it does. Quiet ones before it have had their say and
    /// go to `silent`.
    pub(super) fn response(
        &mut self,
        can_answer: impl Fn(&Pending<C>) -> bool,
        silent: &mut Vec<Silent<C>>,
    ) -> Answers {
        self.turn.1 += 1;
        if self.pending.is_empty() {
            self.ahead += u64::from(self.certain);
            return Answers::Request(Correlation::Fifo);
        }
        let fence = if self.n_quiet == 0 {
            0
        } else {
            self.pending.iter().position(|pending| pending.quiet.is_none()).unwrap_or(self.pending.len())
        };
        let mut fitting = (0..fence).filter(|&idx| can_answer(&self.pending[idx]));
        let first = fitting.next();
        let several = fitting.next().is_some();
        let ordinary = self.pending.get(fence).is_some_and(&can_answer);
        match first {
            Some(first) if !several && !ordinary => {
                self.drain(first, silent);
                let correlation = self.pop().quiet.map_or(Correlation::Fifo, Correlation::Id);
                Answers::Request(correlation)
            }
            Some(first) => {
                for pending in self.pending.range_mut(first..fence) {
                    pending.doubtful |= can_answer(pending);
                }
                if ordinary {
                    // It may have been the ordinary one: where the order stands is not known any more.
                    self.lose();
                    return Answers::OutOfStep;
                }
                Answers::Ambiguous
            }
            None if ordinary => {
                self.drain(fence, silent);
                self.pop();
                Answers::Request(Correlation::Fifo)
            }
            None => {
                self.lose();
                Answers::OutOfStep
            }
        }
    }

    fn drain(&mut self, n: usize, silent: &mut Vec<Silent<C>>) {
        for _ in 0..n {
            let Pending { class, quiet, doubtful, .. } = self.pop();
            if let Some(number) = quiet {
                silent.push(Silent { correlation: Correlation::Id(number), class, doubtful });
            }
        }
    }

    fn pop(&mut self) -> Pending<C> {
        let pending = self.pending.pop_front().expect("callers found it by its index");
        self.n_quiet -= usize::from(pending.quiet.is_some());
        pending
    }

    /// What is open is in doubt, but nothing was missed: of quiet commands only those that are open may be strays.
    pub(super) fn doubt(&mut self) {
        let strays = self.strays || self.n_quiet > 0;
        self.lose();
        self.strays = strays;
    }

    /// Messages were lost.
    pub(super) fn lose(&mut self) {
        let strays = self.strays || self.next_quiet > 0;
        *self = Self { next_quiet: self.next_quiet, strays, ..Self::new(false) };
    }

    /// The client writes after it was written to, both between messages.
    pub(super) fn turned(&mut self) {
        let in_step = std::mem::take(&mut self.turn) == (1, 1);
        self.steps = if in_step { self.steps.saturating_add(1) } else { 0 };
        if !self.certain && self.steps >= STEPS_CERTAIN {
            *self = Self { next_quiet: self.next_quiet, ..Self::new(true) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `script`: `a` an ordinary request of class a, `A` a quiet one, `=a1` a response of class a (case does not
    /// count) with token 1, `!` a loss, `/` a turn. Tokens follow requests too.
    #[track_caller]
    fn check(script: &str, expected: &str) {
        let mut order = Order::new(true);
        let mut said = Vec::new();
        for step in script.split_whitespace() {
            let (is_response, step) = step.strip_prefix('=').map_or((false, step), |rest| (true, rest));
            let class = step.chars().next().expect("a step");
            let token: u64 = step[1..].parse().unwrap_or(0);
            match class {
                '!' => order.lose(),
                '/' => order.turned(),
                _ if is_response => {
                    let mut silent = Vec::new();
                    let answers = order.response(
                        |pending| pending.class == class.to_ascii_lowercase() && pending.token == token,
                        &mut silent,
                    );
                    said.extend(silent.iter().map(|silent| match silent.correlation {
                        Correlation::Id(id) => {
                            format!("silent{id}{}", if silent.doubtful { "?" } else { "" })
                        }
                        Correlation::Fifo => "wrong".to_owned(),
                    }));
                    said.push(match answers {
                        Answers::Request(Correlation::Fifo) => "next".to_owned(),
                        Answers::Request(Correlation::Id(id)) => id.to_string(),
                        Answers::Ambiguous => "ambiguous".to_owned(),
                        Answers::OutOfStep => "lost".to_owned(),
                    });
                }
                _ if class.is_ascii_uppercase() => {
                    if order.quiet(class.to_ascii_lowercase(), token).is_none() {
                        said.push("unknown".to_owned());
                    }
                }
                _ => {
                    order.request(class, token);
                }
            }
        }
        assert_eq!(said.join(" "), expected, "{script}");
    }

    #[test]
    fn ordinary_requests_are_answered_in_order() {
        check("g g s =g =g =s", "next next next");
        check("g s =s", "lost");
        check("=g g s =s", "next next");
    }

    #[test]
    fn quiet_requests_are_answered_by_what_they_repeat_or_by_silence() {
        check("G1 G2 G3 n =g2 =n", "silent0 1 silent2 next");
        check("G1 G2 n =n", "silent0 silent1 next");
        check("G1 n G2 n =g1 =n =n", "0 next silent1 next");
    }

    #[test]
    fn what_cannot_be_told_apart_is_not_guessed() {
        check("G G n =g =n", "ambiguous silent0? silent1? next");
        check("G n =g =n", "0 next");
        check("G g =g", "lost");
    }

    #[test]
    fn after_a_loss_quiet_requests_wait_until_the_connection_is_in_step() {
        check("! G1 n =n", "unknown next");
        check("! g =g / g =g / G1 n =g1 =n", "next next 0 next");
    }
}
