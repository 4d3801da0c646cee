//! `cargo xtask build-ebpf`: compiles `dprof-ebpf` into the objects that the agent embeds.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::step::Steps;
use crate::{paths, setup, toolchain};

/// Sets up what is missing and builds.
pub(crate) fn run() -> Result<()> {
    let steps = Steps::new()?;
    setup::ensure(&steps, setup::Need::EBPF)?;
    build(&steps)
}

/// Builds with what is installed.
pub(crate) fn build(steps: &Steps) -> Result<()> {
    let Some(toolchain) = toolchain::find() else {
        bail!("no compiler for the kernel programs: run cargo xtask setup");
    };
    let folder = paths::root().join("dprof-ebpf");
    // Per tool chain: cargo would otherwise build everything anew whenever the other one is used.
    let target = folder.join("target").join(toolchain.id());
    for (name, features) in paths::EBPF_OBJECTS {
        let mut command = toolchain.cargo_build(&folder, &target, &toolchain::bpf_linker()?)?;
        command.args(["--features", features]);
        steps.run(&format!("{name} ({})", toolchain.name), &mut command)?;
        publish(&target.join("bpfel-unknown-none/release/dprof-ebpf"), &paths::ebpf_object(name))?;
    }
    Ok(())
}

/// Copies the object unless it is the same already: a newer file would have cargo compile the agent anew.
fn publish(built: &Path, object: &Path) -> Result<()> {
    let bytes = fs::read(built).with_context(|| format!("read {}", built.display()))?;
    if fs::read(object).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let folder = object.parent().context("the object lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    fs::write(object, bytes).with_context(|| format!("write {}", object.display()))
}
