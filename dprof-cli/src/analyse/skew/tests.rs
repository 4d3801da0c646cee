//! Known offsets, drifts and delays, and what is found from them.

use super::*;
use crate::testing::{T0, rpc};
use dprof_store::conformance::Random;

/// An RPC from `client` to `server` at `at_us`; delays of request and response, microseconds; what the clock of b says
/// at a true time, a's being true.
fn call(id: u64, hosts: [&str; 2], at_us: u64, delays_us: [u64; 2], clock: impl Fn(u64) -> u64) -> Span {
    const SERVICE_NS: u64 = 200_000;
    let asked = T0 + at_us * 1_000;
    let arrived = asked + delays_us[0] * 1_000;
    let answered = arrived + SERVICE_NS;
    let received = answered + delays_us[1] * 1_000;
    let seen = |host: &str, ns: u64| Some(if host == "b" { clock(ns) } else { ns });
    let mut span = rpc(id).hosts(hosts[0], hosts[1]).build();
    let client = &mut span.client.as_mut().expect("seen").times;
    (client.request_last_ns, client.response_first_ns) = (seen(hosts[0], asked), seen(hosts[0], received));
    let server = &mut span.server.as_mut().expect("seen").times;
    (server.request_last_ns, server.response_first_ns) = (seen(hosts[1], arrived), seen(hosts[1], answered));
    span
}

/// A clock that is `offset_ns` ahead at [`T0`] and gains `ppm`.
fn clock(offset_ns: i64, ppm: f64) -> impl Fn(u64) -> u64 + Copy {
    move |ns| {
        let gained = (ns - T0) as f64 * ppm / 1e6;
        ns.wrapping_add_signed(offset_ns + gained as i64)
    }
}

/// Offset and drift of 500 RPCs over 50 s in both directions are right within the stated errors, which are at most
/// these.
#[track_caller]
fn check(offset_ns: i64, ppm: f64, least_us: [u64; 2], error_us: u64, error_ppm: f64) {
    let seed = 20_261_129;
    let mut random = Random::new(seed);
    let b = clock(offset_ns, ppm);
    let mut sum = SkewSum::default();
    for id in 0..500 {
        // Queues on the way add to the least delay, now and then much.
        let mut queued = || if random.one_in(4) { random.below(3_000) } else { random.below(40) };
        let forth = id % 3 != 0;
        let [ab, ba] = [least_us[0] + queued(), least_us[1] + queued()];
        let (hosts, delays) = if forth { (["a", "b"], [ab, ba]) } else { (["b", "a"], [ba, ab]) };
        sum.add(&call(id, hosts, id * 100_000, delays, b));
    }
    let skew = sum.finish();
    let rows = skew.rows();
    let row = &rows[0];
    let said = format!("seed {seed}, {offset_ns} ns and {ppm} ppm: {row:?}");
    assert_eq!((rows.len(), row.rpcs), (1, 500), "{said}");
    assert!((row.drift_ppm - ppm).abs() <= row.drift_error_ppm, "{said}");
    assert!(row.drift_error_ppm <= error_ppm, "{said}");
    for at_s in [0, 10, 25, 40, 50] {
        let at = T0 + at_s * 1_000_000_000;
        let truth = b(at).wrapping_sub(at) as i64;
        let found = skew.offset("a", "b", at).expect("enough RPCs");
        let said = format!("{said}: at {at_s} s {found:?}, true {truth}");
        // A nanosecond for the clock's own steps.
        assert!(found.ns.abs_diff(truth) <= found.error_ns + 1, "{said}");
        assert!(found.error_ns <= error_us * 1_000, "{said}");
        let back = skew.offset("b", "a", at).expect("enough RPCs");
        assert_eq!((back.ns, back.error_ns), (-found.ns, found.error_ns), "{said}");
    }
}

#[test]
fn offset_and_drift_are_found_within_their_stated_errors() {
    check(0, 0.0, [50, 50], 75, 3.0);
    check(3_000_000_000, 100.0, [50, 50], 75, 3.0);
    check(-3_000_000_000, -100.0, [50, 50], 75, 3.0);
    check(86_400_000_000_000, 37.5, [5, 5], 20, 2.0);
}

#[test]
fn delays_of_unequal_ways_are_within_the_stated_error() {
    // 2 ms against 50 us: half of the difference cannot be known, and is in the error.
    check(3_000_000_000, 100.0, [2_000, 50], 1_100, 50.0);
    check(-1_000_000, 0.0, [50, 9_000], 4_700, 200.0);
}

fn sum(spans: &[Span]) -> SkewSum {
    let mut sum = SkewSum::default();
    spans.iter().for_each(|span| sum.add(span));
    sum
}

#[test]
fn an_rpc_of_one_host_or_seen_at_one_end_says_nothing() {
    for span in [rpc(1).hosts("a", "a").build(), rpc(1).client_only().build()] {
        assert!(sum(&[span]).finish().rows().is_empty());
    }
}

#[test]
fn a_steady_offset_is_between_all_rpcs_of_a_pair() {
    let b = clock(-70_000, 0.0);
    let spans = [
        call(1, ["a", "b"], 0, [50, 900], b),
        call(2, ["a", "b"], 1_000, [900, 50], b),
        call(3, ["b", "c"], 1_000, [50, 50], b),
    ];
    let steady = SteadySkew::of(&spans);
    let pairs: Vec<_> = steady.pairs().map(|(hosts, offset)| (hosts.join("-"), offset)).collect();
    // Of b and c there is one RPC only.
    assert_eq!(pairs, [("a-b".to_owned(), Offset { ns: -70_000, error_ns: 50_000 })]);
    assert_eq!((steady.offset_ns("a", "b"), steady.offset_ns("b", "a")), (Some(-70_000), Some(70_000)));
    assert_eq!(steady.offset_ns("b", "c"), None);
    let set =
        [call(1, ["a", "b"], 0, [50, 50], b), call(2, ["a", "b"], 1_000, [50, 50], clock(1_000_000, 0.0))];
    assert_eq!(SteadySkew::of(&set).pairs().count(), 0);
}

#[test]
fn a_clock_that_was_set_meanwhile_has_no_offset() {
    let calls = |at_us, offset_ns| {
        (0..10).map(move |id| call(id, ["a", "b"], at_us + id * 1_000, [50, 50], clock(offset_ns, 0.0)))
    };
    let spans: Vec<Span> = calls(0, 0).chain(calls(1_000_000, 900_000_000)).collect();
    let skew = sum(&spans).finish();
    assert_eq!(skew.offset("a", "b", T0), None);
    assert_eq!((skew.rows()[0].offset_ns, skew.rows()[0].rpcs), (None, 20));
}
