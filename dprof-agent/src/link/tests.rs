//! Scripts of what a process reads and sends → causes, as text.
//!
//! Steps, in words; `@T` is the thread (of process 1, or `@P/T`), 1 if left out:
//! ```text
//! R5@1=a         request 5 is read, content `a`; `=?` unknown, `=a+b` made of parts a and b, `=a#T` with trace id T
//!                (`#T.S` and span id S), `=a$I` with request id I
//! C7@1=a>2       call 7 is made to peer 2 (default 1)
//! A7@1=x         its reply is read          E7       it ends without one
//! D5@1=x         request 5 is answered      N5       it ends without an answer
//! X, X1          events are lost, of any process or of 1        J1 process 1 has an older connection
//! H1, S1         process 1 has a connection whose bytes are not understood yet; not any more
//! T20            20 milliseconds pass
//! ```
//! Expected: per call in the order of verdicts `7<5` with further causes `+6`, the kind's first letter(s) and `!` if
//! certain, `~0.98` if calibrated; `7<-` without a cause; `/7` call 7 outlives its cause.

use std::fmt::Write;

use dprof_common::model::{EvidenceKind, SpanId};
use rustc_hash::FxHashMap;

use super::linker::{Decided, Linker, Verdict};
use super::{EvidenceSet, LinkOptions, Observation, Ref};

/// Verdicts come within this time.
const WAIT_NS: u64 = 50_000_000;

#[derive(Default)]
struct Words {
    parts: Vec<u64>,
    content: Option<u64>,
    explicit_id: Option<(u128, u64)>,
    request_id: Option<u64>,
}

fn hash(text: &str) -> u64 {
    use std::hash::BuildHasher;
    rustc_hash::FxBuildHasher.hash_one(text)
}

fn words(text: &str) -> Words {
    let mut words = Words::default();
    let (text, id) = text.split_once('$').map_or((text, None), |(text, id)| (text, Some(id)));
    words.request_id = id.map(hash);
    let (text, id) = text.split_once('#').map_or((text, None), |(text, id)| (text, Some(id)));
    words.explicit_id = id.map(|id| {
        let (trace, span) = id.split_once('.').unwrap_or((id, "1"));
        (trace.parse().expect("trace id"), span.parse().expect("span id"))
    });
    if text != "?" && !text.is_empty() {
        words.content = Some(hash(text));
        words.parts = text.split('+').map(|part| hash(&format!("part {part}"))).collect();
    }
    words
}

fn show(decided: &Decided) -> String {
    let Some(link) = decided.link else { return format!("{}<-", decided.call.0) };
    let mut text = format!("{}<{}", decided.call.0, link.parent.0);
    for further in &decided.further {
        let _ = write!(text, "+{}", further.parent.0);
    }
    text.push_str(match link.evidence {
        EvidenceKind::ExplicitId => "id",
        EvidenceKind::StreamRelay => "stream",
        EvidenceKind::RelayedContent => "c",
        EvidenceKind::Order => "o",
        EvidenceKind::SameThread => "t",
        EvidenceKind::WakeUp => "w",
        EvidenceKind::Timing => "d",
    });
    match link.confidence {
        Some(confidence) if confidence >= 1.0 => text.push('!'),
        Some(confidence) => {
            let _ = write!(text, "~{confidence:.2}");
        }
        None => {}
    }
    text
}

/// A linker that a script has run through, and what it said.
struct Run {
    linker: Linker,
    said: Vec<String>,
}

fn run(options: LinkOptions, script: &str) -> Run {
    let mut linker = Linker::new(options, WAIT_NS);
    let (mut said, mut now_ns, mut pos) = (Vec::new(), 1_000_000_000_u64, 0);
    let (mut requests, mut calls) =
        (FxHashMap::<SpanId, Ref>::default(), FxHashMap::<SpanId, Ref>::default());
    let of = |all: &FxHashMap<SpanId, Ref>, id| all.get(&id).copied().unwrap_or(Ref::NOBODY);
    for step in script.split_whitespace() {
        now_ns += 1000;
        pos += 100;
        let (op, rest) = step.split_at(1);
        let (rest, content) = rest.split_once('=').unwrap_or((rest, ""));
        let (content, peer) = content.split_once('>').unwrap_or((content, "1"));
        let (id, thread) = rest.split_once('@').unwrap_or((rest, "1"));
        let (tgid, tid) = thread.split_once('/').unwrap_or(("1", thread));
        let words = words(content);
        let span_id = SpanId(id.parse().unwrap_or(0));
        let seen = Observation {
            span_id,
            tgid: tgid.parse().expect("process"),
            tid: tid.parse().expect("thread"),
            sock: 1,
            peer: peer.parse().expect("peer"),
            protocol: "toy",
            operation: 0,
            time_ns: now_ns,
            batch: 1,
            start: pos,
            content: words.content,
            parts: &words.parts,
            explicit_id: words.explicit_id,
            request_id: words.request_id,
        };
        match op {
            "R" => {
                requests.insert(span_id, linker.request_read(&seen));
            }
            "C" => {
                let (at, verdict) = linker.call_made(&seen, now_ns);
                calls.insert(span_id, at);
                if let Verdict::Now(decided) = verdict {
                    said.push(show(&Decided { call: span_id, ..decided }));
                }
            }
            "A" => linker.reply_read(of(&calls, span_id), &seen),
            "E" => linker.call_ended(of(&calls, span_id)),
            "D" => linker.request_done(of(&requests, span_id), Some(&seen), now_ns),
            "N" => linker.request_done(of(&requests, span_id), None, now_ns),
            "X" => linker.disturbed(span_id.0 as u32),
            "H" | "S" => linker.hides(span_id.0, span_id.0 as u32, op == "H"),
            "J" => linker.joined(span_id.0 as u32, now_ns, now_ns),
            "T" => now_ns += span_id.0 * 1_000_000,
            other => panic!("'{other}' is no step"),
        }
        linker.expire(now_ns);
        linker.take_detached(|call| said.push(format!("/{}", call.0)));
        linker.take_decided(|decided| said.push(show(&decided)));
    }
    linker.finish();
    linker.take_detached(|call| said.push(format!("/{}", call.0)));
    linker.take_decided(|decided| said.push(show(&decided)));
    Run { linker, said }
}

#[track_caller]
fn check_with(options: LinkOptions, script: &str, expected: &str) -> Linker {
    let run = run(options, script);
    assert_eq!(run.said.join(" "), expected, "{script}");
    run.linker
}

#[track_caller]
fn check(script: &str, expected: &str) -> Linker {
    check_with(LinkOptions::default(), script, expected)
}

/// Only evidence by thread.
#[track_caller]
fn check_thread(script: &str, expected: &str) {
    let evidence = EvidenceSet::of(&[EvidenceKind::SameThread]);
    check_with(LinkOptions { evidence, ..LinkOptions::default() }, script, expected);
}

/// Everything but content.
#[track_caller]
fn check_blind(script: &str, expected: &str) {
    let evidence = EvidenceSet::ALL.without(&[EvidenceKind::RelayedContent]);
    check_with(LinkOptions { evidence, ..LinkOptions::default() }, script, expected);
}

mod by_thread {
    use super::check_thread;

    #[test]
    fn a_thread_that_holds_one_request_causes_its_calls() {
        check_thread("R5 C7 A7 C8 A8 D5", "7<5t 8<5t");
        check_thread("R5 C7 C8 A8 C9", "7<5t 8<5t 9<5t");
    }

    #[test]
    fn another_thread_or_no_request_causes_nothing() {
        check_thread("C7", "7<-");
        check_thread("R5@1 C7@2", "7<-");
        check_thread("R5 D5 C7", "7<-");
        check_thread("R5@1/1 C7@2/1", "7<-");
    }

    #[test]
    fn two_open_requests_cause_nothing_until_the_process_has_shown_how_it_works() {
        check_thread("R5 R6 C7", "7<-");
        // The older one is done, and the last read was the one that is left.
        check_thread("R5 R6 D5 C7", "7<6t");
        // The newer one is done: the call may belong to the older, but it was not the last read.
        check_thread("R5 R6 D6 C7", "7<-");
    }

    #[test]
    fn a_reply_to_a_foreign_call_breaks_the_hold() {
        // Call 7 was made before the request was read.
        check_thread("C7 R5 A7 C8", "7<- 8<-");
        // Call 7 belongs to request 5, which is done; its reply is read while 6 is held.
        check_thread("R5 C7 D5 R6 A7 C8", "7<5t /7 8<-");
        check_thread("R5 C7 D5 R6 A7 R9 D6 C8", "7<5t /7 8<9t");
    }

    #[test]
    fn lost_events_break_every_hold_of_the_process() {
        check_thread("R5 X1 C7 D5 R6 C8", "7<- 8<6t");
        check_thread("R5 X C7 D5 R6 C8", "7<- 8<6t");
        check_thread("R5 X2 C7", "7<5t");
    }

    /// An event loop that answers each event before it looks at the next: read, call, … reply, answer. Two requests
    /// are always open.
    fn callbacks(n: u64) -> String {
        use std::fmt::Write;
        let mut script = "R10000 C20000 ".to_owned();
        for id in 10_001..10_001 + n {
            let (call, last, last_call) = (id + 10_000, id - 1, id + 9_999);
            let _ = write!(script, "R{id} C{call} A{last_call} D{last} ");
        }
        script
    }

    #[test]
    fn among_several_the_request_held_is_the_cause_in_a_loop_that_answers_each_event() {
        let said = super::run(
            super::LinkOptions {
                evidence: super::EvidenceSet::of(&[dprof_common::model::EvidenceKind::SameThread]),
                ..super::LinkOptions::default()
            },
            &callbacks(200),
        )
        .said;
        let links = said.iter().filter(|said| said.contains('t')).count();
        // It has to be seen at work first.
        assert!(links >= 150, "{links}: {said:?}");
        let wrong = said.iter().filter(|said| {
            said.split_once('<').is_some_and(|(call, cause)| {
                let number = |text: &str| text.trim_end_matches('t').parse::<u64>().ok();
                number(cause).is_some_and(|cause| number(call) != Some(cause + 10_000))
            })
        });
        assert_eq!(wrong.count(), 0);
    }
}

mod by_content {
    use super::{check, check_with};
    use crate::link::LinkOptions;

    #[test]
    fn the_same_command_with_the_same_reply_is_certain() {
        check("R5=a R6=b C8=b C7=a A8=y D6=y A7=x D5=x", "8<6c! 7<5c!");
        // On other threads as well.
        check("R5@1=a R6@2=b C8@3=b A8@4=y D6@5=y", "8<6c!");
    }

    #[test]
    fn without_the_reply_it_is_not_certain() {
        check("R5=a R6=b C7=a E7 D5=x N6", "7<5c");
        check("R5=a R6=b C7=a N5 A7=x N6", "/7 7<5c");
        check("R5=a R6=b C7=a A7=? D5=x N6", "7<5c");
        check("R5=a R6=b C7=a A7=x T60 D5=x N6", "7<5c");
    }

    #[test]
    fn another_reply_takes_certainty_away() {
        check("R5=a R6=b C7=a A7=x D5=y N6", "7<5c");
    }

    #[test]
    fn in_a_process_that_changes_no_reply_another_one_vetoes() {
        let mut script = String::new();
        for id in 100..120 {
            script += &format!("R{id}=k{id} C{}=k{id} A{}=x D{id}=x ", id + 100, id + 100);
        }
        let n = super::run(LinkOptions::default(), &format!("{script} R5=a C7=a A7=x D5=y"));
        assert_eq!(n.said.last().map(String::as_str), Some("7<-"));
        assert_eq!((n.linker.counters().certain, n.linker.counters().vetoed), (20, 1));
    }

    #[test]
    fn a_quorum_needs_one_reply_that_fits() {
        check("R5=a C7=a>1 C8=a>2 C9=a>3 A8=x A7=old D5=x A9=x", "8<5c! 7<5c /9 9<5c!");
    }

    #[test]
    fn a_copy_in_flight_or_answered_a_moment_ago_costs_certainty() {
        check("R5=a C7=a A7=x D5=x R6=a C8=a A8=x D6=x", "7<5c! 8<6o");
        check("R5=a C7=a A7=x D5=x T200 R6=a C8=a A8=x D6=x", "7<5c! 8<6c!");
        // The copy came after the call, and cannot be its cause.
        check("R5=a C7=a R6=a C8=a A7=x D5=x A8=x D6=x", "7<5c 8<6o");
    }

    #[test]
    fn an_open_request_that_hides_its_content_costs_certainty() {
        check("R4=? R5=a C7=a A7=x D5=x N4", "7<5c");
        check("R4=? N4 R5=a R6=b C7=a A7=x D5=x N6", "7<5c!");
    }

    #[test]
    fn a_connection_that_is_not_understood_yet_may_hide_a_copy() {
        check("R5=a R6=b H1 C7=a A7=x D5=x N6", "7<5c");
        check("R5=a R6=b H1 S1 C7=a A7=x D5=x N6", "7<5c!");
        check("R5=a R6=b H2 C7=a A7=x D5=x N6", "7<5c!");
    }

    #[test]
    fn a_loss_or_an_older_connection_costs_certainty() {
        check("R5=a R6=b X1 C7=a A7=x D5=x N6", "7<5c");
        check("R5=a R6=b X C7=a A7=x D5=x N6", "7<5c");
        check("R5=a R6=b X2 C7=a A7=x D5=x N6", "7<5c!");
        check("J1 R5=a R6=b C7=a A7=x D5=x N6", "7<5c");
        check("J1 T101 R5=a R6=b C7=a A7=x D5=x N6", "7<5c!");
    }

    #[test]
    fn a_repetition_to_the_same_peer_costs_certainty() {
        check("R5=a R6=b C7=a E7 C8=a A8=x D5=x N6", "8<5c 7<5c");
    }

    #[test]
    fn what_is_sent_after_the_answer_is_detached() {
        check("R5=a C7=a A7=x D5=x C8=a>2 A8=x", "7<5c! /8 8<5c");
    }

    #[test]
    fn parts_of_a_command_belong_to_it() {
        check("R5=a+b+c R6=d C7=a+c C8=b A7=x A8=y D5=z N6", "8<5c 7<5c");
        // Two commands share a key: the one that has not sent it on.
        check("R4=a+b R5=a+c C7=a C8=b C9=a C10=c A7=x A8=x D4=z A9=x A10=x D5=z", "8<4c 7<4c 10<5c 9<5c");
    }

    #[test]
    fn a_call_gathered_from_several_requests_is_linked_to_all() {
        // The first time shows that this process gathers; then single keys are remembered.
        check("R1@2=q C2=a+b A2=x D1=x R5=a R6=b C7=a+b A7=xy D5=x D6=y", "7<6+5c 2<-");
    }

    #[test]
    fn what_is_less_sure_than_asked_for_is_left_out() {
        let options = LinkOptions { min_confidence: 0.99, ..LinkOptions::default() };
        check_with(options, "R5=a R6=b C7=a A7=x D5=x R8=c C9=c E9 D8=x N6", "7<5c! 9<-");
    }

    #[test]
    fn everything_is_forgotten_in_the_end() {
        let linker =
            check("R5=a#7$q C7=a#7 A7=x D5=x T200 R6=a+b C8=a E8 N6 R9=z C10=q", "7<5id! 8<6c 10<9t");
        assert_eq!(linker.kept(), (1, 1));
    }
}

mod by_order {
    use super::{check, check_blind};

    #[test]
    fn among_equals_the_oldest_is_sent_on_first() {
        check("R5=a R6=a R7=a C10=a C11=a C12=a A10=x D5=x A11=x D6=x A12=x D7=x", "10<5o 11<6o 12<7o");
    }

    #[test]
    fn replies_that_differ_tell_equals_apart() {
        // The proxy sent 6 on first.
        check("R5=a R6=a C10=a C11=a A10=2 A11=1 D6=2 D5=1", "10<6o 11<5o");
    }

    #[test]
    fn an_answer_cannot_leave_before_its_reply_was_read() {
        check("R5=a R6=a C10=a C11=a A10=x D6=x A11=x D5=x", "10<6o 11<5o");
    }

    #[test]
    fn a_fan_out_sends_each_request_to_each_peer() {
        let mut script = String::new();
        for id in 100..110 {
            script +=
                &format!("R{id}=k{id} C{0}=k{id}>1 C{1}=k{id}>2 A{0}=x A{1}=x D{id}=x ", 2 * id, 2 * id + 1);
        }
        let run = super::run(
            super::LinkOptions::default(),
            &format!("{script} R5=a R6=a C7=a>1 C8=a>2 C9=a>1 C10=a>2 A7=x A8=x D5=x A9=x A10=x D6=x"),
        );
        let last: Vec<_> = run.said[20..].iter().map(|said| said.split('~').next().expect("text")).collect();
        assert_eq!(last, ["8<5o", "10<6o", "7<5o", "9<6o"]);
    }

    #[test]
    fn a_pool_of_connections_to_one_peer_is_no_fan_out() {
        check("R5@1=a R6@1=a C7@1=a C8@1=a A8=x A7=x D5=x D6=x", "7<5o 8<6o");
    }

    #[test]
    fn a_repetition_among_equals_belongs_to_one_that_was_sent() {
        check("R5=a R6=a C7=a C8=a C9=a E7 A8=x D6=x A9=x D5=x", "8<6o 9<5o 7<5o");
    }

    #[test]
    fn without_content_the_order_of_replies_tells() {
        // Twelve rounds show that one request makes one call, and that calls are written per upstream.
        let mut script = String::new();
        for id in 100..112 {
            script += &format!(
                "R{id}@2 R{0}@3 C{1}@1 C{2}@1 A{1}@1 D{0}@1 A{2}@1 D{id}@1 ",
                id + 100,
                id + 200,
                id + 300
            );
        }
        let evidence = super::EvidenceSet::ALL.without(&[dprof_common::model::EvidenceKind::RelayedContent]);
        let run = super::run(
            super::LinkOptions { evidence, ..super::LinkOptions::default() },
            &format!("{script} R5 R6 R7 C10 C11 C12 A10 D6 A11 A12 D7 D5"),
        );
        for expected in ["10<6o", "11<7o", "12<5o"] {
            assert!(run.said.iter().any(|said| said == expected), "{expected}: {:?}", run.said);
        }
        check_blind("R5 R6 C7", "7<-");
    }
}

mod by_id {
    use super::check;

    #[test]
    fn the_id_that_came_in_goes_out() {
        check("R5=a#7 R6=b#8 C9=c#8.2 C10=d#7.3", "9<6id! 10<5id!");
        check("R5=a$q R6=b$r C9=c$r", "9<6id!");
        // Any thread, and after the answer.
        check("R5@1=a#7 D5=x C9@2=c#7", "9<5id! /9");
    }

    #[test]
    fn two_requests_of_one_trace_are_told_apart_by_span_then_thread_then_not() {
        check("R5@1=a#7.1 R6@2=b#7.2 C9@3=c#7.2", "9<6id!");
        check("R5@1=a#7.1 R6@2=b#7.2 C9@2=c#7.3", "9<6id");
        check("R5@1=a#7.1 R6@2=b#7.2 C9@3=c#7.3", "9<-");
        check("R5@1=a#7.1 D5 R6@2=b#7.2 C9@3=c#7.3", "9<6id");
    }

    #[test]
    fn an_id_that_did_not_come_in_says_nothing() {
        check("R5@1=a#7 C9@2=c#8", "9<-");
        check("R5@1=a#7 C9@2=c$q", "9<-");
    }
}

#[test]
fn weaker_evidence_is_calibrated_where_content_is_certain() {
    // The thread is right of what it says; then a call whose content nobody had.
    let mut script = String::new();
    for id in 100..125 {
        script += &format!("R{id}=k{id} C{0}=k{id} A{0}=x D{id}=x ", id + 100);
    }
    let run = run(LinkOptions::default(), &format!("{script} R5=a C7=other"));
    assert_eq!(run.said.last().map(String::as_str), Some("7<5t~0.96"));
}

#[test]
fn answered_requests_of_which_no_call_was_seen_do_not_stand_in_the_way() {
    let (n, mut script) = (100, String::new());
    for id in 0..n {
        script += &format!("R{0}=a D{0}=x ", 1000 + id);
    }
    for id in 0..n {
        script += &format!("R{}=a ", 2000 + id);
    }
    for id in 0..n {
        script += &format!("C{0}=a A{0}=x{id} D{1}=x{id} ", 3000 + id, 2000 + id);
    }
    let said = run(LinkOptions::default(), &script).said;
    let expected: Vec<String> = (0..n).map(|id| format!("{}<{}o", 3000 + id, 2000 + id)).collect();
    assert_eq!(said, expected);
}

#[test]
fn memory_is_bounded_with_a_hundred_thousand_open_requests() {
    let mut linker = Linker::new(LinkOptions::default(), WAIT_NS);
    let observe = |id: u64, content: u64| Observation {
        span_id: SpanId(id),
        tgid: 1,
        tid: 1,
        sock: 1,
        peer: 1,
        protocol: "toy",
        operation: 0,
        time_ns: 0,
        batch: 1,
        start: 0,
        content: Some(content),
        parts: &[],
        explicit_id: None,
        request_id: None,
    };
    let n = 100_000;
    for round in 0..3 {
        // Half of them the same.
        let said = |id| observe(id, id / 2 * (id % 2));
        let requests: Vec<Ref> = (1..=n).map(|id| linker.request_read(&said(id))).collect();
        let calls: Vec<Ref> =
            (1..=n).map(|id| linker.call_made(&said(id), round * 1_000_000_000).0).collect();
        assert_eq!(linker.kept(), (n as usize, n as usize));
        for (id, (request, call)) in (1..=n).zip(requests.into_iter().zip(calls)) {
            linker.reply_read(call, &observe(id, 0));
            linker.request_done(request, Some(&observe(id, 0)), round * 1_000_000_000 + 1);
        }
        linker.expire(round * 1_000_000_000 + 999_999_999);
        linker.take_decided(drop);
        linker.take_detached(drop);
        assert!(linker.is_empty(), "{:?}", linker.kept());
    }
}
