//! One JSON object per line and RPC, with the fields of `slowest-spans --format json`.

use std::io::{self, Write};

use dprof_common::model::Span;

use super::Exporter;
use crate::analyse::row::SpanRow;

/// Writes NDJSON.
#[derive(Debug, Default)]
pub(crate) struct Ndjson;

impl Exporter for Ndjson {
    fn begin(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    fn page(&mut self, spans: &[Span], out: &mut dyn Write) -> io::Result<()> {
        for row in spans.iter().filter_map(SpanRow::new) {
            serde_json::to_writer(&mut *out, &row)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    fn end(&mut self, _: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::rpc;

    #[test]
    fn every_line_is_an_object() {
        let mut out = Vec::new();
        Ndjson.page(&[rpc(1).query("a\nb").build(), rpc(2).build()], &mut out).expect("memory");
        let text = String::from_utf8(out).expect("text");
        let ids: Vec<String> = text
            .lines()
            .map(|line| {
                let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
                row["span_id"].as_str().expect("text").to_owned()
            })
            .collect();
        assert_eq!(ids, ["0000000000000001", "0000000000000002"]);
    }
}
