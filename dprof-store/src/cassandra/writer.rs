//! The agent's end: batches packed, and packed batches sent into the ring, whether or not it is there.
//!
//! What a reader would get wrong: opening does not connect. Without a ring everything is packed all the same, and
//! the sender answers [`StoreError::Away`]; it looks for the ring again beside its work.

use std::sync::Arc;
use std::sync::atomic::{AtomicI16, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use scylla::client::session::Session;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::batch_rows::{AgentRow, Rows};
use super::flight::Flight;
use super::link::{self, connect};
use super::pack::Packer;
use super::statements::{self, Statements};
use crate::{Batch, Hosts, Packed, RunInfo, Sender, StoreError, Writer};

/// A batch is given up (and spooled) after this long, whatever its writes do.
const BATCH_WITHIN: Duration = Duration::from_secs(10);

/// Packs one run, and sends it unless somebody else does.
pub(crate) struct CassandraWriter {
    packer: Packer,
    sender: Option<CassandraSender>,
}

/// Sends packed batches.
pub(crate) struct CassandraSender {
    hosts: Hosts,
    keyspace: String,
    run: RunInfo,
    run_is_written: bool,
    shards: Arc<AtomicI16>,
    flight: Flight,
    link: Option<Arc<Link>>,
    connecting: Option<JoinHandle<Result<Link, StoreError>>>,
    cause: String,
}

/// A ring that answers.
struct Link {
    session: Session,
    statements: Statements,
    shards: i16,
}

impl CassandraWriter {
    /// Connects later.
    pub(crate) fn new(hosts: &Hosts, keyspace: &str, run: &RunInfo) -> Self {
        let shards = Arc::new(AtomicI16::new(0));
        let sender = CassandraSender {
            hosts: hosts.clone(),
            keyspace: keyspace.to_owned(),
            run: run.clone(),
            run_is_written: false,
            shards: Arc::clone(&shards),
            flight: Flight::new(),
            link: None,
            connecting: None,
            cause: "Cassandra: not connected yet".to_owned(),
        };
        Self { packer: Packer::new(run, shards), sender: Some(sender) }
    }

    /// Connects now, or says why not.
    #[cfg(test)]
    pub(crate) async fn connect_now(&mut self) -> Result<(), StoreError> {
        let Some(sender) = &mut self.sender else { return Ok(()) };
        let link = open_link(&sender.hosts, &sender.keyspace).await?;
        sender.connected(link);
        sender.write_run().await
    }
}

impl CassandraSender {
    fn connected(&mut self, link: Link) {
        self.shards.store(link.shards, Ordering::Relaxed);
        self.link = Some(Arc::new(link));
    }

    /// Looks after the connection without waiting for it.
    async fn look(&mut self) {
        if self.link.is_some() {
            return;
        }
        if let Some(task) = self.connecting.take_if(|task| task.is_finished()) {
            match task.await {
                Ok(Ok(link)) => return self.connected(link),
                Ok(Err(error)) => self.cause = error.to_string(),
                Err(error) => self.cause = format!("connecting to Cassandra failed: {error}"),
            }
        }
        if self.connecting.is_none() {
            let (hosts, keyspace) = (self.hosts.clone(), self.keyspace.clone());
            self.connecting = Some(tokio::spawn(async move { open_link(&hosts, &keyspace).await }));
        }
    }

    /// A run is known as soon as it is connected, whether or not it has seen anything.
    async fn write_run(&mut self) -> Result<(), StoreError> {
        if self.run_is_written {
            return Ok(());
        }
        let rows = Rows {
            run_id: self.run.run_id.0.to_be_bytes().to_vec(),
            agent: Some(AgentRow::of(&self.run)),
            ..Rows::default()
        };
        self.send_rows(&rows).await?;
        self.run_is_written = true;
        Ok(())
    }

    async fn send_rows(&mut self, rows: &Rows) -> Result<(), StoreError> {
        self.look().await;
        let Some(link) = self.link.clone() else { return Err(StoreError::Away(self.cause.clone())) };
        let run_id = Uuid::from_u128(rows.run_id().0);
        let shard = rows.shard as i16;
        let flight = &mut self.flight;
        let work = async {
            // What leads to a trace comes after it; counts come first, since they are of everything.
            for writes in [statements::counts(rows), statements::traces(rows), statements::index(rows)] {
                flight.run(&link.session, &link.statements, run_id, shard, writes).await?;
            }
            Ok(())
        };
        match tokio::time::timeout(BATCH_WITHIN, work).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::Away(format!(
                "Cassandra did not take a batch within {} s",
                BATCH_WITHIN.as_secs()
            ))),
        }
    }
}

impl Drop for CassandraSender {
    fn drop(&mut self) {
        if let Some(task) = &self.connecting {
            task.abort();
        }
        if self.flight.n_retried > 0 {
            log::info!("{} writes to Cassandra were tried more than once", self.flight.n_retried);
        }
    }
}

/// Connects, checks the keyspace and prepares.
async fn open_link(hosts: &Hosts, keyspace: &str) -> Result<Link, StoreError> {
    let session = connect(hosts).await?;
    let Some(found) = link::keyspace(&session, keyspace).await? else {
        return Err(StoreError::NotFound(format!("keyspace {keyspace}: make it with dprof-cli store init")));
    };
    found.check(keyspace)?;
    let statements = Statements::prepare(&session, keyspace, found.consistency()).await?;
    Ok(Link { session, statements, shards: found.shards() })
}

#[async_trait]
impl Sender for CassandraSender {
    async fn send(&mut self, packed: &Packed) -> Result<(), StoreError> {
        self.send_rows(packed.rows()).await
    }

    async fn maintain(&mut self, _now_unix_ns: u64) -> Result<(), StoreError> {
        self.look().await;
        if self.link.is_none() {
            return Err(StoreError::Away(self.cause.clone()));
        }
        self.write_run().await
    }
}

#[async_trait]
impl Writer for CassandraWriter {
    async fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let packed = self.pack(batch)?;
        match &mut self.sender {
            Some(sender) => sender.send(&packed).await,
            None => Err(StoreError::Unsupported("the sender was taken: pack, and send there".to_owned())),
        }
    }

    fn take_sender(&mut self) -> Option<Box<dyn Sender>> {
        self.sender.take().map(|sender| Box::new(sender) as Box<dyn Sender>)
    }

    fn pack(&mut self, batch: &Batch) -> Result<Packed, StoreError> {
        let rows = self.packer.pack(batch)?;
        Ok(Packed::new(batch, rows))
    }

    async fn maintain(&mut self, now_unix_ns: u64) -> Result<(), StoreError> {
        self.packer.set_now(now_unix_ns);
        match &mut self.sender {
            Some(sender) => sender.maintain(now_unix_ns).await,
            None => Ok(()),
        }
    }

    async fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}
