//! One question to the store: which chunks there are, those opened for it, and what went wrong on the way.
//!
//! Every statement is a short read transaction of its own (at most a group of rows), so that an agent's log can
//! be emptied between any two. A chunk that vanished or is damaged costs a warning, not the answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dprof_common::model::{RunId, Span, SpanId, TraceId};
use rusqlite::{Connection, Row};
use rustc_hash::{FxHashMap, FxHashSet};

use super::chunk::{Opened, open_for_reading, sqlite_error};
use super::live::read_groups;
use super::names::{NameReader, ReadError, ReadNames};
use super::run::{ChunkFile, list_chunks, list_runs};
use super::summary::{Summary, Zone};
use crate::StoreError;
use crate::rows::unpack_body;
use crate::schema::CREATE;

/// Chunks open at a time: a question about 200 chunks must not take 200 files and page caches.
const OPEN_MAX: usize = 16;
/// Lookups in one transaction.
pub(crate) const KEYS_MAX: usize = 256;
/// Warnings kept; more are counted.
const WARNINGS_MAX: usize = 20;

/// Columns that [`OpenChunk::span_of`] reads, in this order.
pub(crate) const SPAN_COLUMNS: &str = "s.trace_lo, s.trace_hi, s.span_id, s.start, s.body";

/// A chunk of the store.
pub(crate) struct Chunk {
    pub(crate) run_id: RunId,
    pub(crate) file: ChunkFile,
    /// Of a live chunk: what its groups say, once it was opened.
    live_zone: Option<Zone>,
    broken: bool,
}

/// An open chunk.
pub(crate) struct OpenChunk {
    pub(crate) connection: Connection,
    pub(crate) path: PathBuf,
    pub(crate) base_ns: u64,
    pub(crate) groups: Vec<(i64, Zone)>,
    names: ReadNames,
    /// Sealed with [`crate::schema::SEALED_INDEXES`].
    is_indexed: bool,
}

/// A lookup by id, where each group has to be probed and where one index is of all rows.
struct Lookup {
    grouped: Vec<String>,
    indexed: Vec<String>,
}

/// The state of one question.
pub(crate) struct Session {
    pub(crate) chunks: Vec<Chunk>,
    open: Vec<(usize, OpenChunk)>,
    warnings: Vec<String>,
    warnings_left_off: usize,
    damaged_rows: BTreeMap<PathBuf, (usize, String)>,
    /// How many chunks were opened: what tests and the curious look at.
    pub(crate) n_opened: u64,
}

impl OpenChunk {
    fn open(file: &ChunkFile) -> Result<(Self, Option<String>), StoreError> {
        let path = &file.path;
        let Opened { connection, warning, is_empty } = open_for_reading(path)?;
        if is_empty {
            if file.sealed.is_some() {
                let cause = "it is empty".to_owned();
                return Err(StoreError::Damaged { path: path.display().to_string(), cause });
            }
            // Questions need the tables, though not a row: they go to an empty chunk in memory.
            let connection = Connection::open_in_memory()
                .and_then(|memory| memory.execute_batch(CREATE).map(|()| memory))
                .map_err(|error| sqlite_error(path, error))?;
            let empty = Self {
                connection,
                path: path.clone(),
                base_ns: 0,
                groups: Vec::new(),
                names: ReadNames::default(),
                is_indexed: false,
            };
            return Ok((empty, warning));
        }
        let read = || {
            let base_ns =
                connection.query_row("SELECT base_ns FROM chunk", [], |row| row.get::<_, i64>(0))? as u64;
            let has_indexes =
                "SELECT count(*) = 2 FROM sqlite_schema WHERE name IN ('sealed_by_trace', 'sealed_by_id')";
            let is_indexed = connection.query_row(has_indexes, [], |row| row.get(0))?;
            Ok((base_ns, read_groups(&connection, base_ns)?, is_indexed))
        };
        let (base_ns, groups, is_indexed) = read().map_err(|error| sqlite_error(path, error))?;
        let names = ReadNames::default();
        Ok((Self { connection, path: path.clone(), base_ns, groups, names, is_indexed }, warning))
    }

    /// The span of a row of [`SPAN_COLUMNS`].
    pub(crate) fn span_of(&mut self, row: &RawRow) -> Result<Span, ReadError> {
        let mut lookup =
            NameReader { connection: &self.connection, names: &mut self.names, path: &self.path };
        let base_ns = self.base_ns.wrapping_add(row.start as u64);
        unpack_body(row.trace_id, row.span_id, &row.body, base_ns, &mut lookup)
    }

    /// The text of a number.
    pub(crate) fn text(&mut self, id: u32) -> Result<std::sync::Arc<str>, ReadError> {
        use crate::rows::Lookup;
        NameReader { connection: &self.connection, names: &mut self.names, path: &self.path }.text(id)
    }
}

/// A row of [`SPAN_COLUMNS`], not yet unpacked.
pub(crate) struct RawRow {
    trace_id: TraceId,
    span_id: SpanId,
    start: i64,
    body: Vec<u8>,
}

impl RawRow {
    /// Reads a row.
    pub(crate) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let number = |at| row.get::<_, i64>(at).map(|n| n as u64);
        Ok(Self {
            trace_id: TraceId(u128::from(number(1)?) << 64 | u128::from(number(0)?)),
            span_id: SpanId(number(2)?),
            start: row.get(3)?,
            body: row.get(4)?,
        })
    }
}

impl Session {
    /// Lists the store.
    pub(crate) fn begin(dir: &Path) -> Result<Self, StoreError> {
        let (runs, warnings) = list_runs(dir)?;
        let mut session = Self {
            chunks: Vec::new(),
            open: Vec::new(),
            warnings: Vec::new(),
            warnings_left_off: 0,
            damaged_rows: BTreeMap::new(),
            n_opened: 0,
        };
        for warning in warnings {
            session.warn(warning);
        }
        for run in runs {
            match list_chunks(&run.path) {
                Ok(files) => session.chunks.extend(files.into_iter().map(|file| Chunk {
                    run_id: run.info.run_id,
                    file,
                    live_zone: None,
                    broken: false,
                })),
                Err(error) => session.warn(error.to_string()),
            }
        }
        Ok(session)
    }

    /// Adds a warning.
    pub(crate) fn warn(&mut self, warning: String) {
        if self.warnings.contains(&warning) {
            return;
        }
        if self.warnings.len() < WARNINGS_MAX {
            self.warnings.push(warning);
        } else {
            self.warnings_left_off += 1;
        }
    }

    /// Everything that went wrong.
    pub(crate) fn finish(self) -> Vec<String> {
        let mut warnings = self.warnings;
        for (path, (n, cause)) in self.damaged_rows {
            warnings.push(format!("{}: {n} damaged rows left out ({cause})", path.display()));
        }
        if self.warnings_left_off > 0 {
            warnings.push(format!("and {} more warnings", self.warnings_left_off));
        }
        warnings
    }

    /// Runs `ask` on an open chunk, opening it if need be. `None` if the chunk cannot be read; a newer schema is
    /// an error of the whole question.
    ///
    /// On a sealed chunk everything is one transaction (each costs a dozen system calls); on a live one each
    /// statement is, for its log's sake.
    pub(crate) fn with<T>(
        &mut self,
        idx: usize,
        ask: impl FnOnce(&mut OpenChunk) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        let whole = self.chunks[idx].file.sealed.is_some();
        self.with_transaction(idx, whole, ask)
    }

    /// The same for at most [`KEYS_MAX`] lookups, which are few enough for one transaction on any chunk.
    pub(crate) fn with_short<T>(
        &mut self,
        idx: usize,
        ask: impl FnOnce(&mut OpenChunk) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        self.with_transaction(idx, true, ask)
    }

    fn with_transaction<T>(
        &mut self,
        idx: usize,
        whole: bool,
        ask: impl FnOnce(&mut OpenChunk) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        if self.chunks[idx].broken {
            return Ok(None);
        }
        let answer = self.opened(idx).and_then(|chunk| {
            let run =
                |sql| chunk.connection.execute_batch(sql).map_err(|error| sqlite_error(&chunk.path, error));
            if whole {
                run("BEGIN")?;
            }
            let answer = ask(chunk);
            if whole {
                // Of a transaction that only read; SQLite ends it by itself after some errors.
                let _ = chunk.connection.execute_batch("ROLLBACK");
            }
            answer
        });
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error @ StoreError::Newer { .. }) => Err(error),
            Err(error) => {
                self.chunks[idx].broken = true;
                self.open.retain(|(open, _)| *open != idx);
                self.warn(match error {
                    StoreError::NotFound(path) => format!("{path} expired while it was being asked"),
                    error => error.to_string(),
                });
                Ok(None)
            }
        }
    }

    fn opened(&mut self, idx: usize) -> Result<&mut OpenChunk, StoreError> {
        if let Some(at) = self.open.iter().position(|(open, _)| *open == idx) {
            // Most recently used last.
            self.open[at..].rotate_left(1);
        } else {
            let (chunk, warning) = OpenChunk::open(&self.chunks[idx].file)?;
            self.n_opened += 1;
            if let Some(warning) = warning {
                self.warn(warning);
            }
            if self.open.len() >= OPEN_MAX {
                self.open.remove(0);
            }
            self.open.push((idx, chunk));
        }
        Ok(&mut self.open.last_mut().expect("just put there").1)
    }

    /// What a chunk holds; opens it if it has no summary.
    pub(crate) fn zone(&mut self, idx: usize) -> Result<Option<Zone>, StoreError> {
        if let Some((summary, _)) = &self.chunks[idx].file.sealed {
            return Ok(Some(summary.zone));
        }
        if let Some(zone) = self.chunks[idx].live_zone {
            return Ok(Some(zone));
        }
        let zone = self.with(idx, |chunk| {
            let mut zone = Zone::EMPTY;
            chunk.groups.iter().for_each(|(_, group)| zone.merge(group));
            Ok(zone)
        })?;
        self.chunks[idx].live_zone = zone;
        Ok(zone)
    }

    /// Whether the chunk may hold one of these ids, without opening it if it is sealed.
    fn may_hold(&self, idx: usize, id: u64) -> bool {
        match &self.chunks[idx].file.sealed {
            Some((summary, file)) => summary.may_contain(file, id),
            None => true,
        }
    }

    /// Takes the spans that unpacked, notes the rows that did not.
    pub(crate) fn take_spans(
        &mut self,
        idx: usize,
        unpacked: Vec<Result<Span, ReadError>>,
    ) -> Result<Vec<Span>, StoreError> {
        let mut spans = Vec::with_capacity(unpacked.len());
        for span in unpacked {
            match span {
                Ok(span) => spans.push(span),
                Err(ReadError::Row(error)) => self.damaged_row(idx, &error.to_string()),
                Err(ReadError::Store(error @ StoreError::Newer { .. })) => return Err(error),
                Err(ReadError::Store(error)) => self.warn(error.to_string()),
            }
        }
        Ok(spans)
    }

    /// Counts a damaged row.
    pub(crate) fn damaged_row(&mut self, idx: usize, cause: &str) {
        let path = self.chunks[idx].file.path.clone();
        self.damaged_rows.entry(path).or_insert_with(|| (0, cause.to_owned())).0 += 1;
    }

    /// Every row of these spans, from all chunks, not merged.
    pub(crate) fn rows_of_spans(
        &mut self,
        ids: &[SpanId],
    ) -> Result<FxHashMap<SpanId, Vec<Span>>, StoreError> {
        // The first finds roots (their trace id is their span id), the second all others.
        let lookup = Lookup {
            grouped: vec![
                format!(
                    "SELECT {SPAN_COLUMNS} FROM groups g CROSS JOIN spans s INDEXED BY spans_by_trace
                     ON s.grp = g.grp AND s.trace_lo = ?1 WHERE s.span_id = ?1"
                ),
                format!(
                    "SELECT {SPAN_COLUMNS} FROM groups g CROSS JOIN spans s INDEXED BY spans_by_id
                     ON s.grp = g.grp AND s.span_id = ?1 AND s.span_id <> s.trace_lo"
                ),
            ],
            indexed: vec![
                format!(
                    "SELECT {SPAN_COLUMNS} FROM spans s INDEXED BY sealed_by_trace
                     WHERE s.trace_lo = ?1 AND s.span_id = ?1"
                ),
                format!(
                    "SELECT {SPAN_COLUMNS} FROM spans s INDEXED BY sealed_by_id
                     WHERE s.span_id = ?1 AND s.span_id <> s.trace_lo"
                ),
            ],
        };
        let mut found: FxHashMap<SpanId, Vec<Span>> = FxHashMap::default();
        for idx in 0..self.chunks.len() {
            let here: Vec<(u64, Option<u64>)> =
                ids.iter().filter(|id| self.may_hold(idx, id.0)).map(|id| (id.0, None)).collect();
            for span in self.spans_where(idx, &lookup, &here)? {
                found.entry(span.span_id).or_default().push(span);
            }
        }
        Ok(found)
    }

    /// Every row of these traces, from all chunks, not merged.
    pub(crate) fn rows_of_traces(
        &mut self,
        ids: &FxHashSet<TraceId>,
        limit: usize,
    ) -> Result<Vec<Span>, StoreError> {
        let lookup = Lookup {
            grouped: vec![format!(
                "SELECT {SPAN_COLUMNS} FROM groups g CROSS JOIN spans s INDEXED BY spans_by_trace
                 ON s.grp = g.grp AND s.trace_lo = ?1 WHERE s.trace_hi = ?2"
            )],
            indexed: vec![format!(
                "SELECT {SPAN_COLUMNS} FROM spans s INDEXED BY sealed_by_trace
                 WHERE s.trace_lo = ?1 AND s.trace_hi = ?2"
            )],
        };
        let mut found = Vec::new();
        for idx in 0..self.chunks.len() {
            let here: Vec<(u64, Option<u64>)> = ids
                .iter()
                .filter(|id| self.may_hold(idx, id.0 as u64))
                .map(|id| (id.0 as u64, Some((id.0 >> 64) as u64)))
                .collect();
            found.extend(self.spans_where(idx, &lookup, &here)?);
            if found.len() >= limit {
                self.warn(format!("the trace has more than {limit} rows: the rest is left out"));
                found.truncate(limit);
                break;
            }
        }
        Ok(found)
    }

    fn spans_where(
        &mut self,
        idx: usize,
        lookup: &Lookup,
        keys: &[(u64, Option<u64>)],
    ) -> Result<Vec<Span>, StoreError> {
        let mut spans = Vec::new();
        for few in keys.chunks(KEYS_MAX) {
            spans.extend(self.spans_where_few(idx, lookup, few)?);
        }
        Ok(spans)
    }

    fn spans_where_few(
        &mut self,
        idx: usize,
        lookup: &Lookup,
        keys: &[(u64, Option<u64>)],
    ) -> Result<Vec<Span>, StoreError> {
        let unpacked = self.with_short(idx, |chunk| {
            let mut raw = Vec::new();
            for query in if chunk.is_indexed { &lookup.indexed } else { &lookup.grouped } {
                let mut select = chunk
                    .connection
                    .prepare_cached(query)
                    .map_err(|error| sqlite_error(&chunk.path, error))?;
                for &(first, second) in keys {
                    let first = first as i64;
                    let rows = match second {
                        Some(second) => select.query_map((first, second as i64), RawRow::read),
                        None => select.query_map([first], RawRow::read),
                    };
                    rows.and_then(|rows| {
                        for row in rows {
                            raw.push(row?);
                        }
                        Ok(())
                    })
                    .map_err(|error| sqlite_error(&chunk.path, error))?;
                }
            }
            Ok(raw.iter().map(|row| chunk.span_of(row)).collect::<Vec<_>>())
        })?;
        self.take_spans(idx, unpacked.unwrap_or_default())
    }

    /// The summary of a sealed chunk.
    pub(crate) fn summary(&self, idx: usize) -> Option<&Summary> {
        self.chunks[idx].file.sealed.as_ref().map(|(summary, _)| summary)
    }
}

/// Merges rows of one span.
pub(crate) fn merge_rows(rows: impl IntoIterator<Item = Span>) -> Option<Span> {
    rows.into_iter().reduce(|mut merged, row| {
        merged.merge(row);
        merged
    })
}
