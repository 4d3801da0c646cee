//! `cargo xtask setup`: installs what a command needs and lacks. Every command calls [`ensure`] first, so nobody
//! needs to run it by hand; when all is there it only looks.
//!
//! Debian packages are installed as root on Debian and its kin, bpf-linker into the cache folder. No service is
//! started, now or at the next boot. Otherwise one message names all that is missing and how to get it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, anyhow, bail};

use dprof_tests::subject::installed;

use crate::step::{Steps, say};
use crate::toolchain;

/// What a command needs installed: bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Need(u8);

impl Need {
    /// To build the kernel programs.
    pub(crate) const EBPF: Self = Self(1);
    /// To run the demo.
    pub(crate) const DEMO: Self = Self(2 | Self::EBPF.0);
    /// To run a Cassandra ring.
    pub(crate) const CASSANDRA: Self = Self(8);
    /// To run every test tier.
    pub(crate) const TEST: Self = Self(4 | Self::BENCH_ENGINE.0 | Self::CASSANDRA.0 | Self::VM.0);
    /// To boot kernels in virtual machines.
    pub(crate) const VM: Self = Self(64 | Self::DEMO.0);
    /// To count the engine's instructions.
    pub(crate) const BENCH_ENGINE: Self = Self(16);
    /// To measure what an agent costs.
    pub(crate) const BENCH_OVERHEAD: Self = Self(32 | Self::EBPF.0);

    const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A program, the Debian packages that bring it, and who needs it.
struct Tool {
    program: &'static str,
    packages: &'static [&'static str],
    need: Need,
}

const TOOLS: &[Tool] = &[
    Tool { program: "cc", packages: &["gcc", "libc6-dev"], need: Need::EBPF },
    Tool { program: "redis-server", packages: &["redis-server"], need: Need::DEMO },
    Tool { program: "redis-cli", packages: &["redis-tools"], need: Need::DEMO },
    Tool { program: "redis-benchmark", packages: &["redis-tools"], need: Need::DEMO },
    Tool { program: "nutcracker", packages: &["nutcracker"], need: Need::DEMO },
    Tool { program: "nginx", packages: &["nginx"], need: Need::VM },
    Tool { program: "haproxy", packages: &["haproxy"], need: Need::TEST },
    Tool { program: "memcached", packages: &["memcached"], need: Need::TEST },
    Tool { program: "openssl", packages: &["openssl"], need: Need::TEST },
    Tool { program: "tshark", packages: &["tshark"], need: Need::TEST },
    Tool { program: "valgrind", packages: &["valgrind"], need: Need::BENCH_ENGINE },
    Tool { program: "memcached", packages: &["memcached"], need: Need::BENCH_OVERHEAD },
    Tool { program: "wrk", packages: &["wrk"], need: Need::BENCH_OVERHEAD },
    Tool { program: "redis-server", packages: &["redis-server"], need: Need::BENCH_OVERHEAD },
    Tool { program: "redis-benchmark", packages: &["redis-tools"], need: Need::BENCH_OVERHEAD },
    Tool { program: "nginx", packages: &["nginx"], need: Need::BENCH_OVERHEAD },
    Tool { program: "nft", packages: &["nftables"], need: Need::TEST },
    Tool { program: "nsenter", packages: &["util-linux"], need: Need::TEST },
    Tool { program: "ip", packages: &["iproute2"], need: Need::VM },
    Tool { program: "nginx", packages: &["nginx"], need: Need::TEST },
    Tool { program: "ip", packages: &["iproute2"], need: Need::TEST },
    Tool { program: "qemu-system-x86_64", packages: &["qemu-system-x86"], need: Need::VM },
    Tool { program: "busybox", packages: &["busybox-static"], need: Need::VM },
    Tool { program: "strip", packages: &["binutils"], need: Need::VM },
    Tool { program: "java", packages: &["openjdk-17-jdk-headless"], need: Need::CASSANDRA },
    Tool { program: "keytool", packages: &["openjdk-17-jdk-headless"], need: Need::TEST },
    Tool { program: "mvn", packages: &["maven"], need: Need::CASSANDRA },
];

/// What is missing and cannot be installed by us: the message.
#[derive(Debug)]
pub(crate) struct Missing(pub(crate) String);

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

/// `cargo xtask setup`.
pub(crate) fn run() -> Result<()> {
    let steps = Steps::new()?;
    ensure(&steps, Need::TEST)?;
    steps.say("set up: everything that cargo xtask demo, test and check need is installed");
    Ok(())
}

/// Installs what is missing for `need`. The error is a [`Missing`] when that is not ours to do.
pub(crate) fn ensure(steps: &Steps, need: Need) -> Result<()> {
    ensure_beside(steps, need, || Ok(()))
}

/// The same, with `work` done meanwhile if anything is installed: that waits for the network, `work` for the
/// processor.
pub(crate) fn ensure_beside(steps: &Steps, need: Need, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let missing = missing_programs(need);
    let ebpf = need.contains(Need::EBPF);
    let compiler = ebpf && toolchain::find().is_none();
    let mut packages: Vec<&str> = missing.iter().flat_map(|tool| tool.packages).copied().collect();
    if compiler {
        packages.extend(toolchain::DEBIAN_PACKAGES);
    }
    packages.sort_unstable();
    packages.dedup();
    if !packages.is_empty() && !can_install() {
        return Err(Missing(message(&missing, compiler, &packages)).into());
    }
    if packages.is_empty() && (!ebpf || toolchain::bpf_linker()?.is_file()) {
        return Ok(());
    }
    // A linker for Rust programs was needed to get here, so bpf-linker need not wait for the packages, unless
    // they bring that very linker.
    let linker_later = missing.iter().any(|tool| tool.program == "cc");
    thread::scope(|scope| {
        let installing = scope.spawn(|| {
            install_packages(steps, &packages)?;
            if ebpf && linker_later { install_linker(steps) } else { Ok(()) }
        });
        let linking = scope.spawn(|| if !ebpf || linker_later { Ok(()) } else { install_linker(steps) });
        let worked = work();
        for thread in [installing, linking] {
            thread.join().map_err(|_| anyhow!("set-up panicked"))??;
        }
        worked
    })?;
    if ebpf && toolchain::find().is_none() {
        bail!("{}", message(&[], true, &toolchain::DEBIAN_PACKAGES));
    }
    Ok(())
}

fn missing_programs(need: Need) -> Vec<&'static Tool> {
    TOOLS.iter().filter(|tool| need.contains(tool.need) && installed(tool.program).is_none()).collect()
}

/// Whether this is root on a machine with apt.
fn can_install() -> bool {
    is_root() && installed("apt-get").is_some()
}

/// Whether the effective user is root.
pub(crate) fn is_root() -> bool {
    // SAFETY: no arguments, no failure, no memory.
    unsafe { libc::geteuid() == 0 }
}

fn message(missing: &[&Tool], compiler: bool, packages: &[&str]) -> String {
    let mut names: Vec<&str> = missing.iter().map(|tool| tool.program).collect();
    if compiler {
        names.push("a compiler for kernel programs");
    }
    let nightly = if compiler {
        " (any distribution, instead of Debian's compiler: rustup toolchain install nightly --component rust-src)"
    } else {
        ""
    };
    format!(
        "missing: {}. On Debian run this command as root, or: apt-get install {}{nightly}",
        names.join(", "),
        packages.join(" ")
    )
}

fn install_linker(steps: &Steps) -> Result<()> {
    if toolchain::bpf_linker()?.is_file() {
        return Ok(());
    }
    steps.run(&format!("bpf-linker {}", toolchain::BPF_LINKER_VERSION), &mut toolchain::install_bpf_linker()?)
}

fn install_packages(steps: &Steps, packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let _services = NoServices::hold()?;
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y", "-o", "DPkg::Lock::Timeout=120"]).args(arguments);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    steps.run("package lists", &mut apt(&["update"]))?;
    let mut install = apt(&["install", "--no-install-recommends"]);
    steps.run(&format!("packages {}", packages.join(" ")), install.args(packages))?;
    if Path::new("/run/systemd/system").is_dir() {
        for package in packages.iter().filter(|package| SERVICES.contains(*package)) {
            let mut disable = Command::new("systemctl");
            steps.run(&format!("no {package} at boot"), disable.args(["disable", package]))?;
        }
    }
    Ok(())
}

/// Packages that bring a service of the same name. We run these programs ourselves, on ports of our own.
const SERVICES: [&str; 5] = ["redis-server", "nutcracker", "nginx", "haproxy", "memcached"];

/// While this lives, Debian's packages start no service: the policy that `invoke-rc.d` asks says no. A policy
/// of the machine's own is left as it is, and decides.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn hold() -> Result<Self> {
        let policy = PathBuf::from("/usr/sbin/policy-rc.d");
        if policy.exists() {
            return Ok(Self(None));
        }
        fs::write(&policy, "#!/bin/sh\n# by cargo xtask setup, removed when it ends\nexit 101\n")
            .and_then(|()| fs::set_permissions(&policy, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("write {}", policy.display()))?;
        Ok(Self(Some(policy)))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = &self.0
            && let Err(error) = fs::remove_file(policy)
        {
            say(&format!("remove {}: {error}: services will not start while it is there", policy.display()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Need, TOOLS, message};

    #[test]
    fn each_need_includes_the_smaller_one() {
        assert!(Need::TEST.contains(Need::DEMO) && Need::DEMO.contains(Need::EBPF));
        assert!(!Need::DEMO.contains(Need::TEST));
    }

    #[test]
    fn the_message_names_every_program_and_package_in_one_line() {
        let missing: Vec<_> = TOOLS.iter().filter(|tool| tool.program == "nutcracker").collect();
        assert_eq!(
            message(&missing, false, &["nutcracker"]),
            "missing: nutcracker. On Debian run this command as root, or: apt-get install nutcracker"
        );
        let line = message(&missing, true, &["nutcracker", "rustc-web"]);
        assert!(line.contains("nutcracker, a compiler for kernel programs"), "{line}");
        assert!(line.contains("rustup toolchain install nightly --component rust-src"), "{line}");
        assert_eq!(line.lines().count(), 1);
    }
}
