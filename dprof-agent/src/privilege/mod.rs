//! What the agent gives up once everything is attached and open: capabilities, new privileges, system calls.
//!
//! What a reader would get wrong: capabilities belong to threads, and a thread gets those of the one that starts it.
//! So [`give_up`] runs on the only thread there is, before the pipeline. What has to be kept is tried on a thread that
//! has given it up, not guessed from the kernel's version or a folder's owner.

mod syscalls;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use caps::{CapSet, Capability, CapsHashSet};

use crate::source::Source;

pub use self::syscalls::is_supported as filters_are_supported;

/// Every capability that a run may keep, and what for: docs/security.md has a row for each.
pub const KEPT: [(Capability, &str); 5] = [
    (Capability::CAP_SYS_PTRACE, "names of other users' processes (/proc/PID/exe)"),
    (Capability::CAP_DAC_READ_SEARCH, "ports that other users' processes listen on (/proc/PID/fd)"),
    (Capability::CAP_BPF, "maps of the kernel programs, where the kernel asks for it after the start"),
    (Capability::CAP_SYS_NICE, "the capturing thread goes first, where its limit cannot be raised before"),
    (Capability::CAP_DAC_OVERRIDE, "folders that root may not write to otherwise"),
];

/// What a run goes on needing.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// The kernel is watched, and processes of other users are described.
    pub watches_kernel: bool,
    /// Folders that files are made in later.
    pub folders: &'a [PathBuf],
}

/// What is left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Capabilities, by name.
    pub capabilities: BTreeSet<String>,
    /// Folders for which writing everywhere is kept.
    pub foreign_folders: Vec<PathBuf>,
    /// Whether system calls are filtered.
    pub filters_syscalls: bool,
}

/// Before anything is opened: what takes privilege once, so that the privilege need not be kept.
pub fn prepare() {
    join_readers();
    allow_nice();
}

/// Files get the readers' group without the right to change any file's owner.
fn join_readers() {
    let Some(gid) = dprof_store::readers_gid() else { return };
    // SAFETY: asks for the number of groups only.
    let n_groups = unsafe { libc::getgroups(0, std::ptr::null_mut()) };
    let mut groups: Vec<libc::gid_t> = vec![0; usize::try_from(n_groups).unwrap_or(0)];
    // SAFETY: the buffer has room for as many groups as are said.
    let n_groups = unsafe { libc::getgroups(n_groups, groups.as_mut_ptr()) };
    groups.truncate(usize::try_from(n_groups).unwrap_or(0));
    if !groups.contains(&gid) {
        groups.push(gid);
        // SAFETY: reads as many groups as the vector has.
        if unsafe { libc::setgroups(groups.len(), groups.as_ptr()) } != 0 {
            log::info!("cannot join group {gid}: {}", std::io::Error::last_os_error());
        }
    }
}

/// Nice value of the source's thread: it does little, and what it does late is lost.
const SOURCE_NICE: i32 = -10;

/// With this limit the source's thread may go first without a capability.
fn allow_nice() {
    let rest = (20 - SOURCE_NICE) as libc::rlim_t;
    let limit = libc::rlimit { rlim_cur: rest, rlim_max: rest };
    // SAFETY: reads a struct of plain numbers. Refused without privilege, and then so be it.
    let _ = unsafe { libc::setrlimit(libc::RLIMIT_NICE, &raw const limit) };
}

/// The calling thread goes first on a busy machine; whether it may.
pub fn go_first() -> bool {
    // SAFETY: changes the priority of the calling thread only.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, SOURCE_NICE) == 0 }
}

/// Gives up everything but what `needs` says and `source` and the folders turn out to want. The calling thread must be
/// the only one.
pub fn give_up(needs: Needs<'_>, source: &mut dyn Source) -> anyhow::Result<Left> {
    let permitted = caps::read(None, CapSet::Permitted).context("read this process's capabilities")?;
    let mut keep: CapsHashSet = if needs.watches_kernel {
        [Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH].into()
    } else {
        CapsHashSet::new()
    };
    keep.retain(|capability| permitted.contains(capability));
    let tried = std::thread::scope(|scope| {
        let (keep, source) = (&keep, &mut *source);
        scope
            .spawn(move || {
                hold(keep)?;
                let reads = !needs.watches_kernel || source.check().is_ok();
                let goes_first = !needs.watches_kernel || go_first();
                Ok((reads, goes_first, foreign(needs.folders)))
            })
            .join()
            .map_err(|_| anyhow!("the thread that tries without privileges panicked"))?
    });
    let (reads, goes_first, foreign_folders) = tried.map_err(|error: anyhow::Error| error)?;
    let further = [
        (!reads, Capability::CAP_BPF),
        (!goes_first, Capability::CAP_SYS_NICE),
        (!foreign_folders.is_empty(), Capability::CAP_DAC_OVERRIDE),
    ];
    keep.extend(
        further
            .into_iter()
            .filter(|(wanted, capability)| *wanted && permitted.contains(capability))
            .map(|(_, capability)| capability),
    );
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).unwrap_or(false) {
        // Nothing is ever executed, so nothing needs to be bounded by more than nothing.
        caps::clear(None, CapSet::Bounding).context("clear the bounding set")?;
    }
    // Not known before 4.3, and then there are none.
    let _ = caps::clear(None, CapSet::Ambient);
    hold(&keep)?;
    forbid_new_privileges()?;
    let filters_syscalls = match syscalls::filter() {
        Ok(()) => true,
        Err(error) => {
            log::warn!("system calls are not filtered: {error:#}");
            false
        }
    };
    source.check().context("nothing can be read after privileges were given up: see --keep-privileges")?;
    let capabilities = keep.iter().map(ToString::to_string).collect();
    Ok(Left { capabilities, foreign_folders, filters_syscalls })
}

/// The calling thread holds these capabilities from now on and no others.
fn hold(keep: &CapsHashSet) -> anyhow::Result<()> {
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, keep).with_context(|| format!("give up capabilities ({set:?})"))?;
    }
    caps::clear(None, CapSet::Inheritable).context("clear the inheritable set")
}

fn forbid_new_privileges() -> anyhow::Result<()> {
    // SAFETY: takes numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(std::io::Error::last_os_error()).context("forbid new privileges");
    }
    Ok(())
}

/// Folders, or the nearest that exist above them, that the calling thread may not write to.
fn foreign(folders: &[PathBuf]) -> Vec<PathBuf> {
    folders.iter().filter(|folder| !is_writable(folder)).cloned().collect()
}

fn is_writable(folder: &Path) -> bool {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    for ancestor in absolute.ancestors() {
        let Ok(path) = CString::new(ancestor.as_os_str().as_bytes()) else { return false };
        // SAFETY: the path is a string that ends in zero.
        if unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) } == 0 {
            return true;
        }
        if std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOENT) {
            return false;
        }
    }
    false
}

impl Left {
    /// One line for people.
    pub fn describe(&self) -> String {
        let mut text = if self.capabilities.is_empty() {
            "no capabilities kept".to_owned()
        } else {
            let names: Vec<&str> = self.capabilities.iter().map(String::as_str).collect();
            format!("capabilities kept: {}", names.join(", "))
        };
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "; no new privileges; system calls {}",
            if self.filters_syscalls { "filtered" } else { "not filtered" }
        );
        text
    }
}

/// Version of Landlock that this kernel has; [`None`]: none.
pub fn landlock_version() -> Option<u32> {
    const VERSION: u32 = 1;
    // SAFETY: with this flag only the version is asked for; no memory is read.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    u32::try_from(version).ok().filter(|version| *version > 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Runs `test` on a thread without any capability: capabilities are a thread's own.
    fn without_capabilities<T: Send>(test: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                hold(&CapsHashSet::new()).expect("anybody may give up");
                test()
            });
            run.join().expect("ran")
        })
    }

    #[test]
    fn folders_that_cannot_be_written_are_told_from_those_that_are_not_made_yet() {
        let dir = tempfile::tempdir().expect("a folder");
        let closed = dir.path().join("closed");
        std::fs::create_dir(&closed).expect("made");
        std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o500)).expect("is ours");
        let (open, later, inside) = (dir.path().to_owned(), dir.path().join("a/b/c"), closed.join("x/y"));
        let found = without_capabilities(|| foreign(&[open, later, inside.clone(), closed.clone()]));
        assert_eq!(found, [inside, closed]);
    }

    #[test]
    fn what_is_left_is_one_line() {
        let mut left = Left { filters_syscalls: true, ..Left::default() };
        assert_eq!(left.describe(), "no capabilities kept; no new privileges; system calls filtered");
        left.capabilities = ["CAP_BPF".to_owned(), "CAP_SYS_PTRACE".to_owned()].into();
        assert!(left.describe().starts_with("capabilities kept: CAP_BPF, CAP_SYS_PTRACE; "));
    }

    #[test]
    fn the_document_has_a_row_for_every_capability_and_for_no_other() {
        let page = include_str!("../../../docs/security.md");
        let rows: BTreeSet<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
            .map(|(name, _)| name)
            .filter(|name| name.starts_with("CAP_"))
            .collect();
        let names: Vec<String> = KEPT.iter().map(|(capability, _)| capability.to_string()).collect();
        assert_eq!(rows, names.iter().map(String::as_str).collect());
    }
}
