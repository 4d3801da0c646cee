//! The spool: packed batches on disk while the store is away, overloaded or slow.
//!
//! Segment files `counts-000001.seg`, `spans-000001.seg`, each a head and records: length, then one zstd frame with
//! its checksum. Counts (rollups) lie apart from spans: they are small, come out first, and are dropped last.
//!
//! What a reader would get wrong: a segment is deleted when all of it is stored, so after a crash some of it is sent
//! again; the rows are the same under the same keys, so that nothing is there twice. Writes are not synced one by
//! one: they outlive the agent, also by `kill -9`, but not the machine's power.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use dprof_store::Packed;

/// First bytes of a segment: name and version.
const HEAD: [u8; 8] = *b"dprofsp1";
/// A segment is this part of the limit, so that dropping the oldest drops little…
const SEGMENTS: u64 = 16;
/// …and at most this large, so that sending it again after a crash costs little.
const SEGMENT_BYTES_MAX: u64 = 8 << 20;
/// A record of more is damage: a batch of 2,000 spans has some hundred kilobytes.
const RECORD_BYTES_MAX: usize = 64 << 20;
/// Counts may take this part of the limit before they are dropped too.
const COUNTS_SHARE: u64 = 4;
/// zstd's fastest ordinary level.
const ZSTD_LEVEL: i32 = 1;

/// What a spool did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolCounters {
    /// Spans put in.
    pub spans_in: u64,
    /// Spans taken out and stored.
    pub spans_out: u64,
    /// Spans dropped because the limit was reached, oldest first.
    pub spans_dropped: u64,
    /// Requests whose counts were dropped.
    pub counts_dropped: u64,
    /// Records that were damaged, or cut off by a crash.
    pub records_damaged: u64,
}

/// Which segments: they differ in what they are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counts,
    Spans,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Counts => "counts",
            Self::Spans => "spans",
        }
    }
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    bytes: u64,
    /// Known for those that this process wrote.
    spans: u64,
    counted: u64,
}

/// The segments of one kind, oldest first; the last may be open for writing.
#[derive(Debug)]
struct Series {
    kind: Kind,
    segments: VecDeque<Segment>,
    next_number: u64,
    writing: Option<File>,
    /// What is read of the first segment, and up to where.
    reading: Option<(Vec<u8>, usize)>,
}

/// Packed batches in a folder of their own.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    bytes_max: u64,
    counts: Series,
    spans: Series,
    counters: SpoolCounters,
}

impl Spool {
    /// Opens the folder, with what an earlier agent left in it.
    pub fn open(dir: &Path, bytes_max: u64) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| {
            format!("create the spool's folder {}: give another with --spool", dir.display())
        })?;
        let mut spool = Self {
            dir: dir.to_owned(),
            bytes_max,
            counts: Series::find(dir, Kind::Counts)?,
            spans: Series::find(dir, Kind::Spans)?,
            counters: SpoolCounters::default(),
        };
        spool.drop_oldest();
        Ok(spool)
    }

    /// What it did so far.
    pub const fn counters(&self) -> SpoolCounters {
        self.counters
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> u64 {
        self.counts.bytes() + self.spans.bytes()
    }

    /// Bytes that may wait.
    pub const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.counts.segments.is_empty() && self.spans.segments.is_empty()
    }

    /// Puts a batch in, its counts and its spans apart. Drops the oldest when there is no room.
    pub fn put(&mut self, packed: Packed) -> Result<()> {
        let segment_max = (self.bytes_max / SEGMENTS).clamp(1, SEGMENT_BYTES_MAX);
        let (counts, spans) = packed.split();
        if let Some(counts) = counts {
            self.counts.put(&self.dir, counts, segment_max)?;
        }
        if let Some(spans) = spans {
            let n_spans = spans.n_spans;
            self.spans.put(&self.dir, spans, segment_max)?;
            self.counters.spans_in += n_spans;
        }
        self.drop_oldest();
        Ok(())
    }

    /// The oldest batch, counts first; it stays until [`Spool::taken`] says that it is stored.
    pub fn oldest(&mut self) -> Option<Packed> {
        for series in [&mut self.counts, &mut self.spans] {
            if let Some(packed) = series.oldest(&mut self.counters.records_damaged) {
                return Some(packed);
            }
        }
        None
    }

    /// The batch that [`Spool::oldest`] gave is stored.
    pub fn taken(&mut self, packed: &Packed) {
        self.counters.spans_out += packed.n_spans;
        for series in [&mut self.counts, &mut self.spans] {
            if series.reading.is_some() {
                if let Some(segment) = series.segments.front_mut() {
                    segment.spans = segment.spans.saturating_sub(packed.n_spans);
                    segment.counted = segment.counted.saturating_sub(packed.n_counted);
                }
                series.advance();
                return;
            }
        }
    }

    fn drop_oldest(&mut self) {
        while self.bytes() > self.bytes_max {
            // Counts only when they alone are too large, or there is nothing else.
            let series =
                if self.counts.bytes() > self.bytes_max / COUNTS_SHARE || self.spans.segments.is_empty() {
                    &mut self.counts
                } else {
                    &mut self.spans
                };
            let Some(dropped) = series.drop_first() else { return };
            self.counters.spans_dropped += dropped.spans;
            self.counters.counts_dropped += dropped.counted;
        }
    }
}

impl Series {
    fn find(dir: &Path, kind: Kind) -> Result<Self> {
        let mut found = Vec::new();
        for entry in
            fs::read_dir(dir).with_context(|| format!("read the spool's folder {}", dir.display()))?
        {
            let entry = entry.context("read the spool's folder")?;
            let name = entry.file_name();
            let Some(number) = name
                .to_str()
                .and_then(|name| name.strip_prefix(kind.name())?.strip_prefix('-')?.strip_suffix(".seg"))
                .and_then(|number| number.parse::<u64>().ok())
            else {
                continue;
            };
            let path = entry.path();
            let bytes = fs::metadata(&path).map_or(0, |meta| meta.len());
            let (spans, counted) = sums(&path);
            found.push((number, Segment { path, bytes, spans, counted }));
        }
        found.sort_by_key(|(number, _)| *number);
        let next_number = found.last().map_or(1, |(number, _)| number + 1);
        let segments = found.into_iter().map(|(_, segment)| segment).collect();
        Ok(Self { kind, segments, next_number, writing: None, reading: None })
    }

    fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    fn put(&mut self, dir: &Path, packed: Packed, segment_max: u64) -> Result<()> {
        let (spans, counted) = (packed.n_spans, packed.n_counted);
        let record = record(packed)?;
        if self.writing.is_none() || self.segments.back().is_some_and(|segment| segment.bytes >= segment_max)
        {
            let path = dir.join(format!("{}-{:06}.seg", self.kind.name(), self.next_number));
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .with_context(|| format!("create {}", path.display()))?;
            file.write_all(&HEAD).with_context(|| format!("write {}", path.display()))?;
            self.next_number += 1;
            self.segments.push_back(Segment { path, bytes: HEAD.len() as u64, spans: 0, counted: 0 });
            self.writing = Some(file);
        }
        let (Some(file), Some(segment)) = (&mut self.writing, self.segments.back_mut()) else {
            return Ok(());
        };
        if let Err(error) = file.write_all(&record) {
            // What is there of it is no record: the next one goes to another segment.
            self.writing = None;
            return Err(error).with_context(|| format!("write {}", segment.path.display()));
        }
        segment.bytes += record.len() as u64;
        segment.spans += spans;
        segment.counted += counted;
        Ok(())
    }

    fn oldest(&mut self, n_damaged: &mut u64) -> Option<Packed> {
        loop {
            if self.reading.is_none() {
                // The segment that is being written is read once it is closed.
                if self.segments.len() == 1 {
                    self.writing = None;
                }
                let segment = self.segments.front()?;
                let bytes = read(&segment.path).unwrap_or_default();
                if bytes.starts_with(&HEAD) {
                    self.reading = Some((bytes, HEAD.len()));
                } else {
                    *n_damaged += 1;
                    self.drop_first();
                    continue;
                }
            }
            let (bytes, at) = self.reading.as_ref()?;
            match next_record(&bytes[*at..]) {
                Ok(Some((packed, _))) => return Some(packed),
                Ok(None) => {
                    self.drop_first();
                }
                Err(()) => {
                    // Nothing after it can be found.
                    *n_damaged += 1;
                    self.drop_first();
                }
            }
        }
    }

    fn advance(&mut self) {
        if let Some((bytes, at)) = &mut self.reading {
            *at += record_len(&bytes[*at..]).unwrap_or(usize::MAX / 2);
            if *at >= bytes.len() {
                self.drop_first();
            }
        }
    }

    fn drop_first(&mut self) -> Option<Segment> {
        self.reading = None;
        let segment = self.segments.pop_front()?;
        if self.segments.is_empty() {
            self.writing = None;
        }
        if let Err(error) = fs::remove_file(&segment.path)
            && error.kind() != ErrorKind::NotFound
        {
            log::warn!("remove {}: {error}", segment.path.display());
        }
        Some(segment)
    }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(SEGMENT_BYTES_MAX + RECORD_BYTES_MAX as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Spans and counted requests of a segment that an earlier agent left.
fn sums(path: &Path) -> (u64, u64) {
    let bytes = read(path).unwrap_or_default();
    let mut at = HEAD.len().min(bytes.len());
    let mut sums = (0, 0);
    while let Ok(Some((packed, len))) = next_record(&bytes[at..]) {
        sums = (sums.0 + packed.n_spans, sums.1 + packed.n_counted);
        at += len;
    }
    sums
}

/// Length, then a zstd frame with a checksum.
fn record(packed: Packed) -> Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL).context("start zstd")?;
    compressor.include_checksum(true).context("start zstd")?;
    let frame = compressor.compress(&packed.encode()).context("compress a batch")?;
    let mut record = (frame.len() as u32).to_le_bytes().to_vec();
    record.extend(frame);
    Ok(record)
}

fn record_len(bytes: &[u8]) -> Option<usize> {
    let head = bytes.get(..4)?;
    let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    (len <= RECORD_BYTES_MAX).then_some(4 + len)
}

/// The record at the front and its length; `None` at the end; an error if it is cut off or damaged.
fn next_record(bytes: &[u8]) -> Result<Option<(Packed, usize)>, ()> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let len = record_len(bytes).ok_or(())?;
    let frame = bytes.get(4..len).ok_or(())?;
    let plain = zstd::bulk::decompress(frame, RECORD_BYTES_MAX).map_err(drop)?;
    let packed = Packed::decode(&plain).map_err(drop)?;
    Ok(Some((packed, len)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use dprof_store::conformance::{Fleet, run};
    use dprof_store::{Retention, StoreUrl, Writer, open_writer};

    use super::*;

    fn packer() -> Box<dyn Writer> {
        let url: StoreUrl = "cassandra://127.0.0.1:1/none".parse().expect("a store");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(open_writer(&url, &run("a", 1), Retention::DEFAULT, &[])).expect("opens")
    }

    fn batches(n: usize) -> Vec<Packed> {
        let mut packer = packer();
        let fleet = Fleet::generate(1, 300);
        let batches = fleet.batches.iter().cycle().take(n).enumerate();
        batches
            .map(|(n, (_, batch))| {
                let batch = dprof_store::Batch { seq: n as u64 + 1, ..batch.clone() };
                packer.pack(&batch).expect("packs")
            })
            .collect()
    }

    fn drain(spool: &mut Spool) -> Vec<Packed> {
        let mut all = Vec::new();
        while let Some(packed) = spool.oldest() {
            spool.taken(&packed);
            all.push(packed);
        }
        all
    }

    #[test]
    fn what_was_put_in_comes_out_counts_first_also_after_a_restart() {
        let dir = tempfile::tempdir().expect("a folder");
        let batches = batches(12);
        let mut spool = Spool::open(dir.path(), 1 << 30).expect("opens");
        for packed in &batches[..7] {
            spool.put(packed.clone()).expect("writes");
        }
        drop(spool);
        let mut spool = Spool::open(dir.path(), 1 << 30).expect("opens");
        for packed in &batches[7..] {
            spool.put(packed.clone()).expect("writes");
        }
        for entry in fs::read_dir(dir.path()).expect("there") {
            let mode = entry.expect("there").metadata().expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        let (counts, spans): (Vec<_>, Vec<_>) = batches.into_iter().map(Packed::split).unzip();
        let expected: Vec<Packed> = counts.into_iter().flatten().chain(spans.into_iter().flatten()).collect();
        assert_eq!(drain(&mut spool), expected);
        assert!(spool.is_empty());
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0, "segments go when they are stored");
        assert_eq!(spool.counters().records_damaged, 0);
    }

    #[test]
    fn what_was_taken_but_not_deleted_before_a_crash_comes_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let batches = batches(3);
        let mut spool = Spool::open(dir.path(), 1 << 30).expect("opens");
        for packed in &batches {
            spool.put(packed.clone()).expect("writes");
        }
        let first = spool.oldest().expect("there");
        assert_eq!(spool.oldest(), Some(first.clone()), "asked again, the same");
        spool.taken(&first);
        assert_ne!(spool.oldest(), Some(first.clone()));
        drop(spool);
        let mut spool = Spool::open(dir.path(), 1 << 30).expect("opens");
        assert_eq!(spool.oldest(), Some(first));
    }

    #[test]
    fn at_the_limit_the_oldest_spans_are_dropped_and_counted() {
        let dir = tempfile::tempdir().expect("a folder");
        let batches = batches(200);
        let n_spans: u64 = batches.iter().map(|packed| packed.n_spans).sum();
        let limit = 300_000;
        let mut spool = Spool::open(dir.path(), limit).expect("opens");
        for packed in batches {
            spool.put(packed).expect("writes");
            assert!(spool.bytes() <= limit, "{}", spool.bytes());
        }
        let counters = spool.counters();
        assert!(counters.spans_dropped > 0);
        let left = drain(&mut spool);
        let n_left: u64 = left.iter().map(|packed| packed.n_spans).sum();
        assert_eq!(n_left + counters.spans_dropped, n_spans);
        let newest = left.iter().map(|packed| packed.seq).max();
        assert_eq!(newest, Some(200), "the newest are kept");
    }

    #[test]
    fn a_cut_off_or_damaged_record_ends_its_segment_and_is_counted() {
        let batches = batches(4);
        let n = batches.len();
        for cut in [1, 20, 400] {
            let dir = tempfile::tempdir().expect("a folder");
            let mut spool = Spool::open(dir.path(), 1 << 30).expect("opens");
            for packed in &batches {
                spool.put(packed.clone()).expect("writes");
            }
            drop(spool);
            let path = dir.path().join("spans-000001.seg");
            let bytes = fs::read(&path).expect("there");
            fs::write(&path, &bytes[..bytes.len() - cut]).expect("writes");
            let mut spool = Spool::open(dir.path(), 1 << 30).expect("opens");
            let left = drain(&mut spool);
            assert_eq!(left.iter().filter(|packed| packed.n_spans > 0).count(), n - 1, "cut by {cut}");
            assert_eq!(spool.counters().records_damaged, 1);
        }
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("spans-000007.seg"), b"something else").expect("writes");
        let mut spool = Spool::open(dir.path(), 1 << 30).expect("opens");
        assert_eq!(spool.oldest(), None);
        assert_eq!(spool.counters().records_damaged, 1);
    }
}
