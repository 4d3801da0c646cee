//! Who may read what the agent stores: errors of the file system in the store's words, and the group that files get.
//!
//! The agent runs as root, the command line as the user who called sudo. So folders and files are the agent's,
//! readable by one group: `dprof` if the machine has it, else the group of the user who called sudo.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::StoreError;

/// Members of this group may read every store of the machine.
const GROUP: &str = "dprof";
/// Folders: all for the owner, reading for the group, and what is made in them gets the same group.
const DIR_MODE: u32 = 0o2750;
/// Files: nothing for others, since they hold keys and paths of the traced programs.
const FILE_MODE: u32 = 0o640;

/// The group for new files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    gid: Option<u32>,
}

/// The effective user id of this process.
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// The group that may read what this process stores; `None`: only its own.
pub fn readers_gid() -> Option<u32> {
    Access::of_process().gid
}

impl Access {
    /// What this process should give: only root may choose a group that it is not a member of.
    pub(crate) fn of_process() -> Self {
        if effective_uid() != 0 {
            return Self { gid: None };
        }
        let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
        Self { gid: choose_gid(&groups, std::env::var_os("SUDO_GID").as_deref()) }
    }

    /// For tests: files get this group.
    #[cfg(test)]
    pub(crate) const fn group(gid: u32) -> Self {
        Self { gid: Some(gid) }
    }

    /// Makes the folder of the store and its parents. A folder that somebody else made stays as it is.
    pub(crate) fn create_store(self, dir: &Path) -> Result<(), StoreError> {
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent).map_err(|error| io_error(parent, error))?;
        }
        self.create_dir(dir)?;
        let meta = std::fs::metadata(dir).map_err(|error| io_error(dir, error))?;
        if !meta.is_dir() {
            return Err(StoreError::NotFound(format!("{} (it is a file)", dir.display())));
        }
        // Made by an earlier run for another user: the latest caller may read.
        if let Some(gid) = self.gid
            && (meta.uid(), meta.mode() & 0o7777) == (effective_uid(), DIR_MODE)
            && meta.gid() != gid
        {
            self.give(dir, DIR_MODE)?;
        }
        Ok(())
    }

    /// Makes one folder if it is not there.
    pub(crate) fn create_dir(self, dir: &Path) -> Result<(), StoreError> {
        match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => self.give(dir, DIR_MODE),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(io_error(dir, error)),
        }
    }

    /// Opens a file for writing, made if it is not there; contents stay.
    pub(crate) fn open_file(self, path: &Path) -> Result<File, StoreError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(path)
            .map_err(|error| io_error(path, error))?;
        self.give(path, FILE_MODE)?;
        Ok(file)
    }

    fn give(self, path: &Path, mode: u32) -> Result<(), StoreError> {
        let is_given = |gid| std::fs::metadata(path).is_ok_and(|meta| meta.gid() == gid);
        if let Some(gid) = self.gid
            && !is_given(gid)
        {
            std::os::unix::fs::chown(path, None, Some(gid)).map_err(|error| io_error(path, error))?;
        }
        // After chown, which clears the set-group-id bit.
        std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(|error| io_error(path, error))
    }
}

fn choose_gid(groups: &str, sudo_gid: Option<&OsStr>) -> Option<u32> {
    let named = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(GROUP)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    named.or_else(|| sudo_gid?.to_str()?.parse().ok())
}

/// An error of the file system about `path`.
pub(crate) fn io_error(path: &Path, error: io::Error) -> StoreError {
    let shown = path.display().to_string();
    match error.kind() {
        io::ErrorKind::NotFound => StoreError::NotFound(shown),
        io::ErrorKind::PermissionDenied => permission(path),
        io::ErrorKind::ReadOnlyFilesystem => StoreError::Permission {
            path: shown,
            remedy: "the file system is read-only: use --store with another folder".to_owned(),
        },
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full(shown),
        _ => StoreError::Other(anyhow::Error::new(error).context(shown)),
    }
}

/// Not allowed, with what to do about it.
pub(crate) fn permission(path: &Path) -> StoreError {
    let remedy = if effective_uid() == 0 {
        "even root may not: look at mount options and security modules, or use another --store".to_owned()
    } else {
        format!("run as the user who called sudo dprof-agent, join group {GROUP}, or use sudo")
    };
    StoreError::Permission { path: path.display().to_string(), remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_dprof_else_that_of_the_sudo_user() {
        let groups = "root:x:0:\ndprofx:x:7:\ndprof:x:61:ann,bob\n";
        for (groups, sudo_gid, expected) in [
            (groups, Some("1000"), Some(61)),
            ("root:x:0:\n", Some("1000"), Some(1000)),
            ("root:x:0:\n", None, None),
            ("dprof:x:oops:\n", Some("x"), None),
            ("dprof\n", None, None),
        ] {
            assert_eq!(choose_gid(groups, sudo_gid.map(OsStr::new)), expected, "{groups} {sudo_gid:?}");
        }
    }
}
