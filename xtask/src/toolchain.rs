//! Compilers and linker for the kernel programs.
//!
//! The target `bpfel-unknown-none` is not among those that rustup has a `core` for. Two ways lead to one:
//! a nightly toolchain with `rust-src`, which builds it (aya's ordinary way), or Debian's
//! `libstd-rust-web-dev-bpf`, which holds it ready for Debian's own newer compiler. What a reader would get
//! wrong: bpf-linker links LLVM bitcode with the *compiler's* libLLVM, which it finds by name in the folders of
//! `LD_LIBRARY_PATH`; two there, or one of another version, and it aborts. So each gets a folder with one link.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use dprof_tests::subject::installed;

use crate::paths;

/// The version that is installed; its default features are for [`LLVM_MAJOR`].
pub(crate) const BPF_LINKER_VERSION: &str = "0.10.3";

/// LLVM of the compilers that this bpf-linker can link for. It reads no newer bitcode.
const LLVM_MAJOR: u32 = 22;

/// A compiler that can build for the BPF target.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    /// As shown.
    pub(crate) name: &'static str,
    /// Folder of `cargo` and `rustc`.
    bin: PathBuf,
    /// The compiler's libLLVM.
    llvm: PathBuf,
    /// Whether `core` is built along.
    build_std: bool,
}

/// Debian packages that bring [`debian`].
pub(crate) const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// The tool chain to use: a nightly that fits, else Debian's.
pub(crate) fn find() -> Option<Toolchain> {
    nightly().or_else(debian)
}

/// rustup's nightly, if it has the sources of `core` and the LLVM that bpf-linker was made for.
fn nightly() -> Option<Toolchain> {
    let rustup = installed("rustup")?;
    let sysroot = stdout(Command::new(rustup).args(["run", "nightly", "rustc", "--print", "sysroot"]))?;
    let sysroot = PathBuf::from(sysroot.trim());
    let core = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
    toolchain("nightly with rust-src", &sysroot, &core, &sysroot.join("lib"), true)
}

/// Debian's `rustc-web` with its prebuilt `core`.
fn debian() -> Option<Toolchain> {
    let core = Path::new("/usr/lib/rustlib/bpfel-unknown-none/lib");
    let arch = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    toolchain("Debian's rustc-web", Path::new("/usr"), core, Path::new(&arch), false)
}

fn toolchain(
    name: &'static str,
    sysroot: &Path,
    core: &Path,
    libraries: &Path,
    build_std: bool,
) -> Option<Toolchain> {
    let bin = sysroot.join("bin");
    let version = stdout(Command::new(bin.join("rustc")).arg("-vV"))?;
    let fits = core.exists() && bin.join("cargo").is_file() && llvm_major(&version) == Some(LLVM_MAJOR);
    let llvm = fits.then(|| llvm_library(libraries)).flatten()?;
    Some(Toolchain { name, bin, llvm, build_std })
}

/// `22` of the line `LLVM version: 22.1.8` in what `rustc -vV` prints.
fn llvm_major(version: &str) -> Option<u32> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

/// `libLLVM.so.22.1…` (a compiler's own, whatever its suffix) in a folder.
fn llvm_library(folder: &Path) -> Option<PathBuf> {
    let prefix = format!("libLLVM.so.{LLVM_MAJOR}.");
    fs::read_dir(folder)
        .ok()?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
}

fn stdout(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Toolchain {
    /// `cargo build` for the kernel programs in `folder`, its output under `target`.
    pub(crate) fn cargo_build(&self, folder: &Path, target: &Path, linker: &Path) -> Result<Command> {
        let mut command = Command::new(self.bin.join("cargo"));
        // Set by rustup and cargo for the tool chain that runs xtask; here another one works.
        for variable in ["RUSTUP_TOOLCHAIN", "RUSTC", "RUSTDOC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
            command.env_remove(variable);
        }
        let linker_folder = linker.parent().context("bpf-linker lies in a folder")?;
        let path = [linker_folder, &self.bin, Path::new("/usr/bin"), Path::new("/bin")];
        // aya picks the layout of the registers by it; BTF of the program needs the debug information.
        let arch = format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH);
        let linker = format!("-Clinker={}", linker.display());
        let flags = [arch.as_str(), "-Cdebuginfo=2", "-Clink-arg=--btf", &linker];
        command
            .current_dir(folder)
            .args(["build", "--release", "--target", "bpfel-unknown-none"])
            .arg("--target-dir")
            .arg(target)
            .env("RUSTC", self.bin.join("rustc"))
            .env("PATH", std::env::join_paths(path)?)
            .env("LD_LIBRARY_PATH", self.llvm_folder()?)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        if self.build_std {
            command.args(["-Z", "build-std=core"]);
        } else {
            // aya-ebpf and our programs need features of the language that are not stable; this lets Debian's stable
            // compiler have them, in these crates only.
            command.env("RUSTC_BOOTSTRAP", "aya_ebpf,dprof_ebpf");
        }
        Ok(command)
    }

    /// Name for folders.
    pub(crate) const fn id(&self) -> &'static str {
        if self.build_std { "nightly" } else { "debian" }
    }

    /// A folder with a link to this compiler's libLLVM and nothing else.
    fn llvm_folder(&self) -> Result<PathBuf> {
        let folder = paths::cache()?.join("llvm").join(self.id());
        let link = folder.join(format!("libLLVM-{LLVM_MAJOR}.so"));
        if fs::read_link(&link).ok().as_ref() != Some(&self.llvm) {
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
            fs::remove_file(&link).or_else(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
            symlink(&self.llvm, &link).with_context(|| format!("link {}", link.display()))?;
        }
        Ok(folder)
    }
}

/// Where our bpf-linker is installed.
pub(crate) fn bpf_linker() -> Result<PathBuf> {
    Ok(paths::cache()?.join(format!("bpf-linker-{BPF_LINKER_VERSION}")).join("bin/bpf-linker"))
}

/// The command that installs it, with whatever stable compiler runs xtask.
pub(crate) fn install_bpf_linker() -> Result<Command> {
    let root = bpf_linker()?.ancestors().nth(2).map(Path::to_path_buf).context("cache folder")?;
    if !root.is_absolute() {
        bail!("the cache folder {} must be absolute", root.display());
    }
    let mut command = Command::new("cargo");
    command
        .args(["install", "bpf-linker", "--version", BPF_LINKER_VERSION, "--locked", "--root"])
        .arg(&root)
        // Not in the workspace: its configuration and target folder are not this program's.
        .current_dir("/")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::llvm_major;

    #[track_caller]
    fn check(version: &str, expected: Option<u32>) {
        assert_eq!(llvm_major(version), expected);
    }

    #[test]
    fn llvm_version_is_read_from_what_rustc_prints() {
        check("rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8\n", Some(22));
        check("LLVM version: 9", Some(9));
        check("rustc 1.96.0\n", None);
        check("LLVM version: \n", None);
    }
}
