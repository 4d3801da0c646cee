//! A span as one flat row: what `--format json` prints per RPC, and what tables choose columns from.
//!
//! One row per RPC: service, operation and kind are those of [`Span::nearest`] (the server's when it was
//! watched), the duration is that of [`Span::widest`] (the caller's when it was watched).

use dprof_common::model::{Half, HalfFlags, Span, SpanFlags, Split, split};
use serde::{Serialize, Serializer};

use crate::units;

/// One RPC. Field names are the JSON schema: adding is fine, renaming is not.
#[derive(Debug, Serialize)]
pub struct SpanRow<'a> {
    /// 32 hex digits.
    pub trace_id: String,
    /// 16 hex digits.
    pub span_id: String,
    /// 16 hex digits; null for a root.
    pub parent_span_id: Option<String>,
    /// Who served it (or, when the server is not watched, who called).
    pub service: &'a str,
    /// What was asked.
    pub operation: &'a str,
    /// `server` if the server was watched, else `client`.
    pub kind: &'static str,
    /// RFC 3339, nanoseconds, UTC, on the clock of the host that measured the duration.
    #[serde(serialize_with = "as_rfc3339")]
    pub start_time: u64,
    /// From the first byte of the request to the last of the response, at the widest end seen.
    pub duration_ns: u64,
    /// How it ended: a failure at either end wins.
    pub status: &'static str,
    /// The protocol's word for it; null if none.
    pub status_code: Option<&'a str>,
    /// Protocol.
    pub protocol: &'a str,
    /// Statement with values as `?`; null if unknown.
    pub query_text: Option<&'a str>,
    /// Service that called; null when the caller was not watched.
    pub caller_service: Option<&'a str>,
    /// Host that called; null when the caller was not watched.
    pub caller_host: Option<&'a str>,
    /// Host of `service`.
    pub host: &'a str,
    /// Process of `service`.
    pub pid: u32,
    /// Address of this end.
    pub local: String,
    /// Address of the other end, as this end sees it.
    pub peer: String,
    /// Duration as the caller saw it; null when it was not watched.
    pub client_duration_ns: Option<u64>,
    /// Duration as the server saw it; null when it was not watched.
    pub server_duration_ns: Option<u64>,
    /// Where the time went.
    pub split: Split,
    /// Bytes of the request.
    pub request_bytes: u64,
    /// Bytes of the response.
    pub response_bytes: u64,
    /// Segments sent again, both ends.
    pub retransmits: u32,
    /// What the link to the parent stands on; null for a root.
    pub evidence: Option<&'static str>,
    /// Calibrated probability of the link; null = root, or uncalibrated.
    pub confidence: Option<f32>,
    /// Parents beyond the first, of a call that serves several requests at once; empty = none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub further_parents: Vec<String>,
    /// Why there is no parent: `edge` or `unlinked`; null with a parent or if unknown.
    pub root: Option<&'static str>,
    /// What to doubt; empty = nothing.
    pub flags: Vec<&'static str>,
    /// Probability with which the span was kept.
    pub probability: f64,
    /// Why it was kept.
    pub reason: &'static str,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn as_rfc3339<S: Serializer>(unix_ns: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&units::rfc3339(*unix_ns))
}

impl<'a> SpanRow<'a> {
    /// The row of `span`; `None` if it has no half, which no agent writes.
    pub fn new(span: &'a Span) -> Option<Self> {
        let nearest = span.nearest()?;
        let outcome = failing_half(span).unwrap_or(nearest);
        let duration = |half: &Half| half.times.duration_ns();
        Some(Self {
            trace_id: span.trace_id.to_string(),
            span_id: span.span_id.to_string(),
            parent_span_id: span.link.map(|link| link.parent.to_string()),
            service: &nearest.process.service,
            operation: &nearest.operation,
            kind: span.kind().name(),
            start_time: span.start_ns(),
            duration_ns: span.duration_ns(),
            status: outcome.status.name(),
            status_code: status_code(span, outcome),
            protocol: &nearest.protocol,
            query_text: non_empty(&nearest.query_text),
            caller_service: span.client.as_ref().map(|half| half.process.service.as_str()),
            caller_host: span.client.as_ref().map(|half| half.host.host.as_str()),
            host: &nearest.host.host,
            pid: nearest.process.pid,
            local: nearest.local.to_string(),
            peer: nearest.peer.to_string(),
            client_duration_ns: span.client.as_ref().map(duration),
            server_duration_ns: span.server.as_ref().map(duration),
            split: split(span),
            request_bytes: nearest.request_bytes,
            response_bytes: nearest.response_bytes,
            retransmits: halves(span).map(|half| half.retransmits).sum(),
            evidence: span.link.map(|link| link.evidence.name()),
            confidence: span.link.and_then(|link| link.confidence),
            further_parents: span.further_links.iter().map(|link| link.parent.to_string()).collect(),
            root: span.root.map(dprof_common::model::RootKind::name),
            flags: flag_names(span),
            probability: span.probability,
            reason: span.reason.name(),
        })
    }
}

/// The halves that were seen, the client's first.
pub fn halves(span: &Span) -> impl Iterator<Item = &Half> {
    span.client.iter().chain(span.server.iter())
}

/// The half that saw the RPC fail, the client's first: it knows of resets and time-outs that the server slept
/// through.
pub fn failing_half(span: &Span) -> Option<&Half> {
    halves(span).find(|half| half.status.is_error())
}

/// Names of the doubts about either half, then of the span's own bits.
pub fn flag_names(span: &Span) -> Vec<&'static str> {
    let mut flags = HalfFlags::default();
    for half in halves(span) {
        flags.insert(half.flags);
    }
    let mut names: Vec<_> = flags.names().collect();
    for (bit, name) in [
        (SpanFlags::FRAGMENT, "fragment"),
        (SpanFlags::DETACHED, "detached"),
        (SpanFlags::TRUNCATED, "truncated"),
    ] {
        if span.flags.contains(bit) {
            names.push(name);
        }
    }
    names
}

/// The protocol's word: of the outcome, else of the other end that saw the same.
fn status_code<'a>(span: &'a Span, outcome: &'a Half) -> Option<&'a str> {
    let mut same = halves(span).filter(|half| half.status == outcome.status);
    non_empty(&outcome.status_code).or_else(|| same.find_map(|half| non_empty(&half.status_code)))
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{T0, rpc};
    use dprof_common::model::Status;

    #[test]
    fn a_row_speaks_for_the_server_and_measures_at_the_client() {
        let span = rpc(7).of("redis", "GET").query("get a").by("proxy").at(1_000, 104_200).build();
        let row = serde_json::to_value(SpanRow::new(&span).expect("has halves")).expect("plain data");
        assert_eq!(row["service"], "redis");
        assert_eq!(row["caller_service"], "proxy");
        assert_eq!(row["kind"], "server");
        assert_eq!(row["start_time"], units::rfc3339(T0 + 1_000_000));
        assert_eq!(row["duration_ns"], 104_200_000);
        assert_eq!(row["client_duration_ns"], 104_200_000);
        assert_eq!(row["parent_span_id"], serde_json::Value::Null);
        assert_eq!(row["root"], "edge");
        assert_eq!(row["query_text"], "get a");
        assert_eq!(row["span_id"], "0000000000000007");
        assert_eq!(row["trace_id"], format!("{:032x}", 1));
        assert_eq!(row["flags"], serde_json::json!([]));
        let parts: i64 = [
            "request_send_ns",
            "network_ns",
            "server_queue_ns",
            "service_ns",
            "streaming_ns",
            "client_queue_ns",
        ]
        .iter()
        .filter_map(|part| row["split"][part].as_i64())
        .sum();
        assert_eq!(parts + row["split"]["remainder_ns"].as_i64().expect("a number"), 104_200_000);
    }

    #[test]
    fn a_failure_at_either_end_is_the_status() {
        let mut span = rpc(7).build();
        span.client.as_mut().expect("seen").status = Status::Timeout;
        assert_eq!(SpanRow::new(&span).expect("has halves").status, "timeout");
        let mut span = rpc(7).build();
        let server = span.server.as_mut().expect("seen");
        server.status = Status::Error;
        server.status_code = "WRONGTYPE".into();
        let row = SpanRow::new(&span).expect("has halves");
        assert_eq!((row.status, row.status_code), ("error", Some("WRONGTYPE")));
    }

    #[test]
    fn doubts_of_both_halves_are_named_once() {
        let mut span = rpc(7).build();
        span.client.as_mut().expect("seen").flags = HalfFlags::INCOMPLETE;
        span.server.as_mut().expect("seen").flags = HalfFlags(HalfFlags::INCOMPLETE.0 | HalfFlags::TLS.0);
        span.flags = SpanFlags::DETACHED;
        assert_eq!(flag_names(&span), ["incomplete", "tls", "detached"]);
    }
}
