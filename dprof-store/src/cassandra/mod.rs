//! The store of a fleet: a Cassandra keyspace that many agents write to and anybody reads.
//!
//! Only this folder knows the driver. `pack` (pure) fixes keys and bytes of a batch, `writer` sends them, `reader`
//! asks; `tables` and `admin` are what `dprof-cli store` runs.
//!
//! What a reader would get wrong: agents make no tables and read nothing before they write; every write can be done
//! twice. What a search looks at is bounded, newest first, and the answer says when that was not everything.

mod admin;
mod batch_rows;
mod control;
mod duration;
mod edges;
mod flight;
mod link;
mod longest;
mod pack;
mod reader;
mod rollup;
mod rollup_sums;
mod search;
mod statements;
mod stitch;
mod tables;
#[cfg(test)]
mod tests;
mod tls;
mod unpack;
mod writer;

use crate::control::Control;
use crate::{Asked, Hosts, Reader, RunInfo, StoreError, StoreUrl, Writer};

pub use admin::InitOptions;
pub(crate) use batch_rows::Rows;

/// Opens the keyspace for the agent of `run`, without connecting yet; see [`crate::open_writer`].
pub(crate) fn open_writer(hosts: &Hosts, keyspace: &str, run: &RunInfo) -> Box<dyn Writer> {
    Box::new(writer::CassandraWriter::new(hosts, keyspace, run))
}

/// Connects to the keyspace; see [`crate::open_reader`].
pub(crate) async fn open_reader(hosts: &Hosts, keyspace: &str) -> Result<Box<dyn Reader>, StoreError> {
    Ok(Box::new(reader::CassandraReader::open(hosts, keyspace).await?))
}

/// Opens the control side of the keyspace; see [`crate::control::open_control`].
pub(crate) async fn open_control(hosts: &Hosts, keyspace: &str) -> Result<Box<dyn Control>, StoreError> {
    Ok(Box::new(control::CassandraControl::open(hosts, keyspace).await?))
}

/// Whether connections can be made with it.
pub(crate) fn check_tls(tls: &crate::credentials::Tls) -> Result<(), StoreError> {
    tls::config(tls).map(drop)
}

fn parts(url: &StoreUrl) -> Result<(&Hosts, &str), StoreError> {
    match url {
        StoreUrl::Cassandra { hosts, keyspace } => Ok((hosts, keyspace)),
        StoreUrl::Sqlite(_) => Err(StoreError::Unsupported(format!(
            "{url} needs no making or upgrading: the agent does both; use cassandra://host1,host2/keyspace"
        ))),
    }
}

/// Makes keyspace and tables unless they are there; what it did, in lines.
pub fn init<'a>(url: &'a StoreUrl, options: &'a InitOptions) -> Asked<'a, String> {
    Box::pin(async move {
        let (hosts, keyspace) = parts(url)?;
        admin::init(hosts, keyspace, options).await
    })
}

/// Brings the tables up to date and sets their life anew; what it did, in lines.
pub fn upgrade<'a>(url: &'a StoreUrl, options: &'a InitOptions) -> Asked<'a, String> {
    Box::pin(async move {
        let (hosts, keyspace) = parts(url)?;
        admin::upgrade(hosts, keyspace, options).await
    })
}

/// Schema, replication, consistency and the tables' life, in lines.
pub fn info(url: &StoreUrl) -> Asked<'_, String> {
    Box::pin(async move {
        let (hosts, keyspace) = parts(url)?;
        admin::info(hosts, keyspace).await
    })
}

/// Runs one CQL statement; the names of the columns and the rows, tabs between columns; nothing if it has none.
pub fn cql<'a>(hosts: &'a Hosts, statement: &'a str) -> Asked<'a, Vec<String>> {
    Box::pin(admin::cql(hosts, statement))
}
