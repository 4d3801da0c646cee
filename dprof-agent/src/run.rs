//! From options to a finished run.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use dprof_common::model::{HostInfo, RunId};
use dprof_store::{Credentials, RunInfo, StoreUrl, open_writer};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{
    self, Command, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, Input, Options, RecordOptions,
};
use crate::clock::{read_clocks, wall_clock_error_ns};
use crate::engine::{Engine, EngineConfig};
use crate::pipeline::{self, Running, Stages};
use crate::privilege::{self, Needs};
use crate::source::recording::{Recorder, RecorderOptions, RecordingHeader, RecordingWriter, Scrub};
use crate::source::replay::Replay;
use crate::source::tee::Tee;
use crate::source::{Source, kernel, window};
use crate::words::{self, Exchange, WordOptions};
use crate::{control, doctor, fleet, metrics, report};

/// Requests open at once, over all connections: 100 connections with 1,000 pipelined requests each.
pub const OPEN_REQUESTS_MAX: usize = 100_000;
/// Words of other agents that wait for the engine, which looks at least every 50 ms.
const WORDS_WAITING_MAX: usize = 16_384;
/// RPCs held at once: two seconds of 20,000 spans/s whose other half does not come.
pub const HELD_MAX: usize = 40_000;
/// Connections known at once: a busy proxy's.
pub const CONNECTIONS_MAX: usize = 16_384;
/// How long a half waits for its other half: longer than any thread is kept from the CPU between a system call
/// and its hook.
pub const HOLD_NS: u64 = 1_000_000_000;
/// How often the run looks whether a recording has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The whole program.
pub fn main() -> ExitCode {
    ExitCode::from(match args::parse(std::env::args_os()) {
        Err(error) => complain(&error, EXIT_USAGE),
        Ok(Command::Print(text)) => print(&text),
        Ok(Command::Doctor) => {
            let report = doctor::run();
            print(&report.text).max(if report.usable { EXIT_OK } else { EXIT_ERROR })
        }
        Ok(Command::Run(options)) => {
            start_log(options.verbose);
            match run(&options) {
                Ok(code) => code,
                Err(error) => complain(&format!("{error:#}"), EXIT_ERROR),
            }
        }
    })
}

#[expect(clippy::print_stderr, reason = "the one place where the agent says why it fails")]
fn complain(error: &str, code: u8) -> u8 {
    // A verifier's log has thousands of lines; the cause is one.
    eprintln!("dprof-agent: {}", error.lines().next().unwrap_or(error));
    code
}

/// Writes to stdout. A reader that has gone away is no error.
fn print(text: &str) -> u8 {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    EXIT_OK
}

#[expect(clippy::print_stderr, reason = "words for people go to stderr")]
fn say(text: &str) {
    eprintln!("dprof-agent: {text}");
}

fn start_log(verbose: u8) {
    let level = match verbose {
        0 => log::LevelFilter::Warn,
        1 => log::LevelFilter::Info,
        _ => log::LevelFilter::Debug,
    };
    env_logger::Builder::new().filter_level(level).parse_default_env().format_target(false).init();
}

fn run(options: &Options) -> anyhow::Result<u8> {
    for warning in &options.warnings {
        say(warning);
    }
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    let result = runtime.block_on(async {
        privilege::prepare();
        let mut configured = options.clone();
        let host = host_name(options);
        let member = fleet::join(&mut configured, &host).await;
        let options = &configured;
        let mut opened = open_source(options)?;
        let backend = opened.source.backend();
        let info = run_info(&opened, backend)?;
        let recording = options.record.as_ref().map(|record| create_recording(record, &info)).transpose()?;
        let writer = match &options.store {
            None => None,
            Some(url) => Some(open_writer(url, &info, options.retention, &opened.netns).await?),
        };
        let socket = options.socket.as_deref().and_then(|path| match control::bind(path) {
            Ok(socket) => Some(socket),
            Err(error) => {
                say(&format!("no control socket: {error:#}"));
                None
            }
        });
        let peers = options.peers.as_ref().map(|peers| word_options(peers, &info)).transpose()?;
        let metrics = options.guard.metrics.map(metrics::bind).transpose()?;
        member.iter().for_each(fleet::Member::prepare);
        // Everything is open and attached, and no thread has been started.
        give_up_privileges(options, &mut opened)?;
        let mut recorder = None;
        let source = match recording {
            None => opened.source,
            Some(writer) => {
                let how = recorder_options(options, opened.patient);
                let started = Arc::new(Recorder::with(writer, how)?);
                recorder = Some(Arc::clone(&started));
                Box::new(Tee { source: opened.source, recorder: started }) as Box<dyn Source>
            }
        };
        let mut engine = Engine::new(engine_config(options, &info))
            .with_capture(options.capture)
            .with_chosen(options.protocols)
            .with_keep(options.keep.clone());
        let peers = match &peers {
            None => None,
            Some(options) => {
                let (heard, words) = std::sync::mpsc::sync_channel(WORDS_WAITING_MAX);
                Some((Exchange::start(options, heard)?, words))
            }
        };
        let meeting = peers.as_ref().map(|(exchange, _)| exchange.meeting());
        if let Some(meeting) = &meeting {
            engine = engine.with_reach(Arc::new(meeting.clone()));
        }
        let running = pipeline::start(Stages {
            source,
            engine,
            writer,
            spool: Some(options.spool.clone()),
            peers,
            patient: opened.patient,
            keep_rollups: options.summary,
        })?;
        let _control = socket.map(|socket| socket.serve(running.questions())).transpose()?;
        let asked = || metrics::Asked {
            meeting: meeting.clone(),
            live: running.live(),
            questions: running.questions(),
            recording: recorder.as_ref().map(|recorder| Box::new(recorder.watch()) as Box<_>),
            backend,
            started_unix_ns: info.started_unix_ns,
        };
        let _metrics = metrics.map(|metrics| metrics.serve(asked())).transpose()?;
        let serving = member.map(|member| member.start(&info, &running, meeting.clone())).transpose()?;
        // From here on a signal ends the run in order; who reads "ready" may send one at once.
        let mut signals = Signals::watch()?;
        let place =
            options.store.as_ref().map_or_else(|| "no store".to_owned(), |url| format!("store {url}"));
        say(&format!("ready: backend {backend}, {place}"));
        wait(&running, options.run_for_ns, &mut signals).await;
        if let Some(serving) = serving {
            serving.stop();
        }
        running.stop();
        let outcome = tokio::select! {
            outcome = join(running) => outcome?,
            () = signals.recv() => return Ok(EXIT_INTERRUPTED),
        };
        let recorded = recorder.map(|recorder| match Arc::try_unwrap(recorder) {
            Ok(recorder) => recorder.finish(),
            Err(recorder) => recorder.counters(),
        });
        if options.summary {
            print(&report::summary(&outcome.rollups));
        }
        for line in report::counters(&outcome, recorded).lines() {
            say(line);
        }
        for error in &outcome.errors {
            say(error);
        }
        Ok(if outcome.errors.is_empty() { EXIT_OK } else { EXIT_ERROR })
    });
    // Whoever interrupts twice does not wait for the thread that waits for the others.
    runtime.shutdown_background();
    result
}

/// The file of a recording, made while the process may still write anywhere.
fn create_recording(record: &RecordOptions, info: &RunInfo) -> anyhow::Result<RecordingWriter> {
    let header = RecordingHeader {
        host: info.host.clone(),
        labels: info.labels.clone(),
        kernel: info.kernel.clone(),
        dprof: info.version.clone(),
        backend: info.backend.clone(),
        redacted: record.redacted,
        started_unix_ns: info.started_unix_ns,
    };
    let writer = RecordingWriter::create(&record.path, &header)?;
    let what = if record.redacted { "keys and commands, values masked" } else { "payload" };
    say(&format!("recording to {} (mode 0600; it holds {what})", record.path.display()));
    Ok(writer)
}

fn recorder_options(options: &Options, patient: bool) -> RecorderOptions {
    RecorderOptions {
        redacted: options.record.as_ref().is_none_or(|record| record.redacted),
        patient,
        scrub: options.store.as_ref().and_then(StoreUrl::credentials).and_then(Scrub::of),
    }
}

fn give_up_privileges(options: &Options, opened: &mut Opened) -> anyhow::Result<()> {
    if options.store.as_ref().and_then(StoreUrl::credentials).is_some_and(Credentials::is_in_the_clear) {
        say(
            "the store's password crosses the network as it is: name an authority under [tls] in the credentials",
        );
    }
    if options.guard.keep_privileges {
        say("all privileges are kept");
        return Ok(());
    }
    let mut folders = Vec::new();
    match &options.store {
        Some(StoreUrl::Sqlite(dir)) => folders.push(dir.clone()),
        Some(StoreUrl::Cassandra { .. }) => folders.push(options.spool.dir.clone()),
        None => {}
    }
    folders.extend(options.state.clone());
    folders.extend(options.socket.as_deref().and_then(Path::parent).map(Path::to_owned));
    let watches_kernel = matches!(options.input, Input::Kernel(_));
    let left = privilege::give_up(Needs { watches_kernel, folders: &folders }, opened.source.as_mut())?;
    log::info!("{}", left.describe());
    for folder in &left.foreign_folders {
        log::info!("{} is not this user's: the right to write anywhere is kept for it", folder.display());
    }
    Ok(())
}

/// Whom to tell and hear, with the secret that is read now, while everything can be.
fn word_options(peers: &args::Peers, info: &RunInfo) -> anyhow::Result<WordOptions> {
    let secret = words::read_secret(&peers.secret)?;
    Ok(WordOptions { listen: peers.listen, peers: peers.peers.clone(), run: info.run_id, secret })
}

async fn join(running: Running) -> anyhow::Result<pipeline::Outcome> {
    tokio::task::spawn_blocking(move || running.join()).await.context("wait for the threads")?
}

/// Waits for the end: a signal, the time that was given, the recording's end.
async fn wait(running: &Running, run_for_ns: Option<u64>, signals: &mut Signals) {
    let deadline = async {
        match run_for_ns {
            Some(ns) => tokio::time::sleep(Duration::from_nanos(ns)).await,
            None => std::future::pending().await,
        }
    };
    let ended = async {
        while !running.is_finished() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        () = signals.recv() => {}
        () = deadline => {}
        () = ended => {}
    }
}

/// SIGINT and SIGTERM, which end the run.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn watch() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("watch SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("watch SIGTERM")?,
        })
    }

    /// The next one.
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

struct Opened {
    source: Box<dyn Source>,
    patient: bool,
    host: String,
    labels: BTreeMap<String, String>,
    kernel: String,
    netns: Vec<u32>,
}

fn open_source(options: &Options) -> anyhow::Result<Opened> {
    match &options.input {
        Input::Kernel(kernel_options) => {
            let is_synchronised = wall_clock_error_ns().is_some();
            if let Some(reason) = window::refusal(&kernel_options.duty_cycle, is_synchronised) {
                anyhow::bail!("{reason}");
            }
            let source = kernel::open(kernel_options)?;
            let paths: Vec<PathBuf> = kernel::watched_netns(&kernel_options.netns);
            Ok(Opened {
                source,
                patient: false,
                host: host_name(options),
                labels: options.labels.clone(),
                kernel: fact("/proc/sys/kernel/osrelease", "unknown"),
                // One that has gone since needs no lock.
                netns: paths.iter().filter_map(|path| kernel::netns_inodes(&[path]).ok()).flatten().collect(),
            })
        }
        Input::Replay(path) => {
            let replay = Replay::open(path)?;
            let header = replay.header().clone();
            let mut labels = header.labels;
            labels.extend(options.labels.clone());
            Ok(Opened {
                source: Box::new(replay),
                patient: true,
                host: options.host.clone().unwrap_or(header.host),
                labels,
                kernel: header.kernel,
                netns: Vec::new(),
            })
        }
    }
}

/// The host's name in spans, unless a recording says another.
fn host_name(options: &Options) -> String {
    options.host.clone().unwrap_or_else(|| fact("/proc/sys/kernel/hostname", "localhost"))
}

fn fact(path: &str, otherwise: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|_| otherwise.to_owned(), |text| text.trim().to_owned())
}

fn run_info(opened: &Opened, backend: &str) -> anyhow::Result<RunInfo> {
    let mut random = [0_u8; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut random)
        .context("make a run id")?;
    Ok(RunInfo {
        run_id: RunId(u128::from_le_bytes(random).max(1)),
        host: opened.host.clone(),
        labels: opened.labels.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: opened.kernel.clone(),
        backend: backend.to_owned(),
        started_unix_ns: read_clocks().unix_ns,
    })
}

fn engine_config(options: &Options, info: &RunInfo) -> EngineConfig {
    let limits = &options.limits;
    EngineConfig {
        host: Arc::new(HostInfo {
            host: info.host.clone(),
            run_id: info.run_id,
            labels: info.labels.clone(),
        }),
        unknown: options.unknown,
        max_open_ns: options.max_open_ns,
        hold_ns: limits.hold_ns,
        open_requests_max: limits.open_requests_max,
        held_max: limits.held_max,
        connections_max: limits.connections_max,
        clock_offset_ns: options.clock_offset_ns,
        clock_drift_ppm: options.clock_drift_ppm,
        link: options.link,
    }
}
