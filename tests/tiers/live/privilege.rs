//! What a running agent still may: read from the kernel, for every thread, and whether it works with that.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dprof_tests::agent::{Agent, binary};
use dprof_tests::program::Program;
use dprof_tests::{cli, poll, subject};

use super::counts::{LOAD_WITHIN, benchmark};
use crate::harness::resp::Resp;
use crate::harness::{Live, finish};

/// Bits of the sets (`capability.h`).
const DAC_OVERRIDE: u64 = 1 << 1;
const DAC_READ_SEARCH: u64 = 1 << 2;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_NICE: u64 = 1 << 23;
const SYS_RESOURCE: u64 = 1 << 24;
const BPF: u64 = 1 << 39;
/// A filter by program is in force (`Seccomp` in `/proc/PID/status`).
const FILTERED: u64 = 2;
/// Somebody who is nobody else.
const STRANGER: u32 = 54_320;

/// Numbers of `/proc/PID/task/TID/status`, by thread name and id.
fn threads(pid: u32) -> Result<BTreeMap<String, BTreeMap<String, u64>>> {
    let mut threads = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = task?.path();
        let status = fs::read_to_string(path.join("status"))?;
        let numbers = status.lines().filter_map(|line| {
            let (name, value) = line.split_once(":\t")?;
            let radix = if name.starts_with("Cap") { 16 } else { 10 };
            Some((name.to_owned(), u64::from_str_radix(value.trim(), radix).ok()?))
        });
        let name = fs::read_to_string(path.join("comm"))?;
        threads.insert(format!("{} {}", name.trim(), path.display()), numbers.collect());
    }
    Ok(threads)
}

/// Every thread holds `kept` and nothing that is not documented.
#[track_caller]
fn check_threads(agent: &Program, kept: u64, names: &[&str]) -> Result<()> {
    // What an older kernel may ask for too, and a machine that is short of rights.
    let may_raise_limits = own_capabilities()? & SYS_RESOURCE != 0;
    let conditional = if is_old() { BPF } else { 0 } | if may_raise_limits { 0 } else { SYS_NICE };
    // A thread gives itself its name once it runs.
    let threads = poll::until(Duration::from_secs(10), &format!("there are threads {names:?}"), || {
        let threads = threads(agent.pid()).ok()?;
        names.iter().all(|name| threads.keys().any(|thread| thread.starts_with(name))).then_some(threads)
    })?;
    for (thread, status) in &threads {
        let set = |name: &str| status.get(name).copied();
        let without = |name: &str| set(name).map(|bits| bits & !conditional);
        assert_eq!(without("CapEff"), Some(kept), "{thread}: {status:x?}");
        assert_eq!(without("CapPrm"), Some(kept), "{thread}: {status:x?}");
        for empty in ["CapInh", "CapBnd", "CapAmb"] {
            assert_eq!(set(empty), Some(0), "{thread} {empty}: {status:x?}");
        }
        assert_eq!(set("NoNewPrivs"), Some(1), "{thread}");
        assert_eq!(set("Seccomp"), Some(FILTERED), "{thread}");
    }
    Ok(())
}

/// Of the test, and of the agent before it gives up some.
fn own_capabilities() -> Result<u64> {
    let own = fs::read_to_string("/proc/self/status")?;
    let set = own.lines().find_map(|line| line.strip_prefix("CapEff:\t")).context("a set")?;
    Ok(u64::from_str_radix(set, 16)?)
}

/// Before 5.19 a kernel may ask for CAP_BPF whatever is done with a map.
fn is_old() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) < (Some(5), Some(19))
}

#[test]
fn no_thread_holds_more_than_is_documented() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let agent = live.agent_on(1)?;
    check_threads(
        &agent.program,
        DAC_READ_SEARCH | SYS_PTRACE,
        &["dprof-source", "dprof-engine", "dprof-store"],
    )?;
    // The capture goes on by reading and writing maps: it says so if it may not.
    let ended = agent.stop()?;
    assert!(ended.stderr.contains("lost: none"), "{}", ended.stderr);
    Ok(())
}

#[test]
fn every_thread_holds_what_is_documented_and_the_agent_works_with_it() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    // Of another user, with less than the agent has, named by its executable and by its port: what needs privilege.
    fs::set_permissions(live.path(), fs::Permissions::from_mode(0o755))?;
    let mut of_stranger = Command::new(subject::find("redis-server"));
    of_stranger.uid(STRANGER).gid(STRANGER);
    let by_exe = subject::redis_with(live.path(), &mut of_stranger, subject::free_port()?)?;
    let mut of_stranger = Command::new(subject::find("redis-server"));
    of_stranger.uid(STRANGER).gid(STRANGER);
    let by_port = subject::redis_with(live.path(), &mut of_stranger, subject::free_port()?)?;
    let config = live.path().join("agent.toml");
    let rules = format!(
        "[[service]]\nname = \"by-port\"\nport = {}\n[[service]]\nname = \"by-exe\"\nexe = \"*redis*\"\n\
         [retention]\nchunk_size = \"1MiB\"\n",
        by_port.port
    );
    fs::write(&config, rules)?;
    let ports = format!("{},{}", by_exe.port, by_port.port);
    let config = config.display().to_string();
    let agent = Agent::start(
        live.path(),
        &[
            "--config",
            &config,
            "--port",
            &ports,
            "--metrics",
            &format!("127.0.0.1:{}", subject::free_port()?),
        ],
    )?;
    let names = ["dprof-source", "dprof-engine", "dprof-store"];
    check_threads(&agent.program, DAC_READ_SEARCH | SYS_PTRACE, &names)?;
    Resp::connect(by_port.address())?.call(&["SET", "port", "v"])?;
    // Enough for several chunks, each of which gets its group after the start; and payload limits are set meanwhile.
    benchmark(&live, by_exe.port, &["-n", "20000", "-t", "set"])?.wait(LOAD_WITHIN)?.success()?;
    check_threads(&agent.program, DAC_READ_SEARCH | SYS_PTRACE, &names)?;
    let (spans, ended) = finish(agent)?;
    for service in ["by-exe", "by-port"] {
        let served = spans.iter().filter_map(|span| span.server.as_ref());
        assert!(served.clone().any(|half| half.process.service == service), "{service}: {}", ended.stderr);
    }
    assert!(ended.stderr.contains("lost: none"), "{}", ended.stderr);
    Ok(())
}

/// A store below or in a folder of a stranger's, with a recording beside it: written, with `more` than is kept anyway.
fn check_in_strangers_folder(store: &str, more: u64) -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let home = live.path().join("home");
    fs::create_dir(&home)?;
    chown(&home, Some(STRANGER), Some(STRANGER))?;
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700))?;
    let store = format!("sqlite:{}", live.path().join(store).display());
    let record = home.join("recording").display().to_string();
    let arguments = ["--port", &redis.port.to_string(), "--record", &record];
    let agent = Agent::start_with(live.path(), &store, &mut Command::new(binary("dprof-agent")), &arguments)?;
    check_threads(&agent.program, more | DAC_READ_SEARCH | SYS_PTRACE, &["dprof-record"])?;
    Resp::connect(redis.address())?.call(&["INCR", "counter"])?;
    agent.stop()?;
    assert_eq!(cli::count(&store, "server", "INCR")?, 1);
    Ok(())
}

#[test]
fn a_new_store_in_a_strangers_home_needs_no_further_right() -> Result<()> {
    check_in_strangers_folder("home/store", 0)
}

#[test]
fn for_a_store_in_a_folder_of_a_strangers_own_the_right_to_write_there_is_kept() -> Result<()> {
    check_in_strangers_folder("home", DAC_OVERRIDE)
}

#[test]
fn a_replay_keeps_nothing_and_needs_no_root() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    fs::set_permissions(live.path(), fs::Permissions::from_mode(0o777))?;
    let agent = live.path().join("agent");
    fs::copy(binary("dprof-agent"), &agent).context("copy the agent")?;
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
    let recording = live.path().join("demo.dprof");
    fs::copy(format!("{}/data/demo.dprof", env!("CARGO_MANIFEST_DIR")), &recording)?;
    let store = format!("sqlite:{}", live.path().join("store").display());
    let mut command = Command::new(&agent);
    command.args(["-v", "--store", &store, "--replay"]).arg(&recording);
    command.uid(STRANGER).gid(STRANGER).current_dir("/");
    let ended =
        Program::start("dprof-agent", live.path(), &mut command)?.wait(Duration::from_mins(1))?.success()?;
    assert!(
        ended.stderr.contains("no capabilities kept; no new privileges; system calls filtered"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("lost: none"), "{}", ended.stderr);
    Ok(())
}

#[test]
fn privileges_are_kept_only_when_that_is_asked_for() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = Agent::start(live.path(), &["--port", &redis.port.to_string(), "--keep-privileges"])?;
    let ours = own_capabilities()?;
    for (thread, status) in threads(agent.program.pid())? {
        assert_eq!(status.get("CapEff").copied(), Some(ours), "{thread}");
        assert_eq!(status.get("Seccomp"), Some(&0), "{thread}");
    }
    let ended = agent.stop()?;
    assert!(ended.stderr.contains("all privileges are kept"), "{}", ended.stderr);
    Ok(())
}
