//! Changing what is configured while others do the same: read the head, change it, append; again if another was faster.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use dprof_common::settings::{Scope, Values};

use super::{BODY_BYTES_MAX, Control, Document, head};
use crate::StoreError;

/// Somebody is always first, so of a hundred writers the last is served after a hundred rounds.
const TRIES_MAX: u32 = 1_000;
/// First pause before another try, and the longest: a conditional write takes some milliseconds, and a hundred writers
/// that try again at once keep each other from being done.
const PAUSE_MS: (u64, u64) = (5, 2_560);

/// Who changes something, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Author {
    /// Name.
    pub name: String,
    /// Comment.
    pub comment: String,
    /// Milliseconds since the epoch.
    pub at_unix_ms: u64,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This document was written.
    Written(Document),
    /// This is the head, and it says so already.
    Already(Document),
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The change itself was refused.
    #[error("{0}")]
    Refused(String),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Changes the values of a scope with `edit`, which is called with each head that is found until a document that
/// follows it is written.
pub async fn change(
    control: &dyn Control,
    scope: &Scope,
    author: &Author,
    mut edit: impl FnMut(&Document) -> Result<Values, String>,
) -> Result<Change, ChangeError> {
    let mut pause_ms = PAUSE_MS.0;
    for _ in 0..TRIES_MAX {
        let head = head(control, scope).await?;
        let values = edit(&head).map_err(ChangeError::Refused)?;
        if head.values().as_ref() == Ok(&values) {
            return Ok(Change::Already(head));
        }
        let document = Document {
            scope: scope.clone(),
            version: head.version + 1,
            body: Document::body_of(&values),
            author: author.name.clone(),
            comment: author.comment.clone(),
            at_unix_ms: author.at_unix_ms,
        };
        if document.body.len() > BODY_BYTES_MAX {
            let bytes = document.body.len();
            return Err(ChangeError::Refused(format!(
                "{bytes} bytes of values: give at most {BODY_BYTES_MAX}"
            )));
        }
        if control.append(&document).await? {
            return Ok(Change::Written(document));
        }
        // Those who were slower together must not try again together.
        tokio::time::sleep(Duration::from_millis(random() % pause_ms + 1)).await;
        pause_ms = (pause_ms * 2).min(PAUSE_MS.1);
    }
    Err(ChangeError::Refused(format!("others were faster {TRIES_MAX} times: try again when they are done")))
}

/// Another number in every call.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
