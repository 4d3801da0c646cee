//! A recording as a [`Source`]: the same stream as on the day, as fast as the engine takes it.

use std::path::Path;
use std::time::Duration;

use super::recording::{RecordingError, RecordingHeader, RecordingReader};
use super::{Block, Source, SourceCounters};

/// Reads blocks from a recording.
#[derive(Debug)]
pub struct Replay {
    reader: RecordingReader,
    counters: SourceCounters,
}

impl Replay {
    /// Opens a recording.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        Ok(Self { reader: RecordingReader::open(path)?, counters: SourceCounters::default() })
    }

    /// What the recording says about its machine.
    pub const fn header(&self) -> &RecordingHeader {
        self.reader.header()
    }
}

impl Source for Replay {
    fn backend(&self) -> &'static str {
        "replay"
    }

    fn next_block(&mut self, _wait: Duration) -> anyhow::Result<Option<Block>> {
        let block = self.reader.next_block()?;
        if let Some(block) = &block {
            self.counters.records += block.records().count() as u64;
            self.counters.bytes += block.0.len() as u64;
        }
        Ok(block)
    }

    /// The recording holds the payload that the limits of its day let through.
    fn set_payload_limit(&mut self, _sock: u64, _bytes: u32) {}

    fn counters(&mut self) -> SourceCounters {
        self.counters
    }
}
