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

/// Objects with the kernel programs, and the features that each is built with: events through the ring buffer, or
/// through perf buffers, of which the map's type is a part.
pub(crate) const EBPF_OBJECTS: [(&str, &str); 2] = [("dprof-ebpf.o", ""), ("dprof-ebpf-perf.o", "perf")];

/// One of them. Always under the workspace, whatever `CARGO_TARGET_DIR` says: the agent's build script looks there.
pub(crate) fn ebpf_object(name: &str) -> PathBuf {
    root().join("target/ebpf").join(name)
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
