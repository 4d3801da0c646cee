//! The file format of a recording: the event stream as it was, compressed, in parts that stand alone.
//!
//! ```text
//! "dprofrec"  version u32  header_len u32  header (JSON, RecordingHeader)
//! parts:      raw_len u32  packed_len u32  packed (one zstd frame with checksum) of raw_len bytes of records
//! end:        0 u32        0 u32
//! ```
//! Integers are little endian; records are those of a [`Block`](super::Block). What a reader would get wrong:
//! parts are cut anywhere between records, so nothing may depend on the cuts; and a file without the end mark
//! is one whose agent was killed: good up to there.

mod read;
mod recorder;
mod scrub;
mod write;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use read::RecordingReader;
pub use recorder::{Recorder, RecorderCounters, RecorderOptions};
pub use scrub::Scrub;
pub use write::RecordingWriter;

/// First bytes of a file.
const MAGIC: &[u8; 8] = b"dprofrec";
/// Version of the layout above *and* of the records in `dprof-common/src/event.rs`: a change of either is a new
/// one.
pub const VERSION: u32 = 1;
/// A header holds names and labels.
const HEADER_BYTES_MAX: u32 = 1 << 20;
/// Raw bytes of a part: large enough to compress well, small enough that a killed agent loses little.
const PART_RAW_BYTES: usize = 512 << 10;
/// A part of a file that claims more is damaged. Twice the largest that is written.
const PART_RAW_BYTES_MAX: usize = 2 << 20;

/// What a replay must know beside the events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordingHeader {
    /// Host name in spans.
    pub host: String,
    /// Labels of the host.
    pub labels: BTreeMap<String, String>,
    /// Kernel release.
    pub kernel: String,
    /// Version of dprof that recorded.
    pub dprof: String,
    /// Back end that captured.
    pub backend: String,
    /// Whether values were masked.
    pub redacted: bool,
    /// Wall clock at start, nanoseconds since the epoch.
    pub started_unix_ns: u64,
}

/// Why a recording cannot be read (on).
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file cannot be opened, read or written.
    #[error("{path}: {cause}")]
    Io {
        /// File.
        path: PathBuf,
        /// The system's words.
        cause: std::io::Error,
    },
    /// Not a recording at all.
    #[error("{0} is not a recording: make one with dprof-agent --record FILE")]
    NotARecording(PathBuf),
    /// Written by a newer dprof.
    #[error("{path} is a recording of version {found}, this dprof knows up to {VERSION}: update dprof")]
    Newer {
        /// File.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The bytes are wrong from here on.
    #[error("{path} is damaged at byte {at} ({cause}): everything before was used")]
    Damaged {
        /// File.
        path: PathBuf,
        /// Where.
        at: u64,
        /// How.
        cause: &'static str,
    },
    /// The end mark is missing.
    #[error("{path} ends early, at byte {at} (was the recording agent killed?): everything before was used")]
    Truncated {
        /// File.
        path: PathBuf,
        /// Where.
        at: u64,
    },
}

#[cfg(test)]
mod tests;
