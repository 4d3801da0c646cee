//! Spans grouped by chosen fields: `stats --by host,operation`.
//!
//! What a reader would get wrong: unlike the counts per minute, which are made of everything seen, this stands on
//! stored spans: figures are estimates weighted by the keep probability, and a slow span kept as an example does not
//! count. One row per RPC: fields are those of the server where it was watched.

use std::collections::BTreeMap;

use dprof_common::model::{Half, Span};
use serde::Serialize;

use super::estimate::{Distribution, Latency, weight};

/// What to group by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Field {
    /// Who served it
    Service,
    /// What was asked
    Operation,
    /// Who called: service, else address
    Peer,
    /// Host of the service
    Host,
    /// Label rack of that host
    Rack,
    /// Label dc of that host
    Dc,
    /// How it ended
    Status,
}

impl Field {
    /// Name as printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Operation => "operation",
            Self::Peer => "peer",
            Self::Host => "host",
            Self::Rack => "rack",
            Self::Dc => "dc",
            Self::Status => "status",
        }
    }

    /// The span's value; empty if unknown.
    pub fn of(self, span: &Span, near: &Half) -> String {
        let label = |name: &str| near.host.labels.get(name).cloned().unwrap_or_default();
        match self {
            Self::Service => near.process.service.clone(),
            Self::Operation => near.operation.clone(),
            Self::Peer => peer(span),
            Self::Host => near.host.host.clone(),
            Self::Rack => label("rack"),
            Self::Dc => label("dc"),
            Self::Status => super::row::failing_half(span).unwrap_or(near).status.name().to_owned(),
        }
    }
}

/// Who is at the other end of what [`Span::nearest`] tells: the caller's service, or an address. A caller's port
/// says nothing, a server's does.
pub fn peer(span: &Span) -> String {
    match (&span.client, &span.server) {
        (Some(client), Some(_)) => client.process.service.clone(),
        (Some(client), None) => client.peer.to_string(),
        (None, Some(server)) => server.peer.ip().to_canonical().to_string(),
        (None, None) => String::new(),
    }
}

/// A group. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupRow {
    /// The fields grouped by, in the order asked for.
    #[serde(flatten)]
    pub fields: serde_json::Map<String, serde_json::Value>,
    /// Estimated number of RPCs.
    pub count: u64,
    /// Of them failed, estimated.
    pub errors: u64,
    /// Durations.
    #[serde(flatten)]
    pub latency: Latency,
    /// Sum of the durations, estimated.
    pub total_ns: u64,
    /// Bytes of requests, estimated.
    pub request_bytes: u64,
    /// Bytes of responses, estimated.
    pub response_bytes: u64,
    /// Stored spans that this stands on.
    pub spans: u64,
}

#[derive(Default)]
struct Sum {
    durations: Distribution,
    errors: f64,
    request_bytes: f64,
    response_bytes: f64,
}

/// Adds spans up by the values of some fields.
pub struct Groups {
    by: Vec<Field>,
    groups: BTreeMap<Vec<String>, Sum>,
}

impl Groups {
    /// No span yet.
    pub const fn new(by: Vec<Field>) -> Self {
        Self { by, groups: BTreeMap::new() }
    }

    /// Counts a span.
    pub fn add(&mut self, span: &Span) {
        let (Some(weight), Some(near)) = (weight(span), span.nearest()) else { return };
        let key = self.by.iter().map(|field| field.of(span, near)).collect();
        let sum = self.groups.entry(key).or_default();
        sum.durations.add(span.duration_ns(), weight);
        sum.errors += if span.is_error() { weight } else { 0.0 };
        sum.request_bytes += near.request_bytes as f64 * weight;
        sum.response_bytes += near.response_bytes as f64 * weight;
    }

    /// The groups in order of their values.
    pub fn rows(self) -> Vec<GroupRow> {
        let by = self.by;
        self.groups
            .into_iter()
            .map(|(values, sum)| GroupRow {
                fields: by
                    .iter()
                    .zip(values)
                    .map(|(field, value)| (field.name().to_owned(), value.into()))
                    .collect(),
                count: sum.durations.count(),
                errors: sum.errors.round() as u64,
                latency: sum.durations.latency(),
                total_ns: sum.durations.total_ns(),
                request_bytes: sum.request_bytes.round() as u64,
                response_bytes: sum.response_bytes.round() as u64,
                spans: sum.durations.seen,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;
    use dprof_common::model::Status;

    #[track_caller]
    fn check(by: &[Field], expected: &[(&[&str], u64, u64)]) {
        let mut groups = Groups::new(by.to_vec());
        for span in [
            rpc(1).by("web").hosts("web-1", "db-1").labels("r1", "east").build(),
            rpc(2).by("web").hosts("web-1", "db-2").labels("r2", "east").build(),
            rpc(3).of("redis", "SET").server_only().hosts("", "db-2").labels("r2", "east").build(),
            rpc(4).by("mail").hosts("web-1", "db-2").labels("r2", "east").status(Status::Reset).build(),
        ] {
            groups.add(&span);
        }
        let rows = groups.rows();
        let shown: Vec<(Vec<&str>, u64, u64)> = rows
            .iter()
            .map(|row| {
                let values = by.iter().map(|field| row.fields[field.name()].as_str().expect("text"));
                (values.collect(), row.count, row.errors)
            })
            .collect();
        let expected: Vec<(Vec<&str>, u64, u64)> =
            expected.iter().map(|(values, count, errors)| (values.to_vec(), *count, *errors)).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn spans_group_by_any_fields_in_the_order_given() {
        check(&[Field::Host], &[(&["db-1"], 1, 0), (&["db-2"], 3, 1)]);
        check(
            &[Field::Operation, Field::Peer],
            &[(&["GET", "mail"], 1, 1), (&["GET", "web"], 2, 0), (&["SET", "10.0.0.1"], 1, 0)],
        );
        check(&[Field::Dc, Field::Rack], &[(&["east", "r1"], 1, 0), (&["east", "r2"], 3, 1)]);
        check(&[Field::Status], &[(&["ok"], 3, 0), (&["reset"], 1, 1)]);
        check(&[Field::Service], &[(&["redis"], 4, 1)]);
    }
}
