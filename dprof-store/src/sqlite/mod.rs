//! The embedded store: a folder of runs, each a folder of SQLite files.
//!
//! ```text
//! DIR/locks/netns-4026531840.lock          held by the agent that watches the namespace
//! DIR/web-1-20261123T093105Z-1f00ab34/     one run of one agent
//!     run.json  run.lock                   who; held while it runs
//!     000001.db  000001.ids                a sealed chunk: spans and rollups; what it holds (summary, filter)
//!     000002.db  000002.db-wal  -shm       the live chunk, in WAL mode
//! ```
//!
//! What a reader would get wrong: nothing is ever deleted from a file, only files are; and readers, in whatever
//! process, take no lock that an agent waits for.

mod access;
mod chunk;
mod edges;
mod expire;
mod filter;
mod live;
mod lock;
mod names;
mod partners;
mod reader;
mod run;
mod sample;
mod seal;
mod select;
mod session;
mod stitch;
mod summary;
#[cfg(test)]
mod tests;
mod writer;

use std::path::Path;

use crate::{Reader, Retention, RunInfo, StoreError, Writer};

pub(crate) use access::effective_uid;
pub use access::readers_gid;

/// Opens the store in `dir` for the agent of `run`; see [`crate::open_writer`].
pub(crate) fn open_writer(
    dir: &Path,
    run: &RunInfo,
    retention: Retention,
    netns: &[u32],
) -> Result<Box<dyn Writer>, StoreError> {
    let access = access::Access::of_process();
    Ok(Box::new(writer::SqliteWriter::open(dir, run, retention, netns, access)?))
}

/// Opens the store in `dir` for reading; see [`crate::open_reader`].
pub(crate) fn open_reader(dir: &Path) -> Result<Box<dyn Reader>, StoreError> {
    Ok(Box::new(reader::SqliteReader::open(dir)?))
}
