//! Comma-separated values (RFC 4180): one line per RPC, columns named as OpenTelemetry's attributes where it
//! has one and `dprof.*` where it has none. Unknown values are empty.

use std::borrow::Cow;
use std::io::{self, Write};

use dprof_common::model::{Half, Span};

use super::Exporter;
use super::attributes::attributes;
use crate::analyse::row::SpanRow;
use crate::units;

/// Columns in order. A program finds its columns by name; new ones go to the end.
pub(super) const COLUMNS: [&str; 50] = [
    "trace_id",
    "span_id",
    "parent_span_id",
    "start_time",
    "duration_ns",
    "service.name",
    "host.name",
    "process.pid",
    "dprof.operation",
    "dprof.kind",
    "dprof.status",
    "dprof.protocol",
    "error.type",
    "db.system.name",
    "db.operation.name",
    "db.query.text",
    "db.response.status_code",
    "http.request.method",
    "url.path",
    "http.response.status_code",
    "server.address",
    "server.port",
    "client.address",
    "client.port",
    "dprof.caller.service",
    "dprof.caller.host",
    "dprof.client.duration_ns",
    "dprof.server.duration_ns",
    "dprof.split.request_send_ns",
    "dprof.split.network_ns",
    "dprof.split.server_queue_ns",
    "dprof.split.service_ns",
    "dprof.split.streaming_ns",
    "dprof.split.client_queue_ns",
    "dprof.split.remote_ns",
    "dprof.split.remainder_ns",
    "dprof.split.approximate",
    "dprof.request.bytes",
    "dprof.response.bytes",
    "dprof.request.message_id",
    "dprof.response.message_id",
    "dprof.batch",
    "dprof.retransmits",
    "dprof.srtt_us",
    "dprof.link.evidence",
    "dprof.link.confidence",
    "dprof.root",
    "dprof.flags",
    "dprof.probability",
    "dprof.keep_reason",
];

/// Writes CSV.
#[derive(Debug, Default)]
pub(crate) struct Csv;

impl Exporter for Csv {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        line(COLUMNS.iter().map(|column| Cow::Borrowed(*column)), out)
    }

    fn page(&mut self, spans: &[Span], out: &mut dyn Write) -> io::Result<()> {
        for span in spans {
            if let (Some(row), Some(near)) = (SpanRow::new(span), span.nearest()) {
                line(values(span, &row, near).into_iter(), out)?;
            }
        }
        Ok(())
    }

    fn end(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

/// The values in the order of [`COLUMNS`]; empty = unknown.
pub(super) fn values<'a>(
    span: &'a Span,
    row: &'a SpanRow<'a>,
    near: &'a Half,
) -> [Cow<'a, str>; COLUMNS.len()] {
    fn number<T: ToString>(value: Option<T>) -> Cow<'static, str> {
        value.map_or(Cow::Borrowed(""), |value| Cow::Owned(value.to_string()))
    }
    fn text(value: Option<&str>) -> Cow<'_, str> {
        Cow::Borrowed(value.unwrap_or_default())
    }
    let attributes = attributes(near, span.kind());
    let attribute = |name: &str| {
        let found = attributes.iter().find(|(known, _)| *known == name);
        found.map_or(Cow::Borrowed(""), |(_, value)| value.clone())
    };
    let split = &row.split;
    [
        text(Some(&row.trace_id)),
        text(Some(&row.span_id)),
        text(row.parent_span_id.as_deref()),
        units::rfc3339(row.start_time).into(),
        number(Some(row.duration_ns)),
        text(Some(row.service)),
        text(Some(row.host)),
        number(Some(row.pid)),
        text(Some(row.operation)),
        text(Some(row.kind)),
        text(Some(row.status)),
        text(Some(row.protocol)),
        attribute("error.type"),
        attribute("db.system.name"),
        attribute("db.operation.name"),
        attribute("db.query.text"),
        attribute("db.response.status_code"),
        attribute("http.request.method"),
        attribute("url.path"),
        attribute("http.response.status_code"),
        attribute("server.address"),
        attribute("server.port"),
        attribute("client.address"),
        attribute("client.port"),
        text(row.caller_service),
        text(row.caller_host),
        number(row.client_duration_ns),
        number(row.server_duration_ns),
        number(split.request_send_ns),
        number(split.network_ns),
        number(split.server_queue_ns),
        number(split.service_ns),
        number(split.streaming_ns),
        number(split.client_queue_ns),
        number(split.remote_ns),
        number(Some(split.remainder_ns)),
        number(Some(split.approximate)),
        number(Some(row.request_bytes)),
        number(Some(row.response_bytes)),
        number(Some(near.request_message_id.0)),
        number(Some(near.response_message_id.0)),
        number(Some(near.batch)),
        number(Some(row.retransmits)),
        number(Some(near.srtt_us).filter(|us| *us > 0)),
        text(row.evidence),
        number(row.confidence),
        text(row.root),
        row.flags.join(" ").into(),
        number(Some(row.probability)),
        text(Some(row.reason)),
    ]
}

fn line<'a>(values: impl Iterator<Item = Cow<'a, str>>, out: &mut dyn Write) -> io::Result<()> {
    for (idx, value) in values.enumerate() {
        if idx > 0 {
            out.write_all(b",")?;
        }
        if value.contains(['"', ',', '\r', '\n']) {
            write!(out, "\"{}\"", value.replace('"', "\"\""))?;
        } else {
            out.write_all(value.as_bytes())?;
        }
    }
    out.write_all(b"\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;

    /// Lines of fields, by RFC 4180's grammar.
    fn parse(text: &str) -> Vec<Vec<String>> {
        let mut lines = vec![vec![String::new()]];
        let mut quoted = false;
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            let fields = lines.last_mut().expect("never empty");
            let field = fields.last_mut().expect("never empty");
            match c {
                '"' if quoted && chars.peek() == Some(&'"') => {
                    chars.next();
                    field.push('"');
                }
                '"' => quoted = !quoted,
                ',' if !quoted => fields.push(String::new()),
                '\r' if !quoted => {
                    assert_eq!(chars.next(), Some('\n'));
                    lines.push(vec![String::new()]);
                }
                c => field.push(c),
            }
        }
        assert_eq!(lines.pop(), Some(vec![String::new()]), "the last line ends too");
        lines
    }

    #[test]
    fn one_line_per_rpc_under_named_columns() {
        let awkward = "set \"a,b\"\r\n?";
        let spans = [rpc(1).query(awkward).build(), rpc(2).under(1).client_only().build()];
        let mut out = Vec::new();
        let mut csv = Csv;
        csv.begin(&mut out).expect("memory");
        csv.page(&spans, &mut out).expect("memory");
        csv.end(&mut out).expect("memory");
        let lines = parse(std::str::from_utf8(&out).expect("text"));
        assert_eq!(lines.len(), 3);
        let field = |line: usize, name: &str| {
            let column = lines[0].iter().position(|column| column == name).expect(name);
            lines[line][column].as_str()
        };
        assert!(lines.iter().all(|line| line.len() == COLUMNS.len()));
        assert_eq!(field(1, "span_id"), "0000000000000001");
        assert_eq!(field(1, "db.query.text"), awkward);
        assert_eq!(field(1, "start_time"), "2026-11-03T12:00:00.000000000Z");
        assert_eq!(field(1, "duration_ns"), "1000000");
        assert_eq!(field(1, "dprof.split.network_ns"), "160000");
        assert_eq!(field(1, "dprof.kind"), "server");
        assert_eq!(field(1, "parent_span_id"), "");
        assert_eq!(field(2, "parent_span_id"), "0000000000000001");
        assert_eq!(field(2, "dprof.link.evidence"), "same_thread");
        assert_eq!(field(2, "dprof.split.network_ns"), "");
        assert_eq!(field(2, "server.address"), "10.0.0.2");
        assert_eq!(field(2, "dprof.server.duration_ns"), "");
    }
}
