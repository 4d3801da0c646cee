//! Proxies under load: each of their sides shows exactly what the servers counted, and no answer is another's.

use std::net::SocketAddr;
use std::thread;

use anyhow::{Result, ensure};
use dprof_common::model::{Half, HalfFlags, Span, Status};
use dprof_tests::subject::{self, Behind, Subject};

use crate::harness::memcached::Memcached;
use crate::harness::resp::{Resp, calls, command};
use crate::harness::{Live, attribute, check_order, finish, halves_to, only};
use crate::live::counts::{LOAD_WITHIN, benchmark};

/// Halves of an operation.
fn n_of(halves: &[&Half], operation: &str) -> u64 {
    halves.iter().filter(|half| half.operation == operation).count() as u64
}

#[test]
fn every_side_of_nutcracker_before_three_redis_shows_the_servers_counts() -> Result<()> {
    redis_behind_nutcracker("8")
}

/// 1,600 commands are on their way to Redis at once, and it reads up to 32 KiB of them in one call.
#[test]
fn reads_of_hundreds_of_commands_at_once_show_the_servers_counts() -> Result<()> {
    redis_behind_nutcracker("50")
}

fn redis_behind_nutcracker(connections: &str) -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let servers = (0..3).map(|_| subject::redis(live.path())).collect::<Result<Vec<_>>>()?;
    let proxy = subject::nutcracker(live.path(), &servers.iter().collect::<Vec<_>>())?;
    let ports: Vec<u16> = servers.iter().chain([&proxy]).map(|subject| subject.port).collect();
    let agent = live.agent_on_all(&ports)?;
    // Many keys, so that several servers get some.
    let options = ["-P", "32", "-c", connections, "-n", "20000", "-r", "1000", "-t", "set,get"];
    benchmark(&live, proxy.port, &options)?.wait(LOAD_WITHIN)?.success()?;
    let mut counted = [0; 2];
    for server in &servers {
        for (sum, name) in counted.iter_mut().zip(["set", "get"]) {
            *sum += calls(server.address(), |call| call == name)?;
        }
    }
    assert_eq!(counted, [20_000; 2]);
    let (spans, ended) = finish(agent)?;
    let said = &ended.stderr;
    for (operation, counted) in ["SET", "GET"].into_iter().zip(counted) {
        let [clients, in_proxy] = halves_to(&spans, proxy.port);
        assert_eq!(
            (n_of(&clients, operation), n_of(&in_proxy, operation)),
            (counted, counted),
            "front: {said}"
        );
        let (mut out_of_proxy, mut in_servers) = (0, 0);
        for server in &servers {
            let [clients, in_server] = halves_to(&spans, server.port);
            let calls = calls(server.address(), |call| call == operation.to_lowercase())?;
            assert_eq!(n_of(&in_server, operation), calls, "server: {said}");
            out_of_proxy += n_of(&clients, operation);
            in_servers += n_of(&in_server, operation);
        }
        assert_eq!(out_of_proxy, counted, "out of the proxy: {said}");
        assert_eq!(in_servers, counted, "servers: {said}");
    }
    check_order(&spans);
    Ok(())
}

/// Length of the value of key number `n`: it tells whose answer an answer is.
const fn length_of(n: usize) -> usize {
    1 + n % 97
}

const KEYS: usize = 300;

#[test]
fn no_answer_through_nutcracker_is_given_to_another_request() -> Result<()> {
    const CONNECTIONS: usize = 8;
    const ROUNDS: usize = 20;
    const DEPTH: usize = 32;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let servers = (0..3).map(|_| subject::redis(live.path())).collect::<Result<Vec<_>>>()?;
    let proxy = subject::nutcracker(live.path(), &servers.iter().collect::<Vec<_>>())?;
    let ports: Vec<u16> = servers.iter().chain([&proxy]).map(|subject| subject.port).collect();
    let agent = live.agent_on_all(&ports)?;
    let mut client = Resp::connect(proxy.address())?;
    for n in 0..KEYS {
        client.call(&["SET", &format!("key{n}"), &"x".repeat(length_of(n))])?;
    }
    // One command of 20,000 elements, then ranges of it: large on the way in, of known size on the way out.
    let elements: Vec<String> = (0..20_000).map(|n| format!("element{n:05}")).collect();
    let words: Vec<&str> = ["RPUSH", "list"].into_iter().chain(elements.iter().map(String::as_str)).collect();
    ensure!(client.call(&words)? == b":20000");
    let sizes = [10, 100, 300, 600, 1];
    for n in sizes {
        ensure!(client.call(&["LRANGE", "list", "0", &(n - 1).to_string()])?.len() == n * 12);
    }
    let load = |id: usize| -> Result<()> {
        let mut client = Resp::connect(proxy.address())?;
        for round in 0..ROUNDS {
            let numbers = || (0..DEPTH).map(|n| (id * 31 + round * 17 + n * 7) % KEYS);
            let batch: Vec<u8> = numbers().flat_map(|n| command(&["GET", &format!("key{n}")])).collect();
            std::io::Write::write_all(client.stream(), &batch)?;
            for n in numbers() {
                ensure!(client.reply()?.len() == length_of(n));
            }
        }
        Ok(())
    };
    all(CONNECTIONS, load)?;
    let (spans, ended) = finish(agent)?;
    let mut n_gets = 0;
    for half in halves(&spans).filter(|half| half.operation == "GET") {
        let n: usize = half.query_text.trim_start_matches("GET key").parse()?;
        let value = length_of(n);
        assert_eq!(half.response_bytes, (value + value.to_string().len() + 5) as u64, "{half:#?}");
        n_gets += 1;
    }
    assert_eq!(n_gets, 4 * CONNECTIONS * ROUNDS * DEPTH, "{}", ended.stderr);
    let mut ranges: Vec<&Half> = halves(&spans).filter(|half| half.operation == "LRANGE").collect();
    ranges.sort_by_key(|half| half.request_bytes.max(half.times.start_ns));
    let mut found: Vec<u64> = ranges.iter().map(|half| half.response_bytes).collect();
    found.sort_unstable();
    // `*N`, and N times `$12`, the element.
    let size = |n: usize| (n.to_string().len() + 3 + n * (5 + 14)) as u64;
    let mut expected: Vec<u64> = sizes.iter().flat_map(|n| [size(*n); 4]).collect();
    expected.sort_unstable();
    assert_eq!(found, expected, "{}", ended.stderr);
    check_order(&spans);
    Ok(())
}

fn halves(spans: &[Span]) -> impl Iterator<Item = &Half> {
    spans.iter().flat_map(|span| [span.client.as_ref(), span.server.as_ref()]).flatten()
}

/// Runs `load` in this many threads.
fn all(n: usize, load: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..n)
            .map(|id| {
                scope.spawn({
                    let load = &load;
                    move || load(id)
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("the load does not panic"))
    })
}

/// Keys of a statement: all its words but the first.
fn n_keys(half: &Half) -> u64 {
    half.query_text.split(' ').count() as u64 - 1
}

#[test]
fn every_side_of_nutcracker_before_memcached_shows_the_servers_counts() -> Result<()> {
    const CONNECTIONS: usize = 8;
    const ROUNDS: usize = 20;
    const DEPTH: usize = 16;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let servers = (0..3).map(|_| subject::memcached(live.path())).collect::<Result<Vec<_>>>()?;
    let proxy =
        subject::nutcracker_before(live.path(), &servers.iter().collect::<Vec<_>>(), Behind::Memcached)?;
    let ports: Vec<u16> = servers.iter().chain([&proxy]).map(|subject| subject.port).collect();
    let agent = live.agent_on_all(&ports)?;
    let mut client = Memcached::connect(proxy.address())?;
    for n in 0..KEYS {
        let stored =
            client.call(&format!("set key{n} 0 0 {}\r\n{}\r\n", length_of(n), "x".repeat(length_of(n))))?;
        ensure!(stored == "STORED");
    }
    all(CONNECTIONS, |id| pipelined_gets(proxy.address(), id, ROUNDS, DEPTH))?;
    let (mut gets, mut sets) = (0, 0);
    for server in &servers {
        let mut client = Memcached::connect(server.address())?;
        gets += client.counter("cmd_get")?;
        sets += client.counter("cmd_set")?;
    }
    let (spans, ended) = finish(agent)?;
    let said = &ended.stderr;
    let [clients, in_proxy] = halves_to(&spans, proxy.port);
    let back = |side: usize| {
        servers
            .iter()
            .flat_map(|server: &Subject| halves_to(&spans, server.port)[side].clone())
            .collect::<Vec<_>>()
    };
    for (name, halves) in
        [("client", clients), ("proxy in", in_proxy), ("proxy out", back(0)), ("servers", back(1))]
    {
        let keys: u64 = halves.iter().filter(|half| half.operation == "get").map(|half| n_keys(half)).sum();
        assert_eq!((keys, n_of(&halves, "set")), (gets, sets), "{name}: {said}");
        for half in halves.iter().filter(|half| half.operation == "get") {
            assert_eq!(half.response_bytes, expected_bytes(half)?, "{name}: {half:#?}");
        }
    }
    assert!(
        halves(&spans).all(|half| half.status == Status::Ok && !half.flags.contains(HalfFlags::INCOMPLETE)),
        "{said}"
    );
    check_order(&spans);
    Ok(())
}

/// Gets of one key and of three in turn, `depth` at once.
fn pipelined_gets(address: SocketAddr, id: usize, rounds: usize, depth: usize) -> Result<()> {
    let mut client = Memcached::connect(address)?;
    for round in 0..rounds {
        let number = |n: usize| (id * 31 + round * 17 + n * 7) % KEYS;
        let keys = |n: usize| {
            if n.is_multiple_of(2) { vec![number(n)] } else { vec![number(n), number(n + 1), number(n + 2)] }
        };
        let line = |n: usize| {
            let keys: String = keys(n).iter().map(|n| format!(" key{n}")).collect();
            format!("get{keys}\r\n")
        };
        client.send((0..depth).map(line).collect::<String>().as_bytes())?;
        for n in 0..depth {
            let (mut got, mut wanted) =
                (client.values()?, keys(n).into_iter().map(length_of).collect::<Vec<_>>());
            got.sort_unstable();
            wanted.sort_unstable();
            ensure!(got == wanted, "{got:?} instead of {wanted:?}");
        }
    }
    Ok(())
}

/// Bytes of the answer to a get whose keys are all there.
fn expected_bytes(half: &Half) -> Result<u64> {
    let mut bytes = "END\r\n".len();
    for key in half.query_text.split(' ').skip(1) {
        let length = length_of(key.trim_start_matches("key").parse()?);
        bytes += format!("VALUE {key} 0 {length}\r\n").len() + length + 2;
    }
    Ok(bytes as u64)
}

#[test]
fn a_proxy_header_is_passed_over_and_its_addresses_are_kept() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let redis = subject::redis(live.path())?;
    let proxies = [
        subject::haproxy_with_headers(live.path(), &redis, 1)?,
        subject::haproxy_with_headers(live.path(), &redis, 2)?,
    ];
    let ports: Vec<u16> = proxies.iter().flat_map(|(outer, inner)| [outer.port, *inner]).collect();
    let agent = live.agent_on_all(&[&ports[..], &[redis.port]].concat())?;
    let mut clients = Vec::new();
    for (version, (outer, inner)) in proxies.iter().enumerate() {
        let mut client = Resp::connect(outer.address())?;
        client.call(&["SET", &format!("through-v{version}"), "x"])?;
        client.call(&["GET", &format!("through-v{version}")])?;
        clients.push((version, outer.port, *inner, client.stream().local_addr()?));
    }
    let (spans, ended) = finish(agent)?;
    for (version, outer, inner, address) in clients {
        // Client to proxy, proxy to proxy, proxy to Redis.
        for port in [outer, inner, redis.port] {
            let to_port: Vec<Span> = spans
                .iter()
                .filter(|span| span.client.as_ref().is_some_and(|half| half.peer.port() == port))
                .cloned()
                .collect();
            let span = only(&to_port, &format!("GET through-v{version}"));
            for half in [span.client.as_ref(), span.server.as_ref()].into_iter().flatten() {
                assert_eq!(half.status, Status::Ok, "{}", ended.stderr);
                let client = (attribute(half, "client.address"), attribute(half, "client.port"));
                let known = (address.ip().to_string(), address.port().to_string());
                let expected = (port == inner).then_some(known);
                let expected = expected.as_ref().map(|(ip, port)| (Some(ip.as_str()), Some(port.as_str())));
                assert_eq!(client, expected.unwrap_or_default(), "port {port}: {half:#?}");
            }
        }
    }
    check_order(&spans);
    Ok(())
}
