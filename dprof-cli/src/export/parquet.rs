//! Parquet: one row per RPC in the columns of the CSV export, typed, for DuckDB, pandas, Spark and their kin.
//!
//! What a reader would get wrong: the format ends with an index of everything before it, so a file without its end is
//! no file. Rows are held until there are [`GROUP_ROWS`] of them, since readers take a row group at a time.

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use dprof_common::model::Span;
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::ColumnWriter;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::Exporter;
use super::csv::{COLUMNS, values};
use crate::analyse::row::SpanRow;

/// Rows of a group: some megabytes of memory.
const GROUP_ROWS: usize = 50_000;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    /// 64 bits, signed.
    Number,
    Fraction,
    Flag,
    /// Nanoseconds since the epoch, UTC.
    Time,
}

/// Every column of the CSV export that is no text.
fn kind(column: &str) -> Kind {
    match column {
        "start_time" => Kind::Time,
        "dprof.split.approximate" => Kind::Flag,
        "dprof.link.confidence" | "dprof.probability" => Kind::Fraction,
        "process.pid" | "dprof.batch" | "dprof.retransmits" | "dprof.srtt_us" => Kind::Number,
        _ if [".port", "_ns", ".bytes", ".message_id"].iter().any(|end| column.ends_with(end)) => {
            Kind::Number
        }
        _ => Kind::Text,
    }
}

impl Kind {
    const fn in_schema(self) -> (&'static str, &'static str) {
        match self {
            Self::Text => ("BYTE_ARRAY", "(UTF8)"),
            Self::Number => ("INT64", ""),
            Self::Fraction => ("DOUBLE", ""),
            Self::Flag => ("BOOLEAN", ""),
            Self::Time => ("INT64", "(TIMESTAMP(NANOS, true))"),
        }
    }
}

/// The schema in Parquet's own words; every column may lack a value.
fn schema() -> String {
    let columns = COLUMNS.iter().map(|name| {
        let (physical, logical) = kind(name).in_schema();
        format!("OPTIONAL {physical} {name} {logical};")
    });
    format!("message spans {{ {} }}", columns.collect::<Vec<_>>().join(" "))
}

/// Values of one column, without those that are absent, and which rows have one.
#[derive(Clone, Debug)]
enum Values {
    Text(Vec<parquet::data_type::ByteArray>),
    Number(Vec<i64>),
    Fraction(Vec<f64>),
    Flag(Vec<bool>),
}

#[derive(Clone, Debug)]
struct Column {
    values: Values,
    /// 1 = there, per row.
    levels: Vec<i16>,
}

impl Column {
    fn new(kind: Kind) -> Self {
        let values = match kind {
            Kind::Text => Values::Text(Vec::new()),
            Kind::Number | Kind::Time => Values::Number(Vec::new()),
            Kind::Fraction => Values::Fraction(Vec::new()),
            Kind::Flag => Values::Flag(Vec::new()),
        };
        Self { values, levels: Vec::new() }
    }

    /// Adds a row's value; empty text is none, as is what is no number.
    fn push(&mut self, value: Cow<'_, str>) {
        fn put<T>(values: &mut Vec<T>, value: Option<T>) -> bool {
            let is_there = value.is_some();
            values.extend(value);
            is_there
        }
        let is_there = match &mut self.values {
            Values::Text(values) => {
                put(values, (!value.is_empty()).then(|| value.into_owned().into_bytes().into()))
            }
            Values::Number(values) => put(values, value.parse().ok()),
            Values::Fraction(values) => put(values, value.parse().ok()),
            Values::Flag(values) => put(values, value.parse().ok()),
        };
        self.levels.push(i16::from(is_there));
    }

    fn push_time(&mut self, unix_ns: u64) {
        if let Values::Number(values) = &mut self.values {
            values.push(i64::try_from(unix_ns).unwrap_or(i64::MAX));
            self.levels.push(1);
        }
    }

    fn write(&self, writer: &mut ColumnWriter<'_>) -> Result<(), ParquetError> {
        let levels = Some(self.levels.as_slice());
        match (writer, &self.values) {
            (ColumnWriter::ByteArrayColumnWriter(to), Values::Text(of)) => to.write_batch(of, levels, None),
            (ColumnWriter::Int64ColumnWriter(to), Values::Number(of)) => to.write_batch(of, levels, None),
            (ColumnWriter::DoubleColumnWriter(to), Values::Fraction(of)) => to.write_batch(of, levels, None),
            (ColumnWriter::BoolColumnWriter(to), Values::Flag(of)) => to.write_batch(of, levels, None),
            _ => Err(ParquetError::General("a column is not of its schema's type".to_owned())),
        }
        .map(|_| ())
    }
}

/// Bytes on their way from Parquet's writer, which owns its output, to ours, which is lent page by page.
#[derive(Clone, Debug, Default)]
struct Pipe(Arc<Mutex<Vec<u8>>>);

impl Pipe {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes Parquet.
#[derive(Default)]
pub(crate) struct Parquet {
    pipe: Pipe,
    writer: Option<SerializedFileWriter<Pipe>>,
    columns: Vec<Column>,
    rows: usize,
}

impl Parquet {
    fn write_group(&mut self) -> Result<(), ParquetError> {
        let (Some(writer), true) = (&mut self.writer, self.rows > 0) else { return Ok(()) };
        let mut group = writer.next_row_group()?;
        for column in &self.columns {
            let Some(mut to) = group.next_column()? else { break };
            column.write(to.untyped())?;
            to.close()?;
        }
        group.close()?;
        self.rows = 0;
        self.columns = empty_columns();
        Ok(())
    }
}

fn empty_columns() -> Vec<Column> {
    COLUMNS.iter().map(|name| Column::new(kind(name))).collect()
}

fn failed(error: ParquetError) -> io::Error {
    io::Error::other(error)
}

impl Exporter for Parquet {
    fn begin(&mut self, out: &mut dyn Write) -> io::Result<()> {
        let schema = parse_message_type(&schema()).map_err(failed)?;
        let compression = Compression::ZSTD(ZstdLevel::default());
        let properties = WriterProperties::builder().set_compression(compression).build();
        self.columns = empty_columns();
        self.writer = Some(
            SerializedFileWriter::new(self.pipe.clone(), schema.into(), properties.into()).map_err(failed)?,
        );
        out.write_all(&self.pipe.take())
    }

    fn page(&mut self, spans: &[Span], out: &mut dyn Write) -> io::Result<()> {
        for span in spans {
            let (Some(row), Some(near)) = (SpanRow::new(span), span.nearest()) else { continue };
            for ((name, value), column) in COLUMNS.iter().zip(values(span, &row, near)).zip(&mut self.columns)
            {
                match kind(name) {
                    Kind::Time => column.push_time(row.start_time),
                    _ => column.push(value),
                }
            }
            self.rows += 1;
            if self.rows == GROUP_ROWS {
                self.write_group().map_err(failed)?;
                out.write_all(&self.pipe.take())?;
            }
        }
        Ok(())
    }

    fn end(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.write_group().map_err(failed)?;
        if let Some(writer) = self.writer.take() {
            writer.close().map_err(failed)?;
        }
        out.write_all(&self.pipe.take())
    }
}

#[cfg(test)]
mod tests {
    use parquet::file::metadata::RowGroupMetaData;
    use parquet::file::reader::{FileReader as _, SerializedFileReader};
    use parquet::record::Field;

    use super::*;
    use crate::export::csv::Csv;
    use crate::testing::{T0, rpc};

    fn written(mut exporter: impl Exporter, pages: &[&[Span]]) -> Vec<u8> {
        let mut out = Vec::new();
        exporter.begin(&mut out).expect("memory");
        pages.iter().for_each(|page| exporter.page(page, &mut out).expect("memory"));
        exporter.end(&mut out).expect("memory");
        out
    }

    /// Rows by column, as Parquet's own reader has them.
    fn read(bytes: Vec<u8>) -> Vec<Vec<(String, Field)>> {
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).expect("Parquet");
        let rows = reader.get_row_iter(None).expect("rows");
        rows.map(|row| row.expect("a row").into_columns()).collect()
    }

    fn spans() -> Vec<Span> {
        let awkward = "set \"a,b\"\r\n? ✓";
        vec![rpc(1).query(awkward).build(), rpc(2).under(1).client_only().at(7, 5).build()]
    }

    #[test]
    fn every_value_of_the_csv_export_is_read_back_with_its_type() {
        let spans = spans();
        let rows = read(written(Parquet::default(), &[&spans]));
        assert_eq!(rows.len(), spans.len());
        for (span, columns) in spans.iter().zip(&rows) {
            let row = SpanRow::new(span).expect("has halves");
            let expected = values(span, &row, span.nearest().expect("has halves"));
            assert_eq!(columns.len(), COLUMNS.len());
            for ((name, field), (column, text)) in columns.iter().zip(COLUMNS.iter().zip(expected)) {
                assert_eq!(name, column);
                let shown = match (kind(name), field) {
                    (_, Field::Null) => String::new(),
                    (Kind::Text, Field::Str(text)) => text.clone(),
                    (Kind::Number, Field::Long(number)) => number.to_string(),
                    (Kind::Flag, Field::Bool(flag)) => flag.to_string(),
                    // The 32 bits of a confidence and what they are as 64 differ in the text.
                    (Kind::Fraction, Field::Double(value)) => {
                        assert!((value - text.parse::<f64>().expect("a number")).abs() < 1e-12);
                        text.clone().into_owned()
                    }
                    (Kind::Time, Field::Long(ns)) => crate::units::rfc3339(*ns as u64),
                    (_, other) => panic!("{name}: {other:?}"),
                };
                assert_eq!(shown, text, "{name}");
            }
        }
    }

    #[test]
    fn numbers_are_numbers_and_times_are_times() {
        let bytes = bytes::Bytes::from(written(Parquet::default(), &[&spans()]));
        let reader = SerializedFileReader::new(bytes).expect("Parquet");
        let columns = reader.metadata().file_metadata().schema_descr().columns().to_vec();
        let is_text = |name: &str| {
            let column = columns.iter().find(|column| column.name() == name).expect(name);
            column.physical_type() == parquet::basic::Type::BYTE_ARRAY
        };
        // A column whose every value in the CSV export is a number holds numbers, but for what is a code or an id.
        let csv = String::from_utf8(written(Csv, &[&spans()])).expect("text");
        assert!(csv.starts_with("trace_id,"));
        for name in
            ["duration_ns", "dprof.split.network_ns", "server.port", "dprof.request.bytes", "process.pid"]
        {
            assert!(!is_text(name), "{name}");
        }
        for name in ["trace_id", "db.response.status_code", "http.response.status_code", "server.address"] {
            assert!(is_text(name), "{name}");
        }
        let time = columns.iter().find(|column| column.name() == "start_time").expect("there");
        let logical = format!("{:?}", time.logical_type_ref());
        assert!(logical.contains("Timestamp") && logical.contains("NANOS"), "{logical}");
    }

    #[test]
    fn pages_become_groups_of_rows_and_nothing_is_a_file_too() {
        assert_eq!(read(written(Parquet::default(), &[])), Vec::<Vec<_>>::new());
        let page: Vec<Span> = (0..1_000).map(|n| rpc(n + 1).at(n, 5).build()).collect();
        let pages = vec![page.as_slice(); GROUP_ROWS / 1_000 + 1];
        let bytes = bytes::Bytes::from(written(Parquet::default(), &pages));
        let reader = SerializedFileReader::new(bytes).expect("Parquet");
        let groups: Vec<i64> =
            reader.metadata().row_groups().iter().map(RowGroupMetaData::num_rows).collect();
        assert_eq!(groups, [GROUP_ROWS as i64, 1_000]);
        let first = reader.get_row_iter(None).expect("rows").next().expect("a row").expect("a row");
        let start =
            first.get_column_iter().find(|(name, _)| *name == "start_time").map(|(_, field)| field.clone());
        assert_eq!(start, Some(Field::Long(T0 as i64)));
    }
}
