//! Links between datacenters: how long calls spend on each, and which one is delayed.
//!
//! A call between hosts of two datacenters (the agents' label `dc`) spends its network time, both ways together, on
//! the link between these two, whoever of them asked. Network time is a difference of two differences, each on one
//! clock, so clocks of the datacenters need not agree.
//!
//! Where a link is crowded the answer waits in the server's own queue, and when it left is not known: what it waits there
//! is counted as the link's, since it is for the link that it waits.
//!
//! What a reader would get wrong: without a time before the delay there is nothing to compare with but the other
//! links. A delay of a link is in every call, waiting elsewhere in some: so a link is said to be delayed only if nearly
//! all of its calls take longer than half of the calls of the link in the middle of the others. Where links are short
//! and long by nature, the long one is said to be delayed too.

use std::collections::BTreeMap;

use dprof_common::model::{Half, HalfFlags, Span, split};
use serde::Serialize;

use super::estimate::{Distribution, Latency};

/// Fewer calls say nothing of a link.
const CALLS_MIN: u64 = 20;

/// Nearly all of a delayed link's calls, all but this share, take longer than half of another's.
const FASTEST: f64 = 0.1;

/// A link between two datacenters. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DcLinkRow {
    /// The two, in the order of their names.
    pub dcs: [String; 2],
    /// Calls over it that both ends saw.
    pub calls: u64,
    /// Whether its calls are longer on the network than those of the other links.
    pub is_delayed: bool,
    /// Network time of a call, both ways; with the time in the server's send queue where nobody saw the answer leave.
    #[serde(flatten)]
    pub network: Latency,
}

/// Adds up network times of calls between datacenters.
#[derive(Default)]
pub struct DcLinks(BTreeMap<[String; 2], Distribution>);

fn dc(half: &Half) -> Option<&String> {
    half.host.labels.get("dc").or_else(|| half.host.labels.get("datacenter")).filter(|dc| !dc.is_empty())
}

/// Network and send queue in one: the time between request and answer at the client, less that between the request's
/// arrival and the call that gave the answer to the kernel. Where the answer's departure is known there is no need.
fn on_the_way(client: &Half, server: &Half) -> Option<i64> {
    let (asked, served) = (&client.times, &server.times);
    if served.response_first_ns.is_some() || server.flags.contains(HalfFlags::INCOMPLETE) {
        return None;
    }
    let away = asked.response_first_ns?.wrapping_sub(asked.request_last_ns.unwrap_or(asked.start_ns));
    let held = served.end_ns.wrapping_sub(served.request_last_ns?);
    Some(away.wrapping_sub(held) as i64)
}

impl DcLinks {
    /// Adds the calls among these spans.
    pub fn add(&mut self, spans: &[Span]) {
        for span in spans {
            let (Some(client), Some(server)) = (&span.client, &span.server) else { continue };
            let (Some(from), Some(to)) = (dc(client), dc(server)) else { continue };
            let network = split(span).network_ns.or_else(|| on_the_way(client, server));
            let Some(network) = network.and_then(|ns| u64::try_from(ns).ok()) else { continue };
            if from != to {
                let mut dcs = [from.clone(), to.clone()];
                dcs.sort();
                self.0.entry(dcs).or_default().add(network, 1.0);
            }
        }
    }

    /// The links by name.
    pub fn rows(self) -> Vec<DcLinkRow> {
        let links: Vec<([String; 2], Distribution)> = self.0.into_iter().collect();
        let is_delayed = |idx: usize| {
            let usable = |other: usize| links[other].1.seen >= CALLS_MIN;
            let mut others: Vec<u64> = (0..links.len())
                .filter(|other| *other != idx && usable(*other))
                .map(|other| links[other].1.quantile(0.5))
                .collect();
            others.sort_unstable();
            // Of two the faster one.
            let Some(usual) = others.len().checked_sub(1).map(|last| others[last / 2]) else { return false };
            usable(idx) && links[idx].1.quantile(FASTEST) > usual
        };
        links
            .iter()
            .enumerate()
            .map(|(idx, (dcs, network))| DcLinkRow {
                dcs: dcs.clone(),
                calls: network.seen,
                is_delayed: is_delayed(idx),
                network: network.latency(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;

    /// A call of a host of one datacenter to one of another; 16 % of it is network.
    fn call(id: u64, from: &str, to: &str, us: u64) -> Span {
        let mut span = rpc(id).hosts("a", "b").at(id, us).build();
        for (half, dc) in [(&mut span.client, from), (&mut span.server, to)] {
            let host = std::sync::Arc::make_mut(&mut half.as_mut().expect("seen").host);
            host.labels.insert("dc".to_owned(), dc.to_owned());
        }
        span
    }

    /// Calls of `from`-`to` with these durations in microseconds, 20 of each; names of delayed links.
    #[track_caller]
    fn check(links: &[(&str, &str, &[u64])], expected: &[&str]) {
        let mut sums = DcLinks::default();
        for (from, to, durations_us) in links {
            for us in *durations_us {
                sums.add(&(0..20).map(|id| call(id, from, to, *us)).collect::<Vec<_>>());
            }
        }
        let delayed: Vec<String> =
            sums.rows().iter().filter(|row| row.is_delayed).map(|row| row.dcs.join("-")).collect();
        assert_eq!(delayed, expected);
    }

    #[test]
    fn the_link_whose_calls_are_nearly_all_slower_is_delayed() {
        check(
            &[
                ("dc1", "dc2", &[900, 1_000, 1_100]),
                ("dc3", "dc1", &[9_000, 9_500]),
                ("dc2", "dc3", &[1_000, 1_500]),
            ],
            &["dc1-dc3"],
        );
        check(&[("dc1", "dc2", &[1_000]), ("dc1", "dc3", &[9_000])], &["dc1-dc3"]);
    }

    #[test]
    fn an_answer_that_waits_to_be_sent_waits_for_the_link() {
        let mut sums = DcLinks::default();
        let mut span = call(1, "dc1", "dc2", 1_000);
        let server = span.server.as_mut().expect("seen");
        // The call that sent it ended where it would have left: 16 % are network, as before.
        server.times.end_ns = server.times.response_first_ns.take().expect("a time");
        server.times.response_last_ns = None;
        assert_eq!(split(&span).network_ns, None);
        sums.add(std::slice::from_ref(&span));
        span.server.as_mut().expect("seen").times.request_last_ns = None;
        sums.add(&[span]);
        let rows = sums.rows();
        assert_eq!((rows[0].calls, rows[0].network.max_ns), (1, 160_000));
    }

    #[test]
    fn both_directions_are_one_link() {
        let mut sums = DcLinks::default();
        sums.add(&[call(1, "dc2", "dc1", 1_000), call(2, "dc1", "dc2", 1_000)]);
        let rows = sums.rows();
        assert_eq!((rows.len(), rows[0].calls), (1, 2));
        assert_eq!((rows[0].network.min_ns, rows[0].network.max_ns), (160_000, 160_000));
    }

    #[test]
    fn links_that_overlap_or_stand_alone_are_not_delayed() {
        check(&[("dc1", "dc2", &[1_000, 1_000, 5_000]), ("dc1", "dc3", &[900, 9_000, 9_000])], &[]);
        check(&[("dc1", "dc2", &[9_000])], &[]);
        check(&[("dc1", "dc2", &[1_000]), ("dc1", "dc3", &[1_000])], &[]);
        check(&[("dc1", "dc1", &[1_000]), ("dc1", "", &[9_000])], &[]);
    }

    #[test]
    fn few_calls_say_nothing_of_a_link() {
        let mut sums = DcLinks::default();
        sums.add(&(0..19).map(|id| call(id, "dc1", "dc2", 9_000)).collect::<Vec<_>>());
        sums.add(&(0..20).map(|id| call(id, "dc1", "dc3", 1_000)).collect::<Vec<_>>());
        assert!(sums.rows().iter().all(|row| !row.is_delayed));
    }
}
