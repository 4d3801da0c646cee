//! Processes by their number. The same one is asked for again and again, so the last one found is remembered.

use std::cell::Cell;

use rustc_hash::FxHashMap;

use super::process::Process;

/// Processes with state of their own.
const PROCESSES_MAX: usize = 64 * 1024;

/// All of them.
#[derive(Debug)]
pub(super) struct Processes {
    places: FxHashMap<u32, u32>,
    /// The first is of those that have done nothing yet.
    entries: Vec<Process>,
    /// The last one found, and its place.
    last: Cell<(u32, u32)>,
}

impl Default for Processes {
    fn default() -> Self {
        Self { places: FxHashMap::default(), entries: vec![Process::default()], last: Cell::new((0, 0)) }
    }
}

impl Processes {
    #[inline]
    fn place(&self, tgid: u32) -> usize {
        let (last, place) = self.last.get();
        if last == tgid && place != 0 {
            return place as usize;
        }
        let place = self.places.get(&tgid).copied().unwrap_or(0);
        self.last.set((tgid, place));
        place as usize
    }

    #[inline]
    pub(super) fn get(&self, tgid: u32) -> &Process {
        &self.entries[self.place(tgid)]
    }

    /// The process, and whether all others were forgotten for it.
    #[inline]
    pub(super) fn get_mut(&mut self, tgid: u32) -> (&mut Process, bool) {
        let mut place = self.place(tgid);
        let forgets = place == 0 && self.entries.len() > PROCESSES_MAX;
        if forgets {
            *self = Self::default();
        }
        if place == 0 {
            place = self.entries.len();
            self.entries.push(Process::default());
            self.places.insert(tgid, place as u32);
            self.last.set((tgid, place as u32));
        }
        (&mut self.entries[place], forgets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_and_the_unknown_show_nothing() {
        let mut processes = Processes::default();
        for tgid in [7, 8, 7, 0] {
            processes.get_mut(tgid).0.n_open += tgid + 1;
        }
        let n_open = |tgid| processes.get(tgid).n_open;
        assert_eq!([7, 8, 0, 9, 7].map(n_open), [16, 9, 1, 0, 16]);
    }

    #[test]
    fn beyond_the_limit_all_are_forgotten() {
        let mut processes = Processes::default();
        let forgot: Vec<u32> =
            (1..=PROCESSES_MAX as u32 + 1).filter(|tgid| processes.get_mut(*tgid).1).collect();
        assert_eq!(forgot, [PROCESSES_MAX as u32 + 1]);
        assert_eq!(processes.entries.len(), 2);
        processes.get_mut(5).0.n_open = 3;
        assert_eq!((processes.get(5).n_open, processes.get(6).n_open), (3, 0));
    }
}
