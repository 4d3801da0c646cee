//! Formats for other programs, one file each, and the pages in which spans come out of the store.

mod attributes;
pub(crate) mod csv;
pub(crate) mod folded;
pub(crate) mod jaeger;
pub(crate) mod ndjson;
pub(crate) mod otlp;
pub(crate) mod pages;
pub(crate) mod parquet;
pub(crate) mod perfetto;
pub(crate) mod zipkin;

use std::io::{self, Write};

use dprof_common::model::Span;
use serde::Serialize;

/// Writes spans page by page.
pub(crate) trait Exporter {
    /// What comes before the first page.
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()>;

    /// A page; it is not empty.
    fn page(&mut self, spans: &[Span], out: &mut dyn Write) -> io::Result<()>;

    /// What comes after the last page.
    fn end(&mut self, out: &mut dyn Write) -> io::Result<()>;

    /// Whether each page is to be one whole trace; otherwise pages are spans as they come.
    fn wants_whole_traces(&self) -> bool {
        false
    }
}

/// Elements of a JSON array that is written bit by bit, one to a line.
#[derive(Debug, Default)]
struct Elements {
    started: bool,
}

impl Elements {
    /// Writes the next one.
    fn write(&mut self, element: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(if self.started { b",\n" } else { b"\n" })?;
        self.started = true;
        serde_json::to_writer(out, element)?;
        Ok(())
    }

    /// Writes what closes the document, on a line of its own behind elements.
    fn end(&self, close: &str, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}{close}", if self.started { "\n" } else { "" })
    }
}
