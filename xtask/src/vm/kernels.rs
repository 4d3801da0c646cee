//! Debian's kernels: which packages, and where they lie unpacked in the cache.
//!
//! What a reader would get wrong: this machine is of one release, its kernels of five. So apt is given a list of its
//! own, with the mirror that the machine's lists name, and nothing is installed: packages are unpacked into the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::paths;
use crate::step::Steps;

/// A kernel of the matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    /// As asked for and shown.
    pub(crate) name: &'static str,
    /// Debian's suite that has it.
    suite: &'static str,
    /// Packages whose names start so and end in [`FLAVOUR`]; of several versions the newest is taken.
    packages: &'static [&'static str],
    /// The emulated processor.
    cpu: &'static str,
}

/// Everything that the emulator knows.
const CPU: &str = "max";

/// The same without `cmpxchg16b`, which the allocator of kernels before 7 uses with every object: an interrupt at the
/// wrong moment leaves a pointer in the flags (QEMU 7.2, seen once, as a double fault on 6.12). Kernels of 7 give no
/// socket storage without it.
const CPU_WITHOUT_CX16: &str = "max,-cx16";

/// Debian's kernel for virtual machines: the same version and configuration but for drivers, and a fifth of the size.
const FLAVOUR: &str = "-cloud-amd64";

/// The oldest that is supported to the newest.
pub(crate) const KERNELS: [Kernel; 5] = [
    Kernel { name: "5.10", suite: "bullseye", packages: &["linux-image-5.10."], cpu: CPU_WITHOUT_CX16 },
    Kernel { name: "6.1", suite: "bookworm", packages: &["linux-image-6.1."], cpu: CPU_WITHOUT_CX16 },
    Kernel {
        name: "6.12",
        suite: "bookworm-backports",
        packages: &["linux-image-6.12."],
        cpu: CPU_WITHOUT_CX16,
    },
    Kernel {
        name: "6.18",
        suite: "trixie-backports",
        packages: &["linux-image-6.18."],
        cpu: CPU_WITHOUT_CX16,
    },
    // Its image package holds the kernel no more.
    Kernel { name: "7.x", suite: "sid", packages: &["linux-binary-7.", "linux-modules-7."], cpu: CPU },
];

/// Debian's keys, as its own packages install them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Unpacked {
    /// As asked for and shown.
    pub(crate) name: &'static str,
    /// The emulated processor.
    pub(crate) cpu: &'static str,
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// Folder of its modules.
    pub(crate) modules: PathBuf,
}

/// The kernels asked for, or all.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<Kernel>> {
    for name in names {
        ensure!(
            KERNELS.iter().any(|kernel| kernel.name == name),
            "no kernel {name}: choose of {}",
            KERNELS.map(|kernel| kernel.name).join(", ")
        );
    }
    let wanted = |kernel: &Kernel| names.is_empty() || names.iter().any(|name| kernel.name == name);
    Ok(KERNELS.into_iter().filter(wanted).collect())
}

/// What could be had of the kernels asked for.
#[derive(Debug, Default)]
pub(crate) struct Had {
    pub(crate) kernels: Vec<Unpacked>,
    /// Names of the others, each with the reason.
    pub(crate) missing: Vec<(&'static str, String)>,
}

/// Unpacks what is missing in the cache. Kernels that the archive does not have (any more) are told apart from the
/// others; an error when none is left.
pub(crate) fn unpacked(steps: &Steps, kernels: &[Kernel]) -> Result<Had> {
    let cache = paths::cache()?.join("kernels");
    let wanted: Vec<_> = kernels.iter().filter(|kernel| find(&cache, kernel).is_none()).collect();
    let mut had = Had::default();
    if !wanted.is_empty() {
        let apt = Apt::new(&cache, &wanted)?;
        // A suite that has moved to the archive of old ones fails, and the others' lists are there all the same.
        if let Err(error) = steps.run("kernel package lists", apt.command("apt-get").arg("update")) {
            steps.say(&format!("{error:#}"));
        }
        for kernel in wanted {
            if let Err(error) = fetch(steps, &cache, &apt, kernel) {
                steps.interrupt().check()?;
                had.missing.push((kernel.name, format!("{error:#}")));
            }
        }
    }
    had.kernels = kernels.iter().filter_map(|kernel| find(&cache, kernel)).collect();
    ensure!(!had.kernels.is_empty(), "no kernel could be had: {:?}", had.missing);
    Ok(had)
}

/// A kernel that is unpacked whole.
fn find(cache: &Path, kernel: &Kernel) -> Option<Unpacked> {
    let folder = cache.join(kernel.name);
    let image = first(&[&folder.join("boot")], "vmlinuz-").or_else(|| {
        let modules = first(&[&folder.join("usr/lib/modules")], "")?;
        first(&[&modules], "vmlinuz")
    })?;
    let modules = first(&[&folder.join("usr/lib/modules"), &folder.join("lib/modules")], "")?;
    Some(Unpacked { name: kernel.name, cpu: kernel.cpu, image, modules })
}

/// The first entry whose name starts so, of the first folder that has one.
fn first(folders: &[&Path], start: &str) -> Option<PathBuf> {
    let entries =
        folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().filter_map(Result::ok);
    entries
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start)))
}

/// Downloads and unpacks one.
fn fetch(steps: &Steps, cache: &Path, apt: &Apt, kernel: &Kernel) -> Result<()> {
    // Unpacked beside, then moved: a folder of its name is a whole kernel.
    let unfinished = cache.join(format!("{}.unfinished", kernel.name));
    let _ = fs::remove_dir_all(&unfinished);
    let debs = unfinished.join("debs");
    fs::create_dir_all(&debs).with_context(|| format!("create {}", debs.display()))?;
    let newest = |start: &&str| apt.newest(start).with_context(|| format!("suite {}", kernel.suite));
    let packages = kernel.packages.iter().map(newest).collect::<Result<Vec<_>>>()?;
    let mut download = apt.command("apt-get");
    download.current_dir(&debs).arg("download").args(&packages);
    steps.run(&format!("kernel {}: {}", kernel.name, packages.join(", ")), &mut download)?;
    for deb in fs::read_dir(&debs)? {
        let mut unpack = Command::new("dpkg-deb");
        steps.run(&format!("unpack {}", kernel.name), unpack.arg("-x").arg(deb?.path()).arg(&unfinished))?;
    }
    fs::remove_dir_all(&debs)?;
    let folder = cache.join(kernel.name);
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&unfinished, &folder).with_context(|| format!("rename to {}", folder.display()))
}

/// apt with package lists of its own.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn new(cache: &Path, kernels: &[&Kernel]) -> Result<Self> {
        let folder = cache.join("apt");
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part)).with_context(|| format!("create {}", folder.display()))?;
        }
        let mirror = mirror()?;
        let line = |kernel: &&Kernel| format!("deb [signed-by={KEYRING}] {mirror} {} main\n", kernel.suite);
        let list = folder.join("sources.list");
        fs::write(&list, kernels.iter().map(line).collect::<String>())
            .with_context(|| format!("write {}", list.display()))?;
        let folder = folder.display();
        let options = [
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::Lists={folder}/lists"),
            format!("Dir::Cache={folder}/cache"),
            // Neither translations nor descriptions for software centres.
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // Its own user may not read root's cache.
            "APT::Sandbox::User=root".to_owned(),
        ];
        Ok(Self { options: options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect() })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).arg("-q");
        command
    }

    /// The newest package of our flavour whose name starts so.
    fn newest(&self, start: &str) -> Result<String> {
        let pattern = format!("^{}[0-9].*{FLAVOUR}$", start.replace('.', "\\."));
        let output = self.command("apt-cache").args(["search", "--names-only", &pattern]).output();
        let output = output.context("start apt-cache")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let names = text.lines().filter_map(|line| line.split_whitespace().next());
        let newest = names.filter(|name| !name.contains("-rt-")).max_by_key(|name| numbers(name));
        newest.map(str::to_owned).with_context(|| format!("the mirror has no package {start}*{FLAVOUR}"))
    }
}

/// The mirror of Debian's packages that this machine uses.
fn mirror() -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]);
    let output = command.output().context("start apt-get")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let is_debian = |uri: &&str| uri.trim_end_matches('/').ends_with("/debian");
    match text.lines().find(is_debian) {
        Some(mirror) => Ok(mirror.to_owned()),
        None => bail!("apt has no source of Debian's packages: run this on Debian"),
    }
}

/// The numbers in a name, to compare versions: `6.12.9` is older than `6.12.10`.
fn numbers(name: &str) -> Vec<u64> {
    // The machine has a number in its name, too.
    let version = name.trim_end_matches("amd64");
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::{KERNELS, chosen, numbers};

    #[test]
    fn versions_compare_by_number() {
        let older = "linux-image-6.12.9+deb12-cloud-amd64";
        assert!(numbers(older) < numbers("linux-image-6.12.10+deb12-cloud-amd64"));
        assert!(numbers(older) < numbers("linux-image-6.12.9+deb12.1-cloud-amd64"));
    }

    #[test]
    fn an_unknown_kernel_is_named_with_those_that_there_are() {
        assert_eq!(chosen(&[]).map(|kernels| kernels.len()).ok(), Some(KERNELS.len()));
        let error = chosen(&["4.9".to_owned()]).map(drop).unwrap_err().to_string();
        assert!(error.contains("4.9") && error.contains("6.18"), "{error}");
    }
}
