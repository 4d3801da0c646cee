//! Metrics in Prometheus' text form, and what health and readiness are. Pure: the figures come as an argument.
//!
//! What a reader would get wrong: a family is always there, with no sample where nothing is measured, so that the names
//! of an endpoint and of docs/metrics.md are the same set.

mod process;
mod server;

use std::fmt::Write as _;

use dprof_common::drop_reason::DropReason;

use crate::engine::EngineCounters;
use crate::live::Snapshot;
use crate::pipeline::{EVENTS_BYTES_MAX, SPANS_WAITING_MAX};
use crate::source::recording::RecorderCounters;
use crate::words::WordCounters;

pub use self::process::ProcessFigures;
pub use self::server::{Asked, Bound, bind};

/// Counters of the engine that are gauges.
const ENGINE_GAUGES: [&str; 5] =
    ["link_requests", "connections", "open_requests", "held", "keep_horizon_seconds"];
/// Counters of the engine that say with labels, elsewhere, the same.
const ENGINE_ELSEWHERE: [&str; 1] = ["events_lost"];

/// What a family counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Grows, from the start of the agent.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One name with its samples.
struct Family {
    name: String,
    kind: Kind,
    help: String,
    /// Labels as they are written, and the value.
    samples: Vec<(String, f64)>,
}

/// Figures of an agent at one moment.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Version of dprof.
    pub version: &'static str,
    /// Where events come from.
    pub backend: &'static str,
    /// Of the stages.
    pub live: Snapshot,
    /// Of the engine; `None`: it does not answer.
    pub engine: Option<EngineCounters>,
    /// Of the recording, if there is one.
    pub recording: Option<RecorderCounters>,
    /// Of words between agents, and how many agents are told; `None`: none are.
    pub words: Option<(WordCounters, usize)>,
    /// Of the process.
    pub process: ProcessFigures,
}

/// All families as text (version 0.0.4 of the exposition format).
pub fn render(figures: &Figures) -> String {
    let mut text = String::new();
    for family in families(figures) {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {} {}\n# TYPE {} {kind}", family.name, family.help, family.name);
        for (labels, value) in &family.samples {
            let _ = writeln!(text, "{}{labels} {value}", family.name);
        }
    }
    text
}

/// Why the agent does not do all of its work now; empty = ready.
pub fn missing(figures: &Figures) -> Vec<String> {
    let mut missing = Vec::new();
    if figures.engine.is_none() {
        missing.push("engine: it does not answer".to_owned());
    }
    if figures.live.source_ended {
        missing.push("capture: it has ended, no program is attached".to_owned());
    }
    if let Some(error) = &figures.live.store_error {
        let spool = figures.live.spool;
        let where_to = match spool.bytes_max {
            0 => "spans are lost".to_owned(),
            max => format!("{} of {max} bytes spooled, {} spans dropped", spool.bytes, spool.spans_dropped),
        };
        missing.push(format!("store: {}; {where_to}", error.replace('\n', " ")));
    }
    missing
}

fn families(figures: &Figures) -> Vec<Family> {
    let mut all = of_the_agent(figures);
    all.extend(of_capture(figures));
    all.extend(of_the_engine(figures.engine.as_ref()));
    all.extend(of_words(figures.words));
    all.extend(of_the_store(figures));
    all.extend(of_a_recording(figures.recording.as_ref()));
    all.extend(of_the_process(&figures.process));
    all
}

fn family(name: &str, kind: Kind, help: &str, samples: Vec<(String, f64)>) -> Family {
    Family { name: name.to_owned(), kind, help: help.to_owned(), samples }
}

fn counter(name: &str, help: &str, value: u64) -> Family {
    family(name, Kind::Counter, help, one(value))
}

fn gauge(name: &str, help: &str, value: u64) -> Family {
    family(name, Kind::Gauge, help, one(value))
}

fn one(value: u64) -> Vec<(String, f64)> {
    vec![(String::new(), value as f64)]
}

/// Values of labels are names in this program: letters, digits, dots, underscores.
fn labelled<'a>(label: &str, values: impl IntoIterator<Item = (&'a str, f64)>) -> Vec<(String, f64)> {
    values.into_iter().map(|(name, value)| (format!("{{{label}=\"{name}\"}}"), value)).collect()
}

fn of_the_agent(figures: &Figures) -> Vec<Family> {
    let labels = format!("{{version=\"{}\",backend=\"{}\"}}", figures.version, figures.backend);
    let ready = u64::from(missing(figures).is_empty());
    vec![
        family(
            "dprof_build_info",
            Kind::Gauge,
            "Version and capture back end; always 1.",
            vec![(labels, 1.0)],
        ),
        gauge("dprof_ready", "Whether the agent does all of its work now, as /readyz says.", ready),
    ]
}

fn of_capture(figures: &Figures) -> Vec<Family> {
    let source = &figures.live.source;
    let lost = DropReason::ALL.map(|reason| (reason.name(), source.drops[reason as usize] as f64));
    let programs = &figures.live.programs;
    let runs = programs.iter().map(|program| (program.program, program.runs as f64));
    let seconds = programs.iter().map(|program| (program.program, program.run_ns as f64 / 1e9));
    vec![
        counter("dprof_capture_events_total", "Events taken from the kernel or a recording.", source.records),
        counter("dprof_capture_bytes_total", "Bytes of these events.", source.bytes),
        family(
            "dprof_capture_lost_total",
            Kind::Counter,
            "Events lost before the agent could take them, by cause.",
            labelled("cause", lost),
        ),
        family(
            "dprof_kernel_program_runs_total",
            Kind::Counter,
            "Runs of each kernel program; only while the kernel counts them (kernel.bpf_stats_enabled).",
            labelled("program", runs),
        ),
        family(
            "dprof_kernel_program_seconds_total",
            Kind::Counter,
            "Time spent in each kernel program; only while the kernel counts it.",
            labelled("program", seconds),
        ),
        gauge(
            "dprof_queue_event_bytes",
            "Bytes of events that wait for the engine.",
            figures.live.queued_event_bytes,
        ),
        gauge("dprof_queue_event_bytes_max", "Bytes that may wait there.", EVENTS_BYTES_MAX as u64),
        gauge("dprof_queue_spans", "Spans that wait for the store.", figures.live.queued_spans),
        gauge("dprof_queue_spans_max", "Spans that may wait there.", SPANS_WAITING_MAX as u64),
    ]
}

/// Every counter of the engine under its own name, milliseconds as seconds.
fn of_the_engine(engine: Option<&EngineCounters>) -> Vec<Family> {
    let known = engine.copied().unwrap_or_default();
    let all = known.described().filter(|(name, ..)| !ENGINE_ELSEWHERE.contains(name));
    all.map(|(name, help, value)| {
        let (name, help, value) = match (name.strip_suffix("_ms"), help.strip_suffix(", milliseconds.")) {
            (Some(name), Some(help)) => {
                (format!("{name}_seconds"), format!("{help}, seconds."), value as f64 / 1e3)
            }
            _ => (name.to_owned(), help.to_owned(), value as f64),
        };
        let (name, kind) = if ENGINE_GAUGES.contains(&name.as_str()) {
            (format!("dprof_{name}"), Kind::Gauge)
        } else {
            (format!("dprof_{name}_total"), Kind::Counter)
        };
        let help = help.trim().trim_start_matches("Gauge: ").to_owned();
        let samples = engine.map(|_| (String::new(), value)).into_iter().collect();
        Family { name, kind, help, samples }
    })
    .collect()
}

fn of_words(words: Option<(WordCounters, usize)>) -> Vec<Family> {
    let of = |name: &str, kind, help: &str, value: fn(&WordCounters) -> u64| {
        let samples = words.iter().map(|(counters, _)| (String::new(), value(counters) as f64));
        family(name, kind, help, samples.collect())
    };
    let tells = words.iter().map(|(_, tells)| (String::new(), *tells as f64)).collect();
    vec![
        family("dprof_peers", Kind::Gauge, "Agents that are told which traces are kept.", tells),
        of(
            "dprof_words_sent_total",
            Kind::Counter,
            "Words to other agents, one for each that got it.",
            |words| words.sent,
        ),
        of(
            "dprof_words_sent_bytes_total",
            Kind::Counter,
            "Bytes of the frames that carried them.",
            |words| words.sent_bytes,
        ),
        of(
            "dprof_words_unsent_total",
            Kind::Counter,
            "Words that found no room, or waited until nobody could use them.",
            |words| words.unsent,
        ),
        of("dprof_words_received_total", Kind::Counter, "Words received.", |words| words.received),
        of(
            "dprof_words_ignored_total",
            Kind::Counter,
            "Words received faster than an agent may speak, or than the engine hears.",
            |words| words.ignored,
        ),
        of(
            "dprof_words_refused_total",
            Kind::Counter,
            "Connections ended because what came was no frame or not sealed with the secret.",
            |words| words.refused,
        ),
    ]
}

fn of_the_store(figures: &Figures) -> Vec<Family> {
    let (store, spool) = (&figures.live.store, &figures.live.spool);
    let lost = [
        ("full", store.spans_lost_full),
        ("failed", store.spans_lost_failed),
        ("slow", store.spans_lost_slow),
        ("away", store.spans_lost_away),
    ];
    vec![
        counter("dprof_spans_stored_total", "Spans that the store has taken.", store.spans_stored),
        counter("dprof_batches_stored_total", "Batches that the store has taken.", store.batches_stored),
        family(
            "dprof_spans_lost_total",
            Kind::Counter,
            "Spans lost on the way to the store: it was full, failed, was slower than the stream, or was away and the \
             spool had no room.",
            labelled("cause", lost.map(|(cause, value)| (cause, value as f64))),
        ),
        counter(
            "dprof_store_errors_total",
            "Times that the store did not take something.",
            figures.live.store_errors,
        ),
        gauge(
            "dprof_store_up",
            "Whether the store took what it was given last.",
            u64::from(figures.live.store_error.is_none()),
        ),
        counter("dprof_spans_spooled_total", "Spans that went through the spool.", store.spans_spooled),
        gauge("dprof_spool_bytes", "Bytes that wait in the spool.", spool.bytes),
        gauge("dprof_spool_bytes_max", "Bytes that may wait there; 0 without a spool.", spool.bytes_max),
    ]
}

fn of_a_recording(recording: Option<&RecorderCounters>) -> Vec<Family> {
    let of = |value: fn(&RecorderCounters) -> u64| {
        recording.map(|counters| (String::new(), value(counters) as f64)).into_iter().collect::<Vec<_>>()
    };
    let lost = recording.into_iter().flat_map(|counters| {
        [("slow", counters.lost_queue_full as f64), ("failed", counters.lost_write_failed as f64)]
    });
    vec![
        family(
            "dprof_recording_events_total",
            Kind::Counter,
            "Events given to the recording.",
            of(|counters| counters.records),
        ),
        family(
            "dprof_recording_bytes",
            Kind::Gauge,
            "Size of the recording.",
            of(|counters| counters.file_bytes),
        ),
        family(
            "dprof_recording_lost_total",
            Kind::Counter,
            "Events missing from the recording: the disk was slower than the stream, or a write failed.",
            labelled("cause", lost),
        ),
    ]
}

fn of_the_process(process: &ProcessFigures) -> Vec<Family> {
    let ProcessFigures { cpu_seconds, start_time_seconds, resident_bytes, kernel_bytes, open_fds, threads } =
        *process;
    let value = |value: f64| vec![(String::new(), value)];
    vec![
        family(
            "process_cpu_seconds_total",
            Kind::Counter,
            "CPU time of the agent, user and system.",
            value(cpu_seconds),
        ),
        family(
            "process_start_time_seconds",
            Kind::Gauge,
            "When the agent was started, seconds since the epoch.",
            value(start_time_seconds),
        ),
        gauge("process_resident_memory_bytes", "Memory of the agent that is resident.", resident_bytes),
        gauge(
            "dprof_kernel_memory_bytes",
            "Memory of the kernel programs and their maps, as the kernel charges it.",
            kernel_bytes,
        ),
        gauge("process_open_fds", "Open file descriptors.", open_fds),
        gauge("process_threads", "Threads.", threads),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn figures() -> Figures {
        Figures { engine: Some(EngineCounters::default()), ..Figures::default() }
    }

    #[test]
    fn the_document_and_the_endpoint_name_the_same_metrics_of_the_same_kind() {
        let page = include_str!("../../../docs/metrics.md");
        let documented: BTreeSet<(String, String)> = page
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
                let name = cells.next()?.trim_end_matches('`').split('{').next()?.to_owned();
                Some((name, cells.next()?.to_owned()))
            })
            .collect();
        let text = render(&figures());
        let told: BTreeSet<(String, String)> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
            .map(|(name, kind)| (name.to_owned(), kind.to_owned()))
            .collect();
        assert_eq!(documented, told);
    }

    #[test]
    fn names_follow_prometheus() {
        for family in families(&figures()) {
            let name = &family.name;
            assert_eq!(name.ends_with("_total"), family.kind == Kind::Counter, "{name}");
            assert!(name.starts_with("dprof_") || name.starts_with("process_"), "{name}");
            assert!(!["_ms", "_ns", "_milliseconds"].iter().any(|unit| name.contains(unit)), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{name}");
            assert!(
                family.help.ends_with('.') && !family.help.contains(['\n', '\\']),
                "{name}: {}",
                family.help
            );
        }
    }

    #[test]
    fn values_are_told_with_their_labels() {
        let mut figures = figures();
        figures.live.source.records = 9_007_199_254_740_991;
        figures.live.source.drops[DropReason::RingFull as usize] = 7;
        figures.live.store.spans_lost_away = 3;
        figures.engine = Some(EngineCounters {
            windows_open_ms: 1_500,
            no_reply: 2,
            held: 5,
            ..EngineCounters::default()
        });
        let text = render(&figures);
        for line in [
            "dprof_capture_events_total 9007199254740991".to_owned(),
            format!("dprof_capture_lost_total{{cause=\"{}\"}} 7", DropReason::RingFull.name()),
            "dprof_spans_lost_total{cause=\"away\"} 3".to_owned(),
            "dprof_windows_open_seconds_total 1.5".to_owned(),
            "dprof_no_reply_total 2".to_owned(),
            "dprof_held 5".to_owned(),
            "dprof_ready 1".to_owned(),
        ] {
            assert!(text.lines().any(|told| told == line), "{line}\n{text}");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let mut figures = figures();
        assert_eq!(missing(&figures), Vec::<String>::new());
        figures.live.store_error = Some("Cassandra does not answer".to_owned());
        assert_eq!(missing(&figures), ["store: Cassandra does not answer; spans are lost"]);
        figures.live.spool.bytes_max = 100;
        figures.live.spool.bytes = 7;
        figures.live.source_ended = true;
        figures.engine = None;
        assert_eq!(
            missing(&figures),
            [
                "engine: it does not answer",
                "capture: it has ended, no program is attached",
                "store: Cassandra does not answer; 7 of 100 bytes spooled, 0 spans dropped",
            ]
        );
        assert!(render(&figures).contains("\ndprof_ready 0\n"));
    }
}
