//! Old chunks go, by age and by bytes; readers in the middle of it do not mind.

use super::*;

const SECOND_NS: u64 = 1_000_000_000;

/// Writes `n` chunks of 100 spans, which last 0.1 s each, and closes.
async fn write_chunks(folder: &Folder, run: &RunInfo, n: usize) {
    let mut source = Source::new(run);
    let mut writer: Box<dyn Writer> = Box::new(folder.open(run));
    for _ in 0..n {
        writer.write(&source.batch(100)).await.expect("writes");
    }
    writer.close().await.expect("closes");
}

fn one_batch_chunks() -> Folder {
    Folder::new(Retention { chunk_bytes: 1, ..TINY })
}

#[tokio::test]
async fn chunks_past_their_age_go_also_those_of_other_runs() {
    let mut folder = one_batch_chunks();
    write_chunks(&folder, &conformance::run("old", 1), 20).await;
    folder.retention.max_age_s = 60;
    let info = conformance::run("new", 2);
    let mut writer: Box<dyn Writer> = Box::new(folder.open(&info));
    // Chunk n holds starts up to 0.1 n s after the epoch: at 61 s, those up to 1 s are too old.
    writer.maintain(EPOCH_NS + 61 * SECOND_NS + 1).await.expect("maintains");
    assert_eq!(folder.files(".db").len(), 10);
    assert_eq!(folder.read().spans(&slowest(10_000)).await.expect("answers").rows.len(), 1000);
    writer.maintain(EPOCH_NS + 100 * SECOND_NS).await.expect("maintains");
    assert_eq!(
        folder.files("").len(),
        3,
        "both runs' run.json, and the live run's lock: {:?}",
        folder.files("")
    );
    let answer = folder.read().spans(&slowest(10)).await.expect("answers");
    assert_eq!((answer.rows, answer.warnings), (Vec::new(), Vec::new()));
    writer.close().await.expect("closes");
}

#[tokio::test]
async fn runs_without_chunks_go_when_they_are_old_but_not_living_ones() {
    let mut folder = one_batch_chunks();
    folder.retention.max_age_s = 60;
    write_chunks(&folder, &conformance::run("old", 1), 2).await;
    let living: Box<dyn Writer> = Box::new(folder.open(&conformance::run("living", 2)));
    let mut writer: Box<dyn Writer> = Box::new(folder.open(&conformance::run("new", 3)));
    for n in 1..=3 {
        writer.maintain(EPOCH_NS + n * 1000 * SECOND_NS).await.expect("maintains");
    }
    let hosts: Vec<String> =
        folder.read().runs().await.expect("answers").into_iter().map(|run| run.host).collect();
    assert_eq!(hosts, ["new", "living"]);
    living.close().await.expect("closes");
    writer.close().await.expect("closes");
}

#[tokio::test]
async fn the_oldest_chunks_go_when_all_runs_together_are_too_large() {
    let mut folder = one_batch_chunks();
    write_chunks(&folder, &conformance::run("one", 1), 10).await;
    write_chunks(&folder, &conformance::run("two", 2), 10).await;
    let bytes = |folder: &Folder| -> u64 {
        folder.files("").iter().map(|path| std::fs::metadata(path).map_or(0, |meta| meta.len())).sum()
    };
    let before = bytes(&folder);
    folder.retention.max_bytes = before / 2;
    let mut writer: Box<dyn Writer> = Box::new(folder.open(&conformance::run("three", 3)));
    writer.maintain(EPOCH_NS).await.expect("maintains");
    assert!(bytes(&folder) <= before / 2 && bytes(&folder) > before / 3, "{} of {before}", bytes(&folder));
    for host in ["one", "two"] {
        let left: Vec<_> =
            folder.files(".db").into_iter().filter(|path| path.to_string_lossy().contains(host)).collect();
        assert!((3..=5).contains(&left.len()), "the oldest of both runs went: {left:?}");
        assert!(left.iter().any(|path| path.ends_with("000010.db")), "{left:?}");
    }
    writer.close().await.expect("closes");
}

#[tokio::test]
async fn the_live_chunk_of_another_agent_stays() {
    let mut folder = Folder::new(TINY);
    let other_run = conformance::run("other", 1);
    let mut other: Box<dyn Writer> = Box::new(folder.open(&other_run));
    other.write(&Source::new(&other_run).batch(10)).await.expect("writes");
    folder.retention = Retention { max_age_s: 1, max_bytes: 1, ..TINY };
    let mut writer: Box<dyn Writer> = Box::new(folder.open(&conformance::run("own", 2)));
    writer.maintain(EPOCH_NS + 1000 * SECOND_NS).await.expect("maintains");
    assert_eq!(folder.files(".db").len(), 1);
    assert_eq!(folder.read().spans(&slowest(100)).await.expect("answers").rows.len(), 10);
    other.close().await.expect("closes");
    writer.maintain(EPOCH_NS + 2000 * SECOND_NS).await.expect("maintains");
    assert_eq!(folder.files(".db").len(), 0, "sealed, it goes");
    writer.close().await.expect("closes");
}

#[tokio::test]
async fn a_reader_in_the_middle_gets_a_warning_or_nothing_but_no_error() {
    let folder = one_batch_chunks();
    write_chunks(&folder, &conformance::run("web", 1), 10).await;
    let files = folder.files(".db");
    // Between listing and opening.
    let mut session = session::Session::begin(folder.path()).expect("lists");
    run::delete_chunk(&files[2]).expect("deletes");
    let spans = select::select(&mut session, &slowest(10_000)).expect("answers");
    assert_eq!(spans.len(), 900);
    let warnings = session.finish();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("000003.db expired"), "{warnings:?}");
    // While it is open.
    let mut session = session::Session::begin(folder.path()).expect("lists");
    let n = session
        .with(0, |chunk| {
            run::delete_chunk(&files[0])?;
            let count = "SELECT count(*) FROM spans";
            Ok(chunk
                .connection
                .query_row(count, [], |row| row.get::<_, i64>(0))
                .expect("the file is still there"))
        })
        .expect("no error");
    assert_eq!(n, Some(100));
    // The whole run.
    let mut session = session::Session::begin(folder.path()).expect("lists");
    run::delete_run(files[0].parent().expect("in a run")).expect("deletes");
    assert_eq!(select::select(&mut session, &slowest(10_000)).expect("answers"), []);
    assert_eq!(session.finish().len(), 8);
}

#[tokio::test]
async fn chunks_end_by_time_and_by_bytes() {
    let folder = Folder::new(Retention { chunk_s: 10, chunk_bytes: 500_000, ..TINY });
    let info = conformance::run("web", 1);
    let mut source = Source::new(&info);
    let mut writer: Box<dyn Writer> = Box::new(folder.open(&info));
    let start_ns = info.started_unix_ns;
    writer.maintain(start_ns).await.expect("maintains");
    for (at_s, n_spans, expected) in
        [(1, 10, 1), (9, 10, 1), (12, 10, 1), (12, 0, 1), (13, 10, 2), (14, 5000, 2), (15, 10, 3)]
    {
        if n_spans > 0 {
            writer.write(&source.batch(n_spans)).await.expect("writes");
        }
        writer.maintain(start_ns + at_s * SECOND_NS).await.expect("maintains");
        assert_eq!(folder.files(".db").len(), expected, "at {at_s} s");
    }
    // Sealed behind the writer's back.
    poll("two chunks sealed", || {
        futures_now(writer.maintain(start_ns + 16 * SECOND_NS)).expect("maintains");
        folder.files(".ids").len() == 2
    });
    writer.close().await.expect("closes");
    assert_eq!(folder.files(".ids").len(), 3);
}

/// The result of a future that never waits, as this store's are.
fn futures_now<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("it waited"),
    }
}
