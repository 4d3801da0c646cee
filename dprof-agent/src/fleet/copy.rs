//! The last good configuration on disk, for a start without the store.
//!
//! What a reader would get wrong: the copy is of one store. An agent that is given another store does not obey it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use dprof_store::control::Document;
use serde::{Deserialize, Serialize};

/// A copy of more is none: a store refuses documents of a quarter of a megabyte.
const BYTES_MAX: u64 = 64 << 20;

/// The file.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    store: String,
    documents: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    scope: String,
    version: u64,
    body: String,
    author: String,
    comment: String,
    at_unix_ms: u64,
}

/// Where the copy of one host lies.
#[derive(Clone, Debug)]
pub struct Copy {
    path: PathBuf,
    store: String,
}

impl Copy {
    /// The copy of `host`'s agent of `store` in `dir`.
    pub fn of(dir: &Path, host: &str, store: &str) -> Self {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        let name: String = host.chars().map(|c| if is_plain(c) { c } else { '.' }).collect();
        Self { path: dir.join(format!("config-{name}.json")), store: store.to_owned() }
    }

    /// Makes the folder, only for its owner.
    pub fn prepare(&self) -> Result<()> {
        let dir = self.path.parent().context("the copy has a folder")?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("create {}: give another folder with --state", dir.display()))
    }

    /// The documents; `None`: there is no copy of this store.
    pub fn read(&self) -> Result<Option<Vec<Document>>> {
        let shown = || self.path.display().to_string();
        match fs::metadata(&self.path) {
            // Where the store's own folder cannot be one, the store says so.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(shown),
            Ok(meta) if meta.len() > BYTES_MAX => anyhow::bail!("{} is too large to be one", shown()),
            Ok(_) => {}
        }
        let text = fs::read_to_string(&self.path).with_context(shown)?;
        let file: File = serde_json::from_str(&text).with_context(shown)?;
        if file.store != self.store {
            return Ok(None);
        }
        let document = |entry: Entry| {
            let Entry { scope, version, body, author, comment, at_unix_ms } = entry;
            let scope = scope.parse().with_context(shown)?;
            Ok(Document { scope, version, body, author, comment, at_unix_ms })
        };
        file.documents.into_iter().map(document).collect::<Result<_>>().map(Some)
    }

    /// Replaces the copy: after a crash it is the old one or the new one.
    pub fn write(&self, documents: &[Document]) -> Result<()> {
        let entry = |document: &Document| Entry {
            scope: document.scope.to_string(),
            version: document.version,
            body: document.body.clone(),
            author: document.author.clone(),
            comment: document.comment.clone(),
            at_unix_ms: document.at_unix_ms,
        };
        let file = File { store: self.store.clone(), documents: documents.iter().map(entry).collect() };
        let unfinished = self.path.with_extension("new");
        let write = || {
            // One that a crash left may have another mode.
            let _ = fs::remove_file(&unfinished);
            let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
            new.write_all(&serde_json::to_vec_pretty(&file)?)?;
            new.sync_data()?;
            fs::rename(&unfinished, &self.path)
        };
        write().with_context(|| format!("write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use dprof_common::settings::Scope;

    use super::*;

    #[test]
    fn what_is_written_is_read_again_by_the_same_host_of_the_same_store_only() {
        let dir = tempfile::tempdir().expect("a folder");
        let dir = dir.path().join("state");
        let copy = Copy::of(&dir, "web/1", "sqlite:/a");
        copy.prepare().expect("made");
        assert!(copy.read().expect("no error").is_none());
        let documents = vec![
            Document { version: 2, body: r#"{"a": "1"}"#.to_owned(), ..Document::none(Scope::Cluster) },
            Document { version: 1, ..Document::none(Scope::Host("web/1".to_owned())) },
        ];
        copy.write(&documents[..1]).expect("written");
        copy.write(&documents).expect("replaced");
        assert_eq!(copy.read().expect("no error"), Some(documents));
        for (host, store) in [("web/2", "sqlite:/a"), ("web/1", "sqlite:/b")] {
            assert!(Copy::of(&dir, host, store).read().expect("no error").is_none(), "{host} {store}");
        }
        let meta = fs::metadata(dir.join("config-web.1.json")).expect("there");
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&dir).expect("there").permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(&dir).expect("there").count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn a_damaged_copy_is_an_error_and_can_be_replaced() {
        let dir = tempfile::tempdir().expect("a folder");
        let copy = Copy::of(dir.path(), "web-1", "sqlite:/a");
        for text in ["", "{", r#"{"store": "sqlite:/a", "documents": [{"scope": "rack:1"}]}"#] {
            fs::write(dir.path().join("config-web-1.json"), text).expect("written");
            let error = format!("{:#}", copy.read().expect_err(text));
            assert!(error.contains("config-web-1.json"), "{error}");
        }
        copy.write(&[]).expect("replaced");
        assert_eq!(copy.read().expect("no error"), Some(Vec::new()));
    }
}
