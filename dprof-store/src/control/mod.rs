//! What a fleet is told and what it says of itself: configuration by scope, in versions, a row per agent, and what its host
//! did in each minute.
//!
//! What a reader would get wrong: a document is never changed, only followed by the next; a writer says which one it
//! has seen, and if another was faster nothing is written. Values are not judged here: the command line does before
//! it writes, an agent before it applies.

mod agent;
mod change;
pub mod conformance;
mod document;
mod host;

use async_trait::async_trait;
use dprof_common::settings::Scope;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use agent::{AgentState, Clock, ConfigState, ConfigStatus};
pub(crate) use change::random;
pub use change::{Author, Change, ChangeError, change};
pub use document::{BODY_BYTES_MAX, Document};
pub use host::{HOST_LIFE_S, HostMinute};

use crate::{Asked, StoreError, StoreUrl, cassandra, sqlite};

/// Agents that were not heard of for longer are forgotten, seconds.
pub const AGENT_LIFE_S: u64 = 86_400;

/// An agent's row, or a host's minute, as stores keep it.
pub(crate) fn to_text<T: Serialize>(row: &T) -> Result<String, StoreError> {
    serde_json::to_string(row).map_err(|error| StoreError::Other(error.into()))
}

/// What [`to_text`] made; `None` for what a newer dprof wrote in another way: it is left out rather than all.
pub(crate) fn of_text<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// The control side of a store.
#[async_trait]
pub trait Control: Send + Sync {
    /// Every scope that has a document.
    async fn scopes(&self) -> Result<Vec<Scope>, StoreError>;

    /// The newest document of each of these scopes, where there is one, in their order.
    async fn heads(&self, scopes: &[Scope]) -> Result<Vec<Document>, StoreError>;

    /// Documents of a scope, newest first, at most `limit`.
    async fn history(&self, scope: &Scope, limit: usize) -> Result<Vec<Document>, StoreError>;

    /// The document of this version.
    async fn version(&self, scope: &Scope, version: u64) -> Result<Option<Document>, StoreError>;

    /// Writes `document` if its version is one above its scope's head, at once and for good; `false`: another was
    /// faster, nothing is written.
    async fn append(&self, document: &Document) -> Result<bool, StoreError>;

    /// Writes an agent's row anew.
    async fn report(&self, agent: &AgentState) -> Result<(), StoreError>;

    /// The rows of all agents of the last [`AGENT_LIFE_S`], by host, the newest run first.
    async fn agents(&self, now_unix_ns: u64) -> Result<Vec<AgentState>, StoreError>;

    /// Writes a minute of a host; it replaces what was said of the same minute.
    async fn report_host(&self, minute: &HostMinute) -> Result<(), StoreError>;

    /// Minutes of a host that start in `since_unix_s..until_unix_s`, the oldest first.
    async fn host_minutes(
        &self,
        host: &str,
        since_unix_s: u64,
        until_unix_s: u64,
    ) -> Result<Vec<HostMinute>, StoreError>;
}

/// The head of one scope; version 0 if it has none yet.
pub async fn head(control: &dyn Control, scope: &Scope) -> Result<Document, StoreError> {
    let found = control.heads(std::slice::from_ref(scope)).await?;
    Ok(found.into_iter().next().unwrap_or_else(|| Document::none(scope.clone())))
}

/// Opens the control side of a store. An embedded one that is not there yet is made if `create` says so, else
/// [`StoreError::NotFound`].
pub fn open_control(url: &StoreUrl, create: bool) -> Asked<'_, Box<dyn Control>> {
    Box::pin(async move {
        match url {
            StoreUrl::Sqlite(dir) => sqlite::open_control(dir, create),
            StoreUrl::Cassandra { hosts, keyspace } => cassandra::open_control(hosts, keyspace).await,
        }
    })
}
