//! kill -9 at any moment: the store opens, and at most the open batch is lost.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::*;

/// The child: writes batches for ever, says each number once it is stored.
#[tokio::test]
#[expect(clippy::print_stdout, reason = "the parent reads it")]
async fn child_writes_until_killed() {
    let Some(dir) = child_dir() else { return };
    let info = conformance::run("victim", 9);
    let access = access::Access::of_process();
    let retention = Retention { chunk_bytes: 3_000_000, ..TINY };
    let mut writer: Box<dyn Writer> =
        Box::new(writer::SqliteWriter::open(&dir, &info, retention, &[77], access).expect("opens"));
    let mut source = Source::new(&info);
    loop {
        let batch = source.batch(200);
        writer.write(&batch).await.expect("writes");
        println!("stored {}", batch.seq);
        writer.maintain(EPOCH_NS).await.expect("maintains");
    }
}

#[tokio::test]
async fn after_kill_9_everything_that_was_stored_is_there() {
    for batches_before in [1, 40, 171] {
        let folder = Folder::new(TINY);
        let mut victim = child("sqlite::tests::crash::child_writes_until_killed", folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(victim.stdout.take().expect("piped")).lines();
        let mut stored = 0;
        while stored < batches_before {
            let line = lines.next().expect("the child goes on").expect("text");
            if let Some(seq) = line.strip_prefix("stored ") {
                stored = seq.parse().expect("a number");
            }
        }
        let overlap = open_writer(folder.path(), &conformance::run("b", 2), TINY, &[77]);
        match overlap.map(|_| ()).unwrap_err() {
            StoreError::Busy { netns: 77, pid, .. } => assert_eq!(pid, victim.id()),
            error => panic!("{error}"),
        }
        victim.kill().expect("kills");
        victim.wait().expect("ends");
        for line in lines.map_while(Result::ok) {
            if let Some(seq) = line.strip_prefix("stored ") {
                stored = seq.parse().expect("a number");
            }
        }

        let check = async |folder: &Folder| {
            let answer = folder.read().spans(&slowest(10_000_000)).await.expect("answers");
            assert_eq!(answer.warnings, Vec::<String>::new());
            let n = answer.rows.len() as u64;
            assert!(n == stored * 200 || n == (stored + 1) * 200, "{n} spans after {stored} batches");
        };
        check(&folder).await;
        assert!(!folder.files("-wal").is_empty(), "it was killed with a log");
        // The lock is free, and the next agent tidies up behind the dead one, a chunk at a time.
        let info = conformance::run("next", 2);
        for _ in 0..folder.files(".db").len() {
            let next = open_writer(folder.path(), &info, TINY, &[77]).expect("the namespace is free");
            next.close().await.expect("closes");
        }
        assert_eq!(folder.files("-wal").len(), 0);
        assert_eq!(folder.files(".ids").len(), folder.files(".db").len());
        check(&folder).await;
    }
}
