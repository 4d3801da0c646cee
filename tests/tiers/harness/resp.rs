//! A Redis client of our own, blocking, to know what was sent and when.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// A connection.
pub(crate) struct Resp {
    reader: BufReader<TcpStream>,
}

impl Resp {
    /// Connects; no read waits longer than a busy machine can excuse.
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        Self::new(TcpStream::connect(address).with_context(|| format!("connect to {address}"))?)
    }

    /// On a socket made otherwise.
    pub(crate) fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// The socket.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        self.reader.get_mut()
    }

    /// One command in one write, and its reply.
    pub(crate) fn call(&mut self, words: &[&str]) -> Result<Vec<u8>> {
        self.stream().write_all(&command(words))?;
        self.reply()
    }

    /// Reads one reply; the bytes of what it says (of an array: all of it as it came).
    pub(crate) fn reply(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line)?;
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        let count = || text[1..].parse::<i64>().with_context(|| format!("count in {text:?}"));
        match text.as_bytes().first() {
            Some(b'+' | b'-' | b':') => Ok(text.into_bytes()),
            Some(b'$') => {
                let Ok(length) = usize::try_from(count()?) else { return Ok(Vec::new()) };
                let mut value = vec![0; length + 2];
                self.reader.read_exact(&mut value)?;
                value.truncate(length);
                Ok(value)
            }
            Some(b'*') => {
                let mut all = Vec::new();
                for _ in 0..count()?.max(0) {
                    all.extend(self.reply()?);
                }
                Ok(all)
            }
            _ => bail!("not a reply: {text:?}"),
        }
    }
}

/// A command as clients send it.
pub(crate) fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).into_bytes());
    }
    bytes
}

/// Sum of the calls in `INFO commandstats` whose name satisfies `wanted`.
pub(crate) fn calls(address: SocketAddr, wanted: impl Fn(&str) -> bool) -> Result<u64> {
    let info = Resp::connect(address)?.call(&["INFO", "commandstats"])?;
    let info = String::from_utf8_lossy(&info).into_owned();
    let mut sum = 0;
    for line in info.lines().filter_map(|line| line.strip_prefix("cmdstat_")) {
        let (name, rest) = line.split_once(":calls=").context("calls")?;
        if wanted(name) {
            sum += rest.split(',').next().context("count")?.parse::<u64>()?;
        }
    }
    Ok(sum)
}
