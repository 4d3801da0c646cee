//! `config`: what the fleet is told. Values are checked here before they are written, and by each agent again before
//! it obeys.

mod change;
mod get;
mod history;
mod keys;
#[cfg(test)]
mod tests;

use clap::Subcommand;
use dprof_common::settings::{Key, Scope, key, suggest};
use dprof_store::control::{Control, Document};

use crate::context::{Context, Failure};

/// Shows and changes what the agents of a running fleet are told.
///
/// Agents look every few seconds and obey within 10 s, without a restart unless `config keys` says so. Of several
/// scopes that set a key the most specific one wins: host, then service, then cluster.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Get(get::Args),
    Keys(keys::Args),
    Set(change::SetArgs),
    Unset(change::UnsetArgs),
    History(history::HistoryArgs),
    Rollback(change::RollbackArgs),
    Diff(history::DiffArgs),
}

/// `--scope`.
#[derive(Clone, Debug, clap::Args)]
struct ScopeArgs {
    /// Where it holds: cluster, service:NAME or host:NAME
    #[arg(long, default_value = "cluster", value_name = "SCOPE")]
    scope: Scope,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    match args.task {
        Task::Get(args) => get::run(args, context).await,
        Task::Keys(args) => keys::run(args, context),
        Task::Set(args) => change::set(args, context).await,
        Task::Unset(args) => change::unset(args, context).await,
        Task::History(args) => history::run(args, context).await,
        Task::Rollback(args) => change::rollback(args, context).await,
        Task::Diff(args) => history::diff(args, context).await,
    }
}

/// The key of this name, or which one was likely meant.
fn known(name: &str) -> Result<&'static Key, Failure> {
    key(name).ok_or_else(|| {
        let hint = suggest(name).map_or_else(
            || "see dprof-cli config keys".to_owned(),
            |near| format!("did you mean {near}? (see dprof-cli config keys)"),
        );
        Failure::Usage(format!("there is no key '{name}': {hint}"))
    })
}

/// A version that must be there.
async fn version(control: &dyn Control, scope: &Scope, version: u64) -> Result<Document, Failure> {
    if version == 0 {
        return Ok(Document::none(scope.clone()));
    }
    control.version(scope, version).await?.ok_or_else(|| {
        Failure::NotFound(format!(
            "{scope} has no version {version}: see dprof-cli config history --scope {scope}"
        ))
    })
}

/// `cluster 3`, as tables name a version.
fn named(scope: &Scope, version: u64) -> String {
    format!("{scope} {version}")
}
