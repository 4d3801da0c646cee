//! TLS by nginx and OpenSSL: recognised, its handshake read, bytes and times of what is exchanged.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dprof_common::model::{Half, HalfFlags, Span, Status};
use dprof_tests::program::Program;
use dprof_tests::subject::{self, find};

use crate::harness::{Live, attribute, check_order, finish};

const CLIENT_WITHIN: Duration = Duration::from_secs(30);

/// One request by `openssl s_client`, with further options.
fn request(folder: &Path, port: u16, options: &[&str]) -> Result<()> {
    let file = folder.join("request");
    fs::write(&file, "GET /page HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n")?;
    let client = find("openssl");
    let mut command = Command::new("sh");
    // It reads its request from a file, and ends with the connection.
    command.args(["-c", "request=$1; shift; exec \"$@\" <\"$request\"", "sh"]).arg(&file).arg(client);
    command.args([
        "s_client",
        "-quiet",
        "-connect",
        &format!("127.0.0.1:{port}"),
        "-servername",
        "shop.example",
    ]);
    command.args(["-alpn", "http/1.1"]).args(options);
    let ended = Program::start("s_client", folder, &mut command)?.wait(CLIENT_WITHIN)?;
    anyhow::ensure!(ended.stdout.contains("a page by TLS"), "{} {}", ended.stdout, ended.stderr);
    Ok(())
}

fn site(live: &Live) -> Result<subject::Subject> {
    subject::certificate(live.path(), "shop.example")?;
    let nginx = subject::nginx_tls(live.path())?;
    fs::write(live.path().join("html/page"), "a page by TLS")?;
    Ok(nginx)
}

/// Halves of an operation.
fn halves<'a>(spans: &'a [Span], operation: &'a str) -> Vec<&'a Half> {
    let of = move |half: &&Half| half.operation == operation;
    spans.iter().flat_map(|span| [span.client.as_ref(), span.server.as_ref()]).flatten().filter(of).collect()
}

#[test]
fn tls_is_recognised_and_its_handshake_read() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let nginx = site(&live)?;
    let agent = live.agent_on(nginx.port)?;
    request(live.path(), nginx.port, &["-tls1_3"])?;
    request(live.path(), nginx.port, &["-tls1_2"])?;
    let (spans, ended) = finish(agent)?;
    let handshakes = halves(&spans, "TLS handshake");
    assert_eq!(handshakes.len(), 4, "two of each end: {} {spans:#?}", ended.stderr);
    for half in &handshakes {
        assert_eq!((half.protocol.as_ref(), half.status), ("tls", Status::Ok), "{half:#?}");
        assert_eq!(attribute(half, "tls.client.server_name"), Some("shop.example"));
        assert_eq!(attribute(half, "dprof.tls.alpn_offered"), Some("http/1.1"));
    }
    let version = |wanted| {
        handshakes.iter().filter(move |half| attribute(half, "tls.protocol.version") == Some(wanted))
    };
    assert_eq!((version("1.3").count(), version("1.2").count()), (2, 2));
    assert!(version("1.2").all(|half| attribute(half, "tls.next_protocol") == Some("http/1.1")));
    let exchanges = halves(&spans, "TLS exchange");
    let whole = |half: &&Half| {
        half.flags.contains(HalfFlags::TLS) && half.protocol == "tls" && half.response_bytes > 0
    };
    assert!(exchanges.len() >= 4 && exchanges.iter().all(whole), "{exchanges:#?}");
    assert!(exchanges.iter().all(|half| attribute(half, "tls.client.server_name") == Some("shop.example")));
    // Later turns may end at other bytes at either end: in TLS 1.3 the server's tickets cross the client's request.
    let handshakes: Vec<Span> = spans
        .into_iter()
        .filter(|span| span.nearest().is_some_and(|half| half.operation == "TLS handshake"))
        .collect();
    check_order(&handshakes);
    Ok(())
}

/// Speaks SMTP up to STARTTLS, then passes bytes on to `port`.
fn smtp(listener: &TcpListener, port: u16) -> Result<()> {
    let (mut client, _) = listener.accept()?;
    client.write_all(b"220 mail.example ESMTP\r\n")?;
    let mut seen = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let n = client.read(&mut buffer)?;
        anyhow::ensure!(n > 0, "the client went away");
        seen.extend_from_slice(&buffer[..n]);
        if seen.ends_with(b"STARTTLS\r\n") {
            client.write_all(b"220 go ahead\r\n")?;
            break;
        }
        if seen.ends_with(b"\r\n") {
            client.write_all(b"250-mail.example\r\n250 STARTTLS\r\n")?;
        }
    }
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        // Either end may close first; then there is nothing more to copy.
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    let forward = thread::spawn(move || copy(from, to));
    copy(server, client);
    forward.join().ok().context("copy")
}

#[test]
fn a_connection_that_becomes_tls_is_seen_to() -> Result<()> {
    let Some(live) = Live::begin()? else { return Ok(()) };
    let nginx = site(&live)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let agent = live.agent_on(port)?;
    let server = nginx.port;
    let relay = thread::spawn(move || smtp(&listener, server));
    request(live.path(), port, &["-starttls", "smtp"])?;
    relay.join().expect("the thread does not panic")?;
    let (spans, ended) = finish(agent)?;
    let handshakes = halves(&spans, "TLS handshake");
    assert_eq!(handshakes.len(), 2, "{} {spans:#?}", ended.stderr);
    assert!(handshakes.iter().all(|half| attribute(half, "tls.client.server_name") == Some("shop.example")));
    assert!(!halves(&spans, "TLS exchange").is_empty());
    Ok(())
}
