//! What goes wrong is said in one line with its remedy.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use dprof_tests::agent::{Agent, binary};
use dprof_tests::{cli, subject};

use crate::harness::Live;
use crate::harness::resp::Resp;

/// A user without any privilege.
const NOBODY: u32 = 65534;

/// The exit code is `code`, standard error one line that holds every word.
#[track_caller]
fn check(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr.trim().lines().count(), 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is not in {stderr:?}");
    }
}

fn agent(arguments: &[&str]) -> Result<Output> {
    Command::new(binary("dprof-agent")).args(arguments).output().context("start dprof-agent")
}

/// A copy of the agent where everybody may run it.
fn public_agent(folder: &Path) -> Result<PathBuf> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    let copy = folder.join("dprof-agent");
    fs::copy(binary("dprof-agent"), &copy).context("copy the agent")?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    Ok(copy)
}

#[test]
fn a_wrong_option_names_the_right_one() -> Result<()> {
    let Some(_live) = Live::begin()? else { return Ok(()) };
    check(&agent(&["--prot", "1"])?, 2, &["--prot", "--port"]);
    check(&agent(&["--port", "http"])?, 2, &["http", "65535"]);
    check(&agent(&["--store", "nowhere"])?, 2, &["nowhere", "sqlite:DIR"]);
    check(&cli::run("sqlite:/nonexistent", &["slowest-span"])?, 2, &["slowest-span"]);
    Ok(())
}

#[test]
fn without_privilege_it_says_which() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let copy = public_agent(live.path())?;
    let store = live.path().join("store");
    fs::create_dir(&store)?;
    std::os::unix::fs::chown(&store, Some(NOBODY), Some(NOBODY))?;
    let output = Command::new(copy)
        .args(["--store", &format!("sqlite:{}", store.display()), "--socket"])
        .arg(store.join("agent.sock"))
        .uid(NOBODY)
        .gid(NOBODY)
        .output()?;
    check(&output, 1, &["root"]);
    Ok(())
}

#[test]
fn a_store_that_cannot_be_written_is_named() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let file = live.path().join("file");
    fs::write(&file, "not a folder")?;
    let store = file.join("store").display().to_string();
    let socket = live.path().join("agent.sock").display().to_string();
    let output = agent(&["--store", &format!("sqlite:{store}"), "--socket", &socket, "--for", "1s"])?;
    check(&output, 1, &[&file.display().to_string()]);
    Ok(())
}

#[test]
fn unknown_traces_missing_stores_and_empty_windows_are_told_apart() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let missing = format!("sqlite:{}", live.path().join("none").display());
    check(&cli::run(&missing, &["slowest-spans"])?, 1, &["no store", "dprof-agent"]);
    let redis = subject::redis(live.path())?;
    let agent: Agent = live.agent_on(redis.port)?;
    Resp::connect(redis.address())?.call(&["GET", "key"])?;
    let store = agent.store.clone();
    agent.stop()?;
    let unknown = cli::run(&store, &["trace", "00000000000000000000000000000001"])?;
    check(&unknown, 3, &["00000000000000000000000000000001"]);
    let empty = cli::run(&store, &["slowest-spans", "--until", "2001-01-01", "--format", "json"])?;
    assert!(empty.status.success(), "{}", String::from_utf8_lossy(&empty.stderr));
    assert_eq!(String::from_utf8_lossy(&empty.stdout).trim(), "[]");
    Ok(())
}
