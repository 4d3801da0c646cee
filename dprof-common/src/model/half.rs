//! One end's view of an RPC.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{MessageId, RunId};

/// Which end saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Side {
    /// The end that sent the request.
    Client = 1,
    /// The end that received it.
    Server = 2,
}

impl Side {
    /// Name as printed: OpenTelemetry's span kind in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Status {
    /// Answered without an error.
    Ok = 1,
    /// Answered with an error of the protocol.
    Error = 2,
    /// The connection closed before an answer.
    NoReply = 3,
    /// The connection was reset before an answer.
    Reset = 4,
    /// No answer within `max_open`.
    Timeout = 5,
    /// The answer was not understood (bytes missing, unknown protocol).
    Unknown = 6,
    /// By its protocol this request has no answer.
    OneWay = 7,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 7] =
        [Self::Ok, Self::Error, Self::NoReply, Self::Reset, Self::Timeout, Self::Unknown, Self::OneWay];

    /// Name as printed and given to `--status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::NoReply => "no_reply",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Unknown => "unknown",
            Self::OneWay => "one_way",
        }
    }

    /// Whether the request failed.
    pub const fn is_error(self) -> bool {
        matches!(self, Self::Error | Self::NoReply | Self::Reset | Self::Timeout)
    }

    /// The status with this stored number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|status| *status as u8 == number)
    }
}

/// The machine and the run of the agent that saw a half.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Host name, or `--host`.
    pub host: String,
    /// Run of the agent.
    #[serde(skip, default = "no_run")]
    pub run_id: RunId,
    /// Labels given to the agent: `dc`, `rack`, `node`, …
    pub labels: BTreeMap<String, String>,
}

const fn no_run() -> RunId {
    RunId(0)
}

/// A process as it was when its socket was first seen.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// Process id in the agent's pid namespace.
    pub pid: u32,
    /// `comm`.
    pub comm: String,
    /// Service name: rule of the configuration, systemd unit, container, or command.
    pub service: String,
    /// Container id, when the cgroup tells.
    pub container: Option<String>,
}

/// Bits that say what to doubt about a half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HalfFlags(pub u32);

impl HalfFlags {
    /// Bytes or events of these messages are missing.
    pub const INCOMPLETE: Self = Self(1 << 0);
    /// A time of the request is approximate (paced socket, call of several segments, merged arrivals).
    pub const REQUEST_TIME_APPROXIMATE: Self = Self(1 << 1);
    /// A time of the response is approximate.
    pub const RESPONSE_TIME_APPROXIMATE: Self = Self(1 << 2);
    /// Pairing crossed a gap: the response may belong to another request.
    pub const PAIRED_ACROSS_GAP: Self = Self(1 << 3);
    /// Bytes of the request or the response were retransmitted.
    pub const RETRANSMITTED: Self = Self(1 << 4);
    /// The socket's positions are not those of the wire: no identity across hosts.
    pub const NO_STREAM_POSITION: Self = Self(1 << 5);
    /// The connection is older than the agent and its role was guessed.
    pub const ROLE_GUESSED: Self = Self(1 << 6);
    /// The payload is encrypted: bytes and times only.
    pub const TLS: Self = Self(1 << 7);

    /// Names of the bits, in their order.
    pub const NAMES: [(Self, &'static str); 8] = [
        (Self::INCOMPLETE, "incomplete"),
        (Self::REQUEST_TIME_APPROXIMATE, "request_time_approximate"),
        (Self::RESPONSE_TIME_APPROXIMATE, "response_time_approximate"),
        (Self::PAIRED_ACROSS_GAP, "paired_across_gap"),
        (Self::RETRANSMITTED, "retransmitted"),
        (Self::NO_STREAM_POSITION, "no_stream_position"),
        (Self::ROLE_GUESSED, "role_guessed"),
        (Self::TLS, "tls"),
    ];

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Sets the bits of `other`.
    pub const fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Names of the bits that are set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(bit, _)| self.contains(*bit)).map(|(_, name)| name)
    }
}

/// The times of a half: wall-clock nanoseconds since the epoch, all made with one offset from the host's
/// monotonic clock. `None` = not known.
///
/// *Wire* times are departures for what this end sent and arrivals for what it received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HalfTimes {
    /// Start of the half: the request's first byte on the wire at this end, else the hook's time.
    pub start_ns: u64,
    /// End of the half. Client: the call that returned the response's last byte. Server: the response's last
    /// byte departed, else the hook's time. Without a response: when it was given up.
    pub end_ns: u64,
    /// Wire time of the request's first byte.
    pub request_first_ns: Option<u64>,
    /// Wire time of the request's last byte.
    pub request_last_ns: Option<u64>,
    /// Server: the call that returned the request's last byte.
    pub request_read_ns: Option<u64>,
    /// Wire time of the response's first byte.
    pub response_first_ns: Option<u64>,
    /// Wire time of the response's last byte.
    pub response_last_ns: Option<u64>,
    /// Client: the call that returned the response's last byte.
    pub response_read_ns: Option<u64>,
}

impl HalfTimes {
    /// Name and value of each time between start and end, in the order of time.
    pub const fn marks(&self) -> [(&'static str, Option<u64>); 6] {
        [
            ("request_first", self.request_first_ns),
            ("request_last", self.request_last_ns),
            ("request_read", self.request_read_ns),
            ("response_first", self.response_first_ns),
            ("response_last", self.response_last_ns),
            ("response_read", self.response_read_ns),
        ]
    }

    /// From start to end, nanoseconds. Never negative: `end_ns` before `start_ns` gives 0 (and the engine
    /// counts it).
    pub const fn duration_ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }
}

/// One end's view of an RPC: what one socket saw of one request and its response.
#[derive(Clone, Debug, PartialEq)]
pub struct Half {
    /// Host and run.
    pub host: Arc<HostInfo>,
    /// Process that read or sent the request.
    pub process: Arc<ProcessInfo>,
    /// Thread that did.
    pub tid: u32,
    /// This end.
    pub local: SocketAddr,
    /// The other end, as this end sees it.
    pub peer: SocketAddr,
    /// Network namespace inode.
    pub netns: u32,
    /// Second key for paths that rewrite sequence numbers: hash of tuple and position; 0 if not made.
    pub tuple_key: u64,
    /// Protocol name: `redis`, `http`, … (OpenTelemetry's `db.system.name` or protocol name).
    pub protocol: Cow<'static, str>,
    /// Operation of low cardinality: `GET`, `GET /cart/{id}`.
    pub operation: String,
    /// Statement with keys kept and values as `?`: `set a ?`. Empty if unknown.
    pub query_text: String,
    /// How it ended.
    pub status: Status,
    /// The protocol's word for it: `404`, `WRONGTYPE`. Empty if none.
    pub status_code: String,
    /// Further OpenTelemetry attributes (`url.path`, `http.request.method`, …).
    pub attributes: Vec<(Cow<'static, str>, String)>,
    /// Times.
    pub times: HalfTimes,
    /// Bytes of the request.
    pub request_bytes: u64,
    /// Bytes of the response.
    pub response_bytes: u64,
    /// Number of the request message on this host.
    pub request_message_id: MessageId,
    /// Number of the response message on this host; 0 without response.
    pub response_message_id: MessageId,
    /// How many requests shared the call that carried this one's last byte; at least 1.
    pub batch: u32,
    /// Doubts.
    pub flags: HalfFlags,
    /// Segments of request and response sent again by this end.
    pub retransmits: u32,
    /// Smoothed round trip time at the last send, microseconds; 0 if unknown.
    pub srtt_us: u32,
    /// Time to connect, on the first RPC of a connection that this end opened, nanoseconds.
    pub connect_ns: Option<u64>,
}
