//! What every store must do, as tests that any store can be put through: a generated fleet is written, then
//! asked, and each answer is compared with that of the plainest possible code over the same rows.
//!
//! A store's own tests give a [`Fixture`] and call the `check_*` functions; they panic where an answer is wrong,
//! naming the seed.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use dprof_common::model::{
    Edge, EdgeKey, EvidenceKind, Half, HalfFlags, HalfTimes, HostInfo, KeepReason, Link, MessageId,
    ProcessInfo, Rollup, RollupKey, RootKind, RunId, Side, Span, SpanFlags, SpanId, Status, TraceId,
};
use futures_util::{StreamExt as _, stream};

use crate::{Answer, Batch, Order, Reader, RollupQuery, RunEdge, RunInfo, SpanQuery, Writer};

/// 2023-11-14T22:13:20Z, the start of all generated time, nanoseconds.
pub const EPOCH_NS: u64 = 1_700_000_000_000_000_000;
const MINUTE_NS: u64 = 60_000_000_000;

/// A fresh, empty store.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// Opens it for a run. Calling again with the same run goes on with that run.
    async fn writer(&self, run: &RunInfo) -> Box<dyn Writer>;
    /// Opens it for reading.
    async fn reader(&self) -> Box<dyn Reader>;
}

/// splitmix64 (Steele, Lea, Flood, OOPSLA 2014): seeded, so that a failure can be repeated.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A sequence of its own per seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub const fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n` times.
    pub const fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A run of an agent on `host`.
pub fn run(host: &str, number: u128) -> RunInfo {
    RunInfo {
        run_id: RunId(number << 100 | number),
        host: host.to_owned(),
        labels: BTreeMap::from([("dc".to_owned(), "east".to_owned())]),
        version: "0.1.0".to_owned(),
        kernel: "6.18.0".to_owned(),
        backend: "replay".to_owned(),
        started_unix_ns: EPOCH_NS + number as u64 * 1_000_000_000,
    }
}

/// Makes halves of the processes of one host.
#[derive(Clone, Debug)]
pub struct Maker {
    host: Arc<HostInfo>,
    processes: BTreeMap<&'static str, Arc<ProcessInfo>>,
    message: u64,
}

impl Maker {
    /// For the agent of this run.
    pub fn new(run: &RunInfo) -> Self {
        Self {
            host: Arc::new(HostInfo {
                host: run.host.clone(),
                run_id: run.run_id,
                labels: run.labels.clone(),
            }),
            processes: BTreeMap::new(),
            message: 0,
        }
    }

    /// One end of an RPC of `service`.
    pub fn half(&mut self, service: &'static str, operation: &str, start_ns: u64, duration_ns: u64) -> Half {
        let pid = 100 + self.processes.len() as u32;
        let process = self.processes.entry(service).or_insert_with(|| {
            Arc::new(ProcessInfo {
                pid,
                comm: service.to_owned(),
                service: service.to_owned(),
                container: None,
            })
        });
        self.message += 2;
        let part = duration_ns / 5;
        Half {
            host: Arc::clone(&self.host),
            process: Arc::clone(process),
            tid: pid + 1,
            local: ([10, 0, 0, 1], 6379).into(),
            peer: ([10, 0, 0, 2], 40_000 + (self.message % 20_000) as u16).into(),
            netns: 4_026_531_840,
            tuple_key: 0,
            protocol: Cow::Borrowed("redis"),
            operation: operation.to_owned(),
            query_text: format!("{operation} key:{:06} ?", self.message % 1_000_000),
            status: Status::Ok,
            status_code: String::new(),
            attributes: Vec::new(),
            times: HalfTimes {
                start_ns,
                end_ns: start_ns + duration_ns,
                request_first_ns: Some(start_ns),
                request_last_ns: Some(start_ns),
                request_read_ns: Some(start_ns + part),
                response_first_ns: Some(start_ns + 4 * part),
                response_last_ns: Some(start_ns + 4 * part),
                response_read_ns: Some(start_ns + duration_ns),
            },
            request_bytes: 31 + self.message % 64,
            response_bytes: 5,
            request_message_id: MessageId(self.message),
            response_message_id: MessageId(self.message + 1),
            batch: 1,
            flags: HalfFlags::default(),
            retransmits: 0,
            srtt_us: 100,
            connect_ns: None,
        }
    }
}

/// A span with these halves, a root until changed.
pub fn span(trace_id: TraceId, span_id: SpanId, client: Option<Half>, server: Option<Half>) -> Span {
    Span {
        trace_id,
        span_id,
        link: None,
        further_links: Vec::new(),
        root: Some(RootKind::Edge),
        flags: SpanFlags::default(),
        probability: 1.0,
        reason: KeepReason::Ratio,
        client,
        server,
    }
}

/// What the agents of a fleet wrote, and which trace each span is really of.
#[derive(Debug)]
pub struct Fleet {
    /// Runs.
    pub runs: Vec<RunInfo>,
    /// Batches, each with the index of its run, in the order of writing.
    pub batches: Vec<(usize, Batch)>,
    /// True traces.
    pub trace_of: BTreeMap<SpanId, TraceId>,
}

impl Fleet {
    /// Two hosts. `web` serves requests from outside, calls itself and `cache` on the other host; `cache`'s
    /// agent knows the trace's id at times and else stores fragments; its clock is 3 ms ahead. Some rows come
    /// twice, some RPCs are known from one end only, one minute is slow, some 16 commands share a microsecond,
    /// some traces carry an adopted 128-bit id.
    pub fn generate(seed: u64, n_traces: u64) -> Self {
        let mut random = Random::new(seed);
        let runs = vec![run("web-1", 1), run("cache-1", 2)];
        let mut makers: Vec<Maker> = runs.iter().map(Maker::new).collect();
        let mut rows: Vec<(usize, Span)> = Vec::new();
        let mut trace_of = BTreeMap::new();
        for n in 0..n_traces {
            let start_ns = EPOCH_NS + n * (20 * MINUTE_NS / n_traces) + random.below(1000);
            let slow = (start_ns - EPOCH_NS) / MINUTE_NS == 7;
            let base_ns = if slow { 50_000_000 } else { 200_000 };
            let root_id = SpanId(random.next() | 1);
            let trace_id = if random.one_in(10) {
                TraceId(u128::from(random.next()) << 64 | u128::from(random.next()))
            } else {
                root_id.as_root_trace()
            };
            let operation = ["GET /cart", "GET /item", "POST /order"][random.below(3) as usize];
            let duration_ns = base_ns + random.below(base_ns);
            let mut served = makers[0].half("web", operation, start_ns, duration_ns);
            if random.one_in(12) {
                served.status = Status::Error;
                "500".clone_into(&mut served.status_code);
            }
            rows.push((0, span(trace_id, root_id, None, Some(served))));
            trace_of.insert(root_id, trace_id);
            let n_calls = if random.one_in(20) { 16 } else { random.below(4) };
            let pipelined = n_calls == 16;
            for call in 0..n_calls {
                let id = SpanId(random.next() | 1);
                trace_of.insert(id, trace_id);
                let at_ns = start_ns + if pipelined { 1000 } else { 1000 * (call + 1) };
                let took_ns =
                    if pipelined { 40_000 } else { duration_ns / 8 + random.below(duration_ns / 8) };
                let operation = ["GET", "SET", "DEL"][random.below(3) as usize];
                let link = Link {
                    parent: root_id,
                    evidence: EvidenceKind::SameThread,
                    confidence: random.one_in(2).then_some(0.75),
                };
                let mut calling = makers[0].half("web", operation, at_ns, took_ns);
                if random.one_in(15) {
                    calling.status = Status::Timeout;
                }
                let linked = |client, server| Span {
                    link: Some(link),
                    // A batch for several requests.
                    further_links: if call == 3 { vec![link, link] } else { Vec::new() },
                    root: None,
                    ..span(trace_id, id, client, server)
                };
                if random.one_in(3) {
                    // A call within the host: one agent sees both ends.
                    let serving = makers[0].half("session", operation, at_ns + 50, took_ns - 100);
                    rows.push((0, linked(Some(calling), Some(serving))));
                    if random.one_in(5) {
                        rows.push(rows.last().cloned().expect("just pushed"));
                    }
                    continue;
                }
                let serving = makers[1].half("cache", operation, at_ns + 3_000_050, took_ns - 100);
                if !random.one_in(10) {
                    rows.push((0, linked(Some(calling), None)));
                }
                if random.one_in(10) {
                    // The other host's agent lost it, unless it would be unknown altogether.
                    if rows.last().is_some_and(|(_, span)| span.span_id == id) {
                        continue;
                    }
                }
                let known = random.one_in(2) || rows.last().is_none_or(|(_, span)| span.span_id != id);
                let stored_under = if known { trace_id } else { id.as_root_trace() };
                let mut far = Span { root: None, ..span(stored_under, id, None, Some(serving)) };
                if !known {
                    far.flags.insert(SpanFlags::FRAGMENT);
                }
                rows.push((1, far));
                if random.one_in(4) {
                    // What the far host did for it: another RPC in the same fragment.
                    let below = SpanId(random.next() | 1);
                    trace_of.insert(below, trace_id);
                    let caller = makers[1].half("cache", "FETCH", at_ns + 3_000_100, took_ns / 2);
                    let callee = makers[1].half("disk", "FETCH", at_ns + 3_000_110, took_ns / 2 - 20);
                    let mut inner = span(stored_under, below, Some(caller), Some(callee));
                    inner.link =
                        Some(Link { parent: id, evidence: EvidenceKind::Order, confidence: Some(1.0) });
                    inner.root = None;
                    if !known {
                        inner.flags.insert(SpanFlags::FRAGMENT);
                    }
                    rows.push((1, inner));
                }
            }
        }
        let mut batches = Vec::new();
        for idx in 0..runs.len() {
            let own: Vec<Span> =
                rows.iter().filter(|(of, _)| *of == idx).map(|(_, span)| span.clone()).collect();
            for (n, spans) in own.chunks(97).enumerate() {
                let batch = Batch {
                    seq: n as u64 + 1,
                    spans: spans.to_vec(),
                    rollups: Rollup::of(spans),
                    edges: Edge::of(spans),
                };
                batches.push((n, idx, batch));
            }
        }
        batches.sort_by_key(|(n, idx, _)| (*n, *idx));
        let batches = batches.into_iter().map(|(_, idx, batch)| (idx, batch)).collect();
        Self { runs, batches, trace_of }
    }

    /// Writes everything, some batches twice, and closes.
    pub async fn write_to(&self, fixture: &dyn Fixture) {
        let mut writers = Vec::new();
        for run in &self.runs {
            writers.push(fixture.writer(run).await);
        }
        for (n, (run, batch)) in self.batches.iter().enumerate() {
            writers[*run].write(batch).await.expect("writes");
            if n % 7 == 0 {
                writers[*run].write(batch).await.expect("writes again");
            }
        }
        for writer in writers {
            writer.close().await.expect("closes");
        }
    }

    /// Every span, merged.
    pub fn merged(&self) -> BTreeMap<SpanId, Span> {
        let mut spans: BTreeMap<SpanId, Span> = BTreeMap::new();
        for row in self.batches.iter().flat_map(|(_, batch)| &batch.spans) {
            match spans.get_mut(&row.span_id) {
                Some(span) => span.merge(row.clone()),
                None => drop(spans.insert(row.span_id, row.clone())),
            }
        }
        spans
    }

    /// The right answer to a question.
    pub fn expected(&self, query: &SpanQuery) -> Vec<Span> {
        expected(&self.merged(), query)
    }
}

/// The right answer, from all spans merged.
fn expected(merged: &BTreeMap<SpanId, Span>, query: &SpanQuery) -> Vec<Span> {
    let mut spans: Vec<&Span> = merged.values().filter(|span| is_asked_for(query, span)).collect();
    spans.sort_by_key(|span| {
        let key = match query.order {
            Order::Slowest => u64::MAX - span.duration_ns(),
            Order::Fastest => span.duration_ns(),
            Order::Newest => u64::MAX - span.start_ns(),
        };
        (key, span.span_id)
    });
    spans.into_iter().take(query.limit).cloned().collect()
}

fn is_asked_for(query: &SpanQuery, span: &Span) -> bool {
    let Some(nearest) = span.server.as_ref().or(span.client.as_ref()) else { return false };
    let statuses: Vec<Status> =
        [&span.client, &span.server].into_iter().flatten().map(|half| half.status).collect();
    if span.start_ns() < query.since_unix_ns || span.start_ns() >= query.until_unix_ns {
        return false;
    }
    if query.service.as_ref().is_some_and(|wanted| *wanted != nearest.process.service)
        || query.operation.as_ref().is_some_and(|wanted| *wanted != nearest.operation)
        || query.kind.is_some_and(|wanted| wanted != span.kind())
        || query.status.is_some_and(|wanted| !statuses.contains(&wanted))
        || query.min_duration_ns.is_some_and(|wanted| span.duration_ns() < wanted)
    {
        return false;
    }
    !query.roots_only || span.link.is_none()
}

/// The 20 slowest of everything.
pub const fn slowest(limit: usize) -> SpanQuery {
    SpanQuery {
        since_unix_ns: 0,
        until_unix_ns: u64::MAX,
        service: None,
        operation: None,
        kind: None,
        status: None,
        min_duration_ns: None,
        roots_only: false,
        order: Order::Slowest,
        limit,
    }
}

fn random_query(random: &mut Random) -> SpanQuery {
    let services = ["web", "cache", "session", "disk", "nobody"];
    let operations = ["GET", "SET", "GET /cart", "FETCH", "nothing"];
    let pick = |random: &mut Random, from: &[&str]| {
        random.one_in(3).then(|| from[random.below(from.len() as u64) as usize].to_owned())
    };
    let minute = |random: &mut Random| EPOCH_NS + random.below(22) * MINUTE_NS - MINUTE_NS;
    let mut query = slowest([0, 1, 5, 20, 100, 100_000][random.below(6) as usize]);
    if random.one_in(2) {
        query.since_unix_ns = minute(random);
        query.until_unix_ns = query.since_unix_ns + random.below(8) * MINUTE_NS;
    }
    query.service = pick(random, &services);
    query.operation = pick(random, &operations);
    query.kind = [None, None, None, Some(Side::Client), Some(Side::Server)][random.below(5) as usize];
    query.status =
        random.one_in(4).then(|| [Status::Ok, Status::Error, Status::Timeout][random.below(3) as usize]);
    query.min_duration_ns = random.one_in(4).then(|| random.below(60_000_000));
    query.roots_only = random.one_in(4);
    query.order = [Order::Slowest, Order::Fastest, Order::Newest][random.below(3) as usize];
    query
}

fn complete<T>(answer: Answer<T>) -> Vec<T> {
    assert_eq!(answer.warnings, Vec::<String>::new(), "nothing is wrong with this store");
    answer.rows
}

/// Questions that are asked at once: a store elsewhere answers several in the time of one.
const AT_ONCE: usize = 16;

async fn ask_each<T>(items: impl IntoIterator<Item = T>, ask: impl AsyncFn(T)) {
    let ask = &ask;
    stream::iter(items).for_each_concurrent(AT_ONCE, |item| ask(item)).await;
}

/// Filters, orders, limits and ties: random questions give what plain code gives.
pub async fn check_spans(fixture: &dyn Fixture, seed: u64) {
    let fleet = Fleet::generate(seed, 600);
    fleet.write_to(fixture).await;
    let reader = fixture.reader().await;
    let merged = fleet.merged();
    let mut random = Random::new(seed);
    let queries: Vec<SpanQuery> = (0..200).map(|_| random_query(&mut random)).collect();
    let n_rows = AtomicUsize::new(0);
    ask_each(queries.iter().enumerate(), async |(n, query)| {
        let rows = complete(reader.spans(query).await.expect("answers"));
        let expected = expected(&merged, query);
        n_rows.fetch_add(rows.len(), Ordering::Relaxed);
        let ids = |spans: &[Span]| spans.iter().map(|span| span.span_id).collect::<Vec<_>>();
        assert_eq!(ids(&rows), ids(&expected), "seed {seed}, question {n}: {query:?}");
        assert_eq!(rows, expected, "seed {seed}, question {n}: {query:?}");
    })
    .await;
    let n_rows = n_rows.into_inner();
    assert!(n_rows > 1000, "the questions were not all empty: {n_rows} rows");
    let slow = reader.spans(&slowest(20)).await.expect("answers").rows;
    assert!(
        slow.iter().all(|span| (span.start_ns() - EPOCH_NS) / MINUTE_NS == 7),
        "the slow minute holds the slowest"
    );
}

/// Whole traces, whoever stored which part under which id; spans and prefixes lead there.
pub async fn check_traces(fixture: &dyn Fixture, seed: u64) {
    let fleet = Fleet::generate(seed, 200);
    fleet.write_to(fixture).await;
    let reader = fixture.reader().await;
    let merged = fleet.merged();
    let mut traces: BTreeMap<TraceId, Vec<Span>> = BTreeMap::new();
    for (span_id, trace_id) in &fleet.trace_of {
        if let Some(span) = merged.get(span_id) {
            let mut span = span.clone();
            span.trace_id = *trace_id;
            span.flags.0 &= !SpanFlags::FRAGMENT.0;
            traces.entry(*trace_id).or_default().push(span);
        }
    }
    for spans in traces.values_mut() {
        spans.sort_by_key(|span| (span.start_ns(), span.span_id));
    }
    let (reader, traces) = (&*reader, &traces);
    ask_each(traces, async |(trace_id, spans)| {
        let rows = complete(reader.trace(*trace_id).await.expect("answers"));
        assert_eq!(&rows, spans, "seed {seed}: trace {trace_id}");
        for span in spans {
            let found = reader.trace_of_span(span.span_id).await.expect("answers");
            assert_eq!(found, Some(*trace_id), "seed {seed}: span {}", span.span_id);
        }
    })
    .await;
    let fragments: BTreeSet<(TraceId, SpanId)> = fleet
        .batches
        .iter()
        .flat_map(|(_, batch)| &batch.spans)
        .filter(|span| span.flags.contains(SpanFlags::FRAGMENT))
        .map(|span| (span.trace_id, span.span_id))
        .collect();
    assert!(fragments.len() > 10, "the fleet has fragments");
    ask_each(fragments, async |(fragment, span_id)| {
        let rows = complete(reader.trace(fragment).await.expect("answers"));
        assert_eq!(rows, traces[&fleet.trace_of[&span_id]], "seed {seed}: asked for fragment {fragment}");
    })
    .await;

    let stored: BTreeSet<TraceId> =
        fleet.batches.iter().flat_map(|(_, batch)| &batch.spans).map(|span| span.trace_id).collect();
    ask_each(traces.keys().take(12), async |trace_id| {
        let long = trace_id.to_string();
        for digits in [1, 2, 5, 15, 16, 17, 20, 32] {
            check_prefix(reader, &stored, &long[..digits]).await;
            check_prefix(reader, &stored, &long[16..][..digits.min(16)]).await;
        }
    })
    .await;
    for prefix in ["", "x", "-1", "fffffffffffffffffffffffffffffffff", "ffffffffffffffffffffffffffffffff"] {
        assert_eq!(reader.traces_with_prefix(prefix, 10).await.expect("answers"), [], "{prefix}");
    }
    assert_eq!(complete(reader.trace(TraceId(12)).await.expect("answers")), []);
    assert_eq!(reader.trace_of_span(SpanId(12)).await.expect("answers"), None);
}

async fn check_prefix(reader: &dyn Reader, stored: &BTreeSet<TraceId>, prefix: &str) {
    const LIMIT: usize = 5;
    let is_wanted = |id: &&TraceId| {
        let text = id.to_string();
        text.starts_with(prefix) || (prefix.len() <= 16 && id.0 >> 64 == 0 && text[16..].starts_with(prefix))
    };
    let expected: Vec<TraceId> = stored.iter().filter(is_wanted).copied().take(LIMIT).collect();
    let found = reader.traces_with_prefix(prefix, LIMIT).await.expect("answers");
    if prefix.len() < 16 {
        assert_eq!(found, expected, "prefix {prefix}");
    } else {
        // A whole id of a fragment may be answered by the trace that it belongs to.
        assert_eq!(found.len(), expected.len(), "prefix {prefix}: {found:?}");
    }
}

/// Rollups come back per run, minute and key, with what was added later added.
pub async fn check_rollups(fixture: &dyn Fixture, seed: u64) {
    let fleet = Fleet::generate(seed, 400);
    fleet.write_to(fixture).await;
    let reader = fixture.reader().await;
    for (since, until, service, operation) in [
        (0, u64::MAX, None, None),
        (EPOCH_NS, EPOCH_NS + 5 * MINUTE_NS, None, None),
        (EPOCH_NS + 90_000_000_000, EPOCH_NS + 90_000_000_001, Some("web"), None),
        (0, u64::MAX, Some("cache"), Some("GET")),
        (0, u64::MAX, None, Some("nothing")),
    ] {
        let query = RollupQuery {
            since_unix_ns: since,
            until_unix_ns: until,
            service: service.map(str::to_owned),
            operation: operation.map(str::to_owned),
        };
        let mut expected: BTreeMap<(RollupKey, usize), Rollup> = BTreeMap::new();
        for (run, batch) in &fleet.batches {
            for rollup in &batch.rollups {
                let minute_ns = rollup.key.minute_unix_s.saturating_mul(1_000_000_000);
                if minute_ns.saturating_add(MINUTE_NS) <= since
                    || minute_ns >= until
                    || service.is_some_and(|service| service != rollup.key.service)
                    || operation.is_some_and(|operation| operation != rollup.key.operation)
                {
                    continue;
                }
                match expected.get_mut(&(rollup.key.clone(), *run)) {
                    Some(sum) => sum.merge(rollup),
                    None => drop(expected.insert((rollup.key.clone(), *run), rollup.clone())),
                }
            }
        }
        let rows = complete(reader.rollups(&query).await.expect("answers"));
        assert_eq!(rows, expected.into_values().collect::<Vec<_>>(), "seed {seed}: {query:?}");
    }
}

/// Edges are those of the batches of each run, added up; a batch written twice counts once.
pub async fn check_edges(fixture: &dyn Fixture, seed: u64) {
    let fleet = Fleet::generate(seed, 400);
    fleet.write_to(fixture).await;
    let reader = fixture.reader().await;
    for (since, until) in [
        (0, u64::MAX),
        (EPOCH_NS, EPOCH_NS + 5 * MINUTE_NS),
        (EPOCH_NS + 90_000_000_000, EPOCH_NS + 90_000_000_001),
        (1, 2),
    ] {
        let mut expected: BTreeMap<(EdgeKey, RunId), Edge> = BTreeMap::new();
        for (run, batch) in &fleet.batches {
            for edge in &batch.edges {
                let minute_ns = edge.key.minute_unix_s.saturating_mul(1_000_000_000);
                if minute_ns.saturating_add(MINUTE_NS) > since && minute_ns < until {
                    expected
                        .entry((edge.key.clone(), fleet.runs[*run].run_id))
                        .or_insert_with(|| Edge::new(edge.key.clone()))
                        .merge(edge);
                }
            }
        }
        let expected: Vec<RunEdge> =
            expected.into_iter().map(|((_, run_id), edge)| RunEdge { run_id, edge }).collect();
        assert_eq!(until == 2, expected.is_empty());
        let rows = complete(reader.edges(since, until).await.expect("answers"));
        assert_eq!(rows, expected, "seed {seed}: {since}..{until}");
    }
}

/// Runs are listed newest first.
pub async fn check_runs(fixture: &dyn Fixture) {
    let runs = [run("b", 2), run("a", 1), run("c", 3)];
    for run in &runs {
        fixture.writer(run).await.close().await.expect("closes");
    }
    let found = fixture.reader().await.runs().await.expect("answers");
    assert_eq!(found, [run("c", 3), run("b", 2), run("a", 1)]);
}

/// A batch written again changes nothing, also after a restart and out of order.
pub async fn check_idempotence(fixture: &dyn Fixture) {
    let fleet = Fleet::generate(5, 60);
    let info = &fleet.runs[0];
    let own: Vec<&Batch> =
        fleet.batches.iter().filter(|(run, _)| *run == 0).map(|(_, batch)| batch).collect();
    assert!(own.len() > 1, "several batches");
    let mut writer = fixture.writer(info).await;
    for batch in own.iter().rev().chain(own.iter()) {
        writer.write(batch).await.expect("writes");
    }
    writer.close().await.expect("closes");
    let before = count(fixture).await;
    let mut writer = fixture.writer(info).await;
    for batch in &own {
        writer.write(batch).await.expect("writes");
    }
    writer.close().await.expect("closes");
    assert_eq!(count(fixture).await, before);
    let sum: u64 = own.iter().flat_map(|batch| &batch.rollups).map(|rollup| rollup.count).sum();
    assert_eq!(before.1, sum);
}

/// Spans, and requests counted by rollups.
async fn count(fixture: &dyn Fixture) -> (usize, u64) {
    let reader = fixture.reader().await;
    let query = RollupQuery { since_unix_ns: 0, until_unix_ns: u64::MAX, service: None, operation: None };
    let rollups = reader.rollups(&query).await.expect("answers").rows;
    let spans = reader.spans(&slowest(1_000_000)).await.expect("answers").rows;
    (spans.len(), rollups.iter().map(|rollup| rollup.count).sum())
}

/// What was written is read while the writer is still open, and by several writers at once.
pub async fn check_reading_while_writing(fixture: &dyn Fixture) {
    let fleet = Fleet::generate(9, 120);
    let mut writers = Vec::new();
    for run in &fleet.runs {
        writers.push(fixture.writer(run).await);
    }
    let reader = fixture.reader().await;
    let mut ids = BTreeSet::new();
    for (run, batch) in &fleet.batches {
        writers[*run].write(batch).await.expect("writes");
        ids.extend(batch.spans.iter().map(|span| span.span_id));
        let found = reader.spans(&slowest(1_000_000)).await.expect("answers").rows;
        assert_eq!(found.iter().map(|span| span.span_id).collect::<BTreeSet<_>>(), ids);
    }
    for writer in writers {
        writer.close().await.expect("closes");
    }
}
