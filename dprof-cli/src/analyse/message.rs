//! The messages of a trace, as *Dprof - Distributed System Profiling and Tracing* lists them: trace id, span id,
//! message id, timestamp, caller id, operation.
//!
//! Each half saw two messages: its request and its response. Timestamps are those of the host that saw them;
//! the order is the drawn one ([`super::place`]), because clocks of different hosts cannot be compared.

use dprof_common::model::{Half, Side};
use serde::{Serialize, Serializer};

use super::place::Placed;
use super::tree::Tree;
use crate::units;

/// One message at one end. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MessageRow<'a> {
    /// 32 hex digits.
    pub trace_id: String,
    /// 16 hex digits.
    pub span_id: String,
    /// Number on this host, in the order of capture.
    pub message_id: u64,
    /// RFC 3339, nanoseconds, UTC, on this host's clock: first byte for what was sent, the read of the last for
    /// what was received.
    #[serde(serialize_with = "as_rfc3339")]
    pub timestamp: u64,
    /// Label `dc` (or `datacenter`) of the host; null if not given to its agent.
    pub datacenter: Option<&'a str>,
    /// Label `rack`.
    pub rack: Option<&'a str>,
    /// Label `node`, else the host.
    pub node: &'a str,
    /// Local port of the connection.
    pub port: u16,
    /// Host.
    pub host: &'a str,
    /// Service of the process.
    pub service: &'a str,
    /// `sent` or `received`.
    pub direction: &'static str,
    /// `request` or `response`.
    pub message: &'static str,
    /// Bytes of the message.
    pub bytes: u64,
    /// `sent 77 bytes` or `received "set a ?"`.
    pub operation: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn as_rfc3339<S: Serializer>(unix_ns: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&units::rfc3339(*unix_ns))
}

impl MessageRow<'_> {
    /// The caller as printed: `dc/rack/node:port`, without the labels that are not known.
    pub fn caller(&self) -> String {
        let labels: Vec<&str> = [self.datacenter, self.rack, Some(self.node)].into_iter().flatten().collect();
        format!("{}:{}", labels.join("/"), self.port)
    }
}

/// The messages of all spans, in the order in which they are drawn.
pub fn messages<'a>(tree: &Tree<'a>, placed: &[Placed]) -> Vec<MessageRow<'a>> {
    let mut rows: Vec<(i64, MessageRow<'a>)> = Vec::with_capacity(tree.nodes.len() * 4);
    for idx in tree.preorder() {
        let span = tree.nodes[idx].span;
        let ids = (span.trace_id.to_string(), span.span_id.to_string());
        for (side, half, shift) in [
            (Side::Client, &span.client, placed[idx].client_shift),
            (Side::Server, &span.server, placed[idx].server_shift),
        ] {
            let Some(half) = half else { continue };
            for row in of_half(&ids, side, half) {
                rows.push(((row.timestamp as i64).wrapping_add(shift.unwrap_or(0)), row));
            }
        }
    }
    rows.sort_by_key(|(drawn, _)| *drawn);
    rows.into_iter().map(|(_, row)| row).collect()
}

fn of_half<'a>(
    ids: &(String, String),
    side: Side,
    half: &'a Half,
) -> impl Iterator<Item = MessageRow<'a>> + use<'a> {
    let label =
        |names: &[&str]| names.iter().find_map(|name| half.host.labels.get(*name)).map(String::as_str);
    let t = &half.times;
    let row = |message_id: u64, timestamp: u64, direction, message, bytes, operation| MessageRow {
        trace_id: ids.0.clone(),
        span_id: ids.1.clone(),
        message_id,
        timestamp,
        datacenter: label(&["dc", "datacenter"]),
        rack: label(&["rack"]),
        node: label(&["node"]).unwrap_or(&half.host.host),
        port: half.local.port(),
        host: &half.host.host,
        service: &half.process.service,
        direction,
        message,
        bytes,
        operation,
    };
    let sent = |bytes: u64| format!("sent {bytes} bytes");
    let (request_ns, response_ns) = match side {
        Side::Client => (t.request_first_ns, t.response_read_ns.or(t.response_last_ns)),
        Side::Server => (t.request_read_ns.or(t.request_last_ns), t.response_first_ns),
    };
    let asked = if half.query_text.is_empty() { &half.operation } else { &half.query_text };
    let (request_id, response_id) = (half.request_message_id.0, half.response_message_id.0);
    let (requested, requested_as, answered, answered_as) = match side {
        Side::Client => {
            (sent(half.request_bytes), "sent", format!("received {} bytes", half.response_bytes), "received")
        }
        Side::Server => (format!("received \"{asked}\""), "received", sent(half.response_bytes), "sent"),
    };
    let request = row(
        request_id,
        request_ns.unwrap_or(t.start_ns),
        requested_as,
        "request",
        half.request_bytes,
        requested,
    );
    let response = (response_id != 0).then(|| {
        row(
            response_id,
            response_ns.unwrap_or(t.end_ns),
            answered_as,
            "response",
            half.response_bytes,
            answered,
        )
    });
    std::iter::once(request).chain(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analyse::place::place;
    use crate::testing::{T0, rpc};
    use dprof_common::model::MessageId;

    #[test]
    fn an_rpc_has_four_messages_in_causal_order_whatever_the_clocks_say() {
        let spans = [rpc(7).query("set a ?").build()];
        let tree = Tree::new(&spans);
        let rows = messages(&tree, &place(&tree));
        let shown: Vec<_> = rows
            .iter()
            .map(|row| {
                format!("{} {} {} {}", row.message_id, row.timestamp - T0, row.caller(), row.operation)
            })
            .collect();
        assert_eq!(
            shown,
            [
                "14 0 dc1/r1/n1:40001 sent 77 bytes",
                "14 5000200000 dc1/r1/n1:6379 received \"set a ?\"",
                "15 5000800000 dc1/r1/n1:6379 sent 5 bytes",
                "15 1000000 dc1/r1/n1:40001 received 5 bytes",
            ]
        );
    }

    #[test]
    fn a_request_without_answer_is_one_message() {
        let mut span = rpc(7).server_only().build();
        span.server.as_mut().expect("seen").response_message_id = MessageId(0);
        let spans = [span];
        let tree = Tree::new(&spans);
        assert_eq!(messages(&tree, &place(&tree)).len(), 1);
    }
}
