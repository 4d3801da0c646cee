//! Places that are used again, and references that notice it.

use std::num::NonZeroU32;

/// A place in a slab that says when its tenant has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ref {
    idx: u32,
    generation: NonZeroU32,
}

impl Ref {
    /// A place that nobody ever has, for tests.
    #[cfg(test)]
    pub(crate) const NOBODY: Self = Self { idx: u32::MAX, generation: NonZeroU32::MIN };

    /// A place in no slab, for tests.
    #[cfg(test)]
    pub(crate) const fn numbered(idx: u32) -> Self {
        Self { idx, generation: NonZeroU32::MIN }
    }

    /// Its number in the slab.
    #[cfg(test)]
    pub(crate) const fn number(self) -> u32 {
        self.idx
    }
}

/// Entries by [`Ref`], places used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<(NonZeroU32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    #[inline]
    pub(super) fn insert(&mut self, value: T) -> Ref {
        let idx = self.free.pop().unwrap_or_else(|| {
            self.entries.push((NonZeroU32::MIN, None));
            self.entries.len() as u32 - 1
        });
        let (generation, place) = &mut self.entries[idx as usize];
        *generation = generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        *place = Some(value);
        Ref { idx, generation: *generation }
    }

    #[inline]
    pub(super) fn get(&self, at: Ref) -> Option<&T> {
        let (generation, value) = self.entries.get(at.idx as usize)?;
        value.as_ref().filter(|_| *generation == at.generation)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, at: Ref) -> Option<&mut T> {
        let (generation, value) = self.entries.get_mut(at.idx as usize)?;
        value.as_mut().filter(|_| *generation == at.generation)
    }

    /// Forgets the entry, where it lies.
    #[inline]
    pub(super) fn remove(&mut self, at: Ref) {
        if let Some((generation, value)) = self.entries.get_mut(at.idx as usize)
            && *generation == at.generation
            && value.is_some()
        {
            *value = None;
            self.free.push(at.idx);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }
}
