//! Where an RPC's time went: differences on one clock each, so no synchronised clocks are needed.

use serde::Serialize;

use super::{Half, HalfFlags, Span};

/// The parts of an RPC's duration, signed nanoseconds. `None` = cannot be known from what was seen. Parts are
/// never clamped: a negative part means that a time is wrong, and is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Split {
    /// First to last byte of the request leaving the client (client's clock).
    pub request_send_ns: Option<i64>,
    /// Network, both ways: from the client's last request byte to its first response byte, less the time that
    /// the server had it. Send queues are in here when a departure is unknown.
    pub network_ns: Option<i64>,
    /// From the request's last byte reaching the server's socket to the call that returned it.
    pub server_queue_ns: Option<i64>,
    /// From that call to the response's first byte leaving.
    pub service_ns: Option<i64>,
    /// First to last byte of the response. The server's departures, unless only the client's arrivals are known.
    pub streaming_ns: Option<i64>,
    /// From the response's last byte reaching the client's socket to the call that returned it.
    pub client_queue_ns: Option<i64>,
    /// Without the other half: what cannot be told apart.
    pub remote_ns: Option<i64>,
    /// Duration less all parts: what the network added to or took from the streaming.
    pub remainder_ns: i64,
    /// Whether a time under one of the parts is flagged approximate or missing.
    pub approximate: bool,
}

impl Split {
    /// Name and value of each known part, in the order of time.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, i64)> {
        [
            ("request_send", self.request_send_ns),
            ("network", self.network_ns),
            ("server_queue", self.server_queue_ns),
            ("service", self.service_ns),
            ("streaming", self.streaming_ns),
            ("client_queue", self.client_queue_ns),
            ("remote", self.remote_ns),
        ]
        .into_iter()
        .filter_map(|(name, part)| part.map(|ns| (name, ns)))
    }
}

fn between(from: Option<u64>, to: Option<u64>) -> Option<i64> {
    Some(to?.wrapping_sub(from?) as i64)
}

/// Splits the duration of `span` ([`Span::duration_ns`]). The parts and the remainder sum to it exactly.
///
/// With both halves: `network = (client response_first - client request_last) - (server response_first -
/// server request_last)`, where the first difference is on the client's clock and the second on the server's.
pub fn split(span: &Span) -> Split {
    let mut split = Split::default();
    let approximate = HalfFlags(
        HalfFlags::REQUEST_TIME_APPROXIMATE.0
            | HalfFlags::RESPONSE_TIME_APPROXIMATE.0
            | HalfFlags::INCOMPLETE.0,
    );
    for half in span.client.iter().chain(span.server.iter()) {
        split.approximate |= half.flags.0 & approximate.0 != 0;
    }
    if let Some(server) = &span.server {
        let t = &server.times;
        split.server_queue_ns = between(t.request_last_ns, t.request_read_ns);
        split.service_ns = between(t.request_read_ns.or(t.request_last_ns), t.response_first_ns);
        split.streaming_ns = between(t.response_first_ns, t.response_last_ns);
        if span.client.is_none() {
            split.request_send_ns = between(t.request_first_ns, t.request_last_ns);
        }
    }
    if let Some(client) = &span.client {
        let t = &client.times;
        split.request_send_ns = between(t.request_first_ns, t.request_last_ns);
        split.client_queue_ns = between(t.response_last_ns, t.response_read_ns);
        if split.streaming_ns.is_none() {
            split.streaming_ns = between(t.response_first_ns, t.response_last_ns);
        }
        let away = between(t.request_last_ns.or(Some(t.start_ns)), t.response_first_ns);
        let at_server = span
            .server
            .as_ref()
            .and_then(|server| between(server.times.request_last_ns, server.times.response_first_ns));
        match (away, at_server) {
            // The first departure of an answer of several segments is an upper bound. Where the client's clock
            // proves it too high, service and network cannot be told apart; the rest stays as it is.
            (Some(away), Some(at_server)) if at_server > away && split.approximate => {
                split.service_ns = None;
                split.remote_ns = Some(away - split.server_queue_ns.unwrap_or(0));
                split.streaming_ns = between(t.response_first_ns, t.response_last_ns);
            }
            (Some(away), Some(at_server)) => split.network_ns = Some(away - at_server),
            // The server is unwatched, or its times are not known: one part, not a guess at two.
            (Some(away), None) => {
                split.remote_ns =
                    Some(away - split.server_queue_ns.unwrap_or(0) - split.service_ns.unwrap_or(0));
            }
            (None, _) => {}
        }
    }
    let known: i64 = split.parts().map(|(_, ns)| ns).sum();
    split.remainder_ns = span.duration_ns() as i64 - known;
    split.approximate |= is_incomplete(span, &split);
    split
}

/// Whether a part that this span should have is not known: what it would have taken is in another part then, or in the
/// remainder. Where no answer was seen, the parts of one are not missed.
fn is_incomplete(span: &Span, split: &Split) -> bool {
    let both_seen = span.client.is_some() && span.server.is_some();
    let missing = |half: &Half, asking: &[Option<i64>], answering: &[Option<i64>]| {
        let answered = half.times.response_first_ns.or(half.times.response_last_ns).is_some();
        asking.contains(&None) || answered && answering.contains(&None)
    };
    both_seen && split.network_ns.is_none()
        || span.client.as_ref().is_some_and(|client| {
            missing(client, &[split.request_send_ns], &[split.streaming_ns, split.client_queue_ns])
        })
        || span.server.as_ref().is_some_and(|server| {
            missing(server, &[split.server_queue_ns], &[split.service_ns, split.streaming_ns])
        })
}
