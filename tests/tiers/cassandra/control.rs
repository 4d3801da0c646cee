//! Configuration and agents on a ring: the real agent obeys what the real command line writes, and an older keyspace is
//! brought up to date.

use std::process::Command;
use std::time::Duration;

use dprof_store::control::{ConfigStatus, open_control};
use dprof_tests::agent::{Agent, binary};
use dprof_tests::{cli, clock, poll};

use super::Keyspace;
use crate::harness::Live;

/// What a change may take.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(10);

fn run(keyspace: &Keyspace, arguments: &[&str]) -> (bool, String) {
    let output = cli::run(&keyspace.url.to_string(), arguments).expect("runs");
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn an_agent_obeys_what_is_configured_on_the_ring() {
    let Some(keyspace) = Keyspace::new() else { return };
    let live = Live::begin_with(super::VARIABLE).expect("a folder").expect("it is on");
    let spool = live.path().join("spool").display().to_string();
    // Nobody listens there: it watches and sees nothing.
    let options = ["--port", "1", "--host", "ring-host", "--spool", &spool, "-v"];
    let mut command = Command::new(binary("dprof-agent"));
    let url = keyspace.url.to_string();
    let agent = Agent::start_with(live.path(), &url, &mut command, &options).expect("starts");
    let (done, said) =
        run(&keyspace, &["config", "set", "trace.keep_ratio=1/8", "--scope", "host:ring-host"]);
    assert!(done, "{said}");
    let mut last = Vec::new();
    let obeys = poll::until(IN_FORCE_WITHIN, "the ratio is in force", || {
        last = keyspace.runtime.block_on(async {
            let control = open_control(&keyspace.url, false).await.ok()?;
            control.agents(clock::unix_us() * 1_000).await.ok()
        })?;
        let config = &last.first()?.config;
        let version = config.in_force.get("host:ring-host");
        (config.status == ConfigStatus::InForce && version == Some(&1)).then_some(())
    });
    obeys.unwrap_or_else(|error| panic!("{error}: {last:#?}"));
    agent.stop().expect("ends well");
    let (_, said) = run(&keyspace, &["agents"]);
    assert!(said.contains("ring-host") && said.contains("ended"), "{said}");
    let (_, said) = run(&keyspace, &["agents", "--history"]);
    assert!(said.contains("ring-host"), "{said}");
}

#[test]
fn a_keyspace_from_before_is_upgraded() {
    let Some(keyspace) = Keyspace::new() else { return };
    for table in ["config", "config_scopes", "agent_states", "host_minutes"] {
        keyspace.cql(&format!("DROP TABLE {}.{table}", keyspace.name));
    }
    let (done, said) = run(&keyspace, &["config", "get"]);
    assert!(!done && said.contains("dprof-cli store upgrade"), "{said}");
    let (done, said) = run(&keyspace, &["store", "upgrade"]);
    assert!(done, "{said}");
    let (done, said) = run(&keyspace, &["config", "set", "trace.keep_ratio=1/4"]);
    assert!(done && said.contains("cluster 1"), "{said}");
    let (done, said) = run(&keyspace, &["config", "get", "trace.keep_ratio"]);
    assert!(done && said.contains("1/4"), "{said}");
}
