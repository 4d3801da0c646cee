//! Agents of three hosts and the words between them, over a medium that loses, doubles, reorders and repeats them.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const HOSTS: usize = 3;
const OPERATIONS: u64 = 5;
/// Traces begin this far apart.
const EVERY_NS: u64 = 5 * MS;
/// How long a word is under way at least.
const UNDER_WAY_NS: u64 = 20 * MS;
/// One word alone in a frame, with its length and seal (see `words`).
const WORD_BYTES_MAX: u64 = 80;

#[derive(Clone, Debug)]
struct Rpc {
    id: u64,
    parent: Option<usize>,
    from: Option<usize>,
    to: usize,
    operation: u64,
    start_ns: u64,
    end_ns: u64,
    is_error: bool,
}

/// A true trace: the root first, callers before what they call.
#[derive(Clone, Debug)]
struct Truth {
    rpcs: Vec<Rpc>,
}

fn part(rng: &mut TestRng) -> f64 {
    f64::from(rng.next_u32()) / f64::from(u32::MAX)
}

impl Truth {
    fn make(rng: &mut TestRng, start_ns: u64, n_rpcs: usize) -> Self {
        // About log-normal, by the sum of uniform numbers.
        let e = (0..4).map(|_| part(rng)).sum::<f64>();
        let duration_ns = (e * 2.0).exp() as u64 * MS / 10 + 100_000;
        let mut rpcs: Vec<Rpc> = Vec::new();
        for n in 0..n_rpcs {
            let parent = (n > 0).then(|| rng.next_u64() as usize % n);
            let from = parent.map(|parent| rpcs[parent].to);
            let (start_ns, end_ns) = match parent.map(|parent| &rpcs[parent]) {
                None => (start_ns, start_ns + duration_ns),
                Some(parent) => {
                    let length = parent.end_ns - parent.start_ns;
                    let start_ns = parent.start_ns + (part(rng) * length as f64 / 2.0) as u64;
                    let is_late = rng.next_u32().is_multiple_of(10);
                    let late_ns = if is_late { rng.next_u64() % (300 * MS) } else { 0 };
                    (start_ns, parent.end_ns - length / 10 + late_ns)
                }
            };
            rpcs.push(Rpc {
                id: rng.next_u64() >> 2,
                parent,
                from,
                to: rng.next_u64() as usize % HOSTS,
                operation: if n == 0 { 0 } else { 1 + rng.next_u64() % (OPERATIONS - 1) },
                start_ns,
                end_ns,
                is_error: false,
            });
        }
        Self { rpcs }
    }

    fn name(&self) -> TraceId {
        SpanId(self.rpcs[0].id).as_root_trace()
    }

    /// The RPC by which the part of the tree that serves `n` came to its host.
    fn entry(&self, n: usize) -> usize {
        let rpc = &self.rpcs[n];
        match rpc.parent {
            Some(parent) if rpc.from == Some(rpc.to) => self.entry(parent),
            _ => n,
        }
    }

    /// What agents see of the RPC: host, and the span.
    fn seen(&self, n: usize) -> Vec<(usize, Span)> {
        let rpc = &self.rpcs[n];
        let mut seen = Vec::new();
        if let Some(from) = rpc.from {
            let ends: &[Side] = if from == rpc.to { BOTH } else { &[Side::Client] };
            seen.push((from, self.span(n, ends, self.entry(rpc.parent.expect("a caller")))));
        }
        if rpc.from != Some(rpc.to) {
            seen.push((rpc.to, self.span(n, &[Side::Server], n)));
        }
        seen
    }

    fn span(&self, n: usize, ends: &[Side], entry: usize) -> Span {
        let rpc = &self.rpcs[n];
        let address =
            |host: Option<usize>| SocketAddr::from(([10, 0, 0, host.map_or(99, |host| host as u8)], 80));
        let mut span = super::span(self.rpcs[entry].id, rpc.id, ends, rpc.end_ns - rpc.start_ns);
        let operation = format!("operation {}", rpc.operation);
        for (half, local, peer) in
            [(&mut span.client, rpc.from, Some(rpc.to)), (&mut span.server, Some(rpc.to), rpc.from)]
        {
            let Some(half) = half else { continue };
            (half.local, half.peer) = (address(local), address(peer));
            half.operation.clone_from(&operation);
            (half.times.start_ns, half.times.end_ns) = (rpc.start_ns, rpc.end_ns);
        }
        if rpc.is_error {
            span = failed(span);
        }
        if entry == 0 { span } else { fragment(span) }
    }
}

/// What the medium does to words.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    lost: f64,
    doubled: f64,
    repeated: f64,
    late_ns: u64,
    /// This host has a new agent every so often.
    restarts: Option<(usize, u64)>,
}

/// Every host of the fleet has an agent, and all of them are there.
#[derive(Debug)]
struct AllAreThere;

impl Reach for AllAreThere {
    fn reaches(&self, address: IpAddr) -> bool {
        (0..HOSTS).any(|host| IpAddr::from([10, 0, 0, host as u8]) == address)
    }
}

fn agent(options: &KeepOptions, held_max: usize) -> Keeper {
    let mut keeper = Keeper::new(options.clone(), HOLD_NS, held_max);
    keeper.set_reach(Arc::new(AllAreThere));
    keeper
}

struct Fleet {
    options: KeepOptions,
    keepers: Vec<Keeper>,
    faults: Faults,
    rng: TestRng,
    under_way: BTreeMap<(u64, u64), (usize, Word)>,
    said: Vec<(usize, Word)>,
    out: Vec<(usize, Span)>,
    held_max: usize,
}

impl Fleet {
    fn new(options: KeepOptions, faults: Faults) -> Self {
        let held_max = 20_000;
        let keepers = (0..HOSTS).map(|_| agent(&options, held_max)).collect();
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        Self {
            options,
            keepers,
            faults,
            rng,
            under_way: BTreeMap::new(),
            said: Vec::new(),
            out: Vec::new(),
            held_max,
        }
    }

    fn send(&mut self, to: usize, word: Word, now_ns: u64) {
        let late_ns = if self.faults.late_ns == 0 { 0 } else { self.rng.next_u64() % self.faults.late_ns };
        let n = self.rng.next_u64();
        self.under_way.insert((now_ns + UNDER_WAY_NS + late_ns, n), (to, word));
    }

    /// Words that this agent has to say are said, what it gave out is stored.
    fn collect(&mut self, host: usize, mut out: Vec<Span>, now_ns: u64) {
        self.out.extend(out.drain(..).map(|span| (host, span)));
        let mut words = Vec::new();
        self.keepers[host].take_words(&mut words);
        for (to, word) in words {
            let SocketAddr::V4(to) = to else { panic!("{to}") };
            let to = usize::from(to.ip().octets()[3]);
            if to >= HOSTS {
                continue;
            }
            assert_ne!(to, host, "nobody tells itself");
            self.said.push((to, word));
            let copies = u32::from(part(&mut self.rng) >= self.faults.lost)
                + u32::from(part(&mut self.rng) < self.faults.doubled);
            (0..copies).for_each(|_| self.send(to, word, now_ns));
            if part(&mut self.rng) < self.faults.repeated {
                let old = self.said[self.rng.next_u64() as usize % self.said.len()];
                self.send(old.0, old.1, now_ns);
            }
        }
    }

    /// What was under way until `now_ns` arrives, and time passes.
    fn pass(&mut self, now_ns: u64) {
        while let Some(entry) = self.under_way.first_entry().filter(|entry| entry.key().0 <= now_ns) {
            let ((due_ns, _), (to, word)) = entry.remove_entry();
            let mut out = Vec::new();
            self.keepers[to].hear(word, &mut out, due_ns);
            self.collect(to, out, due_ns);
        }
        for host in 0..HOSTS {
            let mut out = Vec::new();
            self.keepers[host].expire(&mut out, now_ns);
            assert!(self.keepers[host].held() <= self.held_max);
            self.collect(host, out, now_ns);
        }
    }

    fn run(&mut self, traces: &[Truth]) {
        let mut seen: Vec<(u64, usize, Span)> = traces
            .iter()
            .flat_map(|truth| {
                (0..truth.rpcs.len()).flat_map(move |n| {
                    truth.seen(n).into_iter().map(move |(host, span)| (truth.rpcs[n].end_ns, host, span))
                })
            })
            .collect();
        seen.sort_by_key(|(end_ns, ..)| *end_ns);
        let mut restart_ns = 0;
        let (mut passed_ns, mut end_ns) = (0, 0);
        for (now_ns, host, span) in seen {
            if now_ns >= passed_ns {
                self.pass(now_ns);
                passed_ns = now_ns + 5 * MS;
            }
            if let Some((host, every_ns)) = self.faults.restarts.filter(|_| now_ns >= restart_ns) {
                self.keepers[host] = agent(&self.options, self.held_max);
                restart_ns = now_ns + every_ns;
            }
            let mut out = Vec::new();
            self.keepers[host].sift(&mut vec![span], &mut out, now_ns);
            self.collect(host, out, now_ns);
            end_ns = now_ns;
        }
        for step in 1..=40 {
            self.pass(end_ns + step * 500 * MS);
        }
        for keeper in &self.keepers {
            assert_eq!((keeper.held(), keeper.words.len(), keeper.trees.is_empty()), (0, 0, true));
        }
    }

    /// Judges what was stored against the truth. Whatever happens to words: nothing is stored twice, and what has the
    /// name of a whole trace has the right one.
    fn judge(&self, traces: &[Truth]) -> Verdict {
        let mut stored: FxHashMap<u64, Vec<&(usize, Span)>> = FxHashMap::default();
        self.out.iter().for_each(|entry| stored.entry(entry.1.span_id.0).or_default().push(entry));
        let mut verdict = Verdict::default();
        for truth in traces {
            let mut found = Vec::new();
            let mut n_expected = 0;
            for (n, rpc) in truth.rpcs.iter().enumerate() {
                let of_rpc = stored.get(&rpc.id).map_or(&[][..], Vec::as_slice);
                let hosts: BTreeSet<usize> = of_rpc.iter().map(|(host, _)| *host).collect();
                assert_eq!(hosts.len(), of_rpc.len(), "twice: {of_rpc:#?}");
                n_expected += truth.seen(n).len();
                found.extend(of_rpc.iter().map(|(_, span)| span));
            }
            let is_named = |span: &Span| !span.flags.contains(SpanFlags::FRAGMENT);
            for span in found.iter().filter(|span| is_named(span)) {
                assert_eq!(span.trace_id, truth.name(), "{span:#?}");
            }
            let is_kept = found.iter().any(|span| span.reason != KeepReason::Unconfirmed);
            let is_whole = found.len() == n_expected && found.iter().all(|span| is_named(span));
            verdict.kept.extend(is_kept.then(|| truth.name()));
            verdict.cut.extend((is_kept && !is_whole).then(|| truth.name()));
            verdict.unconfirmed += usize::from(!is_kept && !found.is_empty());
            verdict.by_ratio += usize::from(found.iter().any(|span| span.reason == KeepReason::Ratio));
            if is_kept {
                verdict.hops +=
                    truth.rpcs.iter().filter(|rpc| rpc.from.is_some_and(|from| from != rpc.to)).count()
                        as u64;
            }
        }
        verdict
    }
}

#[derive(Debug, Default)]
struct Verdict {
    kept: BTreeSet<TraceId>,
    /// Kept, and not whole.
    cut: BTreeSet<TraceId>,
    /// Only parts that no word reached.
    unconfirmed: usize,
    by_ratio: usize,
    /// Calls from host to host in traces that are kept.
    hops: u64,
}

fn traces(n: u64, n_rpcs: impl Fn(&mut TestRng) -> usize) -> Vec<Truth> {
    let mut rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    (0..n)
        .map(|n| {
            let n_rpcs = n_rpcs(&mut rng);
            Truth::make(&mut rng, 10_000 * MS + n * EVERY_NS, n_rpcs)
        })
        .collect()
}

fn some(rng: &mut TestRng) -> usize {
    1 + rng.next_u64() as usize % 11
}

/// Every 200th trace fails, anywhere in its tree.
fn with_failures(mut traces: Vec<Truth>) -> Vec<Truth> {
    for (n, truth) in traces.iter_mut().enumerate().filter(|(n, _)| n % 200 == 0) {
        let at = n / 200 % truth.rpcs.len();
        truth.rpcs[at].is_error = true;
    }
    traces
}

#[test]
fn kept_traces_are_whole_on_three_hosts_and_nobody_talks_of_others() {
    const RATIO: f64 = 0.01;
    let traces = with_failures(traces(20_000, some));
    let mut fleet = Fleet::new(with_peers(RATIO), Faults::default());
    fleet.run(&traces);
    let verdict = fleet.judge(&traces);
    assert_eq!((verdict.cut.len(), verdict.unconfirmed), (0, 0), "{verdict:?}");
    let failures = traces.iter().filter(|truth| truth.rpcs.iter().any(|rpc| rpc.is_error));
    let lost = failures.filter(|truth| !verdict.kept.contains(&truth.name())).count();
    assert_eq!(lost, 0);
    let expected = RATIO * traces.len() as f64;
    let deviation = (verdict.by_ratio as f64 - expected).abs() / (expected * (1.0 - RATIO)).sqrt();
    assert!(deviation < 4.0, "{} of {}", verdict.by_ratio, traces.len());
    // A word down each call and a question up at most, about what is kept and nothing else.
    let kept_rpcs: BTreeSet<u64> = traces
        .iter()
        .filter(|truth| verdict.kept.contains(&truth.name()))
        .flat_map(|truth| truth.rpcs.iter().map(|rpc| rpc.id))
        .collect();
    assert!(fleet.said.iter().all(|(_, word)| kept_rpcs.contains(&word.rpc.0)));
    let n_words = fleet.said.len() as u64;
    assert!(
        n_words >= verdict.hops && n_words * WORD_BYTES_MAX <= 200 * verdict.hops,
        "{n_words} {}",
        verdict.hops
    );
}

#[test]
fn words_lost_doubled_late_and_repeated_make_nothing_wrong() {
    let faults = [
        Faults { lost: 0.3, ..Faults::default() },
        Faults { doubled: 1.0, late_ns: 2_000 * MS, ..Faults::default() },
        Faults { lost: 0.1, doubled: 0.2, repeated: 0.5, late_ns: 8_000 * MS, ..Faults::default() },
        Faults { restarts: Some((1, 3_000 * MS)), ..Faults::default() },
    ];
    let traces = with_failures(traces(4_000, some));
    for faults in faults {
        let mut fleet = Fleet::new(with_peers(0.1), faults);
        fleet.run(&traces);
        // What is cut is told apart by `judge`: no part of it has the name of a whole trace that is not its own.
        let verdict = fleet.judge(&traces);
        assert!(verdict.kept.len() > 300, "{faults:?}: {}", verdict.kept.len());
        let may_cut = faults.lost > 0.0 || faults.late_ns > HOLD_NS || faults.restarts.is_some();
        assert_eq!(verdict.cut.is_empty(), !may_cut, "{faults:?}: {} cut", verdict.cut.len());
    }
}

#[test]
fn after_a_time_without_words_traces_are_whole_again() {
    let traces = with_failures(traces(3_000, some));
    let (silent, spoken) = traces.split_at(1_000);
    let mut fleet = Fleet::new(with_peers(0.1), Faults { lost: 1.0, ..Faults::default() });
    fleet.run(silent);
    let before = fleet.judge(silent);
    assert!(!before.cut.is_empty());
    fleet.faults = Faults::default();
    // Its own time begins after the first one's end.
    let later: Vec<Truth> = spoken
        .iter()
        .cloned()
        .map(|mut truth| {
            for rpc in &mut truth.rpcs {
                (rpc.start_ns, rpc.end_ns) = (rpc.start_ns + 60_000 * MS, rpc.end_ns + 60_000 * MS);
            }
            truth
        })
        .collect();
    fleet.run(&later);
    let after = fleet.judge(&later);
    assert_eq!((after.cut.len(), after.unconfirmed), (0, 0), "{after:?}");
    assert!(after.kept.len() > 150, "{}", after.kept.len());
}

/// The slowest hundredth of roots, for being slow or among the slowest alone.
#[test]
fn of_the_slowest_hundredth_of_roots_hardly_one_is_missed() {
    const TRACES: usize = 30_000;
    let options = KeepOptions { slow: true, budget_per_s: 10.0, ..with_peers(0.0) };
    let traces = traces(TRACES as u64, some);
    let mut fleet = Fleet::new(options, Faults::default());
    fleet.run(&traces);
    let verdict = fleet.judge(&traces);
    let mut by_duration: Vec<(u64, TraceId)> =
        traces.iter().map(|truth| (truth.rpcs[0].end_ns - truth.rpcs[0].start_ns, truth.name())).collect();
    by_duration.sort_unstable();
    let slowest = &by_duration[TRACES * 99 / 100..];
    let n_missed = slowest.iter().filter(|(_, name)| !verdict.kept.contains(name)).count();
    assert!(n_missed * 100 <= slowest.len(), "{n_missed} of {}", slowest.len());
    assert_eq!(verdict.cut.len(), 0, "{verdict:?}");
}

#[test]
fn traces_of_a_hundred_spans_are_kept_within_the_budget() {
    const BUDGET_PER_S: f64 = 2.0;
    const TRACES: u64 = 4_000;
    let options = KeepOptions { slow: true, budget_per_s: BUDGET_PER_S, ..with_peers(0.0) };
    let traces = traces(TRACES, |_| 100);
    let mut fleet = Fleet::new(options, Faults::default());
    fleet.run(&traces);
    let verdict = fleet.judge(&traces);
    // Each agent has a budget per operation, and a second of it at once.
    let seconds = (TRACES * EVERY_NS) as f64 / 1e9 + 1.0;
    let most = BUDGET_PER_S * seconds * OPERATIONS as f64 * HOSTS as f64;
    assert!((verdict.kept.len() as f64) < most, "{} of {most}", verdict.kept.len());
    assert_eq!(verdict.cut.len(), 0, "{:?}", verdict.cut);
}
