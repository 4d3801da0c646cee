//! The command line of `dprof-agent`, turned once into plain, validated [`Options`].
//!
//! What a reader would get wrong: an option on the command line wins over the configuration file, which wins
//! over the default; lists are not joined. Nothing after this module asks where a value came from.

mod guard;
mod keep;
pub(crate) mod kept;
mod limits;
mod link;
mod peers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use dprof_common::limits::RING_BYTES_DEFAULT;
use dprof_common::units::{parse_bytes, parse_duration, parse_signed_duration};
use dprof_store::{DEFAULT_STORE, Retention, StoreUrl};

pub use self::guard::Guard;
use self::guard::GuardArgs;
use self::keep::KeepArgs;
use self::kept::KeptArgs;
pub use self::kept::RecordOptions;
pub use self::limits::EngineLimits;
use self::link::link_options;
use self::peers::PeerArgs;
pub use self::peers::Peers;
use crate::config::{self, Config};
use crate::deliver::SpoolOptions;
use crate::keep::KeepOptions;
use crate::link::LinkOptions;
use crate::protocol::capture::Capture;
use crate::source::hooks::{Backend, Events};
use crate::source::options::{KernelOptions, PAYLOAD_LIMIT_DEFAULT};
use crate::source::plan::Wish;
use crate::source::window::{DutyCycle, WINDOW_NS_DEFAULT, parse_ratio};
use dprof_common::settings::{MAX_OPEN_NS, PORTS_MAX, Protocols, RING_BYTES, WINDOW_NS};

/// Everything went well.
pub const EXIT_OK: u8 = 0;
/// Something failed: the line on stderr says what, and the remedy.
pub const EXIT_ERROR: u8 = 1;
/// The command line or the configuration file is wrong: nothing was started.
pub const EXIT_USAGE: u8 = 2;
/// A second SIGINT or SIGTERM came while the agent was storing what it had: it did not wait.
pub const EXIT_INTERRUPTED: u8 = 130;

/// Read when no `--config` is given; it need not exist.
pub const CONFIG_DEFAULT: &str = "/etc/dprof/agent.toml";
/// Where `dprof-cli tail --open` asks.
pub const SOCKET_DEFAULT: &str = "/run/dprof/agent.sock";
/// A request open for this long is given up as `timeout`.
pub const MAX_OPEN_NS_DEFAULT: u64 = 60_000_000_000;

/// Where network namespaces with a name live.
const NETNS_DIR: &str = "/run/netns";
/// Where relative cgroup paths start.
const CGROUP_DIR: &str = "/sys/fs/cgroup";
/// Clocks further apart than this are a mistake, not a test.
const CLOCK_OFFSET_NS_MAX: i64 = 366 * 86_400_000_000_000;
/// Quartz errs by less than 100 ppm; ten times that is still a test.
const CLOCK_DRIFT_PPM_MAX: f64 = 1000.0;

const AFTER_HELP: &str = "\
Exit codes: 0 everything finished is stored; 1 an error, named on stderr; 2 wrong option or configuration; \
130 interrupted twice.\n\n\
Examples:\n  \
sudo dprof-agent                         watch everything, store in /var/lib/dprof\n  \
sudo dprof-agent --for 30s --summary     print a table of operations, store nothing\n  \
sudo dprof-agent --port 6379 --record r  also keep the raw events\n  \
dprof-agent --replay r --summary         the same spans again, from the file";

/// Watches TCP messages with eBPF, rebuilds RPCs from them and stores their spans.
#[derive(Debug, Parser)]
#[command(name = "dprof-agent", version, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<SubCommand>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum SubCommand {
    /// Prints what this machine offers, each back end with usable or why not, and which will be used.
    Doctor,
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Where spans go: sqlite:DIR or cassandra://host1,host2/keyspace [default: sqlite:/var/lib/dprof; none with --summary alone]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Where spans wait while Cassandra is away [default: /var/lib/dprof/spool, at most 1GiB]
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// Where the last good configuration is kept for a start without the store [default: state/ in an embedded store,
    /// else in the spool's folder]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Name of this host in spans [default: the host name]
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Label of this host in spans, such as dc=eu, rack=r1, node=n3; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Only connections with this local or peer port; may be repeated
    #[arg(long = "port", value_name = "N", value_delimiter = ',')]
    ports: Vec<String>,
    /// Only this process; may be repeated
    #[arg(long = "pid", value_name = "N", value_delimiter = ',')]
    pids: Vec<String>,
    /// Only processes of this cgroup; may be repeated
    #[arg(long = "cgroup", value_name = "PATH")]
    cgroups: Vec<PathBuf>,
    /// Only this network namespace: a name as in `ip netns list`, or a path; may be repeated
    #[arg(long = "netns", value_name = "NAME|PATH")]
    netns: Vec<String>,
    /// Also make spans of unknown protocols, by change of direction, named by port
    #[arg(long)]
    unknown: bool,
    /// Kinds of evidence that links may stand on: explicit_id, stream_relay, relayed_content, order, same_thread
    /// [default: all]
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    evidence: Vec<String>,
    /// Leave out links less sure than this, 0 to 1; above 0 also those that are uncalibrated [default: 0]
    #[arg(long, value_name = "P")]
    min_confidence: Option<f32>,
    /// Give a request up as `timeout` after this long [default: 60s]
    #[arg(long, value_name = "DURATION")]
    max_open: Option<String>,
    /// Size of the event ring, a power of two [default: 4MiB]
    #[arg(long, value_name = "SIZE")]
    ring_bytes: Option<String>,
    /// Capture this way only: tp_btf, fentry or kprobe [default: the first that this kernel has]
    #[arg(long, value_name = "NAME", value_parser = backend)]
    backend: Option<Backend>,
    /// Take events this way only: percpu, ring or perf [default: percpu with tp_btf, else ring, or perf where the
    /// kernel has no ring buffer]
    #[arg(long, value_name = "NAME", value_parser = events)]
    events: Option<Events>,
    /// Capture only this part of the time, such as 1/16, in windows of the wall clock [default: 1]
    #[arg(long, value_name = "PART")]
    duty_cycle: Option<String>,
    /// Length of a capture window [default: 500ms]
    #[arg(long, value_name = "DURATION")]
    window: Option<String>,
    /// No other host is watched: a duty cycle below 1 needs no synchronised clock
    #[arg(long)]
    alone: bool,
    /// Stop after this long
    #[arg(long = "for", value_name = "DURATION")]
    run_for: Option<String>,
    /// Print a table of services and operations at the end; without --store nothing is stored
    #[arg(long)]
    summary: bool,
    #[command(flatten)]
    keep: KeepArgs,
    #[command(flatten)]
    peers: PeerArgs,
    #[command(flatten)]
    kept: KeptArgs,
    #[command(flatten)]
    guard: GuardArgs,
    /// Read events from a recording instead of the kernel
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = [
            "ports", "pids", "cgroups", "netns", "ring_bytes", "backend", "events", "debug_kernel", "duty_cycle", "window",
            "alone"
        ]
    )]
    replay: Option<PathBuf>,
    /// Configuration file [default: /etc/dprof/agent.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Add this to every wall-clock time (tests)
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    clock_offset: Option<String>,
    /// Let wall-clock times run fast by this rate, parts per million (tests)
    #[arg(long, value_name = "PPM", allow_hyphen_values = true)]
    clock_drift_ppm: Option<f64>,
    /// Socket for dprof-cli [default: /run/dprof/agent.sock; none with --replay]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print debug messages of the kernel programs
    #[arg(long)]
    debug_kernel: bool,
    /// Say more on stderr; twice: still more
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Watch and store.
    Run(Box<Options>),
    /// Print facts about this machine.
    Doctor,
    /// Print this text to stdout and leave (help, version).
    Print(String),
}

/// Where events come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// This machine's kernel.
    Kernel(KernelOptions),
    /// A recording.
    Replay(PathBuf),
}

/// Everything that a run depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Where events come from.
    pub input: Input,
    /// Where spans go; `None`: nowhere.
    pub store: Option<StoreUrl>,
    /// Limits of the store.
    pub retention: Retention,
    /// Where spans wait while a store that can be away is.
    pub spool: SpoolOptions,
    /// Where the last good configuration is kept; `None`: beside what is stored.
    pub state: Option<PathBuf>,
    /// Host name in spans; `None`: the machine's, or the recording's.
    pub host: Option<String>,
    /// Labels of the host; with a replay they are added to the recording's.
    pub labels: BTreeMap<String, String>,
    /// Spans of unknown protocols.
    pub unknown: bool,
    /// Protocols that are looked into.
    pub protocols: Protocols,
    /// Which traces are stored.
    pub keep: KeepOptions,
    /// Other agents that are told and heard.
    pub peers: Option<Peers>,
    /// Which links are made.
    pub link: LinkOptions,
    /// Age at which an open request is given up, nanoseconds.
    pub max_open_ns: u64,
    /// Engine limits.
    pub limits: EngineLimits,
    /// Stop after this long, nanoseconds.
    pub run_for_ns: Option<u64>,
    /// Print the table at the end.
    pub summary: bool,
    /// Write the raw events.
    pub record: Option<RecordOptions>,
    /// What of keys and values is kept.
    pub capture: Capture,
    /// Added to every wall-clock time, nanoseconds.
    pub clock_offset_ns: i64,
    /// Rate error of the wall clock, parts per million.
    pub clock_drift_ppm: f64,
    /// Control socket; `None`: none.
    pub socket: Option<PathBuf>,
    /// Who may look at the agent, and what it may itself.
    pub guard: Guard,
    /// 0 warnings, 1 information, 2 debug.
    pub verbose: u8,
    /// Things that the configuration file says and nobody understands.
    pub warnings: Vec<String>,
}

/// Parses the command line (with the program's name first) and the configuration file that it names. The error
/// is one line with cause and remedy.
pub fn parse<I, T>(args: I) -> Result<Command, String>
where
    I: IntoIterator<Item = T>,
    T: Into<std::ffi::OsString> + Clone,
{
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => return Ok(Command::Print(error.render().to_string())),
        Err(error) => return Err(one_line(&error.render().to_string())),
    };
    if let Some(SubCommand::Doctor) = args.command {
        return Ok(Command::Doctor);
    }
    let (config, warnings) = match &args.run.config {
        Some(path) => config::read(path)?,
        None => config::read_if_present(Path::new(CONFIG_DEFAULT))?,
    };
    options(args.run, config, warnings).map(|options| Command::Run(Box::new(options)))
}

/// clap's paragraphs as one line: the cause, its hints, where help is.
fn one_line(rendered: &str) -> String {
    let parts: Vec<String> = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .map(|line| line.trim_start_matches("error: ").trim_start_matches("tip: ").to_owned())
        .collect();
    format!("{}; see dprof-agent --help", parts.join("; ").replace(":; ", ": "))
}

fn options(args: RunArgs, config: Config, warnings: Vec<String>) -> Result<Options, String> {
    let store = match (&args.store, &config.store) {
        (Some(url), _) => Some(option("--store", url.parse::<StoreUrl>())?),
        (None, _) if args.summary => None,
        (None, Some(url)) => Some(url.clone()),
        (None, None) => Some(option("--store", DEFAULT_STORE.parse::<StoreUrl>())?),
    };
    let store = store.map(|url| args.guard.log_in(url, &config)).transpose()?;
    let guard = args.guard.guard(&config)?;
    let max_open_ns = match &args.max_open {
        Some(text) => duration_in("--max-open", text, MAX_OPEN_NS)?,
        None => config.max_open_ns.unwrap_or(MAX_OPEN_NS_DEFAULT),
    };
    let clock_offset_ns = match &args.clock_offset {
        Some(text) => option("--clock-offset", parse_signed_duration(text))?,
        None => 0,
    };
    if clock_offset_ns.abs() > CLOCK_OFFSET_NS_MAX {
        return Err("--clock-offset: give at most 366 days".to_owned());
    }
    let clock_drift_ppm = args.clock_drift_ppm.unwrap_or(0.0);
    if clock_drift_ppm.is_nan() || clock_drift_ppm.abs() > CLOCK_DRIFT_PPM_MAX {
        return Err(format!(
            "--clock-drift-ppm: give a number from -{CLOCK_DRIFT_PPM_MAX} to {CLOCK_DRIFT_PPM_MAX}"
        ));
    }
    let run_for_ns = match &args.run_for {
        Some(text) => Some(duration_in("--for", text, (1_000_000, u64::MAX))?),
        None => None,
    };
    let mut labels = config.labels;
    if !args.labels.is_empty() {
        labels = args.labels.iter().map(|label| parse_label(label)).collect::<Result<_, _>>()?;
    }
    let host = args.host.clone().or(config.host);
    if let Some(host) = &host {
        check_name("--host", host)?;
    }
    let socket = match (&args.socket, &args.replay) {
        (Some(path), _) => Some(path.clone()),
        (None, Some(_)) => None,
        (None, None) => Some(config.socket.unwrap_or_else(|| SOCKET_DEFAULT.into())),
    };
    let input = if let Some(path) = args.replay.clone() {
        Input::Replay(path)
    } else {
        let duty_cycle = duty_cycle(&args, &config.capture)?;
        let options =
            kernel_options(&args, &config.filters, config.ring_bytes, duty_cycle, config.service_rules)?;
        Input::Kernel(options)
    };
    let peers = args.peers.options(store.is_some())?;
    Ok(Options {
        input,
        store,
        retention: config.retention,
        spool: SpoolOptions {
            dir: args.spool.unwrap_or(config.spool.dir),
            bytes_max: config.spool.bytes_max,
        },
        state: args.state,
        host,
        labels,
        unknown: args.unknown || config.unknown,
        protocols: args.kept.protocols(config.capture.protocols)?,
        link: link_options(&args.evidence, args.min_confidence)?,
        max_open_ns,
        limits: config.limits,
        run_for_ns,
        summary: args.summary,
        keep: KeepOptions { has_peers: peers.is_some(), ..args.keep.options(&config.keep)? },
        peers,
        capture: args.kept.capture(config.capture.kept)?,
        record: args.kept.into_record(),
        clock_offset_ns,
        clock_drift_ppm,
        socket,
        guard,
        verbose: args.verbose,
        warnings,
    })
}

fn kernel_options(
    args: &RunArgs,
    filters: &config::Filters,
    ring_bytes: Option<u32>,
    duty_cycle: DutyCycle,
    service_rules: Vec<crate::source::process::ServiceRule>,
) -> Result<KernelOptions, String> {
    let ports = match args.ports.as_slice() {
        [] => filters.ports.clone(),
        ports => ports.iter().map(|port| parse_port(port)).collect::<Result<_, _>>()?,
    };
    if ports.len() > PORTS_MAX {
        return Err(format!("--port, filter.ports: {} ports: give at most {PORTS_MAX}", ports.len()));
    }
    let cgroups = if args.cgroups.is_empty() { &filters.cgroups } else { &args.cgroups };
    let netns = if args.netns.is_empty() { &filters.netns } else { &args.netns };
    let ring_bytes = match &args.ring_bytes {
        Some(text) => check_ring_bytes("--ring-bytes", option("--ring-bytes", parse_bytes(text))?)?,
        None => ring_bytes.unwrap_or(RING_BYTES_DEFAULT),
    };
    Ok(KernelOptions {
        ports,
        pids: args.pids.iter().map(|pid| parse_pid(pid)).collect::<Result<_, _>>()?,
        cgroups: cgroups.iter().map(|path| find_cgroup(path)).collect::<Result<_, _>>()?,
        netns: netns.iter().map(|name| find_netns(name)).collect::<Result<_, _>>()?,
        ring_bytes,
        wish: Wish { backend: args.backend, events: args.events },
        debug: args.debug_kernel,
        payload_limit: PAYLOAD_LIMIT_DEFAULT,
        duty_cycle,
        service_rules,
    })
}

fn backend(name: &str) -> Result<Backend, String> {
    Backend::from_name(name).ok_or_else(|| "one of tp_btf, fentry, kprobe is wanted".to_owned())
}

fn events(name: &str) -> Result<Events, String> {
    Events::from_name(name).ok_or_else(|| "one of percpu, ring, perf is wanted".to_owned())
}

fn duty_cycle(args: &RunArgs, config: &config::Capture) -> Result<DutyCycle, String> {
    let ratio =
        args.duty_cycle.as_deref().map(|text| option("--duty-cycle", parse_ratio(text))).transpose()?;
    let window_ns =
        args.window.as_deref().map(|text| duration_in("--window", text, WINDOW_NS)).transpose()?;
    Ok(DutyCycle {
        ratio: ratio.or(config.ratio).unwrap_or(1.0),
        window_ns: window_ns.or(config.window_ns).unwrap_or(WINDOW_NS_DEFAULT),
        alone: args.alone || config.alone,
    })
}

fn option<T, E: std::fmt::Display>(name: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| format!("{name}: {error}"))
}

fn duration_in(name: &str, text: &str, (min, max): (u64, u64)) -> Result<u64, String> {
    let ns = option(name, parse_duration(text))?;
    check_duration_in(name, ns, (min, max))
}

/// Checks a duration against its allowed range.
pub(crate) fn check_duration_in(name: &str, ns: u64, (min, max): (u64, u64)) -> Result<u64, String> {
    if (min..=max).contains(&ns) {
        return Ok(ns);
    }
    let upto = if max == u64::MAX { String::new() } else { format!(" and at most {}s", max / 1_000_000_000) };
    Err(format!("{name}: {}ms is out of range: give at least {}ms{upto}", ns / 1_000_000, min / 1_000_000))
}

/// Checks `max_open` against its allowed range.
pub(crate) fn check_max_open_ns(name: &str, ns: u64) -> Result<u64, String> {
    check_duration_in(name, ns, MAX_OPEN_NS)
}

/// Checks the size of the event ring.
pub(crate) fn check_ring_bytes(name: &str, bytes: u64) -> Result<u32, String> {
    if bytes.is_power_of_two() && (RING_BYTES.0..=RING_BYTES.1).contains(&bytes) {
        return Ok(bytes as u32);
    }
    Err(format!(
        "{name}: {bytes} bytes cannot be a ring: give a power of two from 64KiB to 1GiB, such as 4MiB"
    ))
}

/// Host names and labels go into file names and tables: short and printable.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), String> {
    const NAME_BYTES_MAX: usize = 255;
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(format!("{what}: give 1 to {NAME_BYTES_MAX} printable characters"));
    }
    Ok(())
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => {
            check_name("--label", key)?;
            check_name("--label", value)?;
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err(format!("--label: '{text}' is not KEY=VALUE, such as dc=eu")),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("--port: '{text}' is not a port: give a number from 1 to 65535")),
        Ok(port) => Ok(port),
    }
}

fn parse_pid(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(pid) if pid > 0 && Path::new("/proc").join(text).exists() => Ok(pid),
        Ok(pid) if pid > 0 => Err(format!("--pid: there is no process {pid}: see ps -e")),
        _ => Err(format!("--pid: '{text}' is not a process id: see ps -e")),
    }
}

fn find_cgroup(path: &Path) -> Result<PathBuf, String> {
    let full = if path.is_dir() {
        path.to_owned()
    } else {
        // `/proc/PID/cgroup` prints paths that start at the root of the cgroup file system.
        Path::new(CGROUP_DIR).join(path.strip_prefix("/").unwrap_or(path))
    };
    if full.join("cgroup.procs").exists() {
        return Ok(full);
    }
    Err(format!(
        "--cgroup: {} is not a cgroup: give a folder below {CGROUP_DIR}, such as system.slice/redis.service",
        path.display()
    ))
}

fn find_netns(name: &str) -> Result<PathBuf, String> {
    let path = if name.contains('/') { PathBuf::from(name) } else { Path::new(NETNS_DIR).join(name) };
    if path.exists() {
        return Ok(path);
    }
    Err(format!(
        "--netns: there is no network namespace {}: give a name that 'ip netns list' prints, or a path such as \
         /proc/PID/ns/net",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_run(line: &str) -> Result<Options, String> {
        match parse(std::iter::once("dprof-agent").chain(line.split_whitespace()))? {
            Command::Run(options) => Ok(*options),
            other => Err(format!("{other:?}")),
        }
    }

    fn kernel(line: &str) -> KernelOptions {
        match parse_run(line).expect(line).input {
            Input::Kernel(options) => options,
            Input::Replay(path) => panic!("{}", path.display()),
        }
    }

    #[track_caller]
    fn check_error(line: &str, expected: &str) {
        let error = parse_run(line).expect_err(line);
        assert!(error.contains(expected), "{line}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn without_options_everything_is_watched_and_stored_in_the_default_store() {
        let options = parse_run("").expect("no options");
        assert_eq!(options.store.as_ref().map(ToString::to_string).as_deref(), Some(DEFAULT_STORE));
        assert_eq!(options.input, Input::Kernel(KernelOptions::everything()));
        assert_eq!(options.socket.as_deref(), Some(Path::new(SOCKET_DEFAULT)));
        assert_eq!((options.max_open_ns, options.run_for_ns, options.summary), (60_000_000_000, None, false));
    }

    #[test]
    fn summary_alone_stores_nothing() {
        assert_eq!(parse_run("--summary --for 30s").map(|options| options.store), Ok(None));
        assert!(parse_run("--summary --store sqlite:/tmp/x").is_ok_and(|options| options.store.is_some()));
    }

    #[test]
    fn filters_are_validated() {
        let options = kernel("--port 6379 --port 80,443 --pid 1 --ring-bytes 8MiB");
        assert_eq!(options.ports, [6379, 80, 443]);
        assert_eq!(options.pids, [1]);
        assert_eq!(options.ring_bytes, 8 << 20);
        check_error(&format!("--port {}", vec!["80"; 1025].join(",")), "1025 ports: give at most 1024");
        let protocols = parse_run("--protocols redis,http").map(|options| options.protocols.to_string());
        assert_eq!(protocols, Ok("http,redis".to_owned()));
        check_error("--protocols resp", "--protocols: 'resp' is no protocol, did you mean redis?");
        check_error("--port 0", "--port: '0' is not a port: give a number from 1 to 65535");
        check_error("--port 65536", "'65536' is not a port");
        check_error("--port http", "'http' is not a port");
        check_error("--pid 0", "'0' is not a process id");
        check_error("--pid 4194999", "there is no process 4194999");
        check_error("--ring-bytes 3MiB", "give a power of two from 64KiB to 1GiB");
        check_error("--ring-bytes 1KiB", "give a power of two");
        check_error("--ring-bytes lots", "'lots' is not a size");
        check_error("--netns no-such-ns", "there is no network namespace /run/netns/no-such-ns");
        check_error("--cgroup no/such", "no/such is not a cgroup");
    }

    #[test]
    fn a_network_namespace_is_a_name_or_a_path() {
        assert_eq!(kernel("--netns /proc/self/ns/net").netns, [PathBuf::from("/proc/self/ns/net")]);
    }

    #[test]
    fn durations_name_their_range() {
        assert_eq!(parse_run("--max-open 250ms").map(|options| options.max_open_ns), Ok(250_000_000));
        check_error("--max-open 5", "'5' is not a duration");
        check_error(
            "--max-open 1ms",
            "--max-open: 1ms is out of range: give at least 100ms and at most 3600s",
        );
        check_error("--for 0", "--for: 0ms is out of range: give at least 1ms");
        check_error("--for=-1s", "is negative");
    }

    #[test]
    fn clock_errors_for_tests_have_a_sign() {
        let options = parse_run("--clock-offset -2.5s --clock-drift-ppm -100").expect("valid");
        assert_eq!((options.clock_offset_ns, options.clock_drift_ppm), (-2_500_000_000, -100.0));
        check_error("--clock-drift-ppm nan", "give a number from -1000 to 1000");
        check_error("--clock-offset 9999d", "at most 366 days");
    }

    #[test]
    fn labels_and_host_are_checked() {
        let options = parse_run("--label dc=eu --label rack=r=1 --host web1").expect("valid");
        assert_eq!(
            options.labels.into_iter().collect::<Vec<_>>(),
            [("dc".into(), "eu".into()), ("rack".into(), "r=1".into())]
        );
        assert_eq!(options.host.as_deref(), Some("web1"));
        check_error("--label dc", "'dc' is not KEY=VALUE");
        check_error("--label =x", "'=x' is not KEY=VALUE");
        check_error("--label dc=", "--label: give 1 to 255 printable characters");
    }

    #[test]
    fn a_replay_has_no_filters_and_no_socket_of_its_own() {
        let options = parse_run("--replay r.dprof --record s --record-redacted").expect("valid");
        assert_eq!(options.input, Input::Replay("r.dprof".into()));
        assert_eq!(options.socket, None);
        assert_eq!(options.record, Some(RecordOptions { path: "s".into(), redacted: true }));
        check_error("--replay r --port 1", "cannot be used with");
        check_error("--record-redacted", "--record");
        check_error("--record-payload", "--record");
        check_error("--record r --record-redacted --record-payload", "cannot be used with");
    }

    #[test]
    fn values_and_secrets_are_kept_only_on_demand() {
        use crate::protocol::capture::KeyCapture;
        let of = |line: &str| parse_run(line).expect(line);
        let redacted = |line: &str| of(line).record.expect("a recording").redacted;
        assert!(redacted("--record r"));
        assert!(!redacted("--record r --record-payload"));
        assert_eq!(of("").capture, Capture::default());
        let capture = of("--capture-values --capture-keys hash").capture;
        assert_eq!(capture, Capture { values: true, keys: KeyCapture::Hash });
        check_error(
            "--capture-keys none",
            "--capture-keys: 'none' is no way to keep keys: give plain or hash",
        );
    }

    #[test]
    fn usage_errors_are_one_line_with_a_hint() {
        check_error("--prot 1", "unexpected argument '--prot' found; a similar argument exists: '--port'");
        check_error(
            "--store cassandra://joe:secret@host/dprof",
            "a store's URL holds no user and no password",
        );
        check_error("--store nowhere", "--store: 'nowhere' is not a store: use sqlite:DIR");
        check_error("--config /no/such/file", "/no/such/file");
        check_error("doctr", "see dprof-agent --help");
        assert_eq!(parse(["dprof-agent", "doctor"]), Ok(Command::Doctor));
        assert!(
            matches!(parse(["dprof-agent", "--help"]), Ok(Command::Print(text)) if text.contains("Exit codes"))
        );
    }
}
