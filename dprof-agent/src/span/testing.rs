//! Halves made by hand.

use std::collections::BTreeMap;
use std::sync::Arc;

use dprof_common::model::{
    Half, HalfFlags, HalfTimes, HostInfo, KeepReason, MessageId, ProcessInfo, RunId, Span, SpanFlags, SpanId,
    Status,
};

/// A half of `operation` by a process of `service` that ended well at `end_ns`.
pub(crate) fn half(service: &str, operation: &str, end_ns: u64, duration_ns: u64) -> Half {
    let address = "127.0.0.1:1".parse().expect("an address");
    Half {
        host: Arc::new(HostInfo { host: "h".into(), run_id: RunId(1), labels: BTreeMap::default() }),
        process: Arc::new(ProcessInfo { pid: 1, comm: "c".into(), service: service.into(), container: None }),
        tid: 1,
        local: address,
        peer: address,
        netns: 1,
        tuple_key: 0,
        protocol: "redis".into(),
        operation: operation.into(),
        query_text: String::new(),
        status: Status::Ok,
        status_code: String::new(),
        attributes: Vec::new(),
        times: HalfTimes { start_ns: end_ns - duration_ns, end_ns, ..HalfTimes::default() },
        request_bytes: 10,
        response_bytes: 20,
        request_message_id: MessageId(1),
        response_message_id: MessageId(2),
        batch: 1,
        flags: HalfFlags::default(),
        retransmits: 0,
        srtt_us: 0,
        connect_ns: None,
    }
}

/// A span of these halves.
pub(crate) fn span(client: Option<Half>, server: Option<Half>) -> Span {
    Span {
        trace_id: SpanId(1).as_root_trace(),
        span_id: SpanId(1),
        link: None,
        further_links: Vec::new(),
        root: None,
        flags: SpanFlags::default(),
        probability: 1.0,
        reason: KeepReason::Ratio,
        client,
        server,
    }
}
