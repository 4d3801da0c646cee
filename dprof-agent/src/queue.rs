//! The bounded queue between two threads of the pipeline: at most so many bytes (or whatever items weigh), with
//! the three ways to meet a full one.
//!
//! What a reader would get wrong: shutdown is a cascade. Dropping a [`Sender`] lets its receiver drain what is
//! there and then see the end; dropping a [`Receiver`] tells the sender that nobody listens, so nobody blocks
//! for ever on a thread that failed.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Makes a queue that holds items of at most `weight_max` together. One item may be heavier: it then travels
/// alone.
pub fn queue<T>(weight_max: usize) -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State { items: VecDeque::new(), weight: 0, is_closed: false }),
        changed: Condvar::new(),
        weight_max,
    });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// One condition for both ends: each queue has one thread at either.
    changed: Condvar,
    weight_max: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<(T, usize)>,
    weight: usize,
    is_closed: bool,
}

impl<T> State<T> {
    const fn has_room(&self, weight: usize, weight_max: usize) -> bool {
        self.weight == 0 || self.weight + weight <= weight_max
    }

    fn add(&mut self, item: T, weight: usize) {
        // An item without weight would not bound the queue.
        let weight = weight.max(1);
        self.weight += weight;
        self.items.push_back((item, weight));
    }

    fn take(&mut self) -> Option<T> {
        let (item, weight) = self.items.pop_front()?;
        self.weight -= weight;
        Some(item)
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // A panic elsewhere leaves the queue whole: no operation on it stops half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_all();
    }
}

/// The other end is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// The end that puts in.
#[derive(Debug)]
pub struct Sender<T>(Arc<Shared<T>>);

impl<T> Sender<T> {
    /// Whether nobody listens any more.
    pub fn is_closed(&self) -> bool {
        self.0.lock().is_closed
    }

    /// What waits now, in the unit of its limit.
    pub fn weight(&self) -> usize {
        self.0.lock().weight
    }

    /// Waits for room. `Ok(true)`: it had to.
    pub fn push_waiting(&self, item: T, weight: usize) -> Result<bool, Closed> {
        let mut state = self.0.lock();
        let mut waited = false;
        while !state.is_closed && !state.has_room(weight, self.0.weight_max) {
            waited = true;
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_closed {
            return Err(Closed);
        }
        state.add(item, weight);
        drop(state);
        self.0.changed.notify_all();
        Ok(waited)
    }

    /// Gives the item back when there is no room (or nobody listens).
    pub fn push_or_refuse(&self, item: T, weight: usize) -> Result<(), T> {
        let mut state = self.0.lock();
        if state.is_closed || !state.has_room(weight, self.0.weight_max) {
            return Err(item);
        }
        state.add(item, weight);
        drop(state);
        self.0.changed.notify_all();
        Ok(())
    }

    /// Makes room by taking the oldest items out; gives them back.
    pub fn push_displacing(&self, item: T, weight: usize) -> Result<Vec<T>, Closed> {
        let mut state = self.0.lock();
        if state.is_closed {
            return Err(Closed);
        }
        let mut displaced = Vec::new();
        while !state.has_room(weight, self.0.weight_max) {
            displaced.extend(state.take());
        }
        state.add(item, weight);
        drop(state);
        self.0.changed.notify_all();
        Ok(displaced)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What a receiver got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Popped<T> {
    /// The oldest item.
    Item(T),
    /// Nothing within the time.
    Nothing,
    /// Nothing, and nothing will come.
    End,
}

/// The end that takes out.
#[derive(Debug)]
pub struct Receiver<T>(Arc<Shared<T>>);

impl<T> Receiver<T> {
    /// What waits now, in the unit of its limit.
    pub fn weight(&self) -> usize {
        self.0.lock().weight
    }

    /// The oldest item, waiting up to `wait` for one.
    pub fn pop(&self, wait: Duration) -> Popped<T> {
        let state = self.0.lock();
        let (mut state, _) = self
            .0
            .changed
            .wait_timeout_while(state, wait, |state| state.items.is_empty() && !state.is_closed)
            .unwrap_or_else(PoisonError::into_inner);
        let item = state.take();
        let is_closed = state.is_closed;
        drop(state);
        match item {
            Some(item) => {
                self.0.changed.notify_all();
                Popped::Item(item)
            }
            None if is_closed => Popped::End,
            None => Popped::Nothing,
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::ZERO;

    #[test]
    fn what_was_put_in_before_the_end_comes_out() {
        let (sender, receiver) = queue(10);
        assert_eq!(receiver.pop(NOW), Popped::Nothing);
        assert_eq!(sender.push_waiting('a', 5), Ok(false));
        assert_eq!(sender.push_waiting('b', 5), Ok(false));
        drop(sender);
        assert_eq!(receiver.pop(NOW), Popped::Item('a'));
        assert_eq!(receiver.pop(NOW), Popped::Item('b'));
        assert_eq!(receiver.pop(NOW), Popped::End);
    }

    #[test]
    fn a_full_queue_refuses_or_displaces_the_oldest() {
        let (sender, receiver) = queue(10);
        assert_eq!(sender.push_or_refuse('a', 6), Ok(()));
        assert_eq!(sender.push_or_refuse('b', 5), Err('b'));
        assert_eq!(sender.push_or_refuse('c', 4), Ok(()));
        assert_eq!(sender.push_displacing('d', 6), Ok(vec!['a']));
        assert_eq!(sender.push_displacing('e', 100), Ok(vec!['c', 'd']), "too heavy for company");
        assert_eq!(receiver.pop(NOW), Popped::Item('e'));
        assert_eq!(sender.push_or_refuse('f', 0), Ok(()));
    }

    #[test]
    fn items_without_weight_are_bounded_too() {
        let (sender, _receiver) = queue(2);
        assert_eq!(sender.push_or_refuse('a', 0), Ok(()));
        assert_eq!(sender.push_or_refuse('b', 0), Ok(()));
        assert_eq!(sender.push_or_refuse('c', 1), Err('c'));
    }

    #[test]
    fn a_waiting_sender_goes_on_when_there_is_room() {
        let (sender, receiver) = queue(1);
        assert_eq!(sender.push_waiting(0, 1), Ok(false));
        let thread = std::thread::spawn(move || (1..100).all(|n| sender.push_waiting(n, 1).is_ok()));
        for expected in 0..100 {
            assert_eq!(receiver.pop(Duration::from_mins(1)), Popped::Item(expected));
        }
        assert!(thread.join().expect("no panic"));
        assert_eq!(receiver.pop(Duration::from_mins(1)), Popped::End);
    }

    #[test]
    fn nobody_waits_for_a_receiver_that_is_gone() {
        let (sender, receiver) = queue(1);
        assert_eq!(sender.push_waiting(0, 1), Ok(false));
        let thread = std::thread::spawn(move || sender.push_waiting(1, 1));
        drop(receiver);
        assert_eq!(thread.join().expect("no panic"), Err(Closed));
    }
}
