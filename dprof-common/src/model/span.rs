//! A span: one RPC with the halves that were seen.

use serde::{Deserialize, Serialize};

use super::{Half, Link, RootKind, Side, SpanId, TraceId};

/// Why a span was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum KeepReason {
    /// The hash of the trace id lies below the keep ratio.
    Ratio = 1,
    /// Slower than its operation's threshold.
    Slow = 2,
    /// Failed.
    Error = 3,
    /// Among the slowest of its run.
    Top = 4,
    /// A fragment that no word reached, kept by the hash of its own id.
    Unconfirmed = 5,
}

impl KeepReason {
    /// Name as printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ratio => "ratio",
            Self::Slow => "slow",
            Self::Error => "error",
            Self::Top => "top",
            Self::Unconfirmed => "unconfirmed",
        }
    }

    /// The reason with this stored number.
    pub const fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Ratio,
            2 => Self::Slow,
            3 => Self::Error,
            4 => Self::Top,
            5 => Self::Unconfirmed,
            _ => return None,
        })
    }
}

/// Bits about the span as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SpanFlags(pub u32);

impl SpanFlags {
    /// Stored under the id of the local tree's topmost RPC because the trace's id was not known; the reader
    /// stitches.
    pub const FRAGMENT: Self = Self(1 << 0);
    /// Outlives its parent (asynchronous): left out of the parent's blocking time.
    pub const DETACHED: Self = Self(1 << 1);
    /// Longer than spans are held and kept only when it ended: what it caused may have been forgotten.
    pub const TRUNCATED: Self = Self(1 << 2);

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Sets the bits of `other`.
    pub const fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// One RPC. At least one half is present.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Trace that it belongs to, as its agent knew it.
    pub trace_id: TraceId,
    /// Identity.
    pub span_id: SpanId,
    /// Its cause, if found (by the agent of the client half): the request that triggered it.
    pub link: Option<Link>,
    /// Further causes of a call that serves several requests at once (a batch): the requests that submitted a part
    /// of it before `link`'s triggered it. Empty without `link`.
    pub further_links: Vec<Link>,
    /// Why it has no parent; `None` with a link, or where only the far agent can know.
    pub root: Option<RootKind>,
    /// Bits about the whole.
    pub flags: SpanFlags,
    /// Probability with which it was kept, 0 to 1.
    pub probability: f64,
    /// Why it was kept.
    pub reason: KeepReason,
    /// The caller's view.
    pub client: Option<Half>,
    /// The server's view.
    pub server: Option<Half>,
}

impl Span {
    /// The half that speaks for the RPC's duration: the client's when it was seen (it includes the network and
    /// both queues), else the server's. `None` only if neither is present, which no agent writes.
    pub fn widest(&self) -> Option<&Half> {
        self.client.as_ref().or(self.server.as_ref())
    }

    /// The half that speaks for what was asked of whom: the server's when it was seen, else the client's.
    pub fn nearest(&self) -> Option<&Half> {
        self.server.as_ref().or(self.client.as_ref())
    }

    /// Every cause, the one that triggered it first.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.link.iter().chain(&self.further_links)
    }

    /// Side of [`Span::nearest`]: an RPC is listed as `server` when the server was watched.
    pub const fn kind(&self) -> Side {
        if self.server.is_some() { Side::Server } else { Side::Client }
    }

    /// Duration of the RPC, nanoseconds: that of [`Span::widest`].
    pub fn duration_ns(&self) -> u64 {
        self.widest().map_or(0, |half| half.times.duration_ns())
    }

    /// Start of the RPC on the clock of [`Span::widest`]'s host.
    pub fn start_ns(&self) -> u64 {
        self.widest().map_or(0, |half| half.times.start_ns)
    }

    /// Whether either end saw it fail.
    pub fn is_error(&self) -> bool {
        self.client.iter().chain(self.server.iter()).any(|half| half.status.is_error())
    }

    /// Adds what `other`, a record of the same RPC by another agent or batch, knows and this one lacks.
    /// Idempotent, and the order of merging does not matter but for `trace_id`: a trace's own id wins over a
    /// fragment's.
    pub fn merge(&mut self, other: Self) {
        if self.flags.contains(SpanFlags::FRAGMENT) && !other.flags.contains(SpanFlags::FRAGMENT) {
            self.trace_id = other.trace_id;
            self.flags.0 &= !SpanFlags::FRAGMENT.0;
        }
        if self.client.is_none() {
            self.client = other.client;
        }
        if self.server.is_none() {
            self.server = other.server;
        }
        if self.link.is_none() {
            self.link = other.link;
            self.further_links = other.further_links;
        }
        self.root = if self.link.is_some() { None } else { self.root.or(other.root) };
        self.flags.0 |= other.flags.0 & (SpanFlags::DETACHED.0 | SpanFlags::TRUNCATED.0);
    }
}
