//! Values by number, where the same number is asked for again and again (a process, a thread): the last one found is
//! remembered, and found again without a hash.

use std::cell::Cell;

use rustc_hash::FxHashMap;

/// All of them.
#[derive(Debug)]
pub(super) struct Remembered<V> {
    places: FxHashMap<u32, u32>,
    entries: Vec<(u32, V)>,
    /// Place of the last one found.
    last: Cell<u32>,
}

impl<V> Default for Remembered<V> {
    fn default() -> Self {
        Self { places: FxHashMap::default(), entries: Vec::new(), last: Cell::new(0) }
    }
}

impl<V> Remembered<V> {
    /// Where `number` is; beyond the end if it is not.
    #[inline]
    fn place(&self, number: u32) -> usize {
        let last = self.last.get() as usize;
        match self.entries.get(last) {
            Some((of, _)) if *of == number => last,
            _ => self.look_up(number),
        }
    }

    #[inline(never)]
    fn look_up(&self, number: u32) -> usize {
        let Some(place) = self.places.get(&number) else { return usize::MAX };
        self.last.set(*place);
        *place as usize
    }

    /// The value of `number`.
    #[inline]
    pub(super) fn get(&self, number: u32) -> Option<&V> {
        self.entries.get(self.place(number)).map(|(_, value)| value)
    }

    /// The value of `number`.
    #[inline]
    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut V> {
        let place = self.place(number);
        self.entries.get_mut(place).map(|(_, value)| value)
    }

    /// The value of `number`, a new one if there was none; whether all others were forgotten for it, because there were
    /// `max`.
    #[inline]
    pub(super) fn get_or_new(&mut self, number: u32, max: usize) -> (&mut V, bool)
    where
        V: Default,
    {
        let (mut place, mut forgets) = (self.place(number), false);
        if place >= self.entries.len() {
            forgets = self.entries.len() >= max;
            place = self.add(number, forgets);
        }
        (&mut self.entries[place].1, forgets)
    }

    #[cold]
    fn add(&mut self, number: u32, forgets: bool) -> usize
    where
        V: Default,
    {
        if forgets {
            *self = Self::default();
        }
        let place = self.entries.len();
        self.entries.push((number, V::default()));
        self.places.insert(number, place as u32);
        self.last.set(place as u32);
        place
    }

    /// Each, with its number.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut V)> {
        self.entries.iter_mut().map(|(number, value)| (*number, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 3;

    #[test]
    fn each_has_its_own_and_the_unknown_have_none() {
        let mut all = Remembered::<u32>::default();
        for number in [7, 8, 7, 0] {
            *all.get_or_new(number, MAX).0 += number + 1;
        }
        let value = |number| all.get(number).copied();
        assert_eq!([7, 8, 0, 9, 7].map(value), [Some(16), Some(9), Some(1), None, Some(16)]);
        assert_eq!(
            all.iter_mut().map(|(number, value)| (number, *value)).collect::<Vec<_>>(),
            [(7, 16), (8, 9), (0, 1)]
        );
    }

    #[test]
    fn beyond_the_limit_all_are_forgotten() {
        let mut all = Remembered::<u32>::default();
        assert_eq!(
            [1, 2, 3, 2, 4, 5].map(|number| all.get_or_new(number, MAX).1),
            [false, false, false, false, true, false]
        );
        *all.get_or_new(5, MAX).0 = 3;
        assert_eq!([1, 4, 5].map(|number| all.get(number).copied()), [None, Some(0), Some(3)]);
    }
}
