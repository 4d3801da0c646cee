//! How long the parsers take per message, on pipelined traffic in memory:
//! `cargo run --release -p dprof-agent --example parse_speed`.
//!
//! Prints the best of several rounds: what the code costs when nothing else disturbs it.
#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measurement reads the clock and prints"
)]

use std::time::Instant;

use dprof_agent::protocol::detect::{Detection, detect};
use dprof_agent::protocol::{Direction, Head};

const MESSAGES: usize = 20_000;
const ROUNDS: usize = 30;

fn measure(name: &str, request: &[u8], response: &[u8], per_call: usize) {
    let head = Head { bytes: [request, b""], ports: [1, 2], request_direction: None, joined: false };
    let Detection::Protocol { protocol, request_direction } = detect(&head, &[]) else {
        println!("{name}: not detected");
        return;
    };
    let (requests, responses) = (request.repeat(per_call), response.repeat(per_call));
    let mut best_ns = f64::INFINITY;
    let mut out = Vec::new();
    for _ in 0..ROUNDS {
        let mut parser = protocol.parser(request_direction, [0, 0], false);
        let mut pos = [0, 0];
        let mut n_messages = 0;
        let start = Instant::now();
        for _ in 0..MESSAGES / per_call {
            for (direction, bytes) in [(Direction::Out, &requests), (Direction::In, &responses)] {
                parser.feed(direction, pos[direction.idx()], bytes, &mut out);
                pos[direction.idx()] += bytes.len() as u64;
                n_messages += out.len();
                out.clear();
            }
        }
        let ns = start.elapsed().as_nanos() as f64 / n_messages as f64;
        best_ns = best_ns.min(ns);
    }
    println!("{name:<28} {best_ns:7.1} ns per message, {per_call} per call");
}

fn main() {
    let get = b"*2\r\n$3\r\nGET\r\n$16\r\nkey:000000000001\r\n";
    let set = b"*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000001\r\n$3\r\nxxx\r\n";
    let large =
        [b"*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000001\r\n$4096\r\n".as_slice(), &[b'x'; 4096], b"\r\n"]
            .concat();
    for per_call in [1, 16] {
        measure("redis GET", get, b"$3\r\nxxx\r\n", per_call);
        measure("redis SET", set, b"+OK\r\n", per_call);
        measure("redis SET of 4 KiB", &large, b"+OK\r\n", per_call);
    }
    let http_get =
        b"GET /cart/17?user=5 HTTP/1.1\r\nHost: shop:8080\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n";
    let http_ok =
        b"HTTP/1.1 200 OK\r\nServer: test\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello";
    measure("http GET", http_get, http_ok, 1);
}
