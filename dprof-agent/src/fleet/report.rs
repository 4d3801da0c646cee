//! What the agent says of itself: figures of two moments into a row of the `agents` table.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use dprof_common::drop_reason::DropReason;
use dprof_store::RunInfo;
use dprof_store::control::{AgentState, Clock, ConfigState};

use crate::engine::EngineCounters;
use crate::live::Snapshot;

/// What is read of the agent at one moment.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
    /// Wall clock, nanoseconds since the epoch.
    pub unix_ns: u64,
    /// How far it may be off; `None`: nothing keeps it synchronised.
    pub clock_error_ns: Option<u64>,
    /// CPU time of the agent, nanoseconds.
    pub cpu_ns: u64,
    /// What the stages published.
    pub live: Snapshot,
    /// Of the engine; `None`: it did not answer.
    pub engine: Option<EngineCounters>,
    /// Local addresses of the connections watched so far.
    pub watches: Vec<IpAddr>,
    /// Agents that are told which traces are kept.
    pub tells: usize,
}

/// What stays as it is while the agent runs.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Addresses of the host.
    pub addresses: Vec<String>,
    /// Where it hears other agents.
    pub hears: Vec<SocketAddr>,
    /// The kernel's id of this boot.
    pub boot_id: String,
}

/// Makes rows: rates are since the last one.
#[derive(Debug)]
pub struct Reporter {
    info: RunInfo,
    standing: Standing,
    before: Figures,
}

impl Reporter {
    /// One for the run of `info`; `start`: figures of now.
    pub const fn new(info: RunInfo, standing: Standing, start: Figures) -> Self {
        Self { info, standing, before: start }
    }

    /// The row of this moment.
    pub fn row(&mut self, now: Figures, config: &ConfigState, ended: bool) -> AgentState {
        let passed_ns = now.monotonic_ns.saturating_sub(self.before.monotonic_ns).max(1);
        let per_s = |now: u64, before: u64| now.saturating_sub(before) as f64 * 1e9 / passed_ns as f64;
        let (live, before) = (&now.live, &self.before.live);
        let kernel_ns = |live: &Snapshot| live.programs.iter().map(|program| program.run_ns).sum::<u64>();
        let counts = !live.programs.is_empty() && !before.programs.is_empty();
        let state = AgentState {
            host: self.info.host.clone(),
            run_id: self.info.run_id.to_string(),
            addresses: self.standing.addresses.clone(),
            watches: now.watches.iter().map(ToString::to_string).collect(),
            hears: self.standing.hears.iter().map(ToString::to_string).collect(),
            tells: now.tells as u64,
            boot_id: self.standing.boot_id.clone(),
            kernel: self.info.kernel.clone(),
            backend: self.info.backend.clone(),
            version: self.info.version.clone(),
            started_unix_ns: self.info.started_unix_ns,
            seen_unix_ns: now.unix_ns,
            ended,
            config: config.clone(),
            events_per_s: per_s(live.source.records, before.source.records),
            spans_per_s: per_s(live.store.spans_stored, before.store.spans_stored),
            lost: lost(live, now.engine.as_ref()),
            store_error: live.store_error.clone().unwrap_or_default(),
            spool_bytes: live.spool.bytes,
            keep_horizon_ms: now.engine.map_or(0, |engine| engine.keep_horizon_ms),
            clock: Clock { synchronised: now.clock_error_ns.is_some(), error_ns: now.clock_error_ns },
            cpu_share: now.cpu_ns.saturating_sub(self.before.cpu_ns) as f64 / passed_ns as f64,
            kernel_ns_per_s: counts.then(|| per_s(kernel_ns(live), kernel_ns(before))),
        };
        self.before = now;
        state
    }
}

/// What was lost since the start, by cause; events first, then what became of spans.
fn lost(live: &Snapshot, engine: Option<&EngineCounters>) -> BTreeMap<String, u64> {
    let store = &live.store;
    let of_events = DropReason::ALL.map(|reason| (reason.name(), live.source.drops[reason as usize]));
    let of_spans = [
        ("store_full", store.spans_lost_full),
        ("store_failed", store.spans_lost_failed),
        ("store_slow", store.spans_lost_slow),
        ("store_away", store.spans_lost_away),
        ("requests_beyond_limit", engine.map_or(0, |engine| engine.requests_beyond_limit)),
        ("records_refused", engine.map_or(0, |engine| engine.records_refused)),
    ];
    of_events
        .into_iter()
        .chain(of_spans)
        .filter(|(_, n)| *n > 0)
        .map(|(cause, n)| (cause.to_owned(), n))
        .collect()
}

#[cfg(test)]
mod tests {
    use dprof_common::model::RunId;

    use super::*;
    use crate::source::ProgramRuns;

    fn info() -> RunInfo {
        RunInfo {
            run_id: RunId(7),
            host: "web-1".to_owned(),
            labels: BTreeMap::new(),
            version: "1".to_owned(),
            kernel: "6.1".to_owned(),
            backend: "tp_btf".to_owned(),
            started_unix_ns: 5,
        }
    }

    #[test]
    fn rates_are_those_between_two_rows() {
        let standing =
            Standing { hears: vec!["10.0.0.1:4717".parse().expect("an address")], ..Standing::default() };
        let mut reporter = Reporter::new(info(), standing, Figures::default());
        let config = ConfigState::default();
        let mut now =
            Figures { monotonic_ns: 2_000_000_000, unix_ns: 9, cpu_ns: 500_000_000, ..Figures::default() };
        now.live.source.records = 400;
        now.live.store.spans_stored = 20;
        now.live.store.spans_lost_away = 3;
        now.live.source.drops[DropReason::RingFull as usize] = 2;
        now.live.programs = vec![ProgramRuns { program: "on_send", runs: 1, run_ns: 1_000 }];
        let row = reporter.row(now.clone(), &config, false);
        assert_eq!((row.run_id.as_str(), row.host.as_str()), ("00000000000000000000000000000007", "web-1"));
        assert_eq!(
            (row.hears.as_slice(), row.clock.error_ns),
            (["10.0.0.1:4717".to_owned()].as_slice(), None)
        );
        assert!((row.events_per_s - 200.0).abs() < 1e-6 && (row.spans_per_s - 10.0).abs() < 1e-6, "{row:?}");
        assert!((row.cpu_share - 0.25).abs() < 1e-6, "{row:?}");
        assert_eq!(row.kernel_ns_per_s, None, "the first row has nothing to compare with");
        assert_eq!(row.lost, BTreeMap::from([("ring_full".to_owned(), 2), ("store_away".to_owned(), 3)]));
        now.monotonic_ns += 1_000_000_000;
        now.live.programs[0].run_ns = 3_000;
        now.clock_error_ns = Some(70);
        let row = reporter.row(now, &config, true);
        assert_eq!((row.events_per_s, row.kernel_ns_per_s), (0.0, Some(2_000.0)));
        assert_eq!(row.clock, Clock { synchronised: true, error_ns: Some(70) });
        assert!(row.ended);
    }
}
