//! Recordings as files: what was written comes back, what is damaged is said, whatever the damage.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use bytemuck::bytes_of;
use dprof_common::event::{EventHeader, EventKind, OpenEvent, SendEvent, flag};
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::*;
use crate::clock::ClockReading;
use crate::source::record::clock_record;
use crate::source::replay::Replay;
use crate::source::tee::Tee;
use crate::source::{Block, BlockBuilder, Source};

fn header() -> RecordingHeader {
    RecordingHeader {
        host: "web1".into(),
        labels: [("dc".to_owned(), "eu".to_owned())].into(),
        kernel: "6.18".into(),
        dprof: "0.1.0".into(),
        backend: "tp_btf".into(),
        redacted: false,
        started_unix_ns: 7,
    }
}

/// Records that do not compress well, of many lengths.
fn records(n: usize) -> Vec<Vec<u8>> {
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    (0..n)
        .map(|_| {
            let len = rng.next_u32() as usize % 2000;
            (0..len).map(|_| rng.next_u32() as u8).collect()
        })
        .collect()
}

fn write(path: &Path, records: &[Vec<u8>]) {
    let mut writer = RecordingWriter::create(path, &header()).expect("create");
    for record in records {
        writer.push(&[record]);
        if writer.should_flush() {
            writer.flush().expect("flush");
        }
    }
    writer.finish().expect("finish");
}

/// Everything that can be read, and the error that ended it.
fn read(path: &Path) -> (Vec<Vec<u8>>, Option<RecordingError>) {
    let mut records = Vec::new();
    let mut replay = match RecordingReader::open(path) {
        Ok(reader) => reader,
        Err(error) => return (records, Some(error)),
    };
    loop {
        match replay.next_block() {
            Ok(Some(block)) => records.extend(block.records().map(|record| record.expect("whole").to_vec())),
            Ok(None) => return (records, None),
            Err(error) => {
                assert!(matches!(replay.next_block(), Ok(None)), "after an error nothing comes");
                return (records, Some(error));
            }
        }
    }
}

#[test]
fn what_was_written_comes_back() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("r.dprof");
    let written = records(2000);
    write(&path, &written);
    assert_eq!(RecordingReader::open(&path).expect("open").header(), &header());
    let (found, error) = read(&path);
    assert!(error.is_none() && found == written, "{error:?}");
    write(&path, &[]);
    assert!(matches!(read(&path), (records, None) if records.is_empty()), "overwritten by an empty one");
    assert_eq!(std::fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_that_is_no_recording_is_neither_read_nor_overwritten() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("notes.txt");
    for content in ["precious", "dpro", "dprofrex and more than sixteen bytes"] {
        std::fs::write(&path, content).expect("write");
        let error = RecordingWriter::create(&path, &header()).expect_err("refused").to_string();
        assert!(error.contains("notes.txt: exists and is no recording"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), content);
        assert!(matches!(RecordingReader::open(&path), Err(RecordingError::NotARecording(_))));
    }
    std::os::unix::fs::symlink(&path, dir.path().join("link")).expect("link");
    assert!(RecordingWriter::create(&dir.path().join("link"), &header()).is_err(), "a link is not followed");
    assert!(matches!(RecordingReader::open(&dir.path().join("none")), Err(RecordingError::Io { .. })));
}

#[test]
fn a_newer_version_is_refused_with_both_numbers() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("r.dprof");
    write(&path, &records(3));
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[8] = 9;
    std::fs::write(&path, &bytes).expect("write");
    let error = RecordingReader::open(&path).expect_err("newer").to_string();
    assert!(error.contains("version 9, this dprof knows up to 1: update dprof"), "{error}");
}

#[test]
fn everything_before_the_end_of_a_cut_file_is_used() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("r.dprof");
    let written = records(1500);
    write(&path, &written);
    let bytes = std::fs::read(&path).expect("read");
    let n_of = |len: usize| {
        std::fs::write(&path, &bytes[..len]).expect("write");
        let (found, error) = read(&path);
        assert!(error.is_some(), "{len} of {}", bytes.len());
        assert_eq!(found, written[..found.len()], "{len}");
        found.len()
    };
    for len in 0..200 {
        n_of(len);
    }
    let mut counts: Vec<usize> = (200..bytes.len()).step_by(10_007).map(n_of).collect();
    counts.push(n_of(bytes.len() - 1));
    assert!(counts.is_sorted(), "{counts:?}");
    assert_eq!(counts.last(), Some(&written.len()), "only the end mark is missing");
}

#[test]
fn a_flipped_bit_is_found_and_everything_before_it_is_used() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("r.dprof");
    let written = records(1200);
    write(&path, &written);
    let bytes = std::fs::read(&path).expect("read");
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    for _ in 0..60 {
        let at = rng.next_u32() as usize % (bytes.len() - 8);
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (rng.next_u32() % 8);
        std::fs::write(&path, &damaged).expect("write");
        let (found, error) = read(&path);
        // A flip inside the header's text may leave it readable.
        assert!(error.is_some() || at < 300, "{at}");
        assert_eq!(found, written[..found.len()], "{at}");
    }
}

fn block(records: &[&[u8]]) -> Block {
    let mut builder = BlockBuilder::default();
    for record in records {
        builder.push(&[record]);
    }
    builder.take()
}

#[derive(Debug)]
struct Blocks(Vec<Block>);

impl Source for Blocks {
    fn backend(&self) -> &'static str {
        "test"
    }

    fn next_block(&mut self, _wait: Duration) -> anyhow::Result<Option<Block>> {
        Ok((!self.0.is_empty()).then(|| self.0.remove(0)))
    }

    fn set_payload_limit(&mut self, _sock: u64, _bytes: u32) {}

    fn counters(&mut self) -> crate::source::SourceCounters {
        crate::source::SourceCounters::default()
    }
}

fn drain(source: &mut dyn Source) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let Some(block) = source.next_block(Duration::ZERO).expect("no damage") {
        records.extend(block.records().map(|record| record.expect("whole").to_vec()));
    }
    records
}

#[test]
fn a_tee_records_what_it_passes_on() {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("r.dprof");
    let written = records(500);
    let blocks = written
        .chunks(7)
        .map(|records| block(&records.iter().map(Vec::as_slice).collect::<Vec<_>>()))
        .collect();
    let recorder = std::sync::Arc::new(Recorder::start(&path, &header(), true).expect("start"));
    let mut tee = Tee { source: Box::new(Blocks(blocks)), recorder: std::sync::Arc::clone(&recorder) };
    assert_eq!(drain(&mut tee), written);
    drop(tee);
    let counters = std::sync::Arc::into_inner(recorder).expect("the tee is gone").finish();
    assert_eq!((counters.records, counters.lost_queue_full, counters.lost_write_failed), (500, 0, 0));
    assert_eq!(counters.file_bytes + 8, std::fs::metadata(&path).expect("file").len());
    let mut replay = Replay::open(&path).expect("open");
    assert_eq!(drain(&mut replay), written);
    assert_eq!((replay.backend(), replay.counters().records), ("replay", 500));
}

#[test]
fn a_redacted_recording_holds_no_values() {
    let payload = b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$6\r\nsecret\r\n";
    let len = payload.len();
    let open = OpenEvent {
        header: EventHeader { kind: EventKind::Open as u8, flags: flag::ACTIVE, ..EventHeader::default() },
        sock: 5,
        established_ns: 1,
        ..OpenEvent::default()
    };
    let send = |end_pos: u64, payload: &[u8]| {
        let header = EventHeader {
            kind: EventKind::Send as u8,
            payload_len: payload.len() as u16,
            size: payload.len() as u32,
            ..EventHeader::default()
        };
        let event = SendEvent { header, sock: 5, end_pos, ..SendEvent::default() };
        [bytes_of(&event), payload].concat()
    };
    // The second call of the value lies over two records; padding after the payload is dropped.
    let first = send(1 + 30, &payload[..30]);
    let mut second = send(1 + len as u64, &payload[30..]);
    second.extend_from_slice(b"secret");
    let clock = clock_record(ClockReading { monotonic_ns: 1, unix_ns: 2 });

    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("r.dprof");
    let redacted = RecordingHeader { redacted: true, ..header() };
    let recorder = Recorder::start(&path, &redacted, true).expect("start");
    recorder.offer(&block(&[
        bytes_of(&open),
        &first,
        &second,
        bytes_of(&clock),
        b"\x07.......................secret",
        b"\x63unknown secret",
    ]));
    recorder.finish();
    let found = drain(&mut Replay::open(&path).expect("open"));
    assert_eq!(found[0], bytes_of(&open));
    let masked = [&found[1][48..], &found[2][48..]].concat();
    assert_eq!(String::from_utf8_lossy(&masked), "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$6\r\n??????\r\n");
    assert_eq!((&found[1][..48], &found[2][..48]), (&first[..48], &second[..48]));
    assert_eq!(found[3], bytes_of(&clock));
    assert!(!found.concat().windows(6).any(|window| window == b"secret"));
}

#[test]
fn a_device_is_no_place_for_a_recording() {
    let path = Path::new("/dev/full");
    let error = RecordingWriter::create(path, &header()).expect_err("no file");
    assert!(error.to_string().contains("/dev/full"), "{error}");
}
