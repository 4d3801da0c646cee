//! Records of the event stream: what a kernel program writes into the ring, byte for byte, and the few kinds
//! that the agent's source adds beside them so that a recording holds all that a replay needs.
//!
//! Every record starts with an [`EventHeader`]; integers are in the machine's (little endian) order; times are
//! `CLOCK_MONOTONIC` nanoseconds. What a reader would get wrong: positions are *raw*. `end_pos` counts the
//! payload bytes of one direction since the connection opened, but on the connecting side the send direction
//! counts the SYN too and is one too high ([`OpenEvent`] says how to know).

use crate::flow::Flow;
use crate::limits::ARRIVALS_MAX;

/// In perf buffers, which have no order over CPUs, each record is preceded by `CLOCK_MONOTONIC` of its making:
/// nanoseconds in this many bytes. It is gone once the records are merged.
pub const PERF_STAMP_BYTES: usize = 8;

/// Kind of a record: the first byte of its header.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// [`OpenEvent`]: a socket is seen with data for the first time.
    Open = 1,
    /// [`CloseEvent`]: a socket left for `TCP_CLOSE`.
    Close = 2,
    /// [`SendEvent`], then payload.
    Send = 3,
    /// [`RecvEvent`], then payload.
    Recv = 4,
    /// [`ArrivalsEvent`]: comes right before the `Recv` that it belongs to.
    Arrivals = 5,
    /// [`RetransmitEvent`].
    Retransmit = 6,
    /// [`ListenEvent`]: a socket listens, or no longer does.
    Listen = 7,
    /// [`FirstDepartureEvent`]: comes right before the `Send` that it belongs to.
    FirstDeparture = 8,
    /// User space: a process is described; JSON after the header (`dprof-agent/src/source/record.rs`).
    Process = 64,
    /// User space: monotonic and wall clock read together: [`ClockEvent`]. Also the engine's clock tick.
    Clock = 65,
    /// User space: events lost since the last such record: [`LostEvent`].
    Lost = 66,
    /// User space: the capture window opened or closed: [`WindowEvent`].
    Window = 67,
    /// User space: other ports are watched: [`PortsEvent`], then the ports.
    Ports = 68,
}

impl EventKind {
    /// The kind with this number.
    pub const fn from_u8(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Open,
            2 => Self::Close,
            3 => Self::Send,
            4 => Self::Recv,
            5 => Self::Arrivals,
            6 => Self::Retransmit,
            7 => Self::Listen,
            8 => Self::FirstDeparture,
            64 => Self::Process,
            65 => Self::Clock,
            66 => Self::Lost,
            67 => Self::Window,
            68 => Self::Ports,
            _ => return None,
        })
    }
}

/// Bits of [`EventHeader::flags`].
pub mod flag {
    /// Send: every byte of the call had departed when the hook ran; `time_ns` is the departure of the last.
    pub const DEPARTED: u8 = 1 << 0;
    /// Send: the time may be early or late: the socket is paced outside TCP (fq), or the call exceeds a segment.
    /// Recv: unread segments were merged: arrivals between the first and the last are upper bounds.
    pub const APPROXIMATE: u8 = 1 << 1;
    /// The call form gives no user buffer (splice, sendfile, io_uring, kernel thread): no payload by nature.
    pub const NO_BUFFER: u8 = 1 << 2;
    /// Recv: the arrival of these bytes was not seen (they came before the agent did): times are 0.
    pub const NO_ARRIVAL: u8 = 1 << 3;
    /// Open: the connecting side (its raw send positions are one too high).
    pub const ACTIVE: u8 = 1 << 4;
    /// Open: the accepting side. Neither bit: the connection is older than the agent.
    pub const PASSIVE: u8 = 1 << 5;
    /// Close: the connection was reset (or timed out) rather than closed.
    pub const RESET: u8 = 1 << 6;
    /// Send, Recv: the socket's stream is not the wire's (kTLS, sockmap, another protocol on top): positions count
    /// something else than the bytes of the calls.
    pub const NO_STREAM_POSITION: u8 = 1 << 6;
    /// Listen: the socket stopped listening.
    pub const GONE: u8 = 1 << 7;
    /// Window: it opened; without it, it closed.
    pub const OPENED: u8 = 1 << 0;
    /// Ports: the programs were told a moment ago, and records from before may follow; without it, none do.
    pub const BEGINS: u8 = 1 << 0;
    /// Ports: all.
    pub const ALL: u8 = 1 << 1;
}

/// Start of every record, 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct EventHeader {
    /// An [`EventKind`].
    pub kind: u8,
    /// Bits of [`flag`].
    pub flags: u8,
    /// Bytes that follow the fixed part: captured payload, or the body of a user-space record.
    pub payload_len: u16,
    /// Send, Recv: bytes that the call moved. Otherwise per kind.
    pub size: u32,
}

/// Data handed to a socket by a system call; payload follows. 48 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct SendEvent {
    /// Kind `Send`; `size` = bytes sent.
    pub header: EventHeader,
    /// Socket cookie: unique while the machine runs.
    pub sock: u64,
    /// Raw stream position after the last byte of the call.
    pub end_pos: u64,
    /// Process id in the upper half, thread id in the lower.
    pub pid_tgid: u64,
    /// Departure of the last byte that has departed, or, if none of this call has, the hook's own time.
    pub time_ns: u64,
    /// Bytes before `end_pos` that had not departed yet (`write_seq - snd_nxt`).
    pub unsent: u32,
    /// Smoothed round trip time, microseconds; 0 if unknown.
    pub srtt_us: u32,
}

/// When the first byte of a large send could leave: `SendEvent::time_ns` says it of the last byte only, and a call
/// of several segments may last long. 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct FirstDepartureEvent {
    /// Kind `FirstDeparture`; `size` unused.
    pub header: EventHeader,
    /// Socket cookie.
    pub sock: u64,
    /// Raw stream position of the call's first byte.
    pub start_pos: u64,
    /// When the call began to copy its first segment, with nothing unsent before it: the departure less the time
    /// to copy one segment.
    pub time_ns: u64,
}

/// Data taken from a socket by a system call; payload follows. 56 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct RecvEvent {
    /// Kind `Recv`; `size` = bytes received.
    pub header: EventHeader,
    /// Socket cookie.
    pub sock: u64,
    /// Raw stream position after the last byte of the call.
    pub end_pos: u64,
    /// Process id in the upper half, thread id in the lower.
    pub pid_tgid: u64,
    /// When the call returned the bytes.
    pub read_ns: u64,
    /// Arrival of the call's first byte; 0 with flag `NO_ARRIVAL`.
    pub arrived_first_ns: u64,
    /// Arrival of the call's last byte; 0 with flag `NO_ARRIVAL`.
    pub arrived_last_ns: u64,
}

/// One unread segment: bytes before `end_pos` (and after the last one's) reached the socket at `time_ns`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Arrival {
    /// Raw stream position after the segment.
    pub end_pos: u64,
    /// When the segment reached the socket.
    pub time_ns: u64,
}

/// Arrival times of a read that took bytes of more than one segment. At most 272 bytes: only the filled entries come.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct ArrivalsEvent {
    /// Kind `Arrivals`; `size` = how many of `arrivals` are filled.
    pub header: EventHeader,
    /// Socket cookie.
    pub sock: u64,
    /// In stream order.
    pub arrivals: [Arrival; ARRIVALS_MAX],
}

/// A socket when its first data is seen. Positions and sequence numbers were read together: for either
/// direction `sequence - position` is the initial sequence number (+1), one constant on both ends once the
/// SYN is taken off the connecting side's send position (flag `ACTIVE`; for connections older than the agent
/// neither role bit is set, and who listens on the port decides).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct OpenEvent {
    /// Kind `Open`; flags `ACTIVE` or `PASSIVE`; `size` unused.
    pub header: EventHeader,
    /// Socket cookie.
    pub sock: u64,
    /// When this record was made.
    pub time_ns: u64,
    /// Process and thread whose call showed the socket.
    pub pid_tgid: u64,
    /// Raw send position at `write_seq`.
    pub send_pos: u64,
    /// Raw receive position at `copied_seq`.
    pub recv_pos: u64,
    /// `tcp_sock.write_seq`
    pub write_seq: u32,
    /// `tcp_sock.copied_seq`
    pub copied_seq: u32,
    /// When the connection was established; 0 if older than the agent.
    pub established_ns: u64,
    /// From SYN sent to established, nanoseconds; 0 if accepted or unknown.
    pub connect_ns: u64,
    /// `bpf_get_current_cgroup_id` of the process.
    pub cgroup_id: u64,
    /// `comm` of the thread.
    pub comm: [u8; 16],
    /// Addresses, ports, namespace.
    pub flow: Flow,
}

/// A connection ended. 40 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct CloseEvent {
    /// Kind `Close`; flag `RESET`; `size` = `sk_err`.
    pub header: EventHeader,
    /// Socket cookie.
    pub sock: u64,
    /// When.
    pub time_ns: u64,
    /// Raw send position at the end (a FIN counts as a byte).
    pub send_pos: u64,
    /// Raw receive position of what arrived (a FIN counts as a byte), read or not.
    pub recv_pos: u64,
}

/// A segment was sent again. 40 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct RetransmitEvent {
    /// Kind `Retransmit`; `size` = bytes.
    pub header: EventHeader,
    /// Socket cookie.
    pub sock: u64,
    /// When.
    pub time_ns: u64,
    /// Raw send position of the segment's first byte.
    pub start_pos: u64,
    /// Raw send position after its last byte.
    pub end_pos: u64,
}

/// A socket listens (or stopped). 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct ListenEvent {
    /// Kind `Listen`; flag `GONE`; `size` unused.
    pub header: EventHeader,
    /// When.
    pub time_ns: u64,
    /// Network namespace inode.
    pub netns: u32,
    /// Port, host order.
    pub port: u16,
    /// Explicit padding.
    pub padding: u16,
}

/// Both clocks, read together. 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct ClockEvent {
    /// Kind `Clock`.
    pub header: EventHeader,
    /// `CLOCK_MONOTONIC`, nanoseconds: every event of the stream up to here is older.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME`, nanoseconds since the epoch.
    pub unix_ns: u64,
}

/// Events lost since the last such record, of any socket. 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct LostEvent {
    /// Kind `Lost`; `size` = a [`crate::drop_reason::DropReason`].
    pub header: EventHeader,
    /// When the counter was read.
    pub time_ns: u64,
    /// How many.
    pub count: u64,
}

/// An edge of the capture window: between a closing one and the next opening one no data was captured. 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct WindowEvent {
    /// Kind `Window`; flag `OPENED`; `size` unused.
    pub header: EventHeader,
    /// When the flag was set.
    pub time_ns: u64,
}

/// Only connections with one of these ports are watched from now on. 16 bytes, then a `u16` per port.
///
/// There are two of each change: one right after the programs were told (flag `BEGINS`), since what appears from then on
/// may be older, and one when all that they wrote before has been read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct PortsEvent {
    /// Kind `Ports`; flags `BEGINS`, `ALL`; `size` unused.
    pub header: EventHeader,
    /// When the programs were told.
    pub time_ns: u64,
}

// The layouts are a wire format (recordings): a change of size is a new recording version.
const _: () = {
    use core::mem::size_of;
    assert!(size_of::<EventHeader>() == 8);
    assert!(size_of::<SendEvent>() == 48);
    assert!(size_of::<FirstDepartureEvent>() == 32);
    assert!(size_of::<RecvEvent>() == 56);
    assert!(size_of::<ArrivalsEvent>() == 272);
    assert!(size_of::<OpenEvent>() == 136);
    assert!(size_of::<CloseEvent>() == 40);
    assert!(size_of::<RetransmitEvent>() == 40);
    assert!(size_of::<ListenEvent>() == 24);
    assert!(size_of::<ClockEvent>() == 24);
    assert!(size_of::<LostEvent>() == 24);
    assert!(size_of::<WindowEvent>() == 16);
    assert!(size_of::<PortsEvent>() == 16);
};
