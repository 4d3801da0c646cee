//! Zipkin's own server, as Maven Central has it: what it reads and what it gives back.
//!
//! What a reader would get wrong: it answers 202 before it stores, so what was sent is there a moment later.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::cassandra::home;
use crate::program::Program;
use crate::subject::find;

/// Version of the server.
pub const VERSION: &str = "3.6.1";

/// How long it may take until it answers: a virtual machine gets going.
const READY_WITHIN: Duration = Duration::from_mins(3);

/// How long one answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Where its jar is kept.
pub fn jar() -> Result<PathBuf> {
    Ok(home()?.with_file_name("zipkin").join(VERSION).join(format!("zipkin-server-{VERSION}-exec.jar")))
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// The process.
    pub program: Program,
    port: u16,
}

impl Server {
    /// Starts it on a port with these settings (`STORAGE_TYPE`, …) and waits until it answers; `look` may give up.
    pub fn start(
        folder: &Path,
        port: u16,
        settings: &[(&str, &str)],
        mut look: impl FnMut() -> bool,
    ) -> Result<Self> {
        let mut command = Command::new(find("java"));
        command.args(["-Xmx512m", "-XX:+UseSerialGC", "-jar"]).arg(jar()?);
        command.env("QUERY_PORT", port.to_string()).env("LOGGING_LEVEL_ROOT", "WARN");
        command.envs(settings.iter().copied());
        let mut program = Program::start("zipkin", folder, &mut command)?;
        program.wait_until(READY_WITHIN, "answers", |_| {
            if look() {
                return Some(false);
            }
            let answer = request(port, "GET /health", "").ok()?;
            answer.0.contains("200").then_some(true)
        })?;
        Ok(Self { program, port })
    }

    /// Gives it spans, a JSON array.
    pub fn post(&self, spans: &str) -> Result<()> {
        let (head, body) = request(self.port, "POST /api/v2/spans", spans)?;
        if !head.contains("202") {
            bail!("zipkin answered {}: {body}", head.lines().next().unwrap_or_default());
        }
        Ok(())
    }

    /// The traces with these ids, at least two, that it knows: arrays of spans.
    pub fn traces(&self, ids: &[String]) -> Result<Vec<Value>> {
        let what = format!("GET /api/v2/traceMany?traceIds={}", ids.join(","));
        let (head, body) = request(self.port, &what, "")?;
        if !head.contains("200") {
            bail!("zipkin answered {}: {body}", head.lines().next().unwrap_or_default());
        }
        serde_json::from_str(&body).context("zipkin's traces")
    }
}

/// Head and body of an answer.
fn request(port: u16, what: &str, body: &str) -> Result<(String, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    write!(
        stream,
        "{what} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: \
         {}\r\n\r\n{body}",
        body.len()
    )?;
    answer(&mut BufReader::new(stream)).with_context(|| format!("answer to {what}"))
}

/// Head and body of what comes. Not until the end: the server ends a connection seconds after its answer.
fn answer(stream: &mut impl BufRead) -> Result<(String, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(stream.read_line(&mut head)? > 0, "it ends in its head");
    }
    let lower = head.to_ascii_lowercase();
    let value = |name: &str| lower.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut body = Vec::new();
    if value("transfer-encoding:") == Some("chunked") {
        while read_chunk(stream, &mut body)? {}
    } else if let Some(length) = value("content-length:") {
        stream.by_ref().take(length.parse()?).read_to_end(&mut body)?;
    } else {
        stream.read_to_end(&mut body)?;
    }
    Ok((head, String::from_utf8_lossy(&body).into_owned()))
}

/// Adds the next chunk to `body`; whether there was one.
fn read_chunk(stream: &mut impl BufRead, body: &mut Vec<u8>) -> Result<bool> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let length = u64::from_str_radix(line.trim(), 16).context("a chunk has a length")?;
    let n = stream.by_ref().take(length).read_to_end(body)?;
    ensure!(n as u64 == length, "a chunk is whole");
    ensure!(stream.read_line(&mut String::new())? == 2, "a chunk ends");
    Ok(length > 0)
}

#[cfg(test)]
mod tests {
    use super::answer;

    #[track_caller]
    fn check(text: &str, body: Option<&str>) {
        assert_eq!(answer(&mut text.as_bytes()).ok().map(|(_, body)| body).as_deref(), body, "{text}");
    }

    #[test]
    fn an_answer_ends_where_it_says() {
        check("HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok and more", Some("ok"));
        check("HTTP/1.1 200 OK\r\n\r\nto the end", Some("to the end"));
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        check(&format!("{chunked}3\r\nabc\r\n1\r\nd\r\n0\r\n\r\nmore"), Some("abcd"));
        check(&format!("{chunked}5\r\nabc"), None);
        check(chunked, None);
        check("HTTP/1.1 200", None);
    }
}
