//! Records into the bytes of a recording.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::{MAGIC, PART_RAW_BYTES, RecordingError, RecordingHeader, VERSION};
use crate::source::{Block, LENGTH_BYTES};

/// zstd's default: event streams shrink to about a quarter at some hundred MB/s.
const COMPRESSION_LEVEL: i32 = 3;
/// Only its owner reads a recording: it holds payload.
const MODE: u32 = 0o600;

/// A recording being written. After a failed write the file is cut back to its last whole part and the next
/// flush tries again, so a full disk costs what came meanwhile and nothing else.
pub struct RecordingWriter {
    path: PathBuf,
    file: File,
    /// End of the last whole part.
    good_bytes: u64,
    part: Vec<u8>,
    compressor: zstd::bulk::Compressor<'static>,
}

impl std::fmt::Debug for RecordingWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordingWriter").field("path", &self.path).finish_non_exhaustive()
    }
}

impl RecordingWriter {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the file, mode 0600. A file that is there already is only overwritten if it is a recording.
    pub fn create(path: &Path, header: &RecordingHeader) -> Result<Self, RecordingError> {
        let io = |cause| RecordingError::Io { path: path.to_owned(), cause };
        let mut file = open_for_writing(path).map_err(io)?;
        let header = serde_json::to_vec(header).expect("texts and numbers always have a JSON form");
        let mut start = Vec::from(MAGIC);
        start.extend(VERSION.to_le_bytes());
        start.extend((header.len() as u32).to_le_bytes());
        start.extend(header);
        let mut prepare = || -> io::Result<_> {
            let mut compressor = zstd::bulk::Compressor::new(COMPRESSION_LEVEL)?;
            compressor.include_checksum(true)?;
            file.write_all(&start)?;
            Ok(compressor)
        };
        let compressor = prepare().map_err(io)?;
        Ok(Self { path: path.to_owned(), file, good_bytes: start.len() as u64, part: Vec::new(), compressor })
    }

    /// Adds a record made of `parts`. [`RecordingWriter::should_flush`] says when to flush.
    pub fn push(&mut self, parts: &[&[u8]]) {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        self.part.extend((length as u32).to_le_bytes());
        for part in parts {
            self.part.extend_from_slice(part);
        }
    }

    /// Whether enough has gathered for a part.
    pub const fn should_flush(&self) -> bool {
        self.part.len() >= PART_RAW_BYTES
    }

    /// Whether nothing waits for a flush.
    pub const fn is_empty(&self) -> bool {
        self.part.is_empty()
    }

    /// Bytes in the file.
    pub const fn file_bytes(&self) -> u64 {
        self.good_bytes
    }

    /// Writes what has gathered. On failure it is lost, and the error says how many records that were.
    pub fn flush(&mut self) -> Result<(), (RecordingError, u64)> {
        if self.part.is_empty() {
            return Ok(());
        }
        let result = self.write_part();
        let lost = if result.is_err() { count_records(&self.part) } else { 0 };
        self.part.clear();
        result.map_err(|cause| (RecordingError::Io { path: self.path.clone(), cause }, lost))
    }

    fn write_part(&mut self) -> io::Result<()> {
        let packed = self.compressor.compress(&self.part)?;
        let mut frame = Vec::with_capacity(2 * LENGTH_BYTES + packed.len());
        frame.extend((self.part.len() as u32).to_le_bytes());
        frame.extend((packed.len() as u32).to_le_bytes());
        frame.extend(packed);
        self.append(&frame)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.good_bytes))?;
        if let Err(error) = self.file.write_all(bytes) {
            // Half a part would hide everything after it.
            self.file.set_len(self.good_bytes)?;
            return Err(error);
        }
        self.good_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Writes the rest and the end mark, and waits until the disk has it.
    pub fn finish(mut self) -> Result<(), (RecordingError, u64)> {
        self.flush()?;
        let end = self.append(&[0; 2 * LENGTH_BYTES]).and_then(|()| self.file.sync_all());
        end.map_err(|cause| (RecordingError::Io { path: self.path.clone(), cause }, 0))
    }
}

fn open_for_writing(path: &Path) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let metadata = file.metadata()?;
    let mut magic = [0; MAGIC.len()];
    if !metadata.is_file()
        || (metadata.len() > 0 && (file.read_exact(&mut magic).is_err() || magic != *MAGIC))
    {
        let message = "exists and is no recording, it is not overwritten: give another name";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    file.set_permissions(std::fs::Permissions::from_mode(MODE))?;
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

fn count_records(part: &[u8]) -> u64 {
    Block(Bytes::copy_from_slice(part)).records().count() as u64
}
