//! `import`: traces of other tracers into a new store, so that every question can be asked of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;

use dprof_common::model::{Edge, Rollup, RunId, Span};
use dprof_store::{Batch, Retention, RunInfo, StoreError, StoreUrl, open_reader, open_writer};

use crate::args::StoreParser;
use crate::context::{Context, Failure, command_on};
use crate::import::assemble::assemble;
use crate::import::{Format, read};
use crate::units;

/// RPCs per batch: large enough to be fast, small enough that a batch fits any store's limits.
const BATCH_SPANS: usize = 1_000;

/// An imported store is kept until it is deleted: 100 years.
const KEEP_S: u64 = 100 * 365 * 24 * 3600;

/// Reads traces of OpenTelemetry, Zipkin or Jaeger (JSON) into a new store.
///
/// A CLIENT span and the SERVER span below it become one RPC; INTERNAL spans are no RPCs and are passed over. Then
/// ask with --store of the new store.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Files to read
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The new store: sqlite:DIR or cassandra://host1,host2/keyspace (credentials: $DPROF_STORE_CREDENTIALS)
    #[arg(long, value_name = "URL", value_parser = StoreParser)]
    into: StoreUrl,
    /// auto (by content), otlp-json, zipkin-json or jaeger-json
    #[arg(long, value_enum, default_value_t = Format::Auto, value_name = "FORMAT", hide_possible_values = true)]
    format: Format,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let into = args.into.logged_in(None)?;
    refuse_existing(&into).await?;
    // The run's id: what no other import at another time has.
    let run_id = RunId(u128::from(context.now_unix_ns) << 64 | u128::from(std::process::id()));
    let mut foreign = Vec::new();
    let mut refused = 0;
    for path in &args.files {
        let failed =
            |why: &dyn std::fmt::Display| Failure::Error(format!("cannot import {}: {why}", path.display()));
        let file = File::open(path).map_err(|error| failed(&error))?;
        let found = read(BufReader::new(file), args.format).map_err(|error| failed(&error))?;
        foreign.extend(found.spans);
        refused += found.refused;
    }
    let read_spans = foreign.len();
    let rpcs = assemble(&foreign, run_id);
    drop(foreign);
    let Some(started_unix_ns) = rpcs.iter().map(Span::start_ns).min() else {
        return Err(Failure::NotFound("the files hold no span: nothing was imported".to_owned()));
    };
    let run = RunInfo {
        run_id,
        host: "import".to_owned(),
        labels: BTreeMap::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: String::new(),
        backend: "import".to_owned(),
        started_unix_ns,
    };
    let retention = Retention { max_age_s: KEEP_S, max_bytes: u64::MAX, ..Retention::DEFAULT };
    let mut writer = open_writer(&into, &run, retention, &[]).await?;
    let mut progress = context.progress("importing");
    for (idx, spans) in rpcs.chunks(BATCH_SPANS).enumerate() {
        let batch = Batch {
            seq: idx as u64 + 1,
            spans: spans.to_vec(),
            rollups: Rollup::of(spans),
            edges: Edge::of(spans),
        };
        writer.write(&batch).await?;
        progress.advance(spans.len(), (idx * BATCH_SPANS) as f64 / rpcs.len() as f64);
    }
    writer.close().await?;
    drop(progress);
    if refused > 0 {
        context.say(&format!("warning: {refused} spans have no valid id or time and were left out"));
    }
    context.say(&format!(
        "imported {} spans as {} RPCs into {}",
        units::count(read_spans as u64),
        units::count(rpcs.len() as u64),
        into
    ));
    context.say(&format!("next: {}", command_on(&into, "slowest-traces --since all")));
    Ok(())
}

/// An import never mixes with what an agent measured.
async fn refuse_existing(into: &StoreUrl) -> Result<(), Failure> {
    let exists = match open_reader(into).await {
        Ok(reader) => !reader.runs().await?.is_empty(),
        Err(StoreError::NotFound(_)) => false,
        Err(error) => return Err(error.into()),
    };
    if exists {
        return Err(Failure::Error(format!(
            "{into} is in use: an import goes into a new store, name another --into"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::{Memory, rpc, run};

    #[test]
    fn an_export_is_imported_once_and_answers_the_same_questions() {
        let dir = tempfile::tempdir().expect("a folder");
        let (file, store) = (dir.path().join("t.json"), dir.path().join("store"));
        let spans =
            || vec![rpc(1).of("web", "GET /").build(), rpc(2).under(1).by("web").at(300, 200).build()];
        let (result, ..) =
            run(Memory::of(spans()), 80, &format!("export --format zipkin-json --out {}", file.display()));
        assert!(result.is_ok());
        let import = format!("import {} --into sqlite:{}", file.display(), store.display());
        let (result, out, words) = run(Memory::default(), 80, &import);
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(out, "");
        assert!(words.starts_with("imported 4 spans as 2 RPCs into sqlite:"), "{words}");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let url = dprof_store::StoreUrl::Sqlite(store);
        let trace = runtime.block_on(async {
            let reader = dprof_store::open_reader(&url).await.expect("a store");
            reader.trace(dprof_common::model::TraceId(1)).await.expect("answers").rows
        });
        assert_eq!(trace.len(), 2);
        assert_eq!(trace[1].duration_ns(), 200_000);
        let (result, ..) = run(Memory::default(), 80, &import);
        assert!(result.expect_err("in use").to_string().contains("name another --into"));
    }

    #[test]
    fn files_that_hold_nothing_are_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let into = format!("--into sqlite:{}", dir.path().join("s").display());
        let (result, ..) = run(Memory::default(), 80, &format!("import /nonexistent.json {into}"));
        assert!(result.expect_err("no file").to_string().starts_with("cannot import /nonexistent.json: "));
        let file = dir.path().join("empty.json");
        std::fs::write(&file, "[]").expect("written");
        let (result, ..) = run(Memory::default(), 80, &format!("import {} {into}", file.display()));
        assert_eq!(result.expect_err("nothing").exit_code(), 3);
    }
}
