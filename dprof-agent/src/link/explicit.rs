//! Ids in messages: the trace id (W3C `traceparent`, B3) or the request id (`X-Request-ID`) that came in with a
//! request is the one that goes out with the calls that it causes.
//!
//! What a reader would get wrong: a trace id is unique to a *trace*, not to a request. A service that is asked twice
//! in one trace holds two requests with one trace id; then the span id decides (a proxy passes the header on as it
//! came), else the thread, else nobody: weaker evidence is asked.

use dprof_common::model::EvidenceKind;

use super::table::{KeyKind, Ref, Table, fold, key};
use super::{Certainty, Evidence, Observation, Proposal};

/// Requests of one trace in one process that are looked through.
const SAME_TRACE_MAX: usize = 64;
/// Feature: the thread decided among several.
const BY_THREAD: u8 = 1;

/// Evidence by ids.
#[derive(Debug, Default)]
pub(crate) struct ExplicitId;

impl Evidence for ExplicitId {
    fn kind(&self) -> EvidenceKind {
        EvidenceKind::ExplicitId
    }

    fn request_read(&mut self, table: &mut Table, request: Ref, seen: &Observation<'_>) {
        if let Some((trace_id, _)) = seen.explicit_id {
            table.share(key(KeyKind::TraceId, seen.tgid, fold(trace_id)), request);
        }
        if let Some(hash) = seen.request_id {
            table.share(key(KeyKind::RequestId, seen.tgid, hash), request);
        }
    }

    fn call_made(&mut self, table: &mut Table, _call: Ref, seen: &Observation<'_>) -> Option<Proposal> {
        let by_trace = seen.explicit_id.and_then(|(trace_id, _)| {
            let same = |carried: (u128, u64)| carried.0 == trace_id;
            one_of(table, key(KeyKind::TraceId, seen.tgid, fold(trace_id)), seen, same)
        });
        by_trace
            .or_else(|| one_of(table, key(KeyKind::RequestId, seen.tgid, seen.request_id?), seen, |_| true))
    }
}

/// The one request under `key` that carried the call's ids.
fn one_of(
    table: &Table,
    key: u64,
    seen: &Observation<'_>,
    same_trace: impl Fn((u128, u64)) -> bool,
) -> Option<Proposal> {
    let shared = table.shared(table.find_shared(key))?;
    let carried = |at: Ref| table.request(at).and_then(super::table::Request::explicit_id);
    let fits = |at: &Ref| table.request(*at).is_some() && carried(*at).is_none_or(&same_trace);
    if shared.n == 1 {
        return fits(&shared.newest).then_some(Proposal::one(shared.newest, Certainty::Certain));
    }
    let all: Vec<Ref> = shared
        .ties
        .as_ref()?
        .requests
        .iter()
        .rev()
        .take(SAME_TRACE_MAX)
        .map(|(_, at)| *at)
        .filter(fits)
        .collect();
    let only = |test: &dyn Fn(Ref) -> bool| {
        let mut found = all.iter().copied().filter(|at| test(*at));
        found.next().filter(|_| found.next().is_none())
    };
    let is_open = |at: Ref| table.request(at).is_some_and(super::table::Request::is_open);
    let passed_on = only(&|at| seen.explicit_id.is_some() && carried(at) == seen.explicit_id);
    if let Some(at) = passed_on {
        return Some(Proposal::one(at, Certainty::Certain));
    }
    let on_thread = |at: Ref| table.request(at).is_some_and(|request| request.tid == seen.tid);
    only(&is_open)
        .or_else(|| only(&|at| is_open(at) && on_thread(at)))
        .map(|at| Proposal::one(at, Certainty::Probable(BY_THREAD)))
}
