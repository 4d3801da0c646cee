//! The folders of a store: one per agent run, named so that a listing reads well, holding `run.json`, numbered
//! chunks (`000001.db`) and the summaries of sealed ones (`000001.ids`).
//!
//! Folders are independent of each other: one copied here from another host is one more run.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use dprof_common::model::RunId;
use serde::{Deserialize, Serialize};

use super::access::{Access, io_error};
use super::lock::LOCKS_DIR;
use super::summary::Summary;
use crate::schema::SCHEMA_VERSION;
use crate::{RunInfo, StoreError};

const RUN_FILE: &str = "run.json";
const CHUNK_EXT: &str = "db";
const SUMMARY_EXT: &str = "ids";
/// Characters of the host name in a folder's name.
const HOST_CHARS_MAX: usize = 40;

/// A run's folder.
#[derive(Clone, Debug)]
pub(crate) struct RunDir {
    /// Folder.
    pub(crate) path: PathBuf,
    /// What its agent said of itself.
    pub(crate) info: RunInfo,
}

/// A chunk as listed.
#[derive(Debug)]
pub(crate) struct ChunkFile {
    /// The SQLite file.
    pub(crate) path: PathBuf,
    /// Its number in the run.
    pub(crate) number: u32,
    /// Its summary and the open file of it, once sealed.
    pub(crate) sealed: Option<(Summary, File)>,
}

#[derive(Serialize, Deserialize)]
struct RunFile {
    schema: i64,
    run_id: String,
    host: String,
    labels: BTreeMap<String, String>,
    version: String,
    kernel: String,
    backend: String,
    started_unix_ns: u64,
}

/// Path of chunk `number`.
pub(crate) fn chunk_path(run_dir: &Path, number: u32) -> PathBuf {
    run_dir.join(format!("{number:06}.{CHUNK_EXT}"))
}

/// Path of a chunk's summary.
pub(crate) fn summary_path(chunk: &Path) -> PathBuf {
    chunk.with_extension(SUMMARY_EXT)
}

/// Path of SQLite's own file beside a chunk (`-wal`, `-shm`, `-journal`).
pub(crate) fn side_path(chunk: &Path, suffix: &str) -> PathBuf {
    let mut path = chunk.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// `web-1-20261123T093105Z-1f00ab34`: host, start, first digits of the run id.
fn folder_name(run: &RunInfo) -> String {
    let host: String = run
        .host
        .chars()
        .take(HOST_CHARS_MAX)
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
        .collect();
    let started = i64::try_from(run.started_unix_ns / 1_000_000_000)
        .ok()
        .and_then(|s| jiff::Timestamp::from_second(s).ok())
        .map_or_else(|| "unknown".to_owned(), |at| at.strftime("%Y%m%dT%H%M%SZ").to_string());
    // A leading dot would hide the folder.
    format!("{}-{started}-{}", host.trim_start_matches('.'), &run.run_id.to_string()[..8])
}

/// Makes the folder of a run, or finds it again.
pub(crate) fn create_run(dir: &Path, run: &RunInfo, access: Access) -> Result<RunDir, StoreError> {
    let path = dir.join(folder_name(run));
    access.create_dir(&path)?;
    let file = path.join(RUN_FILE);
    if file.exists() {
        let info = read_run(&path)?;
        if info.run_id != run.run_id {
            return Err(StoreError::Other(anyhow::anyhow!(
                "{} belongs to run {}",
                path.display(),
                info.run_id
            )));
        }
    }
    let contents = RunFile {
        schema: SCHEMA_VERSION,
        run_id: run.run_id.to_string(),
        host: run.host.clone(),
        labels: run.labels.clone(),
        version: run.version.clone(),
        kernel: run.kernel.clone(),
        backend: run.backend.clone(),
        started_unix_ns: run.started_unix_ns,
    };
    let text = serde_json::to_string_pretty(&contents).map_err(|error| StoreError::Other(error.into()))?;
    let unfinished = path.join("run.json.tmp");
    access.open_file(&unfinished)?;
    std::fs::write(&unfinished, text + "\n")
        .and_then(|()| std::fs::rename(&unfinished, &file))
        .map_err(|error| io_error(&file, error))?;
    Ok(RunDir { path, info: run.clone() })
}

/// Reads `run.json`.
fn read_run(run_dir: &Path) -> Result<RunInfo, StoreError> {
    let path = run_dir.join(RUN_FILE);
    let text = std::fs::read_to_string(&path).map_err(|error| io_error(&path, error))?;
    let damaged = |cause: String| StoreError::Damaged { path: path.display().to_string(), cause };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    // Before the rest, which a newer version may have changed.
    if let Some(found) = value.get("schema").and_then(serde_json::Value::as_i64)
        && found > SCHEMA_VERSION
    {
        return Err(StoreError::Newer { path: path.display().to_string(), found, known: SCHEMA_VERSION });
    }
    let run: RunFile = serde_json::from_value(value).map_err(|error| damaged(error.to_string()))?;
    let run_id: RunId = run.run_id.parse().map_err(|error| damaged(format!("run_id: {error}")))?;
    Ok(RunInfo {
        run_id,
        host: run.host,
        labels: run.labels,
        version: run.version,
        kernel: run.kernel,
        backend: run.backend,
        started_unix_ns: run.started_unix_ns,
    })
}

/// All runs of the store, newest first, and why some are missing. A newer schema is an error, not a gap.
pub(crate) fn list_runs(dir: &Path) -> Result<(Vec<RunDir>, Vec<String>), StoreError> {
    let mut runs = Vec::new();
    let mut warnings = Vec::new();
    let mut forbidden = None;
    for entry in std::fs::read_dir(dir).map_err(|error| io_error(dir, error))? {
        let entry = entry.map_err(|error| io_error(dir, error))?;
        let path = entry.path();
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if hidden || entry.file_name() == LOCKS_DIR || !path.is_dir() {
            continue;
        }
        match read_run(&path) {
            Ok(info) => runs.push(RunDir { path, info }),
            // Not a run, or one that is just being made or removed.
            Err(StoreError::NotFound(_)) => {}
            Err(error @ StoreError::Newer { .. }) => return Err(error),
            Err(error @ StoreError::Permission { .. }) => {
                warnings.push(error.to_string());
                forbidden = Some(error);
            }
            Err(error) => warnings.push(error.to_string()),
        }
    }
    match forbidden {
        Some(error) if runs.is_empty() => Err(error),
        _ => {
            runs.sort_by(|a, b| {
                (b.info.started_unix_ns, b.info.run_id).cmp(&(a.info.started_unix_ns, a.info.run_id))
            });
            Ok((runs, warnings))
        }
    }
}

/// The chunks of a run, oldest first. A run that vanished has none.
pub(crate) fn list_chunks(run_dir: &Path) -> Result<Vec<ChunkFile>, StoreError> {
    let entries = match std::fs::read_dir(run_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error(run_dir, error)),
    };
    let mut chunks = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| io_error(run_dir, error))?.path();
        if path.extension().is_none_or(|extension| extension != CHUNK_EXT) {
            continue;
        }
        let Some(number) = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok())
        else {
            continue;
        };
        let sealed =
            File::open(summary_path(&path)).ok().and_then(|file| Some((Summary::read(&file)?, file)));
        chunks.push(ChunkFile { path, number, sealed });
    }
    chunks.sort_by_key(|chunk| chunk.number);
    Ok(chunks)
}

/// Deletes a chunk and all files beside it; returns their bytes. The database goes first: without it the rest
/// is ignored by readers.
pub(crate) fn delete_chunk(chunk: &Path) -> Result<u64, StoreError> {
    let mut freed = 0;
    let paths =
        [chunk.to_owned(), side_path(chunk, "-wal"), side_path(chunk, "-shm"), side_path(chunk, "-journal")];
    for path in paths.into_iter().chain([summary_path(chunk)]) {
        let bytes = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        match std::fs::remove_file(&path) {
            Ok(()) => freed += bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error(&path, error)),
        }
    }
    Ok(freed)
}

/// Deletes the folder of a run that has no chunk left.
pub(crate) fn delete_run(run_dir: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(run_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error(run_dir, error)),
        _ => Ok(()),
    }
}

/// Bytes of all files of a run.
pub(crate) fn run_bytes(run_dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(run_dir) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(host: &str, id: u128, started_s: u64) -> RunInfo {
        RunInfo {
            run_id: RunId(id << 96),
            host: host.to_owned(),
            labels: BTreeMap::from([("dc".to_owned(), "a \"quoted\" one".to_owned())]),
            version: "0.1.0".to_owned(),
            kernel: "6.18".to_owned(),
            backend: "tp_btf".to_owned(),
            started_unix_ns: started_s * 1_000_000_000 + 5,
        }
    }

    #[test]
    fn folders_are_named_by_host_start_and_run() {
        for (host, expected) in [
            ("web-1.example", "web-1.example-20240101T000000Z-00000abc"),
            ("../etc/x y", "_etc_x_y-20240101T000000Z-00000abc"),
            ("", "-20240101T000000Z-00000abc"),
        ] {
            assert_eq!(folder_name(&run(host, 0xabc, 1_704_067_200)), expected);
        }
    }

    #[test]
    fn runs_are_listed_newest_first_and_broken_ones_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let access = Access::of_process();
        let (old, new) = (run("a", 1, 100), run("b", 2, 200));
        create_run(dir.path(), &old, access).expect("made");
        create_run(dir.path(), &new, access).expect("made");
        create_run(dir.path(), &new, access).expect("found again");
        std::fs::create_dir_all(dir.path().join("broken")).expect("made");
        std::fs::write(dir.path().join("broken/run.json"), "{").expect("written");
        std::fs::create_dir_all(dir.path().join("other-folder")).expect("made");
        let (runs, warnings) = list_runs(dir.path()).expect("lists");
        assert_eq!(runs.into_iter().map(|run| run.info).collect::<Vec<_>>(), [new, old]);
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("broken/run.json is damaged"), "{}", warnings[0]);

        std::fs::write(dir.path().join("broken/run.json"), r#"{"schema": 99}"#).expect("written");
        let error = list_runs(dir.path()).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
        assert!(matches!(list_runs(&dir.path().join("none")), Err(StoreError::NotFound(_))));
    }
}
