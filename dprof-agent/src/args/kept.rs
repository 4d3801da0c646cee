//! Options that say what of payload is kept, in statements and in recordings.
//!
//! What a reader would get wrong: the two are apart. A recording is masked or not whatever statements keep, since it
//! holds all of the traffic.

use std::path::PathBuf;

use dprof_common::settings::{Protocols, parse_protocols};

use super::option;
use crate::protocol::capture::Capture;

/// A recording to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordOptions {
    /// File.
    pub path: PathBuf,
    /// Values are masked.
    pub redacted: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct KeptArgs {
    /// Also write the raw events to this file, values and secrets replaced by filler (mode 0600)
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Write payload into the recording as it is, passwords and cookies included
    #[arg(long, requires = "record")]
    record_payload: bool,
    /// Replace values by filler in the recording, which is the default
    #[arg(long, requires = "record", conflicts_with = "record_payload", hide = true)]
    record_redacted: bool,
    /// Keep values in statements and queries, cut to a few dozen bytes; never secrets [default: each is ?]
    #[arg(long)]
    capture_values: bool,
    /// Only these protocols, of dnode, http, memcached, redis, tls: of others no spans, no payload [default: all]
    #[arg(long, value_name = "NAME,NAME")]
    protocols: Option<String>,
    /// How keys are kept in statements: plain or hash [default: plain]
    #[arg(long, value_name = "HOW")]
    capture_keys: Option<String>,
}

impl KeptArgs {
    /// What statements keep; the configuration's word where the command line has none.
    pub(super) fn capture(&self, config: Capture) -> Result<Capture, String> {
        let keys = match self.capture_keys.as_deref() {
            Some(text) => option("--capture-keys", text.parse())?,
            None => config.keys,
        };
        Ok(Capture { values: self.capture_values || config.values, keys })
    }

    /// Protocols that are looked into; the configuration's word where the command line has none.
    pub(super) fn protocols(&self, config: Protocols) -> Result<Protocols, String> {
        self.protocols.as_deref().map_or(Ok(config), |text| option("--protocols", parse_protocols(text)))
    }

    /// The recording to write.
    pub(super) fn into_record(self) -> Option<RecordOptions> {
        self.record.map(|path| RecordOptions { path, redacted: !self.record_payload })
    }
}
