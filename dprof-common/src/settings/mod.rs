//! What can be configured of a running fleet: every key with its type and range, where it may be set, and when it
//! takes effect.
//!
//! The command line checks a value by this table before it writes it, and an agent by the same table before it applies
//! it. What a reader would get wrong: values travel as text, as they were written; whoever uses one parses it again.

mod effective;
mod kind;
mod scope;
mod suggest;

use std::collections::BTreeMap;

pub use effective::{Scoped, check_all, effective};
pub use kind::Kind;
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
