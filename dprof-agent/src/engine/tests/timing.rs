//! Times of messages and the split made of them.

use dprof_common::model::{Status, split};

use super::stage::{PAIR, check, check_with, config, half, run, script_us};

#[test]
fn five_messages_ten_milliseconds_apart_read_at_once_have_their_own_queues() {
    let run = run(&format!(
        "{PAIR}
        50000 s recv Q1:aQ1:bQ1:cQ1:dQ1:e seg=4:1000,8:11000,12:21000,16:31000,20:41000
        51000 s send A1:xA1:xA1:xA1:xA1:x"
    ));
    let queues: Vec<_> = run
        .out
        .spans
        .iter()
        .map(|span| split(span).server_queue_ns.expect("both times are known") / 1_000_000)
        .collect();
    assert_eq!(queues, [49, 39, 29, 19, 9]);
}

#[test]
fn the_parts_sum_to_the_clients_duration() {
    let run = check(
        &format!(
            "{PAIR}
            100 c send Q3:get
            160 s recv Q3:get arr=110
            200 s send A2:o
            230 s send k
            300 c recv A2:ok seg=4:220,5:250"
        ),
        "get ok c=100..300 s=110..230 edge",
    );
    let split = split(&run.out.spans[0]);
    let us = |part: Option<i64>| part.map(|ns| ns / 1000);
    assert_eq!(us(split.request_send_ns), Some(0));
    // Away from 100 to 220, of which the server had it from 110 to 200.
    assert_eq!(us(split.network_ns), Some(30));
    assert_eq!(us(split.server_queue_ns), Some(50));
    assert_eq!(us(split.service_ns), Some(40));
    assert_eq!(us(split.streaming_ns), Some(30));
    assert_eq!(us(split.client_queue_ns), Some(50));
    assert_eq!(split.remainder_ns, 0);
    assert!(!split.approximate);
}

#[test]
fn a_part_that_is_not_known_makes_the_split_approximate() {
    // The request's first departure and its last are not known: how long it was sent is in no part.
    let run = run(&format!(
        "{PAIR}
        100 c send Q3:get unsent=4
        160 s recv Q3:get arr=110
        200 s send A2:ok
        300 c recv A2:ok arr=220"
    ));
    let split = split(&run.out.spans[0]);
    assert_eq!(split.request_send_ns, None);
    assert!(split.approximate);
}

#[test]
fn bytes_that_have_not_departed_have_no_departure() {
    let run = run(&format!("{PAIR}\n 10 c send Q3:get unsent=2\n 20 c recv A1:x"));
    let times = half(&run, "get", "c").times;
    assert_eq!(times.request_first_ns.map(script_us), Some(10));
    assert_eq!(times.request_last_ns, None);
}

#[test]
fn a_large_send_starts_when_its_first_segment_left() {
    let run = check(
        &format!("{PAIR}\n 90 c send Q67108864:set pay=13 size=67108874 first=10\n 99 c recv A1:x"),
        "set ok c=10..99 edge",
    );
    let times = half(&run, "set", "c").times;
    assert_eq!(times.request_first_ns.map(script_us), Some(10));
    assert_eq!(times.request_last_ns.map(script_us), Some(90));
}

#[test]
fn unknown_arrivals_are_none_and_the_read_starts_the_half() {
    let run = check(&format!("{PAIR}\n 10 s recv Q3:get noarr\n 20 s send A1:x"), "get ok s=10..20 edge");
    let times = half(&run, "get", "s").times;
    assert_eq!((times.request_first_ns, times.request_last_ns), (None, None));
    assert_eq!(times.request_read_ns.map(script_us), Some(10));
}

#[test]
fn a_large_value_needs_its_first_bytes_only() {
    let run = check(
        &format!(
            "{PAIR}
            10 c send Q67108864:set pay=13 size=40000000
            50 c send - pay=0 size=27108874
            90 c recv A1:x
            91 c send Q1:b
            92 c recv A1:x"
        ),
        "set ok c=10..90 edge c:request_time_approximate
         b ok c=91..92 edge",
    );
    assert_eq!(half(&run, "set", "c").request_bytes, 67_108_874);
    assert_eq!(run.counters.gaps, 0);
}

#[test]
fn a_large_reply_streams() {
    let run = run(&format!(
        "{PAIR}
        10 s recv Q1:a
        20 s send A1000000: pay=9 size=500000
        80 s send - pay=0 size=500009"
    ));
    let half = half(&run, "a", "s");
    assert_eq!(half.response_bytes, 1_000_009);
    assert_eq!(half.times.response_first_ns.map(script_us), Some(20));
    assert_eq!(half.times.response_last_ns.map(script_us), Some(80));
    let names: Vec<_> = half.flags.names().collect();
    assert_eq!(names, ["response_time_approximate"]);
}

#[test]
fn flags_of_the_hook_reach_the_half() {
    check(
        &format!("{PAIR}\n 10 c send Q1:a approx\n 20 c recv A1:x"),
        "a ok c=10..20 edge c:request_time_approximate",
    );
}

#[test]
fn contradicting_times_are_counted_and_marked() {
    let run = check(
        &format!("{PAIR}\n 30 c send Q1:a\n 40 c recv A1:x arr=20"),
        "a ok c=30..40 edge c:request_time_approximate",
    );
    assert_eq!(run.counters.times_contradictory, 1);
}

#[test]
fn offset_and_drift_move_wall_times_only() {
    let script = format!(
        "{PAIR}\n 10 c send Q1:a\n 12 s recv Q1:a\n 14 s send A1:x\n 17 c recv A1:x
        1000000 - tick
        1000010 c send Q1:b\n 1000017 c recv A1:x"
    );
    let mut config = config();
    config.clock_offset_ns = 3_000_000;
    config.clock_drift_ppm = 100.0;
    check_with(
        &config,
        &script,
        // 100 ppm of a second are 100 µs.
        "a ok c=3010..3017 s=3011..3014 edge
         b ok c=1003110..1003117 edge",
    );
}

#[test]
fn retransmissions_mark_the_messages_they_touch() {
    let run = check(
        &format!(
            "{PAIR}
            10 c send Q1:a
            11 c resent 0 4
            12 s recv Q1:a
            15 s send A1:x
            16 s resent 0 4
            17 s resent 0 4
            20 c recv A1:x
            21 c send Q1:b
            22 c recv A1:y"
        ),
        "a ok c=10..20 s=11..15 edge c:retransmitted s:retransmitted
         b ok c=21..22 edge",
    );
    assert_eq!((half(&run, "a", "c").retransmits, half(&run, "a", "s").retransmits), (1, 2));
}

#[test]
fn connect_time_belongs_to_the_first_rpc() {
    let run = run("0 c open active 10.0.0.1:5000 10.0.0.2:6379 connect=7
         10 c send Q1:aQ1:b
         20 c recv A1:xA1:y");
    assert_eq!((half(&run, "a", "c").connect_ns, half(&run, "b", "c").connect_ns), (Some(7_000), None));
    assert_eq!(half(&run, "a", "c").srtt_us, 50);
}

#[test]
fn unknown_protocols_are_cut_by_direction_when_asked() {
    let script = "
        0 c open active 10.0.0.1:5000 10.0.0.2:7777
        10 c send \u{1}\u{2}\u{3}
        12 c send \u{4}
        20 c recv \u{5}
        22 c recv \u{6}
        30 c send \u{1}
        40 c recv \u{5}
        9000000 - tick";
    let run_off = check(script, "");
    assert_eq!((run_off.counters.unrecognised, run_off.out.payload_limits.as_slice()), (1, &[(1, 256)][..]));
    let mut config = config();
    config.unknown = true;
    let run = check_with(
        &config,
        script,
        "port 7777 unknown c=10..22 edge
         port 7777 unknown c=30..40 edge",
    );
    assert_eq!(run.out.payload_limits, [(1, 256)]);
    assert!(run.out.spans.iter().all(|span| {
        span.client.as_ref().is_some_and(|half| half.protocol == "unknown" && half.status == Status::Unknown)
    }));
}

#[test]
fn the_payload_limit_is_asked_for_in_classes() {
    let run = run(&format!("{PAIR}\n 10 c send Q1:a\n 20 c recv A1:x\n 30 c send Q1:b"));
    // The toy wants 1000 bytes of requests and 100 of answers.
    assert_eq!(run.out.payload_limits, [(1, 1024)]);
}
