//! Zipkin's v2 JSON: one array of spans, ids as hex, times in whole microseconds.
//!
//! What a reader would get wrong: as in OTLP an RPC becomes a CLIENT and a SERVER span with ids of their own (not
//! Zipkin's older *shared* spans), and a duration below a microsecond is written as 1, since 0 means unknown. The
//! nanoseconds are in the tags `dprof.start_unix_ns` and `dprof.duration_ns`.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use dprof_common::model::{Half, Side, Span, SpanId};
use serde::Serialize;

use super::attributes::{attributes, times};
use super::otlp::ids;
use super::{Elements, Exporter};
use crate::analyse::row::flag_names;

/// Writes Zipkin JSON.
#[derive(Debug, Default)]
pub(crate) struct Zipkin {
    elements: Elements,
}

impl Exporter for Zipkin {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(b"[")
    }

    fn page(&mut self, spans: &[Span], out: &mut dyn Write) -> io::Result<()> {
        let by_id: HashMap<SpanId, &Span> = spans.iter().map(|span| (span.span_id, span)).collect();
        for span in spans {
            for (side, half) in [(Side::Client, &span.client), (Side::Server, &span.server)] {
                let Some(half) = half else { continue };
                self.elements.write(&zipkin_span(span, side, half, &by_id), out)?;
            }
        }
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.elements.end("]", out)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ZipkinSpan<'a> {
    trace_id: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<String>,
    name: &'a str,
    kind: &'static str,
    timestamp: u64,
    duration: u64,
    local_endpoint: Endpoint<'a>,
    remote_endpoint: Endpoint<'a>,
    tags: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    service_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<String>,
    port: u16,
}

fn endpoint(service: Option<&str>, address: SocketAddr) -> Endpoint<'_> {
    let (ipv4, ipv6) = match address.ip().to_canonical() {
        IpAddr::V4(ip) => (Some(ip.to_string()), None),
        IpAddr::V6(ip) => (None, Some(ip.to_string())),
    };
    Endpoint { service_name: service, ipv4, ipv6, port: address.port() }
}

fn zipkin_span<'a>(
    span: &'a Span,
    side: Side,
    half: &'a Half,
    by_id: &HashMap<SpanId, &Span>,
) -> ZipkinSpan<'a> {
    let (id, parent) = ids(span, side, by_id);
    let other = match side {
        Side::Client => &span.server,
        Side::Server => &span.client,
    };
    ZipkinSpan {
        trace_id: span.trace_id.to_string(),
        id: id.to_string(),
        parent_id: parent.map(|id| id.to_string()),
        name: if half.operation.is_empty() { &half.protocol } else { &half.operation },
        kind: match side {
            Side::Client => "CLIENT",
            Side::Server => "SERVER",
        },
        timestamp: half.times.start_ns / 1_000,
        duration: (half.times.duration_ns() / 1_000).max(1),
        local_endpoint: endpoint(Some(&half.process.service), half.local),
        remote_endpoint: endpoint(other.as_ref().map(|other| other.process.service.as_str()), half.peer),
        tags: tags(span, side, half),
    }
}

/// Attributes as text; also what an import needs to make the RPC again. Jaeger's spans carry the same.
pub(super) fn tags(span: &Span, side: Side, half: &Half) -> BTreeMap<String, String> {
    let mut tags: BTreeMap<String, String> = attributes(half, side)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into_owned()))
        .collect();
    let mut put = |name: &str, value: String| {
        tags.insert(name.to_owned(), value);
    };
    put("dprof.span_id", span.span_id.to_string());
    put("dprof.status", half.status.name().to_owned());
    put("dprof.start_unix_ns", half.times.start_ns.to_string());
    put("dprof.duration_ns", half.times.duration_ns().to_string());
    for (name, ns) in times(half) {
        put(&name, ns.to_string());
    }
    put("dprof.request.bytes", half.request_bytes.to_string());
    put("dprof.response.bytes", half.response_bytes.to_string());
    put("dprof.retransmits", half.retransmits.to_string());
    put("dprof.protocol", half.protocol.to_string());
    put("host.name", half.host.host.clone());
    for (name, value) in &half.host.labels {
        put(&format!("dprof.label.{name}"), value.clone());
    }
    let flags = flag_names(span);
    if !flags.is_empty() {
        put("dprof.flags", flags.join(" "));
    }
    if half.status.is_error() {
        let cause = if half.status_code.is_empty() { half.status.name() } else { &half.status_code };
        put("error", cause.to_owned());
    }
    tags
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{T0, rpc};
    use dprof_common::model::Status;
    use serde_json::Value;

    fn export(pages: &[&[Span]]) -> Value {
        let mut out = Vec::new();
        let mut exporter = Zipkin::default();
        exporter.begin(&mut out).expect("memory");
        pages.iter().for_each(|page| exporter.page(page, &mut out).expect("memory"));
        exporter.end(&mut out).expect("memory");
        serde_json::from_slice(&out).expect("JSON")
    }

    #[test]
    fn an_rpc_is_a_client_and_a_server_span() {
        let rpc = rpc(0xab).trace(0xcd).by("web").status(Status::Error).at(0, 2).build();
        let spans = export(&[&[rpc]]);
        let (client, server) = (&spans[0], &spans[1]);
        assert_eq!(client["traceId"], "000000000000000000000000000000cd");
        assert_eq!((&client["kind"], &server["kind"]), (&"CLIENT".into(), &"SERVER".into()));
        assert_eq!(server["id"], "00000000000000ab");
        assert_eq!(server["parentId"], client["id"]);
        assert_eq!(client.get("parentId"), None);
        assert_eq!((&client["timestamp"], &client["duration"]), (&(T0 / 1_000).into(), &2.into()));
        assert_eq!(
            client["localEndpoint"],
            serde_json::json!({"serviceName": "web", "ipv4": "10.0.0.1", "port": 40001})
        );
        assert_eq!(client["remoteEndpoint"]["serviceName"], "redis");
        assert_eq!((&client["tags"]["error"], &server["duration"]), (&"error".into(), &1.into()));
    }

    #[test]
    fn nothing_is_an_empty_array_and_pages_make_one() {
        assert_eq!(export(&[]), serde_json::json!([]));
        let (a, b) = ([rpc(1).build()], [rpc(2).client_only().build()]);
        assert_eq!(export(&[&a, &b]).as_array().map(Vec::len), Some(3));
    }
}
