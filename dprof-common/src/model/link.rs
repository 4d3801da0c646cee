//! Who caused a call, and how that is known.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::SpanId;

/// What a link stands on, strongest first. The number is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum EvidenceKind {
    /// An id carried in the message (traceparent, B3, X-Request-ID).
    ExplicitId = 1,
    /// Two connections of a process carry the same bytes at a constant offset.
    StreamRelay = 2,
    /// The same command bytes came in on one connection and went out on another.
    RelayedContent = 3,
    /// First in, first out among identical contents, checked against the replies.
    Order = 4,
    /// One thread read the request and made the call, with no other request open on it.
    SameThread = 5,
    /// The thread that held the request woke the one that made the call.
    WakeUp = 6,
    /// Delay statistics over many requests.
    Timing = 7,
}

impl EvidenceKind {
    /// Every kind, strongest first.
    pub const ALL: [Self; 7] = [
        Self::ExplicitId,
        Self::StreamRelay,
        Self::RelayedContent,
        Self::Order,
        Self::SameThread,
        Self::WakeUp,
        Self::Timing,
    ];

    /// Name as printed, stored in exports and given on command lines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ExplicitId => "explicit_id",
            Self::StreamRelay => "stream_relay",
            Self::RelayedContent => "relayed_content",
            Self::Order => "order",
            Self::SameThread => "same_thread",
            Self::WakeUp => "wake_up",
            Self::Timing => "timing",
        }
    }

    /// The kind with this stored number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

impl FromStr for EvidenceKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.into_iter().map(Self::name).collect();
            format!("'{name}' is no kind of evidence: use {}", names.join(", "))
        })
    }
}

/// A call's cause: the server-side request, in the calling process, that made it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// The causing RPC.
    pub parent: SpanId,
    /// What says so.
    pub evidence: EvidenceKind,
    /// Calibrated probability that the link is right, 0 to 1; `None` = uncalibrated.
    pub confidence: Option<f32>,
}

/// Why a span has no parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum RootKind {
    /// Its caller is not watched, or made it of its own accord (a client program that serves nothing).
    Edge = 1,
    /// Its caller is watched and serves requests, but no cause was found: lost recall, not a request.
    Unlinked = 2,
}

impl RootKind {
    /// Name as printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Unlinked => "unlinked",
        }
    }

    /// The kind with this stored number.
    pub const fn from_u8(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Edge),
            2 => Some(Self::Unlinked),
            _ => None,
        }
    }
}
