//! Traces from elsewhere into spans: each format's file turns its JSON into [`Foreign`] spans, [`assemble`] those
//! into RPCs with two halves.
//!
//! What a reader would get wrong: other tracers write two spans per RPC, a CLIENT and a SERVER one below it; they
//! become one RPC. Spans of kind INTERNAL are no RPCs: what hangs below one hangs under the RPC above it, and one
//! without any RPC above it stands for the request.

pub(crate) mod assemble;
pub(crate) mod jaeger;
pub(crate) mod otlp;
pub(crate) mod zipkin;

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

/// What a span is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Client,
    Server,
    /// Sent, and nobody waits.
    Producer,
    Consumer,
    /// Within a process.
    Internal,
}

/// A span as any tracer writes it.
#[derive(Clone, Debug)]
pub(crate) struct Foreign {
    pub(crate) trace_id: u128,
    pub(crate) span_id: u64,
    pub(crate) parent: Option<u64>,
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) service: String,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) is_error: bool,
    /// Attributes of the span and of its resource, values as text.
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) peer: Option<SocketAddr>,
}

/// Which format a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// By its content
    Auto,
    /// OpenTelemetry's JSON
    OtlpJson,
    /// Zipkin's v2 JSON
    ZipkinJson,
    /// Jaeger's JSON
    JaegerJson,
}

/// Why a file is not understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImportError {
    #[error("is none of OTLP JSON, Zipkin JSON and Jaeger JSON: {0}")]
    Unknown(String),
    #[error("{0}")]
    Malformed(String),
}

impl From<serde_json::Error> for ImportError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// A document of any format that is an object.
#[derive(Deserialize)]
struct AnyObject {
    #[serde(rename = "resourceSpans", alias = "resource_spans")]
    otlp: Option<Vec<otlp::ResourceSpans>>,
    #[serde(rename = "data")]
    jaeger: Option<Vec<jaeger::Trace>>,
}

/// Spans of a file and how many were not understood.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) spans: Vec<Foreign>,
    pub(crate) refused: usize,
}

/// Reads a file: one document, or several after each other (collectors write one per line).
pub(crate) fn read(mut input: impl BufRead, format: Format) -> Result<Found, ImportError> {
    let first = loop {
        let buffer = input.fill_buf().map_err(|error| ImportError::Malformed(error.to_string()))?;
        match buffer.iter().position(|byte| !byte.is_ascii_whitespace()) {
            Some(at) => break buffer[at],
            None if buffer.is_empty() => return Err(ImportError::Unknown("the file is empty".to_owned())),
            None => {
                let n = buffer.len();
                input.consume(n);
            }
        }
    };
    let is_zipkin = match format {
        Format::Auto => first == b'[',
        Format::ZipkinJson => true,
        Format::OtlpJson | Format::JaegerJson => false,
    };
    let mut found = Found::default();
    if is_zipkin {
        return zipkin_documents(input, found);
    }
    for document in serde_json::Deserializer::from_reader(input).into_iter::<AnyObject>() {
        let document = document?;
        match (document.otlp, document.jaeger) {
            (Some(resources), _) if format != Format::JaegerJson => otlp::spans(resources, &mut found),
            (_, Some(traces)) if format != Format::OtlpJson => jaeger::spans(traces, &mut found),
            _ => {
                return Err(ImportError::Unknown("an object without resourceSpans and data".to_owned()));
            }
        }
    }
    Ok(found)
}

/// Zipkin's server answers arrays of spans, or arrays of traces that are arrays of spans.
fn zipkin_documents(input: impl Read, mut found: Found) -> Result<Found, ImportError> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Item {
        Span(Box<zipkin::Span>),
        Trace(Vec<zipkin::Span>),
    }
    for document in serde_json::Deserializer::from_reader(input).into_iter::<Vec<Item>>() {
        for item in document? {
            match item {
                Item::Span(span) => zipkin::add(*span, &mut found),
                Item::Trace(spans) => spans.into_iter().for_each(|span| zipkin::add(span, &mut found)),
            }
        }
    }
    Ok(found)
}

impl Found {
    /// Takes a span, or counts it if its ids are not ids.
    fn take(&mut self, span: Option<Foreign>) {
        match span {
            Some(span) if span.trace_id != 0 && span.span_id != 0 => self.spans.push(span),
            _ => self.refused += 1,
        }
    }
}

/// An id of up to 32 digits; longer ones keep the digits on the right, as Zipkin does with 128-bit ids.
fn hex128(text: &str) -> Option<u128> {
    let digits = text.get(text.len().saturating_sub(32)..)?;
    u128::from_str_radix(digits, 16).ok()
}

fn hex64(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

fn address(ip: Option<&str>, port: Option<u16>) -> Option<SocketAddr> {
    let ip: IpAddr = ip?.parse().ok()?;
    Some(SocketAddr::new(ip, port.unwrap_or(0)))
}

/// Addresses of this end and of the other one, as OpenTelemetry's attributes say them.
fn ends(attributes: &BTreeMap<String, String>, kind: Kind) -> (Option<SocketAddr>, Option<SocketAddr>) {
    let at = |prefix: &str| {
        let port = attributes.get(&format!("{prefix}.port")).and_then(|port| port.parse().ok());
        address(attributes.get(&format!("{prefix}.address")).map(String::as_str), port)
    };
    let (local, other) = match kind {
        Kind::Server | Kind::Consumer => (at("server"), at("client")),
        _ => (at("client"), at("server")),
    };
    (local, at("network.peer").or(other))
}

/// A JSON value as text.
fn as_text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Microseconds to nanoseconds; dprof's own exports say the nanoseconds in an attribute.
fn times(attributes: &BTreeMap<String, String>, start_us: u64, duration_us: u64) -> (u64, u64) {
    let exact = |name: &str| attributes.get(name).and_then(|text| text.parse::<u64>().ok());
    let start_ns = exact("dprof.start_unix_ns")
        .filter(|ns| ns / 1_000 == start_us)
        .unwrap_or_else(|| start_us.saturating_mul(1_000));
    let duration_ns = exact("dprof.duration_ns")
        .filter(|ns| (ns / 1_000).max(1) == duration_us.max(1))
        .unwrap_or_else(|| duration_us.saturating_mul(1_000));
    (start_ns, start_ns.saturating_add(duration_ns))
}
