//! Damage and strangers: other versions, flipped bytes, cut files. A warning or a clear error, never a panic.

use super::*;
use crate::RollupQuery;
use crate::schema::SCHEMA_VERSION;

/// A store of some chunks.
async fn store() -> Folder {
    let folder = Folder::new(TINY);
    conformance::Fleet::generate(3, 300).write_to(&folder).await;
    assert!(folder.files(".db").len() > 3);
    folder
}

const ALL_ROLLUPS: RollupQuery =
    RollupQuery { since_unix_ns: 0, until_unix_ns: u64::MAX, service: None, operation: None };

#[tokio::test]
async fn a_chunk_that_is_no_database_is_left_out_with_a_warning() {
    let folder = store().await;
    let whole = folder.read().spans(&slowest(1_000_000)).await.expect("answers").rows.len();
    let damaged = folder.files(".db").remove(1);
    for contents in [vec![0; 8192], b"not a database, but long enough to look at".repeat(500), Vec::new()] {
        std::fs::write(&damaged, contents).expect("writes");
        let reader = folder.read();
        let answer = reader.spans(&slowest(1_000_000)).await.expect("answers");
        assert!(answer.rows.len() < whole && answer.rows.len() > whole / 2);
        assert_eq!(answer.warnings.len(), 1, "{:?}", answer.warnings);
        assert!(answer.warnings[0].contains("000002.db"), "{:?}", answer.warnings);
        let rollups = reader.rollups(&ALL_ROLLUPS).await.expect("answers");
        assert_eq!((rollups.rows.is_empty(), rollups.warnings.len()), (false, 1));
    }
}

#[tokio::test]
async fn flipped_bytes_and_cut_files_never_panic() {
    let folder = store().await;
    let victim = folder.files(".db").remove(0);
    let good = std::fs::read(&victim).expect("reads");
    let mut random = Random::new(11);
    let mut n_warned = 0;
    for round in 0..60 {
        let mut bad = good.clone();
        if round % 4 == 0 {
            bad.truncate(random.below(good.len() as u64) as usize);
        }
        for _ in 0..random.below(200) {
            let at = random.below(bad.len().max(1) as u64) as usize;
            if let Some(byte) = bad.get_mut(at) {
                *byte = random.next() as u8;
            }
        }
        std::fs::write(&victim, &bad).expect("writes");
        let reader = folder.read();
        for result in [
            reader.spans(&slowest(1_000_000)).await.map(|answer| answer.warnings),
            reader.trace(TraceId(u128::from(random.next()))).await.map(|answer| answer.warnings),
            reader.rollups(&ALL_ROLLUPS).await.map(|answer| answer.warnings),
            reader.traces_with_prefix("a", 10).await.map(|_| Vec::new()),
        ] {
            match result {
                Ok(warnings) => n_warned += usize::from(!warnings.is_empty()),
                // A flipped version number.
                Err(StoreError::Newer { .. }) => {}
                Err(error) => panic!("round {round}: {error}"),
            }
        }
        // An agent of the same run passes over it, too.
        let info = run::list_runs(folder.path()).expect("lists").0.pop().expect("a run").info;
        match open_writer(folder.path(), &info, TINY, &[]) {
            Ok(writer) => writer.close().await.expect("closes"),
            Err(StoreError::Newer { .. }) => {}
            Err(error) => panic!("round {round}: {error}"),
        }
    }
    assert!(n_warned > 20, "damage is told: {n_warned}");
}

#[tokio::test]
async fn damaged_rows_are_counted_and_left_out() {
    let folder = store().await;
    let whole = folder.read().spans(&slowest(1_000_000)).await.expect("answers").rows.len();
    let chunk = folder.files(".db").pop().expect("a chunk");
    let connection = rusqlite::Connection::open(&chunk).expect("opens");
    // Three RPCs that only this chunk knows of: both halves seen by one agent.
    let changed = connection
        .execute("UPDATE spans SET body = x'0712' WHERE id IN (SELECT min(id) FROM spans GROUP BY span_id HAVING count(*) = 1 AND min(bits & 3) = 3 LIMIT 3)", [])
        .expect("updates");
    drop(connection);
    assert_eq!(changed, 3);
    let answer = folder.read().spans(&slowest(1_000_000)).await.expect("answers");
    assert_eq!(answer.rows.len(), whole - 3);
    assert_eq!(answer.warnings.len(), 1);
    assert!(answer.warnings[0].contains("3 damaged rows left out"), "{:?}", answer.warnings);
}

#[tokio::test]
async fn a_newer_store_is_refused_by_name() {
    let folder = store().await;
    let chunk = folder.files(".db").remove(0);
    rusqlite::Connection::open(&chunk)
        .and_then(|c| c.pragma_update(None, "user_version", 7))
        .expect("updates");
    let error = folder.read().spans(&slowest(1_000_000)).await.unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 7, known: SCHEMA_VERSION, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("000001.db has schema 7") && text.contains("update dprof"), "{text}");

    let run_file = chunk.with_file_name("run.json");
    let newer = SCHEMA_VERSION + 1;
    let text = std::fs::read_to_string(&run_file)
        .expect("reads")
        .replace(&format!("\"schema\": {SCHEMA_VERSION}"), &format!("\"schema\": {newer}"));
    std::fs::write(&run_file, text).expect("writes");
    let opened = open_reader(folder.path()).map(|_| ());
    assert!(matches!(opened, Err(StoreError::Newer { found, .. }) if found == newer));
    let info = conformance::run("new", 5);
    assert!(matches!(
        open_writer(folder.path(), &info, TINY, &[]).map(|_| ()),
        Err(StoreError::Newer { .. })
    ));
}

/// As version 1 was: no count of keys.
#[tokio::test]
async fn an_older_store_is_read_without_what_it_lacks() {
    let folder = store().await;
    let new = folder.read().rollups(&ALL_ROLLUPS).await.expect("answers").rows;
    assert!(!new.is_empty());
    for chunk in folder.files(".db") {
        let connection = rusqlite::Connection::open(&chunk).expect("opens");
        connection.execute_batch("ALTER TABLE rollups DROP COLUMN keys").expect("alters");
        connection.pragma_update(None, "user_version", 1).expect("updates");
        let run_file = chunk.with_file_name("run.json");
        let text = std::fs::read_to_string(&run_file).expect("reads");
        let text = text.replace(&format!("\"schema\": {SCHEMA_VERSION}"), "\"schema\": 1");
        std::fs::write(&run_file, text).expect("writes");
    }
    let answer = folder.read().rollups(&ALL_ROLLUPS).await.expect("answers");
    assert_eq!(answer.warnings, Vec::<String>::new());
    let without: Vec<_> = new.into_iter().map(|rollup| crate::Rollup { keys: None, ..rollup }).collect();
    assert_eq!(answer.rows, without);
    // An agent of the same run seals what it left, and goes on.
    let info = run::list_runs(folder.path()).expect("lists").0.pop().expect("a run").info;
    let writer = open_writer(folder.path(), &info, TINY, &[]).expect("opens");
    writer.close().await.expect("closes");
    assert_eq!(folder.read().rollups(&ALL_ROLLUPS).await.expect("answers").rows, without);
}

#[tokio::test]
async fn nothing_there_is_said_so() {
    let dir = tempfile::tempdir().expect("a folder");
    for path in [dir.path().to_owned(), dir.path().join("none")] {
        let error = open_reader(&path).map(|_| ()).unwrap_err();
        assert!(matches!(error, StoreError::NotFound(_)), "{error}");
        assert!(error.to_string().contains("start dprof-agent"), "{error}");
    }
    let url: crate::StoreUrl = "cassandra://a,b/dprof".parse().expect("a store");
    let error = crate::open_reader(&url).await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("cannot connect to Cassandra at a, b"), "{error}");
}
