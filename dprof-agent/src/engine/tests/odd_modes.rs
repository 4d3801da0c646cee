//! Conversations of every odd mode with 1 %, 10 % and 50 % of their events taken out: against the undisturbed run, by
//! span id, no answer is another request's, no time is wrong, and what was touched says so.

use std::collections::HashMap;

use dprof_common::event::EventKind;
use dprof_common::model::{Half, HalfFlags, Side, SpanId, Status};
use proptest::prelude::Rng as _;
use proptest::test_runner::{RngAlgorithm, TestRng};

use super::dialogue::{Choose, Dialogue, Turn};
use super::stage::{Stage, config};
use crate::decode::{Event, decode};
use crate::engine::{Engine, Output};
use crate::protocol::BLOCKING_ATTRIBUTE;
use crate::source::BlockBuilder;

fn rng(seed: u64) -> TestRng {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)
}

impl Choose for TestRng {
    fn below(&mut self, n: u32) -> u32 {
        self.next_u32() % n
    }
}

/// Bytes of a call that are captured whole.
const CALL_BYTES_MAX: usize = 16_000;

/// Writes the bytes of `messages` in calls: each alone, or all in few, or cut anywhere.
fn calls(rng: &mut TestRng, messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
    match rng.below(3) {
        0 => messages.to_vec(),
        1 => messages.concat().chunks(CALL_BYTES_MAX).map(<[u8]>::to_vec).collect(),
        _ => {
            let (all, mut calls) = (messages.concat(), Vec::new());
            let mut rest = &all[..];
            while !rest.is_empty() {
                let (call, after) = rest.split_at((1 + rng.below(2000) as usize).min(rest.len()));
                calls.push(call.to_vec());
                rest = after;
            }
            calls
        }
    }
}

/// A conversation between `c` and `s`, seen at both ends.
fn stage(seed: u64) -> Stage {
    let rng = &mut rng(seed);
    let mut dialogue = Dialogue::choose(rng);
    // Some clients ask one thing at a time, others do not wait.
    let depth = [1, 1, 4, 20][rng.below(4) as usize];
    let (_, port) = dialogue.protocol();
    let mut stage = Stage::of(&format!(
        "0 c open active 10.0.0.1:5000 10.0.0.2:{port} th=7/7
         0 s open passive 10.0.0.2:{port} 10.0.0.1:5000 th=8/8"
    ));
    let mut now_us = 10;
    for _ in 0..60 {
        for Turn { requests, replies, takes_us } in dialogue.turns(rng, depth) {
            for (from, to, messages) in [("c", "s", requests), ("s", "c", replies)] {
                for call in calls(rng, &messages).into_iter().filter(|call| !call.is_empty()) {
                    stage.call(now_us * 1000, from, true, &call, &[]);
                    now_us += 1 + u64::from(rng.below(5));
                    stage.call(now_us * 1000, to, false, &call, &[]);
                    now_us += 1 + u64::from(rng.below(5));
                }
                if from == "c" {
                    now_us += takes_us;
                }
            }
            // Now and then nothing happens for long.
            now_us += if rng.below(8) == 0 { 25_000 + u64::from(rng.below(100_000)) } else { 5 };
        }
        stage.line(&format!("{now_us} - tick"));
    }
    stage.line(&format!("{now_us} c close"));
    stage.line(&format!("{} s close", now_us + 5));
    stage
}

type Halves = HashMap<(SpanId, Side), Half>;

fn halves(records: &[Vec<u8>]) -> Halves {
    let mut engine = Engine::new(config());
    let (mut out, mut builder) = (Output::default(), BlockBuilder::default());
    for record in records {
        builder.push(&[record]);
    }
    engine.push(&builder.take(), &mut out);
    engine.finish(&mut out);
    let mut halves = HashMap::new();
    for span in out.spans {
        for (side, half) in [(Side::Client, span.client), (Side::Server, span.server)] {
            if let Some(half) = half {
                assert!(halves.insert((span.span_id, side), half).is_none(), "an id twice");
            }
        }
    }
    halves
}

/// Prints the events around a time, those that were taken out with an `x`.
#[expect(clippy::print_stderr, reason = "a failure is understood from them")]
fn show_events(whole: &[Vec<u8>], left: &[Vec<u8>], around_unix_ns: u64) {
    let mut left = left.iter().peekable();
    for record in whole {
        let is_left = left.next_if(|next| *next == record).is_some();
        let Ok(event) = decode(record) else { continue };
        let (sock, time_ns, payload) = match event {
            Event::Send(send, payload) => (send.sock, send.time_ns, payload),
            Event::Recv(recv, payload) => (recv.sock, recv.read_ns, payload),
            _ => continue,
        };
        let distance = time_ns.abs_diff(around_unix_ns.wrapping_sub(super::stage::EPOCH_NS));
        if distance < 400_000 || !is_left {
            let (mark, way) =
                (if is_left { ' ' } else { 'x' }, if matches!(event, Event::Send(..)) { '>' } else { '<' });
            let text = payload[..payload.len().min(90)].escape_ascii();
            eprintln!("{mark} {} {sock} {way} {} {text}", time_ns / 1000, payload.len());
        }
    }
}

/// What a half says, but for marks. That a request may wait by its own wish is one.
fn said(half: &Half) -> impl PartialEq + std::fmt::Debug + '_ {
    let is_sure = |(name, value): &&(_, String)| *name != BLOCKING_ATTRIBUTE || value != "unknown";
    (
        &half.operation,
        &half.query_text,
        half.status,
        &half.status_code,
        half.request_bytes,
        half.response_bytes,
        (half.times.start_ns, half.times.end_ns),
        half.attributes.iter().filter(is_sure).collect::<Vec<_>>(),
    )
}

#[derive(Debug, Default)]
struct Tally {
    sure: usize,
    marked: usize,
    missing: usize,
}

/// Takes out `percent` of the events and compares what is left with the truth.
#[track_caller]
fn disturb(seed: u64, percent: u32, tally: &mut Tally) {
    let whole = stage(seed);
    let truth = halves(&whole.records);
    assert!(truth.len() > 100, "{} halves, seed {seed}", truth.len());
    let answered = |half: &&Half| matches!(half.status, Status::Ok | Status::Error | Status::OneWay);
    let marks = HalfFlags::INCOMPLETE;
    let marked = truth.values().find(|half| half.flags.contains(marks));
    if let Some(half) = marked {
        show_events(&whole.records, &whole.records, half.times.start_ns);
    }
    assert!(marked.is_none(), "nothing was taken out, seed {seed}: {marked:?}");
    let unanswered = truth.values().find(|half| !answered(half));
    assert!(unanswered.is_none(), "every request was answered, seed {seed}: {unanswered:?}");
    let mut rng = rng(seed ^ 0xd15b);
    let is_call = |record: &[u8]| {
        [EventKind::Send as u8, EventKind::Recv as u8, EventKind::Close as u8].contains(&record[0])
    };
    let left: Vec<_> = whole
        .records
        .iter()
        .filter(|record| !is_call(record) || rng.next_u32() % 100 >= percent)
        .cloned()
        .collect();
    let found = halves(&left);
    let mut in_order: Vec<_> = found.iter().collect();
    in_order.sort_by_key(|(_, half)| half.times.start_ns);
    for (id, half) in in_order {
        if half.flags.contains(HalfFlags::INCOMPLETE)
            || half.flags.contains(HalfFlags::PAIRED_ACROSS_GAP)
            || half.status == Status::Unknown
        {
            tally.marked += 1;
            continue;
        }
        let Some(truth) = truth.get(id) else {
            show_events(&whole.records, &left, half.times.start_ns);
            panic!("seed {seed}, {percent} %: nobody asked {id:?} {half:#?}");
        };
        let approximate = half.flags.contains(HalfFlags::REQUEST_TIME_APPROXIMATE)
            || half.flags.contains(HalfFlags::RESPONSE_TIME_APPROXIMATE);
        if approximate {
            tally.marked += 1;
            continue;
        }
        let may_block = truth.attributes.iter().any(|(name, _)| name == BLOCKING_ATTRIBUTE);
        let is_unsure =
            half.attributes.iter().any(|(name, value)| name == BLOCKING_ATTRIBUTE && value == "unknown");
        if is_unsure && may_block {
            tally.marked += 1;
            continue;
        }
        if said(half) != said(truth) {
            show_events(&whole.records, &left, truth.times.start_ns);
        }
        assert_eq!(said(half), said(truth), "seed {seed}, {percent} %, {id:?}");
        tally.sure += 1;
    }
    tally.missing += truth.len() - found.len().min(truth.len());
}

#[expect(clippy::print_stderr, reason = "what was sure and what was marked is the measurement")]
#[test]
fn events_taken_out_of_any_conversation_never_make_a_wrong_pair() {
    let seeds: std::ops::Range<u64> = match std::env::var("DPROF_ODD_MODES_SEEDS") {
        Ok(range) => {
            let (from, to) = range.split_once("..").expect("FROM..TO");
            from.parse().expect("a number")..to.parse().expect("a number")
        }
        Err(_) => 0..60,
    };
    for percent in [1, 10, 50] {
        let mut tally = Tally::default();
        for seed in seeds.clone() {
            disturb(seed, percent, &mut tally);
        }
        eprintln!("{percent} %: {tally:?}");
        assert!(tally.sure > 0 && tally.marked > 0, "{percent} %: {tally:?}");
    }
}
