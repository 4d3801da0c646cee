//! No room: nothing half-written, and on it goes when there is room again.

use super::*;

async fn check_full_then_resume(
    folder: &Folder,
    mut writer: Box<dyn Writer>,
    make_room: impl FnOnce(&mut Box<dyn Writer>),
) {
    let info = conformance::run("web", 1);
    let mut source = Source::new(&info);
    let mut stored = 0;
    let refused = loop {
        let mut batch = source.batch(500);
        let fleet = conformance::Fleet::generate(batch.seq, 20);
        batch.rollups.clone_from(&fleet.batches[0].1.rollups);
        match writer.write(&batch).await {
            Ok(()) => stored += batch.spans.len(),
            Err(StoreError::Full(_)) => break batch,
            Err(error) => panic!("{error}"),
        }
        assert!(stored < 1_000_000, "never full");
    };
    assert!(stored > 0);
    // Still full, still no harm; housekeeping goes on.
    for _ in 0..3 {
        assert!(matches!(writer.write(&refused).await, Err(StoreError::Full(_))));
        let _ = writer.maintain(EPOCH_NS).await;
    }
    let count = async || folder.read().spans(&slowest(1_000_000)).await.expect("answers").rows.len();
    assert_eq!(count().await, stored, "the refused batch left nothing");
    make_room(&mut writer);
    writer.write(&refused).await.expect("room again");
    writer.write(&source.batch(500)).await.expect("writes");
    assert_eq!(count().await, stored + 1000);
    writer.close().await.expect("closes");
    let answer = folder.read().spans(&slowest(1_000_000)).await.expect("answers");
    assert_eq!((answer.rows.len(), answer.warnings), (stored + 1000, Vec::new()));
}

#[tokio::test]
async fn a_chunk_that_may_not_grow_refuses_whole_batches() {
    let folder = Folder::new(Retention { chunk_bytes: u64::MAX, ..TINY });
    let info = conformance::run("web", 1);
    let mut writer = folder.open(&info);
    // The first batch makes the chunk; a number far from those of the test.
    futures_lite(writer.write(&Batch { seq: 1 << 40, ..Batch::default() })).expect("writes");
    let set_limit = |pages: i64, writer: &writer::SqliteWriter| {
        let chunk = writer.live_connection().expect("live");
        chunk.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(())).expect("sets");
    };
    set_limit(700, &writer);
    let shared = std::sync::Arc::new(std::sync::Mutex::new(writer));
    let boxed: Box<dyn Writer> = Box::new(Shared(std::sync::Arc::clone(&shared)));
    check_full_then_resume(&folder, boxed, |_| set_limit(1 << 30, &shared.lock().expect("free"))).await;
}

/// Lets a test reach the writer that the checked code owns.
struct Shared(std::sync::Arc<std::sync::Mutex<writer::SqliteWriter>>);

#[async_trait]
impl Writer for Shared {
    async fn write(&mut self, batch: &Batch) -> Result<(), StoreError> {
        futures_lite(self.0.lock().expect("free").write(batch))
    }
    async fn maintain(&mut self, now_unix_ns: u64) -> Result<(), StoreError> {
        futures_lite(self.0.lock().expect("free").maintain(now_unix_ns))
    }
    async fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}

fn futures_lite<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("it waited"),
    }
}

/// A small file system in memory; needs root.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn mount(bytes: usize) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = std::ffi::CString::new(dir.path().to_str().expect("plain")).expect("plain");
        let options = std::ffi::CString::new(format!("size={bytes}")).expect("plain");
        // SAFETY: all pointers are to strings that live until the call returns.
        let failed = unsafe {
            libc::mount(c"dprof".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast())
        };
        (failed == 0).then_some(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let path = std::ffi::CString::new(self.0.path().to_str().expect("plain")).expect("plain");
        // SAFETY: the pointer is to a string that lives until the call returns.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

#[tokio::test]
async fn a_full_disk_refuses_whole_batches() {
    let Some(tmpfs) = Tmpfs::mount(6 << 20) else {
        not_run("mounting a small tmpfs needs root");
        return;
    };
    let ballast = tmpfs.0.path().join("ballast");
    std::fs::write(&ballast, vec![1; 3 << 20]).expect("fits");
    let folder = Folder { dir: tempfile::tempdir_in(tmpfs.0.path()).expect("fits"), retention: TINY };
    let writer: Box<dyn Writer> = Box::new(folder.open(&conformance::run("web", 1)));
    check_full_then_resume(&folder, writer, |_| std::fs::remove_file(&ballast).expect("is there")).await;
    drop(folder);
}
