//! A load of so many requests a second for a while, as users make it: connections that ask, wait for the answer, and
//! rest until their next turn. An error is an answer.
//!
//! What a reader would get wrong: a connection asks one thing at a time, so where answers take longer than its rests
//! the rate falls.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::client::DONE;
use crate::clock;
use crate::dial::Dial;
use crate::wire::{Protocol, redis_command};

/// The key of which there may be too many requests.
pub const HOT_KEY: &str = "hot";

/// A load, as data.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Steady {
    /// Whom to ask; connections take these in turn.
    pub targets: Vec<SocketAddr>,
    /// What they speak.
    pub protocol: Protocol,
    /// Connections, a thread each.
    pub connections: u64,
    /// Requests a second of each, at most.
    pub per_second: u64,
    /// How long.
    pub seconds: u64,
    /// Different keys.
    pub keys: u64,
    /// Taken in turn, with `{key}`.
    pub commands: Vec<String>,
    /// Which keys come when.
    pub seed: u64,
    /// [`Mix`], turned while it runs.
    pub dial: PathBuf,
}

/// Which keys are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mix {
    /// Of a hundred requests so many ask for [`HOT_KEY`].
    pub hot_percent: u64,
}

/// An answer may take so long: longer, and the load fails instead of hanging.
const SILENT_MAX: Duration = Duration::from_secs(20);

fn request(load: &Steady, command: &str, key: &str) -> Vec<u8> {
    let line = command.replace("{key}", key);
    match load.protocol {
        Protocol::Redis => redis_command(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>()),
        Protocol::Memcached => format!("{line}\r\n").into_bytes(),
        Protocol::Http => format!("{line} HTTP/1.1\r\nHost: shop\r\n\r\n").into_bytes(),
    }
}

/// One connection's part.
fn connection(load: &Steady, number: u64, mix: &Dial<Mix>) -> Result<u64> {
    let server = load.targets[number as usize % load.targets.len()];
    let mut stream = TcpStream::connect(server).with_context(|| format!("connect to {server}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENT_MAX))?;
    let mut random = load.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number + 1) | 1;
    let mut below = |n: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % n
    };
    let end_ns = clock::monotonic_ns() + load.seconds * 1_000_000_000;
    let mut done = 0;
    let mut buffer = vec![0; 64 * 1024];
    while clock::monotonic_ns() < end_ns {
        let key = if below(100) < mix.get().hot_percent {
            HOT_KEY.to_owned()
        } else {
            format!("key-{:04}", below(load.keys))
        };
        let command = &load.commands[below(load.commands.len() as u64) as usize];
        stream.write_all(&request(load, command, &key)).context("ask")?;
        let mut input = Vec::new();
        while load.protocol.reply(&input)?.is_none() {
            let count = stream.read(&mut buffer).context("wait for an answer")?;
            ensure!(count > 0, "{server} closed before it answered");
            input.extend_from_slice(&buffer[..count]);
        }
        done += 1;
        // Between half of a turn and one and a half.
        let turn_us = 1_000_000 / load.per_second.max(1);
        thread::sleep(Duration::from_micros(turn_us / 2 + below(turn_us.max(1))));
    }
    Ok(done)
}

/// Puts the load on; how many answers came.
pub fn run(load: &Steady) -> Result<u64> {
    let mix = Dial::watch(load.dial.clone(), Mix::default());
    thread::scope(|scope| {
        let threads: Vec<_> = (0..load.connections)
            .map(|number| {
                let mix = &mix;
                scope.spawn(move || connection(load, number, mix))
            })
            .collect();
        let mut done = 0;
        for thread in threads {
            done += thread.join().map_err(|_| anyhow::anyhow!("a connection's thread panicked"))??;
        }
        Ok(done)
    })
}

/// Reads its load and puts it on: the whole of the program `test-steady`.
#[expect(clippy::print_stdout, reason = "the test that started it reads its words")]
pub fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).context("usage: test-steady LOAD.json")?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let done = run(&serde_json::from_str(&text).context("load")?)?;
    println!("{DONE} {done}");
    Ok(())
}
