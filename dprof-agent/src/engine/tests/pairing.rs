//! Requests and responses of one connection.

use super::stage::{PAIR, check, check_with, config, half, run};

#[test]
fn both_ends_of_an_rpc_become_one_span() {
    let run = check(
        &format!(
            "{PAIR}
            10 c send Q3:get
            12 s recv Q3:get arr=11
            15 s send A2:ok
            17 c recv A2:ok arr=16"
        ),
        "get ok c=10..17 s=11..15 edge",
    );
    assert_eq!((run.counters.messages, run.counters.spans, run.counters.held), (4, 1, 0));
    let (client, server) = (half(&run, "get", "c"), half(&run, "get", "s"));
    assert_eq!((client.request_bytes, client.response_bytes), (6, 5));
    assert_eq!((client.protocol.as_ref(), client.query_text.as_str()), ("toy", "get"));
    assert_eq!(client.process.comm, "comm");
    // Numbers in the order of capture.
    let ids = [
        client.request_message_id,
        server.request_message_id,
        server.response_message_id,
        client.response_message_id,
    ];
    assert_eq!(ids.map(|id| id.0), [1, 2, 3, 4]);
}

#[test]
fn failures_carry_the_protocols_word() {
    check(&format!("{PAIR}\n 10 c send Q3:get\n 17 c recv E5:WRONG"), "get error:WRONG c=10..17 edge");
}

#[test]
fn pipelined_requests_pair_in_order_and_share_their_call() {
    check(
        &format!(
            "{PAIR}
            10 c send Q1:aQ1:bO1:nQ1:c
            20 c recv A1:xA1:y
            21 c recv A1:z"
        ),
        "a ok c=10..20 edge batch=4
         b ok c=10..20 edge batch=4
         n one_way c=10..10 edge batch=4
         c ok c=10..21 edge batch=4",
    );
}

#[test]
fn a_thousand_requests_in_one_call_are_a_thousand_spans() {
    let (requests, answers) = ("Q1:a".repeat(1000), "A1:x".repeat(1000));
    let run = run(&format!(
        "{PAIR}
        10 c send {requests}
        12 s recv {requests}
        15 s send {answers}
        17 c recv {answers}"
    ));
    assert_eq!(run.out.spans.len(), 1000);
    assert!(run.out.spans.iter().all(|span| span.client.is_some() && span.server.is_some()));
    assert!(run.out.spans.iter().all(|span| span.server.as_ref().is_some_and(|half| half.batch == 1000)));
    assert_eq!(run.counters.open_requests, 0);
}

#[test]
fn ids_pair_out_of_order() {
    check(
        &format!(
            "{PAIR}
            10 c send Q#1,1:aQ#2,1:b
            20 c recv A#2,1:x
            30 c recv A#1,1:y
            40 c recv A#1,1:y"
        ),
        "a ok c=10..30 edge batch=2
         b ok c=10..20 edge batch=2",
    );
}

#[test]
fn a_request_split_over_many_reads_is_one_message() {
    check(
        &format!(
            "{PAIR}
            10 s recv Q arr=9
            11 s recv 3 arr=10
            12 s recv :g arr=11
            13 s recv e arr=12
            14 s recv t arr=13
            15 s send A
            16 s send 2:
            17 s send ok"
        ),
        "get ok s=9..17 edge",
    );
}

#[test]
fn one_byte_per_write_of_a_long_request_keeps_first_and_last() {
    let mut script = format!("{PAIR}\n 10 c send Q3000:");
    for at in 0..3000 {
        script += &format!("\n {} c send x", 11 + at);
    }
    script += "\n 4000 c recv A1:x";
    let run = run(&script);
    let half = &run.out.spans[0].client.as_ref().expect("client");
    assert_eq!(half.request_bytes, 3006);
    assert_eq!(
        half.times.request_last_ns.expect("known") - half.times.request_first_ns.expect("known"),
        3_000_000
    );
    assert!(run.counters.timelines_merged > 0);
}

#[test]
fn pushes_are_counted_and_not_paired() {
    let run = check(
        &format!("{PAIR}\n 10 c send Q3:get\n 15 c recv P4:news\n 17 c recv A2:ok"),
        "get ok c=10..17 edge",
    );
    assert_eq!(run.counters.pushes, 1);
}

#[test]
fn response_before_request_is_counted_not_paired() {
    let run = check(
        "0 c open old_active 10.0.0.1:5000 10.0.0.2:6379
         10 c recv A2:ok
         20 c send Q3:get
         30 c recv A2:ok",
        // Others may be on their way.
        "get ok c=20..30 edge c:incomplete+paired_across_gap+role_guessed",
    );
    assert_eq!(run.counters.responses_without_request, 1);
    // On a known client the answer waits for its request, but only for one that left before it came.
    let run = check(
        &format!(
            "{PAIR}\n 10 c send Q1:a\n 11 c recv A1:x\n 12 c recv A1:y arr=12\n 20 c send Q1:b\n 30 c recv A1:z"
        ),
        "a ok c=10..11 edge
         b ok c=20..30 edge c:incomplete+paired_across_gap",
    );
    assert_eq!(run.counters.responses_without_request, 1);
}

#[test]
fn an_answer_read_before_its_requests_hook_ran_is_paired() {
    // Thread 1 sent at 20, but its hook ran after thread 9 had read the answer.
    let run = check(
        &format!(
            "{PAIR}
            10 c send Q1:a
            11 c recv A1:x
            30 c recv A1:y th=1/9 arr=29
            20 c send Q1:b
            40 c send Q1:c
            50 c recv A1:z"
        ),
        "a ok c=10..11 edge
         b ok c=20..30 edge
         c ok c=40..50 edge",
    );
    assert_eq!(run.counters.responses_early, 1);
}

#[test]
fn close_and_reset_end_open_requests() {
    check(
        &format!("{PAIR}\n 10 c send Q1:aQ1:b\n 15 c recv A1:x\n 20 c close"),
        "a ok c=10..15 edge batch=2
         b no_reply c=10..20 edge batch=2",
    );
    check(&format!("{PAIR}\n 10 c send Q1:a\n 20 c close reset"), "a reset c=10..20 edge");
}

#[test]
fn a_request_times_out_and_its_late_answer_is_not_given_to_the_next() {
    let run = check(
        &format!(
            "{PAIR}
            10 c send Q4:slow
            500000 c send Q4:next
            1100000 - tick
            1200000 c recv A1:x
            1200010 c recv A1:y"
        ),
        "slow timeout c=10..1100000 edge
         next ok c=500000..1200010 edge",
    );
    assert_eq!((run.counters.timeouts, run.counters.responses_late), (1, 1));
}

#[test]
fn a_lost_close_ends_with_the_limit_of_connections() {
    let mut config = config();
    config.connections_max = 2;
    let run = check_with(
        &config,
        &format!(
            "{PAIR}
            10 c send Q1:a
            11 s recv Q1:a
            20 d open active 10.0.0.1:5001 10.0.0.2:6379"
        ),
        // The least recently used one is forgotten and its request ends. The other half is still open.
        "a unknown c=10..20 edge",
    );
    let counters = run.counters;
    assert_eq!((counters.connections_forgotten, counters.connections, counters.open_requests), (1, 2, 1));
}

#[test]
fn a_socket_that_connects_again_under_its_cookie_starts_anew() {
    let mut stage = super::stage::Stage::of(
        "0 c open active 10.0.0.1:5000 10.0.0.2:6379
         10 c send Q1:a",
    );
    let again = super::stage::Stage::of(
        "20 c open active 10.0.0.1:5001 10.0.0.2:6379
         30 c send Q1:b
         40 c recv A1:x",
    );
    stage.records.extend(again.records);
    let mut engine = crate::engine::Engine::with_protocols(config(), super::toy::PROTOCOLS);
    let mut out = crate::engine::Output::default();
    stage.blocks(2).iter().for_each(|block| engine.push(block, &mut out));
    engine.finish(&mut out);
    let text = super::stage::show(&out.spans);
    assert_eq!(text, "a no_reply c=10..20 edge\nb ok c=30..40 edge\n");
}

#[test]
fn open_requests_are_listed_oldest_first() {
    let run = check(&format!("{PAIR}\n 10 c send Q1:aQ1:b\n 30 s recv Q1:a\n 50 - tick"), "");
    let open = run.engine.open_requests(2);
    let text: Vec<_> = open.iter().map(|r| (r.operation.as_str(), r.kind.name(), r.age_ns)).collect();
    assert_eq!(text, [("a", "client", 40_000), ("b", "client", 40_000)]);
    assert_eq!(run.engine.open_requests(9).len(), 3);
    assert_eq!(run.counters.open_requests, 3);
}

#[test]
fn a_switch_detects_again_and_opaque_ends_all() {
    let run = check(
        &format!(
            "{PAIR}\n 10 c send U2:up\n 20 c recv A1:x\n 30 c send Q1:a\n 40 c recv A1:y\n 50 c send Z1:z\n 60 c recv A1:w"
        ),
        "up ok c=10..20 edge
         a ok c=30..40 edge",
    );
    assert_eq!(run.out.payload_limits.last(), Some(&(1, 0)));
    assert_eq!(run.counters.unrecognised, 0);
}

#[test]
fn a_mistaken_detection_takes_its_requests_back() {
    let run = check(&format!("{PAIR}\n 10 c send Q1:aM1:m\n 20 c recv A1:x\n 30 c close"), "");
    assert_eq!((run.counters.mistaken, run.counters.open_requests), (1, 0));
}
