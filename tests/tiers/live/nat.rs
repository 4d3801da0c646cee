//! Address translation on the way: each end sees a tuple that the other does not know, and the halves still meet.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

use anyhow::{Result, ensure};
use dprof_common::model::Span;
use dprof_tests::agent::Agent;
use dprof_tests::netns::Network;
use dprof_tests::program::Program;
use dprof_tests::subject::{self, find};

use crate::harness::{Live, check_order, stored};
use crate::live::counts::LOAD_WITHIN;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 3);
/// The service's port as clients know it, and where Redis listens.
const SERVICE_PORT: u16 = 6000;
const REDIS_PORT: u16 = 6379;
const REQUESTS: usize = 2_000;

/// Rules that have the machine translate both addresses of connections to the service, as a service address does.
fn rules() -> String {
    format!(
        "table ip translation {{
            chain before {{
                type nat hook prerouting priority dstnat;
                tcp dport {SERVICE_PORT} dnat to {SERVER}:{REDIS_PORT}
            }}
            chain after {{
                type nat hook postrouting priority srcnat;
                ip daddr {SERVER} masquerade
            }}
        }}\n"
    )
}

/// What an end saw of the connection: (its own address, the other's).
type Tuple = (SocketAddr, SocketAddr);

fn ends(span: &Span) -> Option<(Tuple, Tuple)> {
    let (client, server) = (span.client.as_ref()?, span.server.as_ref()?);
    Some(((client.local, client.peer), (server.local, server.peer)))
}

#[test]
fn halves_meet_though_both_addresses_are_translated_on_the_way() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let network = Network::new(live.path(), &[CLIENT, ROUTER, SERVER].map(IpAddr::V4))?;
    network.machine(1).translate(&rules())?;
    let mut command = network.machine(2).command(find("redis-server"));
    let redis = subject::redis_on(live.path(), &mut command, &[&SERVER.to_string()], REDIS_PORT)?;
    let store = format!("sqlite:{}", live.path().join("store").display());
    let agents = [("client", 0), ("server", 2)]
        .map(|(host, number)| Agent::on_machine(live.path(), &store, network.machine(number), host, &[]));
    let mut load: Command = network.machine(0).command(find("redis-benchmark"));
    load.args(["-h", &ROUTER.to_string(), "-p", &SERVICE_PORT.to_string(), "-q", "-c", "8"]);
    load.args(["-n", &REQUESTS.to_string(), "-t", "set"]);
    Program::start("redis-benchmark", live.path(), &mut load)?.wait(LOAD_WITHIN)?.success()?;
    let mut said = String::new();
    for agent in agents {
        said += &agent?.stop()?.stderr;
    }
    drop(redis);
    let spans = stored(&store)?;
    let sets: Vec<&Span> =
        spans.iter().filter(|span| span.nearest().is_some_and(|half| half.operation == "SET")).collect();
    assert_eq!(sets.len(), REQUESTS, "a span per request: {said}");
    for span in sets {
        let Some(((client, seen_by_client), (server, seen_by_server))) = ends(span) else {
            anyhow::bail!("one end only: {span:#?}\n{said}");
        };
        ensure!(
            client.ip() == CLIENT && seen_by_client == SocketAddr::from((ROUTER, SERVICE_PORT)),
            "{span:#?}"
        );
        ensure!(
            server == SocketAddr::from((SERVER, REDIS_PORT)) && seen_by_server.ip() == ROUTER,
            "{span:#?}"
        );
        // One kernel, so one clock: no time may lie before its cause.
        check_order(std::slice::from_ref(span));
    }
    Ok(())
}
