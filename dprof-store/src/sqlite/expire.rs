//! Expiry: whole chunks go, oldest first, by age and by the bytes of all runs of the store.
//!
//! What a reader would get wrong: chunks of *any* run may go, also of other agents, but never the one that an
//! agent is writing. Two agents expiring at once is fine: a file that is already gone counts as deleted.

use std::path::{Path, PathBuf};

use super::lock;
use super::run::{ChunkFile, delete_chunk, delete_run, list_chunks, list_runs, run_bytes};
use crate::{Retention, StoreError};

/// Deletes what `retention` says. `live` is the chunk that the caller is writing, `own` its run.
pub(crate) fn expire(
    dir: &Path,
    own: &Path,
    live: Option<&Path>,
    retention: &Retention,
    now_ns: u64,
) -> Result<(), StoreError> {
    let horizon_ns = now_ns.saturating_sub(retention.max_age_s.saturating_mul(1_000_000_000));
    let mut candidates: Vec<(u64, PathBuf)> = Vec::new();
    let mut total_bytes = 0;
    for run in list_runs(dir)?.0 {
        let chunks = list_chunks(&run.path)?;
        let alive = run.path == own || lock::is_alive(&run.path);
        if chunks.is_empty() && !alive && run.info.started_unix_ns < horizon_ns {
            delete_run(&run.path)?;
            continue;
        }
        total_bytes += run_bytes(&run.path);
        for chunk in chunks {
            let written_now =
                if run.path == own { live == Some(&chunk.path) } else { alive && chunk.sealed.is_none() };
            if !written_now {
                candidates.push((newest_ns(&chunk), chunk.path));
            }
        }
    }
    candidates.sort();
    for (newest_ns, path) in candidates {
        let too_old = newest_ns < horizon_ns;
        if !too_old && total_bytes <= retention.max_bytes {
            break;
        }
        let freed = delete_chunk(&path)?;
        total_bytes = total_bytes.saturating_sub(freed);
        let why = if too_old { "is past its age" } else { "gives room" };
        log::info!("{} {why}: deleted, {freed} bytes", path.display());
    }
    Ok(())
}

/// Unsealed chunks of dead runs (damaged, or about to be sealed) count by when they were last written.
fn newest_ns(chunk: &ChunkFile) -> u64 {
    match &chunk.sealed {
        Some((summary, _)) => summary.newest_ns(),
        None => std::fs::metadata(&chunk.path)
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_nanos() as u64),
    }
}
