//! The command line: load from the store, analyse, render. `load` is IO, [`analyse`] is pure, `render` and
//! `export` turn results into bytes.
//!
//! What a reader would get wrong: data goes to stdout and words (windows, warnings, hints) to stderr, so that
//! `| jq` and `> file` always see data only. Exit codes: see [`Failure::exit_code`].
#![forbid(unsafe_code)]

pub mod analyse;
mod args;
mod clock;
mod command;
mod context;
mod explain;
mod export;
mod import;
mod load;
mod progress;
mod render;
mod sample;
#[cfg(test)]
mod testing;
pub mod units;

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use clap::Parser;

pub use context::Failure;

/// Parses the arguments, runs the command, and says in one line what went wrong.
pub fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return args::explain(&error),
    };
    env_logger::Builder::from_env(env_logger::Env::new().filter("DPROF_LOG")).init();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has enough (`| head`): that is no error.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            // Nothing is left to tell if stderr is closed too.
            let _ = writeln!(io::stderr(), "dprof-cli: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(cli: args::Cli) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Error(format!("cannot start the runtime: {error}")))?;
    let mut out = BufWriter::with_capacity(64 * 1024, io::stdout().lock());
    let mut context = context::Context {
        store: context::Store::Url(cli.store.logged_in(cli.store_credentials.as_deref())?),
        screen: render::Screen::of_stdout(cli.color),
        explain: cli.explain.then(Default::default),
        progress: render::is_watched(),
        now_unix_ns: clock::now_unix_ns(),
        out: &mut out,
        words: &mut io::stderr(),
    };
    let result = runtime.block_on(cli.command.run(&mut context));
    context.say_what_was_read();
    // What was found before a failure is data all the same.
    out.flush().map_err(Failure::Output)?;
    result
}
