//! What the programs of our own know of who caused whom, written down as they did it: JSON lines.
//!
//! What a reader would get wrong: a [`Place`] names an RPC without looking at its bytes, so truth exists even when
//! every request in flight is the same. Only who scores dprof reads these files.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// An RPC by where it happened: the how-manieth request, from 0, between these two addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The end that connected.
    pub client: SocketAddr,
    /// The end that listened.
    pub server: SocketAddr,
    /// Requests before this one.
    pub index: u64,
}

/// A program made the request at `at` because of the request at `cause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// The call.
    pub at: Place,
    /// The request that caused it.
    pub cause: Place,
}

/// What the client knows of one of its requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Number of the request, from 0.
    pub request: u64,
    /// Where it was made.
    pub at: Place,
    /// The key that it named.
    pub key: String,
    /// Which of the commands it was, an index.
    pub command: usize,
    /// Before the call that sent its last byte, `CLOCK_MONOTONIC`, nanoseconds.
    pub sent_ns: u64,
    /// After the call that returned the reply's last byte.
    pub done_ns: u64,
    /// The reply's first bytes.
    pub reply: String,
}

/// Writes one line per record.
pub fn write<T: Serialize>(path: &Path, records: &[T]) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut out = BufWriter::new(file);
    for record in records {
        serde_json::to_writer(&mut out, record)?;
        out.write_all(b"\n")?;
    }
    out.flush().with_context(|| format!("write {}", path.display()))
}

/// Reads what [`write()`] wrote.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}
