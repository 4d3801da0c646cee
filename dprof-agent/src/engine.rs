//! The pure engine: blocks of records in, spans and rollups out.

use std::sync::Arc;

use dprof_common::model::{HostInfo, Rollup, Span, SpanId};

/// What the engine is told once. Every limit has a constant with its reason beside the stage that keeps it.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This host.
    pub host: Arc<HostInfo>,
    /// Whether connections of unknown protocol become request/response spans by change of direction.
    pub unknown: bool,
    /// A request without an answer for this long becomes a span of status `timeout`, nanoseconds.
    pub max_open_ns: u64,
    /// How long a finished half waits for its other half and for its tree's root, nanoseconds.
    pub hold_ns: u64,
    /// Requests open at once, over all connections; the oldest beyond end as `timeout`, counted.
    pub open_requests_max: usize,
    /// Halves and tree nodes held at once; the oldest beyond are released early, counted.
    pub held_max: usize,
    /// Connections known at once; the least recently used beyond are forgotten, counted.
    pub connections_max: usize,
    /// Added to every wall-clock time, nanoseconds (`--clock-offset`, tests).
    pub clock_offset_ns: i64,
    /// Rate error of the host's clock, parts per million (`--clock-drift-ppm`, tests).
    pub clock_drift_ppm: f64,
}

/// What a push gives.
#[derive(Debug, Default)]
pub struct Output {
    /// Spans whose trace id is settled, halves merged where both were seen here.
    pub spans: Vec<Span>,
    /// Rollups of minutes that are over.
    pub rollups: Vec<Rollup>,
    /// Payload limits that changed: (socket cookie, bytes per call).
    pub payload_limits: Vec<(u64, u32)>,
}

/// A request that is not answered yet.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct OpenRequest {
    /// The RPC, printed as hex.
    #[serde(serialize_with = "as_text")]
    pub span_id: SpanId,
    /// `client` or `server`.
    pub kind: dprof_common::model::Side,
    /// Service of the process.
    pub service: String,
    /// Operation.
    pub operation: String,
    /// Statement as it may be shown.
    pub query_text: String,
    /// This end.
    pub local: std::net::SocketAddr,
    /// The other.
    pub peer: std::net::SocketAddr,
    /// Start, nanoseconds since the epoch.
    pub start_unix_ns: u64,
    /// Age at the last event or clock tick, nanoseconds.
    pub age_ns: u64,
}

fn as_text<S: serde::Serializer>(id: &SpanId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(id)
}
