//! Locks that die with their process: which network namespaces an agent watches, and that a run is alive.
//!
//! `flock` on a file: the kernel drops it when the process ends, also by `kill -9`. The namespaces are locked
//! within one store, so agents may share a store but not a namespace (each RPC would be stored twice).

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::access::{Access, io_error};
use crate::StoreError;

/// Folder of the namespaces' lock files, beside the runs.
pub(crate) const LOCKS_DIR: &str = "locks";
/// Lock file of a run.
const RUN_LOCK: &str = "run.lock";
/// A file that is replaced this often while it is being locked is not a lock any more.
const TRIES_MAX: usize = 100;

/// A held lock; the file goes with it.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    /// Held open: closing unlocks.
    _file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Before the unlock: whoever locks the nameless file notices (`take` compares inodes).
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Locks the file at `path` and writes our process id into it; `Err` inside = held by the process of that id.
fn take(path: &Path, access: Access) -> Result<Result<Lock, u32>, StoreError> {
    for _ in 0..TRIES_MAX {
        let mut file = access.open_file(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                return Ok(Err(text.trim().parse().unwrap_or(0)));
            }
            Err(TryLockError::Error(error)) => return Err(io_error(path, error)),
        }
        let ours = file.metadata().map_err(|error| io_error(path, error))?.ino();
        if std::fs::metadata(path).is_ok_and(|named| named.ino() == ours) {
            file.set_len(0)
                .and_then(|()| write!(file, "{}", std::process::id()))
                .map_err(|error| io_error(path, error))?;
            return Ok(Ok(Lock { path: path.to_owned(), _file: file }));
        }
        // Its last holder removed it between our open and our lock: again.
    }
    Err(StoreError::Other(anyhow::anyhow!("{}: lock file keeps changing", path.display())))
}

/// Locks the network namespaces for the life of the locks.
pub(crate) fn lock_netns(dir: &Path, netns: &[u32], access: Access) -> Result<Vec<Lock>, StoreError> {
    let locks_dir = dir.join(LOCKS_DIR);
    access.create_dir(&locks_dir)?;
    let mut wanted = netns.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    let mut locks = Vec::with_capacity(wanted.len());
    for netns in wanted {
        match take(&locks_dir.join(format!("netns-{netns}.lock")), access)? {
            Ok(lock) => locks.push(lock),
            Err(pid) => return Err(StoreError::Busy { path: dir.display().to_string(), netns, pid }),
        }
    }
    Ok(locks)
}

/// Marks the run in `run_dir` as alive; `None` if it already is (its agent runs).
pub(crate) fn lock_run(run_dir: &Path, access: Access) -> Result<Option<Lock>, StoreError> {
    Ok(take(&run_dir.join(RUN_LOCK), access)?.ok())
}

/// Whether an agent writes to this run now. Unreadable lock files count as alive.
pub(crate) fn is_alive(run_dir: &Path) -> bool {
    match File::open(run_dir.join(RUN_LOCK)) {
        // A shared lock would make a starting agent believe that the run is taken, but runs are never reopened
        // by another agent; only by tests and by sealing, which tries again.
        Ok(file) => file.try_lock_shared().is_err(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_refused_naming_the_holder_and_sharing_is_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let access = Access::of_process();
        let held = lock_netns(dir.path(), &[3, 1, 3], access).expect("free");
        let others = lock_netns(dir.path(), &[2], access).expect("other namespaces are free");
        match lock_netns(dir.path(), &[2, 4, 1], access).unwrap_err() {
            error @ StoreError::Busy { netns: 1, pid, .. } => {
                assert_eq!(pid, std::process::id());
                assert!(error.to_string().contains(&format!("pid {pid}")), "{error}");
            }
            error => panic!("{error}"),
        }
        drop((held, others));
        lock_netns(dir.path(), &[1, 2, 3, 4], access).expect("free again, also 4 of the failed try");
        assert_eq!(std::fs::read_dir(dir.path().join(LOCKS_DIR)).expect("there").count(), 0, "files go too");
    }

    #[test]
    fn a_run_is_alive_while_it_is_locked() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(!is_alive(dir.path()));
        let lock = lock_run(dir.path(), Access::of_process()).expect("locks").expect("free");
        assert!(is_alive(dir.path()));
        assert!(lock_run(dir.path(), Access::of_process()).expect("no error").is_none());
        drop(lock);
        assert!(!is_alive(dir.path()));
    }
}
