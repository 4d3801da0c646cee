//! Formats for other programs, one file each, and the pages in which spans come out of the store.

mod attributes;
pub(crate) mod csv;
pub(crate) mod otlp;
pub(crate) mod pages;

use std::io::{self, Write};

use dprof_common::model::Span;

/// Writes spans page by page.
pub(crate) trait Exporter {
    /// What comes before the first page.
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()>;

    /// A page; it is not empty.
    fn page(&mut self, spans: &[Span], out: &mut dyn Write) -> io::Result<()>;

    /// What comes after the last page.
    fn end(&mut self, out: &mut dyn Write) -> io::Result<()>;
}
