//! The chunk that a writer is filling: one transaction per batch, and a write-ahead log that stays small.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dprof_common::model::Span;
use rusqlite::{Connection, TransactionBehavior};

use super::access::Access;
use super::chunk::{self, sqlite_error};
use super::names::{NameCache, NameWriter};
use super::run::side_path;
use super::summary::Zone;
use crate::edge_rows;
use crate::rows::{Dictionary, pack_body};
use crate::schema::{Bits, GROUP_ROWS, relative_ns, stored_duration};
use crate::{Batch, StoreError};

/// Above this the log is emptied by force; normally SQLite wraps it at 8 MiB.
const WAL_TRUNCATE_BYTES: u64 = 16 << 20;
/// Above this, with a reader that lets nobody empty it, the writer goes on in a new chunk.
pub(crate) const WAL_BYTES_MAX: u64 = 32 << 20;
/// Between tries to empty it.
const WAL_STEP_BYTES: u64 = 4 << 20;
/// How long one try may wait for readers.
const TRUNCATE_WAIT: Duration = Duration::from_millis(20);

/// A chunk being written.
pub(crate) struct LiveChunk {
    /// Its connection; the sealer takes it over.
    pub(crate) connection: Connection,
    /// Its file.
    pub(crate) path: PathBuf,
    /// When it was made, on the writer's idea of now.
    pub(crate) opened_ns: u64,
    base_ns: u64,
    next_id: i64,
    group: Zone,
    names: NameCache,
    wal_try_bytes: u64,
}

impl LiveChunk {
    /// Makes a chunk whose times count from `base_ns`.
    pub(crate) fn create(
        path: PathBuf,
        base_ns: u64,
        now_ns: u64,
        access: Access,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            connection: chunk::create(&path, base_ns, access)?,
            path,
            opened_ns: now_ns,
            base_ns,
            next_id: 0,
            group: Zone::EMPTY,
            names: NameCache::default(),
            wal_try_bytes: WAL_TRUNCATE_BYTES,
        })
    }

    /// Stores a batch, all or nothing.
    pub(crate) fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let (next_id, group) = (self.next_id, self.group);
        let written = self.write_rows(batch);
        if written.is_err() {
            self.next_id = next_id;
            self.group = group;
            // Numbers given out in the failed transaction are void.
            self.names.clear();
        }
        written.map_err(|error| sqlite_error(&self.path, error))
    }

    fn write_rows(&mut self, batch: &Batch) -> rusqlite::Result<()> {
        let transaction =
            rusqlite::Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        transaction.prepare_cached("INSERT INTO batches VALUES (?1)")?.execute([batch.seq as i64])?;
        let mut names = NameWriter { connection: &transaction, cache: &mut self.names };
        {
            let mut insert = transaction
                .prepare_cached("INSERT INTO spans VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)")?;
            for span in &batch.spans {
                let id = self.next_id;
                if id % GROUP_ROWS == 0 && id > 0 {
                    write_group(&transaction, id / GROUP_ROWS - 1, &self.group, self.base_ns)?;
                    self.group = Zone::EMPTY;
                }
                let (start_ns, duration_ns) = (span.start_ns(), span.duration_ns());
                let start = relative_ns(self.base_ns, start_ns);
                let body = pack_body(span, self.base_ns.wrapping_add(start as u64), &mut names)?;
                let (service, operation) = match span.nearest() {
                    Some(half) => (names.text_id(&half.process.service)?, names.text_id(&half.operation)?),
                    None => (0, 0),
                };
                let bits = Bits::of(span);
                insert.execute((
                    id,
                    id / GROUP_ROWS,
                    span.trace_id.0 as i64,
                    (span.trace_id.0 >> 64) as i64,
                    span.span_id.0 as i64,
                    start,
                    stored_duration(duration_ns),
                    service,
                    operation,
                    bits.0,
                    &body,
                ))?;
                self.group.merge(&zone_of(span, bits));
                self.next_id += 1;
            }
        }
        if self.next_id > 0 {
            write_group(&transaction, (self.next_id - 1) / GROUP_ROWS, &self.group, self.base_ns)?;
        }
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO rollups(minute, service, operation, side, protocol, count, errors, sum_ns, min_ns,
                    max_ns, request_bytes, response_bytes, sketch, keys)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            )?;
            for rollup in &batch.rollups {
                insert.execute((
                    rollup.key.minute_unix_s as i64,
                    names.text_id(&rollup.key.service)?,
                    names.text_id(&rollup.key.operation)?,
                    rollup.key.side as u8,
                    names.text_id(&rollup.key.protocol)?,
                    rollup.count as i64,
                    rollup.errors as i64,
                    rollup.sum_ns as i64,
                    rollup.min_ns as i64,
                    rollup.max_ns as i64,
                    rollup.request_bytes as i64,
                    rollup.response_bytes as i64,
                    rollup.sketch.encode(),
                    rollup.keys.as_ref().map(|keys| keys.encode()),
                ))?;
            }
        }
        for (minute_min, minute_max, packed) in edge_rows::pack(&batch.edges) {
            transaction
                .prepare_cached("INSERT INTO edges(minute_min, minute_max, packed) VALUES (?1, ?2, ?3)")?
                .execute((minute_min as i64, minute_max as i64, packed))?;
        }
        transaction.commit()?;
        // Readers that may not write to the log's index see what the newest *read* transaction of somebody who
        // may has marked: without this one they would be a batch late. What is committed stays so if it fails.
        let _ = self.connection.prepare_cached("SELECT 1 FROM chunk").and_then(|mut s| s.exists([]));
        Ok(())
    }

    /// Bytes of the file and its log.
    pub(crate) fn bytes(&self) -> u64 {
        file_bytes(&self.path) + self.wal_bytes()
    }

    /// Bytes of the log.
    pub(crate) fn wal_bytes(&self) -> u64 {
        file_bytes(&side_path(&self.path, "-wal"))
    }

    /// Empties the log if it has grown; `false` if it is over the limit because a reader holds it.
    pub(crate) fn bound_wal(&mut self) -> bool {
        let bytes = self.wal_bytes();
        if bytes < self.wal_try_bytes {
            return true;
        }
        let _ = self.connection.busy_timeout(TRUNCATE_WAIT);
        let emptied = self
            .connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0))
            .is_ok_and(|busy| busy == 0);
        let _ = self.connection.busy_timeout(chunk::BUSY_TIMEOUT);
        self.wal_try_bytes = if emptied { WAL_TRUNCATE_BYTES } else { bytes + WAL_STEP_BYTES };
        emptied || bytes < WAL_BYTES_MAX
    }
}

fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

fn zone_of(span: &Span, bits: Bits) -> Zone {
    let (start, dur) = (span.start_ns(), span.duration_ns());
    Zone {
        n_spans: 1,
        start_min: start,
        start_max: start,
        dur_min: dur,
        dur_max: dur,
        clients: u64::from(bits.sides() == Bits::CLIENT),
        servers: u64::from(bits.sides() == Bits::SERVER),
    }
}

fn write_group(connection: &Connection, group: i64, zone: &Zone, base_ns: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO groups VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
        .execute((
            group,
            zone.n_spans as i64,
            relative_ns(base_ns, zone.start_min),
            relative_ns(base_ns, zone.start_max),
            stored_duration(zone.dur_min),
            stored_duration(zone.dur_max),
            zone.clients as i64,
            zone.servers as i64,
        ))?;
    Ok(())
}

/// Reads the groups of a chunk back: number and what it holds.
pub(crate) fn read_groups(connection: &Connection, base_ns: u64) -> rusqlite::Result<Vec<(i64, Zone)>> {
    let absolute = |start: i64| base_ns.saturating_add_signed(start);
    connection
        .prepare_cached(
            "SELECT grp, n, start_min, start_max, dur_min, dur_max, clients, servers FROM groups",
        )?
        .query_map([], |row| {
            let number = |at| row.get::<_, i64>(at).map(|n| n as u64);
            Ok((
                row.get(0)?,
                Zone {
                    n_spans: number(1)?,
                    start_min: absolute(row.get(2)?),
                    start_max: absolute(row.get(3)?),
                    dur_min: number(4)?,
                    dur_max: number(5)?,
                    clients: number(6)?,
                    servers: number(7)?,
                },
            ))
        })?
        .collect()
}
