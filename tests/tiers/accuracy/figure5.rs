//! One `SET` through a ring of two datacenters, an agent on each machine: what `dprof-cli trace` shows is figure 5
//! of *Dprof - Distributed System Profiling and Tracing*.
//!
//! The datastores of the other racks are held until the client has its answer, and let go one by one: slow replicas,
//! in a known order, on any machine.

use anyhow::{Context as _, Result, ensure};
use dprof_tests::agent::Agent;
use dprof_tests::cli;
use dprof_tests::ring::plan::{Consistency, Node, Ring, Shape};
use dprof_tests::topology::{ALL, Running, Stack, Topology};
use dprof_tests::wire::Protocol;
use serde_json::Value;

use super::{VARIABLE, knows_dnode};
use crate::harness::Live;

/// Replicas in the order in which they make their write. The third node hands the write on to the fourth of its
/// datacenter, and is done when that one is: so it comes last.
const SLOW: [usize; 3] = [1, 3, 2];

/// `trace ID --messages` as rows.
fn messages(store: &str, id: &str) -> Result<Vec<Value>> {
    cli::json(store, &["trace", id, "--messages"])
}

/// Where in the rows a datastore of this node received the write.
fn write_at(rows: &[Value], node: &Node) -> Option<usize> {
    rows.iter().position(|row| {
        row["node"] == node.name.as_str()
            && row["service"] == "redis-server"
            && row["message"] == "request"
            && row["operation"]
                .as_str()
                .is_some_and(|operation| operation.to_lowercase().contains("set key-"))
    })
}

#[test]
fn a_set_through_the_ring_prints_the_answer_and_then_each_replicas_write() -> Result<()> {
    let Some(live) = Live::begin_with(VARIABLE)?.filter(|_| knows_dnode()) else { return Ok(()) };
    let topology = Topology {
        name: "figure-5",
        stack: Stack::Ring { shape: Shape { dcs: 2, racks: 2, nodes: 1 }, consistency: Consistency::DcOne },
        protocol: Protocol::Redis,
        ..ALL[0]
    };
    let ring: Ring = topology.ring().context("a ring")?;
    let mut running = Running::start(&topology, live.path())?;
    let store = format!("sqlite:{}", live.path().join("store").display());
    let network = running.network().context("machines")?;
    let mut agents = Vec::new();
    for (node, machine) in ring.nodes.iter().zip(network.machines()) {
        let labels = node.labels();
        agents.push(Agent::on_machine(live.path(), &store, machine, &node.name, &labels)?);
    }
    let machine = network.machines().last().context("the client's machine")?;
    agents.push(Agent::on_machine(live.path(), &store, machine, "client", &[])?);

    let mut load = running.load(1, 1, false);
    load.targets.truncate(1);
    running.put_on_with_slow_replicas(&load, &SLOW)?;
    for agent in agents {
        agent.stop()?;
    }
    running.stop(&[])?;

    let roots = cli::json(&store, &["slowest-spans", "--since", "all", "--service", "test-ring-node"])?;
    let root = roots.iter().find(|row| row["parent_span_id"].is_null()).context("a root")?;
    let id = root["trace_id"].as_str().context("a trace id")?;
    let rows = messages(&store, id)?;
    let shown = || {
        let lines = rows.iter().map(|row| {
            format!(
                "{} {} {} {} {}",
                row["datacenter"], row["rack"], row["node"], row["service"], row["operation"]
            )
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    let answered = rows
        .iter()
        .position(|row| row["service"] == "test-client" && row["message"] == "response")
        .with_context(|| format!("the client's answer in\n{}", shown()))?;
    let mut places = Vec::new();
    for node in [0].iter().chain(&SLOW).map(|&node| &ring.nodes[node]) {
        let at = write_at(&rows, node).with_context(|| format!("{}'s write in\n{}", node.name, shown()))?;
        ensure!(
            rows[at]["datacenter"] == node.dc.as_str() && rows[at]["rack"] == node.rack.as_str(),
            "{} in\n{}",
            node.name,
            shown()
        );
        places.push(at);
    }
    ensure!(places[0] < answered, "the own rack's write comes before the answer:\n{}", shown());
    ensure!(
        answered < places[1] && places[1..].is_sorted(),
        "the answer, then each replica's write in the order in which they were made:\n{}",
        shown()
    );
    Ok(())
}
