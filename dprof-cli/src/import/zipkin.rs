//! Zipkin's v2 JSON into foreign spans.
//!
//! What a reader would get wrong: in a *shared* RPC (B3's older way) the SERVER span has the id of its CLIENT span;
//! it is given another one here and hung under it, as everyone else writes it.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Foreign, Found, Kind, address, hex64, hex128, times};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Span {
    trace_id: String,
    id: String,
    parent_id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    kind: Option<String>,
    timestamp: Option<u64>,
    duration: Option<u64>,
    #[serde(default)]
    shared: bool,
    local_endpoint: Option<Endpoint>,
    remote_endpoint: Option<Endpoint>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    service_name: Option<String>,
    ipv4: Option<String>,
    ipv6: Option<String>,
    port: Option<u16>,
}

impl Endpoint {
    fn address(&self) -> Option<std::net::SocketAddr> {
        address(self.ipv4.as_deref().or(self.ipv6.as_deref()), self.port)
    }
}

/// What tells the server's id of a shared RPC from the client's.
const SHARED_MASK: u64 = 0x9e37_79b9_7f4a_7c15;

pub(super) fn add(span: Span, found: &mut Found) {
    found.take(foreign(span));
}

fn foreign(span: Span) -> Option<Foreign> {
    let id = hex64(&span.id)?;
    let (span_id, parent) = if span.shared {
        ((id ^ SHARED_MASK).max(1), Some(id))
    } else {
        (id, span.parent_id.as_deref().and_then(hex64))
    };
    let (start_ns, end_ns) = times(&span.tags, span.timestamp?, span.duration.unwrap_or(0));
    let endpoint = |of: &Option<Endpoint>| of.as_ref().and_then(Endpoint::address);
    Some(Foreign {
        trace_id: hex128(&span.trace_id)?,
        span_id,
        parent,
        kind: match span.kind.as_deref() {
            Some("CLIENT") => Kind::Client,
            Some("SERVER") => Kind::Server,
            Some("PRODUCER") => Kind::Producer,
            Some("CONSUMER") => Kind::Consumer,
            _ => Kind::Internal,
        },
        name: span.name.unwrap_or_default(),
        service: span
            .local_endpoint
            .as_ref()
            .and_then(|end| end.service_name.clone())
            .unwrap_or_else(|| "unknown".to_owned()),
        start_ns,
        end_ns,
        is_error: span.tags.contains_key("error"),
        local: endpoint(&span.local_endpoint),
        peer: endpoint(&span.remote_endpoint),
        attributes: span.tags,
    })
}
