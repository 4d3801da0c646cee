//! A cable between a machine and the bridge that delays and loses frames, as netem does, for kernels without netem.
//!
//! What a reader would get wrong: it is a process with a TAP device at either end. The kernel hands out whole frames
//! with checksums, so nothing but the time and the loss of a frame is ours.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::dial::Dial;

/// Printed when both devices are there.
pub const READY: &str = "ready";

/// Frames on their way in one direction; more are lost, as in a device's queue.
const FRAMES_MAX: usize = 10_000;

/// Largest frame: the devices have the usual MTU.
const FRAME_BYTES_MAX: usize = 2048;

/// What the cable does to frames, each way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Held back for so long, microseconds.
    pub delay_us: u64,
    /// Of a thousand frames so many are lost.
    pub lost_per_mille: u64,
    /// Only frames from and to these addresses; empty: all frames.
    #[serde(default)]
    pub peers: Vec<IpAddr>,
}

impl Shape {
    /// Whether it does something to a frame.
    fn concerns(&self, frame: &[u8]) -> bool {
        self.peers.is_empty()
            || addresses(frame).is_some_and(|ends| ends.iter().any(|ip| self.peers.contains(ip)))
    }
}

/// Source and destination of an IPv4 packet in an Ethernet frame (RFC 894, RFC 791).
fn addresses(frame: &[u8]) -> Option<[IpAddr; 2]> {
    const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
    let at = |offset: usize| {
        let bytes: [u8; 4] = frame.get(offset..offset + 4)?.try_into().ok()?;
        Some(IpAddr::from(bytes))
    };
    (frame.get(12..14)? == ETHERTYPE_IPV4).then_some([at(26)?, at(30)?])
}

/// What the program `test-cable` is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CableConfig {
    /// Namespace and name of the device at either end.
    pub ends: [(PathBuf, String); 2],
    /// A [`Shape`], turned while it runs.
    pub dial: PathBuf,
    /// Which frames are lost.
    pub seed: u64,
}

/// Makes a TAP device in a network namespace.
fn tap(namespace: PathBuf, name: String) -> Result<File> {
    // The device belongs to the namespace of the thread that opens it.
    let made = thread::spawn(move || -> Result<File> {
        let namespace_file =
            File::open(&namespace).with_context(|| format!("open {}", namespace.display()))?;
        // SAFETY: a plain system call on an open file; only this thread changes its namespace.
        if unsafe { libc::setns(namespace_file.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error()).context("enter a network namespace");
        }
        let tap = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .context("open /dev/net/tun")?;
        // SAFETY: all zeros is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
            *place = byte as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        // SAFETY: the request outlives the call, which reads and writes an ifreq.
        if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } != 0 {
            return Err(std::io::Error::last_os_error()).with_context(|| format!("make the device {name}"));
        }
        Ok(tap)
    });
    match made.join() {
        Ok(tap) => tap,
        Err(_) => bail!("making a device panicked"),
    }
}

/// Frames in one direction.
struct Lane {
    to: usize,
    frames: VecDeque<(u64, Vec<u8>)>,
}

impl Lane {
    /// Frames are in the order in which they are due, and those due at once in the order in which they came.
    fn push(&mut self, due_ns: u64, frame: Vec<u8>) {
        let after = self.frames.partition_point(|(other_ns, _)| *other_ns <= due_ns);
        self.frames.insert(after, (due_ns, frame));
    }
}

/// Carries frames until the process is ended.
#[expect(clippy::print_stdout, reason = "the test that started it reads its words")]
fn run(config: CableConfig) -> Result<()> {
    let dial = Dial::watch(config.dial, Shape::default());
    let mut ends = Vec::new();
    for (namespace, name) in config.ends {
        ends.push(tap(namespace, name)?);
    }
    println!("{READY}");
    let mut poll = Poll::new().context("create a poll")?;
    for (number, end) in ends.iter().enumerate() {
        poll.registry().register(&mut SourceFd(&end.as_raw_fd()), Token(number), Interest::READABLE)?;
    }
    let mut lanes = [1, 0].map(|to| Lane { to, frames: VecDeque::new() });
    let mut events = Events::with_capacity(8);
    let mut random = config.seed | 1;
    loop {
        let shape = dial.get();
        let now_ns = clock::monotonic_ns();
        let due = lanes.iter().filter_map(|lane| lane.frames.front()).map(|(due_ns, _)| *due_ns).min();
        let wait = due.map(|due_ns| Duration::from_nanos(due_ns.saturating_sub(now_ns)));
        match poll.poll(&mut events, wait) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result.context("wait for frames")?,
        }
        let now_ns = clock::monotonic_ns();
        for (end, lane) in lanes.iter_mut().enumerate() {
            let mut frame = vec![0; FRAME_BYTES_MAX];
            // A device that is down says so; it comes up later.
            while let Ok(length) = (&ends[end]).read(&mut frame) {
                // xorshift64 (Marsaglia, 2003).
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let frame = &frame[..length];
                let (delay_us, lost_per_mille) =
                    if shape.concerns(frame) { (shape.delay_us, shape.lost_per_mille) } else { (0, 0) };
                if random % 1000 >= lost_per_mille && lane.frames.len() < FRAMES_MAX {
                    lane.push(now_ns + delay_us * 1_000, frame.to_vec());
                }
            }
            while lane.frames.front().is_some_and(|(due_ns, _)| *due_ns <= now_ns) {
                let Some((_, frame)) = lane.frames.pop_front() else { break };
                // A frame for a device that is down is lost.
                let _ = (&ends[lane.to]).write(&frame);
            }
        }
    }
}

/// Reads its configuration and carries frames: the whole of the program `test-cable`.
pub fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).context("usage: test-cable CONFIG.json")?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    run(serde_json::from_str(&text).context("configuration")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet and IPv4 headers from one address to the other.
    fn frame(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let mut frame = vec![0; 34];
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        frame[26..30].copy_from_slice(&from);
        frame[30..34].copy_from_slice(&to);
        frame
    }

    #[test]
    fn only_frames_of_the_peers_are_concerned() {
        let shape = Shape { peers: vec![IpAddr::from([10, 0, 0, 2])], ..Shape::default() };
        let (me, peer, other) = ([10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]);
        let mut arp = frame(me, peer);
        arp[13] = 0x06;
        for (frame, expected) in [
            (frame(me, peer), true),
            (frame(peer, me), true),
            (frame(me, other), false),
            (frame(me, peer)[..33].to_vec(), false),
            (arp, false),
            (Vec::new(), false),
        ] {
            assert_eq!(shape.concerns(&frame), expected, "{frame:?}");
            assert!(Shape::default().concerns(&frame), "without peers all frames are");
        }
    }

    #[test]
    fn a_frame_that_is_due_earlier_passes_and_others_keep_their_order() {
        let mut lane = Lane { to: 0, frames: VecDeque::new() };
        for (due_ns, name) in [(5, 1), (9, 2), (5, 3), (7, 4)] {
            lane.push(due_ns, vec![name]);
        }
        let order: Vec<u8> = lane.frames.iter().map(|(_, frame)| frame[0]).collect();
        assert_eq!(order, [1, 3, 4, 2]);
    }
}
