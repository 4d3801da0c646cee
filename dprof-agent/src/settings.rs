//! What of a run can be told from outside: from options and configured values to plain ones. Pure.
//!
//! What a reader would get wrong: values come checked by [`dprof_common::settings`]; a text that is none after all
//! leaves what was there. And the store's word wins over the agent's own file and options.

use std::collections::BTreeMap;
use std::str::FromStr as _;

use dprof_common::settings::{
    Applies, KEYS, Protocols, Scope, Scoped, ServiceName, Values, effective, parse_ports, parse_protocols,
    parse_service_names, service_names_text,
};
use dprof_common::units::{parse_bytes, parse_duration, parse_part};
use dprof_store::Retention;

use crate::args::{EngineLimits, Input, Options};
use crate::keep::{KeepOptions, Triggers};
use crate::protocol::capture::{Capture, KeyCapture};
use crate::source::process::ServiceRule;
use crate::source::window::{DutyCycle, WINDOW_NS_DEFAULT};

const SECOND_NS: u64 = 1_000_000_000;

/// What a running agent obeys and can be told anew.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `trace.*`
    pub keep: KeepOptions,
    /// `capture.duty_cycle`, `capture.window`
    pub duty_cycle: DutyCycle,
    /// `capture.values`, `capture.keys`
    pub capture: Capture,
    /// `capture.unknown`
    pub unknown: bool,
    /// `capture.protocols`
    pub protocols: Protocols,
    /// `filter.ports`; empty = all
    pub ports: Vec<u16>,
    /// `service.names`
    pub service_rules: Vec<ServiceRule>,
    /// `limits.max_open`
    pub max_open_ns: u64,
    /// The rest of `limits.*` but the ring's size
    pub limits: EngineLimits,
    /// `retention.*`
    pub retention: Retention,
}

/// Values as one place has them.
struct Place<'a> {
    scoped: &'a Scoped,
    host: &'a str,
    service: Option<&'a str>,
}

impl<'a> Place<'a> {
    fn text(&self, name: &str) -> Option<&'a str> {
        effective(self.scoped, name, Some(self.host), self.service).map(|(_, text)| text)
    }

    /// Puts the value of `name` there, if there is one.
    fn put<T, E>(&self, name: &str, parse: impl Fn(&str) -> Result<T, E>, into: &mut T) {
        if let Some(Ok(value)) = self.text(name).map(parse) {
            *into = value;
        }
    }
}

impl Settings {
    /// What the options say: in force where nothing is configured.
    pub fn of(options: &Options) -> Self {
        let kernel = match &options.input {
            Input::Kernel(kernel) => Some(kernel),
            Input::Replay(_) => None,
        };
        let everything = DutyCycle { ratio: 1.0, window_ns: WINDOW_NS_DEFAULT, alone: false };
        Self {
            keep: options.keep.clone(),
            duty_cycle: kernel.map_or(everything, |kernel| kernel.duty_cycle),
            service_rules: kernel.map_or_else(Vec::new, |kernel| kernel.service_rules.clone()),
            capture: options.capture,
            unknown: options.unknown,
            protocols: options.protocols,
            ports: kernel.map_or_else(Vec::new, |kernel| kernel.ports.clone()),
            max_open_ns: options.max_open_ns,
            limits: options.limits,
            retention: options.retention,
        }
    }

    /// Starts a run with them.
    pub fn put(&self, options: &mut Options) {
        options.keep = self.keep.clone();
        if let Input::Kernel(kernel) = &mut options.input {
            kernel.duty_cycle = self.duty_cycle;
            kernel.service_rules.clone_from(&self.service_rules);
            kernel.ports.clone_from(&self.ports);
        }
        options.capture = self.capture;
        options.unknown = self.unknown;
        options.protocols = self.protocols;
        options.max_open_ns = self.max_open_ns;
        options.limits = self.limits;
        options.retention = self.retention;
    }

    /// The same with what is configured for `host`.
    #[must_use]
    pub fn configured(&self, scoped: &Scoped, host: &str) -> Self {
        let mut settings = self.clone();
        let place = Place { scoped, host, service: None };
        let keep = &mut settings.keep;
        let mut of_all = Triggers { slow: keep.slow, errors: keep.errors, budget_per_s: keep.budget_per_s };
        let base = of_all;
        put_triggers(&place, &mut of_all);
        place.put("trace.keep_ratio", |text| parse_part(text, 0.0), &mut keep.ratio);
        (keep.slow, keep.errors, keep.budget_per_s) = (of_all.slow, of_all.errors, of_all.budget_per_s);
        for scope in scoped.keys() {
            if let Scope::Service(service) = scope {
                let mut triggers = base;
                put_triggers(&Place { scoped, host, service: Some(service) }, &mut triggers);
                keep.by_service.insert(service.clone(), triggers);
            }
        }
        keep.by_service.retain(|_, triggers| *triggers != of_all);
        place.put("capture.duty_cycle", |text| parse_part(text, 0.0), &mut settings.duty_cycle.ratio);
        place.put("capture.window", parse_duration, &mut settings.duty_cycle.window_ns);
        place.put("capture.values", str::parse, &mut settings.capture.values);
        place.put("capture.keys", KeyCapture::from_str, &mut settings.capture.keys);
        place.put("capture.unknown", str::parse, &mut settings.unknown);
        place.put("capture.protocols", parse_protocols, &mut settings.protocols);
        place.put("filter.ports", |text| parse_ports(text).ok_or(()), &mut settings.ports);
        place.put("limits.max_open", parse_duration, &mut settings.max_open_ns);
        let limits = &mut settings.limits;
        place.put("limits.hold", parse_duration, &mut limits.hold_ns);
        place.put("limits.open_requests", str::parse, &mut limits.open_requests_max);
        place.put("limits.held", str::parse, &mut limits.held_max);
        place.put("limits.connections", str::parse, &mut limits.connections_max);
        let rules = |text: &str| {
            let names = parse_service_names(text).ok_or(())?;
            Ok::<_, ()>(names.into_iter().map(ServiceRule::from).collect())
        };
        place.put("service.names", rules, &mut settings.service_rules);
        let seconds = |text: &str| parse_duration(text).map(|ns| ns / SECOND_NS);
        place.put("retention.max_age", seconds, &mut settings.retention.max_age_s);
        place.put("retention.max_size", parse_bytes, &mut settings.retention.max_bytes);
        settings
    }
}

fn put_triggers(place: &Place<'_>, triggers: &mut Triggers) {
    place.put("trace.keep_slow", str::parse, &mut triggers.slow);
    place.put("trace.keep_errors", str::parse, &mut triggers.errors);
    place.put("trace.keep_budget_per_s", str::parse, &mut triggers.budget_per_s);
}

/// Changes options by what is configured of them for `host`: keys that take effect at the start only.
pub fn configure_start(options: &mut Options, scoped: &Scoped, host: &str) {
    let place = Place { scoped, host, service: None };
    if let Input::Kernel(kernel) = &mut options.input {
        let ring = |text: &str| parse_bytes(text).map(|bytes| bytes as u32);
        place.put("limits.ring_size", ring, &mut kernel.ring_bytes);
    }
}

/// Every key as the options have it.
pub fn values(options: &Options) -> Values {
    let Settings {
        keep,
        duty_cycle,
        capture,
        unknown,
        protocols,
        ports,
        service_rules,
        max_open_ns,
        limits,
        retention,
    } = Settings::of(options);
    let service_names: Vec<ServiceName> = service_rules.iter().map(ServiceName::from).collect();
    let mut values: BTreeMap<&str, String> = BTreeMap::from([
        ("trace.keep_ratio", keep.ratio.to_string()),
        ("trace.keep_slow", keep.slow.to_string()),
        ("trace.keep_errors", keep.errors.to_string()),
        ("trace.keep_budget_per_s", keep.budget_per_s.to_string()),
        ("capture.duty_cycle", duty_cycle.ratio.to_string()),
        ("capture.window", exact_duration(duty_cycle.window_ns)),
        ("capture.values", capture.values.to_string()),
        ("capture.keys", if capture.keys == KeyCapture::Hash { "hash" } else { "plain" }.to_owned()),
        ("capture.unknown", unknown.to_string()),
        ("capture.protocols", protocols.to_string()),
        ("service.names", service_names_text(&service_names)),
        ("limits.max_open", exact_duration(max_open_ns)),
        ("retention.max_age", exact_duration(retention.max_age_s.saturating_mul(SECOND_NS))),
        ("retention.max_size", exact_bytes(retention.max_bytes)),
        ("limits.hold", exact_duration(limits.hold_ns)),
        ("limits.open_requests", limits.open_requests_max.to_string()),
        ("limits.held", limits.held_max.to_string()),
        ("limits.connections", limits.connections_max.to_string()),
    ]);
    if let Input::Kernel(kernel) = &options.input {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        values.insert("filter.ports", if ports.is_empty() { "all".to_owned() } else { ports.join(",") });
        values.insert("limits.ring_size", exact_bytes(u64::from(kernel.ring_bytes)));
    }
    values.into_iter().map(|(name, text)| (name.to_owned(), text)).collect()
}

/// Keys that take effect at the start only and that are configured otherwise than this run was started with.
pub fn at_restart(started_with: &Values, scoped: &Scoped, host: &str) -> Vec<String> {
    let place = Place { scoped, host, service: None };
    let is_other = |name: &str, text: &str| match (name, started_with.get(name)) {
        (_, None) => false,
        (_, Some(started)) => parse_bytes(text) != parse_bytes(started),
    };
    KEYS.iter()
        .filter(|key| key.applies == Applies::AtStart)
        .filter(|key| place.text(key.name).is_some_and(|text| is_other(key.name, text)))
        .map(|key| key.name.to_owned())
        .collect()
}

/// As it is read again, in the largest unit that needs no fraction.
fn exact_duration(ns: u64) -> String {
    let units = [("d", 86_400 * SECOND_NS), ("s", SECOND_NS), ("ms", 1_000_000), ("us", 1_000)];
    units
        .into_iter()
        .find(|(_, unit_ns)| ns.is_multiple_of(*unit_ns))
        .map_or_else(|| format!("{ns}ns"), |(unit, unit_ns)| format!("{}{unit}", ns / unit_ns))
}

/// The same of a size.
fn exact_bytes(bytes: u64) -> String {
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        .into_iter()
        .find(|(_, unit)| bytes.is_multiple_of(*unit))
        .map_or_else(|| bytes.to_string(), |(unit, n)| format!("{}{unit}", bytes / n))
}

#[cfg(test)]
mod tests {
    use dprof_common::settings::{check, key};

    use super::*;
    use crate::args::{self, Command};

    fn options(line: &str) -> Options {
        match args::parse(std::iter::once("dprof-agent").chain(line.split_whitespace())) {
            Ok(Command::Run(options)) => *options,
            other => panic!("{line}: {other:?}"),
        }
    }

    /// `scope key=value key=value; scope …`
    fn scoped(text: &str) -> Scoped {
        let one = |part: &str| {
            let mut words = part.split_whitespace();
            let scope: Scope = words.next().expect("a scope").parse().expect("a scope");
            let values: Values = words
                .filter_map(|word| word.split_once('='))
                .map(|(name, text)| (name.to_owned(), text.to_owned()))
                .collect();
            for (name, text) in &values {
                assert_eq!(check(&scope, name, text), Ok(()));
            }
            (scope, values)
        };
        text.split(';').map(one).collect()
    }

    #[test]
    fn every_key_is_told_as_it_was_started_with_and_defaults_are_those_of_the_table() {
        let values = values(&options(""));
        for key in KEYS {
            let text = values.get(key.name).expect(key.name);
            assert_eq!(check(&Scope::Cluster, key.name, text), Ok(()));
            assert_eq!(text, key.default, "{}", key.name);
        }
        assert_eq!(values.len(), KEYS.len());
    }

    #[test]
    fn what_is_configured_wins_and_the_rest_stays_as_started() {
        let base = Settings::of(&options("--keep-ratio 1/4 --keep-budget 3 --window 2s"));
        let settings = base.configured(
            &scoped(
                "cluster trace.keep_ratio=1/16 capture.duty_cycle=1/2 capture.values=true capture.keys=hash \
                 capture.unknown=true limits.max_open=5s retention.max_age=1d retention.max_size=1GiB;\
                 host:web-1 trace.keep_ratio=1/2;host:web-2 trace.keep_ratio=0",
            ),
            "web-1",
        );
        assert!((settings.keep.ratio - 0.5).abs() < 1e-12, "{settings:?}");
        assert!((settings.keep.budget_per_s - 3.0).abs() < 1e-12, "{settings:?}");
        assert!((settings.duty_cycle.ratio - 0.5).abs() < 1e-12, "{settings:?}");
        assert_eq!(settings.duty_cycle.window_ns, 2 * SECOND_NS);
        assert_eq!(settings.capture, Capture { values: true, keys: KeyCapture::Hash });
        assert!(settings.unknown);
        let named = Scoped::from([(
            Scope::Cluster,
            Values::from([("service.names".to_owned(), "cart = port:80 comm:x; db = unit:redis".to_owned())]),
        )]);
        let rules = base.configured(&named, "web-1").service_rules;
        assert_eq!(rules.len(), 2);
        assert_eq!((rules[0].service.as_str(), rules[0].port), ("cart", Some(80)));
        assert_eq!(ServiceName::from(&rules[1]).conditions, [("unit", "redis".to_owned())]);
        assert_eq!(settings.max_open_ns, 5 * SECOND_NS);
        assert_eq!((settings.retention.max_age_s, settings.retention.max_bytes), (86_400, 1 << 30));
        assert_eq!(base.configured(&Scoped::new(), "web-1"), base);
    }

    #[test]
    fn a_service_has_triggers_of_its_own_where_no_host_decides() {
        let base = Settings::of(&options(""));
        let configured =
            scoped("cluster trace.keep_slow=false;service:cart trace.keep_budget_per_s=1;service:shop x=1");
        let keep = base.configured(&configured, "web-1").keep;
        assert!(!keep.slow);
        let cart = Triggers { slow: false, errors: true, budget_per_s: 1.0 };
        assert_eq!(keep.by_service, BTreeMap::from([("cart".to_owned(), cart)]));
        let configured =
            scoped("service:cart trace.keep_budget_per_s=1;host:web-1 trace.keep_budget_per_s=7");
        let keep = base.configured(&configured, "web-1").keep;
        assert!((keep.budget_per_s - 7.0).abs() < 1e-12 && keep.by_service.is_empty(), "{keep:?}");
    }

    #[test]
    fn the_rings_size_changes_the_options_and_is_due_until_a_restart() {
        let mut options = options("--port 6379");
        let started_with = values(&options);
        let configured = scoped("cluster filter.ports=80,443 limits.held=20000 limits.ring_size=8MiB");
        let due = at_restart(&started_with, &configured, "web-1");
        assert_eq!(due, ["limits.ring_size"]);
        configure_start(&mut options, &configured, "web-1");
        assert_eq!(at_restart(&values(&options), &configured, "web-1"), [""; 0]);
        assert!(matches!(&options.input, Input::Kernel(kernel) if kernel.ring_bytes == 8 << 20));
        assert!(key("limits.ring_size").is_some_and(|key| key.applies == Applies::AtStart));
    }

    #[test]
    fn ports_protocols_and_limits_are_those_of_the_start_until_others_are_configured() {
        let base = Settings::of(&options("--port 6379,80 --protocols redis,http"));
        assert_eq!(
            (base.ports.as_slice(), base.protocols.to_string()),
            (&[6379, 80][..], "http,redis".to_owned())
        );
        assert_eq!(base.limits, EngineLimits::DEFAULT);
        let configured = scoped(
            "cluster filter.ports=443 capture.protocols=memcached limits.hold=2s limits.open_requests=1000 \
             limits.held=2000 limits.connections=3000;host:web-1 filter.ports=all",
        );
        let settings = base.configured(&configured, "web-1");
        assert_eq!((settings.ports.len(), settings.protocols.to_string()), (0, "memcached".to_owned()));
        let limits = EngineLimits {
            open_requests_max: 1000,
            held_max: 2000,
            connections_max: 3000,
            hold_ns: 2 * SECOND_NS,
        };
        assert_eq!(settings.limits, limits);
        assert_eq!(base.configured(&configured, "web-2").ports, [443]);
        // A run that starts with them.
        let mut options = options("--port 6379");
        settings.put(&mut options);
        assert_eq!(Settings::of(&options), settings);
    }
}
