//! Spans made to measure, and a store in memory, for unit tests.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use dprof_common::model::{
    Edge, EvidenceKind, Half, HalfFlags, HalfTimes, HostInfo, KeepReason, Link, MessageId, ProcessInfo,
    Rollup, RootKind, RunId, Span, SpanFlags, SpanId, Status, TraceId,
};
use dprof_store::{Answer, Order, Reader, RollupQuery, RunEdge, RunInfo, SpanQuery, StoreError, StoreUrl};

use crate::command::Command;
use crate::context::{Context, Failure, Store};
use crate::render::Screen;

/// 2026-11-03T12:00:00Z, the start of time in tests.
pub(crate) const T0: u64 = 1_793_707_200_000_000_000;

/// An RPC to be: both halves on two hosts whose clocks differ by 5 s, unless told otherwise.
#[derive(Clone, Debug)]
pub(crate) struct Rpc {
    id: u64,
    trace: u128,
    link: Option<Link>,
    further_links: Vec<Link>,
    service: String,
    operation: String,
    query: String,
    caller: String,
    host: String,
    caller_host: String,
    start_us: u64,
    duration_us: u64,
    sides: (bool, bool),
    status: Status,
    labels: (String, String),
    bytes: (u64, u64),
}

/// Two requests of a writer that gathers SETs: the first submits its part and waits, the second triggers the call for
/// both, which takes 4 ms.
pub(crate) fn gathered() -> Vec<Span> {
    let request = |id: u64| rpc(id).trace(u128::from(id)).of("writer", "SET").hosts("web-1", "web-1");
    let call = rpc(3).trace(2).under(2).and_under(1).by("writer").hosts("web-1", "db-1");
    vec![
        request(1).at(0, 40_000).build(),
        request(2).at(10_000, 30_000).build(),
        call.at(20_000, 4_000).build(),
    ]
}

/// An RPC of trace 1 with this span id.
pub(crate) fn rpc(id: u64) -> Rpc {
    Rpc {
        id,
        trace: 1,
        link: None,
        further_links: Vec::new(),
        service: "redis".into(),
        operation: "GET".into(),
        query: "get a".into(),
        caller: "client".into(),
        host: "db-1".into(),
        caller_host: "web-1".into(),
        start_us: 0,
        duration_us: 1_000,
        sides: (true, true),
        status: Status::Ok,
        labels: ("r1".into(), "dc1".into()),
        bytes: (77, 5),
    }
}

impl Rpc {
    pub(crate) fn of(mut self, service: &str, operation: &str) -> Self {
        (self.service, self.operation) = (service.into(), operation.into());
        self
    }
    pub(crate) fn query(mut self, text: &str) -> Self {
        self.query = text.into();
        self
    }
    pub(crate) fn by(mut self, caller: &str) -> Self {
        self.caller = caller.into();
        self
    }
    pub(crate) fn hosts(mut self, caller: &str, server: &str) -> Self {
        (self.caller_host, self.host) = (caller.into(), server.into());
        self
    }
    /// Start after [`T0`] and duration at the client, microseconds.
    pub(crate) fn at(mut self, start_us: u64, duration_us: u64) -> Self {
        (self.start_us, self.duration_us) = (start_us, duration_us);
        self
    }
    pub(crate) fn under(mut self, parent: u64) -> Self {
        self.link =
            Some(Link { parent: SpanId(parent), evidence: EvidenceKind::SameThread, confidence: Some(0.98) });
        self
    }
    /// A further cause; after [`Rpc::under`].
    pub(crate) fn and_under(mut self, parent: u64) -> Self {
        self.further_links.extend(self.link.map(|link| Link { parent: SpanId(parent), ..link }));
        self
    }
    pub(crate) fn trace(mut self, trace: u128) -> Self {
        self.trace = trace;
        self
    }
    pub(crate) fn client_only(mut self) -> Self {
        self.sides = (true, false);
        self
    }
    pub(crate) fn server_only(mut self) -> Self {
        self.sides = (false, true);
        self
    }
    pub(crate) fn status(mut self, status: Status) -> Self {
        self.status = status;
        self
    }

    /// Rack and datacenter of both hosts.
    pub(crate) fn labels(mut self, rack: &str, dc: &str) -> Self {
        self.labels = (rack.into(), dc.into());
        self
    }
    /// Of request and response.
    pub(crate) fn bytes(mut self, request: u64, response: u64) -> Self {
        self.bytes = (request, response);
        self
    }

    /// Of the duration, 2 % send, 8 % network each way, 10 % server queue, 60 % service, 10 % streaming, 2 %
    /// client queue. The server's clock is 5 s ahead unless both share a host.
    pub(crate) fn build(self) -> Span {
        let at = |percent: u64| T0 + self.start_us * 1_000 + self.duration_us * 10 * percent;
        let skew = if self.host == self.caller_host { 0 } else { 5_000_000_000 };
        let client = HalfTimes {
            start_ns: at(0),
            end_ns: at(100),
            request_first_ns: Some(at(0)),
            request_last_ns: Some(at(2)),
            request_read_ns: None,
            response_first_ns: Some(at(88)),
            response_last_ns: Some(at(98)),
            response_read_ns: Some(at(100)),
        };
        let server = HalfTimes {
            start_ns: skew + at(8),
            end_ns: skew + at(90),
            request_first_ns: Some(skew + at(8)),
            request_last_ns: Some(skew + at(10)),
            request_read_ns: Some(skew + at(20)),
            response_first_ns: Some(skew + at(80)),
            response_last_ns: Some(skew + at(90)),
            response_read_ns: None,
        };
        let client_addr = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), 40_001));
        let server_addr = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 2), 6_379));
        Span {
            trace_id: TraceId(self.trace),
            span_id: SpanId(self.id),
            link: self.link,
            further_links: self.further_links.clone(),
            root: self.link.is_none().then_some(RootKind::Edge),
            flags: SpanFlags::default(),
            probability: 1.0,
            reason: KeepReason::Ratio,
            client: self
                .sides
                .0
                .then(|| self.half(&self.caller, &self.caller_host, client_addr, server_addr, client)),
            server: self
                .sides
                .1
                .then(|| self.half(&self.service, &self.host, server_addr, client_addr, server)),
        }
    }

    fn half(&self, service: &str, host: &str, local: SocketAddr, peer: SocketAddr, times: HalfTimes) -> Half {
        let labels = [("dc", self.labels.1.as_str()), ("rack", &self.labels.0), ("node", "n1")];
        Half {
            host: Arc::new(HostInfo {
                host: host.into(),
                run_id: RunId(1),
                labels: BTreeMap::from(labels.map(|(name, value)| (name.to_owned(), value.to_owned()))),
            }),
            process: Arc::new(ProcessInfo {
                pid: 42,
                comm: service.into(),
                service: service.into(),
                container: None,
            }),
            tid: 43,
            local,
            peer,
            netns: 1,
            tuple_key: 0,
            protocol: Cow::Borrowed("redis"),
            operation: self.operation.clone(),
            query_text: self.query.clone(),
            status: self.status,
            status_code: String::new(),
            attributes: Vec::new(),
            times,
            request_bytes: self.bytes.0,
            response_bytes: self.bytes.1,
            request_message_id: MessageId(self.id * 2),
            response_message_id: MessageId(self.id * 2 + 1),
            batch: 1,
            flags: HalfFlags::default(),
            retransmits: 0,
            srtt_us: 0,
            connect_ns: None,
        }
    }
}

/// A store in memory, as simple as its contract.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) spans: Vec<Span>,
    pub(crate) rollups: Vec<Rollup>,
    pub(crate) edges: Vec<RunEdge>,
}

impl Memory {
    /// A store of these spans with the rollups of their halves and the edges that they are on.
    pub(crate) fn of(spans: Vec<Span>) -> Self {
        let rollups = Rollup::of(&spans);
        let edges = Edge::of(&spans).into_iter().map(|edge| RunEdge { run_id: RunId(1), edge }).collect();
        Self { spans, rollups, edges }
    }
}

fn answer<T>(rows: Vec<T>) -> Answer<T> {
    Answer { rows, warnings: Vec::new() }
}

#[async_trait]
impl Reader for Memory {
    async fn spans(&self, query: &SpanQuery) -> Result<Answer<Span>, StoreError> {
        let mut rows: Vec<Span> = self.spans.iter().filter(|span| matches(span, query)).cloned().collect();
        match query.order {
            Order::Slowest => rows.sort_by_key(|span| std::cmp::Reverse(span.duration_ns())),
            Order::Fastest => rows.sort_by_key(Span::duration_ns),
            Order::Newest => rows.sort_by_key(|span| std::cmp::Reverse(span.start_ns())),
        }
        rows.truncate(query.limit);
        Ok(answer(rows))
    }

    async fn trace(&self, trace_id: TraceId) -> Result<Answer<Span>, StoreError> {
        let mut rows: Vec<Span> =
            self.spans.iter().filter(|span| span.trace_id == trace_id).cloned().collect();
        rows.sort_by_key(Span::start_ns);
        Ok(answer(rows))
    }

    async fn trace_of_span(&self, span_id: SpanId) -> Result<Option<TraceId>, StoreError> {
        Ok(self.spans.iter().find(|span| span.span_id == span_id).map(|span| span.trace_id))
    }

    async fn traces_with_prefix(&self, prefix: &str, limit: usize) -> Result<Vec<TraceId>, StoreError> {
        let mut ids: Vec<TraceId> = self.spans.iter().map(|span| span.trace_id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| {
            let digits = id.to_string();
            digits.starts_with(prefix) || (prefix.len() < 17 && digits[16..].starts_with(prefix))
        });
        ids.truncate(limit);
        Ok(ids)
    }

    async fn rollups(&self, query: &RollupQuery) -> Result<Answer<Rollup>, StoreError> {
        let wanted =
            |filter: &Option<String>, value: &str| filter.as_deref().is_none_or(|name| name == value);
        Ok(answer(
            self.rollups
                .iter()
                .filter(|rollup| {
                    let minute_ns = rollup.key.minute_unix_s * 1_000_000_000;
                    minute_ns + 60_000_000_000 > query.since_unix_ns
                        && minute_ns < query.until_unix_ns
                        && wanted(&query.service, &rollup.key.service)
                        && wanted(&query.operation, &rollup.key.operation)
                })
                .cloned()
                .collect(),
        ))
    }

    async fn edges(&self, since_unix_ns: u64, until_unix_ns: u64) -> Result<Answer<RunEdge>, StoreError> {
        let in_window = |edge: &&RunEdge| {
            let minute_ns = edge.edge.key.minute_unix_s * 1_000_000_000;
            minute_ns + 60_000_000_000 > since_unix_ns && minute_ns < until_unix_ns
        };
        Ok(answer(self.edges.iter().filter(in_window).cloned().collect()))
    }

    async fn runs(&self) -> Result<Vec<RunInfo>, StoreError> {
        Ok(Vec::new())
    }
}

fn matches(span: &Span, query: &SpanQuery) -> bool {
    let Some(nearest) = span.nearest() else { return false };
    (query.since_unix_ns..query.until_unix_ns).contains(&span.start_ns())
        && query.service.as_ref().is_none_or(|name| *name == nearest.process.service)
        && query.operation.as_ref().is_none_or(|name| *name == nearest.operation)
        && query.kind.is_none_or(|kind| kind == span.kind())
        && query.status.is_none_or(|status| {
            span.client.iter().chain(span.server.iter()).any(|half| half.status == status)
        })
        && query.min_duration_ns.is_none_or(|min| span.duration_ns() >= min)
        && (!query.roots_only || span.link.is_none())
}

/// Runs `test` with a context that has no store of its own.
pub(crate) fn with_context(test: impl AsyncFnOnce(&mut Context<'_>)) {
    let (mut out, mut words) = (Vec::new(), Vec::new());
    let mut context = Context {
        explain: None,
        progress: false,
        store: Store::Ready(Arc::new(Memory::default())),
        screen: Screen { width: Some(80), height: None, colour: false, unicode: true },
        now_unix_ns: T0 + 600_000_000_000,
        out: &mut out,
        words: &mut words,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(test(&mut context));
}

/// Result, stdout and stderr of a command line run on `store` at [`T0`] + 10 minutes.
pub(crate) fn run(store: Memory, width: usize, args: &str) -> (Result<(), Failure>, String, String) {
    let args = ["dprof-cli"].into_iter().chain(args.split_whitespace());
    let cli: crate::args::Cli = clap::Parser::try_parse_from(args).expect("valid arguments");
    run_command(Arc::new(store), width, cli.command, cli.explain)
}

/// The same on a store that has a URL.
pub(crate) fn run_at(url: StoreUrl, width: usize, args: &str) -> (Result<(), Failure>, String, String) {
    let args = ["dprof-cli"].into_iter().chain(args.split_whitespace());
    let cli: crate::args::Cli = clap::Parser::try_parse_from(args).expect("valid arguments");
    run_on(Store::Url(url), width, cli.command, cli.explain)
}

/// The same with a command that is parsed already.
pub(crate) fn run_command(
    store: Arc<dyn Reader>,
    width: usize,
    command: Command,
    explain: bool,
) -> (Result<(), Failure>, String, String) {
    run_on(Store::Ready(store), width, command, explain)
}

fn run_on(
    store: Store,
    width: usize,
    command: Command,
    explain: bool,
) -> (Result<(), Failure>, String, String) {
    let (mut out, mut words) = (Vec::new(), Vec::new());
    let mut context = Context {
        explain: explain.then(Default::default),
        progress: false,
        store,
        screen: Screen { width: Some(width), height: None, colour: false, unicode: true },
        now_unix_ns: T0 + 600_000_000_000,
        out: &mut out,
        words: &mut words,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let result = runtime.block_on(command.run(&mut context));
    context.say_what_was_read();
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    (result, text(out), text(words))
}
