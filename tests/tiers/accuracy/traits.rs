//! The ring behaves like Dynomite: every trait that makes linking hard, asserted from a recording of its system
//! calls, and where a recording cannot show it (pieces of a `writev`) from its own counters, which must agree with
//! the recording in everything else.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dprof_agent::decode::{Event, decode};
use dprof_agent::source::Source as _;
use dprof_agent::source::replay::Replay;
use dprof_tests::agent::Agent;
use dprof_tests::client::Load;
use dprof_tests::ring::dnode::{self, Type};
use dprof_tests::ring::node::Counters;
use dprof_tests::ring::pipe::READ_BYTES_MAX;
use dprof_tests::topology::{Running, Topology};
use dprof_tests::truth::Asked;

use super::{VARIABLE, knows_dnode};
use crate::harness::Live;

/// Requests in flight: with fewer a peer's connection never holds 200.
const IN_FLIGHT: usize = 300;

/// Requests: enough for a steady state.
const REQUESTS: u64 = 4000;

/// Messages of one `writev` between nodes, on average under this load.
const MESSAGES_PER_WRITE_MIN: f64 = 5.0;

/// Requests outstanding on a peer's connection at the same time.
const OUTSTANDING_MIN: usize = 200;

/// A system call on a socket of the ring.
struct Call {
    sock: u64,
    pid: u32,
    tid: u32,
    is_send: bool,
    size: usize,
    payload: Vec<u8>,
}

/// What the kernel saw.
struct Recorded {
    /// Local and peer address by cookie.
    sockets: HashMap<u64, (SocketAddr, SocketAddr)>,
    calls: Vec<Call>,
}

impl Recorded {
    /// All bytes that were sent on a socket.
    fn sent(&self, sock: u64) -> Vec<u8> {
        let calls = self.calls.iter().filter(|call| call.sock == sock && call.is_send);
        calls.flat_map(|call| call.payload.iter().copied()).collect()
    }

    /// The other end's socket.
    fn other_end(&self, sock: u64) -> Option<u64> {
        let (local, peer) = *self.sockets.get(&sock)?;
        self.sockets.iter().find(|(_, ends)| **ends == (peer, local)).map(|(sock, _)| *sock)
    }
}

fn read(path: &Path) -> Result<Recorded> {
    let mut replay = Replay::open(path)?;
    let mut recorded = Recorded { sockets: HashMap::new(), calls: Vec::new() };
    while let Some(block) = replay.next_block(Duration::ZERO)? {
        for record in block.records() {
            let mut call = |sock, pid_tgid: u64, is_send, size: u32, payload: &[u8]| {
                let (pid, tid) = ((pid_tgid >> 32) as u32, pid_tgid as u32);
                let size = size as usize;
                recorded.calls.push(Call { sock, pid, tid, is_send, size, payload: payload.to_vec() });
            };
            match decode(record.context("a damaged block")?)? {
                Event::Open(open) => {
                    recorded.sockets.insert(open.sock, (open.flow.local(), open.flow.peer()));
                }
                Event::Send(event, payload) => {
                    call(event.sock, event.pid_tgid, true, event.header.size, payload);
                }
                Event::Recv(event, payload) => {
                    call(event.sock, event.pid_tgid, false, event.header.size, payload);
                }
                Event::Lost(lost) => anyhow::bail!("{} events were lost", lost.count),
                _ => {}
            }
        }
    }
    Ok(recorded)
}

/// Headers in the captured bytes of a call, one of which may be cut off at either end.
fn headers(payload: &[u8]) -> Vec<dnode::Header> {
    const START: &[u8] = b"   $2014$ ";
    let starts = payload.windows(START.len()).enumerate().filter(|(_, window)| *window == START);
    starts.filter_map(|(at, _)| dnode::parse(&payload[at..]).ok().flatten()).collect()
}

/// A ring under load: what the kernel saw, the nodes' processes, their counters, what the client asked.
struct Ran {
    recorded: Recorded,
    pids: Vec<u32>,
    counters: Vec<Counters>,
    asked: Vec<Asked>,
}

fn run(folder: &Path, topology: &Topology, change: impl FnOnce(&mut Load)) -> Result<Ran> {
    let mut running = Running::start(topology, folder)?;
    let recording = folder.join("ring.dprof");
    let mut options = running.watch.clone();
    options.extend(["--ring-bytes", "32MiB", "--record-payload", "--record"].map(str::to_owned));
    options.push(recording.display().to_string());
    let agent = Agent::start(folder, &options)?;
    let mut load = running.load(IN_FLIGHT, REQUESTS, false);
    change(&mut load);
    let asked = running.put_on(&load)?;
    let ended = agent.stop()?;
    let pids = running.node_pids();
    let (_, counters) = running.stop(&asked)?;
    ensure!(ended.stderr.contains("lost: none"), "{}", ended.stderr);
    let recorded = read(&recording)?;
    // What is read may exceed what is captured of a call. All of it was sent, in smaller calls.
    let cut = recorded.calls.iter().filter(|call| call.is_send && call.payload.len() < call.size).count();
    ensure!(cut == 0, "of {cut} sends not all bytes were recorded: {}", ended.stderr);
    Ok(Ran { recorded, pids, counters, asked })
}

#[test]
fn the_ring_has_every_trait_of_dynomite_that_makes_linking_hard() -> Result<()> {
    let Some(live) = Live::begin_with(VARIABLE)?.filter(|_| knows_dnode()) else { return Ok(()) };
    let topology = Topology::named("ring-3-racks").context("a topology")?;
    let ran = run(live.path(), topology, |load| {
        // One node has all the clients, and all that they ask goes to the others too, so that its connections to
        // them are full. The largest values of which 128, as many as a call may have pieces, are captured whole.
        load.targets.truncate(1);
        load.commands = vec!["SET {key} {value:80}".to_owned()];
    })?;
    one_thread_and_one_connection_per_direction(&ran);
    calls_are_shaped_as_dynomites(&ran);
    ids_belong_to_the_process_and_replies_keep_their_order(&ran);
    many_are_outstanding_on_a_peer(&ran);
    let counters = &ran.counters[0];
    assert!(counters.answered_early > 0 && counters.late_replies > 0, "no copy was late: {counters:?}");
    every_request_makes_its_hops(&ran, topology);
    Ok(())
}

#[test]
fn answers_of_a_node_wait_for_earlier_ones_that_another_node_gives() -> Result<()> {
    let Some(live) = Live::begin_with(VARIABLE)?.filter(|_| knows_dnode()) else { return Ok(()) };
    let topology = Topology::named("ring-shared-racks").context("a topology")?;
    let ran = run(live.path(), topology, |load| {
        load.commands = vec!["SET {key} {value:80}".to_owned(), "GET {key}".to_owned()];
    })?;
    assert!(ran.counters.iter().all(|node| node.held_back > 0), "no answer waited: {:#?}", ran.counters);
    ids_belong_to_the_process_and_replies_keep_their_order(&ran);
    every_request_makes_its_hops(&ran, topology);
    Ok(())
}

/// Sockets that a node has to a port of another machine or of its own.
fn sockets_to(recorded: &Recorded, pid: u32, port: u16) -> HashSet<u64> {
    let calls = recorded.calls.iter().filter(|call| call.pid == pid);
    calls
        .map(|call| call.sock)
        .filter(|sock| recorded.sockets.get(sock).is_some_and(|(_, peer)| peer.port() == port))
        .collect()
}

const PEER_PORT: u16 = 8101;
const DATASTORE_PORT: u16 = 22121;

fn one_thread_and_one_connection_per_direction(Ran { recorded, pids, .. }: &Ran) {
    for call in recorded.calls.iter().filter(|call| pids.contains(&call.pid)) {
        assert_eq!(call.tid, call.pid, "more than one thread");
    }
    for &pid in pids {
        assert_eq!(sockets_to(recorded, pid, DATASTORE_PORT).len(), 1, "connections to the datastore");
    }
    let out = sockets_to(recorded, pids[0], PEER_PORT);
    let peers: HashSet<SocketAddr> = out.iter().map(|sock| recorded.sockets[sock].1).collect();
    assert_eq!((out.len(), peers.len()), (2, 2), "one connection to each of the two other nodes");
}

fn calls_are_shaped_as_dynomites(Ran { recorded, pids, counters, .. }: &Ran) {
    let between_nodes = |call: &&Call| {
        pids.contains(&call.pid)
            && recorded
                .sockets
                .get(&call.sock)
                .is_some_and(|(local, peer)| local.port() == PEER_PORT || peer.port() == PEER_PORT)
    };
    let sends: Vec<&Call> = recorded.calls.iter().filter(between_nodes).filter(|call| call.is_send).collect();
    let messages: usize = sends.iter().map(|call| headers(&call.payload).len()).sum();
    let peers = |of: fn(&Counters) -> u64| counters.iter().map(of).sum::<u64>();
    let (written, calls) = (peers(|node| node.peers.messages), peers(|node| node.peers.writes));
    assert_eq!(sends.len() as u64, calls, "calls of writev");
    assert_eq!(messages as u64, written, "messages in them");
    let mean = written as f64 / calls as f64;
    assert!(mean >= MESSAGES_PER_WRITE_MIN, "{mean:.1} messages per writev: {counters:#?}");
    let pieces = peers(|node| node.peers.pieces);
    assert!(pieces >= 2 * written, "{pieces} pieces, header and payload of {written} messages");

    let reads = || recorded.calls.iter().filter(|call| pids.contains(&call.pid) && !call.is_send);
    let largest = reads().map(|call| call.size).max();
    assert_eq!(largest, Some(READ_BYTES_MAX), "the largest read");
}

fn ids_belong_to_the_process_and_replies_keep_their_order(Ran { recorded, pids, .. }: &Ran) {
    let ids = |sock, kind| {
        let sent = headers(&recorded.sent(sock)).into_iter();
        sent.filter(|header| header.kind == kind).map(|header| header.id).collect::<Vec<_>>()
    };
    for &pid in pids {
        let mut requests = Vec::new();
        for sock in sockets_to(recorded, pid, PEER_PORT) {
            let asked = ids(sock, Type::Request);
            let answered = recorded.other_end(sock).map(|other| ids(other, Type::Reply));
            assert_eq!(answered.as_ref(), Some(&asked), "every reply repeats its request's id, in order");
            requests.extend(asked);
        }
        requests.sort_unstable();
        let is_counter = requests.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        assert!(is_counter, "one counter for all peers: {requests:?}");
    }
}

fn many_are_outstanding_on_a_peer(Ran { recorded, pids, counters, .. }: &Ran) {
    let (pid, counters) = (pids[0], &counters[0]);
    let mut most = 0;
    for sock in sockets_to(recorded, pid, PEER_PORT) {
        let mut open = 0_usize;
        for call in recorded.calls.iter().filter(|call| call.sock == sock && call.pid == pid) {
            let n = headers(&call.payload).len();
            open = if call.is_send { open + n } else { open.saturating_sub(n) };
            most = most.max(open);
        }
    }
    assert!(
        most > OUTSTANDING_MIN && counters.outstanding_max > OUTSTANDING_MIN as u64,
        "{most}: {counters:?}"
    );
}

/// Requests that name a key, on every connection on which they are made.
fn every_request_makes_its_hops(Ran { recorded, pids, asked, .. }: &Ran, topology: &Topology) {
    let mut hops: HashMap<Vec<u8>, usize> = HashMap::new();
    let key_length = asked[0].key.len();
    for (&sock, (local, peer)) in &recorded.sockets {
        let by_node = recorded.calls.iter().any(|call| call.sock == sock && pids.contains(&call.pid));
        // A node asks a node or its datastore; else the client asks a node.
        let asks = if by_node {
            [PEER_PORT, DATASTORE_PORT].contains(&peer.port())
        } else {
            local.port() != DATASTORE_PORT
        };
        let stream = if asks { recorded.sent(sock) } else { Vec::new() };
        for (at, _) in stream.windows(4).enumerate().filter(|(_, window)| *window == b"key-") {
            if let Some(key) = stream.get(at..at + key_length) {
                *hops.entry(key.to_vec()).or_default() += 1;
            }
        }
    }
    for asked in asked {
        // The first of the commands writes, a second one reads, in both loads.
        let expected = topology.rpcs(asked, asked.command == 1);
        assert_eq!(hops.get(asked.key.as_bytes()), Some(&expected), "hops of {}", asked.key);
    }
}
