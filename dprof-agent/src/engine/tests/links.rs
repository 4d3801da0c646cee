//! Links through the whole engine: several sockets, late verdicts, losses, relays.

use std::collections::{BTreeMap, VecDeque};

use dprof_common::model::{EvidenceKind, Span, SpanFlags, SpanId};

use super::stage::{Run, config, run, run_with, script_us};

/// A proxy (process 2) between two clients and a server, all on this host. Socket `p`/`r` are the proxy's ends of the
/// clients' connections, `q` its own.
const PROXY: &str = "
    0 c open active 10.0.0.1:5000 10.0.0.2:80 th=1/1
    0 p open passive 10.0.0.2:80 10.0.0.1:5000 th=2/2
    0 d open active 10.0.0.1:5001 10.0.0.2:80 th=1/1
    0 r open passive 10.0.0.2:80 10.0.0.1:5001 th=2/2
    0 q open active 10.0.0.2:6000 10.0.0.3:6379 th=2/2
    0 s open passive 10.0.0.3:6379 10.0.0.2:6000 th=3/3
";

/// The calls that were made by process 2, in the order of their start: `OPERATION@START<OPERATION@START of the cause`,
/// kind, `!` if certain, `detached`.
fn links(spans: &[Span]) -> String {
    let label = |span: &Span| {
        let half = span.server.as_ref().or(span.client.as_ref()).expect("a half");
        format!("{}@{}", half.operation, script_us(span.start_ns()))
    };
    let mut calls: Vec<&Span> =
        spans.iter().filter(|span| span.client.as_ref().is_some_and(|half| half.process.pid == 2)).collect();
    calls.sort_by_key(|span| (span.start_ns(), span.client.as_ref().map(|half| half.request_message_id)));
    let mut text = String::new();
    for call in calls {
        text += &label(call);
        match (&call.link, call.root) {
            (Some(link), _) => {
                let cause = spans.iter().find(|span| span.span_id == link.parent);
                text += &format!("<{} {}", cause.map_or_else(|| "gone".into(), label), link.evidence.name());
                if link.confidence == Some(1.0) {
                    text.push('!');
                }
                let trace = cause.map(|cause| cause.trace_id);
                assert!(trace.is_none_or(|trace| trace == call.trace_id), "a call is in its cause's trace");
            }
            (None, root) => text += &format!(" {}", root.expect("a root").name()),
        }
        if call.flags.contains(SpanFlags::DETACHED) {
            text += " detached";
        }
        text.push('\n');
    }
    text
}

#[track_caller]
fn check(script: &str, expected: &str) -> Run {
    let run = run(script);
    let trimmed = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join("\n").trim().to_owned();
    assert_eq!(trimmed(&links(&run.out.spans)), trimmed(expected));
    for block_records in [1, 3] {
        let other = run_with(config(), script, block_records);
        assert_eq!(other.out.spans, run.out.spans, "blocks of {block_records} records");
    }
    run
}

#[test]
fn commands_through_an_event_loop_are_certain() {
    let run = check(
        &format!(
            "{PROXY}
            10 c send Q2:k1
            11 d send Q2:k2
            12 p recv Q2:k1
            13 r recv Q2:k2
            14 q send Q2:k2Q2:k1
            16 s recv Q2:k2Q2:k1
            17 s send A2:v2A2:v1
            18 q recv A2:v2A2:v1
            20 p send A2:v1
            21 r send A2:v2
            22 c recv A2:v1
            23 d recv A2:v2"
        ),
        "k2@14<k2@11 relayed_content!
         k1@14<k1@10 relayed_content!",
    );
    assert_eq!((run.counters.links, run.counters.links_certain, run.counters.held), (2, 2, 0));
}

#[test]
fn the_verdict_waits_for_the_answer_and_not_longer_than_a_third_of_the_hold_time() {
    let script = format!(
        "{PROXY}
        12 p recv Q2:k1
        13 r recv Q2:k2
        14 q send Q2:k1
        18 q recv A2:v1
        33320 - tick
        33400 - tick"
    );
    let run = check(&script, "k1@14<gone relayed_content");
    assert_eq!((run.counters.links_overdue, run.counters.links), (1, 1));
    let early = script.replace("33400 - tick", "");
    let mut engine = crate::engine::Engine::with_protocols(config(), super::toy::PROTOCOLS);
    let mut out = crate::engine::Output::default();
    for block in super::stage::Stage::of(&early).blocks(usize::MAX) {
        engine.push(&block, &mut out);
    }
    assert_eq!((engine.counters().links, engine.counters().held), (0, 1));
}

#[test]
fn a_gap_on_any_socket_of_the_process_costs_certainty() {
    check(
        &format!(
            "{PROXY}
            12 p recv Q2:k1
            13 r recv Q2:k2 lost
            14 q send Q2:k1
            18 q recv A2:v1
            19 r recv Q2:k3
            60000 - tick
            60001 p send A2:v1"
        ),
        "k1@14<k1@11 relayed_content",
    );
    check(
        &format!(
            "{PROXY}
            11 r recv Q2:k2
            12 p recv Q2:k1
            13 - lost 1
            14 q send Q2:k1
            18 q recv A2:v1
            20 p send A2:v1"
        ),
        "k1@14<k1@11 relayed_content",
    );
}

#[test]
fn a_swallowed_reply_and_a_retry_stay_with_their_request() {
    check(
        &format!(
            "{PROXY}
            0 q2 open active 10.0.0.2:6001 10.0.0.4:6379 th=2/2
            11 r recv Q2:k2
            12 p recv Q2:k1
            14 q send Q2:k1
            15 q close reset
            16 q2 send Q2:k1
            18 q2 recv A2:v1
            20 p send A2:v1"
        ),
        "k1@14<k1@11 relayed_content
         k1@16<k1@11 relayed_content!",
    );
}

#[test]
fn replication_after_the_answer_is_detached() {
    check(
        &format!(
            "{PROXY}
            0 q2 open active 10.0.0.2:6001 10.0.0.4:6379 th=2/2
            11 r recv Q2:k2
            12 p recv Q2:k1
            14 q send Q2:k1
            15 q2 send Q2:k1
            18 q recv A2:ok
            20 p send A2:ok
            21 q send Q2:k1
            30 q2 recv A2:ok
            31 q recv A2:ok"
        ),
        "k1@14<k1@11 relayed_content!
         k1@15<k1@11 relayed_content! detached
         k1@21<k1@11 relayed_content detached",
    );
}

#[test]
fn a_call_whose_inner_cause_has_left_is_in_the_trace_of_its_root() {
    let inner = "
        0 a open active 10.0.0.9:5000 10.0.0.1:80 th=4/4
        0 b open passive 10.0.0.1:80 10.0.0.9:5000 th=1/1
        10 a send Q2:k1
        11 b recv Q2:k1
        12 c send Q2:k1
        13 p recv Q2:k1
        14 q send Q2:k1
        15 s recv Q2:k1
        16 s send A2:ok
        18 q recv A2:ok";
    let after = "
        24 q send Q2:k1
        25 s recv Q2:k1
        26 s send A2:ok
        28 q recv A2:ok
        30 b send A2:ok
        31 a recv A2:ok";
    // The answer's reader is captured before its writer: the cause leaves as it is answered.
    check(
        &format!("{PROXY}{inner}\n 21 c recv A2:ok\n 20 p send A2:ok{after}"),
        "k1@14<k1@12 relayed_content!
         k1@24<k1@12 relayed_content detached",
    );
    check(
        &format!("{PROXY}{inner}\n 20 p send A2:ok\n 21 c recv A2:ok{after}"),
        "k1@14<k1@12 relayed_content!
         k1@24<k1@12 relayed_content detached",
    );
}

/// Another client of the proxy was there before the agent, and is silent for long; then `first` comes.
#[track_caller]
fn check_older(first: &str, expected: &str) {
    let rest = "
        200012 p recv Q2:k1
        200014 q send Q2:k1
        200018 q recv A2:v1
        200020 p send A2:v1";
    let open = "200010 o open old_passive 10.0.0.2:80 10.0.0.1:5002 th=2/2 at=40/40";
    check(&format!("{PROXY}\n 0 - listen 80\n 0 - tick\n {open}\n {first}\n {rest}"), expected);
}

#[test]
fn an_older_connection_costs_no_certainty_where_its_first_byte_begins_a_request() {
    check_older("200011 o recv Q2:k2", "k1@200014<k1@200011 relayed_content!");
    check_older("200011 o recv restQ2:k2", "k1@200014<k1@200011 relayed_content");
    check_older("200011 o recv Q2:k", "k1@200014<k1@200011 relayed_content");
}

/// What HAProxy does with two clients that send the same: a connection of its own for each.
fn relay(n: usize, options: &str) -> String {
    use std::fmt::Write;
    let mut script = PROXY.to_owned() + "0 q2 open active 10.0.0.2:6001 10.0.0.3:6379 th=2/2\n";
    for round in 0..n {
        let at = 100 * round;
        let (first, second) =
            if round % 3 == 0 { (("r", "q2"), ("p", "q")) } else { (("p", "q"), ("r", "q2")) };
        let mut say = |us: usize, socket: &str, what: &str| {
            let _ = writeln!(script, "{} {socket} {what}", at + us);
        };
        let text = "Q20:get-something-longer";
        say(10, first.0, &format!("recv {text} {options}"));
        say(11, first.1, &format!("send {text} {options}"));
        say(12, second.0, &format!("recv {text} {options}"));
        say(13, second.1, &format!("send {text} {options}"));
        say(20, second.1, "recv A5:value");
        say(21, second.0, "send A5:value");
        say(30, first.1, "recv A5:value");
        say(31, first.0, "send A5:value");
    }
    script
}

#[test]
fn a_stream_relay_is_proven_and_then_tells_equal_commands_apart() {
    let run = run(&relay(120, ""));
    let text = links(&run.out.spans);
    let stream = text.lines().filter(|line| line.contains("stream_relay!")).count();
    assert!(stream >= 180, "{stream}: {text}");
    for line in text.lines() {
        // A call is made a microsecond after its request arrived… on the same thread.
        let (call, cause) = line.split_once('<').unwrap_or_else(|| panic!("{line}"));
        let number = |text: &str| -> u64 {
            text.split_once('@')
                .expect("@")
                .1
                .split_whitespace()
                .next()
                .expect("time")
                .parse()
                .expect("a number")
        };
        assert_eq!(number(cause) + 2, number(call), "{line}");
    }
}

#[test]
fn a_command_proxy_with_one_client_is_a_relay_until_the_second_comes() {
    let mut script = PROXY.to_owned();
    for round in 0..10 {
        let at = 100 * round;
        script += &format!(
            "{} p recv Q20:get-something-{round:06}\n{} q send Q20:get-something-{round:06}\n{} q recv A1:v\n{} p send A1:v\n",
            at + 10,
            at + 12,
            at + 14,
            at + 16
        );
    }
    script += "2010 r recv Q20:get-something-second\n2011 p recv Q20:get-something-000099\n
        2012 q send Q20:get-something-second\n2013 q send Q20:get-something-000099\n
        2014 q recv A1:vA1:v\n2015 p send A1:v\n2016 r send A1:v\n";
    let script = script.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n");
    let text = links(&run(&script).out.spans);
    let last: Vec<&str> = text.lines().rev().take(2).collect();
    assert_eq!(
        last,
        [
            "get-something-000099@2013<get-something-000099@2010 relayed_content!",
            "get-something-second@2012<get-something-second@2009 relayed_content!"
        ],
        "{text}"
    );
    assert!(text.lines().filter(|line| line.contains("stream_relay")).count() >= 5, "{text}");
}

/// What a proxy does with clients that share its one connection to a server, each with two of three commands in
/// flight: script, and per time of a call the time at which its cause was read.
fn shared_connection(seed: u64, q: &str) -> (String, BTreeMap<u64, u64>) {
    const CLIENTS: usize = 5;
    let mut script = format!("0 q open {q}\n0 s open passive 10.0.0.3:6379 10.0.0.2:6000 th=3/3\n");
    for client in 0..CLIENTS {
        let port = 5000 + client;
        script += &format!("0 c{client} open passive 10.0.0.2:80 10.0.0.1:{port} th=2/2\n");
    }
    // xorshift64.
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut below = |n: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize % n
    };
    let (mut at, mut n_asked, mut truth) = (10, 0, BTreeMap::new());
    let mut in_flight = [0; CLIENTS];
    let mut sent: VecDeque<usize> = VecDeque::new();
    for _ in 0..150 {
        let mut queue = Vec::new();
        for (client, in_flight) in in_flight.iter_mut().enumerate() {
            let n = if below(2) == 0 { 2 - *in_flight } else { 0 };
            if n == 0 {
                continue;
            }
            at += 1;
            let mut texts = String::new();
            for _ in 0..n {
                let text = format!("Q20:set-the-same-thing-{}", n_asked % 3);
                n_asked += 1;
                texts += &text;
                queue.push((client, at, text));
            }
            script += &format!("{at} c{client} recv {texts}\n");
            *in_flight += n;
        }
        for (client, read_at, text) in queue {
            at += 1;
            script += &format!("{at} q send {text}\n");
            truth.insert(at, read_at);
            sent.push_back(client);
        }
        let n = below(sent.len() + 1);
        if n > 0 {
            at += 1;
            script += &format!("{at} q recv {}\n", "A1:v".repeat(n));
        }
        for client in sent.drain(..n) {
            at += 1;
            script += &format!("{at} c{client} send A1:v\n");
            in_flight[client] -= 1;
        }
    }
    (script, truth)
}

#[test]
fn a_shared_connection_with_equal_commands_is_no_relay() {
    let (mut n_stream, mut wrong) = (0, Vec::new());
    for q in [
        "old_active 10.0.0.2:6000 10.0.0.3:6379 th=2/2 at=50000/9000",
        "active 10.0.0.2:6000 10.0.0.3:6379 th=2/2",
    ] {
        for seed in 0..100 {
            let (script, truth) = shared_connection(seed, q);
            let spans = run_with(config(), &script, usize::MAX).out.spans;
            let reads: BTreeMap<SpanId, u64> =
                spans.iter().map(|span| (span.span_id, script_us(span.start_ns()) as u64)).collect();
            for span in &spans {
                let Some(link) = span.link.filter(|link| link.evidence == EvidenceKind::StreamRelay) else {
                    continue;
                };
                n_stream += 1;
                let called = script_us(span.start_ns()) as u64;
                // A request arrives one microsecond before it is read.
                let is_right = reads.get(&link.parent).map(|read| read + 1) == truth.get(&called).copied();
                if !is_right && link.confidence == Some(1.0) {
                    wrong.push(format!("{q}, seed {seed}: call at {called}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {n_stream}: {wrong:#?}", wrong.len());
}
