//! Who may read what a running agent writes: root and one group the store, root alone the rest.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dprof_tests::agent::{Agent, binary};
use dprof_tests::program::Program;
use dprof_tests::{poll, subject};

use super::counts::{LOAD_WITHIN, benchmark};
use crate::harness::Live;

/// A user of no group that matters.
const STRANGER: u32 = 54_320;
/// The group of the user who called sudo, where the machine has no group `dprof`.
const SUDO_GROUP: u32 = 54_321;

/// The group that may read: `dprof` if there is one.
fn readers() -> u32 {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let named = groups.lines().find_map(|line| line.strip_prefix("dprof:")?.split(':').nth(1)?.parse().ok());
    named.unwrap_or(SUDO_GROUP)
}

/// Every file below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

/// Whether `gid`'s member, who is not root, can read the file.
fn can_read(path: &Path, gid: u32) -> Result<bool> {
    let mut cat = Command::new("cat");
    cat.arg(path).uid(STRANGER).gid(gid).current_dir("/");
    Ok(cat.output().context("start cat")?.status.success())
}

/// The command line's answer to somebody of group `gid`.
fn ask(cli: &Path, store: &str, gid: u32) -> Result<Output> {
    let mut command = Command::new(cli);
    command.args(["--store", store, "slowest-spans", "--since", "all", "--format", "json"]);
    command.uid(STRANGER).gid(gid).current_dir("/").output().context("start dprof-cli")
}

#[test]
fn members_of_the_group_read_the_store_and_strangers_read_nothing() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    // What is in the folder is as open as it is itself.
    fs::set_permissions(live.path(), fs::Permissions::from_mode(0o755))?;
    let cli = live.path().join("cli");
    fs::copy(binary("dprof-cli"), &cli)?;
    fs::set_permissions(&cli, fs::Permissions::from_mode(0o755))?;
    let redis = subject::redis(live.path())?;
    let config = live.path().join("agent.toml");
    fs::write(&config, "[retention]\nchunk_size = \"1MiB\"\n")?;
    let recording = live.path().join("recording");
    let (store, port) = (format!("sqlite:{}", live.path().join("store").display()), redis.port.to_string());
    let arguments = [
        "--config",
        &config.display().to_string(),
        "--port",
        &port,
        "--record",
        &recording.display().to_string(),
    ];
    let mut command = Command::new(binary("dprof-agent"));
    command.env("SUDO_GID", SUDO_GROUP.to_string()).env_remove("SUDO_UID");
    let agent = Agent::start_with(live.path(), &store, &mut command, &arguments)?;
    // Several chunks: all but the first are made when the agent has given up its rights.
    benchmark(&live, redis.port, &["-n", "20000", "-t", "set"])?.wait(LOAD_WITHIN)?.success()?;
    let answer = poll::until(Duration::from_secs(30), "a member is answered", || {
        let output = ask(&cli, &store, readers()).ok()?;
        (output.status.success() && output.stdout.len() > 2).then_some(output)
    })?;
    ensure!(String::from_utf8_lossy(&answer.stdout).contains("SET"), "{answer:?}");
    let refused = ask(&cli, &store, STRANGER)?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("no permission"), "{said}");
    let mut n_chunks = 0;
    for file in files(&live.path().join("store"))? {
        // A chunk that is sealed takes its journal away.
        let meta = match fs::metadata(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            meta => meta?,
        };
        let shown = file.display();
        if file.starts_with(live.path().join("store/state")) {
            // The last good configuration is the agent's own.
            assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o600, 0), "{shown}");
            assert!(!can_read(&file, readers())? && !can_read(&file, STRANGER)?, "{shown}");
            continue;
        }
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 0, readers()), "{shown}");
        assert!(can_read(&file, readers())? || !file.exists(), "{shown}");
        assert!(!can_read(&file, STRANGER)?, "{shown}");
        n_chunks += usize::from(file.extension().is_some_and(|extension| extension == "db"));
    }
    assert!(n_chunks > 1, "{n_chunks} chunks");
    let socket = fs::metadata(&agent.socket)?;
    assert_eq!((socket.mode() & 0o777, socket.gid()), (0o660, readers()));
    assert_eq!(fs::metadata(&recording)?.mode() & 0o7777, 0o600);
    for gid in [readers(), STRANGER] {
        assert!(!can_read(&recording, gid)?, "the recording is root's alone");
    }
    agent.stop()?;
    Ok(())
}

#[test]
fn the_spool_is_roots_alone() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    fs::set_permissions(live.path(), fs::Permissions::from_mode(0o755))?;
    let spool = live.path().join("spool");
    let mut command = Command::new(binary("dprof-agent"));
    command.args(["--store", "cassandra://127.0.0.1:1/dprof", "--spool"]).arg(&spool);
    command.args(["--replay", &format!("{}/data/demo.dprof", env!("CARGO_MANIFEST_DIR"))]);
    let agent = Program::start("dprof-agent", live.path(), &mut command)?;
    let segments = poll::until(Duration::from_secs(30), "something is spooled", || {
        let found = files(&spool).ok()?;
        (!found.is_empty()).then_some(found)
    })?;
    assert_eq!(fs::metadata(&spool)?.mode() & 0o7777, 0o700);
    for segment in segments {
        assert_eq!(fs::metadata(&segment)?.mode() & 0o7777, 0o600, "{}", segment.display());
        assert!(!can_read(&segment, readers())? && !can_read(&segment, STRANGER)?, "{}", segment.display());
    }
    // What waits for a store that is not there is the next agent's; how this one ends is no matter here.
    drop(agent);
    Ok(())
}
