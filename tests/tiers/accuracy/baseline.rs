//! What simple rules make of the same halves: the two that a reader would try first.
//!
//! | rule | a call belongs to |
//! |---|---|
//! | first come | the oldest open request of the process that has calls left and made none to that server yet |
//! | latest open | the open request that was read last |
//!
//! What a reader would get wrong: the first rule is told how many calls a request of each process makes at most,
//! which no tool knows. Without it, it would give a sharding proxy's request a call to every server.

use std::collections::{BTreeMap, HashMap, HashSet};

use dprof_common::model::{Half, Span, SpanId};

/// A rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    FirstCome,
    LatestOpen,
}

enum Step<'a> {
    Read(&'a Half, SpanId),
    Call(&'a Half, SpanId),
    Answered(&'a Half),
}

/// Parents by a rule: call → request.
pub(super) fn parents(rule: Rule, spans: &[Span], labels: &[Option<u64>]) -> HashMap<SpanId, SpanId> {
    let calls_max = calls_max(spans, labels);
    let mut steps: Vec<(u64, u8, u64, Step<'_>)> = Vec::new();
    for span in spans {
        if let Some(half) = &span.server {
            let (read_ns, number) = read_at(half);
            steps.push((read_ns, 0, number, Step::Read(half, span.span_id)));
            steps.push((half.times.end_ns, 2, number, Step::Answered(half)));
        }
        if let Some(half) = &span.client {
            steps.push((half.times.start_ns, 1, half.request_message_id.0, Step::Call(half, span.span_id)));
        }
    }
    // At one time: a request is read, makes its call, and is answered. Of those that shared a system call, in the
    // order of their messages.
    steps.sort_by_key(|&(time, rank, number, _)| (time, rank, number));
    // Per process the open requests, by when they were read.
    let mut open: HashMap<u32, BTreeMap<(u64, u64), SpanId>> = HashMap::new();
    let mut called = HashSet::new();
    let mut n_calls: HashMap<SpanId, usize> = HashMap::new();
    let mut parents = HashMap::new();
    for (_, _, _, step) in steps {
        match step {
            Step::Read(half, id) => {
                open.entry(half.process.pid).or_default().insert(read_at(half), id);
            }
            Step::Answered(half) => {
                open.entry(half.process.pid).or_default().remove(&read_at(half));
            }
            Step::Call(half, id) => {
                let Some(requests) = open.get(&half.process.pid) else { continue };
                let mut requests = requests.values().copied();
                let found = match rule {
                    Rule::FirstCome => requests.find(|request| {
                        let made = n_calls.get(request).copied().unwrap_or(0);
                        let max = calls_max.get(&half.process.pid).copied().unwrap_or(0);
                        made < max && !called.contains(&(*request, half.peer))
                    }),
                    Rule::LatestOpen => requests.next_back(),
                };
                if let Some(request) = found {
                    called.insert((request, half.peer));
                    *n_calls.entry(request).or_default() += 1;
                    parents.insert(id, request);
                }
            }
        }
    }
    parents
}

/// When a request was read, and the number of its message.
fn read_at(half: &Half) -> (u64, u64) {
    (half.times.request_read_ns.unwrap_or(half.times.start_ns), half.request_message_id.0)
}

/// Most calls that a request makes in each process.
fn calls_max(spans: &[Span], labels: &[Option<u64>]) -> HashMap<u32, usize> {
    let mut calls: HashMap<(u32, u64), usize> = HashMap::new();
    for (span, label) in spans.iter().zip(labels) {
        if let (Some(half), Some(label)) = (&span.client, label) {
            *calls.entry((half.process.pid, *label)).or_default() += 1;
        }
    }
    let mut max: HashMap<u32, usize> = HashMap::new();
    for ((pid, _), count) in calls {
        let most = max.entry(pid).or_default();
        *most = (*most).max(count);
    }
    max
}
