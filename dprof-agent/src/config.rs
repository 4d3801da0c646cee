//! The agent's configuration file (TOML) into a typed [`Config`], every value checked.
//!
//! What a reader would get wrong: a wrong value refuses the file (the agent does not start with half of what
//! was meant), an unknown key only warns (a file may be shared with a newer agent).

mod capture;
mod keep;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dprof_store::{Retention, StoreUrl};
use serde::Deserialize;

pub use self::capture::Capture;
use self::capture::{FileCapture, check_capture};
pub use self::keep::Keep;
pub(crate) use self::keep::check_budget;
use self::keep::{FileKeep, check_keep};
use crate::args::{EngineLimits, check_max_open_ns, check_name, check_ring_bytes};
use crate::deliver::SpoolOptions;
use crate::source::process::{Pattern, ServiceRule};
use dprof_common::settings::{COUNT, HOLD_NS};
use dprof_common::units::{parse_bytes, parse_duration};

/// A file larger than this is not a configuration.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Rules are tried one by one for each new process.
const SERVICE_RULES_MAX: usize = 1000;
/// Where spans wait while Cassandra is away.
const SPOOL_DIR_DEFAULT: &str = "/var/lib/dprof/spool";
/// An hour of 2,000 spans/s, compressed.
const SPOOL_BYTES_DEFAULT: u64 = 1 << 30;
/// Some batches must fit.
const SPOOL_BYTES_MIN: u64 = 1 << 20;

/// What the file says; `None` and empty where it says nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `store`
    pub store: Option<StoreUrl>,
    /// `store_credentials`
    pub store_credentials: Option<PathBuf>,
    /// `metrics`
    pub metrics: Option<String>,
    /// `metrics_remote`
    pub metrics_remote: bool,
    /// `host`
    pub host: Option<String>,
    /// `socket`
    pub socket: Option<PathBuf>,
    /// `unknown`
    pub unknown: bool,
    /// `[labels]`
    pub labels: BTreeMap<String, String>,
    /// `[[service]]`, in order: the first that matches wins.
    pub service_rules: Vec<ServiceRule>,
    /// `[retention]`
    pub retention: Retention,
    /// `[spool]`
    pub spool: SpoolOptions,
    /// `limits.max_open`
    pub max_open_ns: Option<u64>,
    /// `limits.ring_size`
    pub ring_bytes: Option<u32>,
    /// The rest of `[limits]`.
    pub limits: EngineLimits,
    /// `[filter]`
    pub filters: Filters,
    /// `[capture]`
    pub capture: Capture,
    /// `[trace]`
    pub keep: Keep,
}

/// What to watch; overridden by the options of the same name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// `filter.ports`
    pub ports: Vec<u16>,
    /// `filter.cgroups`
    pub cgroups: Vec<PathBuf>,
    /// `filter.netns`
    pub netns: Vec<String>,
}

/// The file as TOML has it.
#[derive(Debug, Deserialize)]
#[serde(default)]
#[derive(Default)]
struct File {
    store: Option<String>,
    store_credentials: Option<PathBuf>,
    metrics: Option<String>,
    metrics_remote: bool,
    host: Option<String>,
    socket: Option<PathBuf>,
    unknown: bool,
    labels: BTreeMap<String, String>,
    service: Vec<FileRule>,
    retention: FileRetention,
    spool: FileSpool,
    limits: FileLimits,
    filter: FileFilter,
    capture: FileCapture,
    trace: FileKeep,
}

/// A part of the whole: a number, or text such as `1/16`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum FilePart {
    Number(f64),
    Text(String),
}

impl FilePart {
    fn to_text(&self) -> String {
        match self {
            Self::Number(part) => part.to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

#[derive(Debug, Deserialize)]
struct FileRule {
    name: String,
    comm: Option<String>,
    exe: Option<String>,
    cmdline: Option<String>,
    unit: Option<String>,
    container: Option<String>,
    port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FileRetention {
    max_age: Option<String>,
    max_size: Option<String>,
    chunk_age: Option<String>,
    chunk_size: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FileSpool {
    dir: Option<PathBuf>,
    max_size: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FileLimits {
    max_open: Option<String>,
    ring_size: Option<String>,
    hold: Option<String>,
    open_requests: Option<u64>,
    held: Option<u64>,
    connections: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FileFilter {
    ports: Vec<u16>,
    cgroups: Vec<PathBuf>,
    netns: Vec<String>,
}

/// Every key that [`File`] knows; `labels` takes any.
const KEYS: [(&str, &[&str]); 8] = [
    (
        "",
        &[
            "store",
            "store_credentials",
            "metrics",
            "metrics_remote",
            "host",
            "socket",
            "unknown",
            "labels",
            "service",
            "retention",
            "spool",
            "limits",
            "filter",
            "capture",
            "trace",
        ],
    ),
    ("spool", &["dir", "max_size"]),
    ("service", &["name", "comm", "exe", "cmdline", "unit", "container", "port"]),
    ("retention", &["max_age", "max_size", "chunk_age", "chunk_size"]),
    ("limits", &["max_open", "ring_size", "hold", "open_requests", "held", "connections"]),
    ("filter", &["ports", "cgroups", "netns"]),
    ("capture", capture::KEYS),
    ("trace", keep::KEYS),
];

/// Reads the file at `path`, which must exist. Gives the configuration and warnings; the error is one line.
pub fn read(path: &Path) -> Result<(Config, Vec<String>), String> {
    let name = path.display();
    let length = std::fs::metadata(path).map_err(|error| cannot_read(path, &error))?.len();
    if length > FILE_BYTES_MAX {
        return Err(format!("{name} has {length} bytes: a configuration has at most {FILE_BYTES_MAX}"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| cannot_read(path, &error))?;
    let (config, warnings) = parse(&text).map_err(|error| format!("{name}: {error}"))?;
    Ok((config, warnings.into_iter().map(|warning| format!("{name}: {warning}")).collect()))
}

/// [`read`], or the defaults when there is no such file.
pub fn read_if_present(path: &Path) -> Result<(Config, Vec<String>), String> {
    if matches!(path.try_exists(), Ok(false)) { parse("") } else { read(path) }
}

fn cannot_read(path: &Path, error: &std::io::Error) -> String {
    format!("cannot read the configuration {}: {error}; check --config and the file's mode", path.display())
}

/// Parses the file's text. Gives the configuration and warnings.
pub fn parse(text: &str) -> Result<(Config, Vec<String>), String> {
    let file: File = toml::from_str(text).map_err(|error| one_line(&error, text))?;
    let table: toml::Table = toml::from_str(text).map_err(|error| one_line(&error, text))?;
    let config = check(file)?;
    Ok((config, unknown_keys(&table)))
}

fn one_line(error: &toml::de::Error, text: &str) -> String {
    let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let place = if line > 0 { format!("line {line}: ") } else { String::new() };
    format!("{place}{}", error.message().replace('\n', " "))
}

fn check(file: File) -> Result<Config, String> {
    let store = match &file.store {
        Some(url) => Some(url.parse::<StoreUrl>().map_err(|error| format!("store: {error}"))?),
        None => None,
    };
    if let Some(host) = &file.host {
        check_name("host", host)?;
    }
    for (key, value) in &file.labels {
        check_name("labels", key)?;
        check_name(&format!("labels.{key}"), value)?;
    }
    if file.service.len() > SERVICE_RULES_MAX {
        return Err(format!("service: {} rules: give at most {SERVICE_RULES_MAX}", file.service.len()));
    }
    if file.filter.ports.contains(&0) {
        return Err("filter.ports: 0 is not a port: give numbers from 1 to 65535".to_owned());
    }
    let (limits, default) = (&file.limits, EngineLimits::DEFAULT);
    Ok(Config {
        store,
        store_credentials: file.store_credentials,
        metrics: file.metrics,
        metrics_remote: file.metrics_remote,
        host: file.host,
        socket: file.socket,
        unknown: file.unknown,
        labels: file.labels,
        service_rules: file.service.into_iter().map(check_rule).collect::<Result<_, _>>()?,
        retention: check_retention(&file.retention)?,
        spool: check_spool(file.spool)?,
        max_open_ns: optional("limits.max_open", limits.max_open.as_deref(), parse_duration)?
            .map(|ns| check_max_open_ns("limits.max_open", ns))
            .transpose()?,
        ring_bytes: optional("limits.ring_size", limits.ring_size.as_deref(), parse_bytes)?
            .map(|bytes| check_ring_bytes("limits.ring_size", bytes))
            .transpose()?,
        limits: EngineLimits {
            open_requests_max: check_count("limits.open_requests", limits.open_requests)?
                .unwrap_or(default.open_requests_max),
            held_max: check_count("limits.held", limits.held)?.unwrap_or(default.held_max),
            connections_max: check_count("limits.connections", limits.connections)?
                .unwrap_or(default.connections_max),
            hold_ns: optional("limits.hold", limits.hold.as_deref(), parse_duration)?
                .map(|ns| crate::args::check_duration_in("limits.hold", ns, HOLD_NS))
                .transpose()?
                .unwrap_or(default.hold_ns),
        },
        filters: Filters { ports: file.filter.ports, cgroups: file.filter.cgroups, netns: file.filter.netns },
        capture: check_capture(&file.capture)?,
        keep: check_keep(&file.trace)?,
    })
}

fn optional<T, E: std::fmt::Display>(
    name: &str,
    text: Option<&str>,
    parse: fn(&str) -> Result<T, E>,
) -> Result<Option<T>, String> {
    text.map(parse).transpose().map_err(|error| format!("{name}: {error}"))
}

fn check_count(name: &str, count: Option<u64>) -> Result<Option<usize>, String> {
    let (min, max) = COUNT;
    match count {
        Some(n) if !(min..=max).contains(&n) => {
            Err(format!("{name}: {n} is out of range: give {min} to {max}"))
        }
        count => Ok(count.map(|n| n as usize)),
    }
}

fn check_rule(rule: FileRule) -> Result<ServiceRule, String> {
    check_name("service.name", &rule.name)?;
    let rule = ServiceRule {
        service: rule.name,
        comm: rule.comm.map(Pattern),
        exe: rule.exe.map(Pattern),
        cmdline: rule.cmdline.map(Pattern),
        unit: rule.unit.map(Pattern),
        container: rule.container.map(Pattern),
        port: rule.port,
    };
    if rule.is_unconditional() {
        return Err(format!(
            "service '{}' matches nothing: give comm, exe, cmdline, unit, container or port",
            rule.service
        ));
    }
    Ok(rule)
}

fn check_retention(file: &FileRetention) -> Result<Retention, String> {
    const SECOND_NS: u64 = 1_000_000_000;
    const HOUR_S: u64 = 3600;
    let default = Retention::DEFAULT;
    let seconds = |name: &str, text: &Option<String>, default_s: u64, (min_s, max_s): (u64, u64)| {
        let Some(ns) = optional(name, text.as_deref(), parse_duration)? else { return Ok(default_s) };
        let s = ns / SECOND_NS;
        if (min_s..=max_s).contains(&s) {
            return Ok(s);
        }
        Err(format!("{name}: {s}s is out of range: give {min_s}s to {max_s}s"))
    };
    let bytes = |name: &str, text: &Option<String>, default_bytes: u64, min_bytes: u64| {
        let bytes = optional(name, text.as_deref(), parse_bytes)?.unwrap_or(default_bytes);
        if bytes >= min_bytes {
            return Ok(bytes);
        }
        Err(format!("{name}: {bytes} bytes are too few: give at least {}MiB", min_bytes >> 20))
    };
    Ok(Retention {
        max_age_s: seconds(
            "retention.max_age",
            &file.max_age,
            default.max_age_s,
            (60, 10 * 366 * 24 * HOUR_S),
        )?,
        max_bytes: bytes("retention.max_size", &file.max_size, default.max_bytes, 16 << 20)?,
        chunk_s: seconds("retention.chunk_age", &file.chunk_age, default.chunk_s, (10, 24 * HOUR_S))?,
        chunk_bytes: bytes("retention.chunk_size", &file.chunk_size, default.chunk_bytes, 1 << 20)?,
    })
}

fn check_spool(file: FileSpool) -> Result<SpoolOptions, String> {
    let bytes_max =
        optional("spool.max_size", file.max_size.as_deref(), parse_bytes)?.unwrap_or(SPOOL_BYTES_DEFAULT);
    if bytes_max < SPOOL_BYTES_MIN {
        return Err(format!(
            "spool.max_size: {bytes_max} bytes are too few: give at least {}MiB",
            SPOOL_BYTES_MIN >> 20
        ));
    }
    Ok(SpoolOptions { dir: file.dir.unwrap_or_else(|| SPOOL_DIR_DEFAULT.into()), bytes_max })
}

fn unknown_keys(table: &toml::Table) -> Vec<String> {
    let mut warnings = Vec::new();
    warn_unknown(table, "", &mut warnings);
    for (section, _) in KEYS.iter().filter(|(section, _)| !section.is_empty()) {
        match table.get(*section) {
            Some(toml::Value::Table(inner)) => warn_unknown(inner, section, &mut warnings),
            Some(toml::Value::Array(items)) => {
                for inner in items.iter().filter_map(toml::Value::as_table) {
                    warn_unknown(inner, section, &mut warnings);
                }
            }
            _ => {}
        }
    }
    warnings
}

fn warn_unknown(table: &toml::Table, section: &str, warnings: &mut Vec<String>) {
    let known = KEYS.iter().find(|(name, _)| *name == section).map_or(&[][..], |(_, keys)| *keys);
    for key in table.keys().filter(|key| !known.contains(&key.as_str())) {
        let path = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
        warnings.push(format!("unknown key '{path}' is ignored; known here: {}", known.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::capture::KeyCapture;

    #[track_caller]
    fn check_error(text: &str, expected: &str) {
        let error = parse(text).expect_err(text);
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn the_capture_window_is_read_and_checked() {
        let capture = |text: &str| parse(&format!("[capture]\n{text}")).map(|(config, _)| config.capture);
        let expected = Capture {
            ratio: Some(0.0625),
            window_ns: Some(2_000_000_000),
            alone: true,
            ..Capture::default()
        };
        assert_eq!(capture("duty_cycle = \"1/16\"\nwindow = \"2s\"\nalone = true"), Ok(expected));
        assert_eq!(capture("duty_cycle = 0.25").map(|capture| capture.ratio), Ok(Some(0.25)));
        let kept = capture("values = true\nkeys = \"hash\"").expect("valid").kept;
        assert_eq!(kept, crate::protocol::capture::Capture { values: true, keys: KeyCapture::Hash });
        let protocols = |text: &str| capture(text).map(|capture| capture.protocols.to_string());
        assert_eq!(protocols(""), Ok("all".to_owned()));
        assert_eq!(protocols("protocols = \"all\""), Ok("all".to_owned()));
        assert_eq!(protocols("protocols = \"redis, http\""), Ok("http,redis".to_owned()));
        assert_eq!(protocols("protocols = [\"redis\"]"), Ok("redis".to_owned()));
        check_error(
            "[capture]\nprotocols = [\"resp\"]",
            "capture.protocols: 'resp' is no protocol, did you mean",
        );
        check_error("[capture]\nprotocols = []", "capture.protocols: '' is no protocol");
        check_error("[capture]\nkeys = \"none\"", "capture.keys: 'none' is no way to keep keys");
        check_error("[capture]\nduty_cycle = 0", "capture.duty_cycle: '0' is no part of the whole");
        check_error("[capture]\nwindow = \"1ms\"", "capture.window");
    }

    #[test]
    fn an_empty_file_says_nothing() {
        let (config, warnings) = parse("").expect("empty");
        assert_eq!((config.store, config.service_rules, warnings), (None, vec![], vec![]));
        assert_eq!(config.retention, Retention::DEFAULT);
    }

    #[test]
    fn every_key_is_read() {
        let (config, warnings) = parse(
            r#"
            store = "sqlite:/data/dprof"
            host = "web1"
            socket = "/run/x.sock"
            unknown = true
            [labels]
            dc = "eu"
            [[service]]
            name = "checkout"
            exe = "/opt/checkout/*"
            port = 8080
            [retention]
            max_age = "1d"
            max_size = "1GiB"
            chunk_age = "10m"
            chunk_size = "64MiB"
            [limits]
            max_open = "5s"
            ring_size = "8MiB"
            hold = "2s"
            open_requests = 1000
            held = 2000
            connections = 3000
            [filter]
            ports = [6379]
            cgroups = ["system.slice"]
            netns = ["a"]
            "#,
        )
        .expect("valid");
        assert_eq!(warnings, [""; 0]);
        assert_eq!(config.store.expect("store").to_string(), "sqlite:/data/dprof");
        assert_eq!(config.labels["dc"], "eu");
        assert_eq!(config.service_rules[0].service, "checkout");
        assert_eq!(config.service_rules[0].port, Some(8080));
        assert_eq!(
            config.retention,
            Retention { max_age_s: 86_400, max_bytes: 1 << 30, chunk_s: 600, chunk_bytes: 64 << 20 }
        );
        assert_eq!((config.max_open_ns, config.ring_bytes), (Some(5_000_000_000), Some(8 << 20)));
        assert_eq!(
            config.limits,
            EngineLimits {
                open_requests_max: 1000,
                held_max: 2000,
                connections_max: 3000,
                hold_ns: 2_000_000_000
            }
        );
        assert_eq!(config.filters.ports, [6379]);
    }

    #[test]
    fn unknown_keys_warn_and_are_ignored() {
        let (_, warnings) =
            parse("stroe = 1\n[limits]\nmax_opne = \"1s\"\n[labels]\nany = \"x\"").expect("valid");
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("unknown key 'stroe'"), "{warnings:?}");
        assert!(warnings[1].contains("unknown key 'limits.max_opne'"), "{warnings:?}");
    }

    #[test]
    fn wrong_values_are_refused_with_reason_and_range() {
        check_error("store = \"x\"", "store: 'x' is not a store");
        check_error("\nstore = 5", "line 2: invalid type: integer `5`, expected a string");
        check_error("store = ", "line 1");
        check_error("[limits]\nmax_open = \"1ms\"", "limits.max_open: 1ms is out of range");
        check_error("[limits]\nring_size = \"5MiB\"", "limits.ring_size: 5242880 bytes cannot be a ring");
        check_error("[limits]\nheld = 1", "limits.held: 1 is out of range: give 16 to 10000000");
        check_error("[limits]\nhold = \"1h\"", "limits.hold");
        check_error("[trace]\nkeep_ratio = \"2\"", "trace.keep_ratio: '2' is no part of the whole");
        check_error("[trace]\nkeep_budget_per_s = -1.0", "trace.keep_budget_per_s: -1 is out of range");
        let keep = parse("[trace]\nkeep_ratio = \"1/100\"\nkeep_slow = false").expect("good").0.keep;
        assert_eq!((keep.ratio, keep.slow, keep.errors), (Some(0.01), Some(false), None));
        check_error("[retention]\nmax_age = \"1s\"", "retention.max_age: 1s is out of range: give 60s");
        check_error("[retention]\nmax_size = \"1MiB\"", "give at least 16MiB");
        check_error("[[service]]\nname = \"x\"", "service 'x' matches nothing");
        check_error("[[service]]\nname = \"\"\nport = 1", "service.name: give 1 to 255");
        check_error("[filter]\nports = [0]", "0 is not a port");
        check_error("[filter]\nports = [70000]", "line 2");
    }
}
