//! The file system of the virtual machines: busybox, our binaries, the subjects, the libraries of all of them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use dprof_tests::agent::binary;
use dprof_tests::subject::{find, installed};

use super::kernels::Unpacked;
use crate::paths;

/// What runs first. `tier.sh` is written per run.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin:/usr/sbin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
ip link set lo up
sh /tier.sh
poweroff -f
";

/// Programs that the tests observe or use.
const SUBJECTS: [&str; 6] = ["redis-server", "redis-cli", "redis-benchmark", "nginx", "nutcracker", "ip"];

/// Modules that tests need, with what they need, in the order of loading; not every kernel has or needs each.
const MODULES: [&str; 14] = [
    "veth",
    "libcrc32c",
    "nf_defrag_ipv6",
    "nf_defrag_ipv4",
    "nf_conntrack",
    "nf_nat",
    "x_tables",
    "nfnetlink",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "tls",
    "sch_netem",
    "xt_nat",
];

/// Writes the part that all kernels share; where it is.
pub(crate) fn shared(folder: &Path, tier: &str) -> Result<PathBuf> {
    let root = folder.join("root");
    let _ = fs::remove_dir_all(&root);
    for part in ["bin", "dprof", "proc", "sys", "dev", "tmp", "run", "etc", "modules"] {
        fs::create_dir_all(root.join(part)).with_context(|| format!("create {}", root.display()))?;
    }
    write(&root, "init", INIT, 0o755)?;
    write(&root, "tier.sh", tier, 0o644)?;
    write(&root, "etc/passwd", "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n", 0o644)?;
    write(&root, "etc/group", "root:x:0:\nnogroup:x:65534:\n", 0o644)?;
    copy(&find("busybox"), &root.join("bin/busybox"))?;
    for (file, name) in
        [(binary("dprof-agent"), "dprof-agent"), (binary("dprof-cli"), "dprof-cli"), (tiers()?, "tiers")]
    {
        // Debug information is four fifths of them, and the kernel unpacks it all.
        let mut strip = Command::new("strip");
        let status = strip.arg("-o").arg(root.join("dprof").join(name)).arg(&file).status();
        ensure!(status.context("start strip")?.success(), "strip {}", file.display());
    }
    let mut libraries = BTreeSet::new();
    for name in ["dprof-agent", "dprof-cli", "tiers"] {
        libraries.extend(libraries_of(&root.join("dprof").join(name))?);
    }
    for name in SUBJECTS {
        let file =
            installed(name).with_context(|| format!("{name} is not installed: run cargo xtask setup"))?;
        libraries.extend(libraries_of(&file)?);
        copy(&file, &root.join("usr/bin").join(name))?;
    }
    for library in libraries {
        copy(&library, &root.join(library.strip_prefix("/").unwrap_or(&library)))?;
    }
    let archive = folder.join("shared.cpio");
    pack(&root, &archive)?;
    Ok(archive)
}

/// Writes a kernel's whole initramfs: the shared part and its modules.
pub(crate) fn with_modules(folder: &Path, shared: &Path, kernel: &Unpacked) -> Result<PathBuf> {
    let root = folder.join(format!("modules-{}", kernel.name));
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(root.join("modules"))?;
    let mut files = Vec::new();
    walk(&kernel.modules, &mut files)?;
    for (idx, name) in MODULES.iter().enumerate() {
        let is_it = |file: &&PathBuf| {
            let name_of = file.file_name().map(|name| name.to_string_lossy().replace('-', "_"));
            name_of.is_some_and(|of| of == format!("{name}.ko") || of == format!("{name}.ko.xz"))
        };
        let Some(file) = files.iter().find(is_it) else { continue };
        // Loaded in the order of their names.
        let to = root.join("modules").join(format!("{idx:02}-{name}.ko"));
        if file.extension().is_some_and(|extension| extension == "xz") {
            let output =
                Command::new(find("busybox")).arg("xzcat").arg(file).output().context("start busybox")?;
            ensure!(output.status.success(), "unpack {}", file.display());
            fs::write(&to, output.stdout)?;
        } else {
            copy(file, &to)?;
        }
    }
    let modules = folder.join(format!("modules-{}.cpio", kernel.name));
    pack(&root, &modules)?;
    // The kernel unpacks one archive after another.
    let whole = folder.join(format!("{}.cpio", kernel.name));
    fs::write(&whole, [fs::read(shared)?, fs::read(modules)?].concat())
        .with_context(|| format!("write {}", whole.display()))?;
    Ok(whole)
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// The test binary, as cargo names it.
fn tiers() -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    command.current_dir(paths::root()).args(["test", "-p", "dprof-tests", "--test", "tiers", "--no-run"]);
    let output = command.output().context("start cargo")?;
    let said = String::from_utf8_lossy(&output.stderr);
    // `Executable tests/tiers/main.rs (target/debug/deps/tiers-0123456789abcdef)`
    let path = said.lines().find_map(|line| line.split_once("tiers/main.rs (")?.1.strip_suffix(')'));
    match path {
        Some(path) => Ok(paths::root().join(path)),
        None => bail!("cargo did not say where the test binary is: {said}"),
    }
}

/// Shared libraries that a program loads, and the loader.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let paths = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

fn write(root: &Path, name: &str, text: &str, mode: u32) -> Result<()> {
    let path = root.join(name);
    fs::write(&path, text)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("write {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    fs::copy(from, to).map(drop).with_context(|| format!("copy {} to {}", from.display(), to.display()))
}

/// Packs a folder as the kernel wants it.
fn pack(root: &Path, archive: &Path) -> Result<()> {
    let out = fs::File::create(archive).with_context(|| format!("create {}", archive.display()))?;
    let busybox = find("busybox");
    let mut find = Command::new(&busybox);
    let mut names = find.current_dir(root).args(["find", "."]).stdout(Stdio::piped()).spawn()?;
    let list = names.stdout.take().context("output of find")?;
    let mut cpio = Command::new(&busybox);
    cpio.current_dir(root).args(["cpio", "-o", "-H", "newc"]).stdin(list).stdout(out).stderr(Stdio::null());
    let status = cpio.status().context("start busybox cpio")?;
    ensure!(names.wait()?.success() && status.success(), "pack {}", root.display());
    Ok(())
}
