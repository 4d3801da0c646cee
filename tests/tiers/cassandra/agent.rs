//! The real agent and the real command line on a ring.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dprof_tests::agent::binary;
use dprof_tests::cli;
use dprof_tests::clock;
use dprof_tests::poll;
use dprof_tests::program::Program;

use super::Keyspace;

/// A store that nobody serves.
const NOWHERE: &str = "cassandra://127.0.0.1:1/dprof";
const WITHIN: Duration = Duration::from_mins(1);

fn recording() -> String {
    format!("{}/data/demo.dprof", env!("CARGO_MANIFEST_DIR"))
}

fn replay(folder: &Path, store: &str) -> Program {
    let spool = folder.join("spool").display().to_string();
    let mut command = Command::new(binary("dprof-agent"));
    command.args(["--store", store, "--spool", &spool, "--replay", &recording()]);
    Program::start("dprof-agent", folder, &mut command).expect("starts")
}

/// Spans in the store by run, before merging.
fn spans_by_run(keyspace: &Keyspace) -> std::collections::BTreeMap<String, u64> {
    let mut sums = std::collections::BTreeMap::new();
    for row in keyspace.cql(&format!("SELECT run_id, span_count FROM {}.traces", keyspace.name)) {
        let (run, n) = row.split_once('\t').expect("two columns");
        *sums.entry(run.to_owned()).or_default() += n.parse::<u64>().expect("a number");
    }
    sums
}

#[test]
fn a_replay_is_answered_as_from_the_embedded_store() {
    let Some(keyspace) = Keyspace::new() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let url = keyspace.url.to_string();
    let ended = replay(folder.path(), &url)
        .wait(WITHIN)
        .and_then(dprof_tests::program::Ended::success)
        .expect("ends well");
    assert!(ended.stderr.contains("lost: none"), "{}", ended.stderr);
    let sqlite = format!("sqlite:{}", folder.path().join("store").display());
    replay(folder.path(), &sqlite)
        .wait(WITHIN)
        .and_then(dprof_tests::program::Ended::success)
        .expect("ends well");
    for question in [
        &["slowest-spans", "--since", "all", "--limit", "8"][..],
        &["slowest-spans", "--since", "all", "--limit", "100"],
        &["slowest-spans", "--since", "all", "--service", "redis-server"],
        &["slowest-spans", "--since", "all", "--kind", "client"],
        &["slowest-spans", "--since", "all", "--status", "error"],
        &["stats", "--since", "all"],
        &["services", "--since", "all"],
        &["operations", "--since", "all"],
    ] {
        let (ours, theirs) = (cli::json(&url, question), cli::json(&sqlite, question));
        assert_eq!(ours.expect("answers"), theirs.expect("answers"), "{question:?}");
    }
    let slowest = cli::json(&url, &["slowest-spans", "--since", "all", "--limit", "1"]).expect("answers");
    let trace = slowest[0]["trace_id"].as_str().expect("an id").to_owned();
    for id in [trace.as_str(), &trace.trim_start_matches("0000000000000000")[..9]] {
        let question = ["trace", id];
        assert_eq!(
            cli::json(&url, &question).expect("answers"),
            cli::json(&sqlite, &question).expect("answers")
        );
    }
    let export = ["export", "--since", "all", "--format", "csv"];
    let (ours, theirs) = (cli::run(&url, &export).expect("runs"), cli::run(&sqlite, &export).expect("runs"));
    assert_eq!(String::from_utf8_lossy(&ours.stdout), String::from_utf8_lossy(&theirs.stdout));
}

#[test]
fn an_agent_killed_over_its_spool_loses_and_doubles_nothing() {
    let Some(keyspace) = Keyspace::new() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let url = keyspace.url.to_string();
    // Nobody is there at the start: it starts, captures, spools and says so.
    let mut first = replay(folder.path(), NOWHERE);
    first
        .wait_until(WITHIN, "says that the store is away", |program| {
            program.stderr().contains("cannot connect to Cassandra at 127.0.0.1:1").then_some(())
        })
        .expect("says so");
    let spool = folder.path().join("spool");
    let bytes = || -> u64 {
        let entries = fs::read_dir(&spool).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
    };
    let mut last = (0, clock::now());
    poll::until(WITHIN, "all of the recording is spooled", || {
        let now = bytes();
        if now != last.0 {
            last = (now, clock::now());
        }
        (now > 0 && last.1.elapsed() > Duration::from_secs(1)).then_some(())
    })
    .expect("spools");
    first.signal(libc::SIGKILL);
    drop(first.wait(WITHIN));
    // The next one is killed while it drains.
    let mut second = replay(folder.path(), &url);
    let _ = second
        .wait_until(WITHIN, "stores something", |_| (!spans_by_run(&keyspace).is_empty()).then_some(()));
    second.signal(libc::SIGKILL);
    drop(second.wait(WITHIN));
    let third = replay(folder.path(), &url)
        .wait(WITHIN)
        .and_then(dprof_tests::program::Ended::success)
        .expect("ends well");
    assert!(third.stderr.contains("lost: none"), "{}", third.stderr);
    assert_eq!(bytes(), 0, "the spool is empty");
    let sums = spans_by_run(&keyspace);
    let most = sums.values().max().copied().expect("the third stored all of the recording");
    assert!(sums.values().filter(|n| **n == most).count() >= 2, "the first run's spans, once each: {sums:?}");
    assert!(sums.values().all(|n| *n <= most), "nothing twice: {sums:?}");
}

#[test]
fn a_contact_point_that_hangs_or_is_nobody_fails_within_five_seconds_with_the_cause() {
    let Some(keyspace) = Keyspace::new() else { return };
    // A socket that listens and never answers: what a stopped node looks like.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let deaf = format!("cassandra://{}/dprof", deaf.local_addr().expect("bound"));
    for (store, cause) in [(NOWHERE, "cannot connect to Cassandra at 127.0.0.1:1"), (&deaf, "127.0.0.1")] {
        let started = clock::now();
        let output = cli::run(store, &["services"]).expect("runs");
        assert!(started.elapsed() < Duration::from_secs(6), "{store}: {:?}", started.elapsed());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(cause), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let missing = format!("cassandra://{}/dprof_nothing", keyspace.hosts.join(","));
    let output = cli::run(&missing, &["services"]).expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("dprof-cli store init"), "{said}");
}
