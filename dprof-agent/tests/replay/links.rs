//! Links of a simulated proxy against the truth: precision, recall, what is called certain, calibration.
//!
//! The scenarios are long enough for rare mistakes to show, and their seeds are in the message of a failure.

use std::collections::HashMap;
use std::sync::Arc;

use dprof_agent::engine::{Engine, EngineConfig, Output};
use dprof_agent::link::{EvidenceSet, LinkOptions};
use dprof_common::model::{EvidenceKind, HostInfo, RunId, Span, SpanId};

use crate::blocks;
use crate::proxy::{PLAIN, PROXY_PID, Scenario, Simulated, simulate};

/// How often links are right.
#[derive(Clone, Debug, Default)]
struct Score {
    n_calls: u64,
    right: u64,
    wrong: u64,
    certain: u64,
    certain_wrong: u64,
    /// What simpler rules get right.
    first_come: u64,
    latest: u64,
    /// Links with a confidence below certainty, per tenth: number, right, sum of confidence.
    bins: [(u64, u64, f64); 11],
}

impl Score {
    fn precision(&self) -> f64 {
        self.right as f64 / (self.right + self.wrong).max(1) as f64
    }

    fn recall(&self) -> f64 {
        self.right as f64 / self.n_calls.max(1) as f64
    }

    fn add(&mut self, spans: &[Span], truth: &Simulated) {
        let message_of: HashMap<SpanId, u64> = spans
            .iter()
            .filter_map(|span| Some((span.span_id, span.server.as_ref()?.request_message_id.0)))
            .collect();
        for span in spans {
            let Some(call) = span.client.as_ref().filter(|half| half.process.pid == PROXY_PID) else {
                continue;
            };
            let number = call.request_message_id.0;
            let Some(cause) = truth.cause_of.get(&number) else { continue };
            self.n_calls += 1;
            self.first_come += u64::from(truth.first_come.get(&number) == Some(cause));
            self.latest += u64::from(truth.latest.get(&number) == Some(cause));
            let Some(link) = &span.link else { continue };
            let is_right = message_of.get(&link.parent) == Some(cause);
            *if is_right { &mut self.right } else { &mut self.wrong } += 1;
            match link.confidence {
                Some(confidence) if confidence >= 1.0 => {
                    self.certain += 1;
                    self.certain_wrong += u64::from(!is_right);
                }
                Some(confidence) => {
                    let bin = &mut self.bins[(f64::from(confidence) * 10.0) as usize];
                    *bin = (bin.0 + 1, bin.1 + u64::from(is_right), bin.2 + f64::from(confidence));
                }
                None => {}
            }
        }
    }
}

fn engine(link: LinkOptions) -> Engine {
    Engine::new(EngineConfig {
        host: Arc::new(HostInfo {
            host: "proxy1".into(),
            run_id: RunId(1),
            labels: std::collections::BTreeMap::default(),
        }),
        unknown: false,
        max_open_ns: 60_000_000_000,
        hold_ns: 1_000_000_000,
        open_requests_max: 100_000,
        held_max: 100_000,
        connections_max: 10_000,
        clock_offset_ns: 0,
        clock_drift_ppm: 0.0,
        link,
    })
}

fn score(link: LinkOptions, scenarios: impl IntoIterator<Item = Scenario>) -> Score {
    let mut score = Score::default();
    for scenario in scenarios {
        let truth = simulate(scenario);
        let mut engine = engine(link);
        let mut out = Output::default();
        for block in blocks(&truth.records, || 1000) {
            engine.push(&block, &mut out);
        }
        engine.finish(&mut out);
        score.add(&out.spans, &truth);
    }
    score
}

/// Without evidence by content.
fn blind() -> LinkOptions {
    LinkOptions {
        evidence: EvidenceSet::ALL.without(&[EvidenceKind::RelayedContent]),
        ..LinkOptions::default()
    }
}

#[test]
fn unique_commands_through_a_proxy_are_linked_and_nearly_all_certain() {
    for n_clients in [1, 10, 100, 300] {
        let scenario = Scenario { n_clients, n_requests: 10_000, seed: 7 + n_clients as u64, ..PLAIN };
        let score = score(LinkOptions::default(), [scenario]);
        assert_eq!((score.n_calls, score.certain_wrong), (10_000, 0), "{scenario:?}");
        assert!(score.precision() >= 0.99 && score.recall() >= 0.99, "{scenario:?}: {score:?}");
        assert!(score.certain >= 9_000, "{scenario:?}: {score:?}");
    }
}

#[test]
fn of_a_hundred_thousand_certain_links_none_is_wrong() {
    // Pipelines, copies, swallowed replies and a proxy that reorders, in turns.
    let scenarios = (0..12_u64).map(|seed| Scenario {
        n_clients: [1, 10, 100, 300][seed as usize % 4],
        pipeline: [1, 1, 8][seed as usize % 3],
        copies: [1, 1, 1, 3, 2][seed as usize % 5],
        reorders: seed % 2 == 1,
        replies_differ: seed % 3 != 1,
        n_requests: 7_000,
        seed,
        ..PLAIN
    });
    let score = score(LinkOptions::default(), scenarios);
    assert!(score.certain >= 100_000, "{score:?}");
    assert_eq!(score.certain_wrong, 0, "{score:?}");
    assert!(score.precision() >= 0.99 && score.recall() >= 0.99, "{score:?}");
}

#[test]
fn identical_commands_are_told_apart_by_order_and_never_certain() {
    for (n_clients, replies_differ) in [(10, true), (10, false), (100, true), (100, false), (300, false)] {
        let scenario = Scenario {
            n_clients,
            replies_differ,
            unique: false,
            n_requests: 5_000,
            seed: 3 + n_clients as u64,
            ..PLAIN
        };
        let score = score(LinkOptions::default(), [scenario]);
        assert!(score.recall() >= 0.95, "{scenario:?}: {score:?}");
        assert_eq!(score.certain, 0, "{scenario:?}: {score:?}");
    }
}

#[test]
fn a_proxy_that_reorders_identical_commands_is_put_right_by_replies_that_differ() {
    let scenario = Scenario { n_clients: 100, unique: false, reorders: true, n_requests: 5_000, ..PLAIN };
    let score = score(LinkOptions::default(), [scenario]);
    assert!(score.recall() >= 0.95 && score.certain == 0, "{scenario:?}: {score:?}");
}

#[test]
fn without_content_replies_in_order_are_far_above_simpler_rules() {
    for n_clients in [10, 100, 300] {
        let scenario = Scenario { n_clients, n_requests: 5_000, seed: n_clients as u64, ..PLAIN };
        let score = score(blind(), [scenario]);
        let (first_come, latest) =
            (score.first_come as f64 / score.n_calls as f64, score.latest as f64 / score.n_calls as f64);
        assert_eq!(score.certain, 0, "{scenario:?}: {score:?}");
        assert!(
            score.recall() >= 2.0 * first_come && score.recall() >= 2.0 * latest,
            "{scenario:?}: right {:.3}, first come {first_come:.3}, latest {latest:.3}: {score:?}",
            score.recall()
        );
    }
}
