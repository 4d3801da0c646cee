//! The write-ahead log stays bounded, whatever readers do.

use super::*;
use crate::sqlite::live::WAL_BYTES_MAX;

#[tokio::test]
async fn a_stuck_reader_costs_a_new_chunk_not_an_endless_log() {
    let folder = Folder::new(Retention { chunk_bytes: u64::MAX, ..TINY });
    let info = conformance::run("web", 1);
    let mut source = Source::new(&info);
    let mut writer: Box<dyn Writer> = Box::new(folder.open(&info));
    writer.write(&source.batch(10)).await.expect("writes");
    // A reader of another kind than ours, in the middle of a transaction that it never ends.
    let [chunk] = &folder.files(".db")[..] else { panic!("one chunk") };
    let stuck = rusqlite::Connection::open(chunk).expect("opens");
    stuck.execute_batch("BEGIN").expect("begins");
    let seen: i64 = stuck.query_row("SELECT count(*) FROM spans", [], |row| row.get(0)).expect("reads");
    assert_eq!(seen, 10);

    let mut n_spans = 10;
    let mut worst = 0;
    for n in 0..60 {
        n_spans += 5000;
        writer.write(&source.batch(5000)).await.expect("writes");
        writer.maintain(EPOCH_NS + n * 1_000_000_000).await.expect("maintains");
        let logs: u64 =
            folder.files("-wal").iter().filter_map(|path| Some(std::fs::metadata(path).ok()?.len())).sum();
        worst = worst.max(logs);
    }
    assert_eq!(folder.files(".db").len(), 2, "one new chunk, in which nobody is stuck");
    // The stuck chunk's log, the new chunk's, and the batch that went over the limit.
    assert!(worst < 2 * WAL_BYTES_MAX + (8 << 20), "logs grew to {worst} bytes");
    let seen: i64 = stuck.query_row("SELECT count(*) FROM spans", [], |row| row.get(0)).expect("reads");
    assert_eq!(seen, 10, "the stuck reader sees what it saw");

    // Nobody else minds: everything is read, and the stuck chunk is found by its filter.
    let reader = folder.read();
    assert_eq!(reader.spans(&slowest(10)).await.expect("answers").rows.len(), 10);
    drop(stuck);
    writer.close().await.expect("closes");
    assert_eq!(folder.files("-wal").len(), 0, "with the reader gone the log goes");
    let answer = folder.read().spans(&slowest(n_spans)).await.expect("answers");
    assert_eq!((answer.rows.len(), answer.warnings), (n_spans, Vec::new()));
}

#[tokio::test]
async fn ordinary_readers_leave_the_log_small() {
    let folder = Folder::new(Retention { chunk_bytes: u64::MAX, ..TINY });
    let info = conformance::run("web", 1);
    let mut source = Source::new(&info);
    let mut writer: Box<dyn Writer> = Box::new(folder.open(&info));
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    writer.write(&source.batch(10)).await.expect("writes");
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (dir, done) = (folder.path().to_owned(), std::sync::Arc::clone(&done));
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
                let mut asked = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let reader = reader::SqliteReader::open(&dir).expect("opens");
                    let answer = runtime.block_on(reader.spans(&slowest(20))).expect("answers");
                    assert_eq!(answer.warnings, Vec::<String>::new());
                    asked += 1;
                }
                asked
            })
        })
        .collect();
    let mut worst = 0;
    for _ in 0..40 {
        writer.write(&source.batch(5000)).await.expect("writes");
        worst = worst.max(
            folder.files("-wal").iter().map(|path| std::fs::metadata(path).map_or(0, |m| m.len())).sum(),
        );
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().expect("no panic") > 0);
    }
    assert!(worst < WAL_BYTES_MAX, "the log grew to {worst} bytes");
    assert_eq!(folder.files(".db").len(), 1);
    writer.close().await.expect("closes");
}
