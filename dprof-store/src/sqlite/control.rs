//! The control side of the embedded store: `control.db` beside the runs, one for all agents and users of the folder.
//!
//! What a reader would get wrong: this file has a rollback journal and no write-ahead log. It is written every few
//! seconds at most, and those who may only read need no right to write anything beside it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use dprof_common::settings::Scope;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, TransactionBehavior};

use super::access::Access;
use super::chunk::sqlite_error;
use crate::StoreError;
use crate::control::{
    AGENT_LIFE_S, AgentState, Control, Document, HOST_LIFE_S, HostMinute, of_text, to_text,
};

const FILE: &str = "control.db";
/// `PRAGMA user_version`; newer ones are refused.
const VERSION: i64 = 2;
/// A hundred writers one after the other, each with its disk to wait for.
const BUSY_WITHIN: Duration = Duration::from_secs(20);

const CREATE: &str = "
CREATE TABLE IF NOT EXISTS config(scope TEXT NOT NULL, version INTEGER NOT NULL, body TEXT NOT NULL,
    hash BLOB NOT NULL, author TEXT NOT NULL, comment TEXT NOT NULL, at_ms INTEGER NOT NULL,
    PRIMARY KEY(scope, version)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS agents(host TEXT NOT NULL, run_id TEXT NOT NULL, started_ns INTEGER NOT NULL,
    seen_ns INTEGER NOT NULL, state TEXT NOT NULL, PRIMARY KEY(host, run_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS host_minutes(host TEXT NOT NULL, minute_s INTEGER NOT NULL, facts TEXT NOT NULL,
    PRIMARY KEY(host, minute_s)) WITHOUT ROWID;
";

/// Columns that [`read_document`] reads, in this order.
const COLUMNS: &str = "scope, version, body, author, comment, at_ms";

/// `control.db` of one folder.
#[derive(Debug)]
pub(crate) struct SqliteControl {
    path: PathBuf,
    access: Access,
}

impl SqliteControl {
    /// Opens the one in `dir`, made if `create` says so.
    pub(crate) fn open(dir: &Path, create: bool, access: Access) -> Result<Self, StoreError> {
        let control = Self { path: dir.join(FILE), access };
        if create {
            control.create(dir)?;
        } else if !dir.is_dir() {
            return Err(StoreError::NotFound(dir.display().to_string()));
        }
        Ok(control)
    }

    fn create(&self, dir: &Path) -> Result<(), StoreError> {
        if !dir.is_dir() {
            return Err(StoreError::NotFound(dir.display().to_string()));
        }
        if !self.path.exists() {
            // Before SQLite does: the journal takes owner and mode from this file.
            self.access.open_file(&self.path)?;
        }
        self.write(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(CREATE)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
            transaction.commit()
        })
    }

    fn open_with(&self, flags: OpenFlags) -> Result<Connection, StoreError> {
        let error = |error| sqlite_error(&self.path, error);
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags).map_err(error)?;
        connection.busy_timeout(BUSY_WITHIN).map_err(error)?;
        let found: i64 =
            connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(error)?;
        if found > VERSION {
            let path = self.path.display().to_string();
            return Err(StoreError::Newer { path, found, known: VERSION });
        }
        Ok(connection)
    }

    fn write<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let mut connection = self.open_with(OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        work(&mut connection).map_err(|error| sqlite_error(&self.path, error))
    }

    /// Reads; a folder in which nobody has configured or reported anything says nothing.
    fn read<T: Default>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        if matches!(self.path.try_exists(), Ok(false)) {
            return Ok(T::default());
        }
        let connection = self.open_with(OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let version: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(|error| sqlite_error(&self.path, error))?;
        // It is being made.
        if version == 0 {
            return Ok(T::default());
        }
        work(&connection).map_err(|error| sqlite_error(&self.path, error))
    }
}

/// A row of `config`.
fn read_document(row: &Row<'_>, scope: &Scope) -> rusqlite::Result<Document> {
    Ok(Document {
        scope: scope.clone(),
        version: row.get::<_, i64>(1)? as u64,
        body: row.get(2)?,
        author: row.get(3)?,
        comment: row.get(4)?,
        at_unix_ms: row.get::<_, i64>(5)? as u64,
    })
}

fn documents(
    connection: &Connection,
    scope: &Scope,
    versions: (i64, i64),
    limit: usize,
) -> rusqlite::Result<Vec<Document>> {
    let select = format!(
        "SELECT {COLUMNS} FROM config WHERE scope = ?1 AND version BETWEEN ?2 AND ?3 ORDER BY version DESC LIMIT ?4"
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut select = connection.prepare(&select)?;
    let rows = select
        .query_map((scope.to_string(), versions.0, versions.1, limit), |row| read_document(row, scope))?;
    rows.collect()
}

#[async_trait]
impl Control for SqliteControl {
    async fn scopes(&self) -> Result<Vec<Scope>, StoreError> {
        let texts: Vec<String> = self.read(|connection| {
            let mut select = connection.prepare("SELECT DISTINCT scope FROM config ORDER BY scope")?;
            select.query_map([], |row| row.get(0))?.collect()
        })?;
        let mut scopes: Vec<Scope> = texts.iter().filter_map(|text| text.parse().ok()).collect();
        scopes.sort();
        Ok(scopes)
    }

    async fn heads(&self, scopes: &[Scope]) -> Result<Vec<Document>, StoreError> {
        self.read(|connection| {
            let mut heads = Vec::new();
            for scope in scopes {
                heads.extend(documents(connection, scope, (1, i64::MAX), 1)?);
            }
            Ok(heads)
        })
    }

    async fn history(&self, scope: &Scope, limit: usize) -> Result<Vec<Document>, StoreError> {
        self.read(|connection| documents(connection, scope, (1, i64::MAX), limit))
    }

    async fn version(&self, scope: &Scope, version: u64) -> Result<Option<Document>, StoreError> {
        let version = i64::try_from(version).unwrap_or(i64::MAX);
        self.read(|connection| Ok(documents(connection, scope, (version, version), 1)?.pop()))
    }

    async fn append(&self, document: &Document) -> Result<bool, StoreError> {
        self.write(|connection| {
            // Takes the lock first: between looking and writing nobody else writes.
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let scope = document.scope.to_string();
            let head: Option<i64> = transaction
                .query_row("SELECT max(version) FROM config WHERE scope = ?1", [&scope], |row| row.get(0))
                .optional()?
                .flatten();
            if head.unwrap_or(0) as u64 + 1 != document.version {
                return Ok(false);
            }
            let insert = "INSERT INTO config(scope, version, body, hash, author, comment, at_ms)
                          VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            transaction.execute(
                insert,
                (
                    &scope,
                    document.version as i64,
                    &document.body,
                    document.hash(),
                    &document.author,
                    &document.comment,
                    document.at_unix_ms as i64,
                ),
            )?;
            transaction.commit()?;
            Ok(true)
        })
    }

    async fn report(&self, agent: &AgentState) -> Result<(), StoreError> {
        let state = to_text(agent)?;
        let forgotten_ns = agent.seen_unix_ns.saturating_sub(AGENT_LIFE_S * 1_000_000_000);
        self.write(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute(
                "INSERT OR REPLACE INTO agents(host, run_id, started_ns, seen_ns, state) VALUES (?1, ?2, ?3, ?4, ?5)",
                (&agent.host, &agent.run_id, agent.started_unix_ns as i64, agent.seen_unix_ns as i64, &state),
            )?;
            transaction.execute("DELETE FROM agents WHERE seen_ns < ?1", [forgotten_ns as i64])?;
            transaction.commit()
        })
    }

    async fn agents(&self, now_unix_ns: u64) -> Result<Vec<AgentState>, StoreError> {
        let since_ns = now_unix_ns.saturating_sub(AGENT_LIFE_S * 1_000_000_000) as i64;
        let texts: Vec<String> = self.read(|connection| {
            let mut select = connection.prepare(
                "SELECT state FROM agents WHERE seen_ns >= ?1 ORDER BY host, started_ns DESC, run_id",
            )?;
            select.query_map([since_ns], |row| row.get(0))?.collect()
        })?;
        Ok(texts.iter().filter_map(|text| of_text(text)).collect())
    }

    async fn report_host(&self, minute: &HostMinute) -> Result<(), StoreError> {
        let facts = to_text(minute)?;
        let forgotten_s = minute.minute_unix_s.saturating_sub(HOST_LIFE_S);
        self.write(|connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute(
                "INSERT OR REPLACE INTO host_minutes(host, minute_s, facts) VALUES (?1, ?2, ?3)",
                (&minute.host, minute.minute_unix_s as i64, &facts),
            )?;
            transaction.execute(
                "DELETE FROM host_minutes WHERE host = ?1 AND minute_s < ?2",
                (&minute.host, forgotten_s as i64),
            )?;
            transaction.commit()
        })
    }

    async fn host_minutes(
        &self,
        host: &str,
        since_unix_s: u64,
        until_unix_s: u64,
    ) -> Result<Vec<HostMinute>, StoreError> {
        let bound = |unix_s: u64| i64::try_from(unix_s).unwrap_or(i64::MAX);
        let texts: Vec<String> = self.read(|connection| {
            let mut select = connection.prepare(
                "SELECT facts FROM host_minutes WHERE host = ?1 AND minute_s >= ?2 AND minute_s < ?3 ORDER BY minute_s",
            )?;
            select.query_map((host, bound(since_unix_s), bound(until_unix_s)), |row| row.get(0))?.collect()
        })?;
        Ok(texts.iter().filter_map(|text| of_text(text)).collect())
    }
}
