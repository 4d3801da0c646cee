//! A memcached client of our own, blocking: text as lines, binary as packets.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

/// A connection.
pub(crate) struct Memcached {
    reader: BufReader<TcpStream>,
}

impl Memcached {
    /// Connects; no read waits longer than a busy machine can excuse.
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends these bytes in one write.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.reader.get_mut().write_all(bytes)?)
    }

    /// One line of a reply, without its end.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.reader.read_line(&mut line)? > 0, "the connection was closed");
        Ok(line.trim_end().to_owned())
    }

    /// Sends a command whose reply is one line, and reads that.
    pub(crate) fn call(&mut self, command: &str) -> Result<String> {
        self.send(command.as_bytes())?;
        self.line()
    }

    /// Reads `VALUE … END`; the lengths of the values.
    pub(crate) fn values(&mut self) -> Result<Vec<usize>> {
        let mut lengths = Vec::new();
        loop {
            let line = self.line()?;
            if line == "END" {
                return Ok(lengths);
            }
            let Some(length) = line.strip_prefix("VALUE ").and_then(|rest| rest.split(' ').nth(2)) else {
                bail!("not a value: {line:?}");
            };
            let length: usize = length.parse().context("length")?;
            self.reader.read_exact(&mut vec![0; length + 2])?;
            lengths.push(length);
        }
    }

    /// A counter of `stats`.
    pub(crate) fn counter(&mut self, name: &str) -> Result<u64> {
        self.send(b"stats\r\n")?;
        let mut found = None;
        loop {
            let line = self.line()?;
            if line == "END" {
                return found.with_context(|| format!("{name} in stats"));
            }
            if let Some(value) = line.strip_prefix(&format!("STAT {name} ")) {
                found = Some(value.parse()?);
            }
        }
    }

    /// Reads a binary response: its opcode, status and opaque.
    pub(crate) fn packet(&mut self) -> Result<(u8, u16, u32)> {
        let mut header = [0; 24];
        self.reader.read_exact(&mut header)?;
        let long =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        self.reader.read_exact(&mut vec![0; long(8) as usize])?;
        Ok((header[1], u16::from_be_bytes([header[6], header[7]]), long(12)))
    }
}

/// A binary request.
pub(crate) fn packet(opcode: u8, extras: &[u8], key: &str, value: &[u8], opaque: u32) -> Vec<u8> {
    let body = (extras.len() + key.len() + value.len()) as u32;
    let mut bytes = vec![0x80, opcode];
    bytes.extend((key.len() as u16).to_be_bytes());
    bytes.extend([extras.len() as u8, 0, 0, 0]);
    bytes.extend(body.to_be_bytes());
    bytes.extend(opaque.to_be_bytes());
    bytes.extend([0; 8]);
    [&bytes, extras, key.as_bytes(), value].concat()
}
