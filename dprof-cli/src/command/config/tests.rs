//! Command lines on a store in a folder: what they print, and what is in force then.

use std::path::Path;

use dprof_common::settings::Values;
use dprof_store::StoreUrl;
use dprof_store::control::{AgentState, Document, open_control};

use crate::context::Failure;
use crate::testing::{T0, run_at};

/// Exit code, stdout and stderr of a command line on a store in `dir`.
fn run(dir: &Path, args: &str) -> (u8, String, String) {
    let (result, out, words) = run_at(StoreUrl::Sqlite(dir.to_owned()), 120, args);
    match result {
        Ok(()) => (0, out, words),
        Err(failure) => (failure.exit_code(), out, failure.to_string()),
    }
}

#[track_caller]
fn check(dir: &Path, args: &str, code: u8, out: &str, words: &str) {
    let found = run(dir, args);
    assert_eq!(found, (code, out.to_owned(), words.to_owned()), "{args}");
}

fn report(dir: &Path, agent: &AgentState) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let control = open_control(&StoreUrl::Sqlite(dir.to_owned()), true).await.expect("opens");
        control.report(agent).await.expect("writes");
    });
}

/// Writes a document as no command line would.
fn write_past(dir: &Path, document: &Document) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let control = open_control(&StoreUrl::Sqlite(dir.to_owned()), true).await.expect("opens");
        assert!(control.append(document).await.expect("writes"));
    });
}

#[test]
fn what_is_set_is_in_the_history_and_can_be_gone_back_to() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    check(dir, "config history", 0, "", "nothing was ever set for cluster\n");
    check(
        dir,
        "config set trace.keep_ratio=1/16 trace.keep_slow=false --author ann --comment quiet",
        0,
        "\
KEY               BEFORE   AFTER
trace.keep_ratio  not set  1/16
trace.keep_slow   not set  false
",
        "written as cluster 1, in force within 10 s: see dprof-cli agents\n",
    );
    check(
        dir,
        "config set trace.keep_ratio=1/16 --author bob",
        0,
        "",
        "cluster 1 says so already: nothing was written\n",
    );
    let (code, ..) = run(dir, "config unset trace.keep_slow --author bob");
    assert_eq!(code, 0);
    let (code, ..) = run(dir, "config rollback 1 --author eve --comment sorry");
    assert_eq!(code, 0);
    check(
        dir,
        "config history",
        0,
        "\
VERSION  TIME (UTC)           AUTHOR  CHANGED                                           COMMENT
      3  2026-11-03 12:10:00  eve     trace.keep_slow = false                           sorry
      2  2026-11-03 12:10:00  bob     trace.keep_slow unset
      1  2026-11-03 12:10:00  ann     trace.keep_ratio = 1/16, trace.keep_slow = false  quiet
",
        "",
    );
    check(dir, "config diff 1 3", 0, "", "cluster 1 to 3: no difference\n");
    check(
        dir,
        "config diff",
        0,
        "KEY              BEFORE   AFTER\ntrace.keep_slow  not set  false\n",
        "cluster 2 to 3\n",
    );
    check(
        dir,
        "config diff 1 9",
        3,
        "",
        "cluster has no version 9: see dprof-cli config history --scope cluster",
    );
}

#[test]
fn a_wrong_value_or_an_unknown_key_writes_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    check(
        dir,
        "config set trace.keep_slow=true trace.keep_ratio=3",
        2,
        "",
        "trace.keep_ratio: '3' is no part of the whole: give 1/16, 5% or 0.05, from 0 to 1",
    );
    check(
        dir,
        "config set trace.keep_ration=1",
        2,
        "",
        "there is no key 'trace.keep_ration': did you mean trace.keep_ratio? (see dprof-cli config keys)",
    );
    check(
        dir,
        "config set capture.window=1s --scope service:cart",
        2,
        "",
        "capture.window cannot be set for a service: use --scope cluster or host:NAME",
    );
    check(dir, "config history", 0, "", "nothing was ever set for cluster\n");
}

#[test]
fn the_value_in_force_says_where_it_comes_from() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let mut agent = AgentState { host: "web-2".to_owned(), seen_unix_ns: T0, ..AgentState::default() };
    agent.config.started_with = Values::from([
        ("capture.window".to_owned(), "2s".to_owned()),
        ("trace.keep_ratio".to_owned(), "1/2".to_owned()),
    ]);
    report(dir, &agent);
    for set in [
        "trace.keep_ratio=1/16",
        "trace.keep_budget_per_s=5 --scope service:cart",
        "trace.keep_ratio=1 trace.keep_budget_per_s=1 --scope host:web-1",
    ] {
        assert_eq!(run(dir, &format!("config set {set}")).0, 0);
    }
    check(
        dir,
        "config get trace.keep_ratio trace.keep_budget_per_s capture.window",
        0,
        "\
KEY                      WHERE         VALUE  FROM
trace.keep_ratio         everywhere    1/16   cluster 1
trace.keep_ratio         host:web-1    1      host:web-1 1
trace.keep_budget_per_s  everywhere    10     default
trace.keep_budget_per_s  service:cart  5      service:cart 1
trace.keep_budget_per_s  host:web-1    1      host:web-1 1
capture.window           everywhere    500ms  default
capture.window           host:web-2    2s     file or options of the agent
",
        "",
    );
    check(
        dir,
        "config get trace.keep_budget_per_s --host web-1 --service cart",
        0,
        "\
KEY                      WHERE                    VALUE  FROM
trace.keep_budget_per_s  service:cart host:web-1  1      host:web-1 1
",
        "",
    );
    let (_, out, _) = run(dir, "config get trace.keep_ratio --host web-2 --format json");
    let answer: serde_json::Value = serde_json::from_str(&out).expect("json");
    assert_eq!((&answer["schema_version"], &answer["kind"]), (&1.into(), &"config".into()));
    assert_eq!(
        answer["values"][0],
        serde_json::json!({
            "key": "trace.keep_ratio", "where": "host:web-2", "value": "1/16", "source": "cluster", "version": 1
        })
    );
}

#[test]
fn a_host_that_nobody_is_is_warned_of() {
    let dir = tempfile::tempdir().expect("a folder");
    let (code, _, words) = run(dir.path(), "config set trace.keep_ratio=1 --scope host:web-7");
    assert_eq!(code, 0);
    assert!(words.starts_with("warning: no agent of a host 'web-7' is known"), "{words}");
}

#[test]
fn what_was_written_past_the_command_line_is_shown_as_what_it_is_and_can_be_replaced() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let scope = dprof_common::settings::Scope::Cluster;
    write_past(dir, &Document { version: 1, body: "no json".to_owned(), ..Document::none(scope.clone()) });
    let (_, _, words) = run(dir, "config get trace.keep_ratio");
    assert!(
        words.contains("cluster 1: not an object of texts") && words.contains("agents refuse"),
        "{words}"
    );
    assert_eq!(run(dir, "config set trace.keep_ratio=1").0, 0);
    let body = r#"{"trace.keep_ratio": "1/2", "trace.later": "x"}"#;
    write_past(dir, &Document { version: 3, body: body.to_owned(), ..Document::none(scope) });
    let (_, out, words) = run(dir, "config get trace.keep_ratio");
    assert!(out.contains("1/2"), "{out}");
    assert_eq!(words, "warning: nobody knows the key trace.later (cluster)\n");
    assert_eq!(run(dir, "config unset trace.later").0, 0);
    let (code, _, words) = run(dir, "config rollback 1");
    assert_eq!(code, 1, "{words}");
}

#[test]
fn every_key_is_listed_and_every_answer_has_a_json_form() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let json = |args: &str| {
        let (code, out, words) = run(dir, &format!("config {args} --format json"));
        assert_eq!(code, 0, "{args}: {words}");
        serde_json::from_str::<serde_json::Value>(&out).expect("json")
    };
    let keys = json("keys");
    assert_eq!(keys["keys"].as_array().map(Vec::len), Some(dprof_common::settings::KEYS.len()));
    assert_eq!(keys["keys"][0]["key"], "trace.keep_ratio");
    let set = json("set trace.keep_ratio=1/4 --author ann");
    assert_eq!(
        (&set["kind"], &set["version"], &set["written"]),
        (&"config_change".into(), &1.into(), &true.into())
    );
    assert_eq!(set["changes"][0]["before"], serde_json::Value::Null);
    let history = json("history");
    assert_eq!(history["versions"][0]["values"]["trace.keep_ratio"], "1/4");
    let diff = json("diff");
    assert_eq!((&diff["from"], &diff["to"]), (&0.into(), &1.into()));
}

#[test]
fn a_store_that_is_not_there_is_not_made() {
    let dir = tempfile::tempdir().expect("a folder");
    let none = dir.path().join("none");
    let (result, ..) = run_at(StoreUrl::Sqlite(none.clone()), 120, "config set trace.keep_ratio=1");
    assert!(matches!(result, Err(Failure::Error(_))), "{result:?}");
    assert!(!none.exists());
}

#[test]
fn the_document_lists_every_key_as_the_table_has_it() {
    let page = include_str!("../../../../docs/configuration.md");
    let listed: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let expected: Vec<Vec<String>> = dprof_common::settings::KEYS
        .iter()
        .map(|key| {
            let scopes = if key.per_service { "cluster, service, host" } else { "cluster, host" };
            let cells = [key.kind.allowed(), key.default.to_owned(), key.applies.name().to_owned()];
            let name = format!("`{}`", key.name);
            [name].into_iter().chain(cells).chain([scopes.to_owned(), key.meaning.to_owned()]).collect()
        })
        .collect();
    let shown = |rows: &[Vec<String>]| {
        rows.iter().map(|row| format!("| {} |", row.join(" | "))).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(listed, expected, "docs/configuration.md must have\n{}", shown(&expected));
}
