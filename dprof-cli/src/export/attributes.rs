//! OpenTelemetry attributes of one half (semantic conventions 1.44): what was asked, by whom, of whom.
//!
//! What the protocol's parser found goes first; the rest is filled in from what dprof knows of any protocol.

use std::borrow::Cow;
use std::net::SocketAddr;

use dprof_common::model::{Half, Side};

/// Protocols whose name is a `db.system.name` and whose operations are those of a database.
const DATABASES: [&str; 9] = [
    "redis",
    "memcached",
    "cassandra",
    "mysql",
    "mariadb",
    "postgresql",
    "mongodb",
    "elasticsearch",
    "dynomite",
];

/// Attributes whose values are integers.
const INTEGERS: [&str; 6] = [
    "http.response.status_code",
    "server.port",
    "client.port",
    "network.peer.port",
    "network.local.port",
    "db.operation.batch.size",
];

/// Name and value of an attribute.
pub(crate) type Attribute<'a> = (&'a str, Cow<'a, str>);

/// Whether the value of this attribute is sent as an integer.
pub(crate) fn is_integer(name: &str) -> bool {
    INTEGERS.contains(&name)
}

/// The attributes of the half that `side` saw, each name once.
pub(crate) fn attributes(half: &Half, side: Side) -> Vec<Attribute<'_>> {
    let mut all = Attributes(Vec::with_capacity(16));
    for (name, value) in &half.attributes {
        all.put(name, value);
    }
    let is_http = half.protocol.starts_with("http");
    if is_http {
        all.put("http.request.method", half.operation.split(' ').next().unwrap_or_default());
        all.put("http.response.status_code", half.status_code.as_str());
        all.put("network.protocol.name", "http");
    } else if DATABASES.contains(&&*half.protocol) {
        all.put("db.system.name", &*half.protocol);
        all.put("db.operation.name", half.operation.as_str());
        all.put("db.query.text", half.query_text.as_str());
        all.put("db.response.status_code", half.status_code.as_str());
    } else {
        all.put("network.protocol.name", &*half.protocol);
    }
    if half.status.is_error() {
        let cause = if half.status_code.is_empty() { half.status.name() } else { &half.status_code };
        all.put("error.type", cause);
    }
    let (server, client) = match side {
        Side::Client => (half.peer, half.local),
        Side::Server => (half.local, half.peer),
    };
    all.put("server.address", address(server));
    all.put("server.port", server.port().to_string());
    all.put("client.address", address(client));
    all.put("client.port", client.port().to_string());
    all.put("network.peer.address", address(half.peer));
    all.put("network.peer.port", half.peer.port().to_string());
    all.put("network.transport", "tcp");
    all.0
}

/// The times under the split, as `dprof.time.request_read_ns` and so on: nanoseconds after the half's start; what is
/// not known is left out. An import makes the parts of the split of them again.
pub(crate) fn times(half: &Half) -> impl Iterator<Item = (String, i64)> + use<> {
    let start_ns = half.times.start_ns;
    half.times.marks().into_iter().filter_map(move |(name, time_ns)| {
        Some((format!("dprof.time.{name}_ns"), time_ns?.wrapping_sub(start_ns) as i64))
    })
}

struct Attributes<'a>(Vec<Attribute<'a>>);

impl<'a> Attributes<'a> {
    /// Adds an attribute that has a value and is not there yet.
    fn put(&mut self, name: &'a str, value: impl Into<Cow<'a, str>>) {
        let value = value.into();
        if !value.is_empty() && !self.0.iter().any(|(known, _)| *known == name) {
            self.0.push((name, value));
        }
    }
}

/// Without the port; a v4-mapped address as the IPv4 one that it is.
fn address(address: SocketAddr) -> String {
    address.ip().to_canonical().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;
    use dprof_common::model::Status;

    #[track_caller]
    fn check(half: &Half, side: Side, expected: &[(&str, &str)]) {
        let all = attributes(half, side);
        let all: Vec<(&str, &str)> = all.iter().map(|(name, value)| (*name, &**value)).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn a_database_call_from_both_ends() {
        let span = rpc(1).query("get a").build();
        check(
            span.client.as_ref().expect("seen"),
            Side::Client,
            &[
                ("db.system.name", "redis"),
                ("db.operation.name", "GET"),
                ("db.query.text", "get a"),
                ("server.address", "10.0.0.2"),
                ("server.port", "6379"),
                ("client.address", "10.0.0.1"),
                ("client.port", "40001"),
                ("network.peer.address", "10.0.0.2"),
                ("network.peer.port", "6379"),
                ("network.transport", "tcp"),
            ],
        );
        let server = attributes(span.server.as_ref().expect("seen"), Side::Server);
        assert!(server.contains(&("client.address", "10.0.0.1".into())));
        assert!(server.contains(&("network.peer.port", "40001".into())));
        assert!(server.contains(&("server.address", "10.0.0.2".into())));
    }

    #[test]
    fn http_names_win_and_are_not_repeated() {
        let mut half = rpc(1).of("web", "GET /cart/{id}").status(Status::Error).build().server.expect("seen");
        half.protocol = "http".into();
        half.status_code = "503".into();
        half.local = "[::ffff:10.0.0.2]:80".parse().expect("an address");
        half.attributes =
            vec![("url.path".into(), "/cart/7".into()), ("http.request.method".into(), "GET".into())];
        check(
            &half,
            Side::Server,
            &[
                ("url.path", "/cart/7"),
                ("http.request.method", "GET"),
                ("http.response.status_code", "503"),
                ("network.protocol.name", "http"),
                ("error.type", "503"),
                ("server.address", "10.0.0.2"),
                ("server.port", "80"),
                ("client.address", "10.0.0.1"),
                ("client.port", "40001"),
                ("network.peer.address", "10.0.0.1"),
                ("network.peer.port", "40001"),
                ("network.transport", "tcp"),
            ],
        );
    }

    #[test]
    fn a_request_without_answer_names_its_end_as_the_error() {
        let half = rpc(1).status(Status::Timeout).build().client.expect("seen");
        assert!(attributes(&half, Side::Client).contains(&("error.type", "timeout".into())));
        let mut half = rpc(1).build().client.expect("seen");
        half.protocol = "unknown".into();
        let all = attributes(&half, Side::Client);
        assert!(all.contains(&("network.protocol.name", "unknown".into())), "{all:?}");
        assert!(!all.iter().any(|(name, _)| name.starts_with("db.")), "{all:?}");
    }
}
