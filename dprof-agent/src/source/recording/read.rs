//! The bytes of a recording back into blocks. Any bytes are safe to read: lengths are checked before memory is
//! taken, parts against their checksum.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{HEADER_BYTES_MAX, MAGIC, PART_RAW_BYTES_MAX, RecordingError, RecordingHeader, VERSION};
use crate::source::Block;

/// Compressed bytes may be a little more than raw ones.
const PART_PACKED_BYTES_MAX: usize = PART_RAW_BYTES_MAX + (PART_RAW_BYTES_MAX >> 7) + 1024;

/// A recording being read.
pub struct RecordingReader {
    path: PathBuf,
    file: BufReader<File>,
    at: u64,
    header: RecordingHeader,
    decompressor: zstd::bulk::Decompressor<'static>,
    is_over: bool,
}

impl std::fmt::Debug for RecordingReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordingReader")
            .field("path", &self.path)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl RecordingReader {
    /// Opens a recording and reads its header.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let io = |cause| RecordingError::Io { path: path.to_owned(), cause };
        let mut file = BufReader::new(File::open(path).map_err(io)?);
        let mut start = [0; 16];
        let found = read_up_to(&mut file, &mut start).map_err(io)?;
        let (magic, numbers) = start.split_at(MAGIC.len());
        if magic != MAGIC || found < start.len() {
            return Err(RecordingError::NotARecording(path.to_owned()));
        }
        let version = u32_at(numbers, 0);
        if version > VERSION {
            return Err(RecordingError::Newer { path: path.to_owned(), found: version });
        }
        let damaged = |cause| RecordingError::Damaged { path: path.to_owned(), at: 8, cause };
        let header_len = u32_at(numbers, 4);
        if version == 0 || header_len > HEADER_BYTES_MAX {
            return Err(damaged("impossible header"));
        }
        let mut json = vec![0; header_len as usize];
        if read_up_to(&mut file, &mut json).map_err(io)? < json.len() {
            return Err(damaged("the header is cut short"));
        }
        let header = serde_json::from_slice(&json).map_err(|_| damaged("the header is no description"))?;
        let at = (start.len() + json.len()) as u64;
        let decompressor = zstd::bulk::Decompressor::new().map_err(io)?;
        Ok(Self { path: path.to_owned(), file, at, header, decompressor, is_over: false })
    }

    /// What the recording says about its machine.
    pub const fn header(&self) -> &RecordingHeader {
        &self.header
    }

    /// The next records; `None` at the end mark. After an error nothing more can be read.
    pub fn next_block(&mut self) -> Result<Option<Block>, RecordingError> {
        if self.is_over {
            return Ok(None);
        }
        let block = self.read_part();
        self.is_over = !matches!(block, Ok(Some(_)));
        block
    }

    fn read_part(&mut self) -> Result<Option<Block>, RecordingError> {
        let mut lengths = [0; 8];
        self.fill(&mut lengths)?;
        let (raw_len, packed_len) = (u32_at(&lengths, 0) as usize, u32_at(&lengths, 4) as usize);
        if raw_len == 0 && packed_len == 0 {
            return Ok(None);
        }
        if raw_len == 0 || raw_len > PART_RAW_BYTES_MAX || packed_len > PART_PACKED_BYTES_MAX {
            return Err(self.damaged("impossible length"));
        }
        let mut packed = vec![0; packed_len];
        self.fill(&mut packed)?;
        match self.decompressor.decompress(&packed, raw_len) {
            Ok(raw) if raw.len() == raw_len => {
                self.at += (lengths.len() + packed_len) as u64;
                Ok(Some(Block(Bytes::from(raw))))
            }
            Ok(_) | Err(_) => Err(self.damaged("a part does not match its checksum")),
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), RecordingError> {
        match read_up_to(&mut self.file, buffer) {
            Ok(found) if found == buffer.len() => Ok(()),
            Ok(_) => Err(RecordingError::Truncated { path: self.path.clone(), at: self.at }),
            Err(cause) => Err(RecordingError::Io { path: self.path.clone(), cause }),
        }
    }

    fn damaged(&self, cause: &'static str) -> RecordingError {
        RecordingError::Damaged { path: self.path.clone(), at: self.at, cause }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Fills `buffer` as far as the file goes.
fn read_up_to(file: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
