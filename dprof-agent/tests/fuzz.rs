//! Every fuzz target in the bounded loop: seeded, without coverage, on any toolchain. Long runs:
//! `DPROF_FUZZ_EXECUTIONS=10000000 DPROF_FUZZ_SEED=7 cargo test --release -p dprof-agent --test fuzz`.

use dprof_fuzz::{TARGETS, mutate};

/// Executions per target in an ordinary run: a few seconds for all.
const EXECUTIONS: u64 = 20_000;

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[expect(clippy::print_stderr, reason = "the seed of a failure must be known")]
#[track_caller]
fn check(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    let executions = number("DPROF_FUZZ_EXECUTIONS").unwrap_or(EXECUTIONS);
    let seed = number("DPROF_FUZZ_SEED").unwrap_or(1);
    eprintln!("{executions} executions of {name}, seed {seed}");
    if let Err(error) = mutate::run(target, executions, seed) {
        panic!("seed {seed}: {error}");
    }
}

#[test]
fn redis_bytes_give_the_same_however_they_are_cut() {
    check("resp");
}

#[test]
fn http_bytes_give_the_same_however_they_are_cut() {
    check("http1");
}

#[test]
fn memcached_bytes_give_the_same_however_they_are_cut() {
    check("memcached");
}

#[test]
fn dnode_bytes_give_the_same_however_they_are_cut() {
    check("dnode");
}

#[test]
fn tls_and_proxy_bytes_give_the_same_however_they_are_cut() {
    check("tls");
}

#[test]
fn holes_in_conversations_make_no_wrong_message_and_no_wrong_pair() {
    check("dialogue");
}

#[test]
fn masks_leave_no_value_and_all_structure() {
    check("redact");
}

#[test]
fn damaged_records_change_counters_only() {
    check("events");
}
