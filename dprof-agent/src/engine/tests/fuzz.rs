//! Arbitrary bytes and arbitrary records: counters change, nothing else; memory stays bounded.

use bytemuck::bytes_of;
use dprof_common::event::{
    Arrival, ArrivalsEvent, ClockEvent, CloseEvent, EventHeader, EventKind, FirstDepartureEvent, LostEvent,
    OpenEvent, PortsEvent, RecvEvent, RetransmitEvent, SendEvent,
};
use dprof_common::limits::ARRIVALS_MAX;
use proptest::collection::vec;
use proptest::prelude::*;

use super::stage::config;
use super::toy::PROTOCOLS;
use crate::engine::{Engine, EngineConfig, Output};
use crate::source::{Block, BlockBuilder};

fn small() -> EngineConfig {
    EngineConfig {
        unknown: true,
        open_requests_max: 16,
        held_max: 8,
        connections_max: 4,
        max_open_ns: 1000,
        hold_ns: 500,
        ..config()
    }
}

/// Numbers that break arithmetic, and small ones that meet.
fn number() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![
        6 => 0..100_u64,
        1 => any::<u64>(),
        1 => Just(u64::MAX),
        1 => Just(1 << 62),
        1 => (1_u64 << 32) - 2..(1 << 32) + 2,
    ]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => "([QAEPO][0-3]:[a-z]{0,3}){0,6}".prop_map(String::into_bytes),
        2 => "[QAEPOUZM]#?[0-9]{1,4}[:,][a-z]{0,9}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..40),
    ]
}

/// A record that is printed in one line.
#[derive(Clone)]
struct Record(Vec<u8>);

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match crate::decode::decode(&self.0) {
            Ok(event) => write!(f, "{event:?}"),
            Err(error) => write!(f, "{error}"),
        }
    }
}

fn record() -> impl Strategy<Value = Record> {
    record_bytes().prop_map(Record)
}

fn record_bytes() -> impl Strategy<Value = Vec<u8>> {
    let header = |kind: EventKind, flags, payload_len, size| EventHeader {
        kind: kind as u8,
        flags,
        payload_len,
        size,
    };
    let common = (1..6_u64, any::<u8>(), number(), number(), number(), number());
    prop_oneof![
        1 => (common.clone(), any::<[u8; 4]>()).prop_map(move |((sock, flags, a, b, c, d), _)| {
            let mut event = OpenEvent {
                header: header(EventKind::Open, flags, 0, 0),
                sock,
                time_ns: a,
                send_pos: b,
                recv_pos: c,
                write_seq: d as u32,
                ..OpenEvent::default()
            };
            event.flow.local_addr = [1; 16];
            event.flow.peer_addr = [flags; 16];
            bytes_of(&event).to_vec()
        }),
        4 => (common.clone(), payload(), any::<bool>()).prop_map(move |((sock, flags, a, b, c, _), payload, odd)| {
            let size = if odd { b as u32 } else { payload.len() as u32 };
            let event = SendEvent {
                header: header(EventKind::Send, flags, payload.len() as u16, size),
                sock, end_pos: a, pid_tgid: b, time_ns: c, unsent: a as u32, srtt_us: 1,
            };
            [bytes_of(&event), &payload].concat()
        }),
        4 => (common.clone(), payload(), any::<bool>()).prop_map(move |((sock, flags, a, b, c, d), payload, odd)| {
            let size = if odd { b as u32 } else { payload.len() as u32 };
            let event = RecvEvent {
                header: header(EventKind::Recv, flags, payload.len() as u16, size),
                sock, end_pos: a, pid_tgid: b, read_ns: c, arrived_first_ns: d, arrived_last_ns: a,
            };
            [bytes_of(&event), &payload].concat()
        }),
        1 => (common.clone(), vec((number(), number()), ARRIVALS_MAX)).prop_map(move |((sock, _, a, ..), list)| {
            let mut arrivals = [Arrival::default(); ARRIVALS_MAX];
            for (arrival, (end_pos, time_ns)) in arrivals.iter_mut().zip(list) {
                *arrival = Arrival { end_pos, time_ns };
            }
            bytes_of(&ArrivalsEvent { header: header(EventKind::Arrivals, 0, 0, a as u32), sock, arrivals }).to_vec()
        }),
        1 => common.clone().prop_map(move |(sock, _, a, b, ..)| {
            let header = header(EventKind::FirstDeparture, 0, 0, 0);
            bytes_of(&FirstDepartureEvent { header, sock, start_pos: a, time_ns: b }).to_vec()
        }),
        1 => common.clone().prop_map(move |(sock, flags, a, b, c, _)| {
            let event = CloseEvent {
                header: header(EventKind::Close, flags, 0, 0), sock, time_ns: a, send_pos: b, recv_pos: c,
            };
            bytes_of(&event).to_vec()
        }),
        1 => common.clone().prop_map(move |(sock, _, a, b, c, _)| {
            let event = RetransmitEvent {
                header: header(EventKind::Retransmit, 0, 0, 0), sock, time_ns: a, start_pos: b, end_pos: c,
            };
            bytes_of(&event).to_vec()
        }),
        1 => common.clone().prop_map(move |(_, _, a, b, ..)| {
            let event = ClockEvent { header: header(EventKind::Clock, 0, 0, 0), monotonic_ns: a, unix_ns: b };
            bytes_of(&event).to_vec()
        }),
        1 => (common.clone(), payload()).prop_map(move |((_, flags, a, ..), ports)| {
            let event = PortsEvent { header: header(EventKind::Ports, flags, ports.len() as u16, 0), time_ns: a };
            [bytes_of(&event), &ports].concat()
        }),
        1 => common.prop_map(move |(_, _, a, b, c, _)| {
            let event = LostEvent { header: header(EventKind::Lost, 0, 0, a as u32), time_ns: b, count: c };
            bytes_of(&event).to_vec()
        }),
    ]
}

/// Feeds the records in blocks of `n`, checks the bounds after each.
fn feed(records: &[Record], n: usize) -> (Engine, Output) {
    let (mut engine, mut out) = (Engine::with_protocols(small(), PROTOCOLS), Output::default());
    let mut builder = BlockBuilder::default();
    for chunk in records.chunks(n) {
        for record in chunk {
            builder.push(&[&record.0]);
        }
        engine.push(&builder.take(), &mut out);
        let counters = engine.counters();
        assert!(
            counters.connections <= 4 && counters.open_requests <= 16 && counters.held <= 8,
            "{counters:?}"
        );
        assert!(engine.open_requests(99).len() as u64 <= counters.open_requests);
    }
    engine.finish(&mut out);
    (engine, out)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_change_counters_only(bytes in vec(any::<u8>(), 0..600)) {
        let mut engine = Engine::with_protocols(small(), PROTOCOLS);
        let mut out = Output::default();
        engine.push(&Block(bytes.clone().into()), &mut out);
        let mut builder = BlockBuilder::default();
        bytes.chunks(97).for_each(|record| builder.push(&[record]));
        engine.push(&builder.take(), &mut out);
        engine.finish(&mut out);
        prop_assert!(out.spans.is_empty());
    }

    #[test]
    fn arbitrary_records_never_panic_and_cuts_do_not_matter(records in vec(record(), 0..120)) {
        let (engine, out) = feed(&records, usize::MAX);
        for n in [1, 7] {
            let (other_engine, other_out) = feed(&records, n);
            prop_assert_eq!(engine.counters(), other_engine.counters());
            prop_assert_eq!(&out.spans, &other_out.spans);
            prop_assert_eq!(&out.payload_limits, &other_out.payload_limits);
        }
        // What is not open any more was given out once per half, at most.
        let counters = engine.counters();
        prop_assert!(counters.spans <= counters.halves);
    }

    #[test]
    fn a_dialogue_cut_anywhere_gives_every_command_once(
        commands in vec("[a-z]{1,8}", 1..20),
        cuts in vec(1..12_usize, 1..60),
    ) {
        let requests: String = commands.iter().map(|command| format!("Q{}:{command}", command.len())).collect();
        let mut script = super::stage::PAIR.to_owned();
        let (mut at, mut time, mut cut) = (0, 10, cuts.iter().cycle());
        while at < requests.len() {
            let to = requests.len().min(at + cut.next().expect("cycles"));
            script += &format!("\n {time} c send {}", &requests[at..to]);
            script += &format!("\n {} s recv {}", time + 1, &requests[at..to]);
            (at, time) = (to, time + 2);
        }
        for _ in &commands {
            script += &format!("\n {time} s send A1:x\n {} c recv A1:x", time + 1);
            time += 2;
        }
        let run = super::stage::run(&script);
        let mut seen: Vec<_> = run.out.spans.iter().map(|span| {
            (span.client.as_ref().expect("client").request_message_id, span.server.as_ref().expect("server").operation.clone())
        }).collect();
        seen.sort();
        prop_assert_eq!(seen.into_iter().map(|(_, operation)| operation).collect::<Vec<_>>(), commands);
    }
}
