//! A fault on a share of requests: how long until `dprof-cli slowest-traces` shows one of them, at a keep ratio.
//!
//! What a reader would get wrong: the agent keeps what is slow besides the ratio, so that a rare fault shows at once.
//! The paper has the ratio alone; that is what is measured with keeping slow ones turned off.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::agent::{Agent, binary};
use crate::behaviour::Behaviour;
use crate::dial::turn;
use crate::program::Program;
use crate::service::ServiceConfig;
use crate::steady::Steady;
use crate::subject::{free_port, listens};
use crate::wire::Protocol;
use crate::{cli, clock, poll};

/// How long a faulty request waits; others take a hundredth of it.
const SLOW_US: u64 = 50_000;
const USUAL_US: u64 = 500;

/// Requests a second, on so many connections.
const PER_S: u64 = 400;
const CONNECTIONS: u64 = 8;

/// How long a service may take until it listens.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A cell of the table.
#[derive(Clone, Copy, Debug)]
pub struct Cell<'a> {
    /// Of a thousand requests so many are slow.
    pub slow_per_mille: u64,
    /// The agent's keep ratio.
    pub ratio: &'a str,
    /// Whether it keeps slow ones besides.
    pub keeps_slow: bool,
    /// Which keys come when.
    pub seed: u64,
}

/// Runs it in a folder of its own: how long it took from the first request on; nothing if longer than `within`.
pub fn run(cell: &Cell<'_>, within: Duration, folder: &Path) -> Result<Option<Duration>> {
    let port = free_port()?;
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let dial = folder.join("service.dial");
    let behaviour = Behaviour {
        wait_us: USUAL_US,
        slow_per_mille: cell.slow_per_mille,
        slow_us: SLOW_US,
        ..Behaviour::default()
    };
    turn(&dial, &behaviour)?;
    let service = ServiceConfig { listen: Some(address), dial: Some(dial), ..ServiceConfig::default() };
    let mut command = Command::new(binary("test-service"));
    let mut service = Program::start_configured("service", folder, &mut command, &service)?;
    service.wait_until(READY_WITHIN, "listens", |service| listens(service.pid(), port).then_some(()))?;
    let file = folder.join("agent.toml");
    fs::write(&file, format!("[trace]\nkeep_slow = {}\n", cell.keeps_slow))
        .context("write a configuration")?;
    let (port, file) = (port.to_string(), file.display().to_string());
    let options = ["--port", &port, "--keep-ratio", cell.ratio, "--config", &file];
    let agent = Agent::start(folder, &options)?;
    let load = Steady {
        targets: vec![address],
        protocol: Protocol::Http,
        connections: CONNECTIONS,
        per_second: PER_S / CONNECTIONS,
        seconds: within.as_secs() + 1,
        keys: 1000,
        commands: vec!["GET /item/{key}".to_owned()],
        seed: cell.seed,
        dial: folder.join("load.dial"),
    };
    let started = clock::now();
    let mut command = Command::new(binary("test-steady"));
    let load = Program::start_configured("load", folder, &mut command, &load)?;
    let shown = poll::until(within, "a slow request is in the list", || {
        let rows = cli::json(&agent.store, &["slowest-traces", "--since", "all", "--limit", "1"]).ok()?;
        let longest_ns = rows.first()?["duration_ns"].as_u64()?;
        (longest_ns >= SLOW_US * 1_000).then(|| started.elapsed())
    });
    drop(load);
    agent.stop()?;
    Ok(shown.ok())
}
