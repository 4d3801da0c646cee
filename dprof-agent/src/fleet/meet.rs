//! Which of the agents in the store's table are there to be told.
//!
//! What a reader would get wrong: a row's time is by its writer's clock, which may be hours off. So an agent is there as
//! long as its row changes while it is looked at, by the clock of the one who looks; only at first sight its time counts.

use std::net::{IpAddr, SocketAddr};

use dprof_common::model::RunId;
use dprof_store::control::AgentState;
use rustc_hash::FxHashMap;

use crate::words::Met;

/// A row that stays the same for this long is of an agent that is gone: a few of its periods.
const GONE_AFTER_NS: u64 = 20_000_000_000;

/// What is remembered of a row.
#[derive(Clone, Copy, Debug)]
struct Sight {
    seen_unix_ns: u64,
    changed_ns: u64,
}

/// The other agents, as far as their rows have been seen.
#[derive(Debug)]
pub(super) struct Acquaintances {
    own: RunId,
    boot_id: String,
    sights: FxHashMap<RunId, Sight>,
}

impl Acquaintances {
    /// Nobody yet.
    pub(super) fn new(own: RunId, boot_id: &str) -> Self {
        Self { own, boot_id: boot_id.to_owned(), sights: FxHashMap::default() }
    }

    /// Those who are there, by all rows (by host, the newest run first) as read at `unix_ns` and `monotonic_ns`.
    pub(super) fn update(&mut self, rows: &[AgentState], unix_ns: u64, monotonic_ns: u64) -> Vec<Met> {
        let mut sights = FxHashMap::default();
        let mut met: Vec<Met> = Vec::new();
        for row in rows {
            let Ok(run) = row.run_id.parse::<RunId>() else { continue };
            let before = self.sights.get(&run);
            let changed_ns = match before {
                Some(before) if before.seen_unix_ns == row.seen_unix_ns => before.changed_ns,
                Some(_) => monotonic_ns,
                // As old as it says, if that can be.
                None => monotonic_ns.saturating_sub(unix_ns.saturating_sub(row.seen_unix_ns)),
            };
            sights.insert(run, Sight { seen_unix_ns: row.seen_unix_ns, changed_ns });
            let is_there = !row.ended && monotonic_ns.saturating_sub(changed_ns) <= GONE_AFTER_NS;
            // Who was started again is there once, as the newest.
            let is_followed = met.last().is_some_and(|met| met.host == row.host);
            if run != self.own && is_there && !is_followed {
                met.extend(self.met(run, row));
            }
        }
        self.sights = sights;
        met
    }

    /// `None`: it hears nobody, or not where we could reach it.
    fn met(&self, run: RunId, row: &AgentState) -> Option<Met> {
        let is_here = !row.boot_id.is_empty() && row.boot_id == self.boot_id;
        let hears = row.hears.iter().filter_map(|text| text.parse::<SocketAddr>().ok());
        let listens: Vec<_> = hears.filter(|address| is_here || !address.ip().is_loopback()).collect();
        let watches: Vec<IpAddr> =
            row.watches.iter().chain(&row.addresses).filter_map(|text| text.parse().ok()).collect();
        (!listens.is_empty()).then(|| Met { host: row.host.clone(), run, listens, watches })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;
    const NOW: u64 = 10_000 * S;

    fn row(host: &str, run: u128, seen_unix_ns: u64) -> AgentState {
        AgentState {
            host: host.to_owned(),
            run_id: RunId(run).to_string(),
            seen_unix_ns,
            boot_id: "here".to_owned(),
            hears: ["10.0.0.2:4717", "127.0.0.1:4717"].map(str::to_owned).into(),
            watches: vec!["10.1.0.2".to_owned()],
            addresses: vec!["10.0.0.2".to_owned(), "nonsense".to_owned()],
            ..AgentState::default()
        }
    }

    #[track_caller]
    fn check(them: &mut Acquaintances, rows: &[AgentState], after_s: u64, expected: &[u128]) {
        let met = them.update(rows, NOW + after_s * S, 50 * S + after_s * S);
        assert_eq!(met.iter().map(|met| met.run.0).collect::<Vec<_>>(), expected);
    }

    fn nobody() -> Acquaintances {
        Acquaintances::new(RunId(1), "here")
    }

    #[test]
    fn what_a_row_says_is_what_is_met() {
        let met = nobody().update(&[row("a", 1, NOW), row("b", 2, NOW)], NOW, 50 * S);
        let [b] = met.as_slice() else { panic!("one is another: {met:?}") };
        assert_eq!((b.host.as_str(), b.run), ("b", RunId(2)));
        assert_eq!(
            b.listens,
            ["10.0.0.2:4717", "127.0.0.1:4717"].map(|text| text.parse().expect("an address"))
        );
        assert_eq!(
            b.watches,
            ["10.1.0.2", "10.0.0.2"].map(|text| text.parse::<IpAddr>().expect("an address"))
        );
    }

    #[test]
    fn loopback_leads_to_agents_of_the_same_boot_only() {
        let elsewhere = AgentState { boot_id: "there".to_owned(), ..row("b", 2, NOW) };
        let met = nobody().update(std::slice::from_ref(&elsewhere), NOW, 50 * S);
        assert_eq!(met[0].listens, ["10.0.0.2:4717".parse().expect("an address")]);
        let of_loopback = AgentState { hears: vec!["127.0.0.1:4717".to_owned()], ..elsewhere };
        assert_eq!(nobody().update(&[of_loopback], NOW, 50 * S), []);
        let deaf = AgentState { hears: Vec::new(), ..row("b", 2, NOW) };
        assert_eq!(nobody().update(&[deaf], NOW, 50 * S), []);
    }

    #[test]
    fn who_ended_or_says_nothing_is_gone() {
        let mut them = nobody();
        let ended = AgentState { ended: true, ..row("c", 3, NOW) };
        check(&mut them, &[row("b", 2, NOW), ended], 0, &[2]);
        check(&mut them, &[row("b", 2, NOW)], 20, &[2]);
        check(&mut them, &[row("b", 2, NOW)], 21, &[]);
        check(&mut them, &[row("b", 2, NOW + 22 * S)], 22, &[2]);
        // The row of the last day, seen for the first time.
        check(&mut nobody(), &[row("b", 2, NOW - 3_600 * S)], 0, &[]);
    }

    #[test]
    fn a_clock_that_is_hours_off_hides_nobody_who_writes() {
        let mut them = nobody();
        check(&mut them, &[row("b", 2, NOW - 3_600 * S)], 0, &[]);
        check(&mut them, &[row("b", 2, NOW - 3_598 * S)], 2, &[2]);
        check(&mut them, &[row("b", 2, NOW - 3_598 * S)], 30, &[]);
        check(&mut nobody(), &[row("b", 2, NOW + 3_600 * S)], 0, &[2]);
    }

    #[test]
    fn who_was_started_again_is_met_once() {
        check(&mut nobody(), &[row("b", 3, NOW), row("b", 2, NOW), row("c", 4, NOW)], 0, &[3, 4]);
    }
}
