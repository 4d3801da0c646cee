//! OpenTelemetry's JSON encoding of traces (OTLP 1.x, `ExportTraceServiceRequest`): ids as hex, 64-bit integers
//! as decimal strings, enums as numbers.
//!
//! An RPC becomes a CLIENT and a SERVER span, of the halves that were seen. The SERVER span keeps the RPC's id;
//! the CLIENT span's is [`client_span_id`], so that any export of the RPC gives the same two ids. Parents:
//! SERVER under its CLIENT, CLIENT under the SERVER span of the RPC that caused it. Spans of a page are grouped
//! by process; a process comes again in later pages, which the format allows.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use dprof_common::model::{Half, Link, ProcessInfo, RootKind, Side, Span, SpanId, split};
use serde::Serialize;

use super::attributes::{attributes, is_integer, times};
use super::{Elements, Exporter};
use crate::analyse::row::flag_names;

/// Id of the CLIENT span of the RPC `id`: splitmix64's finaliser of its complement, a bijection; never 0, never
/// `id`.
pub(crate) fn client_span_id(id: SpanId) -> SpanId {
    let mut z = !id.0;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    if z == 0 || z == id.0 { SpanId(!id.0 | 1) } else { SpanId(z) }
}

/// Writes OTLP JSON.
#[derive(Debug, Default)]
pub(crate) struct Otlp {
    elements: Elements,
}

impl Exporter for Otlp {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(b"{\"resourceSpans\":[")
    }

    fn page(&mut self, spans: &[Span], out: &mut dyn Write) -> io::Result<()> {
        for resource in resources(spans) {
            self.elements.write(&resource, out)?;
        }
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.elements.end("]}", out)
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceSpans<'a> {
    resource: Resource<'a>,
    scope_spans: [ScopeSpans<'a>; 1],
}

#[derive(Debug, Serialize)]
struct Resource<'a> {
    attributes: Vec<KeyValue<'a>>,
}

#[derive(Debug, Serialize)]
struct ScopeSpans<'a> {
    scope: Scope,
    spans: Vec<OtlpSpan<'a>>,
}

#[derive(Debug, Serialize)]
struct Scope {
    name: &'static str,
    version: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OtlpSpan<'a> {
    trace_id: String,
    span_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    parent_span_id: String,
    name: &'a str,
    /// 2 SERVER, 3 CLIENT.
    kind: u8,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    attributes: Vec<KeyValue<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    links: Vec<OtlpLink>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<OtlpStatus<'a>>,
}

/// A further cause of a call that serves several requests.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct OtlpLink {
    trace_id: String,
    span_id: String,
}

#[derive(Debug, Serialize)]
struct OtlpStatus<'a> {
    /// 2 = error.
    code: u8,
    message: &'a str,
}

#[derive(Debug, Serialize)]
struct KeyValue<'a> {
    key: Cow<'a, str>,
    value: Value<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
enum Value<'a> {
    #[serde(rename = "stringValue")]
    Text(Cow<'a, str>),
    #[serde(rename = "intValue")]
    Int(String),
    #[serde(rename = "boolValue")]
    Bool(bool),
    #[serde(rename = "doubleValue")]
    Double(f64),
    #[serde(rename = "arrayValue")]
    Texts { values: Vec<Value<'a>> },
}

fn text<'a>(key: impl Into<Cow<'a, str>>, value: impl Into<Cow<'a, str>>) -> KeyValue<'a> {
    KeyValue { key: key.into(), value: Value::Text(value.into()) }
}

#[expect(clippy::needless_pass_by_value, reason = "numbers; a reference would only clutter the calls")]
fn int(key: &str, value: impl ToString) -> KeyValue<'_> {
    KeyValue { key: key.into(), value: Value::Int(value.to_string()) }
}

/// What makes a process the same: host, process, labels.
type ResourceKey<'a> = (&'a str, &'a ProcessInfo, &'a BTreeMap<String, String>);

fn resources(spans: &[Span]) -> Vec<ResourceSpans<'_>> {
    let by_id: HashMap<SpanId, &Span> = spans.iter().map(|span| (span.span_id, span)).collect();
    let mut groups: BTreeMap<ResourceKey<'_>, Vec<OtlpSpan<'_>>> = BTreeMap::new();
    for span in spans {
        for (side, half) in [(Side::Client, &span.client), (Side::Server, &span.server)] {
            let Some(half) = half else { continue };
            let key = (half.host.host.as_str(), &*half.process, &half.host.labels);
            groups.entry(key).or_default().push(otlp_span(span, side, half, &by_id));
        }
    }
    groups
        .into_iter()
        .map(|(key, spans)| ResourceSpans {
            resource: Resource { attributes: resource_attributes(key) },
            scope_spans: [ScopeSpans {
                scope: Scope { name: "dprof", version: env!("CARGO_PKG_VERSION") },
                spans,
            }],
        })
        .collect()
}

fn resource_attributes((host, process, labels): ResourceKey<'_>) -> Vec<KeyValue<'_>> {
    let mut attributes = vec![
        text("service.name", process.service.as_str()),
        text("host.name", host),
        int("process.pid", process.pid),
        text("process.executable.name", process.comm.as_str()),
    ];
    attributes.extend(process.container.as_deref().map(|id| text("container.id", id)));
    attributes.extend(labels.iter().map(|(name, value)| text(format!("dprof.label.{name}"), value.as_str())));
    attributes
}

/// Id of the exported span that stands for the request `cause`: a link names the request that the caller was
/// serving, so its server half exists; only a page that shows otherwise is believed.
fn name_of(cause: SpanId, by_id: &HashMap<SpanId, &Span>) -> SpanId {
    match by_id.get(&cause) {
        Some(parent) if parent.server.is_none() => client_span_id(cause),
        _ => cause,
    }
}

/// Further causes of the exported span of one end, told once. A link of OTLP names a trace, and only a span of this
/// page is known to be in one.
fn further_links(span: &Span, side: Side, by_id: &HashMap<SpanId, &Span>) -> Vec<OtlpLink> {
    if side == Side::Server && span.client.is_some() {
        return Vec::new();
    }
    let named = |link: &Link| {
        let trace_id = by_id.get(&link.parent)?.trace_id.to_string();
        Some(OtlpLink { trace_id, span_id: name_of(link.parent, by_id).to_string() })
    };
    span.further_links.iter().filter_map(named).collect()
}

/// Ids of the exported span of one end, and of its parent.
pub(super) fn ids(span: &Span, side: Side, by_id: &HashMap<SpanId, &Span>) -> (SpanId, Option<SpanId>) {
    let cause = span.link.map(|link| name_of(link.parent, by_id));
    match side {
        Side::Client => (client_span_id(span.span_id), cause),
        Side::Server if span.client.is_some() => (span.span_id, Some(client_span_id(span.span_id))),
        Side::Server => (span.span_id, cause),
    }
}

fn otlp_span<'a>(span: &'a Span, side: Side, half: &'a Half, by_id: &HashMap<SpanId, &Span>) -> OtlpSpan<'a> {
    let (span_id, parent) = ids(span, side, by_id);
    let failed = half.status.is_error();
    OtlpSpan {
        trace_id: span.trace_id.to_string(),
        span_id: span_id.to_string(),
        parent_span_id: parent.map_or(String::new(), |id| id.to_string()),
        name: if half.operation.is_empty() { &half.protocol } else { &half.operation },
        kind: match side {
            Side::Server => 2,
            Side::Client => 3,
        },
        start_time_unix_nano: half.times.start_ns.to_string(),
        end_time_unix_nano: half.times.end_ns.max(half.times.start_ns).to_string(),
        attributes: span_attributes(span, side, half),
        links: further_links(span, side, by_id),
        status: failed.then(|| OtlpStatus {
            code: 2,
            message: if half.status_code.is_empty() { half.status.name() } else { &half.status_code },
        }),
    }
}

fn span_attributes<'a>(span: &'a Span, side: Side, half: &'a Half) -> Vec<KeyValue<'a>> {
    let mut all: Vec<KeyValue<'a>> = attributes(half, side)
        .into_iter()
        .map(|(name, value)| match value.parse::<i64>() {
            Ok(number) if is_integer(name) => int(name, number),
            _ => text(name, value),
        })
        .collect();
    all.push(text("dprof.span_id", span.span_id.to_string()));
    all.push(text("dprof.status", half.status.name()));
    all.push(int("dprof.request.bytes", half.request_bytes));
    all.push(int("dprof.response.bytes", half.response_bytes));
    all.push(int("dprof.request.message_id", half.request_message_id.0));
    all.push(int("dprof.response.message_id", half.response_message_id.0));
    all.push(int("dprof.batch", half.batch));
    all.push(int("dprof.retransmits", half.retransmits));
    all.push(int("thread.id", half.tid));
    if half.srtt_us > 0 {
        all.push(int("dprof.srtt_us", half.srtt_us));
    }
    all.extend(half.connect_ns.map(|ns| int("dprof.connect_ns", ns)));
    all.extend(
        times(half).map(|(name, ns)| KeyValue { key: name.into(), value: Value::Int(ns.to_string()) }),
    );
    split_attributes(span, &mut all);
    if let Some(link) = span.link {
        all.push(text("dprof.link.evidence", link.evidence.name()));
        all.extend(link.confidence.map(|confidence| KeyValue {
            key: "dprof.link.confidence".into(),
            value: Value::Double(f64::from(confidence)),
        }));
    }
    if !span.further_links.is_empty() {
        let values =
            span.further_links.iter().map(|link| Value::Text(link.parent.to_string().into())).collect();
        all.push(KeyValue { key: "dprof.link.further_parents".into(), value: Value::Texts { values } });
    }
    all.extend(span.root.map(|root: RootKind| text("dprof.root", root.name())));
    let flags = flag_names(span);
    if !flags.is_empty() {
        let values = flags.into_iter().map(|name| Value::Text(name.into())).collect();
        all.push(KeyValue { key: "dprof.flags".into(), value: Value::Texts { values } });
    }
    all.push(KeyValue { key: "dprof.probability".into(), value: Value::Double(span.probability) });
    all.push(text("dprof.keep_reason", span.reason.name()));
    all
}

/// The split belongs to the RPC, so both of its spans carry it.
fn split_attributes(span: &Span, all: &mut Vec<KeyValue<'_>>) {
    let split = split(span);
    for (name, ns) in split.parts() {
        all.push(KeyValue {
            key: format!("dprof.split.{name}_ns").into(),
            value: Value::Int(ns.to_string()),
        });
    }
    all.push(int("dprof.split.remainder_ns", split.remainder_ns));
    all.push(KeyValue { key: "dprof.split.approximate".into(), value: Value::Bool(split.approximate) });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{T0, rpc};
    use dprof_common::model::{HalfFlags, Status};
    use serde_json::Value as Json;

    fn export(pages: &[&[Span]]) -> Json {
        let mut out = Vec::new();
        let mut otlp = Otlp::default();
        otlp.begin(&mut out).expect("memory");
        for page in pages {
            otlp.page(page, &mut out).expect("memory");
        }
        otlp.end(&mut out).expect("memory");
        serde_json::from_slice(&out).expect("json")
    }

    /// All spans with the service of their resource.
    fn spans(document: &Json) -> Vec<(String, Json)> {
        let mut spans = Vec::new();
        for resource in document["resourceSpans"].as_array().expect("an array") {
            let service = attribute(&resource["resource"], "service.name")["stringValue"].clone();
            for span in resource["scopeSpans"][0]["spans"].as_array().expect("an array") {
                spans.push((service.as_str().expect("text").to_owned(), span.clone()));
            }
        }
        spans
    }

    fn attribute<'a>(of: &'a Json, key: &str) -> &'a Json {
        let attributes = of["attributes"].as_array().expect("an array");
        attributes
            .iter()
            .find(|attribute| attribute["key"] == key)
            .map_or(&Json::Null, |found| &found["value"])
    }

    #[test]
    fn nothing_is_an_empty_document() {
        assert_eq!(export(&[]), serde_json::json!({ "resourceSpans": [] }));
    }

    #[test]
    fn an_rpc_is_a_client_and_a_server_span() {
        let rpc = rpc(0xab).trace(0xcd).by("web").query("get a").build();
        let document = export(&[&[rpc]]);
        let all = spans(&document);
        let (service, client) = all.iter().find(|(service, _)| service == "web").expect("there");
        assert_eq!((service.as_str(), &client["kind"]), ("web", &3.into()));
        let (_, server) = all.iter().find(|(service, _)| service == "redis").expect("there");
        assert_eq!(server["kind"], 2);
        assert_eq!(server["traceId"], "000000000000000000000000000000cd");
        assert_eq!(server["spanId"], "00000000000000ab");
        assert_eq!(server["parentSpanId"], client["spanId"]);
        assert_ne!(server["spanId"], client["spanId"]);
        assert_eq!(client.get("parentSpanId"), None);
        assert_eq!(client["name"], "GET");
        assert_eq!(client["startTimeUnixNano"], T0.to_string());
        assert_eq!(client["endTimeUnixNano"], (T0 + 1_000_000).to_string());
        assert_eq!(client.get("status"), None);
        assert_eq!(attribute(client, "db.system.name")["stringValue"], "redis");
        assert_eq!(attribute(client, "db.query.text")["stringValue"], "get a");
        assert_eq!(attribute(client, "server.port")["intValue"], "6379");
        assert_eq!(attribute(client, "dprof.split.network_ns")["intValue"], "160000");
        assert_eq!(attribute(client, "dprof.split.approximate")["boolValue"], false);
        assert_eq!(attribute(client, "dprof.request.bytes")["intValue"], "77");
        assert_eq!(attribute(server, "dprof.probability")["doubleValue"], 1.0);
        assert_eq!(attribute(server, "dprof.root")["stringValue"], "edge");
        let resource = &document["resourceSpans"][0]["resource"];
        assert_eq!(attribute(resource, "process.pid")["intValue"], "42");
        assert_eq!(attribute(resource, "dprof.label.rack")["stringValue"], "r1");
        assert!(attribute(resource, "host.name")["stringValue"].is_string());
        assert_eq!(document["resourceSpans"][0]["scopeSpans"][0]["scope"]["name"], "dprof");
    }

    /// Parent of the CLIENT (or only) span of RPC 2, which RPC 1 caused.
    #[track_caller]
    fn check_parent(page: &[Span], expected: SpanId) {
        let document = export(&[page]);
        let ids = [client_span_id(SpanId(2)).to_string(), "0000000000000002".to_owned()];
        let span =
            ids.iter().find_map(|id| spans(&document).into_iter().find(|(_, span)| span["spanId"] == **id));
        assert_eq!(span.expect("there").1["parentSpanId"], expected.to_string());
    }

    #[test]
    fn a_call_hangs_under_the_server_span_of_its_cause() {
        let call = || rpc(2).under(1);
        check_parent(&[rpc(1).build(), call().build()], SpanId(1));
        check_parent(&[call().build()], SpanId(1));
        check_parent(&[rpc(1).client_only().build(), call().build()], client_span_id(SpanId(1)));
        check_parent(&[rpc(1).build(), call().server_only().build()], SpanId(1));
    }

    #[test]
    fn a_batch_has_a_parent_and_links_to_the_other_causes_of_the_page() {
        let batch = rpc(3).under(1).and_under(2).and_under(9);
        let document = export(&[&[rpc(1).build(), rpc(2).trace(2).build(), batch.build()]]);
        let of_three = |kind: u64| {
            spans(&document)
                .into_iter()
                .find(|(_, span)| {
                    attribute(span, "dprof.span_id")["stringValue"] == SpanId(3).to_string()
                        && span["kind"] == kind
                })
                .expect("there")
                .1
        };
        let client = of_three(3);
        assert_eq!(client["parentSpanId"], SpanId(1).to_string());
        let link = serde_json::json!([{ "traceId": format!("{:032x}", 2), "spanId": SpanId(2).to_string() }]);
        assert_eq!(client["links"], link);
        let further = &attribute(&client, "dprof.link.further_parents")["arrayValue"]["values"];
        assert_eq!(further.as_array().map(Vec::len), Some(2));
        assert_eq!(of_three(2).get("links"), None);
    }

    #[test]
    fn failures_doubts_and_links_are_told() {
        let mut rpc = rpc(2).under(1).client_only().status(Status::Reset).build();
        rpc.client.as_mut().expect("seen").flags = HalfFlags::INCOMPLETE;
        let document = export(&[&[rpc]]);
        let span = &spans(&document)[0].1;
        assert_eq!(span["status"], serde_json::json!({ "code": 2, "message": "reset" }));
        assert_eq!(attribute(span, "error.type")["stringValue"], "reset");
        assert_eq!(
            *attribute(span, "dprof.flags"),
            serde_json::json!({ "arrayValue": { "values": [{ "stringValue": "incomplete" }] } })
        );
        assert_eq!(attribute(span, "dprof.link.evidence")["stringValue"], "same_thread");
        let confidence = attribute(span, "dprof.link.confidence")["doubleValue"].as_f64().expect("a number");
        assert!((confidence - 0.98).abs() < 1e-6);
    }

    #[test]
    fn pages_make_one_document() {
        let (first, second) = ([rpc(1).build()], [rpc(2).build(), rpc(3).build()]);
        assert_eq!(spans(&export(&[&first, &second])).len(), 6);
    }

    #[test]
    fn client_ids_differ_from_server_ids_and_from_zero() {
        for id in (1..10_000).chain([u64::MAX, u64::MAX - 1, 1 << 63]) {
            let client = client_span_id(SpanId(id));
            assert!(client.0 != 0 && client.0 != id, "{id:x}");
        }
        // Part of the format: an export of another day gives the same ids.
        assert_eq!(client_span_id(SpanId(1)), client_span_id(SpanId(1)));
    }

    /// The published messages read it, and as protobuf it is the same again.
    #[test]
    fn the_published_protobuf_messages_read_every_field() {
        use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
        use prost::Message;
        let mut failed = rpc(2).under(1).client_only().status(Status::Reset).build();
        failed.client.as_mut().expect("seen").flags = HalfFlags::INCOMPLETE;
        let document = export(&[&[rpc(1).query("get a").build(), failed]]);
        let request: ExportTraceServiceRequest =
            serde_json::from_value(document.clone()).expect("the published JSON mapping");
        let bytes = request.encode_to_vec();
        let again = ExportTraceServiceRequest::decode(bytes.as_slice()).expect("protobuf");
        assert_eq!(again, request);
        let read: usize =
            again.resource_spans.iter().flat_map(|r| &r.scope_spans).map(|s| s.spans.len()).sum();
        assert_eq!(read, spans(&document).len());
        for resource in &again.resource_spans {
            assert!(
                resource.resource.as_ref().is_some_and(|r| r.attributes.iter().all(|a| a.value.is_some()))
            );
            for span in resource.scope_spans.iter().flat_map(|scope| &scope.spans) {
                assert_eq!((span.trace_id.len(), span.span_id.len()), (16, 8));
                assert!([0, 8].contains(&span.parent_span_id.len()));
                assert!([2, 3].contains(&span.kind) && span.start_time_unix_nano >= T0);
                assert!(span.end_time_unix_nano >= span.start_time_unix_nano && !span.name.is_empty());
                let has_value = |a: &opentelemetry_proto::tonic::common::v1::KeyValue| {
                    a.value.as_ref().is_some_and(|v| v.value.is_some())
                };
                assert!(span.attributes.len() > 10 && span.attributes.iter().all(has_value), "{span:?}");
            }
        }
    }
}
