//! What can be configured of a running fleet: every key with its type and range, where it may be set, and when it
//! takes effect.
//!
//! The command line checks a value by this table before it writes it, and an agent by the same table before it applies
//! it. What a reader would get wrong: values travel as text, as they were written; whoever uses one parses it again.

mod effective;
mod kind;
mod names;
mod protocols;
mod scope;
mod suggest;

use std::collections::BTreeMap;

pub use effective::{Scoped, check_all, effective};
pub use kind::{Kind, PORTS_MAX, parse_ports};
pub use names::{ServiceName, parse_service_names, service_names_text};
pub use protocols::{PROTOCOLS, Protocols, parse_protocols};
pub use scope::{Scope, ScopeParseError};
pub use suggest::suggest;

/// Values by key, as written.
pub type Values = BTreeMap<String, String>;

/// Something that can be configured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Key {
    /// `section.name`
    pub name: &'static str,
    /// What a value is.
    pub kind: Kind,
    /// When a change takes effect.
    pub applies: Applies,
    /// Whether it can be set for one service.
    pub per_service: bool,
    /// What holds where nothing is said.
    pub default: &'static str,
    /// What it does, in a phrase.
    pub meaning: &'static str,
}

/// When a change takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// Within seconds, without a restart.
    Live,
    /// When an agent is started again.
    AtStart,
}

impl Applies {
    /// As tables show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::AtStart => "at start",
        }
    }
}

/// Smallest part of the time that a capture window may leave: a default window every fourteen hours.
pub const DUTY_CYCLE_MIN: f64 = 1e-5;
/// Bounds of a capture window's length: below, edges would cut most requests; above, nobody waits for the next.
pub const WINDOW_NS: (u64, u64) = (20_000_000, 3_600_000_000_000);
/// Most traces a second and operation that are kept for being slow or failed.
pub const BUDGET_PER_S_MAX: f64 = 100_000.0;

/// Bounds of the age at which an open request is given up: below, slow requests would be cut off; above, a leak of
/// open requests would not end.
pub const MAX_OPEN_NS: (u64, u64) = (100_000_000, 3_600_000_000_000);
/// Bounds of the age of stored spans: ten years are for ever.
const MAX_AGE_NS: (u64, u64) = (60_000_000_000, 10 * 366 * 86_400_000_000_000);
/// Bounds of what is stored: below, not even the chunk that is written would fit.
const MAX_SIZE_BYTES: (u64, u64) = (16 << 20, 1 << 50);
/// Bounds of how long a finished half waits for its tree.
pub const HOLD_NS: (u64, u64) = (10_000_000, 600_000_000_000);
/// Bounds of counts: below, ordinary traffic would lose; above, memory would not be bounded.
pub const COUNT: (u64, u64) = (16, 10_000_000);
/// Bounds of the event ring: one record of the largest size must fit many times; it counts twice in resident size.
pub const RING_BYTES: (u64, u64) = (64 << 10, 1 << 30);

/// A limit of the engine's tables.
const fn limit(name: &'static str, default: &'static str, meaning: &'static str) -> Key {
    let kind = Kind::Count { min: COUNT.0, max: COUNT.1 };
    Key { name, kind, applies: Applies::Live, per_service: false, default, meaning }
}

/// Every key, in the order of the tables that show them.
pub const KEYS: &[Key] = &[
    Key {
        name: "trace.keep_ratio",
        kind: Kind::Part { min: 0.0 },
        applies: Applies::Live,
        per_service: false,
        default: "1",
        meaning: "part of all traces that is stored",
    },
    Key {
        name: "trace.keep_slow",
        kind: Kind::Bool,
        applies: Applies::Live,
        per_service: true,
        default: "true",
        meaning: "store traces with a span that was slower than its operation usually is",
    },
    Key {
        name: "trace.keep_errors",
        kind: Kind::Bool,
        applies: Applies::Live,
        per_service: true,
        default: "true",
        meaning: "store traces with a span that failed",
    },
    Key {
        name: "trace.keep_budget_per_s",
        kind: Kind::Number { min: 0.0, max: BUDGET_PER_S_MAX },
        applies: Applies::Live,
        per_service: true,
        default: "10",
        meaning: "traces a second and operation that are stored for being slow or failed",
    },
    Key {
        name: "capture.duty_cycle",
        kind: Kind::Part { min: DUTY_CYCLE_MIN },
        applies: Applies::Live,
        per_service: false,
        default: "1",
        meaning: "part of the time that is captured, in windows of the wall clock",
    },
    Key {
        name: "capture.window",
        kind: Kind::Duration { min_ns: WINDOW_NS.0, max_ns: WINDOW_NS.1 },
        applies: Applies::Live,
        per_service: false,
        default: "500ms",
        meaning: "length of a capture window",
    },
    Key {
        name: "capture.values",
        kind: Kind::Bool,
        applies: Applies::Live,
        per_service: false,
        default: "false",
        meaning: "keep values in statements, cut to a few dozen bytes; never secrets",
    },
    Key {
        name: "capture.keys",
        kind: Kind::Choice(&["plain", "hash"]),
        applies: Applies::Live,
        per_service: false,
        default: "plain",
        meaning: "how keys are kept in statements",
    },
    Key {
        name: "capture.unknown",
        kind: Kind::Bool,
        applies: Applies::Live,
        per_service: false,
        default: "false",
        meaning: "make spans of unknown protocols too, on connections made from now on",
    },
    Key {
        name: "capture.protocols",
        kind: Kind::Protocols,
        applies: Applies::Live,
        per_service: false,
        default: "all",
        meaning: "protocols that are looked into; of others no spans, no payload",
    },
    Key {
        name: "filter.ports",
        kind: Kind::Ports,
        applies: Applies::Live,
        per_service: false,
        default: "all",
        meaning: "only connections with one of these local or peer ports",
    },
    Key {
        name: "service.names",
        kind: Kind::ServiceNames,
        applies: Applies::Live,
        per_service: false,
        default: "none",
        meaning: "names of services by their processes, in place of those of the agent's file",
    },
    Key {
        name: "retention.max_age",
        kind: Kind::Duration { min_ns: MAX_AGE_NS.0, max_ns: MAX_AGE_NS.1 },
        applies: Applies::Live,
        per_service: false,
        default: "7d",
        meaning: "how long an embedded store keeps spans",
    },
    Key {
        name: "retention.max_size",
        kind: Kind::Bytes { min: MAX_SIZE_BYTES.0, max: MAX_SIZE_BYTES.1, power_of_two: false },
        applies: Applies::Live,
        per_service: false,
        default: "10GiB",
        meaning: "how large an embedded store may grow",
    },
    Key {
        name: "limits.max_open",
        kind: Kind::Duration { min_ns: MAX_OPEN_NS.0, max_ns: MAX_OPEN_NS.1 },
        applies: Applies::Live,
        per_service: false,
        default: "60s",
        meaning: "age at which a request without an answer is given up",
    },
    Key {
        name: "limits.hold",
        kind: Kind::Duration { min_ns: HOLD_NS.0, max_ns: HOLD_NS.1 },
        applies: Applies::Live,
        per_service: false,
        default: "1s",
        meaning: "how long a finished half waits for its other half and its tree",
    },
    limit("limits.open_requests", "100000", "requests open at once"),
    limit("limits.held", "40000", "halves and tree nodes held at once"),
    limit("limits.connections", "16384", "connections known at once"),
    Key {
        name: "limits.ring_size",
        kind: Kind::Bytes { min: RING_BYTES.0, max: RING_BYTES.1, power_of_two: true },
        applies: Applies::AtStart,
        per_service: false,
        default: "4MiB",
        meaning: "size of the ring between the kernel programs and the agent",
    },
];

/// The key of this name.
pub fn key(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether `text` may be the value of `name` in `scope`; the reason, with what is allowed, if not. A key that is not
/// known is none of a reader's business: [`key`] says so.
pub fn check(scope: &Scope, name: &str, text: &str) -> Result<(), String> {
    let Some(key) = key(name) else { return Ok(()) };
    if matches!(scope, Scope::Service(_)) && !key.per_service {
        return Err(format!("{name} cannot be set for a service: use --scope cluster or host:NAME"));
    }
    key.kind.check(text).map_err(|reason| format!("{name}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_default_is_a_value() {
        for (idx, key) in KEYS.iter().enumerate() {
            assert!(KEYS[..idx].iter().all(|other| other.name != key.name), "{}", key.name);
            assert_eq!(check(&Scope::Cluster, key.name, key.default), Ok(()));
        }
    }

    #[track_caller]
    fn check_refused(scope: &str, name: &str, text: &str, expected: &str) {
        let scope: Scope = scope.parse().expect("a scope");
        assert_eq!(check(&scope, name, text), Err(expected.to_owned()));
    }

    #[test]
    fn a_wrong_value_is_refused_with_reason_and_range() {
        check_refused(
            "cluster",
            "trace.keep_ratio",
            "2",
            "trace.keep_ratio: '2' is no part of the whole: give 1/16, 5% or 0.05, from 0 to 1",
        );
        check_refused(
            "host:web-1",
            "trace.keep_slow",
            "yes",
            "trace.keep_slow: 'yes' is neither true nor false: give true or false",
        );
        check_refused(
            "cluster",
            "trace.keep_budget_per_s",
            "-1",
            "trace.keep_budget_per_s: '-1' is out of range: give a number from 0 to 100000",
        );
        check_refused(
            "cluster",
            "capture.window",
            "1ms",
            "capture.window: '1ms' is out of range: give a duration from 20.0 ms to 1h 00m",
        );
        check_refused(
            "service:cart",
            "capture.window",
            "1s",
            "capture.window cannot be set for a service: use --scope cluster or host:NAME",
        );
    }
}
