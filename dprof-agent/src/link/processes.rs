//! Processes by their number; one that has done nothing yet has shown nothing.

use rustc_hash::FxHashMap;

use super::process::Process;
use super::remembered::Remembered;

/// Processes with state of their own.
const PROCESSES_MAX: usize = 64 * 1024;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Processes {
    all: Remembered<Process>,
    nobody: Process,
    /// Connections that may have brought requests which are not known yet, and their process; each leaves when it is
    /// understood, or closed.
    hiding: FxHashMap<u64, u32>,
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

    /// Whether the connection `sock` of the process may have brought requests which are not known yet. Whether all other
    /// processes were forgotten.
    pub(super) fn hide(&mut self, sock: u64, tgid: u32, hides: bool) -> bool {
        if self.hiding.contains_key(&sock) == hides {
            return false;
        }
        if hides {
            self.hiding.insert(sock, tgid);
            let (process, forgot) = self.get_mut(tgid);
            process.n_hiding += 1;
            return forgot;
        }
        if let Some(tgid) = self.hiding.remove(&sock)
            && let Some(process) = self.all.get_mut(tgid)
        {
            process.n_hiding = process.n_hiding.saturating_sub(1);
        }
        false
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
