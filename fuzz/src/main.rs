//! The bounded loop as a program: `dprof-fuzz TARGET|all [EXECUTIONS] [SEED]`. Prints one line per target.

use std::process::ExitCode;
use std::time::Instant;

use dprof_fuzz::{TARGETS, mutate};

/// Executions per target when no number is given.
const EXECUTIONS_DEFAULT: u64 = 1_000_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let name = args.first().map_or("all", String::as_str);
    let number = |idx: usize, default| args.get(idx).map_or(Some(default), |text| text.parse().ok());
    let (Some(executions), Some(seed)) = (number(1, EXECUTIONS_DEFAULT), number(2, 1)) else {
        eprintln!("error: give numbers: dprof-fuzz TARGET|all [EXECUTIONS] [SEED]");
        return ExitCode::from(2);
    };
    let targets: Vec<_> =
        TARGETS.iter().filter(|target| name == "all" || target.name == name).copied().collect();
    if targets.is_empty() {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("error: there is no target '{name}': give one of {}, all", names.join(", "));
        return ExitCode::from(2);
    }
    for target in targets {
        let start = Instant::now();
        if let Err(error) = mutate::run(&target, executions, seed) {
            eprintln!("error: seed {seed}: {error}");
            return ExitCode::FAILURE;
        }
        let seconds = start.elapsed().as_secs_f64();
        println!("{:<9} {executions} executions of seed {seed} in {seconds:.1} s, none failed", target.name);
    }
    ExitCode::SUCCESS
}
