//! Spans by filter and order, from the index of the minutes that the window touches.
//!
//! The problem: a filter is about the *merged* span, an entry of the index is one agent's row, and the two halves of
//! an RPC are under the names of two services. The idea: the index is partitioned by time alone, so that one read
//! brings a minute of all services, and the halves meet in memory. That is exact as long as clocks agree to
//! [`SKEW_NS`].
//!
//! What a reader would get wrong: the search is bounded, newest first. What it did not reach is said in a warning
//! with the time from which to go on.

use std::collections::hash_map::Entry as Place;

use dprof_common::model::{Side, Span, SpanId, Status, TraceId};
use futures_util::{StreamExt as _, stream};
use rustc_hash::{FxHashMap, FxHashSet};

use super::reader::{CassandraReader, IN_FLIGHT_MAX};
use super::tables::{INDEX_BUCKET_S, bucket, bucket_start_ns};
use super::unpack::Entry;
use crate::schema::Bits;
use crate::{Order, SpanQuery, StoreError};

/// Clocks of two hosts may differ by this much and the halves of an RPC still meet.
pub(super) const SKEW_NS: u64 = 120_000_000_000;
/// Partitions that one search reads at most.
const PARTITIONS_MAX: usize = 2_000;
/// Spans that a search holds at most: 150 bytes each.
const SPANS_MAX: usize = 2_000_000;

/// What the index knows of a span, from all its rows.
struct Found {
    client: Option<(u64, u64)>,
    server: Option<(u64, u64)>,
    has_server: bool,
    is_linked: bool,
    /// Bit n: a half has status n.
    statuses: u16,
    service: u32,
    name: u32,
    /// The traces that hold its rows; more than two are fragments upon fragments.
    traces: [TraceId; 2],
    more: Vec<TraceId>,
}

impl Found {
    fn new(trace_id: TraceId) -> Self {
        Self {
            client: None,
            server: None,
            has_server: false,
            is_linked: false,
            statuses: 0,
            service: 0,
            name: 0,
            traces: [trace_id; 2],
            more: Vec::new(),
        }
    }

    fn add(&mut self, entry: &Entry, service: u32, name: u32) {
        let times = Some((entry.start_ns, entry.duration_ns));
        let has = |bit| entry.bits.0 & bit != 0;
        let is_first = self.client.is_none() && !self.has_server;
        if has(Bits::CLIENT) {
            self.client = self.client.or(times);
        } else {
            self.server = self.server.or(times);
        }
        // The server's name wins; among equals the first.
        if is_first || (has(Bits::SERVER) && !self.has_server) {
            (self.service, self.name) = (service, name);
        }
        self.has_server |= has(Bits::SERVER);
        self.is_linked |= has(Bits::LINKED);
        for shift in [Bits::CLIENT_STATUS_SHIFT, Bits::SERVER_STATUS_SHIFT] {
            self.statuses |= 1 << ((entry.bits.0 >> shift) & 15);
        }
        if self.traces[0] != entry.trace_id && self.traces[1] != entry.trace_id {
            if self.traces[0] == self.traces[1] {
                self.traces[1] = entry.trace_id;
            } else if !self.more.contains(&entry.trace_id) {
                self.more.push(entry.trace_id);
            }
        }
    }

    fn times(&self) -> (u64, u64) {
        self.client.or(self.server).unwrap_or((0, 0))
    }

    fn trace_ids(&self) -> impl Iterator<Item = TraceId> + '_ {
        self.traces.iter().copied().chain(self.more.iter().copied())
    }
}

/// Numbers for names.
#[derive(Default)]
pub(super) struct Names {
    numbers: FxHashMap<String, u32>,
}

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.numbers.len() as u32;
        self.numbers.insert(name.to_owned(), number);
        number
    }
}

/// The filter with names as numbers.
struct Filter<'a> {
    query: &'a SpanQuery,
    service: Option<u32>,
    operation: Option<u32>,
}

impl Filter<'_> {
    fn passes(&self, found: &Found) -> bool {
        let query = self.query;
        let (start_ns, duration_ns) = found.times();
        let kind = if found.has_server { Side::Server } else { Side::Client };
        let status = |wanted: Status| found.statuses & (1 << wanted as u16) != 0;
        start_ns >= query.since_unix_ns
            && start_ns < query.until_unix_ns
            && query.min_duration_ns.is_none_or(|min| duration_ns >= min)
            && query.kind.is_none_or(|wanted| wanted == kind)
            && query.status.is_none_or(status)
            && !(query.roots_only && found.is_linked)
            && self.service.is_none_or(|service| service == found.service)
            && self.operation.is_none_or(|operation| operation == found.name)
    }
}

/// Smaller is better; ties go by span id.
pub(super) type Rank = (u64, SpanId);

/// The rank of a span.
pub(super) fn rank(order: Order, start_ns: u64, duration_ns: u64, span_id: SpanId) -> Rank {
    let key = match order {
        Order::Slowest => !duration_ns,
        Order::Fastest => duration_ns,
        Order::Newest => !start_ns,
    };
    (key, span_id)
}

/// The minutes with index rows in a window widened by the skew, newest first.
pub(super) async fn minutes(reader: &CassandraReader, query: (u64, u64)) -> Result<Vec<i32>, StoreError> {
    let (since_ns, until_ns) = (query.0.saturating_sub(SKEW_NS), query.1.saturating_add(SKEW_NS));
    let range = (bucket(since_ns, INDEX_BUCKET_S), bucket(until_ns, INDEX_BUCKET_S));
    reader.minutes(range).await
}

/// The spans asked for, merged, in order.
pub(super) async fn select(
    reader: &CassandraReader,
    query: &SpanQuery,
    warnings: &mut Vec<String>,
) -> Result<Vec<Span>, StoreError> {
    let mut buckets = minutes(reader, (query.since_unix_ns, query.until_unix_ns)).await?;
    let shards = reader.shards();
    let most = PARTITIONS_MAX / shards.max(1).unsigned_abs() as usize;
    let mut searched_to = None;
    if buckets.len() > most {
        buckets.truncate(most);
        searched_to = buckets.last().copied();
    }
    let mut services = Names::default();
    let mut names = Names::default();
    let filter = Filter {
        query,
        service: query.service.as_ref().map(|name| services.number(name)),
        operation: query.operation.as_ref().map(|name| names.number(name)),
    };
    let mut spans: FxHashMap<SpanId, Found> = FxHashMap::default();
    for group in buckets.chunks(IN_FLIGHT_MAX) {
        let mut reads = stream::iter(reader.partitions(group))
            .map(|(bucket, shard)| reader.index_partition(bucket, shard))
            .buffer_unordered(IN_FLIGHT_MAX);
        while let Some(partition) = reads.next().await {
            for row in partition? {
                let service = services.number(&row.service);
                let numbers: Vec<u32> = row.names.iter().map(|name| names.number(name)).collect();
                match &row.entries {
                    Ok(entries) => {
                        for entry in entries {
                            let found = match spans.entry(entry.span_id) {
                                Place::Occupied(place) => place.into_mut(),
                                Place::Vacant(place) => place.insert(Found::new(entry.trace_id)),
                            };
                            found.add(entry, service, numbers[entry.name]);
                        }
                    }
                    Err(error) => warnings.push(format!("index of {}: {error}", row.service)),
                }
            }
        }
        let Some(oldest) = group.last().copied() else { break };
        // Halves that lie further back than the skew belong to older spans.
        let certain_from_ns = bucket_start_ns(oldest, INDEX_BUCKET_S).saturating_add(SKEW_NS);
        if query.order == Order::Newest {
            let enough = spans
                .values()
                .filter(|found| found.times().0 >= certain_from_ns && filter.passes(found))
                .take(query.limit)
                .count();
            if enough >= query.limit {
                searched_to = None;
                break;
            }
        }
        if spans.len() > SPANS_MAX && Some(oldest) != buckets.last().copied() {
            searched_to = Some(oldest);
            break;
        }
    }
    if let Some(oldest) = searched_to {
        let until = time(bucket_start_ns(oldest, INDEX_BUCKET_S));
        warnings.push(format!(
            "only spans since {until} were searched: go on with --until {until}, or ask for a shorter time"
        ));
    }
    let mut ranks: Vec<Rank> = spans
        .iter()
        .filter(|(_, found)| filter.passes(found))
        .map(|(span_id, found)| {
            let (start_ns, duration_ns) = found.times();
            rank(query.order, start_ns, duration_ns, *span_id)
        })
        .collect();
    if ranks.len() > query.limit {
        ranks.select_nth_unstable(query.limit);
        ranks.truncate(query.limit);
    }
    ranks.sort_unstable();
    let wanted =
        ranks.iter().filter_map(|(_, id)| Some((*id, spans.get(id)?.trace_ids().collect()))).collect();
    let mut found = complete(reader, wanted, warnings).await?;
    let n_missing = ranks.len() - found.len();
    if n_missing > 0 {
        warnings.push(format!(
            "{n_missing} spans are in the index but not in a trace: expired, or not yet written"
        ));
    }
    Ok(ranks.iter().filter_map(|(_, id)| found.remove(id)).collect())
}

/// Reads the traces that hold rows of these spans; each span merged from all its rows.
pub(super) async fn complete(
    reader: &CassandraReader,
    wanted: FxHashMap<SpanId, Vec<TraceId>>,
    warnings: &mut Vec<String>,
) -> Result<FxHashMap<SpanId, Span>, StoreError> {
    let ids: FxHashSet<TraceId> = wanted.values().flatten().copied().collect();
    let ids: Vec<TraceId> = ids.into_iter().collect();
    let mut merged: FxHashMap<SpanId, Span> = FxHashMap::default();
    for row in reader.rows_of_traces(&ids, warnings).await? {
        if !wanted.contains_key(&row.span_id) {
            continue;
        }
        match merged.entry(row.span_id) {
            Place::Occupied(place) => place.into_mut().merge(row),
            Place::Vacant(place) => drop(place.insert(row)),
        }
    }
    Ok(merged)
}

/// As `--until` takes it.
fn time(unix_ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(unix_ns))
        .map_or_else(|_| unix_ns.to_string(), |time| time.to_string())
}
