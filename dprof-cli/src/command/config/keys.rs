//! `config keys`: what can be configured.

use dprof_common::settings::{Applies, KEYS, Key};
use serde::Serialize;

use crate::args::{Format, FormatArgs};
use crate::context::{Context, Failure};
use crate::render::json;
use crate::render::table::{Column, Table};

/// List every key: what may be given, the default, when it takes effect
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    output: FormatArgs,
}

/// A key. Field names are the JSON schema.
#[derive(Debug, Serialize)]
struct KeyRow {
    key: &'static str,
    allowed: String,
    default: &'static str,
    /// Whether a change takes effect without a restart.
    live: bool,
    /// Where it can be set.
    scopes: Vec<&'static str>,
    meaning: &'static str,
}

#[derive(Serialize)]
struct Keys {
    keys: Vec<KeyRow>,
}

impl KeyRow {
    fn of(key: &Key) -> Self {
        let service = key.per_service.then_some("service");
        Self {
            key: key.name,
            allowed: key.kind.allowed(),
            default: key.default,
            live: key.applies == Applies::Live,
            scopes: ["cluster"].into_iter().chain(service).chain(["host"]).collect(),
            meaning: key.meaning,
        }
    }
}

/// Runs it.
pub(super) fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let keys: Vec<KeyRow> = KEYS.iter().map(KeyRow::of).collect();
    if args.output.format == Format::Json {
        return json::document("config_keys", &Keys { keys }, context.out);
    }
    let mut table = Table::new([
        Column::whole("KEY", 0),
        Column::text("ALLOWED", 1),
        Column::text("DEFAULT", 2),
        Column::whole("CHANGES", 1),
        Column::whole("SCOPES", 3),
        Column::text("MEANING", 4),
    ]);
    for row in keys {
        table.row([
            row.key.into(),
            row.allowed.into(),
            row.default.into(),
            if row.live { Applies::Live } else { Applies::AtStart }.name().into(),
            row.scopes.join(" ").into(),
            row.meaning.into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}
