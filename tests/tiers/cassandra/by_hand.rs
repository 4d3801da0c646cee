//! The statements of docs/cassandra.md, run as they stand there.

use std::process::Command;
use std::time::Duration;

use dprof_tests::agent::binary;
use dprof_tests::cli;
use dprof_tests::program::Program;

use super::Keyspace;

/// Every statement of the page, in its order.
fn statements() -> Vec<String> {
    let page = include_str!("../../../docs/cassandra.md");
    let (_, by_hand) = page.split_once("## By hand").expect("the page has the section");
    let blocks = by_hand.split("```cql\n").skip(1).filter_map(|rest| rest.split_once("```"));
    blocks
        .flat_map(|(block, _)| block.split(';'))
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_statements_of_the_page_find_the_longest_and_shortest() {
    let Some(keyspace) = Keyspace::new() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let recording = format!("{}/data/demo.dprof", env!("CARGO_MANIFEST_DIR"));
    let url = keyspace.url.to_string();
    let mut agent = Command::new(binary("dprof-agent"));
    agent.args(["--store", &url, "--replay", &recording, "--spool"]).arg(folder.path().join("spool"));
    let agent = Program::start("dprof-agent", folder.path(), &mut agent).expect("starts");
    agent.wait(Duration::from_mins(1)).and_then(dprof_tests::program::Ended::success).expect("ends well");
    let slowest = cli::json(&url, &["slowest-spans", "--since", "all", "--limit", "1"]).expect("answers");
    let (id, duration_ns) = (slowest[0]["trace_id"].as_str().expect("an id"), &slowest[0]["duration_ns"]);
    // The window that the recording is in, as the page computes it.
    let bucket = keyspace.cql(&format!(
        "SELECT DISTINCT service, name, level, bucket, which, shard FROM {}.duration_index",
        keyspace.name
    ));
    let buckets: std::collections::BTreeSet<i64> =
        bucket.iter().filter_map(|row| row.split('\t').nth(3)?.parse().ok()).collect();
    let statements = statements();
    assert!(statements.len() >= 4, "{statements:?}");
    let mut longest = 0_i64;
    for statement in &statements {
        let mut n_rows = 0;
        for bucket in &buckets {
            let text = statement
                .replace("dprof.", &format!("{}.", keyspace.name))
                .replace("BUCKET", &bucket.to_string())
                .replace("DAY", &(bucket / 144).to_string())
                .replace("SERVICE", "'redis-server'")
                .replace("OPERATION", "'GET'")
                .replace("TRACE", &format!("0x{}", id.trim_start_matches("0000000000000000")));
            let rows = keyspace.cql(&text);
            n_rows += rows.len();
            if statement.contains("which = 0")
                && statement.contains("level = 0")
                && statement.contains("service = ''")
            {
                longest = rows
                    .iter()
                    .filter_map(|row| row.split('\t').next()?.parse().ok())
                    .max()
                    .unwrap_or(0)
                    .max(longest);
            }
        }
        assert!(n_rows > 0, "no rows: {statement}");
    }
    assert_eq!(Some(longest), duration_ns.as_i64(), "the page and the command line agree");
}
