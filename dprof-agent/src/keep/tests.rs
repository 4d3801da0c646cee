//! Decisions on hand-made spans: each test says what is stored, and why.

use dprof_common::model::{EvidenceKind, Link, RootKind, Side, Status};
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::*;
use crate::span::testing::half;

mod between;

const MS: u64 = 1_000_000;
const HOLD_NS: u64 = 5_000 * MS;

/// An RPC of `trace` seen at these ends.
fn span(trace: u64, id: u64, ends: &[Side], duration_ns: u64) -> Span {
    let of = |side| ends.contains(&side).then(|| half("shop", "GET /cart", 2 * HOLD_NS, duration_ns));
    let is_root = trace == id;
    let link = (!is_root).then_some(Link {
        parent: SpanId(trace),
        evidence: EvidenceKind::SameThread,
        confidence: None,
    });
    Span {
        trace_id: SpanId(trace).as_root_trace(),
        span_id: SpanId(id),
        link,
        further_links: Vec::new(),
        root: is_root.then_some(RootKind::Edge),
        flags: SpanFlags::default(),
        probability: 1.0,
        reason: KeepReason::Ratio,
        client: of(Side::Client),
        server: of(Side::Server),
    }
}

fn fragment(mut span: Span) -> Span {
    span.flags.insert(SpanFlags::FRAGMENT);
    span
}

fn failed(mut span: Span) -> Span {
    for half in span.client.iter_mut().chain(span.server.iter_mut()) {
        half.status = Status::Error;
    }
    span
}

const BOTH: &[Side] = &[Side::Client, Side::Server];

/// A stage, its time, and what it gave out.
struct Bench {
    keeper: Keeper,
    now_ns: u64,
    out: Vec<Span>,
}

impl Bench {
    fn new(options: KeepOptions) -> Self {
        Self { keeper: Keeper::new(options, HOLD_NS, 1_000), now_ns: 1_000 * MS, out: Vec::new() }
    }

    /// Nothing but what the test is about.
    fn quiet(ratio: f64) -> KeepOptions {
        KeepOptions { ratio, slow: false, errors: true, budget_per_s: 1_000.0, ..KeepOptions::default() }
    }

    fn pass(&mut self, ms: u64) {
        self.now_ns += ms * MS;
        self.keeper.expire(&mut self.out, self.now_ns);
    }

    fn add(&mut self, span: Span) {
        self.keeper.sift(&mut vec![span], &mut self.out, self.now_ns);
    }

    /// Ids given out since the last time, with the trace's id and the reason.
    fn kept(&mut self) -> Vec<(u64, u64, KeepReason)> {
        self.out.drain(..).map(|span| (span.trace_id.0 as u64, span.span_id.0, span.reason)).collect()
    }

    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        self.keeper.take_words(&mut words);
        words.into_iter().map(|(_, word)| word).collect()
    }
}

/// The first id from `from` on that is sampled at `ratio`, or is not.
fn id(from: u64, ratio: f64, is_wanted: bool) -> u64 {
    (from..from + 1_000_000)
        .find(|id| is_sampled(SpanId(*id).as_root_trace(), ratio) == is_wanted)
        .expect("some id")
}

#[test]
fn the_ratio_keeps_its_share_and_whole_traces() {
    const TRACES: u64 = 20_000;
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    for ratio in [0.001, 0.01, 1.0 / 16.0, 0.5] {
        let mut bench = Bench::new(Bench::quiet(ratio));
        for _ in 0..TRACES {
            let trace = rng.next_u64() >> 2;
            bench.add(span(trace, trace + 1, BOTH, 1_000));
            bench.add(span(trace, trace, BOTH, 2_000));
        }
        let kept = bench.kept();
        let expected = ratio * TRACES as f64;
        let deviation = (kept.len() as f64 / 2.0 - expected).abs() / (expected * (1.0 - ratio)).sqrt();
        assert!(deviation < 4.0, "{} of {TRACES} at {ratio}", kept.len() / 2);
        assert!(kept.chunks(2).all(|pair| pair[0].0 == pair[1].0 && pair[0].1 == pair[1].1 + 1), "{ratio}");
        bench.pass(10_000);
        assert_eq!(bench.kept(), []);
        assert_eq!(bench.keeper.counters().forgotten, 2 * TRACES - kept.len() as u64);
    }
}

#[test]
fn the_probability_is_stored() {
    let mut bench = Bench::new(Bench::quiet(0.25));
    let sampled = id(1, 0.25, true);
    bench.add(span(sampled, sampled, BOTH, 1_000));
    assert_eq!((bench.out[0].probability, bench.out[0].reason), (0.25, KeepReason::Ratio));
    let other = id(1_000, 0.25, false);
    bench.add(failed(span(other, other, BOTH, 1_000)));
    assert_eq!((bench.out[1].probability, bench.out[1].reason), (1.0, KeepReason::Error));
}

#[test]
fn a_failure_keeps_what_came_before_and_what_comes_after() {
    let mut bench = Bench::new(Bench::quiet(0.0));
    bench.add(span(1, 2, BOTH, 1_000));
    bench.add(span(10, 11, BOTH, 1_000));
    bench.pass(100);
    bench.add(failed(span(1, 3, BOTH, 1_000)));
    assert_eq!(bench.kept(), [(1, 2, KeepReason::Error), (1, 3, KeepReason::Error)]);
    bench.pass(4_900);
    bench.add(span(1, 1, BOTH, 1_000));
    bench.pass(4_900);
    // The decision is still in force: it was used meanwhile.
    bench.add(span(1, 4, BOTH, 1_000));
    assert_eq!(bench.kept(), [(1, 1, KeepReason::Error), (1, 4, KeepReason::Error)]);
    bench.pass(20_000);
    bench.add(span(1, 5, BOTH, 1_000));
    bench.pass(20_000);
    assert_eq!(bench.kept(), [], "forgotten, as is the rest");
    assert_eq!(bench.keeper.held(), 0);
    assert!(bench.keeper.trees.is_empty());
}

#[test]
fn an_error_storm_stays_in_its_budget() {
    let mut bench = Bench::new(KeepOptions { budget_per_s: 5.0, ..Bench::quiet(0.0) });
    for second in 0..10 {
        for n in 0..100 {
            let trace = 1 + second * 100 + n;
            bench.add(failed(span(trace, trace, BOTH, 1_000)));
        }
        bench.pass(1_000);
    }
    assert_eq!(bench.kept().len(), 50);
    assert_eq!(bench.keeper.counters().over_budget, 950);
}

#[test]
fn what_matters_may_be_said_for_a_service_alone() {
    let quiet = Triggers { slow: false, errors: false, budget_per_s: 0.0 };
    let mut options = Bench::quiet(0.0);
    options.by_service = [("shop".to_owned(), quiet)].into();
    let mut bench = Bench::new(options);
    bench.add(failed(span(1, 1, BOTH, 1_000)));
    assert_eq!(bench.kept(), []);
    let mut options = Bench::quiet(0.0);
    options.by_service = [("cart".to_owned(), quiet)].into();
    bench.keeper.set_options(options);
    bench.add(failed(span(2, 2, BOTH, 1_000)));
    assert_eq!(bench.kept(), [(2, 2, KeepReason::Error)]);
}

#[test]
fn the_slowest_hundredth_of_roots_is_kept() {
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut bench = Bench::new(KeepOptions { slow: true, ..Bench::quiet(0.0) });
    let mut durations = Vec::new();
    for trace in 1..=50_000_u64 {
        let duration_ns = (1e6 * (3.0 * (f64::from(rng.next_u32()) / f64::from(u32::MAX))).exp()) as u64;
        durations.push(duration_ns);
        bench.add(span(trace, trace, BOTH, duration_ns));
        bench.now_ns += MS;
    }
    durations.sort_unstable();
    let slowest = durations[durations.len() * 99 / 100];
    let kept = std::mem::take(&mut bench.out);
    let slow: Vec<&Span> = kept.iter().filter(|span| span.reason == KeepReason::Slow).collect();
    // The bound lies below the quantile by what a thousand durations leave open, and by the sketch's hundredth.
    assert!((250..=1_000).contains(&slow.len()), "{}", slow.len());
    let is_near = |span: &Span| span.duration_ns() as f64 > slowest as f64 * 0.95;
    assert!(slow.iter().all(|span| is_near(span)));
    // Before anything is known of an operation its slowest so far are kept.
    let n_top = kept.iter().filter(|span| span.reason == KeepReason::Top).count();
    assert!((10..200).contains(&n_top), "{n_top}");
}

#[test]
fn a_request_longer_than_the_hold_that_fails_is_marked() {
    let mut bench = Bench::new(Bench::quiet(0.0));
    bench.add(failed(span(1, 1, BOTH, HOLD_NS)));
    bench.add(failed(span(2, 2, BOTH, HOLD_NS - 1)));
    let marked: Vec<bool> = bench.out.iter().map(|span| span.flags.contains(SpanFlags::TRUNCATED)).collect();
    assert_eq!(marked, [true, false]);
}

#[test]
fn a_request_open_for_long_keeps_its_trace_before_it_ends() {
    let mut bench = Bench::new(KeepOptions { slow: true, ..Bench::quiet(0.0) });
    // The list of the slowest is full of others.
    for trace in 1_000..1_010 {
        bench.add(span(trace, trace, BOTH, 1_000 * MS));
    }
    bench.out.clear();
    bench.add(span(1, 2, BOTH, 1_000));
    bench.pass(2_500);
    let long = LongOpen {
        trace: SpanId(1).as_root_trace(),
        is_fragment: false,
        operation: 7,
        process: half("shop", "GET /cart", 2 * HOLD_NS, 1_000).process,
    };
    bench.keeper.keep_long(&long, &mut bench.out, bench.now_ns);
    assert_eq!(bench.kept(), [(1, 2, KeepReason::Slow)]);
}

#[test]
fn too_many_spans_shorten_the_hold() {
    let mut bench = Bench::new(Bench::quiet(0.0));
    for trace in 1..=3_000 {
        bench.add(span(trace, trace, BOTH, 1_000));
        bench.pass(1);
    }
    let counters = bench.keeper.counters();
    assert_eq!((bench.keeper.held(), counters.evicted, counters.forgotten), (1_000, 2_000, 2_000));
    assert_eq!(counters.horizon_ns / MS, 1_000);
    bench.pass(6_000);
    assert_eq!(bench.keeper.counters().horizon_ns, HOLD_NS);
}

#[test]
fn without_peers_a_part_of_a_trace_is_kept_by_its_own_hash() {
    let (sampled, other) = (id(1, 0.5, true), id(1_000, 0.5, false));
    let mut bench = Bench::new(Bench::quiet(0.5));
    for trace in [sampled, other] {
        bench.add(fragment(span(trace, trace, &[Side::Server], 1_000)));
    }
    assert_eq!(bench.kept(), [(sampled, sampled, KeepReason::Unconfirmed)]);
    // An id that the application made is known to everybody.
    let mut foreign = fragment(span(other, other, &[Side::Server], 1_000));
    foreign.trace_id =
        (1_u128..1_000).map(|n| TraceId(n << 64 | 7)).find(|id| is_sampled(*id, 0.5)).expect("one");
    bench.add(foreign);
    assert_eq!(bench.out[0].reason, KeepReason::Ratio);
}

fn with_peers(ratio: f64) -> KeepOptions {
    KeepOptions { has_peers: true, ..Bench::quiet(ratio) }
}

#[test]
fn a_word_from_above_names_the_trace_and_goes_on_below() {
    let mut bench = Bench::new(with_peers(0.0));
    let word = Word {
        rpc: SpanId(5),
        trace: Some(SpanId(1).as_root_trace()),
        probability: 0.01,
        reason: KeepReason::Ratio,
    };
    // One span before the word, one after.
    bench.add(fragment(span(5, 6, &[Side::Client], 1_000)));
    assert_eq!((bench.kept().len(), bench.words().len()), (0, 0));
    bench.keeper.hear(word, &mut bench.out, bench.now_ns);
    bench.add(fragment(span(5, 5, &[Side::Server], 1_000)));
    for span in &bench.out {
        assert!(!span.flags.contains(SpanFlags::FRAGMENT));
        assert!((span.probability - 0.01).abs() < 1e-9);
    }
    assert_eq!(bench.kept(), [(1, 6, KeepReason::Ratio), (1, 5, KeepReason::Ratio)]);
    assert_eq!(bench.words(), [Word { rpc: SpanId(6), ..word }]);
    // Heard again it changes nothing.
    bench.keeper.hear(word, &mut bench.out, bench.now_ns);
    assert_eq!((bench.kept().len(), bench.words().len()), (0, 0));
    assert_eq!(bench.keeper.counters().words_heard, 1);
}

#[test]
fn a_failure_below_asks_above_and_is_named_from_there() {
    let mut below = Bench::new(with_peers(0.0));
    below.add(failed(fragment(span(5, 6, BOTH, 1_000))));
    assert_eq!((below.kept().len(), below.words().len()), (0, 0), "the call from above has not ended");
    below.add(fragment(span(5, 5, &[Side::Server], 1_000)));
    let asked = below.words();
    let question = Word { rpc: SpanId(5), trace: None, probability: 1.0, reason: KeepReason::Error };
    assert_eq!(asked, [question]);
    // The root's agent: its call has not ended yet, and another was held.
    let mut above = Bench::new(with_peers(0.0));
    above.add(span(1, 2, BOTH, 1_000));
    above.keeper.hear(question, &mut above.out, above.now_ns);
    assert_eq!(above.kept(), []);
    above.add(span(1, 5, &[Side::Client], 1_000));
    assert_eq!(above.kept(), [(1, 2, KeepReason::Error), (1, 5, KeepReason::Error)]);
    let answer = above.words();
    assert_eq!(answer.len(), 1);
    below.keeper.hear(answer[0], &mut below.out, below.now_ns);
    assert_eq!(below.kept(), [(1, 6, KeepReason::Error), (1, 5, KeepReason::Error)]);
}

#[test]
fn what_no_word_reaches_keeps_its_own_name_and_reason() {
    let mut bench = Bench::new(with_peers(0.0));
    bench.add(failed(fragment(span(5, 5, &[Side::Server], 1_000))));
    assert_eq!(bench.kept(), []);
    bench.pass(6_000);
    assert!(bench.out.iter().all(|span| span.flags.contains(SpanFlags::FRAGMENT)));
    assert_eq!(bench.kept(), [(5, 5, KeepReason::Error)]);
    let sampled = id(1_000, 0.5, true);
    let mut bench = Bench::new(with_peers(0.5));
    bench.add(fragment(span(sampled, sampled, &[Side::Server], 1_000)));
    assert_eq!(bench.kept(), []);
    bench.pass(6_000);
    assert_eq!(bench.kept(), [(sampled, sampled, KeepReason::Unconfirmed)]);
}

#[test]
fn what_an_agent_that_is_there_does_not_say_is_not_kept() {
    #[derive(Debug)]
    struct Known(bool);
    impl Reach for Known {
        fn reaches(&self, address: IpAddr) -> bool {
            assert!(address.is_loopback(), "the caller of these spans");
            self.0
        }
    }
    let sampled = id(1, 0.5, true);
    for is_there in [false, true] {
        let mut bench = Bench::new(with_peers(0.5));
        bench.keeper.set_reach(Arc::new(Known(is_there)));
        // The inner span is older than the one that came from above.
        bench.add(fragment(span(sampled, 1_000_000, BOTH, 1_000)));
        bench.add(fragment(span(sampled, sampled, &[Side::Server], 1_000)));
        bench.pass(6_000);
        assert_eq!(bench.kept().len(), if is_there { 0 } else { 2 });
    }
}

#[test]
fn words_about_nothing_are_forgotten() {
    let mut bench = Bench::new(with_peers(0.0));
    let word = |rpc| Word { rpc: SpanId(rpc), trace: None, probability: 1.0, reason: KeepReason::Slow };
    for rpc in 0..WORDS_MAX as u64 + 10 {
        bench.keeper.hear(word(rpc), &mut bench.out, bench.now_ns);
    }
    assert_eq!((bench.keeper.words.len(), bench.keeper.counters().words_lost), (WORDS_MAX, 10));
    bench.pass(6_000);
    assert!(bench.keeper.words.is_empty() && bench.keeper.trees.is_empty());
}

#[test]
fn any_order_of_spans_and_words_leaves_nothing_behind() {
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    for _ in 0..200 {
        let options = KeepOptions { slow: true, budget_per_s: 3.0, ..with_peers(0.2) };
        let mut bench = Bench { keeper: Keeper::new(options, HOLD_NS, 50), now_ns: 0, out: Vec::new() };
        let mut n_added = 0;
        for _ in 0..300 {
            let trace = 1 + rng.next_u64() % 20;
            let id = if rng.next_u32().is_multiple_of(3) { trace } else { 100 + rng.next_u64() % 400 };
            match rng.next_u32() % 8 {
                0 => {
                    let trace =
                        rng.next_u32().is_multiple_of(2).then(|| SpanId(rng.next_u64() % 20).as_root_trace());
                    let word = Word { rpc: SpanId(id), trace, probability: 0.5, reason: KeepReason::Slow };
                    bench.keeper.hear(word, &mut bench.out, bench.now_ns);
                }
                1 => bench.pass(rng.next_u64() % 2_000),
                kind => {
                    let ends: &[Side] = [BOTH, &[Side::Client], &[Side::Server]][kind as usize % 3];
                    let mut span = span(trace, id, ends, rng.next_u64() % HOLD_NS);
                    if kind == 2 {
                        span = failed(span);
                    }
                    bench.add(if trace.is_multiple_of(2) { fragment(span) } else { span });
                    n_added += 1;
                }
            }
            assert!(bench.keeper.held() <= 50);
        }
        bench.keeper.finish(&mut bench.out);
        assert_eq!(bench.out.len() as u64 + bench.keeper.counters().forgotten, n_added);
        assert_eq!((bench.keeper.held(), bench.keeper.trees.is_empty()), (0, true));
    }
}
