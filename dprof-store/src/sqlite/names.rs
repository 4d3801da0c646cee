//! The dictionary of a chunk: texts and origins by number, with a bounded cache on either side.

use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use dprof_common::model::{Half, HostInfo, ProcessInfo};
use rusqlite::{Connection, OptionalExtension};
use rustc_hash::FxHashMap;

use super::chunk::sqlite_error;
use crate::StoreError;
use crate::rows::{self, Dictionary, Lookup, Origin, RowError};

/// Names kept in memory; at 100 bytes each 2 MB. When full the cache starts anew and is filled from the chunk,
/// so hostile operation names cost time but no memory.
const CACHE_MAX: usize = 20_000;

/// What the writer remembers of a chunk's dictionary. Must be cleared when a transaction fails.
#[derive(Default)]
pub(crate) struct NameCache {
    texts: FxHashMap<Box<str>, u32>,
    origins: FxHashMap<OriginKey, u32>,
}

impl NameCache {
    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.texts.clear();
        self.origins.clear();
    }
}

#[derive(PartialEq, Eq)]
struct OriginKey {
    host: Arc<HostInfo>,
    process: Arc<ProcessInfo>,
    netns: u32,
}

impl Hash for OriginKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The host is the same for nearly all.
        self.process.pid.hash(state);
        self.process.service.hash(state);
        self.netns.hash(state);
    }
}

/// Numbers for the rows of one transaction.
pub(crate) struct NameWriter<'a> {
    /// The chunk, in a transaction.
    pub(crate) connection: &'a Connection,
    /// What is known already.
    pub(crate) cache: &'a mut NameCache,
}

impl NameWriter<'_> {
    fn text_row(&self, text: &str) -> rusqlite::Result<u32> {
        let found = self
            .connection
            .prepare_cached("SELECT id FROM texts WHERE text = ?1")?
            .query_row([text], |row| row.get(0))
            .optional()?;
        match found {
            Some(id) => Ok(id),
            None => self
                .connection
                .prepare_cached("INSERT INTO texts(text) VALUES (?1) RETURNING id")?
                .query_row([text], |row| row.get(0)),
        }
    }

    fn origin_row(&self, half: &Half) -> rusqlite::Result<u32> {
        let packed = rows::pack_origin(half);
        let found = self
            .connection
            .prepare_cached("SELECT id FROM origins WHERE packed = ?1")?
            .query_row([&packed], |row| row.get(0))
            .optional()?;
        match found {
            Some(id) => Ok(id),
            None => self
                .connection
                .prepare_cached(
                    "INSERT INTO origins(host, service, pid, packed) VALUES (?1, ?2, ?3, ?4) RETURNING id",
                )?
                .query_row((&half.host.host, &half.process.service, half.process.pid, &packed), |row| {
                    row.get(0)
                }),
        }
    }
}

impl Dictionary for NameWriter<'_> {
    type Error = rusqlite::Error;

    fn text_id(&mut self, text: &str) -> rusqlite::Result<u32> {
        if let Some(id) = self.cache.texts.get(text) {
            return Ok(*id);
        }
        let id = self.text_row(text)?;
        if self.cache.texts.len() >= CACHE_MAX {
            self.cache.texts.clear();
        }
        self.cache.texts.insert(text.into(), id);
        Ok(id)
    }

    fn origin_id(&mut self, half: &Half) -> rusqlite::Result<u32> {
        let key =
            OriginKey { host: Arc::clone(&half.host), process: Arc::clone(&half.process), netns: half.netns };
        if let Some(id) = self.cache.origins.get(&key) {
            return Ok(*id);
        }
        let id = self.origin_row(half)?;
        if self.cache.origins.len() >= CACHE_MAX {
            self.cache.origins.clear();
        }
        self.cache.origins.insert(key, id);
        Ok(id)
    }
}

/// What a reader has looked up of a chunk's dictionary.
#[derive(Default)]
pub(crate) struct ReadNames {
    texts: FxHashMap<u32, Arc<str>>,
    origins: FxHashMap<u32, Origin>,
}

/// Looks numbers up in one chunk.
pub(crate) struct NameReader<'a> {
    /// The chunk.
    pub(crate) connection: &'a Connection,
    /// What was looked up before.
    pub(crate) names: &'a mut ReadNames,
    /// The chunk's path, for errors.
    pub(crate) path: &'a Path,
}

/// Why a row could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// This row is damaged; others may be well.
    Row(RowError),
    /// The chunk cannot be read.
    Store(StoreError),
}

impl From<RowError> for ReadError {
    fn from(error: RowError) -> Self {
        Self::Row(error)
    }
}

impl Lookup for NameReader<'_> {
    type Error = ReadError;

    fn text(&mut self, id: u32) -> Result<Arc<str>, ReadError> {
        if let Some(text) = self.names.texts.get(&id) {
            return Ok(Arc::clone(text));
        }
        let text: Option<String> = self
            .connection
            .prepare_cached("SELECT text FROM texts WHERE id = ?1")
            .and_then(|mut select| select.query_row([id], |row| row.get(0)).optional())
            .map_err(|error| ReadError::Store(sqlite_error(self.path, error)))?;
        let text: Arc<str> = text.ok_or(RowError("a name is missing".into()))?.into();
        if self.names.texts.len() >= CACHE_MAX {
            self.names.texts.clear();
        }
        self.names.texts.insert(id, Arc::clone(&text));
        Ok(text)
    }

    fn origin(&mut self, id: u32) -> Result<Origin, ReadError> {
        if let Some(origin) = self.names.origins.get(&id) {
            return Ok(origin.clone());
        }
        let packed: Option<Vec<u8>> = self
            .connection
            .prepare_cached("SELECT packed FROM origins WHERE id = ?1")
            .and_then(|mut select| select.query_row([id], |row| row.get(0)).optional())
            .map_err(|error| ReadError::Store(sqlite_error(self.path, error)))?;
        let origin = rows::unpack_origin(&packed.ok_or(RowError("an origin is missing".into()))?)?;
        if self.names.origins.len() >= CACHE_MAX {
            self.names.origins.clear();
        }
        self.names.origins.insert(id, origin.clone());
        Ok(origin)
    }
}
