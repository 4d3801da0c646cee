//! Several agents on one ring: hosts with clocks of their own find each other by the ring's table of agents, and keep the
//! same traces whole.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use dprof_tests::cli;

use super::Keyspace;
use crate::harness::Live;
use crate::harness::fleet::check_ring;

/// By the number of the agent: the three nodes' and the client's. A reader of the ring puts the halves of an RPC together
/// while clocks agree to two minutes.
const CLOCKS: [[&str; 2]; 4] = [["3s", "100"], ["-7s", "-100"], ["0s", "50"], ["-1500ms", "-100"]];

/// So many that a share of a tenth is known to a fifth of itself.
const REQUESTS: u64 = 2_000;

#[test]
fn agents_with_clocks_of_their_own_keep_the_same_traces_whole_on_a_ring() -> Result<()> {
    let Some(keyspace) = Keyspace::new() else { return Ok(()) };
    let live = Live::begin_with(super::VARIABLE)?.context("it is on")?;
    let store = keyspace.url.to_string();
    let options = |number: usize| -> Vec<String> {
        let [offset, drift] = CLOCKS[number];
        let spool = live.path().join(format!("spool-{number}")).display().to_string();
        ["--clock-offset", offset, "--clock-drift-ppm", drift, "--spool", &spool].map(str::to_owned).into()
    };
    check_ring(&live, &store, REQUESTS, options, |hosts| {
        let said = cli::text(&store, &["agents", "--format", "json"])?;
        let said: serde_json::Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        let agents = said["agents"].as_array().context("agents")?;
        let up = agents.iter().filter(|agent| agent["presence"] == "up");
        let up: BTreeSet<&str> = up.filter_map(|agent| agent["host"].as_str()).collect();
        ensure!(up == hosts.iter().copied().collect(), "{agents:#?}");
        // Each node asks each other one and the client asks each: all six pairs talk, and node 1 is ahead of node 2.
        let clocks = said["clocks"].as_array().context("clocks")?;
        ensure!(clocks.len() == 6, "{clocks:#?}");
        let pair = |row: &&serde_json::Value| row["hosts"] == serde_json::json!(["node1", "node2"]);
        let row = clocks.iter().find(pair).context("the first two")?;
        let off_ns = row["offset_ns"].as_i64().context("an offset")? + 10_000_000_000;
        // The clocks drift by 200 millionths against each other from the agents' start on.
        ensure!(off_ns.unsigned_abs() < 100_000_000, "{row}");
        Ok(())
    })
}
