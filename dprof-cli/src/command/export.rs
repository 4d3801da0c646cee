//! `export`: spans for other programs.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use dprof_common::model::Span;
use dprof_store::{Order, SpanQuery};

use crate::analyse::trust::TrustArgs;
use crate::args::{SpanArgs, WindowArgs, parse_id};
use crate::context::{Context, Failure};
use crate::export::Exporter;
use crate::export::csv::Csv;
use crate::export::folded::Folded;
use crate::export::jaeger::Jaeger;
use crate::export::ndjson::Ndjson;
use crate::export::otlp::Otlp;
use crate::export::pages::Pages;
use crate::export::parquet::Parquet;
use crate::export::perfetto::Perfetto;
use crate::export::zipkin::Zipkin;
use crate::load::{self, Window, short_id};
use crate::units;

/// Writes spans, newest first, for other programs.
///
/// otlp-json is OpenTelemetry's JSON (one document), zipkin-json Zipkin's v2, jaeger-json what Jaeger's UI loads:
/// a CLIENT and a SERVER span per RPC, of the ends that were seen. perfetto opens in Perfetto's UI. folded has stacks
/// for flame graphs, of the critical paths. csv has one line per RPC, ndjson one JSON object, parquet one row in the
/// columns of csv, with their types. jaeger-json and
/// folded take whole traces, by filters on their requests.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// otlp-json, zipkin-json, jaeger-json, perfetto, folded, csv, ndjson or parquet
    #[arg(long, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    format: ExportFormat,
    /// File to write, - for stdout; a file appears only when it is complete
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Only this trace (an id or the start of one); the window does not apply
    #[arg(long, value_parser = parse_id, value_name = "ID", conflicts_with_all = ["since", "until"])]
    trace: Option<String>,
    #[command(flatten)]
    window: WindowArgs,
    #[command(flatten)]
    filters: SpanArgs,
    #[command(flatten)]
    trust: TrustArgs,
    /// At most this many RPCs [default: all]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..), value_name = "N")]
    limit: Option<u64>,
}

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// OpenTelemetry's JSON
    OtlpJson,
    /// Zipkin's v2 JSON
    ZipkinJson,
    /// Jaeger's JSON
    JaegerJson,
    /// Perfetto's protobuf
    Perfetto,
    /// Folded stacks
    Folded,
    /// Comma-separated values
    Csv,
    /// A JSON object per line
    Ndjson,
    /// Apache Parquet
    Parquet,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let window = Window::new(args.window, context.now_unix_ns)?;
    let reader = context.reader().await?;
    let mut exporter: Box<dyn Exporter> = match args.format {
        ExportFormat::OtlpJson => Box::new(Otlp::default()),
        ExportFormat::ZipkinJson => Box::new(Zipkin::default()),
        ExportFormat::JaegerJson => Box::new(Jaeger::default()),
        ExportFormat::Perfetto => Box::new(Perfetto::default()),
        ExportFormat::Folded => Box::new(Folded::default()),
        ExportFormat::Csv => Box::new(Csv),
        ExportFormat::Ndjson => Box::new(Ndjson),
        ExportFormat::Parquet => Box::new(Parquet::default()),
    };
    let limit = args.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let of_trace = match &args.trace {
        None => None,
        Some(id) => {
            let trace_id = load::resolve_trace(context, &*reader, id).await?;
            let answer = reader.trace(trace_id).await?;
            context.warn(&answer.warnings);
            let mut spans = answer.rows;
            args.trust.apply(&mut spans);
            spans.retain(|span| load::passes(span, &args.filters));
            spans.truncate(limit);
            Some((trace_id, spans))
        }
    };
    let target = Target::open(&args.out)?;
    let mut file = target.file.as_ref().map(BufWriter::new);
    let fail = |error: io::Error| target.failure(error);
    let mut count = 0;
    let mut progress = context.progress("exporting");
    let mut warnings = Vec::new();
    {
        let out: &mut dyn Write = match &mut file {
            Some(file) => file,
            None => context.out,
        };
        exporter.begin(out).map_err(fail)?;
        if let Some((_, spans)) = of_trace.as_ref().filter(|(_, spans)| !spans.is_empty()) {
            exporter.page(spans, out).map_err(fail)?;
            count = spans.len();
        } else if of_trace.is_none() {
            let whole = exporter.wants_whole_traces();
            let query =
                SpanQuery { roots_only: whole, ..load::query(&window, &args.filters, Order::Newest, limit) };
            let mut seen = HashSet::new();
            let mut pages = Pages::new(&*reader, query);
            loop {
                let mut page: Vec<Span> = pages.next(&mut warnings).await?;
                if page.is_empty() {
                    break;
                }
                progress.advance(page.len(), pages.share(context.now_unix_ns));
                if !whole {
                    count += page.len();
                    args.trust.apply(&mut page);
                    exporter.page(&page, out).map_err(fail)?;
                    continue;
                }
                for root in page {
                    let mut answer = reader.trace(root.trace_id).await?;
                    args.trust.apply(&mut answer.rows);
                    warnings.extend(answer.warnings);
                    // A fragment leads to the trace that it is of, which may have been written already.
                    if answer.rows.first().is_some_and(|span| seen.insert(span.trace_id)) {
                        count += answer.rows.len();
                        exporter.page(&answer.rows, out).map_err(fail)?;
                    }
                }
            }
        }
        exporter.end(out).map_err(fail)?;
        out.flush().map_err(fail)?;
    }
    drop((file, progress));
    target.finish()?;
    warnings.sort();
    warnings.dedup();
    context.warn(&warnings);
    let of = match &of_trace {
        Some((trace_id, _)) => format!("trace {}", short_id(*trace_id)),
        None => window.describe(context.now_unix_ns),
    };
    if count == 0 && of_trace.is_none() {
        let filtered = load::is_filtered(&args.filters);
        return load::explain_nothing(context, &*reader, &window, &args.filters.names, filtered).await;
    }
    let rpcs = if count == 1 { "RPC" } else { "RPCs" };
    context.say(&format!("exported {} {rpcs} of {of}", units::count(count as u64)));
    Ok(())
}

/// Where the export goes. A regular file is written beside its name and renamed when complete, so that nobody
/// takes half an export for a whole one; devices and pipes are written as they are.
struct Target {
    file: Option<File>,
    path: PathBuf,
    partial: Option<PathBuf>,
}

impl Target {
    fn open(path: &Path) -> Result<Self, Failure> {
        if path.as_os_str() == "-" {
            return Ok(Self { file: None, path: path.to_owned(), partial: None });
        }
        let failed = |error: io::Error| Failure::Error(format!("cannot write {}: {error}", path.display()));
        // A link is followed, as any program would; what it names is what is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let is_special = fs::metadata(&path).is_ok_and(|metadata| !metadata.is_file());
        let partial = (!is_special).then(|| {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(format!(".{}.partial", std::process::id()));
            path.with_file_name(name)
        });
        let file = match &partial {
            Some(partial) => File::create(partial),
            None => File::options().write(true).open(&path),
        };
        Ok(Self { file: Some(file.map_err(failed)?), path, partial })
    }

    fn failure(&self, error: io::Error) -> Failure {
        match &self.file {
            Some(_) => Failure::Error(format!("cannot write {}: {error}", self.path.display())),
            None => Failure::Output(error),
        }
    }

    fn finish(mut self) -> Result<(), Failure> {
        let Some(partial) = self.partial.take() else { return Ok(()) };
        fs::rename(&partial, &self.path).map_err(|error| {
            // It could not be put in place, so it is of no use; the rename's error is the one to tell.
            let _ = fs::remove_file(&partial);
            self.failure(error)
        })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(partial) = self.partial.take() {
            // Half an export is of no use; that it stays if it cannot be removed is said by its name.
            let _ = fs::remove_file(partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run};

    fn store() -> Memory {
        Memory::of(vec![
            rpc(1).build(),
            rpc(2).under(1).at(200, 500).build(),
            rpc(3).trace(3).at(9_000, 1).build(),
        ])
    }

    #[test]
    fn to_stdout_goes_data_only() {
        let (result, out, words) = run(store(), 80, "export --format otlp-json --out -");
        assert!(result.is_ok());
        let document: serde_json::Value = serde_json::from_str(&out).expect("json");
        let spans: usize = document["resourceSpans"]
            .as_array()
            .expect("an array")
            .iter()
            .map(|resource| resource["scopeSpans"][0]["spans"].as_array().map_or(0, Vec::len))
            .sum();
        assert_eq!(spans, 6);
        assert_eq!(words, "exported 3 RPCs of the last 1h 00m (since 2026-11-03 11:10:00.000 UTC)\n");
    }

    #[test]
    fn formats_of_whole_traces_write_each_trace_once() {
        let (result, out, _) = run(store(), 80, "export --format jaeger-json --out -");
        assert!(result.is_ok());
        let document: serde_json::Value = serde_json::from_str(&out).expect("json");
        let traces = document["data"].as_array().expect("traces");
        assert_eq!(
            traces.iter().map(|t| t["spans"].as_array().map_or(0, Vec::len)).collect::<Vec<_>>(),
            [2, 4]
        );
        let (_, out, words) = run(store(), 80, "export --format folded --out -");
        assert_eq!(out.lines().count(), 2, "{out}");
        assert!(words.starts_with("exported 3 RPCs"), "{words}");
        for format in ["zipkin-json", "perfetto", "ndjson", "parquet"] {
            let (result, out) = run_bytes(&format!("export --format {format} --out -"));
            assert!(result.is_ok() && !out.is_empty(), "{format}");
        }
    }

    #[test]
    fn whole_traces_leave_out_links_that_are_not_believed() {
        let references = |args: &str| {
            let (result, out, _) = run(store(), 80, &format!("export --format jaeger-json --out - {args}"));
            assert!(result.is_ok());
            out.matches("CHILD_OF").count()
        };
        // Each SERVER span below its CLIENT span stays; the call below its cause goes.
        assert_eq!(references("") - references("--evidence explicit_id"), 1);
    }

    /// As [`run`], for formats that are no text.
    fn run_bytes(args: &str) -> (Result<(), crate::Failure>, Vec<u8>) {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("out");
        let (result, ..) = run(store(), 80, &args.replace("--out -", &format!("--out {}", file.display())));
        (result, std::fs::read(&file).expect("written"))
    }

    #[test]
    fn to_a_file_nothing_partial_is_left() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("spans.csv");
        let (result, out, words) = run(
            store(),
            80,
            &format!("export --format csv --trace 0000000000000001 --out {}", file.display()),
        );
        assert!(result.is_ok());
        assert_eq!((out.as_str(), words.as_str()), ("", "exported 2 RPCs of trace 0000000000000001\n"));
        assert_eq!(std::fs::read_to_string(&file).expect("written").lines().count(), 3);
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn devices_are_written_not_replaced() {
        let (result, _, _) = run(store(), 80, "export --format csv --out /dev/null");
        assert!(result.is_ok());
        assert!(!std::fs::metadata("/dev/null").expect("there").is_file());
    }

    #[test]
    fn an_unwritable_file_is_named() {
        let (result, _, _) = run(store(), 80, "export --format csv --out /nonexistent/x.csv");
        let failure = result.expect_err("no such folder");
        assert_eq!(failure.exit_code(), 1);
        assert!(failure.to_string().starts_with("cannot write /nonexistent/x.csv: "), "{failure}");
    }

    #[test]
    fn an_empty_export_is_a_valid_document_and_says_why() {
        let (result, out, words) = run(store(), 80, "export --format otlp-json --out - --since 1m");
        assert!(result.is_ok());
        assert_eq!(out, "{\"resourceSpans\":[]}\n");
        assert!(words.contains("try --since 10m"), "{words}");
    }
}
