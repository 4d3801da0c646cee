//! Where spans are kept: one pair of traits ([`Writer`], [`Reader`]), an embedded store ([`sqlite`]) and
//! [`cassandra`], behind a [`StoreUrl`]; and beside them what a fleet is told and says of itself ([`control`]).
//!
//! What a reader would get wrong: a row holds what *one agent run* flushed of an RPC. The same RPC may have
//! another row from another host; readers merge them by span id ([`dprof_common::model::Span::merge`]), so every
//! answer of a [`Reader`] is already merged.

pub mod cassandra;
pub mod conformance;
pub mod control;
mod credentials;
mod edge_rows;
mod hosts;
mod packed;
mod rollup_rows;
pub mod rows;
mod sample;
pub mod schema;
mod sqlite;
mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use async_trait::async_trait;
use futures_util::future::BoxFuture;

pub use credentials::Credentials;
pub use hosts::Hosts;
pub use packed::Packed;
pub use sqlite::readers_gid;

use dprof_common::model::{Edge, Rollup, RunId, Side, Span, SpanId, Status, TraceId};

/// Which store, as given by `--store`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// `sqlite:DIR`: the embedded store in a folder of this machine.
    Sqlite(PathBuf),
    /// `cassandra://host1,host2/keyspace`.
    Cassandra {
        /// Contact points, and how to log in there.
        hosts: Hosts,
        /// Keyspace.
        keyspace: String,
    },
}

/// Default store of agent and command line.
pub const DEFAULT_STORE: &str = "sqlite:/var/lib/dprof";

impl FromStr for StoreUrl {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        // Before anything that would repeat it.
        if text.contains("://") && text.contains('@') {
            return Err(StoreError::SecretInUrl);
        }
        if let Some(dir) = text.strip_prefix("sqlite:").filter(|dir| !dir.is_empty()) {
            return Ok(Self::Sqlite(PathBuf::from(dir)));
        }
        if let Some((hosts, keyspace)) =
            text.strip_prefix("cassandra://").and_then(|rest| rest.split_once('/'))
        {
            let hosts: Vec<String> = hosts.split(',').filter(|h| !h.is_empty()).map(str::to_owned).collect();
            if !hosts.is_empty() && !keyspace.is_empty() {
                return Ok(Self::Cassandra { hosts: hosts.into(), keyspace: keyspace.to_owned() });
            }
        }
        Err(StoreError::BadUrl(text.to_owned()))
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(dir) => write!(f, "sqlite:{}", dir.display()),
            Self::Cassandra { hosts, keyspace } => {
                write!(f, "cassandra://{}/{keyspace}", hosts.names().join(","))
            }
        }
    }
}

impl StoreUrl {
    /// What is logged in with; `None`: an embedded store.
    pub fn credentials(&self) -> Option<&Credentials> {
        match self {
            Self::Cassandra { hosts, .. } => Some(hosts.credentials()),
            Self::Sqlite(_) => None,
        }
    }

    /// The same store, logged in to with the credentials of `file` and of the environment ([`Credentials::read`]). An
    /// embedded store takes none.
    pub fn logged_in(mut self, file: Option<&Path>) -> Result<Self, StoreError> {
        match (&mut self, file) {
            (Self::Cassandra { hosts, .. }, file) => hosts.log_in_with(Credentials::read(file)?),
            (Self::Sqlite(_), None) => {}
            (Self::Sqlite(_), Some(_)) => {
                return Err(StoreError::Credentials(format!(
                    "{self} takes none: the modes of its files say who may read"
                )));
            }
        }
        Ok(self)
    }
}

/// What can go wrong with a store; each message names the thing and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not a store URL.
    #[error("'{0}' is not a store: use sqlite:DIR or cassandra://host1,host2/keyspace")]
    BadUrl(String),
    /// A store URL with a user or password; not repeated here.
    #[error(
        "a store's URL holds no user and no password, which ps and logs would show: use --store-credentials FILE, or \
         DPROF_STORE_USER and DPROF_STORE_PASSWORD"
    )]
    SecretInUrl,
    /// Credentials that cannot be used.
    #[error("credentials of the store: {0}")]
    Credentials(String),
    /// Nothing there to read.
    #[error("no store at {0}: start dprof-agent with the same --store first")]
    NotFound(String),
    /// Not allowed.
    #[error("no permission for {path}: {remedy}")]
    Permission {
        /// File or folder.
        path: String,
        /// What to do.
        remedy: String,
    },
    /// Written by a newer dprof.
    #[error("{path} has schema {found}, this dprof knows up to {known}: update dprof")]
    Newer {
        /// File.
        path: String,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Not reachable now, or too slow: it may take the same batch later.
    #[error("{0}")]
    Away(String),
    /// No room: the writer stops storing, counts, and tries again.
    #[error("no space left for {0}: storing stops until there is room")]
    Full(String),
    /// Another agent watches the same network namespace and stores here.
    #[error(
        "network namespace {netns} is already watched by dprof-agent (pid {pid}), which stores in {path}: stop it, \
         or watch other namespaces with --netns, or use another --store"
    )]
    Busy {
        /// Folder of the store.
        path: String,
        /// Inode of the namespace.
        netns: u32,
        /// The other agent's process id; 0 if it could not be read.
        pid: u32,
    },
    /// This build or version cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// Damaged data, named.
    #[error("{path} is damaged: {cause}")]
    Damaged {
        /// File or row.
        path: String,
        /// What is wrong.
        cause: String,
    },
    /// Anything else, with the store's own words.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

/// An agent's run, written once when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunInfo {
    /// New at each start.
    pub run_id: RunId,
    /// Host name, or `--host`.
    pub host: String,
    /// Labels given to the agent.
    pub labels: BTreeMap<String, String>,
    /// Version of dprof.
    pub version: String,
    /// Kernel release.
    pub kernel: String,
    /// Capture back end, or `replay`.
    pub backend: String,
    /// Wall clock at start, nanoseconds since the epoch.
    pub started_unix_ns: u64,
}

/// What an agent flushes at once. A writer stores all of it or none of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Number of the batch in its run, from 1: writing one again changes nothing.
    pub seq: u64,
    /// Kept spans.
    pub spans: Vec<Span>,
    /// Rollups finished since the last batch. The same key may come again (late halves): readers add them up.
    pub rollups: Vec<Rollup>,
    /// Edges of the service map, likewise.
    pub edges: Vec<Edge>,
}

/// Limits of an embedded store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Chunks whose newest span is older are deleted, seconds.
    pub max_age_s: u64,
    /// Oldest chunks are deleted while all runs of the store are larger than this, bytes.
    pub max_bytes: u64,
    /// A chunk takes spans for this long, seconds…
    pub chunk_s: u64,
    /// …or until it is this large, bytes.
    pub chunk_bytes: u64,
}

impl Retention {
    /// Seven days, 10 GiB, chunks of an hour or 256 MiB.
    pub const DEFAULT: Self =
        Self { max_age_s: 7 * 24 * 3600, max_bytes: 10 << 30, chunk_s: 3600, chunk_bytes: 256 << 20 };
}

/// The agent's end of a store. Single-threaded: one writer per run.
#[async_trait]
pub trait Writer: Send {
    /// Stores `batch`, all or nothing. [`StoreError::Full`] means: drop or hold it, go on, try again later.
    async fn write(&mut self, batch: &Batch) -> Result<(), StoreError>;

    /// The end that sends, for a store that may be away: batches are then packed here and sent there, each in its
    /// own time, with a spool between. `None`: the store is a disk of this machine, and [`Writer::write`] is all.
    fn take_sender(&mut self) -> Option<Box<dyn Sender>> {
        None
    }

    /// Fixes keys and bytes of `batch`, so that it can wait, be sent later, or twice. Only where there is a sender.
    fn pack(&mut self, batch: &Batch) -> Result<Packed, StoreError> {
        Err(StoreError::Unsupported(format!("batch {}: this store writes at once", batch.seq)))
    }

    /// Housekeeping, called about once a second: seal, expire, checkpoint.
    async fn maintain(&mut self, now_unix_ns: u64) -> Result<(), StoreError>;

    /// Keeps what is stored for so long and so much of it from now on, where that is this store's to say.
    fn set_retention(&mut self, _retention: Retention) {}

    /// Makes everything written durable and readable without a log to recover.
    async fn close(self: Box<Self>) -> Result<(), StoreError>;
}

/// Sends packed batches, of this run or of an earlier one.
#[async_trait]
pub trait Sender: Send {
    /// Stores `packed`. [`StoreError::Away`] means: keep it, and try again later.
    async fn send(&mut self, packed: &Packed) -> Result<(), StoreError>;

    /// Housekeeping, called about once a second: looks for the store. Whether it is there.
    async fn maintain(&mut self, now_unix_ns: u64) -> Result<(), StoreError>;
}

/// Order of spans in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Longest duration first.
    Slowest,
    /// Shortest first.
    Fastest,
    /// Latest start first.
    Newest,
}

/// Which spans. Bounds are half open: `since <= start < until`.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanQuery {
    /// Start of the window, nanoseconds since the epoch.
    pub since_unix_ns: u64,
    /// End of the window.
    pub until_unix_ns: u64,
    /// Service of [`Span::nearest`], exact.
    pub service: Option<String>,
    /// Operation, exact.
    pub operation: Option<String>,
    /// Only [`Span::kind`].
    pub kind: Option<Side>,
    /// Only with this status at either end.
    pub status: Option<Status>,
    /// At least this long, nanoseconds.
    pub min_duration_ns: Option<u64>,
    /// Only spans without a parent: the requests themselves.
    pub roots_only: bool,
    /// Order.
    pub order: Order,
    /// At most this many.
    pub limit: usize,
}

/// Ends of RPCs, as counts per minute count them: of one side, one service and one operation. Bounds are half open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HalfQuery {
    /// Start of the window, nanoseconds since the epoch.
    pub since_unix_ns: u64,
    /// End of the window.
    pub until_unix_ns: u64,
    /// Requests answered, or calls made.
    pub side: Side,
    /// Service that answered or called.
    pub service: String,
    /// Operation.
    pub operation: String,
    /// At least this long at this end, nanoseconds.
    pub min_duration_ns: Option<u64>,
    /// About so many.
    pub limit: usize,
}

impl HalfQuery {
    /// Whether a span has the end that is asked for, the window left aside.
    pub fn matches(&self, span: &Span) -> bool {
        let half = match self.side {
            Side::Client => &span.client,
            Side::Server => &span.server,
        };
        half.as_ref().is_some_and(|half| {
            half.process.service == self.service
                && half.operation == self.operation
                && self.min_duration_ns.is_none_or(|min_ns| half.times.duration_ns() >= min_ns)
        })
    }
}

/// Where a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanPlace {
    /// Trace, or fragment.
    pub trace_id: TraceId,
    /// The span in it.
    pub span_id: SpanId,
}

/// A list with what is known of its completeness.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// Why rows may be missing (damaged or vanished chunks, unreachable nodes); empty = complete.
    pub warnings: Vec<String>,
}

/// An edge, and the run that saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEdge {
    /// The run.
    pub run_id: RunId,
    /// What it saw.
    pub edge: Edge,
}

/// Which rollups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RollupQuery {
    /// Start of the window; the minute that holds it is included.
    pub since_unix_ns: u64,
    /// End of the window, exclusive.
    pub until_unix_ns: u64,
    /// Only this service.
    pub service: Option<String>,
    /// Only this operation.
    pub operation: Option<String>,
}

/// The asker's end of a store. Reading never changes what is stored.
#[async_trait]
pub trait Reader: Send + Sync {
    /// Spans that match, in the order asked for, at most `limit`.
    async fn spans(&self, query: &SpanQuery) -> Result<Answer<Span>, StoreError>;

    /// All spans of a trace, fragments stitched, in order of start; empty if unknown.
    async fn trace(&self, trace_id: TraceId) -> Result<Answer<Span>, StoreError>;

    /// The same for several traces, those that are known, in the order asked for, each once. At most about
    /// `spans_max` spans in all: what is beyond is left out.
    async fn traces(&self, ids: &[TraceId], spans_max: usize) -> Result<Answer<Vec<Span>>, StoreError> {
        let mut all = Answer { rows: Vec::new(), warnings: Vec::new() };
        let mut n_spans = 0;
        for id in ids {
            if n_spans >= spans_max {
                break;
            }
            let trace = self.trace(*id).await?;
            n_spans += trace.rows.len();
            all.warnings.extend(trace.warnings);
            all.rows.extend(Some(trace.rows).filter(|spans| !spans.is_empty()));
        }
        Ok(all)
    }

    /// About `limit` RPCs with such an end, spread over the window, in no order: a sample for means and shares, not
    /// for counts. All of them if there are not more.
    async fn sample(&self, query: &HalfQuery) -> Result<Answer<SpanPlace>, StoreError> {
        sample::by_slices(self, query).await
    }

    /// Trace that holds this span; `None` if unknown.
    async fn trace_of_span(&self, span_id: SpanId) -> Result<Option<TraceId>, StoreError>;

    /// Up to `limit` trace ids that start with these hexadecimal digits (1 to 32, lower case). Leading zeros
    /// count; ids shorter than 17 digits are also tried against the low 64 bits, since ids that dprof makes
    /// have only zeros above.
    async fn traces_with_prefix(&self, prefix: &str, limit: usize) -> Result<Vec<TraceId>, StoreError>;

    /// Rollups of the window, one per key and minute and run (not added up).
    async fn rollups(&self, query: &RollupQuery) -> Result<Answer<Rollup>, StoreError>;

    /// The same sums over the window, but hours that lie wholly in it may come as one row each: for those who add
    /// them up anyway.
    async fn rollup_sums(&self, query: &RollupQuery) -> Result<Answer<Rollup>, StoreError> {
        self.rollups(query).await
    }

    /// Edges of the service map, of minutes in the window (as [`Reader::rollups`]), one per key and run, in order of
    /// their keys. What was stored before there were any has none.
    async fn edges(&self, since_unix_ns: u64, until_unix_ns: u64) -> Result<Answer<RunEdge>, StoreError>;

    /// Every run that the store knows, newest first.
    async fn runs(&self) -> Result<Vec<RunInfo>, StoreError>;
}

/// What a store will have answered. In a box, so that the driver's code under it is compiled here once and not again in
/// every program that waits for it: the body of an `async fn` is compiled where it is polled.
pub type Asked<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Opens a store for writing by the agent of `run`, which watches the network namespaces `netns` (inodes).
///
/// Creates the store if there is none. Two agents may share a store, but not a network namespace:
/// [`StoreError::Busy`]. [`Retention`] is for embedded stores; Cassandra's tables carry
/// their own, and its writer connects later: it never fails here.
pub fn open_writer<'a>(
    url: &'a StoreUrl,
    run: &'a RunInfo,
    retention: Retention,
    netns: &'a [u32],
) -> Asked<'a, Box<dyn Writer>> {
    Box::pin(async move {
        match url {
            StoreUrl::Sqlite(dir) => sqlite::open_writer(dir, run, retention, netns),
            StoreUrl::Cassandra { hosts, keyspace } => Ok(cassandra::open_writer(hosts, keyspace, run)),
        }
    })
}

/// Opens a store for reading; [`StoreError::NotFound`] if there is none, [`StoreError::Away`] within 5 s if it does
/// not answer.
pub fn open_reader(url: &StoreUrl) -> Asked<'_, Box<dyn Reader>> {
    Box::pin(async move {
        match url {
            StoreUrl::Sqlite(dir) => sqlite::open_reader(dir),
            StoreUrl::Cassandra { hosts, keyspace } => cassandra::open_reader(hosts, keyspace).await,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_with_a_secret_is_refused_and_not_repeated() {
        for text in [
            "cassandra://joe:marker@host/dprof",
            "cassandra://joe:marker@host",
            "casandra://joe:marker@host/dprof",
            "cassandra://marker@host,other/dprof",
        ] {
            let error = text.parse::<StoreUrl>().expect_err(text).to_string();
            assert!(error.contains("--store-credentials") && !error.contains("marker"), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        assert!("sqlite:/tmp/joe@host".parse::<StoreUrl>().is_ok());
    }

    #[test]
    fn an_embedded_store_takes_no_credentials() {
        let url: StoreUrl = "sqlite:/tmp/x".parse().expect("a store");
        let error = url.logged_in(Some(Path::new("/etc/none"))).expect_err("refused").to_string();
        assert!(error.contains("sqlite:/tmp/x takes none"), "{error}");
    }
}
