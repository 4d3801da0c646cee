//! The bounded loop as a program: `dprof-fuzz TARGET|all [EXECUTIONS] [SEED]` prints one line per target. For libFuzzer:
//! `dprof-fuzz targets` prints their names, `dprof-fuzz seeds TARGET FOLDER` writes the inputs to begin with. For people:
//! `dprof-fuzz show FILE` prints the conversation that `dialogue` makes of a finding.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use dprof_fuzz::{TARGETS, Target, mutate};

/// Executions per target when no number is given.
const EXECUTIONS_DEFAULT: u64 = 1_000_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["targets"] => {
            TARGETS.iter().for_each(|target| println!("{}", target.name));
            Ok(())
        }
        ["show", file] => std::fs::read(file)
            .map_err(|error| format!("read {file}: {error}"))
            .map(|data| print!("{}", dprof_fuzz::show_dialogue(&data))),
        ["seeds", name, folder] => targets(name)
            .and_then(|targets| targets.iter().try_for_each(|target| write_seeds(target, Path::new(folder)))),
        _ => run(&words),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The target of this name, or all of them.
fn targets(name: &str) -> Result<Vec<Target>, String> {
    let targets: Vec<_> =
        TARGETS.iter().filter(|target| name == "all" || target.name == name).copied().collect();
    if targets.is_empty() {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        return Err(format!("there is no target '{name}': give one of {}, all", names.join(", ")));
    }
    Ok(targets)
}

fn run(words: &[&str]) -> Result<(), String> {
    let number = |idx: usize, default| match words.get(idx) {
        None => Ok(default),
        Some(word) => {
            word.parse().map_err(|_| format!("'{word}' is no number: TARGET|all [EXECUTIONS] [SEED]"))
        }
    };
    let (executions, seed) = (number(1, EXECUTIONS_DEFAULT)?, number(2, 1)?);
    for target in targets(words.first().unwrap_or(&"all"))? {
        let start = Instant::now();
        mutate::run(&target, executions, seed).map_err(|error| format!("seed {seed}: {error}"))?;
        let seconds = start.elapsed().as_secs_f64();
        println!("{:<9} {executions} executions of seed {seed} in {seconds:.1} s, none failed", target.name);
    }
    Ok(())
}

fn write_seeds(target: &Target, folder: &Path) -> Result<(), String> {
    for (n, seed) in (target.seeds)().into_iter().enumerate() {
        let file = folder.join(format!("seed-{n:04}"));
        std::fs::write(&file, seed).map_err(|error| format!("write {}: {error}", file.display()))?;
    }
    Ok(())
}
