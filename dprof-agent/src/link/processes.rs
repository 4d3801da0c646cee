//! Processes by their number; one that has done nothing yet has shown nothing.

use super::process::Process;
use super::remembered::Remembered;

/// Processes with state of their own.
const PROCESSES_MAX: usize = 64 * 1024;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Processes {
    all: Remembered<Process>,
    nobody: Process,
}

impl Processes {
    #[inline]
    pub(super) fn get(&self, tgid: u32) -> &Process {
        self.all.get(tgid).unwrap_or(&self.nobody)
    }

    /// The process, and whether all others were forgotten for it.
    #[inline]
    pub(super) fn get_mut(&mut self, tgid: u32) -> (&mut Process, bool) {
        self.all.get_or_new(tgid, PROCESSES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unknown_show_nothing() {
        let mut processes = Processes::default();
        processes.get_mut(7).0.n_open = 3;
        assert_eq!([7, 8].map(|tgid| processes.get(tgid).n_open), [3, 0]);
    }
}
