//! A value that the starter of a program turns while the program runs: a JSON file that the program looks at.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Time between two looks: short against the seconds that a value stays.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The program's end.
#[derive(Clone, Debug)]
pub struct Dial<T>(Arc<RwLock<T>>);

impl<T: Clone + DeserializeOwned + Send + Sync + 'static> Dial<T> {
    /// Looks at `path` as long as the process lives; `first` until there is something.
    pub fn watch(path: PathBuf, first: T) -> Self {
        let value = Arc::new(RwLock::new(first));
        let turned = Arc::clone(&value);
        thread::spawn(move || {
            loop {
                let read = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
                if let Some(read) = read {
                    *turned.write().unwrap_or_else(PoisonError::into_inner) = read;
                }
                thread::sleep(LOOK_EVERY);
            }
        });
        Self(value)
    }

    /// A value that nobody turns.
    pub fn fixed(value: T) -> Self {
        Self(Arc::new(RwLock::new(value)))
    }

    /// The value now.
    pub fn get(&self) -> T {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The starter's end: whoever looks sees the old value or the new one, never a part.
pub fn turn<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let unfinished = path.with_extension("tmp");
    fs::write(&unfinished, serde_json::to_string(value)?)
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| format!("write {}", path.display()))
}
