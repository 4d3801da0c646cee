//! Which protocols are looked into: a choice among names.
//!
//! What a reader would get wrong: a connection of a protocol that is not chosen is recognised all the same, or another
//! protocol would take its bytes for its own. And what only leads to a protocol (a proxy's PROXY header) is none: it
//! cannot be turned off.

use std::fmt;

use super::suggest::nearest;

/// Protocols that can be chosen, by the names that spans have.
pub const PROTOCOLS: [&str; 5] = ["dnode", "http", "memcached", "redis", "tls"];

/// What people call them too.
const ALSO_CALLED: [(&str, &str); 6] = [
    ("resp", "redis"),
    ("valkey", "redis"),
    ("dynomite", "dnode"),
    ("http1", "http"),
    ("https", "tls"),
    ("ssl", "tls"),
];

/// The protocols that are looked into: a bit per name of [`PROTOCOLS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols(u8);

impl Protocols {
    /// Every one.
    pub const ALL: Self = Self((1 << PROTOCOLS.len()) - 1);

    /// Whether this one is looked into; one that cannot be chosen always is.
    pub fn has(self, name: &str) -> bool {
        PROTOCOLS.iter().position(|protocol| *protocol == name).is_none_or(|bit| self.0 & (1 << bit) != 0)
    }
}

impl Default for Protocols {
    fn default() -> Self {
        Self::ALL
    }
}

impl fmt::Display for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            return f.write_str("all");
        }
        let names: Vec<&str> = PROTOCOLS.into_iter().filter(|name| self.has(name)).collect();
        f.write_str(&names.join(","))
    }
}

/// Reads `all` or names with commas between; the reason if that is none.
pub fn parse_protocols(text: &str) -> Result<Protocols, String> {
    if text.trim() == "all" {
        return Ok(Protocols::ALL);
    }
    let mut chosen = Protocols(0);
    for name in text.split(',').map(str::trim) {
        let Some(bit) = PROTOCOLS.iter().position(|protocol| *protocol == name) else {
            let meant = ALSO_CALLED.iter().find(|(also, _)| *also == name).map(|(_, protocol)| *protocol);
            let meant = meant.or_else(|| nearest(name, &PROTOCOLS));
            let hint = meant.map_or_else(String::new, |meant| format!(", did you mean {meant}?"));
            return Err(format!("'{name}' is no protocol{hint}: give {}", allowed()));
        };
        chosen.0 |= 1 << bit;
    }
    Ok(chosen)
}

/// What may be given, as a phrase.
pub(super) fn allowed() -> String {
    format!("all, or some of {} with commas between", PROTOCOLS.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        let shown = parse_protocols(text).map(|protocols| protocols.to_string());
        assert_eq!(shown, expected.map(str::to_owned).map_err(str::to_owned), "{text}");
    }

    #[test]
    fn names_are_chosen_and_others_are_refused_with_what_was_likely_meant() {
        check("all", Ok("all"));
        check("redis", Ok("redis"));
        check(" http , redis,redis ", Ok("http,redis"));
        check("dnode,http,memcached,redis,tls", Ok("all"));
        let allowed = "give all, or some of dnode, http, memcached, redis, tls with commas between";
        for (text, why) in [
            ("", "'' is no protocol"),
            ("redis,", "'' is no protocol"),
            ("resp", "'resp' is no protocol, did you mean redis?"),
            ("redis,memcache", "'memcache' is no protocol, did you mean memcached?"),
            ("Redis", "'Redis' is no protocol, did you mean redis?"),
            ("all,redis", "'all' is no protocol"),
            ("mysql", "'mysql' is no protocol"),
        ] {
            check(text, Err(&format!("{why}: {allowed}")));
        }
    }

    #[test]
    fn what_cannot_be_chosen_is_always_looked_into() {
        let redis = parse_protocols("redis").expect("a protocol");
        assert!(redis.has("redis") && redis.has("proxy") && !redis.has("http") && !redis.has("tls"));
        assert!(PROTOCOLS.iter().all(|name| Protocols::ALL.has(name)));
    }
}
