//! The statements that write, and the values they take from packed rows.
//!
//! What a reader would get wrong: rows of one partition go in one unlogged batch, which is one mutation there;
//! rows of different partitions never do, since that would only make one node do the sending for the driver.

use futures_util::future::try_join_all;
use scylla::client::session::Session;
use scylla::errors::ExecutionError;
use scylla::statement::Consistency;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use uuid::Uuid;

use super::batch_rows::{AgentRow, HourRow, IndexRow, MinutesRow, Rows};
use super::duration::DurationRow;
use super::edges::EdgesRow;
use super::link::{prepare, quoted};
use super::tables::{DAY_S, INDEX_BUCKET_S, KIND_DAYS, KIND_HOURS, KIND_MINUTES, PIECE_MARK, bucket};
use crate::StoreError;

/// Bytes of an unlogged batch: Cassandra warns from 5 KiB on and refuses above 50.
const BATCH_BYTES_MAX: usize = 40 << 10;
/// Rows of an unlogged batch without blobs.
const BATCH_ROWS_MAX: usize = 100;

/// The prepared statements.
pub(super) struct Statements {
    trace: PreparedStatement,
    index: PreparedStatement,
    duration: PreparedStatement,
    service: PreparedStatement,
    span_name: PreparedStatement,
    bucket: PreparedStatement,
    minutes: PreparedStatement,
    hour: PreparedStatement,
    edges: PreparedStatement,
    agent: PreparedStatement,
    batch_consistency: Consistency,
}

/// A write to one partition.
#[derive(Clone, Debug)]
pub(super) enum Write<'a> {
    Trace(&'a super::batch_rows::TraceRow),
    Index(&'a [IndexRow]),
    Duration(&'a [DurationRow]),
    Service(i32, &'a str),
    SpanNames(&'a super::batch_rows::NameRow),
    Bucket(i8, i32, i32),
    HourMark(i32),
    Minutes(&'a MinutesRow),
    Hour(&'a HourRow),
    Edges(&'a EdgesRow),
    Agent(&'a AgentRow),
}

impl Statements {
    pub(super) async fn prepare(
        session: &Session,
        keyspace: &str,
        consistency: Consistency,
    ) -> Result<Self, StoreError> {
        let k = quoted(keyspace);
        let insert = |text: String| async move { prepare(session, &text, consistency).await };
        let list = try_join_all([
            insert(format!(
                "INSERT INTO {k}.traces (trace_id, part, run_id, seq, start_ns, span_count, flags, spans)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            )),
            insert(format!(
                "INSERT INTO {k}.service_span_name_index (bucket, shard, service, run_id, seq, names, n, packed)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
            )),
            insert(format!(
                "INSERT INTO {k}.duration_index (service, name, level, bucket, which, shard, duration_ns, start_ns,
                 trace_id, span_id, kind, status, peer, run_id, floor_ns)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            )),
            insert(format!("INSERT INTO {k}.service_names (day, service) VALUES (?, ?)")),
            insert(format!("INSERT INTO {k}.span_names (day, service, kind, name) VALUES (?, ?, ?, ?)")),
            insert(format!("INSERT INTO {k}.time_buckets (kind, period, bucket) VALUES (?, ?, ?)")),
            insert(format!("INSERT INTO {k}.latency_rollup_60 (bucket, run_id, seq, rollups) VALUES (?, ?, ?, ?)")),
            insert(format!(
                "INSERT INTO {k}.latency_rollup_3600 (bucket, run_id, piece, from_seq, through_seq, rollups)
                 VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?"
            )),
            insert(format!("INSERT INTO {k}.dependencies (bucket, run_id, seq, edges) VALUES (?, ?, ?, ?)")),
            insert(format!(
                "INSERT INTO {k}.agents (region, run_id, host, labels, version, kernel, backend, started_ns)
                 VALUES ('all', ?, ?, ?, ?, ?, ?, ?)"
            )),
        ])
        .await?;
        let Ok([trace, index, duration, service, span_name, bucket, minutes, hour, edges, agent]) =
            <[PreparedStatement; 10]>::try_from(list)
        else {
            return Err(StoreError::Other(anyhow::anyhow!("ten statements were prepared")));
        };
        Ok(Self {
            trace,
            index,
            duration,
            service,
            span_name,
            bucket,
            minutes,
            hour,
            edges,
            agent,
            batch_consistency: consistency,
        })
    }

    /// Does one write.
    pub(super) async fn write(
        &self,
        session: &Session,
        run_id: Uuid,
        shard: i16,
        write: &Write<'_>,
    ) -> Result<(), ExecutionError> {
        match write {
            Write::Trace(row) => {
                let values = (
                    &row.trace_id,
                    row.part as i16,
                    run_id,
                    row.seq,
                    row.start_ns,
                    row.span_count,
                    row.flags,
                    &row.spans,
                );
                session.execute_unpaged(&self.trace, values).await.map(drop)
            }
            Write::Index(rows) => {
                let values = |row: &'_ IndexRow| {
                    (
                        row.bucket,
                        shard,
                        row.service.clone(),
                        run_id,
                        row.seq,
                        row.names.clone(),
                        row.n,
                        row.entries.clone(),
                    )
                };
                if let [row] = rows {
                    return session.execute_unpaged(&self.index, values(row)).await.map(drop);
                }
                let batch = self.batch(&self.index, rows.len());
                let values: Vec<_> = rows.iter().map(values).collect();
                session.batch(&batch, values).await.map(drop)
            }
            Write::Duration(rows) => {
                let batch = self.batch(&self.duration, rows.len());
                let values: Vec<DurationValues<'_>> =
                    rows.iter().map(|row| DurationValues { row, shard, run_id }).collect();
                session.batch(&batch, values).await.map(drop)
            }
            Write::Service(day, service) => {
                session.execute_unpaged(&self.service, (day, service)).await.map(drop)
            }
            Write::SpanNames(row) => {
                let values = (row.day, &row.service, row.kind as i8, &row.name);
                session.execute_unpaged(&self.span_name, values).await.map(drop)
            }
            Write::Bucket(kind, period, bucket) => {
                session.execute_unpaged(&self.bucket, (kind, period, bucket)).await.map(drop)
            }
            Write::HourMark(bucket) => {
                // The same whoever writes it when: a fixed time keeps it one cell.
                let values = (bucket, run_id, PIECE_MARK, 0_i64, 0_i64, Vec::<u8>::new(), 1_i64);
                session.execute_unpaged(&self.hour, values).await.map(drop)
            }
            Write::Agent(row) => {
                let values = (
                    run_id,
                    &row.host,
                    &row.labels,
                    &row.version,
                    &row.kernel,
                    &row.backend,
                    row.started_unix_ns as i64,
                );
                session.execute_unpaged(&self.agent, values).await.map(drop)
            }
            Write::Minutes(row) => session
                .execute_unpaged(&self.minutes, (row.bucket, run_id, row.seq, &row.rollups))
                .await
                .map(drop),
            Write::Edges(row) => session
                .execute_unpaged(&self.edges, (row.bucket, run_id, row.seq, &row.edges))
                .await
                .map(drop),
            Write::Hour(row) => {
                let values = (
                    row.bucket,
                    run_id,
                    row.piece as i16,
                    row.from_seq,
                    row.through_seq,
                    &row.rollups,
                    row.timestamp_us,
                );
                session.execute_unpaged(&self.hour, values).await.map(drop)
            }
        }
    }

    fn batch(&self, statement: &PreparedStatement, n: usize) -> Batch {
        let mut batch = Batch::new(BatchType::Unlogged);
        for _ in 0..n {
            batch.append_statement(statement.clone());
        }
        batch.set_is_idempotent(true);
        batch.set_consistency(self.batch_consistency);
        batch
    }
}

/// More columns than a tuple may have.
#[derive(scylla::SerializeRow)]
struct DurationColumns<'a> {
    service: &'a str,
    name: &'a str,
    level: i8,
    bucket: i32,
    which: i8,
    shard: i16,
    duration_ns: i64,
    start_ns: i64,
    trace_id: &'a [u8],
    span_id: i64,
    kind: i8,
    status: i8,
    peer: &'a str,
    run_id: Uuid,
    floor_ns: i64,
}

struct DurationValues<'a> {
    row: &'a DurationRow,
    shard: i16,
    run_id: Uuid,
}

impl scylla::serialize::row::SerializeRow for DurationValues<'_> {
    fn serialize(
        &self,
        context: &scylla::serialize::row::RowSerializationContext<'_>,
        writer: &mut scylla::serialize::writers::RowWriter<'_>,
    ) -> Result<(), scylla::errors::SerializationError> {
        let Self { row, shard, run_id } = self;
        DurationColumns {
            service: &row.service,
            name: &row.name,
            level: row.level as i8,
            bucket: row.bucket,
            which: row.which as i8,
            shard: *shard,
            duration_ns: row.duration_ns,
            start_ns: row.start_ns,
            trace_id: &row.trace_id,
            span_id: row.span_id,
            kind: row.kind as i8,
            status: row.status as i8,
            peer: &row.peer,
            run_id: *run_id,
            floor_ns: row.floor_ns,
        }
        .serialize(context, writer)
    }

    fn is_empty(&self) -> bool {
        false
    }
}

/// The day of a minute of the index.
pub(super) fn day_of(minute: i32) -> i32 {
    bucket(u64::try_from(minute).unwrap_or(0) * INDEX_BUCKET_S * 1_000_000_000, DAY_S)
}

/// The writes of a batch's counts…
pub(super) fn counts(rows: &Rows) -> Vec<Write<'_>> {
    let minutes = rows.minutes.iter().map(Write::Minutes);
    let hours = rows.rollup_hours.iter();
    minutes
        .chain(rows.hours.iter().map(Write::Hour))
        .chain(rows.edges.iter().map(Write::Edges))
        .chain(hours.clone().map(|hour| Write::HourMark(*hour)))
        .chain(hours.map(|hour| Write::Bucket(KIND_HOURS, 0, *hour)))
        .chain(rows.agent.as_ref().map(Write::Agent))
        .collect()
}

/// …of its traces…
pub(super) fn traces(rows: &Rows) -> Vec<Write<'_>> {
    rows.traces.iter().map(Write::Trace).collect()
}

/// …and of what leads to them, which comes last: a reader that finds an entry finds its trace.
pub(super) fn index(rows: &Rows) -> Vec<Write<'_>> {
    let mut writes = Vec::new();
    let bytes =
        |row: &IndexRow| row.entries.len() + row.names.iter().map(|name| name.len() + 2).sum::<usize>() + 64;
    for partition in rows.index.chunk_by(|a, b| a.bucket == b.bucket) {
        let mut from = 0;
        let mut sum = 0;
        for (idx, row) in partition.iter().enumerate() {
            if idx > from && (sum + bytes(row) > BATCH_BYTES_MAX || idx - from >= BATCH_ROWS_MAX) {
                writes.push(Write::Index(&partition[from..idx]));
                (from, sum) = (idx, 0);
            }
            sum += bytes(row);
        }
        writes.push(Write::Index(&partition[from..]));
    }
    let key = |row: &DurationRow| (row.bucket, row.level, row.which, row.service.clone(), row.name.clone());
    for partition in rows.durations.chunk_by(|a, b| key(a) == key(b)) {
        writes.extend(partition.chunks(BATCH_ROWS_MAX).map(Write::Duration));
    }
    for name in &rows.names {
        writes.push(if name.kind == 0 {
            Write::Service(name.day, &name.service)
        } else {
            Write::SpanNames(name)
        });
    }
    let mut days: Vec<i32> = rows.buckets.iter().map(|bucket| day_of(*bucket)).collect();
    days.dedup();
    writes.extend(rows.buckets.iter().map(|minute| Write::Bucket(KIND_MINUTES, day_of(*minute), *minute)));
    writes.extend(days.into_iter().map(|day| Write::Bucket(KIND_DAYS, 0, day)));
    writes
}
