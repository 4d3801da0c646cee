//! Opening a chunk, by the one who writes it, the one who seals it, or anybody who reads; SQLite's errors in the
//! store's words.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::access::{Access, permission};
use super::run::side_path;
use crate::StoreError;
use crate::schema::{APPLICATION_ID, CREATE, SCHEMA_VERSION};

/// Pages of write-ahead log after which a commit moves it into the database: 8 MiB.
const AUTOCHECKPOINT_PAGES: i64 = 2000;
/// Page cache of the writer, KiB: a group's indexes (70 pages each) and the dictionary stay in.
const WRITER_CACHE_KIB: i64 = 8192;
/// Page cache of a reader, KiB; 16 chunks are open at a time.
const READER_CACHE_KIB: i64 = 4096;
/// How long to wait for a lock that another process holds for a moment (recovery, sealing).
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Prepared statements kept per connection; there are about 15.
const STATEMENTS_MAX: usize = 32;

/// SQLite's error about the file at `path`.
pub(crate) fn sqlite_error(path: &Path, error: rusqlite::Error) -> StoreError {
    let shown = || path.display().to_string();
    let (code, extended) = match &error {
        rusqlite::Error::SqliteFailure(failure, _) => (failure.code, failure.extended_code),
        // A column of another type than we write.
        rusqlite::Error::InvalidColumnType(..) | rusqlite::Error::IntegralValueOutOfRange(..) => {
            return StoreError::Damaged { path: shown(), cause: error.to_string() };
        }
        _ => return StoreError::Other(anyhow::Error::new(error).context(shown())),
    };
    match code {
        ErrorCode::DiskFull => StoreError::Full(shown()),
        // The shared memory beside the log could not grow.
        ErrorCode::SystemIoFailure if extended == ffi::SQLITE_IOERR_SHMSIZE => StoreError::Full(shown()),
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
            StoreError::Damaged { path: shown(), cause: error.to_string() }
        }
        ErrorCode::SystemIoFailure
            if [ffi::SQLITE_IOERR_SHORT_READ, ffi::SQLITE_IOERR_CORRUPTFS].contains(&extended) =>
        {
            StoreError::Damaged { path: shown(), cause: error.to_string() }
        }
        ErrorCode::CannotOpen if !path.exists() => StoreError::NotFound(shown()),
        ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly => permission(path),
        _ => StoreError::Other(anyhow::Error::new(error).context(shown())),
    }
}

fn configure(connection: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "cache_size", -cache_kib)
}

/// Makes a chunk and opens it for writing. What fails leaves no file.
pub(crate) fn create(path: &Path, base_ns: u64, access: Access) -> Result<Connection, StoreError> {
    let made = (|| {
        // Before SQLite does: its `-wal` and `-shm` take owner and mode from this file.
        access.open_file(path)?;
        let connection = open_for_writing(path)?;
        (|| {
            connection.pragma_update(None, "application_id", APPLICATION_ID)?;
            connection.execute_batch(&format!("BEGIN; {CREATE}"))?;
            connection.execute("INSERT INTO chunk VALUES (?1)", [base_ns as i64])?;
            connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            connection.execute_batch("COMMIT")
        })()
        .map_err(|error| sqlite_error(path, error))?;
        Ok(connection)
    })();
    if made.is_err() {
        let _ = super::run::delete_chunk(path);
    }
    made
}

/// Opens a chunk that exists, for writing.
pub(crate) fn open_for_writing(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| sqlite_error(path, error))?;
    check_version(&connection, path)?;
    (|| {
        configure(&connection, WRITER_CACHE_KIB)?;
        // Returns a row, hence not pragma_update.
        connection.query_row("PRAGMA journal_mode=WAL", [], |_| Ok(()))?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.pragma_update(None, "wal_autocheckpoint", AUTOCHECKPOINT_PAGES)
    })()
    .map_err(|error| sqlite_error(path, error))?;
    Ok(connection)
}

/// A chunk open for reading.
pub(crate) struct Opened {
    /// Its connection.
    pub(crate) connection: Connection,
    /// What may be missing, and why.
    pub(crate) warning: Option<String>,
    /// Its agent ended, or is, between making the file and making the tables.
    pub(crate) is_empty: bool,
}

/// Opens a chunk for reading, whoever writes it at the same time.
///
/// Reading needs no right to write: SQLite reads a write-ahead log also through a `-shm` file that it may not
/// write to. Where it will not (an agent ended while it was sealing the chunk and left a journal; a folder was
/// copied by hand with a log but no `-shm`), the file is read as it is and only what is in a log is missing.
pub(crate) fn open_for_reading(path: &Path) -> Result<Opened, StoreError> {
    let (opened, warning) = match open_read_only(path, "") {
        Err(StoreError::Permission { .. }) if std::fs::File::open(path).is_ok() => {
            let log = std::fs::metadata(side_path(path, "-wal")).map_or(0, |meta| meta.len());
            let warning = (log > 0).then(|| {
                format!(
                    "{}: the latest spans are in a log that only its owner can read: ask once with sudo",
                    path.display()
                )
            });
            (open_read_only(path, "immutable=1"), warning)
        }
        opened => (opened, None),
    };
    let connection = opened?;
    let is_empty = version(&connection, path)? == 0;
    Ok(Opened { connection, warning, is_empty })
}

fn open_read_only(path: &Path, query: &str) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = if query.is_empty() {
        Connection::open_with_flags(path, flags)
    } else {
        // `?`, `#` and `%` mean something in a URI.
        let escaped = path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
        Connection::open_with_flags(format!("file:{escaped}?{query}"), flags | OpenFlags::SQLITE_OPEN_URI)
    };
    let connection = opened.map_err(|error| sqlite_error(path, error))?;
    configure(&connection, READER_CACHE_KIB).map_err(|error| sqlite_error(path, error))?;
    check_version(&connection, path)?;
    Ok(connection)
}

/// Refuses what a newer dprof wrote. The first read of the file: finds out also whether it is one of SQLite's.
fn check_version(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let found = version(connection, path)?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::Newer { path: path.display().to_string(), found, known: SCHEMA_VERSION });
    }
    Ok(())
}

/// The schema's version; 0 = no tables yet.
pub(crate) fn version(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .map_err(|error| sqlite_error(path, error))
}
