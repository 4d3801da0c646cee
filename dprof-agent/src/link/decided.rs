//! What a linker says of a call, and what it counts.

use dprof_common::model::{Link, SpanId};

/// When the cause of a call is known.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// Now.
    Now(Decided),
    /// It comes with [`super::linker::Linker::take_decided`].
    Later,
}

/// The cause of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    /// The call.
    pub call: SpanId,
    /// Its cause; `None` = unknown.
    pub link: Option<Link>,
    /// Further ones.
    pub further: Vec<Link>,
}

impl Decided {
    /// Nobody.
    pub const fn none(call: SpanId) -> Self {
        Self { call, link: None, further: Vec::new() }
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Links that nothing else explains.
    pub certain: u64,
    /// Links dropped because the reply that left is not the one that came.
    pub vetoed: u64,
    /// Links not made because they were less sure than was asked for.
    pub below_min: u64,
    /// Verdicts given without the replies, because time was up.
    pub overdue: u64,
}
