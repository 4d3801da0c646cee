//! The commands. Adding one: a file with `Args` and `run`, and an entry in the list below.

mod export;
mod operations;
mod services;
mod slowest_spans;
mod stats;
mod tail;
mod trace;

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
    slowest_spans SlowestSpans,
    trace Trace,
    stats Stats,
    services Services,
    operations Operations,
    export Export,
    tail Tail,
}
