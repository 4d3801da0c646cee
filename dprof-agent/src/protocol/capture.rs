//! What of an application's data may be kept: the configuration's `[capture]`.
//!
//! What a reader would get wrong: secrets are no values. What authenticates (`AUTH`, `CONFIG SET requirepass`, the
//! headers Authorization and Cookie, `?password=`) is never kept, whatever is configured here.

use std::str::FromStr;

/// What is kept of values and keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// Values are kept, cut to a few dozen bytes; else each is `?`.
    pub values: bool,
    /// How keys are kept.
    pub keys: KeyCapture,
}

/// How keys are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyCapture {
    /// As they are.
    #[default]
    Plain,
    /// As `#` and 16 hex digits: the same for the same key, on every host, so that hot keys still show. Guards
    /// against reading, not against somebody who can guess keys and try them.
    Hash,
}

impl FromStr for KeyCapture {
    type Err = String;

    /// `plain` or `hash`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "plain" => Ok(Self::Plain),
            "hash" => Ok(Self::Hash),
            other => Err(format!("'{other}' is no way to keep keys: give plain or hash")),
        }
    }
}
