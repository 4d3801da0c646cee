//! Causes of added time, as a person would name them: a process, a link between hosts, more calls, one key, lost
//! segments, a process that is new.
//!
//! What the critical paths gained is added up by who spent it: a process (its queue, its service, and the replies
//! that it left unread), or the network between two hosts. The largest of these is then looked at again: if extra
//! calls, one key, retransmitted segments or a new process explain most of it, that is the cause.
//!
//! What a reader would get wrong: a reply that waits in a socket waits for its *reader*, so it is the caller's time,
//! though it is a part of the called RPC.

use std::collections::{BTreeMap, HashMap};

use dprof_common::model::{HalfFlags, Span};
use serde::Serialize;

use super::critical_path::critical_path;
use super::diagnosis::{FailingRow, Request};
use super::latency::Part;
use super::place::place;
use super::row::halves;
use super::tree::Tree;
use crate::units;

/// What adds less than this share of the whole is no cause.
const SHARE_MIN: f64 = 0.05;
/// Extra calls are the cause if they explain this share of the added time.
const EXPLAINS_MIN: f64 = 0.4;
/// A hot key takes at least this share of its hop's time, and as much of the added time: others wait behind it.
const HOT_TIME_MIN: f64 = 0.25;
/// Extra calls explain time only if the single call does not take so many times longer.
const SLOWER_MAX: f64 = 2.0;
/// A key is hot if this share of its hop's calls name it…
const HOT_SHARE_MIN: f64 = 0.2;
/// … and so many times the share of before.
const HOT_FACTOR_MIN: f64 = 3.0;
/// The network is slow for lost segments if RPCs with retransmissions hold this share of its time.
const RETRANSMITTED_SHARE_MIN: f64 = 0.3;
/// Links of one host are one cause if together they added so many times what the first of them did.
const ONE_HOST_MIN: f64 = 1.25;
/// A process is new if it serves this share of its service's RPCs, and at most this share of those before.
const NEW_SHARE_MIN: f64 = 0.8;
const OLD_SHARE_MAX: f64 = 0.15;

/// A cause. Field names are the JSON schema.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cause {
    /// `failures`, `more calls`, `hot key`, `retransmissions`, `new process`, `network`, or the part of a process's
    /// time: `queue`, `service`, `streaming`, `reply queue`, `send`, `remote`.
    pub kind: &'static str,
    /// Service; empty for a link.
    pub service: String,
    /// Its operation with most of the time.
    pub operation: String,
    /// Host of the service, or one end of the link.
    pub host: String,
    /// The link's other end; empty if several links of `host` are slow, or it is no link.
    pub other_host: String,
    /// The hot key, or the new process.
    pub value: String,
    /// Per request after the change: nanoseconds, or how many.
    pub now: f64,
    /// Before.
    pub was: f64,
    /// Share of the added time, or of the failed requests.
    pub share: f64,
    /// In words.
    pub text: String,
}

/// Who spent time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Spender {
    /// Service and host.
    Process(String, String),
    /// Two hosts, in the order of their names.
    Link(String, String),
}

/// Time of one spender on the paths.
#[derive(Clone, Debug, Default)]
struct Spent {
    ns: u64,
    by_part: BTreeMap<Part, u64>,
    by_operation: BTreeMap<String, u64>,
    /// In RPCs with retransmitted segments.
    retransmitted_ns: u64,
}

/// RPCs of one service and operation.
#[derive(Clone, Debug, Default)]
struct Hop {
    calls: u64,
    ns: u64,
    /// By statement: calls and time.
    keys: HashMap<String, (u64, u64)>,
}

/// Requests of one stretch.
#[derive(Default)]
struct Stretch {
    requests: u64,
    ns: u64,
    spent: BTreeMap<Spender, Spent>,
    hops: BTreeMap<(String, String), Hop>,
    /// RPCs by service, host and process.
    processes: BTreeMap<(String, String), BTreeMap<u32, u64>>,
}

fn spender(span: &Span, part: Part) -> Option<Spender> {
    let near = span.nearest()?;
    match (part, &span.client, &span.server) {
        (Part::Network | Part::Rest, Some(client), Some(server)) => {
            let (a, b) = (client.host.host.clone(), server.host.host.clone());
            Some(if a <= b { Spender::Link(a, b) } else { Spender::Link(b, a) })
        }
        (Part::ReplyQueue | Part::Send, Some(client), _) => {
            Some(Spender::Process(client.process.service.clone(), client.host.host.clone()))
        }
        _ => Some(Spender::Process(near.process.service.clone(), near.host.host.clone())),
    }
}

fn is_retransmitted(span: &Span) -> bool {
    halves(span).any(|half| half.retransmits > 0 || half.flags.contains(HalfFlags::RETRANSMITTED))
}

impl Stretch {
    fn of(requests: &[Request]) -> Self {
        let mut stretch = Self::default();
        for request in requests {
            let tree = Tree::new(&request.spans);
            let Some(at) = tree.nodes.iter().position(|node| node.span.span_id == request.at) else {
                continue;
            };
            stretch.add(&tree, at);
        }
        stretch
    }

    fn add(&mut self, tree: &Tree<'_>, at: usize) {
        self.requests += 1;
        self.ns += tree.nodes[at].span.duration_ns();
        for step in critical_path(tree, &place(tree), at) {
            let span = tree.nodes[step.idx].span;
            let (Some(spender), Some(near)) = (spender(span, step.part), span.nearest()) else { continue };
            let spent = self.spent.entry(spender).or_default();
            let ns = step.ns();
            spent.ns += ns;
            *spent.by_part.entry(step.part).or_default() += ns;
            *spent.by_operation.entry(near.operation.clone()).or_default() += ns;
            if is_retransmitted(span) {
                spent.retransmitted_ns += ns;
            }
        }
        for span in tree.nodes.iter().map(|node| node.span) {
            let Some(near) = span.nearest() else { continue };
            let service = near.process.service.clone();
            let hop = self.hops.entry((service.clone(), near.operation.clone())).or_default();
            hop.calls += 1;
            hop.ns += span.duration_ns();
            if !near.query_text.is_empty() {
                let key = hop.keys.entry(near.query_text.clone()).or_default();
                key.0 += 1;
                key.1 += span.duration_ns();
            }
            let of_service = self.processes.entry((service, near.host.host.clone())).or_default();
            *of_service.entry(near.process.pid).or_default() += 1;
        }
    }

    /// Per request, nanoseconds.
    fn per_request(&self, ns: u64) -> f64 {
        ns as f64 / self.requests.max(1) as f64
    }
}

fn most<K: Clone + Default>(of: &BTreeMap<K, u64>) -> K {
    of.iter().max_by_key(|(_, ns)| **ns).map(|(key, _)| key.clone()).unwrap_or_default()
}

fn duration(ns: f64) -> String {
    units::duration(ns.max(0.0) as u64)
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// What made requests slower or, where failures are the symptom, fail: the most likely cause first.
pub fn causes(after: &[Request], before: &[Request], failing: &[FailingRow], is_failure: bool) -> Vec<Cause> {
    let mut causes: Vec<Cause> = failing.iter().take(1).filter(|_| is_failure).map(of_failure).collect();
    let (now, was) = (Stretch::of(after), Stretch::of(before));
    let whole = now.per_request(now.ns) - was.per_request(was.ns);
    if whole <= 0.0 || was.requests == 0 {
        return causes;
    }
    let mut spent = of_spenders(&now, &was, whole);
    if let Some(cause) = more_calls(&now, &was, whole).or_else(|| hot_key(&now, &was, whole)) {
        causes.push(cause);
    } else if let Some(first) = spent.first_mut() {
        new_process(first, &now, &was);
    }
    causes.extend(spent);
    causes
}

fn of_failure(row: &FailingRow) -> Cause {
    let code = if row.status_code.is_empty() { String::new() } else { format!(" {}", row.status_code) };
    Cause {
        kind: "failures",
        service: row.service.clone(),
        operation: row.operation.clone(),
        host: row.host.clone(),
        share: row.share,
        now: row.requests as f64,
        text: format!(
            "{} {} on {}: {}{code}, {} of the failed",
            row.service,
            row.operation,
            row.host,
            row.status,
            percent(row.share)
        ),
        ..Cause::default()
    }
}

/// Processes and links that added time, the largest first.
fn of_spenders(now: &Stretch, was: &Stretch, whole: f64) -> Vec<Cause> {
    let added = |spender: &Spender| {
        let of =
            |stretch: &Stretch| stretch.per_request(stretch.spent.get(spender).map_or(0, |spent| spent.ns));
        (of(now), of(was))
    };
    let mut causes = Vec::new();
    let mut links: Vec<(&str, &str, f64, f64)> = Vec::new();
    for spender in now.spent.keys() {
        let (ns, was_ns) = added(spender);
        match spender {
            Spender::Link(a, b) => links.push((a, b, ns, was_ns)),
            Spender::Process(service, host) => {
                causes.extend(of_process(now, was, spender, (service, host), (ns, was_ns), whole));
            }
        }
    }
    causes.extend(of_links(now, was, &links, whole));
    causes.retain(|cause| cause.share >= SHARE_MIN);
    causes.sort_by(|a, b| b.share.total_cmp(&a.share));
    causes
}

fn of_process(
    now: &Stretch,
    was: &Stretch,
    spender: &Spender,
    (service, host): (&str, &str),
    (ns, was_ns): (f64, f64),
    whole: f64,
) -> Option<Cause> {
    let spent = now.spent.get(spender)?;
    let nothing = Spent::default();
    let spent_before = was.spent.get(spender).unwrap_or(&nothing);
    let added = |part: &Part| {
        let before = spent_before.by_part.get(part).copied().unwrap_or(0);
        now.per_request(spent.by_part[part]) - was.per_request(before)
    };
    let part = spent.by_part.keys().copied().max_by(|a, b| added(a).total_cmp(&added(b)))?;
    let operation = most(&spent.by_operation);
    let share = (ns - was_ns) / whole;
    Some(Cause {
        kind: part.name(),
        service: service.to_owned(),
        host: host.to_owned(),
        now: ns,
        was: was_ns,
        share,
        text: format!(
            "{} of the added time is {} of {service} {operation} on {host}: {}, was {}",
            percent(share),
            part.name(),
            duration(ns),
            duration(was_ns)
        ),
        operation,
        ..Cause::default()
    })
}

/// The slowest link, or the host whose links all are.
fn of_links(now: &Stretch, was: &Stretch, links: &[(&str, &str, f64, f64)], whole: f64) -> Option<Cause> {
    let added = |(.., ns, was_ns): &(&str, &str, f64, f64)| ns - was_ns;
    let first = links.iter().max_by(|a, b| added(a).total_cmp(&added(b)))?;
    let of_host = |host: &str| {
        let its: Vec<_> = links.iter().filter(|(a, b, ..)| *a == host || *b == host).collect();
        let sum = |of: fn(&(&str, &str, f64, f64)) -> f64| its.iter().map(|link| of(link)).sum::<f64>();
        (sum(|link| link.2), sum(|link| link.3))
    };
    let (host, (host_ns, host_was)) = [first.0, first.1]
        .map(|host| (host, of_host(host)))
        .into_iter()
        .max_by(|a, b| (a.1.0 - a.1.1).total_cmp(&(b.1.0 - b.1.1)))?;
    let is_host = host_ns - host_was >= ONE_HOST_MIN * added(first);
    let (ns, was_ns) = if is_host { (host_ns, host_was) } else { (first.2, first.3) };
    let place = match (is_host, first.0 == first.1) {
        (true, _) => format!("between {host} and others"),
        (false, true) => format!("within {}", first.0),
        (false, false) => format!("between {} and {}", first.0, first.1),
    };
    let is_of = |spender: &Spender| match spender {
        Spender::Link(a, b) if is_host => a == host || b == host,
        Spender::Link(a, b) => a == first.0 && b == first.1,
        Spender::Process(..) => false,
    };
    let sums = |stretch: &Stretch| {
        let of = stretch.spent.iter().filter(|(spender, _)| is_of(spender)).map(|(_, spent)| spent);
        of.fold((0, 0), |(ns, lost), spent| (ns + spent.ns, lost + spent.retransmitted_ns))
    };
    let share_lost = |(ns, lost): (u64, u64)| lost as f64 / ns.max(1) as f64;
    let (lost, lost_before) = (share_lost(sums(now)), share_lost(sums(was)));
    let is_lossy = lost >= RETRANSMITTED_SHARE_MIN && lost >= 2.0 * lost_before;
    let share = (ns - was_ns) / whole;
    let what = if is_lossy { "retransmissions" } else { "network" };
    let detail = if is_lossy {
        format!("; {} of it in RPCs with segments sent again", percent(lost))
    } else {
        String::new()
    };
    Some(Cause {
        kind: what,
        host: if is_host { host } else { first.0 }.to_owned(),
        other_host: if is_host { String::new() } else { first.1.to_owned() },
        now: ns,
        was: was_ns,
        share,
        text: format!(
            "{} of the added time is network {place}: {}, was {}{detail}",
            percent(share),
            duration(ns),
            duration(was_ns)
        ),
        ..Cause::default()
    })
}

/// A hop that is called more often, if single calls take about as long as before.
fn more_calls(now: &Stretch, was: &Stretch, whole: f64) -> Option<Cause> {
    let nothing = Hop::default();
    now.hops
        .iter()
        .filter_map(|((service, operation), hop)| {
            let before = was.hops.get(&(service.clone(), operation.clone())).unwrap_or(&nothing);
            let (calls, calls_before) = (now.per_request(hop.calls), was.per_request(before.calls));
            let mean = |hop: &Hop| hop.ns as f64 / hop.calls.max(1) as f64;
            let explained = (calls - calls_before) * mean(hop) / whole;
            let is_more = calls >= 1.5 * calls_before && calls - calls_before >= 2.0;
            let is_as_quick = before.calls == 0 || mean(hop) <= SLOWER_MAX * mean(before);
            (is_more && is_as_quick && explained >= EXPLAINS_MIN).then(|| Cause {
                kind: "more calls",
                service: service.clone(),
                operation: operation.clone(),
                now: calls,
                was: calls_before,
                share: explained.min(1.0),
                text: format!(
                    "more calls of {service} {operation}: {calls:.1} per request, was {calls_before:.1}; {} of the added time",
                    percent(explained.min(1.0))
                ),
                ..Cause::default()
            })
        })
        .max_by(|a, b| a.share.total_cmp(&b.share).then(a.now.total_cmp(&b.now)))
}

/// A key that many more requests name than before, and that takes most of its hop's time.
fn hot_key(now: &Stretch, was: &Stretch, whole: f64) -> Option<Cause> {
    let mut found: Vec<Cause> = Vec::new();
    for (name, hop) in &now.hops {
        let Some((key, (calls, ns))) = hop.keys.iter().max_by_key(|(_, (calls, _))| *calls) else { continue };
        let Some(before) = was.hops.get(name) else { continue };
        let share = *calls as f64 / hop.calls.max(1) as f64;
        let calls_before = before.keys.get(key).map_or(0, |(calls, _)| *calls);
        let share_before = calls_before as f64 / before.calls.max(1) as f64;
        let explained = now.per_request(*ns) / whole;
        let is_hot = share >= HOT_SHARE_MIN && share >= HOT_FACTOR_MIN * share_before;
        if is_hot && *ns as f64 >= HOT_TIME_MIN * hop.ns as f64 && explained >= HOT_TIME_MIN {
            let (service, operation) = name.clone();
            found.push(Cause {
                kind: "hot key",
                text: format!(
                    "hot key: {} of the calls of {service} {operation} are {key}, was {}; they take {} of its time",
                    percent(share),
                    percent(share_before),
                    percent(*ns as f64 / hop.ns.max(1) as f64)
                ),
                service,
                operation,
                value: key.clone(),
                now: share,
                was: share_before,
                share: explained.min(1.0),
                ..Cause::default()
            });
        }
    }
    // The deepest hop that shows it: the quickest one.
    found.into_iter().min_by_key(|cause| {
        now.hops.get(&(cause.service.clone(), cause.operation.clone())).map_or(0, |hop| hop.ns)
    })
}

/// Names the process, if it is another one than before.
fn new_process(cause: &mut Cause, now: &Stretch, was: &Stretch) {
    let place = (cause.service.clone(), cause.host.clone());
    let (Some(now), Some(was)) = (now.processes.get(&place), was.processes.get(&place)) else { return };
    let (all, all_before): (u64, u64) = (now.values().sum(), was.values().sum());
    let Some((pid, calls)) = now.iter().max_by_key(|(_, calls)| **calls) else { return };
    let calls_before = was.get(pid).copied().unwrap_or(0);
    // The change lies somewhere within a step, so the new one may have served some of what counts as before.
    if calls_before as f64 > OLD_SHARE_MAX * all_before as f64 {
        return;
    }
    if *calls as f64 >= NEW_SHARE_MIN * all as f64 {
        cause.text = format!("{}; process {pid} is new", cause.text);
        cause.kind = "new process";
        cause.value = pid.to_string();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;
    use dprof_common::model::SpanId;

    /// A request of `web` on lb with calls of redis on `host`, each so long.
    fn request(n: u64, host: &str, calls: u64, call_us: u64, key: &str) -> Request {
        let id = n * 1_000 + 1;
        let mut spans = vec![
            rpc(id)
                .trace(u128::from(id))
                .of("web", "GET /")
                .query("")
                .hosts("lb", "lb")
                .at(0, calls * (call_us + 20) * 10 / 6 + 1_000)
                .build(),
        ];
        spans.extend((0..calls).map(|call| {
            let at = 400 + calls * (call_us + 20) / 3 + call * (call_us + 20);
            rpc(id + 1 + call)
                .trace(u128::from(id))
                .under(id)
                .by("web")
                .query(key)
                .hosts("lb", host)
                .at(at, call_us)
                .build()
        }));
        Request { spans, at: SpanId(id) }
    }

    fn several(from: u64, make: impl Fn(u64) -> Request) -> Vec<Request> {
        (from..from + 40).map(make).collect()
    }

    #[track_caller]
    fn check(after: &[Request], kind: &str, in_text: &str) -> Cause {
        let before = several(1, |n| request(n, "db-1", 1, 500, &format!("get k{n}")));
        let found = causes(after, &before, &[], false);
        let first = found.first().expect("a cause").clone();
        assert_eq!(first.kind, kind, "{found:#?}");
        assert!(first.text.contains(in_text), "{}", first.text);
        first
    }

    #[test]
    fn a_slow_process_is_named_with_its_host() {
        let after = several(100, |n| request(n, "db-1", 1, 9_000, &format!("get k{n}")));
        let cause = check(&after, "service", "service of");
        assert_eq!((cause.service.as_str(), cause.host.as_str()), ("redis", "db-1"));
    }

    #[test]
    fn extra_calls_are_told_before_the_time_that_they_take() {
        let after = several(100, |n| request(n, "db-1", 20, 500, &format!("get k{n}")));
        let cause = check(&after, "more calls", "20.0 per request, was 1.0");
        assert_eq!((cause.service.as_str(), cause.now, cause.was), ("redis", 20.0, 1.0));
    }

    #[test]
    fn a_key_that_most_ask_for_is_told() {
        let after = several(100, |n| {
            if n % 4 == 0 {
                request(n, "db-1", 1, 500, &format!("get k{n}"))
            } else {
                request(n, "db-1", 1, 9_000, "get hot")
            }
        });
        assert_eq!(
            check(&after, "hot key", "75% of the calls of redis GET are get hot, was 0%").value,
            "get hot"
        );
    }

    #[test]
    fn a_process_that_was_not_there_before_is_told_as_new() {
        let after = several(100, |n| {
            let mut request = request(n, "db-1", 1, 9_000, &format!("get k{n}"));
            for span in &mut request.spans[1..] {
                let half = span.server.as_mut().expect("seen");
                let mut process = (*half.process).clone();
                process.pid = 77;
                half.process = process.into();
            }
            request
        });
        assert_eq!(check(&after, "new process", "process 77 is new").value, "77");
    }

    #[test]
    fn a_slow_network_is_a_link_a_host_or_lost_segments() {
        // Eight milliseconds more on the wire, both ways together.
        let delayed = |request: &mut Request, retransmits: u32| {
            let later = |time: &mut Option<u64>| *time = time.map(|ns| ns + 8_000_000);
            let call = request.spans[1].client.as_mut().expect("seen");
            call.retransmits = retransmits;
            let times = &mut call.times;
            times.end_ns += 8_000_000;
            [&mut times.response_first_ns, &mut times.response_last_ns, &mut times.response_read_ns]
                .into_iter()
                .for_each(later);
            let root = &mut request.spans[0];
            for half in root.client.iter_mut().chain(root.server.iter_mut()) {
                half.times.end_ns += 8_000_000;
                [
                    &mut half.times.response_first_ns,
                    &mut half.times.response_last_ns,
                    &mut half.times.response_read_ns,
                ]
                .into_iter()
                .for_each(later);
            }
        };
        let after = |host: &'static str, retransmits: u32| {
            several(100, |n| {
                let mut request =
                    request(n, if n % 2 == 0 { host } else { "db-1" }, 1, 500, &format!("get k{n}"));
                delayed(&mut request, retransmits);
                request
            })
        };
        let cause = check(&after("db-1", 0), "network", "network between db-1 and lb");
        assert_eq!((cause.host.as_str(), cause.other_host.as_str()), ("db-1", "lb"));
        let cause = check(&after("db-2", 0), "network", "network between lb and others");
        assert_eq!((cause.host.as_str(), cause.other_host.as_str()), ("lb", ""));
        check(&after("db-1", 1), "retransmissions", "sent again");
    }

    #[test]
    fn nothing_slower_has_no_cause_and_failures_come_first() {
        let before = several(1, |n| request(n, "db-1", 1, 500, "get a"));
        assert_eq!(causes(&before, &before, &[], false), []);
        let row = FailingRow {
            service: "redis".into(),
            operation: "GET".into(),
            host: "db-1".into(),
            status: "error",
            status_code: "OOM".into(),
            requests: 9,
            share: 0.9,
        };
        let after = several(100, |n| request(n, "db-1", 1, 9_000, &format!("get k{n}")));
        let found = causes(&after, &before, std::slice::from_ref(&row), true);
        assert_eq!(found[0].text, "redis GET on db-1: error OOM, 90% of the failed");
        assert_eq!(causes(&after, &before, &[row], false)[0].kind, "service");
    }
}
