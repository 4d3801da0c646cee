//! The control side: `config`, a partition per scope, whose static column names the newest version, and
//! `agent_states`, a row per agent's run.
//!
//! A version is written by one conditional batch: insert the document, move the head, if the head is what the writer
//! has seen. So a crash leaves all of it or nothing. What a reader would get wrong: a conditional write that timed out
//! may have been done, or be done later by whoever writes next. So the writer reads back whether its own document is
//! there, known by its hash, and where nobody's is yet tries again, which completes what is under way (Paxos).

use std::time::Duration;

use async_trait::async_trait;
use dprof_common::settings::Scope;
use futures_util::future::try_join_all;
use scylla::client::session::Session;
use scylla::errors::ExecutionError;
use scylla::response::query_result::QueryResult;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, SerialConsistency};
use scylla::value::{CqlTimestamp, CqlValue, Row};
use uuid::Uuid;

use super::link::{self, away, connect, prepare, quoted, select};
use super::tables::DAY_S;
use crate::control::{
    AGENT_LIFE_S, AgentState, Control, Document, HOST_LIFE_S, HostMinute, of_text, random, to_text,
};
use crate::{Hosts, StoreError};

/// Times that a write is tried whose fate is not known: two minutes of a partition that a hundred writers want.
const TRIES_MAX: u32 = 40;
/// First pause, which doubles, and the longest.
const PAUSE_MS: (u64, u64) = (50, 4_000);
/// All agents and all scopes are in one partition each: a thousand of either are some hundred kilobytes.
const REGION: &str = "all";

/// A read with the consistency that sees every acknowledged write, and one that needs a single replica.
struct Read {
    quorum: PreparedStatement,
    one: PreparedStatement,
}

/// The control side of a keyspace.
pub(super) struct CassandraControl {
    session: Session,
    scopes: Read,
    head: Read,
    history: Read,
    version: Read,
    agents: Read,
    written: PreparedStatement,
    name_scope: PreparedStatement,
    insert: PreparedStatement,
    first_head: PreparedStatement,
    next_head: PreparedStatement,
    report: PreparedStatement,
    host_day: Read,
    report_host: PreparedStatement,
}

impl CassandraControl {
    /// Connects and prepares.
    pub(super) async fn open(hosts: &Hosts, keyspace: &str) -> Result<Self, StoreError> {
        let session = connect(hosts).await?;
        let Some(found) = link::keyspace(&session, keyspace).await? else {
            return Err(StoreError::NotFound(format!(
                "keyspace {keyspace}: make it with dprof-cli store init"
            )));
        };
        found.check(keyspace)?;
        if !link::has_table(&session, keyspace, "config").await? {
            return Err(StoreError::Unsupported(format!(
                "keyspace {keyspace} has no table for configurations: make it with dprof-cli store upgrade"
            )));
        }
        let k = quoted(keyspace);
        let read = |text: String| {
            let session = &session;
            async move {
                Ok::<_, StoreError>(Read {
                    quorum: prepare(session, &text, Consistency::LocalQuorum).await?,
                    one: prepare(session, &text, Consistency::LocalOne).await?,
                })
            }
        };
        let write = |text: String| {
            let session = &session;
            async move { prepare(session, &text, Consistency::LocalQuorum).await }
        };
        let columns = "version, body, author, comment, at";
        Ok(Self {
            scopes: read(format!("SELECT scope FROM {k}.config_scopes WHERE region = ?")).await?,
            head: read(format!("SELECT {columns} FROM {k}.config WHERE scope = ? LIMIT 1")).await?,
            history: read(format!("SELECT {columns} FROM {k}.config WHERE scope = ? LIMIT ?")).await?,
            version: read(format!("SELECT {columns} FROM {k}.config WHERE scope = ? AND version = ?")).await?,
            agents: read(format!("SELECT seen_ns, state FROM {k}.agent_states WHERE region = ?")).await?,
            written: prepare(
                &session,
                &format!("SELECT hash FROM {k}.config WHERE scope = ? AND version = ?"),
                // Not serial, which would be one more round that is in the way of all others: where this sees nothing
                // yet, the next try completes what is under way before it asks for the head.
                Consistency::LocalQuorum,
            )
            .await?,
            name_scope: write(format!("INSERT INTO {k}.config_scopes (region, scope) VALUES (?, ?)")).await?,
            insert: write(format!(
                "INSERT INTO {k}.config (scope, version, body, hash, author, comment, at) VALUES (?, ?, ?, ?, ?, ?, ?)"
            ))
            .await?,
            first_head: write(format!("UPDATE {k}.config SET head = 1 WHERE scope = ? IF head = null")).await?,
            next_head: write(format!("UPDATE {k}.config SET head = ? WHERE scope = ? IF head = ?")).await?,
            report: write(format!(
                "INSERT INTO {k}.agent_states (region, host, run_id, started_ns, seen_ns, state)
                 VALUES (?, ?, ?, ?, ?, ?)"
            ))
            .await?,
            host_day: read(format!(
                "SELECT facts FROM {k}.host_minutes WHERE day = ? AND host = ? AND minute_s >= ? AND minute_s < ?"
            ))
            .await?,
            report_host: write(format!(
                "INSERT INTO {k}.host_minutes (day, host, minute_s, facts) VALUES (?, ?, ?, ?)"
            ))
            .await?,
            session,
        })
    }

    /// Reads what a quorum says, or, while there is none, what one replica does.
    async fn rows<T>(
        &self,
        read: &Read,
        values: impl scylla::serialize::row::SerializeRow + Clone,
    ) -> Result<Vec<T>, StoreError>
    where
        T: for<'a, 'b> scylla::deserialize::row::DeserializeRow<'a, 'b>,
    {
        match select(&self.session, &read.quorum, values.clone()).await {
            Ok(rows) => Ok(rows),
            Err(_) => select(&self.session, &read.one, values).await,
        }
    }

    async fn head_of(&self, scope: &Scope) -> Result<Option<Document>, StoreError> {
        let rows: Vec<DocumentRow> = self.rows(&self.head, (scope.to_string(),)).await?;
        Ok(documents(scope, rows).into_iter().next())
    }

    /// Whether this very document is the version that it wants to be; `None`: nobody has written that version.
    async fn is_written(&self, document: &Document) -> Result<Option<bool>, StoreError> {
        let key = (document.scope.to_string(), document.version as i64);
        let rows: Vec<(Option<Vec<u8>>,)> = select(&self.session, &self.written, key).await?;
        Ok(rows.into_iter().find_map(|(hash,)| hash).map(|hash| hash == document.hash()))
    }

    async fn try_append(&self, document: &Document) -> Result<QueryResult, ExecutionError> {
        let scope = document.scope.to_string();
        let version = document.version as i64;
        let mut batch = Batch::new(BatchType::Logged);
        batch.set_consistency(Consistency::LocalQuorum);
        batch.set_serial_consistency(Some(SerialConsistency::LocalSerial));
        // Asking a second node meanwhile would make two writers of one.
        batch.set_is_idempotent(false);
        batch.append_statement(self.insert.clone());
        let row = (
            &scope,
            version,
            &document.body,
            document.hash().to_vec(),
            &document.author,
            &document.comment,
            CqlTimestamp(document.at_unix_ms as i64),
        );
        if version == 1 {
            batch.append_statement(self.first_head.clone());
            return self.session.batch(&batch, (row, (&scope,))).await;
        }
        batch.append_statement(self.next_head.clone());
        self.session.batch(&batch, (row, (version, &scope, version - 1))).await
    }
}

/// `version, body, author, comment, at`; the head alone, without a row, is no document.
type DocumentRow = (Option<i64>, Option<String>, Option<String>, Option<String>, Option<CqlTimestamp>);

fn documents(scope: &Scope, rows: Vec<DocumentRow>) -> Vec<Document> {
    let document = |(version, body, author, comment, at): DocumentRow| {
        Some(Document {
            scope: scope.clone(),
            version: version? as u64,
            body: body.unwrap_or_default(),
            author: author.unwrap_or_default(),
            comment: comment.unwrap_or_default(),
            at_unix_ms: at.map_or(0, |at| at.0 as u64),
        })
    };
    rows.into_iter().filter_map(document).collect()
}

/// The first column of a conditional write's answer.
fn is_applied(result: QueryResult) -> Result<bool, StoreError> {
    let rows = result.into_rows_result().map_err(|error| away("read whether it was written", &error))?;
    let row: Row = rows.first_row().map_err(|error| away("read whether it was written", &error))?;
    match row.columns.first() {
        Some(Some(CqlValue::Boolean(applied))) => Ok(*applied),
        _ => Err(StoreError::Other(anyhow::anyhow!("Cassandra does not say whether it wrote"))),
    }
}

#[async_trait]
impl Control for CassandraControl {
    async fn scopes(&self) -> Result<Vec<Scope>, StoreError> {
        let rows: Vec<(String,)> = self.rows(&self.scopes, (REGION,)).await?;
        let mut scopes: Vec<Scope> = rows.iter().filter_map(|(text,)| text.parse().ok()).collect();
        scopes.sort();
        // A writer names its scope before it writes there, and may have died in between.
        let heads = try_join_all(scopes.iter().map(|scope| self.head_of(scope))).await?;
        Ok(scopes.into_iter().zip(heads).filter(|(_, head)| head.is_some()).map(|(scope, _)| scope).collect())
    }

    async fn heads(&self, scopes: &[Scope]) -> Result<Vec<Document>, StoreError> {
        let heads = try_join_all(scopes.iter().map(|scope| self.head_of(scope))).await?;
        Ok(heads.into_iter().flatten().collect())
    }

    async fn history(&self, scope: &Scope, limit: usize) -> Result<Vec<Document>, StoreError> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        Ok(documents(scope, self.rows(&self.history, (scope.to_string(), limit)).await?))
    }

    async fn version(&self, scope: &Scope, version: u64) -> Result<Option<Document>, StoreError> {
        let key = (scope.to_string(), i64::try_from(version).unwrap_or(i64::MAX));
        Ok(documents(scope, self.rows(&self.version, key).await?).into_iter().next())
    }

    async fn append(&self, document: &Document) -> Result<bool, StoreError> {
        if document.version == 0 {
            return Ok(false);
        }
        self.session
            .execute_unpaged(&self.name_scope, (REGION, document.scope.to_string()))
            .await
            .map_err(|error| away("write", &error))?;
        let (mut pause_ms, mut is_uncertain) = (PAUSE_MS.0, false);
        let mut cause = StoreError::Away("Cassandra: not tried".to_owned());
        for _ in 0..TRIES_MAX {
            // An earlier try of ours that timed out may be what stands there by now.
            let found = if is_uncertain { self.is_written(document).await } else { Ok(None) };
            match found {
                Ok(Some(ours)) => return Ok(ours),
                Ok(None) => match self.try_append(document).await {
                    Ok(result) => {
                        let applied = is_applied(result)?;
                        if applied || !is_uncertain {
                            return Ok(applied);
                        }
                    }
                    Err(error) => {
                        cause = away("write a version", &error);
                        is_uncertain = true;
                    }
                },
                Err(error) => cause = error,
            }
            // Writers that were in each other's way must not meet again.
            tokio::time::sleep(Duration::from_millis(pause_ms / 2 + random() % pause_ms)).await;
            pause_ms = (pause_ms * 2).min(PAUSE_MS.1);
        }
        Err(cause)
    }

    async fn report(&self, agent: &AgentState) -> Result<(), StoreError> {
        let state = to_text(agent)?;
        let run_id = Uuid::from_u128(u128::from_str_radix(&agent.run_id, 16).unwrap_or(0));
        let values =
            (REGION, &agent.host, run_id, agent.started_unix_ns as i64, agent.seen_unix_ns as i64, state);
        let written = self.session.execute_unpaged(&self.report, values).await;
        written.map(drop).map_err(|error| away("write an agent's row", &error))
    }

    async fn agents(&self, now_unix_ns: u64) -> Result<Vec<AgentState>, StoreError> {
        let since_ns = now_unix_ns.saturating_sub(AGENT_LIFE_S * 1_000_000_000);
        let rows: Vec<(i64, String)> = self.rows(&self.agents, (REGION,)).await?;
        let mut agents: Vec<AgentState> = rows
            .iter()
            .filter(|(seen_ns, _)| *seen_ns as u64 >= since_ns)
            .filter_map(|(_, state)| of_text(state))
            .collect();
        agents.sort_by(|a, b| {
            let newest_first = b.started_unix_ns.cmp(&a.started_unix_ns);
            a.host.cmp(&b.host).then(newest_first).then_with(|| a.run_id.cmp(&b.run_id))
        });
        Ok(agents)
    }

    async fn report_host(&self, minute: &HostMinute) -> Result<(), StoreError> {
        let facts = to_text(minute)?;
        let values = (day_of(minute.minute_unix_s), &minute.host, minute.minute_unix_s as i64, facts);
        let written = self.session.execute_unpaged(&self.report_host, values).await;
        written.map(drop).map_err(|error| away("write a host's minute", &error))
    }

    async fn host_minutes(
        &self,
        host: &str,
        since_unix_s: u64,
        until_unix_s: u64,
    ) -> Result<Vec<HostMinute>, StoreError> {
        let until_s = until_unix_s.min(u64::from(u32::MAX));
        // A partition per day, and nothing is there for longer than its life.
        let since_s = since_unix_s.max(until_s.saturating_sub(HOST_LIFE_S + DAY_S));
        let days = day_of(since_s)..=day_of(until_s.saturating_sub(1));
        let reads = days.map(|day| async move {
            let rows: Vec<(String,)> =
                self.rows(&self.host_day, (day, host, since_s as i64, until_s as i64)).await?;
            Ok::<_, StoreError>(rows)
        });
        let rows = try_join_all(reads).await?;
        Ok(rows.iter().flatten().filter_map(|(facts,)| of_text(facts)).collect())
    }
}

/// The partition of a minute.
fn day_of(unix_s: u64) -> i32 {
    i32::try_from(unix_s / DAY_S).unwrap_or(i32::MAX)
}
