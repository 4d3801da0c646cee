//! `cargo xtask check`: formatting, clippy, documentation and the tree's own rules, warnings denied.
//!
//! Every part runs even when an earlier one failed: one look shows all that is to be mended.

use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::step::{Steps, say};
use crate::{paths, tidy};

/// Arguments of cargo, and what it says. The kernel programs are formatted too; clippy for their target would need
/// Debian's compiler to bring one, which it does not.
const PARTS: [(&str, &[&str]); 4] = [
    ("formatting", &["fmt", "--all", "--check"]),
    ("formatting of the kernel programs", &["fmt", "--manifest-path", "dprof-ebpf/Cargo.toml", "--check"]),
    (
        "clippy",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--features",
            "dprof-store/bench",
            "--",
            "-D",
            "warnings",
        ],
    ),
    ("documentation", &["doc", "--workspace", "--no-deps", "--document-private-items"]),
];

/// The documentation is for those who work on the code: private items are in it, and may be linked.
const RUSTDOC_FLAGS: &str = "-D warnings -A rustdoc::private_intra_doc_links";

/// `cargo xtask check`.
pub(crate) fn run() -> Result<()> {
    look(&Steps::new()?)
}

/// Runs all parts; fails if one found something.
pub(crate) fn look(steps: &Steps) -> Result<()> {
    let mut failed = Vec::new();
    for (title, arguments) in PARTS {
        steps.interrupt().check()?;
        let component = arguments[0];
        // rustup's minimal profile lacks them; everything else builds without.
        if !has_component(component) {
            bail!(
                "no cargo {component}: rustup component add {}",
                if component == "fmt" { "rustfmt" } else { component }
            );
        }
        let mut command = Command::new("cargo");
        command.current_dir(paths::root()).args(arguments).env("RUSTDOCFLAGS", RUSTDOC_FLAGS);
        if let Err(error) = steps.run(title, &mut command) {
            steps.interrupt().check()?;
            say(&format!("{error:#}"));
            failed.push(title);
        }
    }
    let untidy = tidy::look(&paths::root())?;
    for line in &untidy {
        say(line);
    }
    if !untidy.is_empty() {
        failed.push("tidy");
    }
    if !failed.is_empty() {
        bail!("to be mended: {}", failed.join(", "));
    }
    say("formatting, clippy, documentation, tidy: nothing to mend");
    Ok(())
}

/// Whether cargo has this command; those of its own it always has.
fn has_component(command: &str) -> bool {
    command == "doc"
        || Command::new("cargo")
            .args([command, "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
}
