//! `agents`: what every agent says of itself, and which have fallen silent.
//!
//! What a reader would get wrong: a row is the agent's own word, by its own clock; one that does not write is not
//! necessarily down, its store may be away.

use std::collections::BTreeSet;

use dprof_store::control::{AgentState, ConfigStatus, HostMinute};
use serde::Serialize;

use super::{clocks, hosts};
use crate::analyse::skew::ClockRow;
use crate::args::{Format, FormatArgs, WindowArgs};
use crate::context::{Context, Failure};
use crate::load::Window;
use crate::render::table::{Cell, Column, Table};
use crate::render::{Tone, json};
use crate::units::{self, NS_PER_S};

/// Shows the agents of the fleet: configuration in force, rates, losses, clocks, their own cost.
///
/// An agent writes its row every 2 s. One that has not for 15 s is shown as silent; one that was not heard of for a day
/// is forgotten. Below: how far the clocks of each two hosts are apart, from RPCs of the last ten minutes that both
/// saw, as `clocks` shows it of any time.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this host
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Also runs that another run of the same host has followed
    #[arg(long)]
    all: bool,
    /// What each host did in each minute instead: CPU, run queue, memory, disks, network
    #[arg(long)]
    history: bool,
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    output: FormatArgs,
}

/// Without a row for this long an agent is silent: seven rows, and what a slow store takes.
const SILENT_AFTER_NS: u64 = 15 * NS_PER_S;

/// A host's clock may be ahead of ours by so much and its newest minutes are still shown.
const CLOCK_AHEAD_NS: u64 = 3_600 * NS_PER_S;

/// Clocks are compared over this long: an error of 0.1 ms is one of 0.2 ppm in the drift then.
const CLOCKS_OVER_NS: u64 = 600 * NS_PER_S;

/// RPCs that are looked at to compare clocks, spread over that time: five hundred for each twelfth of it, so that a
/// short load too shows more than the calls that a host makes to itself. At most twice as many are read.
const CLOCK_RPCS: usize = 6_000;

/// How an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Presence {
    Up,
    Silent,
    Ended,
}

impl Presence {
    const fn of(agent: &AgentState, now_unix_ns: u64) -> Self {
        if agent.ended {
            Self::Ended
        } else if now_unix_ns.saturating_sub(agent.seen_unix_ns) > SILENT_AFTER_NS {
            Self::Silent
        } else {
            Self::Up
        }
    }
}

/// An agent. Field names are the JSON schema, with those of [`AgentState`].
#[derive(Debug, Serialize)]
struct AgentRow {
    presence: Presence,
    #[serde(flatten)]
    state: AgentState,
}

#[derive(Serialize)]
struct Agents {
    agents: Vec<AgentRow>,
    /// Pairs of hosts that talked in the last ten minutes; empty: nothing is known.
    clocks: Vec<ClockRow>,
}

/// Minutes of hosts. Field names are the JSON schema, with those of [`HostMinute`].
#[derive(Serialize)]
struct History {
    minutes: Vec<HostMinute>,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let Args { host, all, history, window, output } = args;
    if history {
        return run_history(host, window, output, context).await;
    }
    if window.since.is_some() || window.until.is_some() {
        return Err(Failure::Usage("--since and --until are for --history: an agent has one row".to_owned()));
    }
    let states = context.control(false).await?.agents(context.now_unix_ns).await?;
    let n_hosts = states.iter().map(|state| &state.host).collect::<BTreeSet<_>>().len();
    let agents = rows(states, all, host.as_deref(), context.now_unix_ns);
    if let Some(host) = host.as_ref().filter(|_| agents.is_empty()) {
        return Err(Failure::NotFound(format!(
            "no agent of a host '{host}' was heard of: see dprof-cli agents"
        )));
    }
    if output.format == Format::Json {
        let (clocks, said) = clocks_between(n_hosts, host.as_deref(), context).await;
        said.iter().for_each(|line| context.say(line));
        return json::document("agents", &Agents { agents, clocks }, context.out);
    }
    if agents.is_empty() {
        context.say("no agent was heard of within a day");
        return Ok(());
    }
    table(&agents, context.now_unix_ns).write(context.screen, context.out)?;
    for agent in &agents {
        for note in notes(agent) {
            context.say(&format!("{}: {note}", agent.state.host));
        }
    }
    let (clocks, said) = clocks_between(n_hosts, host.as_deref(), context).await;
    if !clocks.is_empty() {
        writeln!(context.out)?;
        clocks::table(&clocks).write(context.screen, context.out)?;
    }
    said.iter().for_each(|line| context.say(line));
    Ok(())
}

/// How far the clocks of hosts are apart, of each pair or of `host`'s, and what to say of it. Nothing of one host alone.
///
/// Rows of agents and spans are two parts of a store: the ones are shown without the others.
async fn clocks_between(
    n_hosts: usize,
    host: Option<&str>,
    context: &mut Context<'_>,
) -> (Vec<ClockRow>, Option<String>) {
    if n_hosts < 2 {
        return (Vec::new(), None);
    }
    let window = Window {
        since_unix_ns: context.now_unix_ns.saturating_sub(CLOCKS_OVER_NS),
        // Open: a host whose clock is ahead is not cut off.
        until_unix_ns: u64::MAX,
        is_default: true,
    };
    let mut clocks = match clocks::compare(&window, CLOCK_RPCS, context).await {
        Ok(compared) => compared.clocks,
        Err(failure) => return (Vec::new(), Some(format!("clocks between hosts: not known: {failure}"))),
    };
    clocks.retain(|row| host.is_none_or(|host| row.hosts.iter().any(|name| name == host)));
    let rpcs: u64 = clocks.iter().map(|row| row.rpcs).sum();
    let over = units::duration(CLOCKS_OVER_NS);
    let said = if clocks.is_empty() {
        format!(
            "clocks between hosts: not known, no RPC of the last {over} was seen at both ends; {} looks further back",
            context.command("clocks --since all")
        )
    } else {
        let noun = if rpcs == 1 { "RPC" } else { "RPCs" };
        format!("clocks between hosts: from {} {noun} of the last {over}", units::count(rpcs))
    };
    (clocks, Some(said))
}

async fn run_history(
    host: Option<String>,
    window: WindowArgs,
    output: FormatArgs,
    context: &mut Context<'_>,
) -> Result<(), Failure> {
    let window = Window::new(window, context.now_unix_ns)?;
    let control = context.control(false).await?;
    let hosts: BTreeSet<String> = match host {
        Some(host) => [host].into(),
        None => control.agents(context.now_unix_ns).await?.into_iter().map(|agent| agent.host).collect(),
    };
    // Open: a host whose clock is ahead is not cut off.
    let until_ns = if window.until_unix_ns == u64::MAX {
        context.now_unix_ns.saturating_add(CLOCK_AHEAD_NS)
    } else {
        window.until_unix_ns
    };
    let mut minutes = Vec::new();
    for host in hosts {
        let (since_s, until_s) = (window.since_unix_ns / NS_PER_S, until_ns.div_ceil(NS_PER_S));
        minutes.extend(control.host_minutes(&host, since_s, until_s).await?);
    }
    if output.format == Format::Json {
        return json::document("host_minutes", &History { minutes }, context.out);
    }
    context.say(&window.describe(context.now_unix_ns));
    if minutes.is_empty() {
        context.say("no agent has said what its host did then");
        return Ok(());
    }
    hosts::table(&minutes).write(context.screen, context.out)?;
    Ok(())
}

/// By host, the newest run first; those that another followed only if `all` are asked for.
fn rows(states: Vec<AgentState>, all: bool, host: Option<&str>, now_unix_ns: u64) -> Vec<AgentRow> {
    let mut rows: Vec<AgentRow> = Vec::new();
    for state in states {
        let presence = Presence::of(&state, now_unix_ns);
        let is_followed = rows.last().is_some_and(|row| row.state.host == state.host);
        let is_wanted = host.is_none_or(|host| host == state.host);
        if is_wanted && (all || presence == Presence::Up || !is_followed) {
            rows.push(AgentRow { presence, state });
        }
    }
    rows
}

fn table(agents: &[AgentRow], now_unix_ns: u64) -> Table {
    let mut table = Table::new([
        Column::whole("HOST", 0),
        Column::text("ADDRESSES", 7),
        Column::whole("STATE", 0),
        Column::number("SEEN", 2),
        Column::number("SINCE", 4),
        Column::text("CONFIG", 0),
        Column::number("EVENTS/S", 1),
        Column::number("SPANS/S", 1),
        Column::number("LOST", 0),
        Column::number("SPOOL", 3),
        Column::number("HOLDS", 5),
        Column::number("TELLS", 6),
        Column::whole("CLOCK", 2),
        Column::number("CPU", 2),
        Column::number("KERNEL", 3),
        Column::text("BACK END", 5),
        Column::text("KERNEL VERSION", 6),
        Column::text("VERSION", 6),
    ]);
    for AgentRow { presence, state } in agents {
        let ago = |unix_ns: u64| format!("{} ago", units::duration(now_unix_ns.saturating_sub(unix_ns)));
        let some = |n: u64, shown: String| if n == 0 { String::new() } else { shown };
        let n_lost: u64 = state.lost.values().sum();
        table.row([
            (&state.host).into(),
            state.addresses.join(" ").into(),
            presence_cell(*presence),
            ago(state.seen_unix_ns).into(),
            units::duration(state.seen_unix_ns.saturating_sub(state.started_unix_ns)).into(),
            config_cell(state),
            units::count(state.events_per_s.round() as u64).into(),
            units::count(state.spans_per_s.round() as u64).into(),
            Cell::toned(some(n_lost, units::count(n_lost)), Tone::Red),
            Cell::toned(some(state.spool_bytes, units::bytes(state.spool_bytes)), Tone::Yellow),
            some(state.keep_horizon_ms, units::duration(state.keep_horizon_ms.saturating_mul(1_000_000)))
                .into(),
            some(state.tells, units::count(state.tells)).into(),
            clock_cell(state),
            format!("{:.1}%", state.cpu_share * 100.0).into(),
            state
                .kernel_ns_per_s
                .map_or(String::new(), |ns| format!("{}/s", units::duration(ns as u64)))
                .into(),
            (&state.backend).into(),
            (&state.kernel).into(),
            (&state.version).into(),
        ]);
    }
    table
}

fn presence_cell(presence: Presence) -> Cell {
    match presence {
        Presence::Up => "up".into(),
        Presence::Silent => Cell::toned("silent", Tone::Red),
        Presence::Ended => Cell::toned("ended", Tone::Dim),
    }
}

/// `cluster 3, host:web-1 2`
fn versions<'a>(versions: impl IntoIterator<Item = (&'a String, &'a u64)>) -> String {
    versions.into_iter().map(|(scope, version)| format!("{scope} {version}")).collect::<Vec<_>>().join(", ")
}

fn config_cell(state: &AgentState) -> Cell {
    let config = &state.config;
    let in_force =
        if config.in_force.is_empty() { "as started".to_owned() } else { versions(&config.in_force) };
    match config.status {
        ConfigStatus::InForce if config.at_restart.is_empty() => Cell::from(in_force),
        ConfigStatus::InForce => Cell::toned(format!("{in_force}, restart pending"), Tone::Yellow),
        ConfigStatus::Refused => {
            Cell::toned(format!("refused {}; {in_force}", versions(newer(state))), Tone::Red)
        }
        status => Cell::toned(format!("{}, {in_force}", status.name()), Tone::Yellow),
    }
}

/// Versions that were read and are not in force.
fn newer(state: &AgentState) -> impl Iterator<Item = (&String, &u64)> {
    let config = &state.config;
    config.versions.iter().filter(|(scope, version)| config.in_force.get(*scope) != Some(version))
}

fn clock_cell(state: &AgentState) -> Cell {
    match state.clock.error_ns {
        Some(error_ns) => format!("± {}", units::duration(error_ns)).into(),
        None => Cell::toned("not synchronised", Tone::Yellow),
    }
}

/// What a table has no room for.
fn notes(agent: &AgentRow) -> Vec<String> {
    let AgentRow { presence, state } = agent;
    let config = &state.config;
    let mut notes = Vec::new();
    if *presence == Presence::Silent {
        notes.push("silent: it is down, or its store is away".to_owned());
    }
    if config.status == ConfigStatus::Refused {
        notes.push(format!("refuses {}", config.reason));
    }
    if !config.at_restart.is_empty() {
        notes.push(format!("takes effect when it is started again: {}", config.at_restart.join(", ")));
    }
    if !config.unknown.is_empty() {
        notes.push(format!("does not know {}", config.unknown.join(", ")));
    }
    if !state.lost.is_empty() {
        let causes: Vec<String> =
            state.lost.iter().map(|(cause, n)| format!("{cause} {}", units::count(*n))).collect();
        notes.push(format!("lost since its start: {}", causes.join(", ")));
    }
    if !state.store_error.is_empty() {
        notes.push(format!("the store takes no spans: {}", state.store_error));
    }
    notes
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use dprof_common::model::{RunId, Span};
    use dprof_store::control::{Clock, ConfigState, open_control};
    use dprof_store::{Batch, Retention, RunInfo, StoreUrl, open_writer};

    use super::*;
    use crate::testing::{T0, rpc, run_at};

    /// Ten minutes after [`T0`]: the time at which commands run in tests.
    const NOW: u64 = T0 + 600 * NS_PER_S;

    fn agent(host: &str, run: u32, seen_s_ago: u64) -> AgentState {
        AgentState {
            host: host.to_owned(),
            run_id: format!("{run:032x}"),
            addresses: vec!["10.0.0.1".to_owned()],
            kernel: "6.12.1".to_owned(),
            backend: "tp_btf".to_owned(),
            version: "0.1.0".to_owned(),
            started_unix_ns: T0 + u64::from(run),
            seen_unix_ns: NOW - seen_s_ago * NS_PER_S,
            events_per_s: 12_345.4,
            spans_per_s: 1_000.0,
            cpu_share: 0.031,
            clock: Clock { synchronised: true, error_ns: Some(1_200_000) },
            config: ConfigState {
                status: ConfigStatus::InForce,
                versions: [("cluster".to_owned(), 3)].into(),
                in_force: [("cluster".to_owned(), 3)].into(),
                ..ConfigState::default()
            },
            ..AgentState::default()
        }
    }

    fn ask(dir: &Path, agents: &[AgentState], width: usize, args: &str) -> (u8, String, String) {
        let url = StoreUrl::Sqlite(dir.to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let control = open_control(&url, true).await.expect("opens");
            for agent in agents {
                control.report(agent).await.expect("writes");
            }
        });
        match run_at(url, width, args) {
            (Ok(()), out, words) => (0, out, words),
            (Err(failure), out, _) => (failure.exit_code(), out, failure.to_string()),
        }
    }

    #[test]
    fn every_agent_has_a_row_and_the_silent_are_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut refusing = agent("db-2", 2, 1);
        refusing.config.status = ConfigStatus::Refused;
        refusing.config.versions = [("cluster".to_owned(), 4)].into();
        refusing.config.reason = "cluster 4: trace.keep_ratio: '7' is no part of the whole".to_owned();
        refusing.clock = Clock::default();
        refusing.lost = [("ring_full".to_owned(), 1_234), ("store_away".to_owned(), 1)].into();
        let mut waiting = agent("db-3", 3, 1);
        waiting.config.at_restart = vec!["filter.ports".to_owned()];
        waiting.kernel_ns_per_s = Some(2_500_000.0);
        let (code, out, words) = ask(dir.path(), &[agent("db-1", 1, 61), refusing, waiting], 200, "agents");
        assert_eq!(code, 0);
        assert_eq!(
            out,
            "\
HOST  ADDRESSES  STATE         SEEN   SINCE  CONFIG                        EVENTS/S  SPANS/S   LOST  CLOCK              CPU     KERNEL  BACK END  KERNEL VERSION  VERSION
db-1  10.0.0.1   silent  1m 01s ago  8m 59s  cluster 3                       12,345    1,000         ± 1.20 ms         3.1%             tp_btf    6.12.1          0.1.0
db-2  10.0.0.1   up      1.00 s ago  9m 59s  refused cluster 4; cluster 3    12,345    1,000  1,235  not synchronised  3.1%             tp_btf    6.12.1          0.1.0
db-3  10.0.0.1   up      1.00 s ago  9m 59s  cluster 3, restart pending      12,345    1,000         ± 1.20 ms         3.1%  2.50 ms/s  tp_btf    6.12.1          0.1.0
"
        );
        assert_eq!(
            words,
            format!(
                "\
db-1: silent: it is down, or its store is away
db-2: refuses cluster 4: trace.keep_ratio: '7' is no part of the whole
db-2: lost since its start: ring_full 1,234, store_away 1
db-3: takes effect when it is started again: filter.ports
clocks between hosts: not known: no store at {}: start dprof-agent with the same --store first
",
                dir.path().display()
            )
        );
    }

    /// Stores spans as an agent does.
    fn store(dir: &Path, spans: Vec<Span>) {
        let url = StoreUrl::Sqlite(dir.to_owned());
        let run = RunInfo {
            run_id: RunId(1),
            host: "db-1".to_owned(),
            labels: std::collections::BTreeMap::new(),
            version: String::new(),
            kernel: String::new(),
            backend: String::new(),
            started_unix_ns: T0,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut writer = open_writer(&url, &run, Retention::DEFAULT, &[]).await.expect("a fresh store");
            let batch = Batch { seq: 1, spans, ..Batch::default() };
            writer.write(&batch).await.expect("there is room");
            writer.close().await.expect("there is room");
        });
    }

    #[test]
    fn clocks_of_hosts_that_talk_are_shown_below() {
        let dir = tempfile::tempdir().expect("a folder");
        let agents = [agent("db-1", 1, 1), agent("web-1", 2, 1), agent("web-2", 3, 1)];
        let call = |id: u64, caller: &str, after_s: u64| {
            rpc(id).hosts(caller, "db-1").at(after_s * 1_000_000, 1_000).build()
        };
        let far = (1..=6).map(|n| call(n, "web-1", n * 90));
        store(dir.path(), far.chain([call(7, "web-2", 1), rpc(8).hosts("db-1", "db-1").build()]).collect());
        let (code, out, words) = ask(dir.path(), &agents, 200, "agents");
        assert_eq!(code, 0, "{words}");
        let below: Vec<&str> = out.lines().skip(4).collect();
        assert_eq!(below[..2], ["", "HOST  OTHER HOST  RPCS    AHEAD  AT MOST OFF     DRIFT  AT MOST OFF"]);
        assert!(below[2].starts_with("db-1  web-1          6  -5.00 s"), "{out}");
        assert!(below[3].starts_with("db-1  web-2          1  -5.00 s"), "{out}");
        assert_eq!(words, "clocks between hosts: from 7 RPCs of the last 10m 00s\n");
        let (_, out, words) = ask(dir.path(), &agents, 200, "agents --host web-2 --format json");
        let answer: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!(answer["agents"].as_array().map(Vec::len), Some(1), "{out}");
        assert_eq!(answer["clocks"].as_array().map(Vec::len), Some(1), "{out}");
        assert_eq!(answer["clocks"][0]["hosts"], serde_json::json!(["db-1", "web-2"]));
        let number = |field: &str| answer["clocks"][0][field].as_i64().expect("a number");
        let (off_ns, error_ns) = (number("offset_ns") + 5_000_000_000, number("error_ns"));
        assert!(off_ns.abs() <= error_ns && error_ns < 90_000, "8 % each way of 1 ms: {out}");
        assert_eq!(words, "clocks between hosts: from 1 RPC of the last 10m 00s\n");
    }

    #[test]
    fn clocks_that_nothing_is_known_of_are_said_to_be_so() {
        let dir = tempfile::tempdir().expect("a folder");
        let (one, other) = (agent("db-1", 1, 1), agent("web-1", 2, 1));
        let (_, _, words) = ask(dir.path(), &[one], 200, "agents");
        assert_eq!(words, "", "one host has no other");
        let (code, out, words) = ask(dir.path(), &[other], 200, "agents --format json");
        let answer: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!((code, &answer["clocks"]), (0, &serde_json::json!([])), "{out}");
        assert!(words.starts_with("clocks between hosts: not known: no store at"), "{words}");
        store(dir.path(), vec![rpc(1).hosts("db-1", "db-1").build()]);
        let (code, out, words) = ask(dir.path(), &[], 200, "agents");
        assert_eq!((code, out.lines().count()), (0, 3), "a head and two agents: {out}");
        assert_eq!(
            words,
            format!(
                "clocks between hosts: not known, no RPC of the last 10m 00s was seen at both ends; \
                 dprof-cli --store sqlite:{} clocks --since all looks further back\n",
                dir.path().display()
            )
        );
    }

    #[test]
    fn a_run_that_was_followed_is_shown_only_if_all_are_asked_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut ended = agent("db-1", 1, 300);
        ended.ended = true;
        let agents = [ended, agent("db-1", 2, 1), agent("db-2", 1, 120), agent("db-2", 3, 60)];
        let json = |args: &str| {
            let (_, out, _) = ask(dir.path(), &agents, 80, args);
            let answer: serde_json::Value = serde_json::from_str(&out).expect("json");
            assert_eq!((&answer["schema_version"], &answer["kind"]), (&1.into(), &"agents".into()));
            let rows = answer["agents"].as_array().expect("rows").clone();
            rows.iter()
                .map(|row| {
                    format!(
                        "{} {}",
                        row["host"].as_str().expect("text"),
                        row["presence"].as_str().expect("text")
                    )
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(json("agents --format json"), ["db-1 up", "db-2 silent"]);
        assert_eq!(
            json("agents --all --format json"),
            ["db-1 up", "db-1 ended", "db-2 silent", "db-2 silent"]
        );
        assert_eq!(json("agents --host db-2 --format json"), ["db-2 silent"]);
        let (code, _, words) = ask(dir.path(), &[], 80, "agents --host db-9");
        assert_eq!((code, words.contains("db-9")), (3, true), "{words}");
    }

    #[test]
    fn minutes_of_hosts_are_shown_by_host_and_time() {
        let dir = tempfile::tempdir().expect("a folder");
        let url = StoreUrl::Sqlite(dir.path().to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let control = open_control(&url, true).await.expect("opens");
            for (host, minutes_ago) in [("db-2", 1), ("db-1", 2), ("db-1", 1), ("db-1", 90)] {
                let minute_unix_s = NOW / NS_PER_S - minutes_ago * 60;
                let minute = HostMinute { host: host.to_owned(), minute_unix_s, ..HostMinute::default() };
                control.report_host(&minute).await.expect("writes");
            }
        });
        let agents = [agent("db-1", 1, 1), agent("db-2", 1, 1)];
        let rows = |args: &str| {
            let (code, out, words) = ask(dir.path(), &agents, 120, args);
            assert_eq!(code, 0, "{words}");
            let answer: serde_json::Value = serde_json::from_str(&out).expect("json");
            assert_eq!(answer["kind"], "host_minutes");
            let rows = answer["minutes"].as_array().expect("rows").iter();
            rows.map(|row| (row["host"].clone(), row["minute_unix_s"].as_u64().expect("a number")))
                .map(|(host, minute_s)| {
                    format!("{} {}", host.as_str().expect("text"), NOW / NS_PER_S - minute_s)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(rows("agents --history --format json"), ["db-1 120", "db-1 60", "db-2 60"]);
        assert_eq!(rows("agents --history --host db-1 --since 2h --until 10m --format json"), ["db-1 5400"]);
        let (_, out, words) = ask(dir.path(), &agents, 120, "agents --history");
        assert!(
            out.starts_with("HOST  MINUTE (UTC)") && words.starts_with("the last 1h 00m"),
            "{out}{words}"
        );
        let (code, ..) = ask(dir.path(), &agents, 120, "agents --since 2h");
        assert_eq!(code, 2);
    }

    #[test]
    fn a_store_without_agents_says_so() {
        let dir = tempfile::tempdir().expect("a folder");
        let (code, out, words) = ask(dir.path(), &[], 80, "agents");
        assert_eq!((code, out.as_str(), words.as_str()), (0, "", "no agent was heard of within a day\n"));
    }
}
