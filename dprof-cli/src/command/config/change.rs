//! `config set`, `unset`, `rollback`: the commands that write a version.

use dprof_common::settings::{Scope, Values, check, check_all};
use dprof_store::control::{Author, Change, ChangeError, Document, change};
use serde::Serialize;

use super::history::{Difference, differences, write_differences};
use super::{ScopeArgs, known, named, version};
use crate::args::{Format, FormatArgs};
use crate::context::{Context, Failure};
use crate::render::json;

/// Set keys, all or none; a wrong value is refused
#[derive(Debug, clap::Args)]
pub(super) struct SetArgs {
    /// What to set, such as trace.keep_ratio=1/16
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = parse_pair)]
    pairs: Vec<(String, String)>,
    #[command(flatten)]
    by: ByArgs,
}

/// Take keys out of a scope, so that less specific scopes decide again
#[derive(Debug, clap::Args)]
pub(super) struct UnsetArgs {
    /// What to take out
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
    #[command(flatten)]
    by: ByArgs,
}

/// Write the values of an earlier version as the next one
#[derive(Debug, clap::Args)]
pub(super) struct RollbackArgs {
    /// The version to go back to; 0 = nothing was set
    #[arg(value_name = "VERSION")]
    version: u64,
    #[command(flatten)]
    by: ByArgs,
}

/// Where, by whom and why.
#[derive(Debug, clap::Args)]
struct ByArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    /// Why, for the history
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    comment: String,
    /// Who, for the history [default: the user]
    #[arg(long, value_name = "NAME")]
    author: Option<String>,
    #[command(flatten)]
    output: FormatArgs,
}

/// A comment is a line or two: a document with its history is read as a whole.
const COMMENT_BYTES_MAX: usize = 1_000;

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("give KEY=VALUE, such as trace.keep_ratio=1/16".to_owned()),
    }
}

/// Who calls, as the machine knows it: behind sudo the user who called it.
fn user() -> String {
    ["SUDO_USER", "USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
        .unwrap_or_else(|| "unknown".to_owned())
}

impl ByArgs {
    fn author(&self, now_unix_ns: u64) -> Result<Author, Failure> {
        if self.comment.len() > COMMENT_BYTES_MAX {
            return Err(Failure::Usage(format!("--comment: give at most {COMMENT_BYTES_MAX} bytes")));
        }
        Ok(Author {
            name: self.author.clone().unwrap_or_else(user),
            comment: self.comment.clone(),
            at_unix_ms: now_unix_ns / 1_000_000,
        })
    }
}

/// What a change came to. Field names are the JSON schema.
#[derive(Debug, Serialize)]
struct Changed {
    scope: String,
    /// Version of the scope now.
    version: u64,
    /// Whether it was written; `false`: it said so already.
    written: bool,
    author: String,
    comment: String,
    changes: Vec<Difference>,
}

/// Runs `config set`.
pub(super) async fn set(args: SetArgs, context: &mut Context<'_>) -> Result<(), Failure> {
    let scope = &args.by.scope.scope;
    for (name, text) in &args.pairs {
        known(name)?;
        check(scope, name, text).map_err(Failure::Usage)?;
    }
    write(&args.by, context, |mut values| {
        values.extend(args.pairs.iter().cloned());
        values
    })
    .await
}

/// Runs `config unset`. A key that this dprof does not know can be taken out too.
pub(super) async fn unset(args: UnsetArgs, context: &mut Context<'_>) -> Result<(), Failure> {
    let scope = &args.by.scope.scope;
    let head = dprof_store::control::head(&*context.control(true).await?, scope).await?;
    for name in &args.keys {
        if !head.values().is_ok_and(|values| values.contains_key(name)) {
            known(name)?;
        }
    }
    write(&args.by, context, |mut values| {
        values.retain(|name, _| !args.keys.contains(name));
        values
    })
    .await
}

/// Runs `config rollback`.
pub(super) async fn rollback(args: RollbackArgs, context: &mut Context<'_>) -> Result<(), Failure> {
    let scope = &args.by.scope.scope;
    let earlier = version(&*context.control(true).await?, scope, args.version).await?;
    let wanted =
        earlier.values().and_then(|values| check_all(scope, &values).map(|_| values)).map_err(|reason| {
            Failure::Error(format!("version {} cannot be gone back to: {reason}", args.version))
        })?;
    write(&args.by, context, |_| wanted.clone()).await
}

async fn write(
    by: &ByArgs,
    context: &mut Context<'_>,
    edit: impl Fn(Values) -> Values,
) -> Result<(), Failure> {
    let scope = &by.scope.scope;
    let control = context.control(true).await?;
    let author = by.author(context.now_unix_ns)?;
    let mut before = Values::new();
    let changed = change(&*control, scope, &author, |head| {
        // One that nobody can read, written past this command, is replaced.
        before = head.values().unwrap_or_default();
        Ok(edit(before.clone()))
    });
    let changed = changed.await.map_err(|error| match error {
        ChangeError::Refused(reason) => Failure::Error(reason),
        ChangeError::Store(error) => error.into(),
    })?;
    let (document, written) = match changed {
        Change::Written(document) => (document, true),
        Change::Already(document) => (document, false),
    };
    if written && let Scope::Host(host) = scope {
        warn_of_unknown(host, &*control, context).await;
    }
    let Document { version, author, comment, .. } = &document;
    let changes = differences(&before, &document.values().unwrap_or_default());
    if by.output.format == Format::Json {
        let changed = Changed {
            scope: scope.to_string(),
            version: *version,
            written,
            author: author.clone(),
            comment: comment.clone(),
            changes,
        };
        return json::document("config_change", &changed, context.out);
    }
    if !written {
        context.say(&format!("{} says so already: nothing was written", named(scope, *version)));
        return Ok(());
    }
    context
        .say(&format!("written as {}, in force within 10 s: see dprof-cli agents", named(scope, *version)));
    write_differences(&changes, context)
}

/// A host that no agent calls itself may be a typing error, or one that is to come.
async fn warn_of_unknown(host: &str, control: &dyn dprof_store::control::Control, context: &mut Context<'_>) {
    if let Ok(agents) = control.agents(context.now_unix_ns).await
        && !agents.iter().any(|agent| agent.host == host)
    {
        context.warn(&[format!("no agent of a host '{host}' is known: see dprof-cli agents")]);
    }
}
