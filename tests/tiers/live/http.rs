//! HTTP/1.1 by nginx.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, Result, ensure};
use dprof_common::model::Status;
use dprof_tests::{cli, subject};

use crate::harness::{Live, check_order, finish};

/// One request on a connection that stays; status line and body.
fn get(stream: &mut BufReader<TcpStream>, method: &str, path: &str) -> Result<(String, Vec<u8>)> {
    write!(stream.get_mut(), "{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let (mut status, mut length) = (String::new(), 0);
    stream.read_line(&mut status)?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
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
