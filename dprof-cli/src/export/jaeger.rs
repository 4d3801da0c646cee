//! Jaeger's JSON, as its UI loads and saves it: whole traces, each with its processes; times in microseconds.
//!
//! What a reader would get wrong: a page is one whole trace, since the UI takes a trace that comes twice for two.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};

use dprof_common::model::{Half, Side, Span, SpanId};
use serde::Serialize;

use super::otlp::ids;
use super::zipkin::tags;
use super::{Elements, Exporter};

/// Writes Jaeger JSON.
#[derive(Debug, Default)]
pub(crate) struct Jaeger {
    elements: Elements,
}

impl Exporter for Jaeger {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(b"{\"data\":[")
    }

    fn page(&mut self, spans: &[Span], out: &mut dyn Write) -> io::Result<()> {
        let Some(trace) = trace(spans) else { return Ok(()) };
        self.elements.write(&trace, out)?;
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.elements.end("]}", out)
    }

    fn wants_whole_traces(&self) -> bool {
        true
    }
}

#[derive(Serialize)]
struct JaegerTrace<'a> {
    #[serde(rename = "traceID")]
    trace_id: String,
    spans: Vec<JaegerSpan<'a>>,
    processes: BTreeMap<String, Process<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JaegerSpan<'a> {
    #[serde(rename = "traceID")]
    trace_id: String,
    #[serde(rename = "spanID")]
    span_id: String,
    operation_name: &'a str,
    references: Vec<Reference>,
    start_time: u64,
    duration: u64,
    tags: Vec<Tag>,
    logs: [(); 0],
    #[serde(rename = "processID")]
    process_id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    ref_type: &'static str,
    #[serde(rename = "traceID")]
    trace_id: String,
    #[serde(rename = "spanID")]
    span_id: String,
}

#[derive(Serialize)]
struct Tag {
    key: String,
    #[serde(rename = "type")]
    kind: &'static str,
    value: serde_json::Value,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Process<'a> {
    service_name: &'a str,
    tags: Vec<Tag>,
}

fn text(key: &str, value: &str) -> Tag {
    Tag { key: key.to_owned(), kind: "string", value: value.into() }
}

fn trace(spans: &[Span]) -> Option<JaegerTrace<'_>> {
    let trace_id = spans.first()?.trace_id.to_string();
    let by_id: HashMap<SpanId, &Span> = spans.iter().map(|span| (span.span_id, span)).collect();
    let mut process_ids: HashMap<(&str, u32, &str), String> = HashMap::new();
    let mut processes = BTreeMap::new();
    let mut all = Vec::new();
    for span in spans {
        for (side, half) in [(Side::Client, &span.client), (Side::Server, &span.server)] {
            let Some(half) = half else { continue };
            let key = (half.host.host.as_str(), half.process.pid, half.process.service.as_str());
            let next = format!("p{}", process_ids.len() + 1);
            let process_id = process_ids.entry(key).or_insert(next).clone();
            processes.entry(process_id.clone()).or_insert_with(|| process(half));
            all.push(jaeger_span(span, side, half, &trace_id, process_id, &by_id));
        }
    }
    Some(JaegerTrace { trace_id, spans: all, processes })
}

fn process(half: &Half) -> Process<'_> {
    let tags = vec![
        text("hostname", &half.host.host),
        Tag { key: "pid".to_owned(), kind: "int64", value: half.process.pid.into() },
    ];
    Process { service_name: &half.process.service, tags }
}

fn jaeger_span<'a>(
    span: &'a Span,
    side: Side,
    half: &'a Half,
    trace_id: &str,
    process_id: String,
    by_id: &HashMap<SpanId, &Span>,
) -> JaegerSpan<'a> {
    let (id, parent) = ids(span, side, by_id);
    let mut all: Vec<Tag> = vec![text("span.kind", side.name())];
    for (key, value) in tags(span, side, half) {
        // The UI colours a span by the boolean.
        all.push(if key == "error" {
            Tag { key, kind: "bool", value: true.into() }
        } else {
            Tag { key, kind: "string", value: value.into() }
        });
    }
    JaegerSpan {
        trace_id: trace_id.to_owned(),
        span_id: id.to_string(),
        operation_name: if half.operation.is_empty() { &half.protocol } else { &half.operation },
        references: parent
            .map(|id| Reference {
                ref_type: "CHILD_OF",
                trace_id: trace_id.to_owned(),
                span_id: id.to_string(),
            })
            .into_iter()
            .collect(),
        start_time: half.times.start_ns / 1_000,
        duration: half.times.duration_ns() / 1_000,
        tags: all,
        logs: [],
        process_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;

    #[test]
    fn each_page_is_a_trace_with_its_processes() {
        let spans = [rpc(1).of("web", "GET /").by("curl").build(), rpc(2).under(1).by("web").build()];
        let mut out = Vec::new();
        let mut exporter = Jaeger::default();
        exporter.begin(&mut out).expect("memory");
        exporter.page(&spans, &mut out).expect("memory");
        exporter.page(&[rpc(3).trace(3).build()], &mut out).expect("memory");
        exporter.end(&mut out).expect("memory");
        let document: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(document["data"].as_array().map(Vec::len), Some(2));
        let trace = &document["data"][0];
        assert_eq!(trace["traceID"], format!("{:032x}", 1));
        assert_eq!(trace["spans"].as_array().map(Vec::len), Some(4));
        let call = &trace["spans"][2];
        assert_eq!(call["references"][0]["spanID"], "0000000000000001");
        let process = &trace["processes"][call["processID"].as_str().expect("text")];
        assert_eq!(process["serviceName"], "web");
        assert_eq!((&call["duration"], &call["operationName"]), (&1_000.into(), &"GET".into()));
        assert!(exporter.wants_whole_traces());
    }
}
