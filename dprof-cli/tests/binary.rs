//! The program itself on a store of its own: what goes to which stream, exit codes, widths, closed pipes.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use dprof_store::conformance::{EPOCH_NS, Fleet, Maker, run, slowest, span};
use dprof_store::{Batch, Retention, StoreUrl, open_writer};
use serde_json::Value;

/// Enough traces that a list of all spans does not fit into a pipe.
const TRACES: u64 = 600;

/// A program call with nothing inherited that would change its output.
fn dprof(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dprof-cli"));
    command.env_clear().env("DPROF_STORE", format!("sqlite:{}", dir.display())).args(args);
    command
}

fn output(dir: &Path, args: &[&str]) -> Output {
    dprof(dir, args).output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is UTF-8")
}

fn json(dir: &Path, args: &[&str]) -> Vec<Value> {
    let output = output(dir, &[args, &["--format", "json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    let rows: Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    rows.as_array().expect("an array").clone()
}

fn write(dir: &Path, fleet: &Fleet) {
    let url = StoreUrl::Sqlite(dir.to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut writers = Vec::new();
        for (idx, run) in fleet.runs.iter().enumerate() {
            let writer = open_writer(&url, run, Retention::DEFAULT, &[idx as u32 + 1]).await;
            writers.push(writer.expect("a fresh store"));
        }
        for (run, batch) in &fleet.batches {
            writers[*run].write(batch).await.expect("there is room");
        }
        for writer in writers {
            writer.close().await.expect("there is room");
        }
    });
}

/// A store of generated traces; the fleet knows what they are.
fn fleet() -> (tempfile::TempDir, Fleet) {
    let dir = tempfile::tempdir().expect("a folder");
    let fleet = Fleet::generate(7, TRACES);
    write(dir.path(), &fleet);
    (dir, fleet)
}

#[track_caller]
fn check_failure(dir: &Path, args: &[&str], exit_code: i32, expected: &str) {
    let output = output(dir, args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(exit_code), "{said}");
    assert_eq!(text(&output.stdout), "");
    assert!(said.starts_with("dprof-cli: ") && said.trim_end().lines().count() == 1, "one line: {said}");
    assert!(said.contains(expected), "{said}");
}

#[test]
fn failures_are_one_line_with_cause_and_remedy_and_their_own_exit_code() {
    let (dir, _) = fleet();
    let dir = dir.path();
    check_failure(&dir.join("none"), &["slowest-spans"], 1, "start dprof-agent with the same --store first");
    check_failure(dir, &["--store", "cassandra://a/k", "stats"], 1, "cannot connect to Cassandra at a");
    check_failure(dir, &["slowest-spans", "--limit", "0"], 2, "'--limit <N>'");
    check_failure(dir, &["slowest-spans", "--limt", "5"], 2, "'--limit'");
    check_failure(dir, &["slowest-spans", "--since", "1m", "--until", "2m"], 2, "the window is empty");
    check_failure(dir, &["trace", "not-an-id"], 2, "hexadecimal digits");
    check_failure(dir, &["tail"], 2, "--open");
    check_failure(dir, &["trace", "00000000000000000000000000000001"], 3, "no trace or span");
    check_failure(dir, &["slowest-spans", "--since", "all", "--service", "nobody"], 3, "no service 'nobody'");
    check_failure(dir, &["stats", "--since", "all", "--operation", "GTE"], 3, "no operation 'GTE'");
    let socket = dir.join("none.sock");
    check_failure(
        dir,
        &["tail", "--open", "--socket", &socket.display().to_string()],
        1,
        "start dprof-agent",
    );
}

#[test]
fn a_store_of_a_newer_dprof_is_refused_in_one_line() {
    let (dir, _) = fleet();
    let mut folders = std::fs::read_dir(dir.path()).expect("a store").flatten();
    let run = folders.find_map(|folder| Some(folder.path().join("run.json")).filter(|file| file.exists()));
    let run = run.expect("a run");
    let described = std::fs::read_to_string(&run).expect("the run describes itself");
    let mut document: Value = serde_json::from_str(&described).expect("JSON");
    document["schema"] = 99.into();
    std::fs::write(&run, document.to_string()).expect("ours");
    for args in [&["slowest-spans", "--since", "all"][..], &["why"], &["trace", "ab"], &["services"]] {
        check_failure(dir.path(), args, 1, "has schema 99, this dprof knows up to 2: update dprof");
    }
}

#[test]
fn an_empty_window_is_no_error_and_says_what_there_is() {
    let (dir, _) = fleet();
    for command in ["slowest-spans", "stats", "services", "operations"] {
        let table = output(dir.path(), &[command]);
        let said = text(&table.stderr);
        assert!(table.status.success() && table.stdout.is_empty(), "{command}: {said}");
        assert!(said.contains("the newest span is of 2023-11-14") && said.contains("try --since"), "{said}");
        assert_eq!(json(dir.path(), &[command]), Vec::<Value>::new());
    }
}

#[test]
fn slowest_spans_are_the_slowest_of_both_runs_merged() {
    let (dir, fleet) = fleet();
    let rows = json(dir.path(), &["slowest-spans", "--since", "all", "--limit", "50"]);
    let expected = fleet.expected(&slowest(50));
    let given: Vec<u64> = rows.iter().map(|row| row["duration_ns"].as_u64().expect("a number")).collect();
    assert_eq!(given, expected.iter().map(dprof_common::model::Span::duration_ns).collect::<Vec<_>>());
    let row = &rows[0];
    for key in ["trace_id", "span_id", "service", "operation", "kind", "start_time"] {
        assert!(row[key].is_string(), "{key}: {row}");
    }
    assert!(row.get("parent_span_id").is_some() && row["split"]["remainder_ns"].is_i64());
}

#[test]
fn every_trace_opens_by_the_id_that_the_list_shows() {
    let (dir, fleet) = fleet();
    let rows = json(dir.path(), &["slowest-spans", "--since", "all", "--limit", "5"]);
    for row in rows {
        let id = row["trace_id"].as_str().expect("text");
        let spans = json(dir.path(), &["trace", id]);
        let found = spans.iter().find(|span| span["span_id"] == row["span_id"]).expect("the trace holds it");
        assert_eq!(found["duration_ns"], row["duration_ns"]);
        for span in &spans {
            let span_id = span["span_id"].as_str().expect("text").parse().expect("an id");
            assert_eq!(fleet.trace_of[&span_id].to_string(), id);
        }
        let messages = json(dir.path(), &["trace", id, "--messages"]);
        assert!(messages.len() >= spans.len());
    }
}

#[test]
fn output_keeps_to_the_width_of_the_screen() {
    let (dir, fleet) = fleet();
    let trace = fleet.expected(&slowest(1))[0].trace_id.to_string();
    for columns in [80, 200] {
        for args in [
            vec!["slowest-spans", "--since", "all"],
            vec!["stats", "--since", "all"],
            vec!["services", "--since", "all"],
            vec!["operations", "--since", "all"],
            vec!["slowest-traces", "--since", "all"],
            vec!["fastest-traces", "--since", "all"],
            vec!["trace", &trace],
            vec!["trace", &trace, "--messages"],
            vec!["trace", &trace, "--attribute", "submitter"],
            vec!["critical-path", &trace],
            vec!["critical-path", "--since", "all"],
            vec!["stats", "--since", "all", "--by", "service,operation,host,status"],
            vec!["stats", "--since", "all", "--traces"],
            vec!["stats", "--since", "all", "--traces", "--attribute", "submitter"],
            vec!["dependencies", "--since", "all"],
            vec!["compare", "--since", "all"],
            vec!["heatmap", "--since", "all"],
            vec!["replication", "--since", "all"],
            vec!["check", "--since", "all", "p99 < 100h"],
            vec!["why", "--since", "all"],
        ] {
            let output =
                dprof(dir.path(), &args).env("COLUMNS", columns.to_string()).output().expect("it starts");
            let shown = text(&output.stdout);
            assert!(output.status.success() && !shown.is_empty(), "{args:?}: {}", text(&output.stderr));
            for line in shown.lines() {
                assert!(line.chars().count() <= columns, "{args:?} in {columns} columns: {line}");
                assert_eq!(line, line.trim_end(), "{args:?}");
            }
        }
    }
}

#[test]
fn colours_only_where_they_are_wanted() {
    let (dir, fleet) = fleet();
    let trace = fleet.expected(&slowest(1))[0].trace_id.to_string();
    let escapes = |args: &[&str]| text(&output(dir.path(), args).stdout).contains('\u{1b}');
    assert!(!escapes(&["trace", &trace]), "a pipe is no terminal");
    assert!(escapes(&["trace", &trace, "--color", "always"]));
    assert!(!escapes(&["trace", &trace, "--color", "never"]));
}

#[test]
fn a_reader_that_has_enough_ends_the_program_quietly() {
    let (dir, fleet) = fleet();
    let mut child =
        dprof(dir.path(), &["slowest-spans", "--since", "all", "--limit", "100000", "--format", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
    let mut first = String::new();
    {
        let mut lines = BufReader::with_capacity(64, child.stdout.take().expect("piped"));
        lines.read_line(&mut first).expect("a line");
    }
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert!(child.wait().expect("it ends").success(), "{said}");
    assert_eq!(first, "[\n");
    assert_eq!(said, format!("the {} slowest spans of all time\n", fleet.merged().len()));
}

#[test]
fn a_full_disk_is_an_error() {
    let (dir, _) = fleet();
    let full = std::fs::File::options().write(true).open("/dev/full").expect("Linux has one");
    let output = dprof(dir.path(), &["services", "--since", "all"]).stdout(full).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot write the output"), "{}", text(&output.stderr));
}

#[test]
fn an_export_holds_every_span_once() {
    let (dir, fleet) = fleet();
    let merged = fleet.merged();
    let file = dir.path().join("spans.json");
    let path = file.display().to_string();
    let otlp = output(dir.path(), &["export", "--format", "otlp-json", "--since", "all", "--out", &path]);
    assert!(otlp.status.success() && otlp.stdout.is_empty(), "{}", text(&otlp.stderr));
    let document: Value =
        serde_json::from_reader(std::fs::File::open(&file).expect("written")).expect("JSON");
    let mut ids = BTreeSet::new();
    for resource in document["resourceSpans"].as_array().expect("an array") {
        for span in resource["scopeSpans"][0]["spans"].as_array().expect("an array") {
            assert!(ids.insert(span["spanId"].as_str().expect("text").to_owned()), "{span} came twice");
        }
    }
    let halves: usize = merged
        .values()
        .map(|span| usize::from(span.client.is_some()) + usize::from(span.server.is_some()))
        .sum();
    assert_eq!(ids.len(), halves);
    let csv = output(dir.path(), &["export", "--format", "csv", "--since", "all", "--out", "-"]);
    assert_eq!(text(&csv.stdout).lines().count(), merged.len() + 1);
}

#[test]
fn stats_count_what_the_rollups_count() {
    let (dir, fleet) = fleet();
    let rollups = fleet.batches.iter().flat_map(|(_, batch)| &batch.rollups);
    let (count, sum_ns) =
        rollups.fold((0, 0), |(count, sum), rollup| (count + rollup.count, sum + rollup.sum_ns));
    let rows = json(dir.path(), &["stats", "--since", "all"]);
    let total = |key: &str| rows.iter().map(|row| row[key].as_u64().expect("a number")).sum::<u64>();
    assert_eq!((total("count"), total("total_ns")), (count, sum_ns));
    for row in &rows {
        let values: Vec<u64> = ["min_ns", "p50_ns", "p90_ns", "p99_ns", "max_ns"]
            .iter()
            .map(|key| row[key].as_u64().expect("a number"))
            .collect();
        assert!(values.is_sorted(), "{row}");
    }
    let services: BTreeSet<String> = json(dir.path(), &["services", "--since", "all"])
        .iter()
        .map(|row| row["service"].as_str().expect("text").to_owned())
        .collect();
    assert!(rows.iter().all(|row| services.contains(row["service"].as_str().expect("text"))));
}

#[test]
fn hostile_names_do_not_reach_the_terminal() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut fleet = Fleet::generate(1, 1);
    fleet.runs.truncate(1);
    let info = run("web-1", 1);
    let half = Maker::new(&info).half("web", "GET \u{1b}[2J\r/", EPOCH_NS, 1_000);
    let id = dprof_common::model::SpanId(0xabc);
    let spans = vec![span(id.as_root_trace(), id, None, Some(half))];
    fleet.batches = vec![(0, Batch { seq: 1, spans, ..Batch::default() })];
    write(dir.path(), &fleet);
    for args in [
        vec!["slowest-spans", "--since", "all"],
        vec!["trace", "0000000000000abc"],
        vec!["trace", "0000000000000abc", "--messages"],
    ] {
        let shown = text(&output(dir.path(), &args).stdout);
        assert!(shown.contains("GET") && !shown.contains(['\u{1b}', '\r']), "{shown:?}");
    }
}
