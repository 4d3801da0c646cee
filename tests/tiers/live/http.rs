//! HTTP/1.1 by nginx.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use dprof_common::model::{HalfFlags, Status};
use dprof_tests::{cli, subject};

use crate::harness::{Live, check_order, finish, halves_to};

/// One request on a connection that stays; status line and body.
fn get(stream: &mut BufReader<TcpStream>, method: &str, path: &str) -> Result<(String, Vec<u8>)> {
    write!(stream.get_mut(), "{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    answer(stream, method)
}

/// The answer to a request of this method.
fn answer(stream: &mut BufReader<TcpStream>, method: &str) -> Result<(String, Vec<u8>)> {
    let (mut status, mut length) = (String::new(), 0);
    stream.read_line(&mut status)?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if line == "\r\n" {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().context("length")?;
        }
    }
    let mut body = vec![0; if method == "HEAD" { 0 } else { length }];
    stream.read_exact(&mut body)?;
    Ok((status, body))
}

#[test]
fn requests_to_nginx_on_one_connection_are_one_rpc_each() -> Result<()> {
    const REQUESTS: usize = 100;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let nginx = subject::nginx(live.path())?;
    let large = vec![b'h'; 200_000];
    fs::write(live.path().join("html/large"), &large)?;
    let agent = live.agent_on(nginx.port)?;
    let mut stream = BufReader::new(TcpStream::connect(nginx.address())?);
    for _ in 0..REQUESTS {
        // nginx sends the body by sendfile: its bytes are not seen, its length is.
        let (status, body) = get(&mut stream, "GET", "/large")?;
        ensure!(status.contains("200") && body == large, "{status}");
    }
    ensure!(get(&mut stream, "HEAD", "/large")?.0.contains("200"));
    ensure!(get(&mut stream, "GET", "/missing")?.0.contains("404"));
    let store = agent.store.clone();
    let (spans, ended) = finish(agent)?;
    assert_eq!(spans.len(), REQUESTS + 2, "{}", ended.stderr);
    let whole = |span: &&dprof_common::model::Span| span.client.is_some() && span.server.is_some();
    assert_eq!(spans.iter().filter(whole).count(), REQUESTS + 2);
    let body = spans.iter().filter_map(|span| span.client.as_ref()).map(|half| half.response_bytes).max();
    assert!(body > Some(large.len() as u64), "{body:?}");
    let missing = spans.iter().filter_map(|span| span.server.as_ref()).find(|half| half.status_code == "404");
    assert!(
        missing.is_some_and(|half| half.status == Status::Ok || half.status == Status::Error),
        "{missing:?}"
    );
    let rows = cli::json(&store, &["stats", "--since", "all", "--kind", "server"])?;
    let counts: u64 = rows.iter().filter_map(|row| row["count"].as_u64()).sum();
    assert_eq!(counts, (REQUESTS + 2) as u64, "{rows:?}");
    check_order(&spans);
    Ok(())
}

/// Requests that nginx has answered, from its counters; this one included.
fn answered_by_nginx(nginx: SocketAddr) -> Result<u64> {
    let page = subject::get(nginx, "/counters")?;
    let line =
        page.lines().skip_while(|line| !line.starts_with("server accepts")).nth(1).context("counters")?;
    line.split_whitespace().nth(2).context("requests")?.parse().context("requests")
}

/// Requests that HAProxy has had at its front, from its counters.
fn had_by_haproxy(counters: SocketAddr) -> Result<u64> {
    let page = subject::get(counters, "/counters;csv")?;
    let names = page.lines().find_map(|line| line.strip_prefix("# ")).context("names")?;
    let front = page.lines().find(|line| line.starts_with("front,FRONTEND,")).context("front")?;
    let (_, value) =
        names.split(',').zip(front.split(',')).find(|(name, _)| *name == "req_tot").context("req_tot")?;
    value.parse().context("req_tot")
}

#[test]
fn every_side_of_haproxy_before_nginx_shows_their_counts() -> Result<()> {
    const CLIENTS: usize = 16;
    const ROUNDS: usize = 25;
    const DEPTH: usize = 4;
    const REQUESTS: u64 = (CLIENTS * ROUNDS * DEPTH) as u64;
    let Some(live) = Live::begin()? else { return Ok(()) };
    let nginx = subject::nginx_counted(live.path())?;
    fs::write(live.path().join("html/page"), "a page through HAProxy")?;
    let (haproxy, counters) = subject::haproxy_http(live.path(), &nginx)?;
    let agent = live.agent_on_all(&[haproxy.port, nginx.port])?;
    let before = (answered_by_nginx(nginx.address())?, had_by_haproxy(counters)?);
    let address = haproxy.address();
    let client = move || -> Result<()> {
        let mut stream = BufReader::new(TcpStream::connect(address)?);
        for _ in 0..ROUNDS {
            let path = |n: usize| if n == 0 { "/missing" } else { "/page" };
            let requests: String =
                (0..DEPTH).map(|n| format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", path(n))).collect();
            stream.get_mut().write_all(requests.as_bytes())?;
            for n in 0..DEPTH {
                let (status, body) = answer(&mut stream, "GET")?;
                let expected = if n == 0 { "404" } else { "200" };
                ensure!(
                    status.contains(expected) && (n == 0 || body == b"a page through HAProxy"),
                    "{status}"
                );
            }
        }
        Ok(())
    };
    let clients: Vec<_> = (0..CLIENTS).map(|_| thread::spawn(client)).collect();
    clients.into_iter().try_for_each(|client| client.join().expect("the thread does not panic"))?;
    // The question itself is counted.
    let counted = (answered_by_nginx(nginx.address())? - before.0 - 1, had_by_haproxy(counters)? - before.1);
    assert_eq!(counted, (REQUESTS, REQUESTS));
    let (mut spans, ended) = finish(agent)?;
    spans.retain(|span| span.nearest().is_some_and(|half| half.operation != "GET /counters"));
    let sides = [halves_to(&spans, haproxy.port), halves_to(&spans, nginx.port)].concat();
    for side in sides {
        let of_status = |code: &str| side.iter().filter(|half| half.status_code == code).count() as u64;
        assert_eq!(
            (of_status("404"), of_status("200")),
            (REQUESTS / 4, REQUESTS / 4 * 3),
            "{}",
            ended.stderr
        );
        let marked = side.iter().filter(|half| half.flags.contains(HalfFlags::INCOMPLETE));
        assert_eq!(marked.count(), 0, "{}", ended.stderr);
    }
    check_order(&spans);
    Ok(())
}
