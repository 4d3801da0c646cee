//! The embedded store's tables: one SQLite file per chunk of time.
//!
//! What a reader would get wrong: rows are numbered from 0 without gaps and belong to *groups* of
//! [`GROUP_ROWS`], and every index starts with the group. A new span therefore touches only the few index pages
//! of the newest group, where an index over the whole chunk would dirty a random page per span (4 KiB of
//! write-ahead log for 20 bytes). A lookup probes every group, about a microsecond each.

use dprof_common::model::{Span, SpanFlags, Status};

/// Version of the tables, in `PRAGMA user_version`, and of `run.json`. Newer ones are refused, older ones read:
/// what they lack is absent from answers.
///
/// | version | new |
/// |---|---|
/// | 1 | |
/// | 2 | `rollups.keys` (some stores of version 1 have it too); later `edges`, which older readers pass over |
pub const SCHEMA_VERSION: i64 = 2;

/// `PRAGMA application_id`: "dpro".
pub const APPLICATION_ID: i64 = 0x6470_726f;

/// Rows of a group: one index of a group is about 70 pages, which stay in the cache.
pub const GROUP_ROWS: i64 = 1 << 14;

/// Creates the tables of a chunk.
pub const CREATE: &str = "
CREATE TABLE chunk(base_ns INTEGER NOT NULL);
CREATE TABLE batches(seq INTEGER PRIMARY KEY);
CREATE TABLE texts(id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
CREATE TABLE origins(id INTEGER PRIMARY KEY, host TEXT NOT NULL, service TEXT NOT NULL, pid INTEGER NOT NULL,
    packed BLOB NOT NULL UNIQUE);
-- start: nanoseconds after chunk.base_ns; bits: see schema.rs; body: protobuf, see rows.rs
CREATE TABLE spans(id INTEGER PRIMARY KEY, grp INTEGER NOT NULL,
    trace_lo INTEGER NOT NULL, trace_hi INTEGER NOT NULL, span_id INTEGER NOT NULL,
    start INTEGER NOT NULL, dur INTEGER NOT NULL, service INTEGER NOT NULL, operation INTEGER NOT NULL,
    bits INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX spans_by_trace ON spans(grp, trace_lo);
-- the root of a trace is found by its trace id
CREATE INDEX spans_by_id ON spans(grp, span_id) WHERE span_id <> trace_lo;
-- all that a filter asks, so that no row is read that is not among the best; span_id is missing in older chunks
CREATE INDEX spans_by_duration ON spans(grp, dur, start, service, operation, bits, span_id);
CREATE INDEX spans_by_adopted ON spans(grp, trace_hi) WHERE trace_hi <> 0;
-- what a reader may skip
CREATE TABLE groups(grp INTEGER PRIMARY KEY, n INTEGER NOT NULL, start_min INTEGER NOT NULL,
    start_max INTEGER NOT NULL, dur_min INTEGER NOT NULL, dur_max INTEGER NOT NULL,
    clients INTEGER NOT NULL, servers INTEGER NOT NULL);
CREATE TABLE rollups(id INTEGER PRIMARY KEY, minute INTEGER NOT NULL, service INTEGER NOT NULL,
    operation INTEGER NOT NULL, side INTEGER NOT NULL, protocol INTEGER NOT NULL, count INTEGER NOT NULL,
    errors INTEGER NOT NULL, sum_ns INTEGER NOT NULL, min_ns INTEGER NOT NULL, max_ns INTEGER NOT NULL,
    request_bytes INTEGER NOT NULL, response_bytes INTEGER NOT NULL, sketch BLOB NOT NULL, keys BLOB);
-- packed: protobuf, see edge_rows.rs
CREATE TABLE edges(id INTEGER PRIMARY KEY, minute_min INTEGER NOT NULL, minute_max INTEGER NOT NULL,
    packed BLOB NOT NULL);
-- for people with the sqlite3 program
CREATE VIEW span_list AS SELECT printf('%016x%016x', trace_hi, trace_lo) AS trace_id,
    printf('%016x', span_id) AS span_id, strftime('%Y-%m-%dT%H:%M:%fZ', (base_ns + start) / 1e9, 'unixepoch') AS start,
    dur / 1e6 AS ms, s.text AS service, o.text AS operation
    FROM chunk, spans LEFT JOIN texts s ON s.id = service LEFT JOIN texts o ON o.id = operation;
";

/// Made when a chunk is sealed: nothing is added any more, so an index of all rows costs one sort, and a lookup one
/// probe instead of one per group. A chunk without them (not sealed yet, or by an older dprof) is read as well.
pub const SEALED_INDEXES: &str = "
CREATE INDEX IF NOT EXISTS sealed_by_trace ON spans(trace_lo);
CREATE INDEX IF NOT EXISTS sealed_by_id ON spans(span_id) WHERE span_id <> trace_lo;
";

/// The column `bits`: what filters ask about a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bits(pub i64);

impl Bits {
    /// The row has the client half.
    pub const CLIENT: i64 = 1;
    /// The row has the server half.
    pub const SERVER: i64 = 2;
    /// Both.
    pub const SIDES: i64 = 3;
    /// The row has a link to a parent.
    pub const LINKED: i64 = 4;
    /// The row is of a fragment.
    pub const FRAGMENT: i64 = 8;
    /// The client half's status is in 4 bits from here, 0 = no half…
    pub const CLIENT_STATUS_SHIFT: u32 = 4;
    /// …and the server half's from here.
    pub const SERVER_STATUS_SHIFT: u32 = 8;

    /// The bits of a span.
    pub fn of(span: &Span) -> Self {
        let mut bits = 0;
        if let Some(half) = &span.client {
            bits |= Self::CLIENT | i64::from(half.status as u8) << Self::CLIENT_STATUS_SHIFT;
        }
        if let Some(half) = &span.server {
            bits |= Self::SERVER | i64::from(half.status as u8) << Self::SERVER_STATUS_SHIFT;
        }
        if span.link.is_some() {
            bits |= Self::LINKED;
        }
        if span.flags.contains(SpanFlags::FRAGMENT) {
            bits |= Self::FRAGMENT;
        }
        Self(bits)
    }

    /// Which halves.
    pub const fn sides(self) -> i64 {
        self.0 & Self::SIDES
    }

    /// Whether either half has this status.
    pub const fn has_status(self, status: Status) -> bool {
        let status = status as i64;
        (self.0 >> Self::CLIENT_STATUS_SHIFT) & 15 == status
            || (self.0 >> Self::SERVER_STATUS_SHIFT) & 15 == status
    }
}

/// Time as stored: nanoseconds after the chunk's base. Times further than 292 years away stop there.
pub fn relative_ns(base_ns: u64, time_ns: u64) -> i64 {
    let difference = i128::from(time_ns) - i128::from(base_ns);
    i64::try_from(difference).unwrap_or(if difference < 0 { i64::MIN } else { i64::MAX })
}

/// A stored duration; durations above 292 years stop there.
pub fn stored_duration(duration_ns: u64) -> i64 {
    i64::try_from(duration_ns).unwrap_or(i64::MAX)
}
