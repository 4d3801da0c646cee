//! Spans → which request of the client each belongs to: the truth, never told to dprof.
//!
//! With unique keys the span's own text says it. With identical commands it takes what the programs know:
//!
//! | hop | truth |
//! |---|---|
//! | client → first program | the client's own record: the how-manieth request on that connection |
//! | HAProxy → its server | its log joins connections; requests on both are the same, in order |
//! | nutcracker → Redis, memcached | the commands count: the n-th execution for a key answers n, which the client saw |
//! | nginx → service → Redis, HTTP | the service's answer says which requests these were |
//! | between the ring's nodes | the nodes' records: which request on which connection caused which |
//!
//! What a reader would get wrong: a place counts requests of a connection, so one span lost shifts all after it.
//! A connection of which not every request was seen gets no labels at all, and all its links count as not found.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use dprof_common::model::{Side, Span};
use dprof_tests::service::Answer;
use dprof_tests::topology::Stack;
use dprof_tests::truth::Place;

use super::measure::{Case, Keys, Measured};

/// The request that a span belongs to, for each span; `None`: nobody knows.
pub(super) fn labels(case: &Case, measured: &Measured, spans: &[Span]) -> Vec<Option<u64>> {
    match case.keys {
        Keys::Unique => spans.iter().map(by_key).collect(),
        Keys::Identical => by_place(case, measured, spans),
    }
}

/// Digits after `key-`, as the client writes them.
const DIGITS: usize = 7;

fn by_key(span: &Span) -> Option<u64> {
    let halves = span.client.iter().chain(&span.server);
    let texts = halves.flat_map(|half| {
        half.attributes.iter().map(|(_, value)| value.as_str()).chain([half.query_text.as_str()])
    });
    let mut found = texts.filter_map(|text| {
        let (_, rest) = text.split_once("key-")?;
        rest.get(..DIGITS)?.parse().ok()
    });
    found.next()
}

type Connection = (SocketAddr, SocketAddr);

/// Client's and server's address of a span.
fn connection(span: &Span) -> Option<Connection> {
    match (&span.client, &span.server) {
        (Some(half), _) => Some((half.local, half.peer)),
        (None, Some(half)) => Some((half.peer, half.local)),
        (None, None) => None,
    }
}

/// Order on the connection: messages are numbered as they are seen.
fn order(span: &Span) -> u64 {
    span.widest().map_or(0, |half| half.request_message_id.0)
}

fn by_place(case: &Case, measured: &Measured, spans: &[Span]) -> Vec<Option<u64>> {
    let known = places(measured);
    let mut connections: HashMap<Connection, Vec<usize>> = HashMap::new();
    for (idx, span) in spans.iter().enumerate() {
        if let Some(connection) = connection(span) {
            connections.entry(connection).or_default().push(idx);
        }
    }
    let mut expected: HashMap<Connection, usize> = HashMap::new();
    for place in known.keys() {
        *expected.entry((place.client, place.server)).or_default() += 1;
    }
    let mut labels = vec![None; spans.len()];
    for ((client, server), mut of_connection) in connections {
        if expected.get(&(client, server)) != Some(&of_connection.len()) {
            continue;
        }
        of_connection.sort_by_key(|&idx| order(&spans[idx]));
        for (index, idx) in (0..).zip(of_connection) {
            labels[idx] = known.get(&Place { client, server, index }).copied();
        }
    }
    if matches!(case.topology.stack, Stack::Nutcracker | Stack::HaproxyNutcracker(_)) {
        by_count(measured, spans, &mut labels);
    }
    labels
}

/// Places whose request is known, from all that the programs say.
fn places(measured: &Measured) -> HashMap<Place, u64> {
    let mut known = HashMap::new();
    for asked in &measured.asked {
        known.insert(asked.at, asked.request);
        let body = asked.reply.rsplit("\r\n\r\n").next().unwrap_or_default();
        if let Ok(answer) = serde_json::from_str::<Answer>(body) {
            known.insert(answer.at, asked.request);
            known.extend(answer.calls.into_iter().map(|place| (place, asked.request)));
        }
    }
    // A hop may be noted before the one that caused it.
    let mut rest = measured.hops.clone();
    loop {
        let before = rest.len();
        rest.retain(|hop| {
            let request = known.get(&hop.cause).copied();
            known.extend(request.map(|request| (hop.at, request)));
            request.is_none()
        });
        if rest.len() == before {
            return known;
        }
    }
}

/// Requests that count: for each key the n-th at the server belongs to the client whose answer was n.
fn by_count(measured: &Measured, spans: &[Span], labels: &mut [Option<u64>]) {
    let mut asked: HashMap<(&str, u64), u64> = HashMap::new();
    for one in &measured.asked {
        let digits: String = one.reply.chars().filter(char::is_ascii_digit).collect();
        if let Ok(count) = digits.parse() {
            asked.insert((&one.key, count), one.request);
        }
    }
    // The servers are those who call nobody.
    let pid = |span: &Span, side: Side| {
        let half = if side == Side::Client { &span.client } else { &span.server };
        half.as_ref().map(|half| half.process.pid)
    };
    let callers: HashSet<u32> = spans.iter().filter_map(|span| pid(span, Side::Client)).collect();
    let mut keys: Vec<&str> = measured.asked.iter().map(|asked| asked.key.as_str()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let mut of_key: Vec<usize> = (0..spans.len())
            .filter(|&idx| {
                let span = &spans[idx];
                pid(span, Side::Server).is_some_and(|pid| !callers.contains(&pid))
                    && span.nearest().is_some_and(|half| half.query_text.contains(key))
            })
            .collect();
        of_key.sort_by_key(|&idx| order(&spans[idx]));
        let all = measured.asked.iter().filter(|asked| asked.key == key).count();
        if of_key.len() == all {
            for (count, idx) in (1..).zip(of_key) {
                labels[idx] = asked.get(&(key, count)).copied();
            }
        }
    }
}
