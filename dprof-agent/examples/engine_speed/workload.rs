//! Streams of events made by the machine of the replay tests: always the same bytes, so instruction counts of two
//! versions compare.
//!
//! What a reader would get wrong: every connection is seen at both ends, as on loopback, so one RPC is four events
//! and two halves, and each message is parsed twice.

use dprof_agent::source::{Block, BlockBuilder};

use crate::traffic::{CLIENT, Connection, Machine, Process, SERVER, command};

/// Names of the workloads, in the order of the table.
pub(crate) const NAMES: [&str; 4] = ["redis", "redis_pipelined", "http", "http_redis"];

/// Connections of each workload: what `redis-benchmark` opens when nothing is said.
const CONNECTIONS: usize = 50;
/// Rounds over all connections: some hundred thousand events, a tenth of a second.
pub(crate) const TURNS: usize = 1_000;
/// Bytes in a block, as the kernel source makes them.
const BLOCK_BYTES: usize = 128 * 1024;
/// Keys: enough to make no two neighbours alike.
const KEYS: usize = 10_000;

/// The workload's events in that many turns (some in a part of them: their turns are larger), or `None` when there
/// is none of this name.
pub(crate) fn blocks(name: &str, turns: usize) -> Option<Vec<Block>> {
    let records = match name {
        "redis" => redis(1, turns),
        "redis_pipelined" => redis(16, turns / 4),
        "http" => http(turns / 2),
        "http_redis" => http_redis(turns / 4),
        _ => return None,
    };
    let (mut blocks, mut builder) = (Vec::new(), BlockBuilder::default());
    for record in records {
        builder.push(&[&record]);
        if builder.len() >= BLOCK_BYTES {
            blocks.push(builder.take());
        }
    }
    blocks.push(builder.take());
    Some(blocks)
}

fn connections(machine: &mut Machine, client: Process, server: Process, port: u16) -> Vec<Connection> {
    (0..CONNECTIONS).map(|_| machine.connect(client, server, port)).collect()
}

/// Every connection asks before the first is answered, and all answers leave before the first is read.
fn ask_all(machine: &mut Machine, connections: &mut [Connection], request: &[u8], response: &[u8]) {
    for connection in connections.iter_mut() {
        machine.send(connection, CLIENT, request, 0);
        machine.wait(2_000);
    }
    for connection in connections.iter_mut() {
        machine.recv(connection, SERVER, request, 0);
        machine.wait(3_000);
        machine.send(connection, SERVER, response, 0);
        machine.wait(2_000);
    }
    for connection in connections.iter_mut() {
        machine.recv(connection, CLIENT, response, 0);
        machine.wait(2_000);
    }
}

/// `redis-benchmark -t set,get -P pipeline`.
fn redis(pipeline: usize, turns: usize) -> Vec<Vec<u8>> {
    let mut machine = Machine::new();
    let server = machine.process(100, "redis");
    let client = machine.process(200, "redis-benchmark");
    machine.listen(6379);
    let mut connections = connections(&mut machine, client, server, 6379);
    for turn in 0..turns {
        let key = format!("key:{:012}", turn * 7919 % KEYS);
        let (request, response) = if turn % 2 == 0 {
            (command(&["SET", &key, "xxx"]), b"+OK\r\n".as_slice())
        } else {
            (command(&["GET", &key]), b"$3\r\nxxx\r\n".as_slice())
        };
        ask_all(&mut machine, &mut connections, &request.repeat(pipeline), &response.repeat(pipeline));
    }
    machine.records
}

/// What nginx says to `wrk`.
const PAGE: &str = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 02 Nov 2026 10:00:00 GMT\r\n\
    Content-Type: text/html\r\nContent-Length: 615\r\nLast-Modified: Tue, 27 Oct 2026 10:00:00 GMT\r\n\
    Connection: keep-alive\r\nETag: \"68ff4e00-267\"\r\nAccept-Ranges: bytes\r\n\r\n";
const PAGE_BODY_BYTES: usize = 615;

fn page() -> Vec<u8> {
    [PAGE.as_bytes(), &[b'x'; PAGE_BODY_BYTES]].concat()
}

/// `wrk` against a static page.
fn http(turns: usize) -> Vec<Vec<u8>> {
    let mut machine = Machine::new();
    let server = machine.process(100, "nginx");
    let client = machine.process(200, "wrk");
    machine.listen(8080);
    let mut connections = connections(&mut machine, client, server, 8080);
    let response = page();
    for turn in 0..turns {
        let request = format!("GET /item/{}?page=1 HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n", turn % KEYS);
        ask_all(&mut machine, &mut connections, request.as_bytes(), &response);
    }
    machine.records
}

/// A page that asks Redis twice on the thread that reads the request: trees of three spans, linked.
fn http_redis(turns: usize) -> Vec<Vec<u8>> {
    let mut machine = Machine::new();
    let redis = machine.process(100, "redis");
    let client = machine.process(200, "wrk");
    let web = machine.process(300, "shop");
    machine.listen(6379);
    machine.listen(8080);
    let mut pages = connections(&mut machine, client, web, 8080);
    let mut cache = machine.connect(web, redis, 6379);
    let response = page();
    for turn in 0..turns {
        for connection in &mut pages {
            let request = format!("GET /cart/{} HTTP/1.1\r\nHost: shop:8080\r\n\r\n", turn % KEYS);
            machine.message(connection, CLIENT, request.as_bytes(), 0);
            for key in ["user", "cart"] {
                machine.message(&mut cache, CLIENT, &command(&["GET", &format!("{key}:{turn}")]), 0);
                machine.message(&mut cache, SERVER, b"$3\r\nxxx\r\n", 0);
            }
            machine.message(connection, SERVER, &response, 0);
        }
    }
    machine.records
}
