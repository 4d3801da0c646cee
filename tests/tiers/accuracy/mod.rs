//! How often links are right: real systems under load, scored against what the client and the systems' own programs
//! know.
//!
//! `cargo xtask accuracy` runs all of it; the tier takes three systems at 10 and 100 requests in flight.

mod baseline;
mod bounds;
mod figure5;
mod label;
mod measure;
mod report;
mod score;
mod traits;

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use dprof_tests::topology::{ALL, Topology};

use self::baseline::Rule;
use self::measure::{Case, Keys, Measured, measure};
use self::score::{Given, Score, of_dprof, of_links};
use crate::harness::Live;

/// Turns the tier on.
const VARIABLE: &str = "DPROF_TEST_ACCURACY";

/// What `cargo xtask accuracy` asks for: `full` and names of topologies, in words.
const PLAN: &str = "DPROF_ACCURACY_PLAN";

/// Where it wants the scores as JSON.
const JSON: &str = "DPROF_ACCURACY_JSON";

/// Systems of the tier: an event-loop proxy, a thread per request, replication.
const TIER: [&str; 3] = ["nutcracker-redis", "nginx-service", "ring-3-racks"];

/// Requests in flight in the tier, and in a full run.
const IN_FLIGHT: [usize; 2] = [10, 100];
const IN_FLIGHT_FULL: [usize; 4] = [1, 10, 100, 300];

/// Requests of one measurement: enough that one in a hundred is not chance; and so many that all systems together
/// give more than 100,000 links.
const REQUESTS: u64 = 2000;
const REQUESTS_FULL: u64 = 10_000;

/// With one request in flight, a tenth of the requests takes as long.
const REQUESTS_ALONE: u64 = 1000;

/// Whether this tree's agent reads what the ring's nodes say to each other: without that the ring's tests have nothing
/// to look at, and say so.
#[expect(clippy::print_stdout, reason = "a word to whoever runs it")]
fn knows_dnode() -> bool {
    let known = dprof_agent::protocol::ALL.iter().any(|protocol| protocol.name() == "dnode");
    if !known {
        println!("skipped: the agent of this tree does not know DNODE");
    }
    known
}

/// What is to be measured.
fn plan() -> Result<Vec<Case>> {
    let words = env::var(PLAN).ok();
    let words: Vec<&str> = words.as_deref().unwrap_or_default().split_whitespace().collect();
    let is_full = words.contains(&"full");
    let mut names: Vec<&str> = words.iter().copied().filter(|word| *word != "full").collect();
    if names.is_empty() {
        names = if is_full { ALL.iter().map(|topology| topology.name).collect() } else { TIER.to_vec() };
    }
    let in_flight: &[usize] = if is_full { &IN_FLIGHT_FULL } else { &IN_FLIGHT };
    let mut cases = Vec::new();
    for name in names {
        let Some(topology) = Topology::named(name) else {
            let known: Vec<&str> = ALL.iter().map(|topology| topology.name).collect();
            bail!("there is no topology {name}: take {}", known.join(", "));
        };
        for &in_flight in in_flight {
            let requests = match (is_full, in_flight) {
                (_, 1) => REQUESTS_ALONE,
                (false, _) => REQUESTS,
                (true, _) => REQUESTS_FULL,
            };
            for keys in [Keys::Unique, Keys::Identical] {
                cases.push(Case { topology, keys, in_flight, requests });
            }
        }
    }
    Ok(cases)
}

fn scores(case: &Case, measured: &Measured) -> Vec<Score> {
    let mut scores = Vec::new();
    let mut add = |load, spans, rules: bool| {
        let labels = label::labels(case, measured, spans);
        let given = Given { case, load, asked: &measured.asked, spans, labels: &labels };
        scores.push(of_dprof(&given));
        if rules {
            for (rule, method) in [(Rule::FirstCome, "first_come"), (Rule::LatestOpen, "latest_open")] {
                scores.push(of_links(&given, method, &baseline::parents(rule, spans, &labels)));
            }
        }
    };
    let load = if case.keys == Keys::Unique { "unique" } else { "identical" };
    add(load, &measured.spans, case.keys == Keys::Identical || measured.without_content.is_none());
    if let Some(spans) = &measured.without_content {
        add("no_content", spans, true);
    }
    scores
}

#[test]
#[expect(clippy::print_stdout, reason = "figures for whoever runs it with --nocapture")]
fn links_keep_their_bounds() -> Result<()> {
    let Some(tier) = Live::begin_with(VARIABLE)? else { return Ok(()) };
    let mut all = Vec::new();
    for case in plan()? {
        let name = format!("{} {:?} {}", case.topology.name, case.keys, case.in_flight);
        let measured = measure(&case, tier.path()).with_context(|| name.clone())?;
        ensure!(measured.said.contains("lost: none"), "{name}: {}", measured.said);
        all.extend(scores(&case, &measured));
        print!("{}", report::table(&all[all.len().saturating_sub(4)..]));
    }
    println!("\n{}\n{}", report::table(&all), report::calibration(&all));
    if let Some(path) = env::var_os(JSON) {
        report::write_json(&PathBuf::from(path), &all)?;
    }
    let broken = bounds::broken(&all);
    ensure!(broken.is_empty(), "bounds are broken:\n{}", broken.join("\n"));
    Ok(())
}
