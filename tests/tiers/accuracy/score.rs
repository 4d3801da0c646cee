//! Spans with their links, and the truth → how often the links are right.
//!
//! What a reader would get wrong: what is expected comes from what the client asked, not from what was seen. A span
//! that is missing is a link that was not found and a trace that is not right.

use std::collections::{BTreeMap, HashMap, HashSet};

use dprof_common::model::{EvidenceKind, HalfFlags, RootKind, Span, SpanFlags, SpanId};
use dprof_tests::topology::Topology;
use dprof_tests::truth::Asked;
use serde::Serialize;

use super::measure::{Case, Keys};

/// Links of one kind, or of one stated confidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Tally {
    pub(super) right: u64,
    pub(super) wrong: u64,
    /// Sum of what they state.
    pub(super) stated: f64,
}

impl Tally {
    pub(super) const fn count(&self) -> u64 {
        self.right + self.wrong
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.right += other.right;
        self.wrong += other.wrong;
        self.stated += other.stated;
    }

    /// How far what they state lies from what they are, 0 to 1.
    pub(super) fn calibration_error(&self) -> f64 {
        let count = self.count().max(1) as f64;
        (self.stated / count - self.right as f64 / count).abs()
    }
}

/// Lower ends of the bins of stated confidence. The last is "certain"; what states nothing has a bin of its own.
pub(super) const BINS: [f32; 8] = [0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];

/// Name of the bin of links that state no confidence.
pub(super) const UNCALIBRATED: &str = "uncalibrated";

/// Name of the bin of links that are called certain.
pub(super) const CERTAIN: &str = "certain";

fn bin(confidence: Option<f32>) -> String {
    let Some(confidence) = confidence else { return UNCALIBRATED.to_owned() };
    match BINS.iter().rposition(|low| confidence >= *low) {
        Some(idx) if idx + 1 < BINS.len() => format!("{:.2}-{:.2}", BINS[idx], BINS[idx + 1]),
        _ => CERTAIN.to_owned(),
    }
}

/// What one way of linking is worth on one measurement.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Score {
    pub(super) topology: &'static str,
    pub(super) in_flight: usize,
    /// `unique`, `identical`, `no_content`.
    pub(super) load: &'static str,
    /// `dprof`, `first_come`, `latest_open`.
    pub(super) method: &'static str,
    pub(super) requests: u64,
    /// Links that all requests together must have.
    pub(super) links_expected: u64,
    pub(super) links_right: u64,
    pub(super) links_wrong: u64,
    pub(super) traces_right: u64,
    pub(super) spans_expected: u64,
    /// Spans whose request is known.
    pub(super) spans: u64,
    /// Spans of which a half or bytes are missing.
    pub(super) spans_incomplete: u64,
    /// Spans that have no parent and should.
    pub(super) spans_orphaned: u64,
    /// What the client measured less the root's duration, nanoseconds: half, and 99 of 100, are below.
    pub(super) root_error_ns: [i64; 2],
    /// The former as a share of what the client measured.
    pub(super) root_error_share: f64,
    /// Links by evidence.
    pub(super) by_evidence: BTreeMap<&'static str, Tally>,
    /// Links by evidence and stated confidence.
    pub(super) by_confidence: BTreeMap<&'static str, BTreeMap<String, Tally>>,
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

impl Score {
    /// Of the links made, how many are right; 1 without any.
    pub(super) fn precision(&self) -> f64 {
        share(self.links_right, self.links_right + self.links_wrong)
    }

    /// Of the links that should be, how many are there.
    pub(super) fn recall(&self) -> f64 {
        share(self.links_right, self.links_expected)
    }

    /// Of the requests, how many have every span under its right parent and no other.
    pub(super) fn traces(&self) -> f64 {
        share(self.traces_right, self.requests)
    }

    /// Whether another score is of the same halves.
    pub(super) fn is_of_same_case(&self, other: &Self) -> bool {
        (self.topology, self.in_flight, self.load) == (other.topology, other.in_flight, other.load)
    }

    /// Links called certain for what requests say or for their order, not for the place in a relayed stream.
    pub(super) fn certain_by_content(&self) -> u64 {
        let stream_relay = EvidenceKind::StreamRelay.name();
        let others = self.by_confidence.iter().filter(|(kind, _)| **kind != stream_relay);
        others.filter_map(|(_, bins)| bins.get(CERTAIN)).map(Tally::count).sum()
    }

    /// Links called certain.
    pub(super) fn certain(&self) -> Tally {
        let mut sum = Tally::default();
        for bins in self.by_confidence.values() {
            if let Some(tally) = bins.get(CERTAIN) {
                sum.add(tally);
            }
        }
        sum
    }
}

/// What a score is given.
pub(super) struct Given<'a> {
    pub(super) case: &'a Case,
    pub(super) load: &'static str,
    pub(super) asked: &'a [Asked],
    pub(super) spans: &'a [Span],
    /// Of each span.
    pub(super) labels: &'a [Option<u64>],
}

/// Scores what dprof linked.
pub(super) fn of_dprof(given: &Given<'_>) -> Score {
    let links: HashMap<SpanId, SpanId> =
        given.spans.iter().filter_map(|span| Some((span.span_id, span.link?.parent))).collect();
    let mut score = of_links(given, "dprof", &links);
    // A trace whose spans do not find together by its id is not right, however right its links.
    let mut torn = HashSet::new();
    for (span, label) in given.spans.iter().zip(given.labels) {
        let root = || root_of(&links, span.span_id);
        if !span.flags.contains(SpanFlags::FRAGMENT) && span.trace_id != root().as_root_trace() {
            torn.extend(*label);
        }
    }
    score.traces_right = right_traces(given, &links).difference(&torn).count() as u64;
    let truth = Truth::new(given);
    for (span, label) in given.spans.iter().zip(given.labels) {
        let Some(link) = span.link else { continue };
        let is_right = truth.is_right(span, *label, link.parent);
        let tally = Tally {
            right: u64::from(is_right),
            wrong: u64::from(!is_right),
            stated: f64::from(link.confidence.unwrap_or(0.0)),
        };
        let evidence = link.evidence.name();
        score.by_evidence.entry(evidence).or_default().add(&tally);
        score.by_confidence.entry(evidence).or_default().entry(bin(link.confidence)).or_default().add(&tally);
    }
    score
}

/// Scores any parents: call → request.
pub(super) fn of_links(given: &Given<'_>, method: &'static str, links: &HashMap<SpanId, SpanId>) -> Score {
    let truth = Truth::new(given);
    let (mut right, mut wrong) = (0, 0);
    let (mut incomplete, mut orphaned, mut labelled) = (0, 0, 0);
    for (span, label) in given.spans.iter().zip(given.labels) {
        if let Some(parent) = links.get(&span.span_id) {
            if truth.is_right(span, *label, *parent) {
                right += 1;
            } else {
                wrong += 1;
            }
        }
        labelled += u64::from(label.is_some());
        let halves = [&span.client, &span.server];
        let whole = |half: &Option<_>| {
            half.as_ref()
                .is_some_and(|half: &dprof_common::model::Half| !half.flags.contains(HalfFlags::INCOMPLETE))
        };
        incomplete += u64::from(!halves.into_iter().all(whole));
        orphaned += u64::from(span.root == Some(RootKind::Unlinked));
    }
    let expected = given.asked.iter().map(|asked| expected_spans(given, asked)).sum();
    let (root_error_ns, root_error_share) = root_errors(given);
    Score {
        topology: given.case.topology.name,
        in_flight: given.case.in_flight,
        load: given.load,
        method,
        requests: given.asked.len() as u64,
        links_expected: expected - given.asked.len() as u64,
        links_right: right,
        links_wrong: wrong,
        traces_right: right_traces(given, links).len() as u64,
        spans_expected: expected,
        spans: labelled,
        spans_incomplete: incomplete,
        spans_orphaned: orphaned,
        root_error_ns,
        root_error_share,
        by_evidence: BTreeMap::new(),
        by_confidence: BTreeMap::new(),
    }
}

fn expected_spans(given: &Given<'_>, asked: &Asked) -> u64 {
    let topology = given.case.topology;
    let commands = if given.case.keys == Keys::Identical { topology.identical } else { topology.unique };
    topology.rpcs(asked, Topology::is_read(commands, asked.command)) as u64
}

/// Who serves each request, by process.
struct Truth {
    serving: HashMap<(u32, u64), SpanId>,
}

impl Truth {
    fn new(given: &Given<'_>) -> Self {
        let served =
            given.spans.iter().zip(given.labels).filter_map(|(span, label)| {
                Some(((span.server.as_ref()?.process.pid, (*label)?), span.span_id))
            });
        Self { serving: served.collect() }
    }

    /// The request of the calling process that truly caused a call.
    fn parent(&self, span: &Span, label: Option<u64>) -> Option<SpanId> {
        self.serving.get(&(span.client.as_ref()?.process.pid, label?)).copied()
    }

    fn is_right(&self, span: &Span, label: Option<u64>, parent: SpanId) -> bool {
        self.parent(span, label) == Some(parent)
    }
}

/// Requests whose spans are all there, each under its true parent, and none of another request among them.
fn right_traces(given: &Given<'_>, links: &HashMap<SpanId, SpanId>) -> HashSet<u64> {
    let truth = Truth::new(given);
    let label_of: HashMap<SpanId, u64> = given
        .spans
        .iter()
        .zip(given.labels)
        .filter_map(|(span, label)| Some((span.span_id, (*label)?)))
        .collect();
    let mut found: HashMap<u64, u64> = HashMap::new();
    let mut bad = HashSet::new();
    for (span, label) in given.spans.iter().zip(given.labels) {
        if let Some(label) = label {
            *found.entry(*label).or_default() += 1;
        }
        let link = links.get(&span.span_id).copied();
        if link != truth.parent(span, *label) {
            bad.extend(*label);
            bad.extend(link.and_then(|parent| label_of.get(&parent)));
        }
    }
    let complete = |asked: &&Asked| found.get(&asked.request) == Some(&expected_spans(given, asked));
    given
        .asked
        .iter()
        .filter(complete)
        .map(|asked| asked.request)
        .filter(|label| !bad.contains(label))
        .collect()
}

/// The topmost cause.
fn root_of(links: &HashMap<SpanId, SpanId>, span: SpanId) -> SpanId {
    /// More levels than any system here has: a ring of links ends too.
    const LEVELS_MAX: usize = 32;
    let mut at = span;
    for _ in 0..LEVELS_MAX {
        match links.get(&at) {
            Some(parent) => at = *parent,
            None => break,
        }
    }
    at
}

/// Median and 99th percentile of what the client measured less what the root's span says, and the median share.
fn root_errors(given: &Given<'_>) -> ([i64; 2], f64) {
    let asked: HashMap<u64, &Asked> = given.asked.iter().map(|asked| (asked.request, asked)).collect();
    let (mut errors, mut shares) = (Vec::new(), Vec::new());
    for (span, label) in given.spans.iter().zip(given.labels) {
        let (Some(label), Some(half)) = (label, &span.client) else { continue };
        let Some(asked) = asked.get(label) else { continue };
        if half.local != asked.at.client {
            continue;
        }
        let measured = (asked.done_ns - asked.sent_ns) as i64;
        let error = measured - half.times.duration_ns() as i64;
        errors.push(error);
        shares.push(error.unsigned_abs() as f64 / measured.max(1) as f64);
    }
    errors.sort_unstable();
    shares.sort_by(f64::total_cmp);
    let at = |share: f64| ((errors.len() as f64 * share) as usize).min(errors.len().saturating_sub(1));
    let error = |share| errors.get(at(share)).copied().unwrap_or(0);
    ([error(0.5), error(0.99)], shares.get(at(0.5)).copied().unwrap_or(0.0))
}

/// All kinds, strongest first, for tables.
pub(super) fn kinds() -> impl Iterator<Item = &'static str> {
    EvidenceKind::ALL.into_iter().map(EvidenceKind::name)
}
