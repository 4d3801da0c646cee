//! Address families, namespaces, and connections older than the agent.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use dprof_common::model::Span;
use dprof_tests::agent::Agent;
use dprof_tests::subject::{self, find, free_port, redis_with};

use crate::harness::resp::{Resp, command};
use crate::harness::socket::pair;
use crate::harness::{Live, check_order, finish, only, texts, with_text};

/// Both halves are there, and each end's address is the other's peer.
#[track_caller]
fn check_addresses(span: &Span, server: SocketAddr) {
    let (Some(near), Some(far)) = (&span.client, &span.server) else {
        panic!("one half is missing: {span:#?}");
    };
    assert_eq!((near.peer, far.local), (server, server));
    assert_eq!(near.local, far.peer);
}

#[test]
fn ipv4_ipv6_and_mapped_addresses_are_all_seen() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let agent = live.agent_on(redis.port)?;
    let mapped: SocketAddr = (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), redis.port).into();
    let v6: SocketAddr = (Ipv6Addr::LOCALHOST, redis.port).into();
    for (address, key) in [(redis.address(), "over-v4"), (v6, "over-v6"), (mapped, "over-mapped")] {
        Resp::connect(address)?.call(&["GET", key])?;
    }
    let (spans, _) = finish(agent)?;
    check_addresses(only(&spans, "over-v4"), redis.address());
    check_addresses(only(&spans, "over-v6"), v6);
    // An IPv6 socket that speaks IPv4: shown as what is on the wire.
    check_addresses(only(&spans, "over-mapped"), redis.address());
    Ok(())
}

#[test]
fn connections_older_than_the_agent_are_complete_from_its_start() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let mut client = Resp::connect(redis.address())?;
    // Both ends' positions are past this when the agent comes.
    client.call(&["SET", "before", &"v".repeat(100_000)])?;
    client.call(&["GET", "before"])?;
    let agent = live.agent_on(redis.port)?;
    for key in ["first", "second", "third"] {
        client.call(&["GET", key])?;
    }
    let (spans, ended) = finish(agent)?;
    assert_eq!(spans.len(), 3, "{:?}\n{}", texts(&spans), ended.stderr);
    for key in ["first", "second", "third"] {
        check_addresses(only(&spans, key), redis.address());
    }
    check_order(&spans);
    Ok(())
}

#[test]
fn a_connection_in_the_middle_of_a_request_loses_that_one_only() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (client, server) = pair(&listener)?;
    let (early, late) = (command(&["GET", "early"]), command(&["GET", "late"]));
    let exchange = |request: &[u8]| -> Result<()> {
        std::io::Write::write_all(&mut &client, request)?;
        crate::harness::exchange::read(&server, request.len())?;
        std::io::Write::write_all(&mut &server, b"+OK\r\n")?;
        crate::harness::exchange::read(&client, 5)?;
        Ok(())
    };
    std::io::Write::write_all(&mut &client, &early[..9])?;
    let agent = live.agent_on(listener.local_addr()?.port())?;
    std::io::Write::write_all(&mut &client, &early[9..])?;
    crate::harness::exchange::read(&server, early.len())?;
    std::io::Write::write_all(&mut &server, b"+OK\r\n")?;
    crate::harness::exchange::read(&client, 5)?;
    exchange(&late)?;
    exchange(&command(&["GET", "last"]))?;
    let (spans, ended) = finish(agent)?;
    only(&spans, "last");
    assert!(
        with_text(&spans, "late").count() <= 1 && spans.len() <= 3,
        "{:?}\n{}",
        texts(&spans),
        ended.stderr
    );
    Ok(())
}

/// A network namespace that is deleted with this.
struct Netns(String);

impl Netns {
    fn add() -> Result<Self> {
        let name = format!("dprof-test-{}", std::process::id());
        run("ip", &["netns", "add", &name])?;
        let netns = Self(name);
        run("ip", &["-n", &netns.0, "link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// A command that runs `program` inside.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(find("ip"));
        command.args(["netns", "exec", &self.0]).arg(find(program));
        command
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        tell(run("ip", &["netns", "delete", &self.0]));
    }
}

/// A control group of its own, in a cgroup2 file system mounted for the test: the usual place may hold version 1.
struct Cgroup {
    mounted: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    fn add(folder: &Path) -> Result<Self> {
        let mounted = folder.join("cgroup2");
        fs::create_dir(&mounted)?;
        run("mount", &[OsStr::new("-t"), OsStr::new("cgroup2"), OsStr::new("none"), mounted.as_os_str()])?;
        let path = mounted.join(format!("dprof-test-{}", std::process::id()));
        let cgroup = Self { mounted, path };
        fs::create_dir(&cgroup.path)?;
        Ok(cgroup)
    }

    /// Moves process `pid` here.
    fn take(&self, pid: u32) -> Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).context("move a process into the cgroup")
    }

    /// Moves whoever is left back, and takes the group and the file system away.
    fn remove(&self) -> Result<()> {
        for pid in fs::read_to_string(self.path.join("cgroup.procs"))?.lines() {
            fs::write(self.mounted.join("cgroup.procs"), pid)?;
        }
        fs::remove_dir(&self.path)?;
        run("umount", &[self.mounted.as_os_str()])
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        tell(self.remove());
    }
}

/// Says what could not be taken away.
fn tell(result: Result<()>) {
    if let Err(error) = result {
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "{error:#}");
    }
}

fn run(program: &str, arguments: &[impl AsRef<OsStr>]) -> Result<()> {
    let output =
        Command::new(find(program)).args(arguments).output().with_context(|| format!("start {program}"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(())
}

#[test]
fn only_the_chosen_network_namespace_is_watched() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let netns = Netns::add()?;
    // The same port inside and outside: nothing but the namespace tells them apart.
    let port = free_port()?;
    let inside = redis_with(live.path(), &mut netns.command("redis-server"), port)?;
    let outside_folder = live.path().join("outside");
    fs::create_dir(&outside_folder)?;
    let outside = redis_with(&outside_folder, &mut Command::new(find("redis-server")), port)?;
    let agent = Agent::start(live.path(), &["--netns", &netns.0])?;
    Resp::connect(outside.address())?.call(&["GET", "outside"])?;
    let output =
        netns.command("redis-cli").args(["-p", &inside.port.to_string(), "GET", "inside"]).output()?;
    ensure!(output.status.success(), "{output:?}");
    let (spans, ended) = finish(agent)?;
    let span = only(&spans, "inside");
    assert!(span.client.is_some() && span.server.is_some(), "{span:#?}");
    assert_eq!(with_text(&spans, "outside").count(), 0, "{}", ended.stderr);
    Ok(())
}

#[test]
fn only_the_chosen_cgroup_is_watched() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let cgroup = Cgroup::add(live.path())?;
    let inside = subject::redis(live.path())?;
    cgroup.take(inside.program.pid())?;
    let outside_folder = live.path().join("outside");
    fs::create_dir(&outside_folder)?;
    let outside = subject::redis(&outside_folder)?;
    let agent = Agent::start(live.path(), &["--cgroup", cgroup.path.to_str().context("a path in UTF-8")?])?;
    Resp::connect(outside.address())?.call(&["GET", "outside"])?;
    Resp::connect(inside.address())?.call(&["GET", "inside"])?;
    let (spans, ended) = finish(agent)?;
    let span = only(&spans, "inside");
    assert!(span.server.is_some(), "{span:#?}");
    assert_eq!(with_text(&spans, "outside").count(), 0, "{}", ended.stderr);
    Ok(())
}

#[test]
fn ports_and_processes_filter_at_both_ends() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let (watched, other) = (subject::redis(live.path())?, subject::redis(live.path())?);
    let agent = Agent::start(live.path(), &["--pid", &watched.program.pid().to_string()])?;
    Resp::connect(watched.address())?.call(&["GET", "watched"])?;
    Resp::connect(other.address())?.call(&["GET", "other"])?;
    let (spans, _) = finish(agent)?;
    let span = only(&spans, "watched");
    assert!(
        span.server.is_some() && span.client.is_none(),
        "the client's process was not asked for: {span:#?}"
    );
    assert_eq!(with_text(&spans, "other").count(), 0);
    Ok(())
}
