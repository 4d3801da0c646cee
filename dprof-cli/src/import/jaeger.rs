//! Jaeger's JSON (what its UI saves and `/api/traces` answers) into foreign spans.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::{Foreign, Found, Kind, as_text, ends, hex64, hex128, times};

#[derive(Deserialize)]
pub(super) struct Trace {
    #[serde(default)]
    spans: Vec<Span>,
    #[serde(default)]
    processes: HashMap<String, Process>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Span {
    #[serde(rename = "traceID")]
    trace_id: String,
    #[serde(rename = "spanID")]
    span_id: String,
    #[serde(default)]
    operation_name: String,
    #[serde(default)]
    references: Vec<Reference>,
    start_time: u64,
    duration: u64,
    #[serde(default)]
    tags: Vec<Tag>,
    #[serde(rename = "processID", default)]
    process_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    ref_type: String,
    #[serde(rename = "spanID")]
    span_id: String,
}

#[derive(Deserialize)]
struct Tag {
    key: String,
    value: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    #[serde(default)]
    service_name: String,
    #[serde(default)]
    tags: Vec<Tag>,
}

pub(super) fn spans(traces: Vec<Trace>, found: &mut Found) {
    for trace in traces {
        for span in &trace.spans {
            found.take(foreign(span, trace.processes.get(&span.process_id)));
        }
    }
}

fn foreign(span: &Span, process: Option<&Process>) -> Option<Foreign> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let of_process = process.map_or(&[][..], |process| &process.tags);
    for Tag { key, value } in of_process.iter().chain(&span.tags) {
        all.insert(key.clone(), as_text(value));
    }
    // What the process says of its machine goes by OpenTelemetry's name.
    if let Some(host) = all.get("hostname").or(all.get("ip")).cloned() {
        all.entry("host.name".to_owned()).or_insert(host);
    }
    if let Some(pid) = all.get("pid").cloned() {
        all.entry("process.pid".to_owned()).or_insert(pid);
    }
    let (start_ns, end_ns) = times(&all, span.start_time, span.duration);
    // A child of several is shown under the first; what merely follows is a cause as well.
    let parent = [Some("CHILD_OF"), None]
        .into_iter()
        .find_map(|kind| span.references.iter().find(|r| kind.is_none_or(|kind| r.ref_type == kind)))
        .and_then(|reference| hex64(&reference.span_id));
    let kind = match all.get("span.kind").map(String::as_str) {
        Some("client") => Kind::Client,
        Some("server") => Kind::Server,
        Some("producer") => Kind::Producer,
        Some("consumer") => Kind::Consumer,
        _ => Kind::Internal,
    };
    let (local, peer) = ends(&all, kind);
    Some(Foreign {
        trace_id: hex128(&span.trace_id)?,
        span_id: hex64(&span.span_id)?,
        parent,
        kind,
        name: span.operation_name.clone(),
        service: process.map_or_else(|| "unknown".to_owned(), |process| process.service_name.clone()),
        start_ns,
        end_ns,
        is_error: all.get("error").is_some_and(|value| value != "false"),
        local,
        peer,
        attributes: all,
    })
}
