//! Zipkin's own server, as Maven Central has it: what it reads and what it gives back.
//!
//! What a reader would get wrong: it answers 202 before it stores, so what was sent is there a moment later.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
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
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        bail!("no answer to {what}")
    };
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let body = &answer[end + 4..];
    let is_chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if is_chunked { chunks(body)? } else { body.to_vec() };
    Ok((head, String::from_utf8_lossy(&body).into_owned()))
}

/// A chunked body as one.
fn chunks(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n").context("a chunk has a length")?;
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end])?.trim(), 16)?;
        if length == 0 {
            return Ok(body);
        }
        body.extend(rest.get(end + 2..end + 2 + length).context("a chunk is whole")?);
        rest = rest.get(end + 4 + length..).context("a chunk ends")?;
    }
}

#[cfg(test)]
mod tests {
    use super::chunks;

    #[test]
    fn chunks_become_one_body_and_half_a_chunk_is_an_error() {
        assert_eq!(chunks(b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n").expect("whole"), b"abcd");
        assert!(chunks(b"5\r\nabc").is_err());
        assert!(chunks(b"").is_err());
    }
}
