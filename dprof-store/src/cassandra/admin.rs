//! `dprof-cli store init | upgrade | info`: the only place that makes or changes tables.

use std::fmt::Write as _;
use std::time::Duration;

use scylla::client::session::Session;
use scylla::response::{PagingState, PagingStateResponse};
use scylla::statement::Statement;
use scylla::value::{CqlValue, Row};

use super::link::{self, Keyspace, away, connect, quoted};
use super::tables::{DAY_S, SCHEMA_VERSION, TABLES};
use crate::{Hosts, StoreError};

/// What `init` and `upgrade` are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitOptions {
    /// Replicas per data centre: `3`, or `dc1:3,dc2:2`; empty = three, or as many as there are nodes.
    pub replication: String,
    /// Life of spans, seconds.
    pub ttl_s: u64,
    /// Life of rollups by the minute, seconds.
    pub ttl_minutes_s: u64,
    /// Life of rollups by the hour, seconds.
    pub ttl_hours_s: u64,
    /// Partitions that each minute of the index is split into; 0 = by the size of the ring.
    pub shards: u16,
    /// `local_one` or `local_quorum`; empty = a quorum with three replicas or more.
    pub consistency: String,
    /// The tables' compression, as CQL.
    pub compression: String,
}

impl Default for InitOptions {
    /// Spans for 7 days, minutes for 3, hours for 30.
    fn default() -> Self {
        Self {
            replication: String::new(),
            ttl_s: 7 * DAY_S,
            ttl_minutes_s: 3 * DAY_S,
            ttl_hours_s: 30 * DAY_S,
            shards: 0,
            consistency: String::new(),
            compression: "{'class': 'ZstdCompressor', 'compression_level': '1', 'chunk_length_in_kb': '16'}"
                .to_owned(),
        }
    }
}

impl InitOptions {
    /// For an upgrade: lives and shards stay as they are.
    pub fn unchanged() -> Self {
        Self { ttl_s: 0, ttl_minutes_s: 0, ttl_hours_s: 0, ..Self::default() }
    }
}

/// A shard per so many nodes: a partition of a busy minute has some megabytes.
const NODES_PER_SHARD: usize = 3;
const SHARDS_MAX: usize = 64;

/// Makes keyspace and tables, unless they are there. Says what it did.
pub(crate) async fn init(hosts: &Hosts, name: &str, options: &InitOptions) -> Result<String, StoreError> {
    check_name(name)?;
    let session = connect(hosts).await?;
    if let Some(found) = link::keyspace(&session, name).await?
        && !found.info.is_empty()
    {
        found.check(name)?;
        return Ok(format!("keyspace {name} has schema {SCHEMA_VERSION} already: nothing to do\n"));
    }
    let replication = replication(&session, options)?;
    let create = format!(
        "CREATE KEYSPACE IF NOT EXISTS {} WITH replication = {{'class': 'NetworkTopologyStrategy', {replication}}}",
        quoted(name)
    );
    ddl(&session, &create).await?;
    for table in &TABLES {
        ddl(&session, &table.create(&quoted(name), options)).await?;
    }
    let nodes = session.get_cluster_state().get_nodes_info().len();
    let shards = match options.shards {
        0 => nodes.div_ceil(NODES_PER_SHARD).clamp(1, SHARDS_MAX),
        given => usize::from(given).min(SHARDS_MAX),
    };
    set(&session, name, "shards", &shards.to_string()).await?;
    if !options.consistency.is_empty() {
        set(&session, name, "consistency", &options.consistency).await?;
    }
    // Last: whoever sees the version sees all of it.
    set(&session, name, "version", &SCHEMA_VERSION.to_string()).await?;
    Ok(format!(
        "keyspace {name} made: schema {SCHEMA_VERSION}, replication {replication}, {} tables\n",
        TABLES.len()
    ))
}

/// Brings the tables to this version and sets life and compaction anew. Says what it did.
pub(crate) async fn upgrade(hosts: &Hosts, name: &str, options: &InitOptions) -> Result<String, StoreError> {
    check_name(name)?;
    let session = connect(hosts).await?;
    let found = existing(&session, name).await?;
    if let Err(error @ (StoreError::NotFound(_) | StoreError::Newer { .. })) = found.check(name) {
        return Err(error);
    }
    let options = &with_lives(&session, name, options).await?;
    for table in &TABLES {
        // A table that this version has and the last had not.
        ddl(&session, &table.create(&quoted(name), options)).await?;
        ddl(&session, &table.alter(&quoted(name), options)).await?;
    }
    let before = i64::from(found.shards());
    let shards = i64::from(options.shards);
    if shards > before {
        // Never fewer: readers must find what was written under the larger number.
        set(&session, name, "shards", &shards.to_string()).await?;
    }
    if !options.consistency.is_empty() {
        set(&session, name, "consistency", &options.consistency).await?;
    }
    set(&session, name, "version", &SCHEMA_VERSION.to_string()).await?;
    Ok(format!(
        "keyspace {name}: schema {SCHEMA_VERSION}, life and compaction of {} tables set\n",
        TABLES.len()
    ))
}

/// Lives that are not given, from the tables.
async fn with_lives(session: &Session, name: &str, options: &InitOptions) -> Result<InitOptions, StoreError> {
    let select = "SELECT table_name, default_time_to_live FROM system_schema.tables WHERE keyspace_name = ?";
    let tables: Vec<(String, i32)> = link::query(session, select, (name,)).await?;
    let default = InitOptions::default();
    let life = |given: u64, table: &str, default: u64| match given {
        0 => {
            let found = tables.iter().find(|(found, _)| found == table).map(|(_, ttl_s)| *ttl_s);
            found.and_then(|ttl_s| u64::try_from(ttl_s).ok()).filter(|ttl_s| *ttl_s > 0).unwrap_or(default)
        }
        given => given,
    };
    Ok(InitOptions {
        ttl_s: life(options.ttl_s, "traces", default.ttl_s),
        ttl_minutes_s: life(options.ttl_minutes_s, "latency_rollup_60", default.ttl_minutes_s),
        ttl_hours_s: life(options.ttl_hours_s, "latency_rollup_3600", default.ttl_hours_s),
        ..options.clone()
    })
}

/// Schema, replication, consistency, and the life of each table.
pub(crate) async fn info(hosts: &Hosts, name: &str) -> Result<String, StoreError> {
    let session = connect(hosts).await?;
    let found = existing(&session, name).await?;
    found.check(name)?;
    let mut text = String::new();
    let nodes = session.get_cluster_state().get_nodes_info().len();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "keyspace     {name} on {nodes} {}", if nodes == 1 { "node" } else { "nodes" });
    let _ = writeln!(text, "schema       {}", found.info.get("version").map_or("?", String::as_str));
    let _ = writeln!(text, "replication  {}", found.replication);
    let _ = writeln!(text, "consistency  {:?}", found.consistency());
    let _ = writeln!(text, "shards       {}", found.shards());
    let select = "SELECT table_name, default_time_to_live FROM system_schema.tables WHERE keyspace_name = ?";
    let mut tables: Vec<(String, i32)> = link::query(&session, select, (name,)).await?;
    tables.sort();
    for (table, ttl_s) in tables {
        let life = if ttl_s == 0 {
            "for ever".to_owned()
        } else {
            format!("{:.1} days", f64::from(ttl_s) / 86_400.0)
        };
        let _ = writeln!(text, "{table:<24} rows live {life}");
    }
    Ok(text)
}

/// Rows of a page of a statement typed by hand: it may go through a whole table.
const CQL_PAGE_ROWS: i32 = 1_000;

/// Runs a statement and gives its rows as text, columns between tabs: for people and for tests.
pub(crate) async fn cql(hosts: &Hosts, text: &str) -> Result<Vec<String>, StoreError> {
    let session = connect(hosts).await?;
    let mut statement = Statement::new(text);
    statement.set_request_timeout(Some(DDL_WITHIN));
    statement.set_page_size(CQL_PAGE_ROWS);
    let mut lines = Vec::new();
    let mut state = PagingState::start();
    loop {
        let (result, next) = session
            .query_single_page(statement.clone(), (), state)
            .await
            .map_err(|error| away("run the statement", &error))?;
        let Ok(rows) = result.into_rows_result() else { return Ok(lines) };
        if lines.is_empty() {
            let names: Vec<&str> =
                rows.column_specs().iter().map(scylla::frame::response::result::ColumnSpec::name).collect();
            lines.push(names.join("\t"));
        }
        for row in rows.rows::<Row>().map_err(|error| away("read", &error))? {
            let row = row.map_err(|error| away("read a row", &error))?;
            let values = row.columns.iter().map(|value| value.as_ref().map_or_else(String::new, shown));
            lines.push(values.collect::<Vec<_>>().join("\t"));
        }
        match next {
            PagingStateResponse::HasMorePages { state: more } => state = more,
            PagingStateResponse::NoMorePages => return Ok(lines),
        }
    }
}

/// A value as CQL writes it.
fn shown(value: &CqlValue) -> String {
    match value {
        CqlValue::Text(text) | CqlValue::Ascii(text) => text.clone(),
        CqlValue::Blob(bytes) => {
            let mut text = "0x".to_owned();
            for byte in bytes {
                let _ = write!(text, "{byte:02x}");
            }
            text
        }
        CqlValue::BigInt(n) => n.to_string(),
        CqlValue::Int(n) => n.to_string(),
        CqlValue::SmallInt(n) => n.to_string(),
        CqlValue::TinyInt(n) => n.to_string(),
        CqlValue::Boolean(yes) => yes.to_string(),
        CqlValue::Uuid(id) => id.to_string(),
        CqlValue::Inet(address) => address.to_string(),
        CqlValue::Map(pairs) => {
            let pairs: Vec<String> =
                pairs.iter().map(|(key, value)| format!("{}: {}", shown(key), shown(value))).collect();
            format!("{{{}}}", pairs.join(", "))
        }
        CqlValue::Set(values) | CqlValue::List(values) => {
            format!("{{{}}}", values.iter().map(shown).collect::<Vec<_>>().join(", "))
        }
        other => format!("{other:?}"),
    }
}

async fn existing(session: &Session, name: &str) -> Result<Keyspace, StoreError> {
    link::keyspace(session, name)
        .await?
        .ok_or_else(|| StoreError::NotFound(format!("keyspace {name}: make it with dprof-cli store init")))
}

/// A change of tables waits for every node: seconds on a busy one.
const DDL_WITHIN: Duration = Duration::from_mins(1);

async fn ddl(session: &Session, text: &str) -> Result<(), StoreError> {
    let mut statement = Statement::new(text);
    statement.set_request_timeout(Some(DDL_WITHIN));
    // Asking another node meanwhile would change the tables twice.
    statement.set_is_idempotent(false);
    session.query_unpaged(statement, ()).await.map(drop).map_err(|error| away("change tables", &error))
}

async fn set(session: &Session, keyspace: &str, key: &str, value: &str) -> Result<(), StoreError> {
    let insert = format!("INSERT INTO {}.schema_info (k, v) VALUES (?, ?)", quoted(keyspace));
    session.query_unpaged(insert, (key, value)).await.map(drop).map_err(|error| away("write", &error))
}

/// Names go into statements: letters, digits and underscores only, as CQL itself allows without quotes.
fn check_name(name: &str) -> Result<(), StoreError> {
    let ok = (1..=48).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if ok {
        Ok(())
    } else {
        Err(StoreError::Unsupported(format!("'{name}' is no name for a keyspace: use letters, digits and _")))
    }
}

/// What is inside `replication = {…}`, after the class.
fn replication(session: &Session, options: &InitOptions) -> Result<String, StoreError> {
    let state = session.get_cluster_state();
    let mut nodes: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
    for node in state.get_nodes_info() {
        *nodes.entry(node.datacenter.clone().unwrap_or_default()).or_default() += 1;
    }
    replication_of(&nodes, &options.replication)
}

fn replication_of(
    nodes: &std::collections::BTreeMap<String, usize>,
    given: &str,
) -> Result<String, StoreError> {
    let bad = || StoreError::Unsupported(format!("'{given}' is no replication: use 3, or dc1:3,dc2:2"));
    let mut parts = Vec::new();
    if given.contains(':') {
        for part in given.split(',') {
            let (dc, n) = part.split_once(':').ok_or_else(bad)?;
            let n: u8 = n.parse().map_err(|_| bad())?;
            if !nodes.contains_key(dc) {
                let known = nodes.keys().cloned().collect::<Vec<_>>().join(", ");
                return Err(StoreError::Unsupported(format!(
                    "no data centre '{dc}' in this ring (there is {known})"
                )));
            }
            parts.push(format!("'{dc}': {n}"));
        }
    } else {
        let n: usize = if given.is_empty() { 3 } else { given.parse().map_err(|_| bad())? };
        for (dc, there) in nodes {
            let n = if given.is_empty() { n.min(*there) } else { n };
            parts.push(format!("'{}': {n}", dc.replace('\'', "''")));
        }
    }
    Ok(parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(nodes: &[(&str, usize)], given: &str, expected: &str) {
        let nodes = nodes.iter().map(|(dc, n)| ((*dc).to_owned(), *n)).collect();
        let found = replication_of(&nodes, given).unwrap_or_else(|error| error.to_string());
        assert_eq!(found, expected);
    }

    #[test]
    fn replication_is_given_or_by_the_size_of_the_ring() {
        check(&[("datacenter1", 1)], "", "'datacenter1': 1");
        check(&[("datacenter1", 5)], "", "'datacenter1': 3");
        check(&[("eu", 5), ("us", 2)], "", "'eu': 3, 'us': 2");
        check(&[("eu", 5), ("us", 2)], "2", "'eu': 2, 'us': 2");
        check(&[("eu", 5), ("us", 2)], "eu:3", "'eu': 3");
        check(&[("eu", 5)], "us:3", "no data centre 'us' in this ring (there is eu)");
        check(&[("eu", 5)], "x", "'x' is no replication: use 3, or dc1:3,dc2:2");
    }

    #[test]
    fn names_that_are_no_names_are_refused() {
        for bad in ["", "a b", "x;DROP", "ü", &"x".repeat(49)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name("dprof_Test1").is_ok());
    }
}
