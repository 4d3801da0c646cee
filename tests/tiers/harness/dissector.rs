//! tshark as a second opinion: what it captures on loopback, taken apart by its own dissectors.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dprof_tests::poll;
use dprof_tests::program::Program;
use dprof_tests::subject::find;

/// How long tshark may take to begin, or to read what it captured.
const WITHIN: Duration = Duration::from_mins(1);

/// A running capture.
pub(crate) struct Capture {
    program: Program,
    file: PathBuf,
}

impl Capture {
    /// Captures TCP on loopback from or to these ports. Its own descriptors only: nothing else is touched.
    pub(crate) fn start(folder: &Path, ports: &[u16]) -> Result<Self> {
        let file = folder.join("capture.pcapng");
        let filter: Vec<String> = ports.iter().map(|port| format!("tcp port {port}")).collect();
        let mut command = Command::new(find("tshark"));
        command
            .args(["-n", "-q", "-i", "lo", "-s", "0", "-B", "16", "-f", &filter.join(" or "), "-w"])
            .arg(&file);
        let mut program = Program::start("tshark", folder, &mut command)?;
        program.wait_until(WITHIN, "captures", |program| {
            program.stderr().contains("Capture started").then_some(())
        })?;
        Ok(Self { program, file })
    }

    /// Ends it once these bytes, which were sent last, are in the file: packets are written in order, and late.
    pub(crate) fn stop_after(self, marker: &[u8]) -> Result<PathBuf> {
        let is_there = || {
            let bytes = fs::read(&self.file).ok()?;
            bytes.windows(marker.len()).any(|window| window == marker).then_some(())
        };
        poll::until(WITHIN, "the last packet is written", is_there)?;
        let ended = self.program.stop(libc::SIGINT)?.success()?;
        ensure!(!ended.stderr.contains("dropped"), "{}", ended.stderr);
        Ok(self.file)
    }
}

/// A packet: time since the epoch, nanoseconds; source port; TCP payload bytes; number; then what was asked for.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) time_ns: u64,
    pub(crate) from_port: u16,
    pub(crate) bytes: u64,
    pub(crate) number: u64,
    pub(crate) fields: Vec<Vec<String>>,
}

/// The packets of `protocol` on `port`, with these fields of each, in the order of capture.
pub(crate) fn dissect(
    folder: &Path,
    file: &Path,
    port: u16,
    protocol: &str,
    fields: &[&str],
) -> Result<Vec<Packet>> {
    let mut command = Command::new(find("tshark"));
    command.args(["-n", "-2", "-r"]).arg(file).args(["-d", &format!("tcp.port=={port},{protocol}")]);
    command.args(["-R", &format!("{protocol} && tcp.port=={port}"), "-T", "fields", "-E", "aggregator=;"]);
    for field in ["frame.time_epoch", "tcp.srcport", "tcp.len", "frame.number"].iter().chain(fields) {
        command.args(["-e", field]);
    }
    let read =
        Program::start(&format!("tshark-{protocol}"), folder, &mut command)?.wait(WITHIN)?.success()?;
    read.stdout.lines().map(|line| packet(line).with_context(|| format!("tshark said {line:?}"))).collect()
}

fn packet(line: &str) -> Option<Packet> {
    let mut words = line.split('\t');
    let (seconds, nanos) = words.next()?.split_once('.')?;
    let time_ns = seconds.parse::<u64>().ok()? * 1_000_000_000 + nanos.parse::<u64>().ok()?;
    let (from_port, bytes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let number = words.next()?.parse().ok()?;
    let several = |word: &str| word.split(';').filter(|value| !value.is_empty()).map(str::to_owned).collect();
    Some(Packet { time_ns, from_port, bytes, number, fields: words.map(several).collect() })
}

/// A bulk string as tshark prints it: hexadecimal.
pub(crate) fn from_hex(text: &str) -> String {
    let digits: Vec<char> = text.chars().filter(char::is_ascii_hexdigit).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap_or(b'?');
    String::from_utf8_lossy(&digits.chunks(2).map(byte).collect::<Vec<_>>()).into_owned()
}
