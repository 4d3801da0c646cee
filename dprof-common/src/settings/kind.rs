//! What a value may be: its type and range, and the reason when a text is none.

use super::names::{FIELDS, parse_service_names};
use super::protocols::{self, parse_protocols};
use crate::units::{bytes, duration, parse_bytes, parse_duration, parse_part};

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A part of the whole: `1/16`, `5%`, `0.05`.
    Part {
        /// Smallest; the largest is 1.
        min: f64,
    },
    /// `true` or `false`.
    Bool,
    /// A number.
    Number {
        /// Smallest.
        min: f64,
        /// Largest.
        max: f64,
    },
    /// A whole number.
    Count {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A duration with its unit.
    Duration {
        /// Shortest, nanoseconds.
        min_ns: u64,
        /// Longest, nanoseconds.
        max_ns: u64,
    },
    /// A size such as `4MiB`.
    Bytes {
        /// Smallest, bytes.
        min: u64,
        /// Largest, bytes.
        max: u64,
        /// Only powers of two.
        power_of_two: bool,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// TCP ports, or `all`.
    Ports,
    /// Protocols, or `all`.
    Protocols,
    /// Names of services and the processes that have them, or `none`.
    ServiceNames,
}

/// Ports that a value may list: it is text in a row of the store, and one of events in the stream.
pub const PORTS_MAX: usize = 1_024;

/// The ports that `text` lists; `all` = none is left out: an empty list.
pub fn parse_ports(text: &str) -> Option<Vec<u16>> {
    if text == "all" {
        return Some(Vec::new());
    }
    let port = |part: &str| part.trim().parse().ok().filter(|port| *port > 0);
    let ports: Option<Vec<u16>> = text.split(',').map(port).collect();
    ports.filter(|ports| ports.len() <= PORTS_MAX)
}

impl Kind {
    /// What may be given, as a phrase.
    pub fn allowed(&self) -> String {
        match self {
            Self::Part { min } => format!("1/16, 5% or 0.05, from {min} to 1"),
            Self::Bool => "true or false".to_owned(),
            Self::Number { min, max } => format!("a number from {min} to {max}"),
            Self::Count { min, max } => format!("a whole number from {min} to {max}"),
            Self::Duration { min_ns, max_ns } => {
                format!("a duration from {} to {}", duration(*min_ns), duration(*max_ns))
            }
            Self::Bytes { min, max, power_of_two } => {
                let power = if *power_of_two { ", a power of two," } else { "" };
                format!("a size{power} from {} to {}", bytes(*min), bytes(*max))
            }
            Self::Choice(words) => words.join(" or "),
            Self::ServiceNames => {
                format!(
                    "none, or NAME = FIELD:PATTERN FIELD:PATTERN; NAME = …, with fields {}",
                    FIELDS.join(", ")
                )
            }
            Self::Ports => format!("all, or up to {PORTS_MAX} numbers from 1 to 65535 with commas between"),
            Self::Protocols => protocols::allowed(),
        }
    }

    /// Whether `text` is such a value; the reason with what may be given, if not.
    pub fn check(&self, text: &str) -> Result<(), String> {
        let wrong = match self {
            // These say themselves what may be given.
            Self::Protocols => return parse_protocols(text).map(drop),
            Self::Part { min } => return parse_part(text, *min).map(drop).map_err(|error| error.to_string()),
            Self::Bool => (!["true", "false"].contains(&text)).then_some("is neither true nor false"),
            Self::Number { min, max } => match text.parse::<f64>() {
                Ok(number) if (*min..=*max).contains(&number) => None,
                Ok(_) => Some("is out of range"),
                Err(_) => Some("is no number"),
            },
            Self::Count { min, max } => match text.parse::<u64>() {
                Ok(count) if (*min..=*max).contains(&count) => None,
                Ok(_) => Some("is out of range"),
                Err(_) => Some("is no whole number"),
            },
            Self::Duration { min_ns, max_ns } => match parse_duration(text) {
                Ok(ns) if (*min_ns..=*max_ns).contains(&ns) => None,
                Ok(_) => Some("is out of range"),
                Err(_) => Some("is no duration"),
            },
            Self::Bytes { min, max, power_of_two } => match parse_bytes(text) {
                Ok(n) if *power_of_two && !n.is_power_of_two() => Some("is no power of two"),
                Ok(n) if (*min..=*max).contains(&n) => None,
                Ok(_) => Some("is out of range"),
                Err(_) => Some("is no size"),
            },
            Self::Choice(words) => (!words.contains(&text)).then_some("is none of the words"),
            Self::ServiceNames => parse_service_names(text).is_none().then_some("is no list of names"),
            Self::Ports => parse_ports(text).is_none().then_some("is no list of ports"),
        };
        wrong.map_or(Ok(()), |why| Err(format!("'{text}' {why}: give {}", self.allowed())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(kind: Kind, good: &[&str], bad: &[&str]) {
        for text in good {
            assert_eq!(kind.check(text), Ok(()), "{text}");
        }
        for text in bad {
            let reason = kind.check(text).expect_err(text);
            assert!(reason.contains(&format!("'{text}' ")) && reason.contains("give "), "{reason}");
        }
    }

    #[test]
    fn values_at_the_limit_are_taken_and_one_over_is_not() {
        check(
            Kind::Part { min: 0.1 },
            &["0.1", "1/10", "10%", "1", "100%"],
            &["0.09", "1.01", "", "x", "nan"],
        );
        check(Kind::Bool, &["true", "false"], &["True", "1", ""]);
        check(Kind::Number { min: 0.0, max: 2.5 }, &["0", "2.5"], &["-0.1", "2.51", "inf", "nan", "", "1s"]);
        check(Kind::Count { min: 2, max: 9 }, &["2", "9"], &["1", "10", "2.5", "-2", ""]);
        let duration = Kind::Duration { min_ns: 1_000_000, max_ns: 2_000_000_000 };
        check(duration, &["1ms", "2s", "1s500ms"], &["999us", "2001ms", "5", "soon", ""]);
        let size = Kind::Bytes { min: 1024, max: 4096, power_of_two: true };
        check(size, &["1KiB", "4096"], &["1023", "3KiB", "8KiB", "", "large"]);
        check(Kind::Choice(&["plain", "hash"]), &["hash"], &["Hash", "", "none"]);
        check(Kind::Ports, &["all", "1", "65535, 80"], &["", "0", "65536", "80,", "http", "80 81"]);
        check(Kind::Protocols, &["all", "redis", "http, redis"], &["", "none", "resp", "redis;http"]);
        assert_eq!(parse_ports("6379,80"), Some(vec![6379, 80]));
        let many = |n: u32| (1..=n).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
        check(Kind::Ports, &[&many(1024)], &[]);
        assert_eq!(parse_ports(&many(1025)), None);
    }
}
