//! A session with the ring, and the limits that make a hanging node cost a second instead of a minute.
//!
//! What a reader would get wrong: a *dead* node is noticed at once, a node that *hangs* (stopped, or behind a
//! network that drops packets) keeps its connections open and says nothing. The driver's defaults wait for it for
//! half a minute in several places; each constant below was found by stopping a node under load.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use scylla::client::PoolSize;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::deserialize::row::DeserializeRow;
use scylla::errors::NewSessionError;
use scylla::policies::speculative_execution::SimpleSpeculativeExecutionPolicy;
use scylla::response::{PagingState, PagingStateResponse};
use scylla::serialize::row::SerializeRow;
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, Statement};

use super::tls;
use crate::credentials::Credentials;
use crate::{Hosts, StoreError};

/// A node that answers takes a millisecond; one in another rack some.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// Also bounds the handshake after connecting, which nothing else does.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);
const KEEPALIVE_WITHIN: Duration = Duration::from_secs(2);
/// Above the server's own two seconds for a write and its five for a read of something large.
const REQUEST_WITHIN: Duration = Duration::from_secs(4);
const METADATA_WITHIN: Duration = Duration::from_secs(2);
/// How often nodes are asked whether they agree on the tables, after each change of them.
const AGREEMENT_EVERY: Duration = Duration::from_millis(20);
/// Another replica is asked when one has been silent for this long: above every ordinary answer's time.
const SPECULATE_AFTER: Duration = Duration::from_millis(300);
const SPECULATE_TIMES: usize = 2;
/// A session is there after this long, or there is none: a contact point that hangs beside a healthy one costs 3 s.
pub(super) const SESSION_WITHIN: Duration = Duration::from_millis(4_500);
/// Connections per node: one is a bottleneck for an agent under load, more cost memory at both ends.
const CONNECTIONS_PER_NODE: usize = 2;
/// Rows of a page: an index row has some 10 KB.
const PAGE_ROWS: i32 = 500;

/// Connects, or says why not within [`SESSION_WITHIN`].
pub(super) async fn connect(hosts: &Hosts) -> Result<Session, StoreError> {
    let profile = ExecutionProfile::builder()
        .request_timeout(Some(REQUEST_WITHIN))
        .consistency(Consistency::LocalQuorum)
        .speculative_execution_policy(Some(Arc::new(SimpleSpeculativeExecutionPolicy {
            max_retry_count: SPECULATE_TIMES,
            retry_interval: SPECULATE_AFTER,
        })))
        .build();
    let credentials = hosts.credentials();
    let mut builder = SessionBuilder::new()
        .known_nodes(hosts.names())
        .connection_timeout(CONNECT_WITHIN)
        .hostname_resolution_timeout(Some(CONNECT_WITHIN))
        .keepalive_interval(KEEPALIVE_EVERY)
        .keepalive_timeout(KEEPALIVE_WITHIN)
        .metadata_request_clientside_timeout(METADATA_WITHIN)
        .pool_size(PoolSize::PerHost(NonZeroUsize::new(CONNECTIONS_PER_NODE).expect("not zero")))
        // Only DDL and the partitioner need it, and a keyspace of somebody else's may be large.
        .fetch_schema_metadata(false)
        .schema_agreement_interval(AGREEMENT_EVERY)
        .refresh_metadata_on_auto_schema_agreement(false)
        .default_execution_profile_handle(profile.into_handle());
    if let Some((user, password)) = &credentials.login {
        builder = builder.user(user, password);
    }
    if let Some(tls) = &credentials.tls {
        builder = builder.tls_context(Some(tls::config(tls)?));
    }
    let shown = hosts.names().join(", ");
    match tokio::time::timeout(SESSION_WITHIN, builder.build()).await {
        Ok(Ok(session)) => Ok(session),
        Ok(Err(error)) => {
            let remedy = remedy(&error, credentials);
            Err(StoreError::Away(format!(
                "cannot connect to Cassandra at {shown}: {}{remedy}",
                cause(&error)
            )))
        }
        Err(_) => Err(StoreError::Away(format!(
            "Cassandra at {shown} does not answer within {} s: a node hangs, or packets to it are dropped",
            SESSION_WITHIN.as_secs_f64()
        ))),
    }
}

/// What to do when a ring that is there refuses us.
fn remedy(error: &NewSessionError, credentials: &Credentials) -> &'static str {
    let said = cause(error).to_lowercase();
    if credentials.login.is_none() && said.contains("authentic") {
        "; it asks for a user and a password: give --store-credentials FILE"
    } else if credentials.tls.is_none()
        && ["reset", "broken pipe", "closed", "eof"].iter().any(|word| said.contains(word))
    {
        "; if it wants TLS, name its authority with --store-credentials FILE"
    } else {
        ""
    }
}

/// The innermost words of a driver's error: the outer ones repeat themselves.
fn cause(error: &NewSessionError) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// What the keyspace says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keyspace {
    /// Replicas in the data centre that has the most; 0 if it is not known.
    pub(super) replication: u32,
    /// `schema_info`, by key; empty = no tables of ours.
    pub(super) info: std::collections::BTreeMap<String, String>,
}

impl Keyspace {
    /// Partitions that each bucket of the index is split into.
    pub(super) fn shards(&self) -> i16 {
        self.info.get("shards").and_then(|text| text.parse().ok()).filter(|n| *n > 0).unwrap_or(1)
    }

    /// A quorum where it outlives a node; else one replica, since a quorum of one or two is all of them.
    pub(super) fn consistency(&self) -> Consistency {
        match self.info.get("consistency").map(String::as_str) {
            Some("local_one") => Consistency::LocalOne,
            Some("local_quorum") => Consistency::LocalQuorum,
            _ if self.replication >= 3 => Consistency::LocalQuorum,
            _ => Consistency::LocalOne,
        }
    }

    /// Fails if it is not ours, or newer than this dprof.
    pub(super) fn check(&self, name: &str) -> Result<(), StoreError> {
        let Some(version) = self.info.get("version").and_then(|text| text.parse::<i64>().ok()) else {
            return Err(StoreError::NotFound(format!(
                "keyspace {name} (it has no tables of dprof): make them with dprof-cli store init"
            )));
        };
        if version > super::tables::SCHEMA_VERSION {
            return Err(StoreError::Newer {
                path: format!("keyspace {name}"),
                found: version,
                known: super::tables::SCHEMA_VERSION,
            });
        }
        if version < super::tables::SCHEMA_VERSION {
            return Err(StoreError::Unsupported(format!(
                "keyspace {name} has schema {version}: bring it up to date with dprof-cli store upgrade"
            )));
        }
        Ok(())
    }
}

/// Reads what the keyspace says about itself; `None` if there is no such keyspace.
pub(super) async fn keyspace(session: &Session, name: &str) -> Result<Option<Keyspace>, StoreError> {
    let select = "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?";
    let found: Vec<(std::collections::HashMap<String, String>,)> = query(session, select, (name,)).await?;
    let Some((replication,)) = found.into_iter().next() else { return Ok(None) };
    let replication =
        replication.iter().filter(|(key, _)| *key != "class").filter_map(|(_, n)| n.parse().ok()).max();
    let select = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?";
    let tables: Vec<(String,)> = query(session, select, (name,)).await?;
    let mut info = std::collections::BTreeMap::new();
    if tables.iter().any(|(table,)| table == "schema_info") {
        let rows: Vec<(String, String)> =
            query(session, &format!("SELECT k, v FROM {}.schema_info", quoted(name)), ()).await?;
        info.extend(rows);
    }
    Ok(Some(Keyspace { replication: replication.unwrap_or(0), info }))
}

/// Whether the keyspace has this table: later ones came without another version of the schema.
pub(super) async fn has_table(session: &Session, keyspace: &str, table: &str) -> Result<bool, StoreError> {
    let select = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?";
    let found: Vec<(String,)> = query(session, select, (keyspace, table)).await?;
    Ok(!found.is_empty())
}

/// A keyspace's name inside a statement.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// All rows of a statement that is used once.
pub(super) async fn query<T>(
    session: &Session,
    text: &str,
    values: impl SerializeRow,
) -> Result<Vec<T>, StoreError>
where
    T: for<'a, 'b> DeserializeRow<'a, 'b>,
{
    let mut statement = Statement::new(text);
    statement.set_is_idempotent(true);
    // The system's tables are every node's own.
    statement.set_consistency(Consistency::LocalOne);
    let prepared = session.prepare(statement).await.map_err(|error| away("prepare a statement", &error))?;
    select(session, &prepared, values).await
}

/// All rows of a prepared statement, page by page.
pub(super) async fn select<T>(
    session: &Session,
    prepared: &PreparedStatement,
    values: impl SerializeRow,
) -> Result<Vec<T>, StoreError>
where
    T: for<'a, 'b> DeserializeRow<'a, 'b>,
{
    let mut rows = Vec::new();
    let mut state = PagingState::start();
    loop {
        let (result, next) = session
            .execute_single_page(prepared, &values, state)
            .await
            .map_err(|error| away("read", &error))?;
        let page = result.into_rows_result().map_err(|error| away("read", &error))?;
        for row in page.rows::<T>().map_err(|error| away("read", &error))? {
            rows.push(row.map_err(|error| away("read a row", &error))?);
        }
        match next {
            PagingStateResponse::HasMorePages { state: more } => state = more,
            PagingStateResponse::NoMorePages => return Ok(rows),
        }
    }
}

/// Prepares a statement that may be sent twice.
pub(super) async fn prepare(
    session: &Session,
    text: &str,
    consistency: Consistency,
) -> Result<PreparedStatement, StoreError> {
    let mut statement = Statement::new(text);
    statement.set_is_idempotent(true);
    statement.set_consistency(consistency);
    statement.set_page_size(PAGE_ROWS);
    session.prepare(statement).await.map_err(|error| away("prepare a statement", &error))
}

/// The driver's error as the store's.
pub(super) fn away(what: &str, error: &dyn std::error::Error) -> StoreError {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    StoreError::Away(format!("Cassandra: cannot {what}: {cause}"))
}
