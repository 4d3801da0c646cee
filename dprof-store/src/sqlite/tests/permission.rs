//! Root writes, a user of the right group reads, others are told what to do. Needs root; says so if it is not.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use super::*;

const GROUP: u32 = 54_321;
const OTHER_GROUP: u32 = 54_322;
const USER: u32 = 54_320;

/// The child: reads as whoever it is, prints what it saw.
#[tokio::test]
#[expect(clippy::print_stdout, reason = "the parent reads it")]
async fn child_reads_as_another_user() {
    let Some(dir) = child_dir() else { return };
    match open_reader(&dir) {
        Ok(reader) => {
            let answer = reader.spans(&slowest(1_000_000)).await.expect("answers");
            println!("saw {} warnings {:?}", answer.rows.len(), answer.warnings);
        }
        Err(error) => println!("error {error}"),
    }
}

/// What the child prints.
fn as_user(folder: &Folder, gid: u32) -> String {
    // The build folder may be closed to others; the store's folder is not.
    let exe = folder.path().join("reader");
    if !exe.exists() {
        std::fs::copy(std::env::current_exe().expect("has a path"), &exe).expect("copies");
        std::fs::set_permissions(&exe, PermissionsExt::from_mode(0o755)).expect("is ours");
    }
    let output = std::process::Command::new(&exe)
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .arg("sqlite::tests::permission::child_reads_as_another_user")
        .env("DPROF_TEST_DIR", folder.path().join("store"))
        .current_dir("/")
        .uid(USER)
        .gid(gid)
        .output()
        .expect("starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| {
        let at = line.find("saw ").or_else(|| line.find("error "))?;
        Some(line[at..].to_owned())
    });
    line.unwrap_or_else(|| panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

fn open(folder: &Folder, run: &RunInfo) -> Box<dyn Writer> {
    let access = access::Access::group(GROUP);
    let dir = folder.path().join("store");
    Box::new(writer::SqliteWriter::open(&dir, run, folder.retention, &[], access).expect("opens"))
}

#[tokio::test]
async fn members_of_the_group_read_while_root_writes_and_others_are_told_why_not() {
    if access::effective_uid() != 0 {
        not_run("changing users needs root");
        return;
    }
    let folder = Folder::new(Retention { chunk_bytes: 300_000, ..TINY });
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("is ours");
    let info = conformance::run("web", 1);
    let mut source = Source::new(&info);
    let mut writer = open(&folder, &info);
    let mut n_spans = 0;
    // Each batch is seen at once, in the live chunk and across new ones.
    for n_batch in [1, 10, 300, 1500, 1500, 1500, 20, 3] {
        writer.write(&source.batch(n_batch)).await.expect("writes");
        writer.maintain(EPOCH_NS).await.expect("maintains");
        n_spans += n_batch;
        assert_eq!(as_user(&folder, GROUP), format!("saw {n_spans} warnings []"));
    }
    let refused = as_user(&folder, OTHER_GROUP);
    assert!(refused.starts_with("error no permission for ") && refused.contains("group dprof"), "{refused}");
    for (path, mode) in [("store", 0o2750), ("store/locks", 0o2750)] {
        let meta = std::fs::metadata(folder.path().join(path)).expect("is there");
        assert_eq!(meta.permissions().mode() & 0o7777, mode, "{path}");
    }
    let store = folder.path().join("store");
    for run in run::list_runs(&store).expect("lists").0 {
        for entry in std::fs::read_dir(&run.path).expect("lists") {
            let entry = entry.expect("lists");
            let meta = entry.metadata().expect("is there");
            let shown = entry.path();
            assert_eq!(meta.permissions().mode() & 0o7777, 0o640, "{}", shown.display());
            assert_eq!(std::os::unix::fs::MetadataExt::gid(&meta), GROUP, "{}", shown.display());
        }
    }
    // As if killed: log and index stay.
    std::mem::forget(writer);
    assert_eq!(as_user(&folder, GROUP), format!("saw {n_spans} warnings []"));
    // Copied by hand, without the index: what the log holds is missing, and that is said.
    for run in run::list_runs(&store).expect("lists").0 {
        let _ = std::fs::remove_file(run::side_path(&newest_chunk(&run.path), "-shm"));
    }
    let told = as_user(&folder, GROUP);
    assert!(told.starts_with("saw ") && (told.contains("sudo") || told.contains("warnings []")), "{told}");
}

fn newest_chunk(run: &Path) -> PathBuf {
    run::list_chunks(run).expect("lists").pop().expect("a chunk").path
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named_with_a_remedy() {
    let info = conformance::run("web", 1);
    let error = open_writer(Path::new("/proc/none/here"), &info, TINY, &[]).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("/proc/none"), "{error}");
    let file = tempfile::NamedTempFile::new().expect("a file");
    let error = open_writer(file.path(), &info, TINY, &[]).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("it is a file"), "{error}");
}

#[tokio::test]
async fn the_folder_of_the_latest_caller_follows_the_group() {
    if access::effective_uid() != 0 {
        not_run("changing groups needs root");
        return;
    }
    let folder = Folder::new(TINY);
    let dir = folder.path().join("store");
    for gid in [GROUP, OTHER_GROUP] {
        access::Access::group(gid).create_store(&dir).expect("made");
        let meta = std::fs::metadata(&dir).expect("is there");
        assert_eq!(std::os::unix::fs::MetadataExt::gid(&meta), gid);
    }
    // Somebody else's folder stays as it is.
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).expect("is ours");
    access::Access::group(GROUP).create_store(&dir).expect("is there");
    let meta = std::fs::metadata(&dir).expect("is there");
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&meta), OTHER_GROUP);
}
