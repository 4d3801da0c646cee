//! Edges of the service map from the chunks of a store.

use rusqlite::Connection;

use super::chunk::sqlite_error;
use super::session::Session;
use crate::edge_rows::{Sums, minutes_of};
use crate::{RunEdge, StoreError};

/// Whether the chunk has edges: those of earlier dprofs need not. The version does not tell.
pub(crate) fn has_edges(connection: &Connection) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'edges'")?
        .exists([])
}

/// The sums of each run over the minutes of the window.
pub(super) fn edges(
    session: &mut Session,
    since_unix_ns: u64,
    until_unix_ns: u64,
) -> Result<Vec<RunEdge>, StoreError> {
    let (since_s, until_s) = minutes_of(since_unix_ns, until_unix_ns);
    let signed = |s: u64| i64::try_from(s).unwrap_or(i64::MAX);
    let mut sums = Sums::default();
    for idx in 0..session.chunks.len() {
        if let Some(summary) = session.summary(idx)
            && (summary.minute_min >= until_s || summary.minute_max < since_s)
        {
            continue;
        }
        let run_id = session.chunks[idx].run_id;
        let mut blobs = Vec::new();
        session.with(idx, |chunk| {
            blobs.clear();
            let mut read = || -> rusqlite::Result<()> {
                if !has_edges(&chunk.connection)? {
                    return Ok(());
                }
                let mut select = chunk
                    .connection
                    .prepare_cached("SELECT packed FROM edges WHERE minute_max >= ?1 AND minute_min < ?2")?;
                let mut rows = select.query((signed(since_s), signed(until_s)))?;
                while let Some(row) = rows.next()? {
                    blobs.push(row.get::<_, Vec<u8>>(0)?);
                }
                Ok(())
            };
            read().map_err(|error| sqlite_error(&chunk.path, error))
        })?;
        for blob in &blobs {
            if let Err(error) = sums.add(run_id, blob, (since_s, until_s)) {
                session.damaged_row(idx, &error.to_string());
            }
        }
    }
    Ok(sums.rows())
}
