//! The control side: the conformance suite, a hundred writers in as many threads and in processes of their own, one
//! that dies in between, and who may read and write.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;

use dprof_common::settings::Scope;

use super::*;
use crate::control::{Document, conformance as control_conformance};
use crate::sqlite::control::SqliteControl;

fn open(folder: &Folder) -> SqliteControl {
    SqliteControl::open(folder.path(), true, access::Access::of_process()).expect("opens")
}

#[tokio::test]
async fn versions_follow_each_other_in_each_scope() {
    control_conformance::check_versions(&open(&Folder::new(TINY))).await;
}

#[tokio::test]
async fn an_agents_row_is_its_last_one() {
    control_conformance::check_agents(&open(&Folder::new(TINY))).await;
}

#[tokio::test]
async fn minutes_of_a_host_are_found_by_time() {
    control_conformance::check_host_minutes(&open(&Folder::new(TINY))).await;
}

fn block_on<F: Future>(work: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

#[test]
fn a_hundred_writers_lose_no_update_and_the_history_is_complete() {
    let folder = Folder::new(TINY);
    let names: BTreeSet<String> = (0..100).map(|number| format!("writer-{number:03}")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            let folder = &folder;
            scope.spawn(move || block_on(control_conformance::write_one(&open(folder), name)));
        }
    });
    block_on(control_conformance::check_written_by(&open(&folder), &names));
}

/// The child: one writer.
#[tokio::test]
async fn child_writes_a_version() {
    let (Some(dir), Ok(name)) = (child_dir(), std::env::var("DPROF_TEST_WRITER")) else { return };
    let control = SqliteControl::open(&dir, true, access::Access::of_process()).expect("opens");
    control_conformance::write_one(&control, &name).await;
}

#[test]
fn writers_in_processes_of_their_own_lose_no_update_either() {
    let folder = Folder::new(TINY);
    let names: BTreeSet<String> = (0..12).map(|number| format!("process-{number:03}")).collect();
    let children = names.iter().map(|name| {
        std::process::Command::new(std::env::current_exe().expect("has a path"))
            .args(["--exact", "sqlite::tests::control::child_writes_a_version"])
            .env("DPROF_TEST_DIR", folder.path())
            .env("DPROF_TEST_WRITER", name)
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("starts")
    });
    for mut child in children.collect::<Vec<_>>() {
        assert!(child.wait().expect("ends").success());
    }
    block_on(control_conformance::check_written_by(&open(&folder), &names));
}

#[tokio::test]
async fn a_writer_that_dies_in_the_middle_leaves_a_file_that_can_be_written() {
    let folder = Folder::new(TINY);
    let control = open(&folder);
    let first = Document { version: 1, ..Document::none(Scope::Cluster) };
    assert!(control.append(&first).await.expect("writes"));
    // Half a transaction, as a process leaves it that is killed: its lock goes with it, its journal stays.
    let path = folder.path().join("control.db");
    let journal = folder.path().join("control.db-journal");
    let whole = std::fs::read(&path).expect("reads");
    let other = rusqlite::Connection::open(&path).expect("opens");
    other.execute_batch("PRAGMA cache_size = 1; PRAGMA cache_spill = 1; BEGIN IMMEDIATE").expect("begins");
    for version in 2..400 {
        let row = (version, "x".repeat(4000));
        other
            .execute("INSERT INTO config VALUES ('cluster', ?1, ?2, x'00', '', '', 0)", row)
            .expect("writes into the file before the end");
    }
    let (half, log) = (std::fs::read(&path).expect("reads"), std::fs::read(&journal).expect("there is one"));
    drop(other);
    assert!(half.len() > whole.len() && std::fs::read(&path).expect("reads").len() == whole.len());
    std::fs::write(&path, half).expect("writes");
    std::fs::write(&journal, log).expect("writes");
    let second = Document { version: 2, comment: "after".to_owned(), ..first.clone() };
    assert!(control.append(&second).await.expect("writes"));
    assert_eq!(control.history(&Scope::Cluster, 10).await.expect("reads"), [second, first]);
}

#[tokio::test]
async fn a_folder_without_configuration_says_nothing_and_none_is_an_error() {
    let folder = Folder::new(TINY);
    let access = access::Access::of_process();
    let control = SqliteControl::open(folder.path(), false, access).expect("there is a folder");
    assert_eq!(control.scopes().await.expect("reads"), []);
    assert!(!folder.path().join("control.db").exists());
    let error = SqliteControl::open(&folder.path().join("none"), true, access).expect_err("no folder");
    assert!(matches!(error, StoreError::NotFound(_)), "{error}");
    let mode = std::fs::metadata({
        open(&folder);
        folder.path().join("control.db")
    });
    assert_eq!(mode.expect("made").permissions().mode() & 0o777, 0o640);
}
