//! A slow link with a neighbour that keeps its queue full: what goes to some machines waits in the kernel's own queue, in
//! a token bucket (TBF) below a class of HTB, as behind a crowded line between datacenters.
//!
//! What a reader would get wrong: a token bucket alone delays nobody who has the link to himself. Its bucket holds a
//! packet at least, or that packet would never pass, and fills while nothing is sent: a packet on an idle link leaves at
//! once, however low the rate. So a neighbour sends all the time, as much as fits: its datagrams are counted against its
//! socket until they leave the queue, and the socket's buffer has room for [`QUEUED`].

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::agent::binary;
use crate::netns::Netns;
use crate::program::Program;
use crate::socket_option::set_option;

/// The neighbour's datagrams in the queue: what comes waits for as many, give or take one.
const QUEUED: u64 = 8;

/// Bytes of a datagram, and with the headers of UDP, IP and Ethernet: what the bucket counts.
const PAYLOAD_BYTES: usize = 1400;
const FRAME_BYTES: u64 = PAYLOAD_BYTES as u64 + 8 + 20 + 14;

/// The bucket holds one frame of the usual size.
const BURST_BYTES: u64 = 1_600;
/// Longest queue: far more than the neighbour's part.
const LIMIT_BYTES: u64 = 1_000_000;

/// Nobody listens there (RFC 863), and who is told so does not care.
const DISCARD_PORT: u16 = 9;

/// Printed when the queue is full.
const READY: &str = "full";
const READY_WITHIN: Duration = Duration::from_secs(10);

/// What the program `test-neighbour` is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Neighbour {
    /// Where its datagrams go.
    to: IpAddr,
    /// Time between two looks whether there is room, microseconds: shorter than a frame takes to leave.
    look_every_us: u64,
}

/// A slow link of a machine; as it ends, so does the neighbour.
#[derive(Debug)]
pub struct Bottleneck {
    _neighbour: Program,
}

impl Bottleneck {
    /// Delays what leaves `machine` for any of `peers` by about `delay_us`.
    pub fn new(folder: &Path, name: &str, machine: &Netns, peers: &[IpAddr], delay_us: u64) -> Result<Self> {
        let to = *peers.first().context("a peer")?;
        for command in commands(peers, delay_us) {
            machine.tc(&command)?;
        }
        let config = Neighbour { to, look_every_us: delay_us / QUEUED / 2 };
        let mut command = machine.command(binary("test-neighbour"));
        let mut neighbour = Program::start_configured(name, folder, &mut command, &config)?;
        neighbour.wait_until(READY_WITHIN, "has filled the queue", |neighbour| {
            neighbour.stdout().contains(READY).then_some(())
        })?;
        Ok(Self { _neighbour: neighbour })
    }
}

/// Arguments of `tc`: what goes to the peers waits at a rate at which the neighbour's datagrams take the delay to leave.
fn commands(peers: &[IpAddr], delay_us: u64) -> Vec<String> {
    let bytes_per_s = QUEUED * FRAME_BYTES * 1_000_000 / delay_us.max(1);
    let mut commands = vec![
        "qdisc add dev eth0 root handle 1: htb".to_owned(),
        // The class only tells the peers from others. Its quantum is asked for, or the kernel complains.
        "class add dev eth0 parent 1: classid 1:1 htb rate 10gbit quantum 60000".to_owned(),
        format!(
            "qdisc add dev eth0 parent 1:1 handle 10: tbf rate {bytes_per_s}bps burst {BURST_BYTES} limit {LIMIT_BYTES}"
        ),
    ];
    commands.extend(peers.iter().map(|peer| {
        format!("filter add dev eth0 parent 1: protocol ip u32 match ip dst {peer}/32 flowid 1:1")
    }));
    commands
}

/// What a socket has under way, as the kernel counts.
fn under_way(socket: &UdpSocket) -> Result<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes an int, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    ensure!(result == 0, "ask what is under way: {}", std::io::Error::last_os_error());
    Ok(bytes)
}

/// Fills the queue until the process is ended.
#[expect(clippy::print_stdout, reason = "the experiment that started it reads its words")]
fn run(config: &Neighbour) -> Result<()> {
    // SAFETY: a plain system call. A neighbour that waits for a processor leaves the queue empty.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("open a socket")?;
    socket.set_nonblocking(true)?;
    let to = SocketAddr::new(config.to, DISCARD_PORT);
    let look_every = Duration::from_micros(config.look_every_us);
    // The first two: the second waits behind the first, and shows what the kernel counts for one.
    let one = loop {
        for _ in 0..2 {
            socket.send_to(&[0; PAYLOAD_BYTES], to).context("send a datagram")?;
        }
        let bytes = under_way(&socket)?;
        if bytes > 0 {
            break bytes;
        }
        thread::sleep(look_every);
    };
    // What waits may be both of them by now: a frame never counts as two.
    let one = if one as usize > 3 * PAYLOAD_BYTES { one / 2 } else { one };
    // How much may be under way. The kernel doubles what it is given, for what it needs to keep a packet.
    let buffer = one * QUEUED as libc::c_int / 2;
    set_option(&socket, libc::SO_SNDBUF, buffer).context("set a socket's buffer")?;
    let mut is_full = false;
    loop {
        match socket.send_to(&[0; PAYLOAD_BYTES], to) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if !is_full {
                    println!("{READY}");
                    is_full = true;
                }
                thread::sleep(look_every);
            }
            Err(error) => return Err(error).context("send a datagram"),
        }
    }
}

/// Reads its configuration and fills a queue: the whole of the program `test-neighbour`.
pub fn main() -> Result<()> {
    let path = std::env::args_os().nth(1).context("usage: test-neighbour CONFIG.json")?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    run(&serde_json::from_str(&text).context("configuration")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_of_the_neighbour_takes_the_delay_to_leave() {
        let peers = [[10, 0, 0, 2].into(), [10, 0, 0, 3].into()];
        let commands = commands(&peers, 10_000);
        assert_eq!(
            commands[2],
            "qdisc add dev eth0 parent 1:1 handle 10: tbf rate 1153600bps burst 1600 limit 1000000"
        );
        assert_eq!(commands.len(), 5, "a filter for each peer: {commands:?}");
        assert!(commands[4].ends_with("match ip dst 10.0.0.3/32 flowid 1:1"), "{commands:?}");
    }
}
