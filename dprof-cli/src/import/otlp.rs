//! OTLP JSON (`ExportTraceServiceRequest`, also a collector's file of one per line) into foreign spans.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Foreign, Found, Kind, as_text, ends, hex64, hex128};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ResourceSpans {
    #[serde(default)]
    resource: Resource,
    #[serde(default)]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Default, Deserialize)]
struct Resource {
    #[serde(default)]
    attributes: Vec<KeyValue>,
}

#[derive(Deserialize)]
struct ScopeSpans {
    #[serde(default)]
    spans: Vec<Span>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Span {
    trace_id: String,
    span_id: String,
    #[serde(default)]
    parent_span_id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    kind: serde_json::Value,
    start_time_unix_nano: serde_json::Value,
    end_time_unix_nano: serde_json::Value,
    #[serde(default)]
    attributes: Vec<KeyValue>,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
struct Status {
    #[serde(default)]
    code: serde_json::Value,
}

#[derive(Deserialize)]
struct KeyValue {
    key: String,
    #[serde(default)]
    value: serde_json::Value,
}

/// The value of `{"stringValue": …}` and its like; an array becomes its elements with spaces between.
fn value(any: &serde_json::Value) -> String {
    let Some(inner) = any.as_object().and_then(|object| object.values().next()) else { return as_text(any) };
    match inner.get("values").and_then(|values| values.as_array()) {
        Some(values) => values.iter().map(value).collect::<Vec<_>>().join(" "),
        None => as_text(inner),
    }
}

fn attributes(of: &[KeyValue], into: &mut BTreeMap<String, String>) {
    for KeyValue { key, value: any } in of {
        into.insert(key.clone(), value(any));
    }
}

/// A 64-bit number as a decimal string, as the format says, or as a number.
fn number(value: &serde_json::Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

pub(super) fn spans(resources: Vec<ResourceSpans>, found: &mut Found) {
    for resource in resources {
        let mut of_resource = BTreeMap::new();
        attributes(&resource.resource.attributes, &mut of_resource);
        for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            found.take(foreign(&span, &of_resource));
        }
    }
}

fn foreign(span: &Span, of_resource: &BTreeMap<String, String>) -> Option<Foreign> {
    let mut all = of_resource.clone();
    attributes(&span.attributes, &mut all);
    let kind = match (span.kind.as_u64(), span.kind.as_str()) {
        (Some(2), _) | (_, Some("SPAN_KIND_SERVER")) => Kind::Server,
        (Some(3), _) | (_, Some("SPAN_KIND_CLIENT")) => Kind::Client,
        (Some(4), _) | (_, Some("SPAN_KIND_PRODUCER")) => Kind::Producer,
        (Some(5), _) | (_, Some("SPAN_KIND_CONSUMER")) => Kind::Consumer,
        _ => Kind::Internal,
    };
    let (local, peer) = ends(&all, kind);
    let status = &span.status.code;
    Some(Foreign {
        trace_id: hex128(&span.trace_id)?,
        span_id: hex64(&span.span_id)?,
        parent: if span.parent_span_id.is_empty() { None } else { hex64(&span.parent_span_id) },
        kind,
        name: span.name.clone(),
        service: all.get("service.name").cloned().unwrap_or_else(|| "unknown".to_owned()),
        start_ns: number(&span.start_time_unix_nano)?,
        end_ns: number(&span.end_time_unix_nano)?,
        is_error: status.as_u64() == Some(2) || status.as_str() == Some("STATUS_CODE_ERROR"),
        attributes: all,
        local,
        peer,
    })
}
