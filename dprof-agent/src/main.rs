//! `dprof-agent`: see the library.

fn main() -> std::process::ExitCode {
    dprof_agent::run::main()
}
