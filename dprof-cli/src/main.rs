//! `dprof-cli`: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    dprof_cli::main()
}
