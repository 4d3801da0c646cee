//! Where things lie: the workspace, what is built, and what is installed outside the repository.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Root of the workspace.
pub(crate) fn root() -> PathBuf {
    // Set by `cargo run`, so a moved checkout finds itself; else where xtask was compiled.
    let crate_folder = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    crate_folder.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The object with the kernel programs. Always under the workspace, whatever `CARGO_TARGET_DIR` says: the
/// agent's build script looks there.
pub(crate) fn ebpf_object() -> PathBuf {
    root().join("target/ebpf/dprof-ebpf.o")
}

/// What xtask installs for itself: outside the repository, so that every checkout shares it.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: set one, build tools are kept there")?;
    Ok(base.join("dprof"))
}
