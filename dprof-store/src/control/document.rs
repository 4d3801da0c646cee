//! One version of what is configured in one scope.

use dprof_common::settings::{Scope, Values};
use sha2::{Digest as _, Sha256};

/// A document larger than this is refused: agents read it every few seconds.
pub const BODY_BYTES_MAX: usize = 256 * 1024;

/// One version of what is configured in one scope: all of its values, not only those that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Where it holds.
    pub scope: Scope,
    /// From 1; 0 = there is none yet.
    pub version: u64,
    /// Values as JSON, an object of texts. As it was written: it need not be that.
    pub body: String,
    /// Who wrote it.
    pub author: String,
    /// Why.
    pub comment: String,
    /// When, milliseconds since the epoch.
    pub at_unix_ms: u64,
}

impl Document {
    /// What stands before the first version.
    pub fn none(scope: Scope) -> Self {
        Self {
            scope,
            version: 0,
            body: "{}".to_owned(),
            author: String::new(),
            comment: String::new(),
            at_unix_ms: 0,
        }
    }

    /// Values by key, or why they cannot be read.
    pub fn values(&self) -> Result<Values, String> {
        if self.body.len() > BODY_BYTES_MAX {
            let bytes = self.body.len();
            return Err(format!(
                "{} {}: {bytes} bytes, more than {BODY_BYTES_MAX}",
                self.scope, self.version
            ));
        }
        serde_json::from_str(&self.body)
            .map_err(|error| format!("{} {}: not an object of texts: {error}", self.scope, self.version))
    }

    /// These values as a body.
    pub fn body_of(values: &Values) -> String {
        serde_json::to_string(values).expect("texts by texts are always JSON")
    }

    /// SHA-256 over all of it: by this a writer knows its own document again, whatever became of the answer.
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        let texts = [&self.scope.to_string(), &self.body, &self.author, &self.comment];
        for text in texts {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.update(self.version.to_le_bytes());
        hasher.update(self.at_unix_ms.to_le_bytes());
        hasher.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_what_is_none_is_named() {
        let values = Values::from([("trace.keep_ratio".to_owned(), "1/16".to_owned())]);
        let mut document =
            Document { version: 3, body: Document::body_of(&values), ..Document::none(Scope::Cluster) };
        assert_eq!(document.values(), Ok(values));
        for body in ["", "[]", r#"{"a": 1}"#, "{"] {
            body.clone_into(&mut document.body);
            let reason = document.values().expect_err(body);
            assert!(reason.starts_with("cluster 3: not an object of texts"), "{reason}");
        }
        document.body = format!("{{\"a\": \"{}\"}}", "x".repeat(BODY_BYTES_MAX));
        assert!(document.values().expect_err("too long").contains("bytes, more than"));
    }

    #[test]
    fn every_field_changes_the_hash() {
        let document = Document { version: 1, ..Document::none(Scope::Cluster) };
        let others = [
            Document { scope: Scope::Host("a".to_owned()), ..document.clone() },
            Document { version: 2, ..document.clone() },
            Document { body: String::new(), ..document.clone() },
            Document { author: "ann".to_owned(), ..document.clone() },
            Document { comment: "ann".to_owned(), ..document.clone() },
            Document { at_unix_ms: 1, ..document.clone() },
        ];
        for (idx, other) in others.iter().enumerate() {
            assert_ne!(other.hash(), document.hash());
            assert!(others[..idx].iter().all(|before| before.hash() != other.hash()));
        }
    }
}
