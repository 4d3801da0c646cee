//! The small file beside a sealed chunk (`000001.ids`): what the chunk holds, so that most questions are
//! answered without opening it.
//!
//! Its presence means that the chunk will not change any more.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::access::{Access, io_error};
use super::filter::{self, BLOCK_BYTES};
use crate::StoreError;

const MAGIC: [u8; 8] = *b"dprofids";
const VERSION: u64 = 1;
/// Magic, 12 numbers, check.
const HEADER_BYTES: usize = 8 + 12 * 8 + 8;

/// What a chunk (or a group of its rows) holds. Empty ranges have `min > max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Zone {
    /// Rows.
    pub(crate) n_spans: u64,
    /// Earliest start, nanoseconds since the epoch.
    pub(crate) start_min: u64,
    /// Latest start.
    pub(crate) start_max: u64,
    /// Shortest duration.
    pub(crate) dur_min: u64,
    /// Longest duration.
    pub(crate) dur_max: u64,
    /// Rows with only the client half.
    pub(crate) clients: u64,
    /// Rows with only the server half.
    pub(crate) servers: u64,
}

impl Zone {
    /// Holds nothing.
    pub(crate) const EMPTY: Self = Self {
        n_spans: 0,
        start_min: u64::MAX,
        start_max: 0,
        dur_min: u64::MAX,
        dur_max: 0,
        clients: 0,
        servers: 0,
    };

    /// Takes in what another holds.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.n_spans += other.n_spans;
        self.start_min = self.start_min.min(other.start_min);
        self.start_max = self.start_max.max(other.start_max);
        self.dur_min = self.dur_min.min(other.dur_min);
        self.dur_max = self.dur_max.max(other.dur_max);
        self.clients += other.clients;
        self.servers += other.servers;
    }
}

/// A chunk's zone, its minutes of rollups, and where its filter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Its spans.
    pub(crate) zone: Zone,
    /// First minute with a rollup, seconds since the epoch.
    pub(crate) minute_min: u64,
    /// Last one.
    pub(crate) minute_max: u64,
    n_blocks: u64,
}

impl Summary {
    /// A summary without its filter.
    pub(crate) const fn new(zone: Zone, minute_min: u64, minute_max: u64) -> Self {
        Self { zone, minute_min, minute_max, n_blocks: 0 }
    }

    /// Latest time that the chunk speaks of, nanoseconds.
    pub(crate) fn newest_ns(&self) -> u64 {
        self.zone.start_max.max(self.minute_max.saturating_mul(1_000_000_000))
    }

    /// Writes the file: under another name first, so that it is there whole or not at all.
    pub(crate) fn write(mut self, path: &Path, filter: &[u8], access: Access) -> Result<(), StoreError> {
        self.n_blocks = (filter.len() / BLOCK_BYTES) as u64;
        let unfinished = path.with_extension("ids.tmp");
        let written = (|| {
            let mut file = access.open_file(&unfinished)?;
            file.set_len(0)
                .and_then(|()| file.write_all(&self.header()))
                .and_then(|()| file.write_all(filter))
                .and_then(|()| file.sync_data())
                .and_then(|()| std::fs::rename(&unfinished, path))
                .map_err(|error| io_error(path, error))
        })();
        if written.is_err() {
            let _ = std::fs::remove_file(&unfinished);
        }
        written
    }

    fn header(&self) -> [u8; HEADER_BYTES] {
        let Zone { n_spans, start_min, start_max, dur_min, dur_max, clients, servers } = self.zone;
        let numbers = [
            VERSION,
            n_spans,
            start_min,
            start_max,
            dur_min,
            dur_max,
            clients,
            servers,
            self.minute_min,
            self.minute_max,
            self.n_blocks,
            0,
        ];
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        for (place, number) in bytes[8..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let sum = u64::from(filter::checksum(&bytes[..HEADER_BYTES - 8]));
        bytes[HEADER_BYTES - 8..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the summary; `None` if the file is not one of ours: the chunk is then read as if unsealed.
    pub(crate) fn read(file: &File) -> Option<Self> {
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let mut numbers = [0; 13];
        for (number, place) in numbers.iter_mut().zip(bytes[8..].chunks_exact(8)) {
            *number = u64::from_le_bytes(place.try_into().expect("chunks of 8"));
        }
        let sum = u64::from(filter::checksum(&bytes[..HEADER_BYTES - 8]));
        if bytes[..8] != MAGIC || numbers[0] != VERSION || numbers[12] != sum {
            return None;
        }
        let [_, n_spans, start_min, start_max, dur_min, dur_max, clients, servers, ..] = numbers;
        Some(Self {
            zone: Zone { n_spans, start_min, start_max, dur_min, dur_max, clients, servers },
            minute_min: numbers[8],
            minute_max: numbers[9],
            n_blocks: numbers[10],
        })
    }

    /// Whether the chunk may hold this id (a span id, or the low half of a trace id). Errors mean maybe.
    pub(crate) fn may_contain(&self, file: &File, id: u64) -> bool {
        filter::may_contain(file, HEADER_BYTES as u64, self.n_blocks, id).unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlite::filter::FilterBuilder;

    #[test]
    fn a_summary_is_read_as_written_and_damage_is_noticed() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("000001.ids");
        let zone =
            Zone { n_spans: 1, start_min: 2, start_max: 3, dur_min: 4, dur_max: 5, clients: 6, servers: 7 };
        let mut filter = FilterBuilder::new(100);
        filter.insert(42);
        Summary::new(zone, 60, 120).write(&path, &filter.finish(), Access::of_process()).expect("writes");
        let file = File::open(&path).expect("is there");
        let read = Summary::read(&file).expect("is whole");
        assert_eq!((read.zone, read.minute_min, read.minute_max), (zone, 60, 120));
        assert_eq!(read.newest_ns(), 120_000_000_000);
        assert!(read.may_contain(&file, 42) && !read.may_contain(&file, 43));

        let bytes = std::fs::read(&path).expect("reads");
        for at in 0..HEADER_BYTES {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, damaged).expect("writes");
            assert_eq!(Summary::read(&File::open(&path).expect("is there")), None, "byte {at}");
        }
        std::fs::write(&path, &bytes[..50]).expect("writes");
        assert_eq!(Summary::read(&File::open(&path).expect("is there")), None);
    }
}
