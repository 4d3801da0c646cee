//! `config history` and `config diff`: what was set before, by whom, and what changed.

use std::collections::BTreeSet;

use dprof_common::settings::Values;
use dprof_store::control::{Document, head};
use serde::Serialize;

use super::{ScopeArgs, named, version};
use crate::args::{Format, FormatArgs};
use crate::context::{Context, Failure};
use crate::render::Tone;
use crate::render::json;
use crate::render::table::{Cell, Column, Table};
use crate::units;

/// Show the versions of a scope, newest first, each with what it changed
#[derive(Debug, clap::Args)]
pub(super) struct HistoryArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    /// At most this many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    limit: u32,
    #[command(flatten)]
    output: FormatArgs,
}

/// Show what changed between two versions of a scope
#[derive(Debug, clap::Args)]
pub(super) struct DiffArgs {
    /// The earlier version [default: the one before the later]
    #[arg(value_name = "FROM")]
    from: Option<u64>,
    /// The later version [default: the newest]
    #[arg(value_name = "TO")]
    to: Option<u64>,
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    output: FormatArgs,
}

/// A key whose value is another one. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Difference {
    /// The key.
    pub(super) key: String,
    /// Its value before; `None`: it was not set.
    pub(super) before: Option<String>,
    /// Its value after; `None`: it is not set.
    pub(super) after: Option<String>,
}

/// What differs between two sets of values, by key.
pub(super) fn differences(before: &Values, after: &Values) -> Vec<Difference> {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    keys.into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| Difference {
            key: key.clone(),
            before: before.get(key).cloned(),
            after: after.get(key).cloned(),
        })
        .collect()
}

/// As lines for people.
pub(super) fn write_differences(changes: &[Difference], context: &mut Context<'_>) -> Result<(), Failure> {
    let mut table =
        Table::new([Column::whole("KEY", 0), Column::text("BEFORE", 0), Column::text("AFTER", 0)]);
    for Difference { key, before, after } in changes {
        let cell = |value: &Option<String>| match value {
            Some(value) => Cell::from(value),
            None => Cell::toned("not set", Tone::Dim),
        };
        table.row([key.into(), cell(before), cell(after)]);
    }
    if !changes.is_empty() {
        table.write(context.screen, context.out)?;
    }
    Ok(())
}

/// A version. Field names are the JSON schema.
#[derive(Debug, Serialize)]
struct Version {
    scope: String,
    version: u64,
    time: String,
    author: String,
    comment: String,
    /// All values that it holds.
    values: Values,
    /// What it changed.
    changes: Vec<Difference>,
    /// Why agents refuse it whole; empty unless they do.
    unreadable: String,
}

#[derive(Serialize)]
struct History {
    versions: Vec<Version>,
}

impl Version {
    fn of(document: &Document, before: Option<&Document>) -> Self {
        let values = document.values();
        let earlier = before.and_then(|before| before.values().ok()).unwrap_or_default();
        Self {
            scope: document.scope.to_string(),
            version: document.version,
            time: units::rfc3339(document.at_unix_ms.saturating_mul(1_000_000)),
            author: document.author.clone(),
            comment: document.comment.clone(),
            changes: differences(&earlier, &values.clone().unwrap_or_default()),
            unreadable: values.as_ref().err().cloned().unwrap_or_default(),
            values: values.unwrap_or_default(),
        }
    }

    /// `trace.keep_ratio 1 → 1/16`
    fn summary(&self) -> String {
        if !self.unreadable.is_empty() {
            return self.unreadable.clone();
        }
        let one = |Difference { key, before, after }: &Difference| match (before, after) {
            (None, Some(after)) => format!("{key} = {after}"),
            (Some(before), Some(after)) => format!("{key} {before} → {after}"),
            (_, None) => format!("{key} unset"),
        };
        self.changes.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// Runs `config history`.
pub(super) async fn run(args: HistoryArgs, context: &mut Context<'_>) -> Result<(), Failure> {
    let scope = &args.scope.scope;
    let limit = args.limit as usize;
    // One more, for what the last of them changed.
    let documents = context.control(false).await?.history(scope, limit + 1).await?;
    let versions: Vec<Version> = documents
        .iter()
        .enumerate()
        .take(limit)
        .map(|(idx, document)| Version::of(document, documents.get(idx + 1)))
        .collect();
    if args.output.format == Format::Json {
        return json::document("config_history", &History { versions }, context.out);
    }
    if versions.is_empty() {
        context.say(&format!("nothing was ever set for {scope}"));
        return Ok(());
    }
    let mut table = Table::new([
        Column::number("VERSION", 0),
        Column::whole("TIME (UTC)", 1),
        Column::text("AUTHOR", 2),
        Column::text("CHANGED", 0),
        Column::text("COMMENT", 3),
    ]);
    for version in versions {
        table.row([
            version.version.to_string().into(),
            version.time.get(..19).unwrap_or_default().replace('T', " ").into(),
            (&version.author).into(),
            version.summary().into(),
            (&version.comment).into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

#[derive(Serialize)]
struct Diff {
    scope: String,
    from: u64,
    to: u64,
    changes: Vec<Difference>,
}

/// Runs `config diff`.
pub(super) async fn diff(args: DiffArgs, context: &mut Context<'_>) -> Result<(), Failure> {
    let scope = &args.scope.scope;
    let control = context.control(false).await?;
    let to = match args.to {
        Some(to) => version(&*control, scope, to).await?,
        None => head(&*control, scope).await?,
    };
    let from = args.from.unwrap_or_else(|| to.version.saturating_sub(1));
    let from = version(&*control, scope, from).await?;
    let values = |document: &Document| document.values().map_err(Failure::Error);
    let changes = differences(&values(&from)?, &values(&to)?);
    if args.output.format == Format::Json {
        let diff = Diff { scope: scope.to_string(), from: from.version, to: to.version, changes };
        return json::document("config_diff", &diff, context.out);
    }
    let versions = format!("{} to {}", named(scope, from.version), to.version);
    context.say(&if changes.is_empty() { format!("{versions}: no difference") } else { versions });
    write_differences(&changes, context)
}
