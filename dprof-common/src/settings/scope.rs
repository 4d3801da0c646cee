//! Where a value holds: everywhere, for one service, or on one host.

use std::fmt;
use std::str::FromStr;

/// Where a value holds. Of several that apply, the one that orders last wins.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Everywhere.
    Cluster,
    /// For spans of this service, on every host.
    Service(String),
    /// On this host.
    Host(String),
}

/// Why a text is no scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeParseError(String);

impl fmt::Display for ScopeParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is no scope: use cluster, service:NAME or host:NAME", self.0)
    }
}

impl std::error::Error for ScopeParseError {}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("cluster"),
            Self::Service(name) => write!(f, "service:{name}"),
            Self::Host(name) => write!(f, "host:{name}"),
        }
    }
}

/// Names are those of hosts and services, which are short and printable.
const NAME_BYTES_MAX: usize = 255;

impl FromStr for Scope {
    type Err = ScopeParseError;

    fn from_str(text: &str) -> Result<Self, ScopeParseError> {
        let is_name =
            |name: &str| (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control);
        match text.split_once(':') {
            None if text == "cluster" => Ok(Self::Cluster),
            Some(("service", name)) if is_name(name) => Ok(Self::Service(name.to_owned())),
            Some(("host", name)) if is_name(name) => Ok(Self::Host(name.to_owned())),
            _ => Err(ScopeParseError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_reads_back_as_written_and_the_most_specific_orders_last() {
        let texts = ["cluster", "service:cart:v2", "host:web-1"];
        let scopes: Vec<Scope> = texts.iter().map(|text| text.parse().expect(text)).collect();
        assert!(scopes.is_sorted());
        assert_eq!(scopes.iter().map(ToString::to_string).collect::<Vec<_>>(), texts);
        for bad in ["", "clusters", "host:", "service", "host:a\nb", "rack:1"] {
            assert_eq!(bad.parse::<Scope>(), Err(ScopeParseError(bad.to_owned())));
        }
    }
}
