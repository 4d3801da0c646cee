//! The commands. Adding one: a file with `Args` and `run`, and an entry in the list below.

mod agents;
mod check;
mod clocks;
mod compare;
mod completions;
mod config;
mod critical_path;
mod dependencies;
mod export;
mod fastest_traces;
mod heatmap;
mod hosts;
mod hot_keys;
mod import;
mod man;
mod operations;
mod replication;
mod services;
mod slowest_spans;
mod slowest_traces;
mod stats;
mod stats_by;
mod store;
mod tail;
mod top;
mod trace;
mod why;

use crate::context::{Context, Failure};

/// The enum that clap parses and the call of each command's `run`. The help text is the doc of its `Args`.
macro_rules! commands {
    ($($module:ident $name:ident,)*) => {
        /// What to do.
        #[derive(Debug, clap::Subcommand)]
        pub(crate) enum Command {
            $($name($module::Args),)*
        }

        impl Command {
            /// Runs the command.
            pub(crate) async fn run(self, context: &mut Context<'_>) -> Result<(), Failure> {
                match self {
                    $(Self::$name(args) => $module::run(args, context).await,)*
                }
            }
        }
    };
}

commands! {
    why Why,
    slowest_spans SlowestSpans,
    slowest_traces SlowestTraces,
    fastest_traces FastestTraces,
    trace Trace,
    critical_path CriticalPath,
    stats Stats,
    services Services,
    operations Operations,
    dependencies Dependencies,
    compare Compare,
    heatmap Heatmap,
    replication Replication,
    clocks Clocks,
    check Check,
    hot_keys HotKeys,
    export Export,
    import Import,
    tail Tail,
    agents Agents,
    config Config,
    store Store,
    top Top,
    completions Completions,
    man Man,
}
