//! Gaps, overlaps, second writers: nothing is silently mispaired.

use dprof_common::model::HalfFlags;

use super::stage::{PAIR, Stage, check, config};
use crate::engine::{Engine, Output};

/// A client that is known to wait for each answer.
const ONE_AT_A_TIME: &str = "
    1 c send Q1:0\n 2 c recv A1:0\n 1 c send Q1:0\n 2 c recv A1:0\n 1 c send Q1:0\n 2 c recv A1:0
    1 c send Q1:0\n 2 c recv A1:0\n 1 c send Q1:0\n 2 c recv A1:0\n 1 c send Q1:0\n 2 c recv A1:0
    1 c send Q1:0\n 2 c recv A1:0\n 1 c send Q1:0\n 2 c recv A1:0";
const ONE_AT_A_TIME_SPANS: &str = "
    0 ok c=1..2 edge\n 0 ok c=1..2 edge\n 0 ok c=1..2 edge\n 0 ok c=1..2 edge
    0 ok c=1..2 edge\n 0 ok c=1..2 edge\n 0 ok c=1..2 edge\n 0 ok c=1..2 edge";

#[test]
fn two_writers_on_one_socket_are_settled_by_their_sizes() {
    // Thread 1 wrote [0, 4), thread 2 [4, 8); thread 1's hook ran late and saw both.
    let run = check(
        &format!(
            "{PAIR}
            10 c send Q1:a end=8
            11 c send Q1:b th=1/2
            20 c recv A1:xA1:y"
        ),
        "a ok c=10..20 edge
         b ok c=11..20 edge",
    );
    assert_eq!((run.counters.reordered, run.counters.gaps), (1, 0));
    // Thread 2's hook ran first: its event comes first, at the later position.
    let run = check(
        &format!(
            "{PAIR}
            10 c send Q1:b end=8
            11 c send Q1:a th=1/2 end=4
            20 c recv A1:xA1:y"
        ),
        "b ok c=10..20 edge
         a ok c=11..20 edge",
    );
    assert_eq!((run.counters.reordered, run.counters.gaps), (1, 0));
    assert!(run.out.spans.iter().all(|span| span.client.as_ref().is_some_and(|half| half.batch == 1)));
}

#[test]
fn a_call_in_the_other_direction_waits_its_turn_behind_a_held_one() {
    let run = check(
        &format!(
            "{PAIR}
            10 c send Q1:a
            11 c send Q1:b end=12
            12 c recv A1:x
            13 c send Q1:c th=1/2
            20 c recv A1:yA1:z"
        ),
        "a ok c=10..12 edge
         b ok c=11..20 edge
         c ok c=13..20 edge",
    );
    assert_eq!(run.counters.reordered, 1);
}

#[test]
fn a_lost_answer_of_one_thing_at_a_time_spoils_no_other() {
    let run = check(
        &format!(
            "{PAIR}{ONE_AT_A_TIME}
            10 c send Q1:a
            20 c recv A1:x lost
            30 c send Q1:b
            40 c recv A1:y
            20000 - tick
            20030 c send Q1:c
            20040 c recv A1:z"
        ),
        // The answer to b shows the gap before it: a was answered there, or b would not have been asked. The toy
        // says that a message found again is incomplete, and its status is not believed.
        &format!(
            "{ONE_AT_A_TIME_SPANS}
         a unknown c=10..30 edge c:incomplete
         b unknown c=30..40 edge c:incomplete+paired_across_gap
         c ok c=20030..20040 edge"
        ),
    );
    assert_eq!((run.counters.gaps, run.counters.gap_bytes, run.counters.boundaries_lost), (1, 4, 1));
    assert_eq!((run.counters.paired_across_gap, run.counters.unpaired_after_loss), (0, 1));
}

#[test]
fn several_lost_answers_and_requests_of_one_thing_at_a_time_spoil_no_other() {
    check(
        &format!(
            "{PAIR}{ONE_AT_A_TIME}
            10 c send Q1:a
            11 c recv A1:x lost
            12 c send Q1:b
            13 c recv A1:x lost
            14 c send Q1:c lost
            15 c recv A1:x lost
            16 c send Q1:d
            17 c recv A1:y
            18 c send Q1:e
            19 c recv A1:z"
        ),
        &format!(
            "{ONE_AT_A_TIME_SPANS}
         a unknown c=10..12 edge c:incomplete
         b unknown c=12..16 edge c:incomplete
         d unknown c=16..17 edge c:incomplete+paired_across_gap
         e ok c=18..19 edge"
        ),
    );
}

#[test]
fn a_lost_answer_before_anything_is_known_marks_until_silence() {
    let run = check(
        &format!(
            "{PAIR}
            10 c send Q1:a
            20 c recv A1:x lost
            30 c send Q1:b
            40 c recv A1:y
            20000 - tick
            20050 c send Q1:c
            20060 c recv A1:z"
        ),
        // Two are open, and which of them the answer is for cannot be told. (The call after it settles the gap.)
        "a unknown c=10..40 edge c:incomplete+paired_across_gap
         b unknown c=30..40 edge c:incomplete
         c ok c=20050..20060 edge",
    );
    assert_eq!((run.counters.paired_across_gap, run.counters.unpaired_after_loss), (1, 1));
}

#[test]
fn a_lost_request_leaves_an_answer_without_one() {
    let run = check(
        &format!(
            "{PAIR}
            10 s recv Q1:a
            12 s send A1:x
            20 s recv Q1:b lost
            22 s send A1:y
            30 s recv Q1:c
            32 s send A1:z
            20000 - tick
            20060 s recv Q1:d
            20062 s send A1:w"
        ),
        "a ok s=9..12 edge
         c ok s=29..32 edge s:incomplete+paired_across_gap
         d ok s=20059..20062 edge",
    );
    assert_eq!((run.counters.gaps, run.counters.responses_without_request), (1, 1));
}

#[test]
fn a_pipelining_connection_stays_uncertain_until_it_was_silent() {
    let run = check(
        &format!(
            "{PAIR}
            10 c send Q1:aQ1:bQ1:c
            20 c recv A1:x lost
            21 c recv A1:y
            5000 c send Q1:d
            30000 - tick
            30001 c recv A1:z
            60000 c send Q1:e
            60010 c recv A1:w"
        ),
        "a unknown c=10..21 edge batch=3 c:incomplete+paired_across_gap
         b ok c=10..30001 edge batch=3 c:incomplete+paired_across_gap
         c unknown c=10..30001 edge batch=3 c:incomplete
         d unknown c=5000..30001 edge
         e ok c=60000..60010 edge",
    );
    assert_eq!(run.counters.paired_across_gap, 2);
}

/// An older connection was silent; then come pipelined commands of which only the answer tells that they are memcached's.
#[test]
fn silence_before_the_first_call_makes_the_order_certain_though_the_protocol_is_told_later() {
    let flags = |silence_us: u64| {
        let mut stage = Stage::of("0 c open old_active 10.0.0.1:5000 10.0.0.2:6000 th=7/7 at=100/200");
        let calls: [(u64, bool, &[u8]); 4] = [
            (10, true, b"incr a 1\r\n"),
            (20, true, b"incr b 1\r\n"),
            (30, false, b"1\r\n"),
            (40, false, b"2\r\n"),
        ];
        for (at_us, is_send, bytes) in calls {
            stage.call((silence_us + at_us) * 1000, "c", is_send, bytes, &[]);
        }
        let mut engine = Engine::new(config());
        let mut out = Output::default();
        for block in stage.blocks(usize::MAX) {
            engine.push(&block, &mut out);
        }
        engine.finish(&mut out);
        let halves = out.spans.iter().filter_map(|span| span.client.as_ref());
        let flags: Vec<_> = halves.map(|half| half.flags.contains(HalfFlags::PAIRED_ACROSS_GAP)).collect();
        assert_eq!(flags.len(), 2, "{:#?}", out.spans);
        flags
    };
    assert_eq!(flags(100), [true, true], "what was asked before may not be answered yet");
    assert_eq!(flags(100_000), [false, false], "nothing is under way after silence");
}

#[test]
fn a_gap_inside_a_body_costs_nothing() {
    let run = check(
        &format!(
            "{PAIR}
            10 c send Q9:0123
            11 c send 45 lost
            12 c send 678
            20000 - tick
            20001 c recv A1:x"
        ),
        // The operation is the body, of which a part is missing.
        "0123678 ok c=10..20001 edge",
    );
    assert_eq!((run.counters.gaps, run.counters.boundaries_lost), (1, 0));
}

#[test]
fn data_that_comes_twice_or_backwards_is_dropped() {
    let run = check(
        &format!(
            "{PAIR}
            10 c send Q1:a
            11 c send Q1:a end=4
            12 c send Q1:b end=6
            20000 - tick
            20001 c recv A1:x"
        ),
        "a ok c=10..20001 edge c:incomplete+paired_across_gap",
    );
    assert_eq!((run.counters.gaps, run.counters.overlaps), (0, 2));
}

#[test]
fn bytes_that_left_unseen_before_the_close_make_the_status_unknown() {
    check(
        &format!("{PAIR}\n 10 s recv Q1:a\n 12 s send A1:x lost\n 20 s close"),
        "a unknown s=9..20 edge s:incomplete",
    );
    check(&format!("{PAIR}\n 10 s recv Q1:a\n 20 s close"), "a no_reply s=9..20 edge");
}

#[test]
fn garbage_before_and_between_messages_is_skipped() {
    let run = check(
        &format!(
            "{PAIR}\n 10 c send Q1:a\n 11 c send ????\n 12 c send Q1:b\n 20 c recv A1:x\n 21 c recv A1:y"
        ),
        "a ok c=10..20 edge c:incomplete+paired_across_gap
         b ok c=12..21 edge c:incomplete+paired_across_gap",
    );
    assert_eq!(run.counters.boundaries_lost, 1);
}

#[test]
fn a_connection_joined_within_a_message_starts_at_the_next() {
    let run = check(
        "0 s open old_passive 10.0.0.2:6379 10.0.0.1:5000 at=900/5000
         0 - listen 6379
         10 s recv restofabody
         12 s send A1:x
         20 s recv Q1:a
         22 s send A1:y",
        // An answer to nobody: others may be on their way.
        "a ok s=19..22 edge fragment s:incomplete+paired_across_gap",
    );
    assert_eq!(run.counters.responses_without_request, 1);
}

#[test]
fn positions_that_are_not_the_wires_are_counted_by_size() {
    // Each call moves the stream 29 bytes further than its size, as kTLS does.
    let mut script = PAIR.to_owned();
    let mut end = 0;
    for n in 0..120 {
        end += 4 + 29;
        script += &format!("\n {} c send Q1:a end={end}", 1000 + 10 * n);
        script += &format!("\n {} c recv A1:x", 1005 + 10 * n);
    }
    let run = super::stage::run(&script);
    assert_eq!(run.counters.positions_counted, 1);
    let last = run.out.spans.last().and_then(|span| span.client.as_ref()).expect("a client half");
    assert!(last.flags.names().any(|name| name == "no_stream_position"));
    assert_eq!(super::stage::script_us(last.times.start_ns), 1000 + 10 * 119);
    assert_eq!(super::stage::script_us(last.times.end_ns), 1005 + 10 * 119);
}

#[test]
fn events_of_unknown_sockets_are_counted() {
    let mut stage =
        super::stage::Stage::of(&format!("{PAIR}\n 10 c send Q1:a\n 20 c recv A1:x\n 30 c close"));
    stage.records.retain(|record| record[0] != dprof_common::event::EventKind::Open as u8);
    let mut engine = crate::engine::Engine::with_protocols(super::stage::config(), super::toy::PROTOCOLS);
    let mut out = crate::engine::Output::default();
    stage.blocks(2).iter().for_each(|block| engine.push(block, &mut out));
    assert_eq!((engine.counters().calls_without_socket, engine.counters().connections), (2, 0));
}
