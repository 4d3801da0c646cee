//! The asker's end: statements that read one partition each, and the [`Reader`] made of them.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use dprof_common::model::{Rollup, RunId, Span, SpanFlags, SpanId, TraceId};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use scylla::client::session::Session;
use scylla::statement::prepared::PreparedStatement;
use uuid::Uuid;

use super::batch_rows::FLAG_GOES_ON;
use super::link::{self, connect, quoted, select};
use super::longest::{self, Candidate};
use super::pack::{trace_key, trace_of_key};
use super::search;
use super::stitch::{climb, whole_trace};
use super::tables::{DAY_S, INDEX_BUCKET_S, KIND_DAYS, KIND_MINUTES, bucket, bucket_start_ns};
use super::unpack::{self, Entry};
use crate::rows::RowError;
use crate::{Answer, Hosts, Reader, RollupQuery, RunEdge, RunInfo, SpanQuery, StoreError};

/// Partitions that are read at once.
pub(super) const IN_FLIGHT_MAX: usize = 32;
/// Partitions of the index that a search for one id reads at most.
const ID_PARTITIONS_MAX: usize = 2_000;
/// Parts of a trace.
const PARTS_MAX: i16 = 1_000;
/// Warnings of one answer.
const WARNINGS_MAX: usize = 20;

/// Reads a keyspace.
pub(crate) struct CassandraReader {
    pub(super) session: Session,
    shards: i16,
    trace: PreparedStatement,
    index: PreparedStatement,
    duration: PreparedStatement,
    pub(super) buckets: PreparedStatement,
    pub(super) hours: PreparedStatement,
    pub(super) minutes: PreparedStatement,
    pub(super) edges: PreparedStatement,
    agents: PreparedStatement,
}

/// A row of the index.
pub(super) struct IndexRow {
    pub(super) service: String,
    pub(super) names: Vec<String>,
    pub(super) entries: Result<Vec<Entry>, RowError>,
}

impl CassandraReader {
    /// Connects and prepares; fails within 5 s.
    pub(crate) async fn open(hosts: &Hosts, keyspace: &str) -> Result<Self, StoreError> {
        let opening = Self::open_slowly(hosts, keyspace);
        match tokio::time::timeout(link::SESSION_WITHIN, opening).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::Away(format!(
                "Cassandra at {} does not answer within {} s: a node hangs, or packets to it are dropped",
                hosts.names().join(", "),
                link::SESSION_WITHIN.as_secs_f64()
            ))),
        }
    }

    async fn open_slowly(hosts: &Hosts, keyspace: &str) -> Result<Self, StoreError> {
        let session = connect(hosts).await?;
        let Some(found) = link::keyspace(&session, keyspace).await? else {
            return Err(StoreError::NotFound(format!(
                "keyspace {keyspace}: make it with dprof-cli store init"
            )));
        };
        found.check(keyspace)?;
        let k = quoted(keyspace);
        let consistency = found.consistency();
        let prepare = |text: String| {
            let session = &session;
            async move { link::prepare(session, &text, consistency).await }
        };
        let statements = futures_util::future::try_join_all([
            prepare(format!("SELECT start_ns, flags, spans FROM {k}.traces WHERE trace_id = ? AND part = ?")),
            prepare(format!(
                "SELECT service, names, packed FROM {k}.service_span_name_index WHERE bucket = ? AND shard = ?"
            )),
            prepare(format!(
                "SELECT duration_ns, trace_id, span_id, floor_ns FROM {k}.duration_index
                 WHERE service = '' AND name = '' AND level = ? AND bucket = ? AND which = ? AND shard = ?"
            )),
            prepare(format!("SELECT bucket FROM {k}.time_buckets WHERE kind = ? AND period = ?")),
            prepare(format!(
                "SELECT run_id, piece, from_seq, through_seq, rollups FROM {k}.latency_rollup_3600 WHERE bucket = ?"
            )),
            prepare(format!(
                "SELECT seq, rollups FROM {k}.latency_rollup_60 WHERE bucket = ? AND run_id = ? AND seq >= ? AND seq <= ?"
            )),
            prepare(format!("SELECT edges FROM {k}.dependencies WHERE bucket = ? AND run_id = ?")),
            prepare(format!(
                "SELECT run_id, host, labels, version, kernel, backend, started_ns FROM {k}.agents WHERE region = 'all'"
            )),
        ])
        .await?;
        let Ok([trace, index, duration, buckets, hours, minutes, edges, agents]) =
            <[PreparedStatement; 8]>::try_from(statements)
        else {
            return Err(StoreError::Other(anyhow::anyhow!("eight statements were prepared")));
        };
        let shards = found.shards();
        Ok(Self { session, shards, trace, index, duration, buckets, hours, minutes, edges, agents })
    }

    pub(super) const fn shards(&self) -> i16 {
        self.shards
    }

    /// Every shard of these buckets, in their order.
    pub(super) fn partitions(&self, buckets: &[i32]) -> Vec<(i32, i16)> {
        let shards = 0..self.shards;
        buckets.iter().flat_map(|bucket| shards.clone().map(|shard| (*bucket, shard))).collect()
    }

    /// Minutes that have index rows within `from ..= to`, newest first.
    pub(super) async fn minutes(&self, (from, to): (i32, i32)) -> Result<Vec<i32>, StoreError> {
        let day_of = |minute: i32| bucket(bucket_start_ns(minute, INDEX_BUCKET_S), DAY_S);
        let days: Vec<(i32,)> = select(&self.session, &self.buckets, (KIND_DAYS, 0)).await?;
        let days = days.into_iter().map(|(day,)| day).filter(|day| (day_of(from)..=day_of(to)).contains(day));
        let lists: Vec<Vec<(i32,)>> = stream::iter(days)
            .map(|day| select(&self.session, &self.buckets, (KIND_MINUTES, day)))
            .buffered(IN_FLIGHT_MAX)
            .try_collect()
            .await?;
        let mut minutes: Vec<i32> = lists.into_iter().flatten().map(|(minute,)| minute).collect();
        minutes.retain(|minute| (from..=to).contains(minute));
        minutes.sort_unstable_by(|a, b| b.cmp(a));
        Ok(minutes)
    }

    /// One partition of the index.
    pub(super) async fn index_partition(&self, bucket: i32, shard: i16) -> Result<Vec<IndexRow>, StoreError> {
        let rows: Vec<(String, Option<Vec<String>>, Vec<u8>)> =
            select(&self.session, &self.index, (bucket, shard)).await?;
        let rows = rows.into_iter().map(|(service, names, entries)| {
            let names = names.unwrap_or_default();
            let entries = unpack::entries(&entries, names.len());
            IndexRow { service, names, entries }
        });
        Ok(rows.collect())
    }

    /// One partition of the longest or shortest of everything.
    pub(super) async fn durations(
        &self,
        level: i8,
        bucket: i32,
        which: i8,
        shard: i16,
    ) -> Result<Vec<Candidate>, StoreError> {
        let rows: Vec<(i64, Vec<u8>, i64, i64)> =
            select(&self.session, &self.duration, (level, bucket, which, shard)).await?;
        let rows = rows.into_iter().filter_map(|(duration_ns, trace_id, span_id, floor_ns)| {
            Some(Candidate {
                duration_ns: duration_ns as u64,
                span_id: SpanId(span_id as u64),
                trace_id: trace_of_key(&trace_id)?,
                floor_ns: (floor_ns != 0 && floor_ns != i64::MAX).then_some(floor_ns as u64),
            })
        });
        Ok(rows.collect())
    }

    /// All rows stored under this id.
    pub(super) async fn rows_of_trace(
        &self,
        id: TraceId,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Span>, StoreError> {
        let (rows, said) = self.parts_of_trace(id).await?;
        warnings.extend(said);
        Ok(rows)
    }

    /// All rows stored under these ids, in no order.
    pub(super) async fn rows_of_traces(
        &self,
        ids: &[TraceId],
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Span>, StoreError> {
        let mut reads =
            stream::iter(ids.to_vec()).map(|id| self.parts_of_trace(id)).buffer_unordered(IN_FLIGHT_MAX);
        let mut rows = Vec::new();
        while let Some(read) = reads.next().await {
            let (spans, said) = read?;
            rows.extend(spans);
            warnings.extend(said.into_iter().take(WARNINGS_MAX.saturating_sub(warnings.len())));
        }
        Ok(rows)
    }

    async fn parts_of_trace(&self, id: TraceId) -> Result<(Vec<Span>, Vec<String>), StoreError> {
        let mut spans = Vec::new();
        let mut warnings = Vec::new();
        for part in 0..PARTS_MAX {
            let rows: Vec<(i64, i32, Vec<u8>)> =
                select(&self.session, &self.trace, (trace_key(id), part)).await?;
            let mut goes_on = false;
            for (start_ns, flags, bytes) in rows {
                goes_on |= flags & FLAG_GOES_ON != 0;
                if bytes.is_empty() {
                    continue;
                }
                match unpack::spans(id, start_ns as u64, &bytes) {
                    Ok(unpacked) => spans.extend(unpacked),
                    Err(error) => warnings.push(format!("trace {id}: {error}")),
                }
            }
            if !goes_on {
                break;
            }
        }
        Ok((spans, warnings))
    }

    /// Entries of one span within a window of starts.
    pub(super) async fn entries_of(
        &self,
        span_id: SpanId,
        window: (u64, u64),
        warnings: &mut Vec<String>,
    ) -> Result<Vec<Entry>, StoreError> {
        let minutes =
            self.minutes((bucket(window.0, INDEX_BUCKET_S), bucket(window.1, INDEX_BUCKET_S))).await?;
        let mut found = Vec::new();
        self.scan(&minutes, warnings, |entry| {
            if entry.span_id == span_id {
                found.push(entry);
            }
            true
        })
        .await?;
        Ok(found)
    }

    /// Goes through the index, newest minutes first, until `look` says that it has enough.
    async fn scan(
        &self,
        minutes: &[i32],
        warnings: &mut Vec<String>,
        mut look: impl FnMut(Entry) -> bool,
    ) -> Result<(), StoreError> {
        let mut reads = stream::iter(self.partitions(minutes).into_iter().take(ID_PARTITIONS_MAX))
            .map(|(minute, shard)| self.index_partition(minute, shard))
            .buffered(IN_FLIGHT_MAX);
        while let Some(rows) = reads.next().await {
            let mut goes_on = true;
            for row in rows? {
                match row.entries {
                    Ok(entries) => entries.into_iter().for_each(|entry| goes_on &= look(entry)),
                    Err(error) => warnings.push(format!("index of {}: {error}", row.service)),
                }
            }
            if !goes_on {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Fails if a search through these minutes cannot have seen all of them.
    fn check_scanned(&self, minutes: &[i32], what: &str) -> Result<(), StoreError> {
        let most = ID_PARTITIONS_MAX / self.shards.max(1).unsigned_abs() as usize;
        match minutes.get(most) {
            None => Ok(()),
            Some(_) => Err(StoreError::Other(anyhow::anyhow!(
                "{what} is not in the newest {most} minutes of the index, and further back was not searched: give \
                 the whole id of the trace"
            ))),
        }
    }
}

#[async_trait]
impl Reader for CassandraReader {
    async fn spans(&self, query: &SpanQuery) -> Result<Answer<Span>, StoreError> {
        let mut warnings = Vec::new();
        if query.limit == 0 || query.since_unix_ns >= query.until_unix_ns {
            return Ok(Answer { rows: Vec::new(), warnings });
        }
        if let Some(rows) = longest::select(self, query, &mut warnings).await? {
            return Ok(Answer { rows, warnings });
        }
        warnings.clear();
        let rows = search::select(self, query, &mut warnings).await?;
        warnings.truncate(WARNINGS_MAX);
        Ok(Answer { rows, warnings })
    }

    async fn trace(&self, trace_id: TraceId) -> Result<Answer<Span>, StoreError> {
        let mut warnings = Vec::new();
        let rows = whole_trace(self, trace_id, &mut warnings).await?;
        Ok(Answer { rows, warnings })
    }

    async fn trace_of_span(&self, span_id: SpanId) -> Result<Option<TraceId>, StoreError> {
        let mut warnings = Vec::new();
        // The root of a trace is found by its id.
        let own = self.rows_of_trace(span_id.as_root_trace(), &mut warnings).await?;
        let own_rows: Vec<&Span> = own.iter().filter(|row| row.span_id == span_id).collect();
        if own_rows.iter().any(|row| !row.flags.contains(SpanFlags::FRAGMENT)) {
            return Ok(Some(span_id.as_root_trace()));
        }
        if !own_rows.is_empty() {
            return climb(self, span_id.as_root_trace(), &own, &mut warnings).await.map(Some);
        }
        let minutes = self.minutes((0, i32::MAX)).await?;
        let mut found: Option<Entry> = None;
        self.scan(&minutes, &mut warnings, |entry| {
            if entry.span_id == span_id {
                // The caller's row names the trace that the span is part of.
                let better = found.is_none_or(|known| known.bits.0 & crate::schema::Bits::FRAGMENT != 0);
                if better {
                    found = Some(entry);
                }
            }
            found.is_none()
        })
        .await?;
        let Some(entry) = found else {
            self.check_scanned(&minutes, &format!("span {span_id}"))?;
            return Ok(None);
        };
        if entry.bits.0 & crate::schema::Bits::FRAGMENT == 0 {
            return Ok(Some(entry.trace_id));
        }
        let rows = self.rows_of_trace(entry.trace_id, &mut warnings).await?;
        climb(self, entry.trace_id, &rows, &mut warnings).await.map(Some)
    }

    async fn traces_with_prefix(&self, prefix: &str, limit: usize) -> Result<Vec<TraceId>, StoreError> {
        let prefix = prefix.to_ascii_lowercase();
        let digits = prefix.len();
        if !(1..=32).contains(&digits) || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Vec::new());
        }
        let mut warnings = Vec::new();
        if matches!(digits, 16 | 32)
            && let Ok(id) = prefix.parse::<TraceId>()
        {
            let rows = self.rows_of_trace(id, &mut warnings).await?;
            if !rows.is_empty() {
                let is_fragment = rows.iter().all(|row| row.flags.contains(SpanFlags::FRAGMENT));
                let id = if is_fragment { climb(self, id, &rows, &mut warnings).await? } else { id };
                return Ok(vec![id].into_iter().take(limit).collect());
            }
            if digits == 32 {
                return Ok(Vec::new());
            }
        }
        let minutes = self.minutes((0, i32::MAX)).await?;
        let mut found = BTreeSet::new();
        self.scan(&minutes, &mut warnings, |entry| {
            if has_prefix(entry.trace_id, &prefix) && found.insert(entry.trace_id) && found.len() > limit {
                found.pop_last();
            }
            true
        })
        .await?;
        if found.is_empty() {
            self.check_scanned(&minutes, &format!("a trace that starts with {prefix}"))?;
        }
        Ok(found.into_iter().collect())
    }

    async fn rollups(&self, query: &RollupQuery) -> Result<Answer<Rollup>, StoreError> {
        self.sum_rollups(query, true).await
    }

    async fn rollup_sums(&self, query: &RollupQuery) -> Result<Answer<Rollup>, StoreError> {
        self.sum_rollups(query, false).await
    }

    async fn edges(&self, since_unix_ns: u64, until_unix_ns: u64) -> Result<Answer<RunEdge>, StoreError> {
        self.sum_edges(since_unix_ns, until_unix_ns).await
    }

    async fn runs(&self) -> Result<Vec<RunInfo>, StoreError> {
        type AgentRow = (Uuid, String, Option<BTreeMap<String, String>>, String, String, String, i64);
        let rows: Vec<AgentRow> = select(&self.session, &self.agents, ()).await?;
        let mut runs: Vec<RunInfo> = rows
            .into_iter()
            .map(|(run_id, host, labels, version, kernel, backend, started_ns)| RunInfo {
                run_id: RunId(run_id.as_u128()),
                host,
                // An empty map is none in Cassandra.
                labels: labels.unwrap_or_default(),
                version,
                kernel,
                backend,
                started_unix_ns: started_ns as u64,
            })
            .collect();
        runs.sort_by_key(|run| std::cmp::Reverse((run.started_unix_ns, run.run_id)));
        Ok(runs)
    }
}

/// As [`Reader::traces_with_prefix`] says.
fn has_prefix(id: TraceId, prefix: &str) -> bool {
    let digits = prefix.len();
    let Ok(value) = u128::from_str_radix(prefix, 16) else { return false };
    let starts = |number: u128, of: usize| digits <= of && number >> (4 * (of - digits)) == value;
    starts(id.0, 32) || (id.0 >> 64 == 0 && starts(id.0, 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_of_digits() {
        let id = TraceId(0xab00_0000_0000_0001);
        for (prefix, expected) in [
            ("a", true),
            ("ab", true),
            ("ab00000000000001", true),
            ("ab000000000000010", false),
            ("0", true),
            ("0000000000000000", true),
            ("0000000000000000ab", true),
            ("00000000000000000", false),
            ("b", false),
        ] {
            assert_eq!(has_prefix(id, prefix), expected, "{prefix}");
        }
        assert!(!has_prefix(TraceId(0x1 << 64 | 0xab), "ab"));
    }
}
