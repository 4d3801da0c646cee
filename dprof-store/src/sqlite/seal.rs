//! Sealing: a chunk that takes no more spans gets indexes of all rows, its summary and filter, loses its write-ahead
//! log, and is from then on an ordinary read-only SQLite file.
//!
//! On a thread of its own: reading the ids of a million spans takes some tenths of a second.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::access::Access;
use super::chunk::{open_for_writing, sqlite_error, version};
use super::edges::has_edges;
use super::filter::FilterBuilder;
use super::live::read_groups;
use super::lock::{self, Lock};
use super::run::summary_path;
use super::summary::{Summary, Zone};
use crate::StoreError;
use crate::schema::SEALED_INDEXES;

/// A chunk to seal.
pub(crate) struct Job {
    /// Its file.
    pub(crate) path: PathBuf,
    /// The writer's connection, if it comes straight from there.
    pub(crate) connection: Option<Connection>,
    /// Of another, dead run: held while its chunk is being changed.
    pub(crate) run_lock: Option<Lock>,
}

/// What became of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// All done.
    Whole,
    /// It has its summary, but a reader keeps the log: to be tried again.
    LogKept,
}

/// Seals one chunk.
pub(crate) fn seal(job: Job, access: Access) -> Result<Sealed, StoreError> {
    let Job { path, connection, run_lock: _held } = job;
    let connection = match connection {
        Some(connection) => connection,
        None => open_for_writing(&path)?,
    };
    if version(&connection, &path)? == 0 {
        // Its agent ended before it made the tables.
        drop(connection);
        super::run::delete_chunk(&path)?;
        return Ok(Sealed::Whole);
    }
    if !has_summary(&path) {
        // Without room for them lookups take longer, and that is all.
        if let Err(error) = connection.execute_batch(&format!("BEGIN; {SEALED_INDEXES} COMMIT")) {
            log::warn!("{}: sealed without indexes of all rows: {error}", path.display());
            let _ = connection.execute_batch("ROLLBACK");
        }
        let (summary, filter) = summarise(&connection).map_err(|error| sqlite_error(&path, error))?;
        summary.write(&summary_path(&path), &filter, access)?;
    }
    // Needs to be the only connection: readers with one open make it fail, not wait long.
    let _ = connection.busy_timeout(std::time::Duration::from_millis(50));
    let mode: rusqlite::Result<String> =
        connection.query_row("PRAGMA journal_mode=DELETE", [], |row| row.get(0));
    match mode {
        Ok(mode) if mode == "delete" => Ok(Sealed::Whole),
        Ok(_) => Ok(Sealed::LogKept),
        Err(error) if matches!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy)) => {
            Ok(Sealed::LogKept)
        }
        Err(error) => Err(sqlite_error(&path, error)),
    }
}

fn has_summary(chunk: &Path) -> bool {
    std::fs::File::open(summary_path(chunk)).is_ok_and(|file| Summary::read(&file).is_some())
}

fn summarise(connection: &Connection) -> rusqlite::Result<(Summary, Vec<u8>)> {
    let base_ns = connection.query_row("SELECT base_ns FROM chunk", [], |row| row.get::<_, i64>(0))? as u64;
    let mut zone = Zone::EMPTY;
    for (_, group) in read_groups(connection, base_ns)? {
        zone.merge(&group);
    }
    let (minute_min, minute_max) = minutes_of(connection, "SELECT min(minute), max(minute) FROM rollups")?;
    let edges = if has_edges(connection)? {
        minutes_of(connection, "SELECT min(minute_min), max(minute_max) FROM edges")?
    } else {
        (None, None)
    };
    let (minute_min, minute_max) =
        ([minute_min, edges.0].into_iter().flatten().min(), minute_max.max(edges.1));
    let (minute_min, minute_max) =
        (minute_min.map_or(u64::MAX, |minute| minute as u64), minute_max.map_or(0, |minute| minute as u64));

    // Both from covering indexes; the first is sorted within a group, so neighbours tell distinct traces.
    let not_roots = "SELECT count(*) FROM spans WHERE span_id <> trace_lo";
    let mut n_keys = connection.query_row(not_roots, [], |row| row.get::<_, i64>(0))? as u64;
    let mut last = None;
    let traces = "SELECT trace_lo FROM spans INDEXED BY spans_by_trace ORDER BY grp, trace_lo";
    for_each_id(connection, traces, |id| {
        n_keys += u64::from(last != Some(id));
        last = Some(id);
    })?;
    let mut filter = FilterBuilder::new(n_keys);
    for_each_id(connection, traces, |id| filter.insert(id))?;
    for_each_id(
        connection,
        "SELECT span_id FROM spans INDEXED BY spans_by_id WHERE span_id <> trace_lo",
        |id| filter.insert(id),
    )?;
    Ok((Summary::new(zone, minute_min, minute_max), filter.finish()))
}

/// First and last minute.
fn minutes_of(connection: &Connection, query: &str) -> rusqlite::Result<(Option<i64>, Option<i64>)> {
    connection.query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?)))
}

fn for_each_id(connection: &Connection, query: &str, mut each: impl FnMut(u64)) -> rusqlite::Result<()> {
    let mut select = connection.prepare(query)?;
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        each(row.get::<_, i64>(0)? as u64);
    }
    Ok(())
}

/// Chunks that runs left unsealed when their agents were killed; each with its run's lock, one per run.
pub(crate) fn leftovers(dir: &Path, own: &Path, access: Access) -> Result<Vec<Job>, StoreError> {
    let mut jobs = Vec::new();
    let (runs, _) = super::run::list_runs(dir)?;
    for run in runs {
        if run.path == own || lock::is_alive(&run.path) {
            continue;
        }
        let Some(chunk) = super::run::list_chunks(&run.path)?
            .into_iter()
            .find(|chunk| chunk.sealed.is_none() || super::run::side_path(&chunk.path, "-wal").exists())
        else {
            continue;
        };
        // Not ours to change: fine, readers manage.
        if let Ok(Some(run_lock)) = lock::lock_run(&run.path, access) {
            jobs.push(Job { path: chunk.path, connection: None, run_lock: Some(run_lock) });
        }
    }
    Ok(jobs)
}
