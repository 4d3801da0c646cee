//! The model that agent, stores and command line share: ids, RPC halves, spans, links, sketches.
//!
//! Raw event, stream chunk, message, RPC half and span are five types; the last two live here because they are
//! stored. What a reader would get wrong: all times are wall-clock nanoseconds *of the host that saw them*, made
//! from its monotonic clock with one offset per half. Differences within one half are exact; a difference
//! between two hosts' halves means nothing.

mod edge;
mod half;
mod hot_keys;
mod id;
mod link;
mod rollup;
mod sketch;
mod span;
mod split;

pub use edge::{Edge, EdgeEnd, EdgeKey};
pub use half::{Half, HalfFlags, HalfTimes, HostInfo, ProcessInfo, Side, Status};
pub use hot_keys::{HOT_KEYS_MAX, HotKey, KeyStats};
pub use id::{IdParseError, MessageId, RunId, SpanId, TraceId, rpc_identity};
pub use link::{EvidenceKind, Link, RootKind};
pub use rollup::{Rollup, RollupKey};
pub use sketch::{Sketch, SketchDecodeError};
pub use span::{KeepReason, Span, SpanFlags};
pub use split::{Split, split};
