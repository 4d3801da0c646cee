//! Foreign spans into RPCs: a CLIENT span and the SERVER span below it become the two halves of one.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use dprof_common::model::{
    EvidenceKind, Half, HalfFlags, HalfTimes, HostInfo, KeepReason, Link, MessageId, ProcessInfo, RootKind,
    RunId, Side, Span, SpanFlags, SpanId, Status, TraceId,
};

use super::{Foreign, Kind};

/// An address that no import knows.
const NO_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Spans of the same trace and id in one index.
type Index<'a> = HashMap<(u128, u64), &'a Foreign>;

impl Foreign {
    const fn is_calling(&self) -> bool {
        matches!(self.kind, Kind::Client | Kind::Producer)
    }

    const fn is_serving(&self) -> bool {
        matches!(self.kind, Kind::Server | Kind::Consumer)
    }
}

/// The RPCs of `spans`, as run `run_id` would have stored them.
pub(crate) fn assemble(spans: &[Foreign], run_id: RunId) -> Vec<Span> {
    let index: Index<'_> = spans.iter().map(|span| ((span.trace_id, span.span_id), span)).collect();
    // Which call each SERVER span answers; a call retried below one CLIENT span is answered once.
    let mut answered: HashMap<(u128, u64), &Foreign> = HashMap::new();
    let mut paired: HashSet<(u128, u64)> = HashSet::new();
    for span in spans.iter().filter(|span| span.is_serving()) {
        let Some(parent) = span.parent else { continue };
        let key = (span.trace_id, parent);
        if index.get(&key).is_some_and(|parent| parent.is_calling()) && !answered.contains_key(&key) {
            answered.insert(key, span);
            paired.insert((span.trace_id, span.span_id));
        }
    }
    let mut maker = Maker { run_id, hosts: HashMap::new(), processes: HashMap::new(), message: 0 };
    let rpc_id = |span: &Foreign| match answered.get(&(span.trace_id, span.span_id)) {
        Some(server) => own_id(server),
        None => own_id(span),
    };
    let mut rpcs = Vec::new();
    let mut seen = HashSet::new();
    for span in spans {
        if !seen.insert((span.trace_id, span.span_id)) || paired.contains(&(span.trace_id, span.span_id)) {
            continue;
        }
        let cause = cause(span, &index);
        let is_root_of_its_own = span.kind == Kind::Internal && cause.is_none();
        if span.kind == Kind::Internal && !is_root_of_its_own {
            continue;
        }
        let (client, server) = if span.is_calling() {
            let server = answered.get(&(span.trace_id, span.span_id)).copied();
            (Some(maker.half(span, Side::Client)), server.map(|server| maker.half(server, Side::Server)))
        } else {
            (None, Some(maker.half(span, Side::Server)))
        };
        let link = cause.map(|cause| Link {
            parent: match cause {
                Cause::Known(parent) => rpc_id(parent),
                Cause::Missing(id) => SpanId(id),
            },
            evidence: EvidenceKind::ExplicitId,
            confidence: Some(1.0),
        });
        let mut flags = SpanFlags::default();
        let is_said_detached =
            span.attributes.get("dprof.flags").is_some_and(|flags| flags.contains("detached"));
        if is_said_detached || matches!(span.kind, Kind::Producer | Kind::Consumer) {
            flags.insert(SpanFlags::DETACHED);
        }
        rpcs.push(Span {
            trace_id: TraceId(span.trace_id),
            span_id: rpc_id(span),
            link,
            further_links: Vec::new(),
            root: link.is_none().then_some(RootKind::Edge),
            flags,
            probability: 1.0,
            reason: KeepReason::Ratio,
            client,
            server,
        });
    }
    rpcs
}

/// The id that dprof gave the RPC, if it wrote the span.
fn own_id(span: &Foreign) -> SpanId {
    let said = span.attributes.get("dprof.span_id").and_then(|id| id.parse().ok());
    said.unwrap_or(SpanId(span.span_id))
}

enum Cause<'a> {
    Known(&'a Foreign),
    /// It was not in the file.
    Missing(u64),
}

/// The RPC above, past spans of kind INTERNAL; one of those without anything above stands for the request.
fn cause<'a>(span: &Foreign, index: &Index<'a>) -> Option<Cause<'a>> {
    let mut at = span.parent?;
    let mut seen = HashSet::new();
    loop {
        if at == 0 || at == span.span_id || !seen.insert(at) {
            return None;
        }
        let Some(parent) = index.get(&(span.trace_id, at)) else { return Some(Cause::Missing(at)) };
        match (parent.kind, parent.parent) {
            (Kind::Internal, Some(above)) => at = above,
            _ => return Some(Cause::Known(parent)),
        }
    }
}

struct Maker {
    run_id: RunId,
    hosts: HashMap<(String, BTreeMap<String, String>), Arc<HostInfo>>,
    processes: HashMap<(u32, String), Arc<ProcessInfo>>,
    message: u64,
}

impl Maker {
    fn half(&mut self, span: &Foreign, side: Side) -> Half {
        let text = |name: &str| span.attributes.get(name).filter(|text| !text.is_empty()).cloned();
        let number = |name: &str| text(name).and_then(|text| text.parse::<u64>().ok());
        self.message += 2;
        Half {
            host: self.host(span),
            process: self.process(span),
            tid: 0,
            local: span.local.unwrap_or(NO_ADDRESS),
            peer: span.peer.unwrap_or(NO_ADDRESS),
            netns: 0,
            tuple_key: 0,
            protocol: protocol(span).into(),
            operation: if span.name.is_empty() { "unknown".to_owned() } else { span.name.clone() },
            query_text: text("db.query.text").or(text("db.statement")).unwrap_or_default(),
            status: status(span),
            status_code: [
                "error.type",
                "http.response.status_code",
                "http.status_code",
                "db.response.status_code",
            ]
            .into_iter()
            .find_map(text)
            .filter(|_| span.is_error)
            .unwrap_or_default(),
            attributes: attributes(span),
            times: times(span, side),
            request_bytes: number("dprof.request.bytes").unwrap_or(0),
            response_bytes: number("dprof.response.bytes").unwrap_or(0),
            request_message_id: MessageId(self.message),
            response_message_id: MessageId(self.message + 1),
            batch: 1,
            flags: doubts(span),
            retransmits: number("dprof.retransmits").unwrap_or(0) as u32,
            srtt_us: 0,
            connect_ns: None,
        }
    }

    fn host(&mut self, span: &Foreign) -> Arc<HostInfo> {
        let name = ["host.name", "k8s.node.name", "k8s.pod.name", "service.instance.id"]
            .into_iter()
            .find_map(|key| span.attributes.get(key).cloned())
            .or_else(|| span.local.map(|local| local.ip().to_string()))
            .unwrap_or_else(|| span.service.clone());
        let labels: BTreeMap<String, String> = span
            .attributes
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("dprof.label.")?.to_owned(), value.clone())))
            .collect();
        let run_id = self.run_id;
        let made = self
            .hosts
            .entry((name.clone(), labels.clone()))
            .or_insert_with(|| Arc::new(HostInfo { host: name, run_id, labels }));
        Arc::clone(made)
    }

    fn process(&mut self, span: &Foreign) -> Arc<ProcessInfo> {
        let pid = span.attributes.get("process.pid").and_then(|pid| pid.parse().ok()).unwrap_or(0);
        let service = span.service.clone();
        let made = self.processes.entry((pid, service.clone())).or_insert_with(|| {
            let comm = span.attributes.get("process.executable.name");
            Arc::new(ProcessInfo {
                pid,
                comm: comm.cloned().unwrap_or_else(|| service.clone()),
                service,
                container: span.attributes.get("container.id").cloned(),
            })
        });
        Arc::clone(made)
    }
}

/// The times of a half: those that dprof wrote beside the span, else a beginning and an end, and the client's time
/// beyond the server's is the network's.
fn times(span: &Foreign, side: Side) -> HalfTimes {
    let (start_ns, end_ns) = (span.start_ns, span.end_ns.max(span.start_ns));
    let mark = |name: &str| {
        let after_ns: i64 = span.attributes.get(&format!("dprof.time.{name}_ns"))?.parse().ok()?;
        start_ns.checked_add_signed(after_ns)
    };
    if !HalfTimes::default().marks().into_iter().any(|(name, _)| mark(name).is_some()) {
        return HalfTimes {
            start_ns,
            end_ns,
            request_first_ns: Some(start_ns),
            request_last_ns: Some(start_ns),
            request_read_ns: (side == Side::Server).then_some(start_ns),
            response_first_ns: Some(end_ns),
            response_last_ns: Some(end_ns),
            response_read_ns: (side == Side::Client).then_some(end_ns),
        };
    }
    HalfTimes {
        start_ns,
        end_ns,
        request_first_ns: mark("request_first"),
        request_last_ns: mark("request_last"),
        request_read_ns: mark("request_read"),
        response_first_ns: mark("response_first"),
        response_last_ns: mark("response_last"),
        response_read_ns: mark("response_read"),
    }
}

/// What to doubt about the times; the flags are written for the RPC, so both of its halves take them.
fn doubts(span: &Foreign) -> HalfFlags {
    let said = span.attributes.get("dprof.flags").map_or("", String::as_str);
    let of_times =
        [HalfFlags::INCOMPLETE, HalfFlags::REQUEST_TIME_APPROXIMATE, HalfFlags::RESPONSE_TIME_APPROXIMATE];
    let mut flags = HalfFlags::default();
    for (bit, name) in HalfFlags::NAMES {
        if of_times.contains(&bit) && said.split(' ').any(|word| word == name) {
            flags.insert(bit);
        }
    }
    flags
}

fn protocol(span: &Foreign) -> String {
    let named = [
        "dprof.protocol",
        "db.system.name",
        "db.system",
        "rpc.system.name",
        "rpc.system",
        "messaging.system",
    ]
    .into_iter()
    .find_map(|key| span.attributes.get(key).cloned());
    named.unwrap_or_else(|| {
        let is_http = span.attributes.keys().any(|key| key.starts_with("http."));
        if is_http { "http".to_owned() } else { "unknown".to_owned() }
    })
}

fn status(span: &Foreign) -> Status {
    let said = span.attributes.get("dprof.status");
    said.and_then(|name| Status::ALL.into_iter().find(|status| status.name() == name))
        .unwrap_or(if span.is_error { Status::Error } else { Status::Ok })
}

/// What is not told by a field of its own.
fn attributes(span: &Foreign) -> Vec<(Cow<'static, str>, String)> {
    let is_told = |key: &str| {
        key.starts_with("dprof.")
            || matches!(
                key,
                "service.name"
                    | "host.name"
                    | "hostname"
                    | "pid"
                    | "process.pid"
                    | "process.executable.name"
                    | "container.id"
                    | "span.kind"
                    | "error"
                    | "db.query.text"
            )
    };
    span.attributes
        .iter()
        .filter(|(key, _)| !is_told(key))
        .map(|(key, value)| (Cow::Owned(key.clone()), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::Exporter;
    use crate::export::{jaeger::Jaeger, otlp::Otlp, zipkin::Zipkin};
    use crate::import::{Format, ImportError, read};
    use crate::testing::rpc;

    fn import(text: &[u8]) -> Result<Vec<Span>, ImportError> {
        let found = read(text, Format::Auto)?;
        assert_eq!(found.refused, 0);
        Ok(assemble(&found.spans, RunId(1)))
    }

    fn trace() -> Vec<Span> {
        let mut detached = rpc(4).under(1).of("mail", "SEND").by("web").client_only().at(700, 900).build();
        detached.flags = SpanFlags::DETACHED;
        vec![
            rpc(1).of("web", "GET /").by("curl").hosts("c", "web-1").labels("r7", "east").build(),
            rpc(2).under(1).by("web").query("get a").hosts("web-1", "db-1").at(300, 200).build(),
            rpc(3).under(2).of("disk", "READ").server_only().hosts("", "disk-1").at(350, 20).build(),
            detached,
            rpc(5).under(1).by("web").status(Status::Timeout).at(600, 90).build(),
        ]
    }

    /// What every format must bring back: ids, parents, ends, names, times (and with
    /// them the split), status.
    fn told(spans: &[Span]) -> Vec<String> {
        let mut lines: Vec<String> = spans
            .iter()
            .map(|span| {
                let half = |half: &Option<Half>| {
                    half.as_ref().map(|half| {
                        (
                            half.process.service.clone(),
                            half.host.host.clone(),
                            half.host.labels.get("rack").cloned(),
                            half.operation.clone(),
                            half.query_text.clone(),
                            half.local,
                            half.times,
                            half.status,
                            half.request_bytes,
                        )
                    })
                };
                let parent = span.link.map(|link| link.parent);
                let (client, server) = (half(&span.client), half(&span.server));
                format!(
                    "{} {} {parent:?} {:?} {client:?} {server:?}",
                    span.span_id, span.trace_id, span.flags
                )
            })
            .collect();
        lines.sort();
        lines
    }

    #[track_caller]
    fn check_round_trip(mut exporter: impl Exporter) {
        let mut out = Vec::new();
        exporter.begin(&mut out).expect("memory");
        exporter.page(&trace(), &mut out).expect("memory");
        exporter.end(&mut out).expect("memory");
        assert_eq!(told(&import(&out).expect("understood")), told(&trace()));
    }

    #[test]
    fn what_is_exported_comes_back_as_it_was() {
        check_round_trip(Otlp::default());
        check_round_trip(Zipkin::default());
        check_round_trip(Jaeger::default());
    }

    /// The RPCs as `id<-parent ends`, in order of id.
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let mut shown: Vec<String> = import(text.as_bytes())
            .expect("understood")
            .iter()
            .map(|span| {
                let parent = span.link.map_or(String::new(), |link| format!("<-{:x}", link.parent.0));
                let ends = match (&span.client, &span.server) {
                    (Some(_), Some(_)) => "both",
                    (Some(_), None) => "client",
                    _ => "server",
                };
                format!("{:x}{parent} {ends}", span.span_id.0)
            })
            .collect();
        shown.sort();
        assert_eq!(shown.join(", "), expected);
    }

    #[test]
    fn client_and_server_spans_of_others_become_one_rpc() {
        check(
            r#"[{"traceId":"a1","id":"1","name":"get","kind":"SERVER","timestamp":10,"duration":50,
                 "localEndpoint":{"serviceName":"web"}},
                {"traceId":"a1","id":"2","parentId":"1","kind":"CLIENT","timestamp":15,"duration":20},
                {"traceId":"a1","id":"3","parentId":"2","kind":"SERVER","timestamp":16,"duration":10}]"#,
            "1 server, 3<-1 both",
        );
        // Shared ids, and a trace in an array of traces.
        check(
            r#"[[{"traceId":"a1","id":"2","kind":"CLIENT","timestamp":15,"duration":20},
                 {"traceId":"a1","id":"2","kind":"SERVER","shared":true,"timestamp":16,"duration":10}]]"#,
            "9e3779b97f4a7c17 both",
        );
    }

    #[test]
    fn internal_spans_are_passed_over_but_for_a_root() {
        check(
            r#"{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"web"}}]},
                "scopeSpans":[{"spans":[
                {"traceId":"0a","spanId":"01","name":"job","kind":1,"startTimeUnixNano":"1","endTimeUnixNano":"99"},
                {"traceId":"0a","spanId":"02","parentSpanId":"01","kind":1,"startTimeUnixNano":"2","endTimeUnixNano":"90"},
                {"traceId":"0a","spanId":"03","parentSpanId":"02","kind":"SPAN_KIND_CLIENT","startTimeUnixNano":3,"endTimeUnixNano":80},
                {"traceId":"0a","spanId":"04","parentSpanId":"77","kind":3,"startTimeUnixNano":"3","endTimeUnixNano":"80"}
                ]}]}]}"#,
            "1 server, 3<-1 client, 4<-77 client",
        );
    }

    #[test]
    fn what_is_no_trace_is_refused_in_words() {
        for (text, expected) in [
            ("", "the file is empty"),
            ("   ", "the file is empty"),
            ("{}", "an object without resourceSpans and data"),
            ("hello", "expected"),
            ("[1]", "did not match"),
            ("{\"data\":[{\"spans\":[{}]}]}", "missing field"),
        ] {
            let error = read(text.as_bytes(), Format::Auto).expect_err("no trace").to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let zero = r#"[{"traceId":"0","id":"1","timestamp":1},{"traceId":"xyz","id":"1","timestamp":1}]"#;
        assert_eq!(read(zero.as_bytes(), Format::Auto).expect("an array").refused, 2);
    }
}
