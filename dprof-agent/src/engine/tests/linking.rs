//! Trees: causes, traces, roots, fragments.

use super::stage::check;

/// A proxy on this host between a client and a server, all watched. Thread 2/2 of the proxy does everything.
const CHAIN: &str = "
    0 c open active 10.0.0.1:5000 10.0.0.2:80 th=1/1
    0 p open passive 10.0.0.2:80 10.0.0.1:5000 th=2/2
    0 q open active 10.0.0.2:5001 10.0.0.3:6379 th=2/2
    0 s open passive 10.0.0.3:6379 10.0.0.2:5001 th=3/3
";

#[test]
fn a_call_by_the_thread_that_holds_the_request_is_linked() {
    let run = check(
        &format!(
            "{CHAIN}
            10 c send Q4:page
            12 p recv Q4:page
            13 q send Q3:get
            15 s recv Q3:get
            16 s send A1:x
            18 q recv A1:x
            20 q send Q3:set
            22 s recv Q3:set
            23 s send A1:x
            25 q recv A1:x
            30 p send A1:y
            33 c recv A1:y
            40 q send Q4:ping
            45 s recv Q4:ping
            46 s send A1:x
            50 q recv A1:x"
        ),
        "page ok c=10..33 s=11..30 edge
         get ok c=13..18 s=14..16 <page in:page
         set ok c=20..25 s=21..23 <page in:page
         ping ok c=40..50 s=44..46 unlinked",
    );
    assert_eq!((run.counters.links, run.counters.held), (2, 0));
}

#[test]
fn two_open_requests_on_a_thread_link_nothing() {
    check(
        &format!(
            "{CHAIN}
            12 p recv Q1:aQ1:b
            13 q send Q3:get
            18 q recv A1:x
            30 p send A1:yA1:y"
        ),
        "a ok s=11..30 edge batch=2
         b ok s=11..30 edge batch=2
         get ok c=13..18 unlinked",
    );
}

#[test]
fn a_request_from_afar_roots_a_fragment_that_its_calls_share() {
    check(
        "0 p open passive 10.0.0.2:80 192.0.2.9:5000 th=2/2
         0 q open active 10.0.0.2:5001 192.0.2.8:6379 th=2/2
         12 p recv Q4:page
         13 q send Q3:get
         18 q recv A1:x
         30 p send A1:y
         31 - tick
         900000 - tick",
        "page ok s=11..30 edge fragment
         get ok c=13..18 <page in:page fragment",
    );
}

#[test]
fn the_root_adopts_the_id_in_its_message_and_others_keep_theirs_as_attribute() {
    let run = check(
        &format!(
            "{CHAIN}
            10 c send Q10:trace=abcd
            12 p recv Q10:trace=abcd
            13 q send Q10:trace=1234
            18 q recv A1:x
            30 p send A1:y
            33 c recv A1:y"
        ),
        "trace=abcd ok c=10..33 s=11..30 edge in:abcd
         trace=1234 ok c=13..18 <trace=abcd in:abcd",
    );
    let call = run.out.spans.iter().find(|span| span.link.is_some()).expect("a linked span");
    let attributes = &call.client.as_ref().expect("client half").attributes;
    assert_eq!(attributes.len(), 1);
    assert_eq!(attributes[0].0, super::super::super::span::window::EXPLICIT_TRACE_ATTRIBUTE);
    assert_eq!(attributes[0].1, format!("{:032x}", 0x1234));
}

#[test]
fn halves_in_any_order_of_capture_meet() {
    // The server's events come before the client's hook reports the send.
    let run = check(
        &format!(
            "{CHAIN}
            12 p recv Q4:page
            14 p send A1:y
            10 c send Q4:page
            20 c recv A1:y"
        ),
        "page ok c=10..20 s=11..14 edge",
    );
    assert_eq!((run.counters.spans, run.counters.spans_alone), (1, 0));
}

#[test]
fn a_half_whose_other_end_is_not_watched_leaves_after_a_moment() {
    let mut run = check(
        &format!("{CHAIN}\n 12 p recv Q4:page\n 14 p send A1:y\n 900000 - tick"),
        "page ok s=11..14 edge",
    );
    assert_eq!((run.counters.spans, run.counters.spans_alone, run.counters.held), (1, 1, 0));
    // It left before the end of the stream.
    let mut out = crate::engine::Output::default();
    run.engine.finish(&mut out);
    assert_eq!(out.spans.len(), 0);
}

#[test]
fn calls_of_a_request_that_stays_open_know_their_trace() {
    check(
        &format!(
            "{CHAIN}
            10 c send Q4:page
            12 p recv Q4:page
            13 q send Q1:a
            15 q recv A1:x
            500000 - tick
            500001 q send Q1:b
            500003 q recv A1:x
            800000 - tick"
        ),
        "a ok c=13..15 <gone in:GONE
         b ok c=500001..500003 <gone in:GONE"
            .replace("GONE", &page_id())
            .as_str(),
    );
}

/// Span id of `page` in [`CHAIN`]: it stays open, so no span shows its name.
fn page_id() -> String {
    let run = super::stage::run(&format!("{CHAIN}\n 10 c send Q4:page\n 12 c recv A1:x"));
    format!("{:x}", run.out.spans[0].span_id.0)
}

#[test]
fn one_way_requests_are_spans_and_cause_nothing() {
    check(
        &format!(
            "{CHAIN}
            12 p recv O4:note
            13 q send Q3:get
            18 q recv A1:x"
        ),
        "note one_way s=11..12 edge
         get ok c=13..18 unlinked",
    );
}
