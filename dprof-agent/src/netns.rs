//! Work in another network namespace.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::thread;

/// Does `work` in the namespace behind a file, on a thread that ends with it: a namespace belongs to a thread. Fails if
/// it may not be entered; needs CAP_SYS_ADMIN.
pub(crate) fn within<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let namespace = File::open(netns)?;
    thread::scope(|scope| {
        let done = scope.spawn(|| {
            // SAFETY: changes only this thread, which ends here; the descriptor is open.
            if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(work())
        });
        done.join().unwrap_or_else(|_| Err(io::Error::other("the work in the namespace panicked")))
    })
}
