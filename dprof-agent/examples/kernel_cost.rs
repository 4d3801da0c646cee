//! Counts what kernel programs cost while something else makes traffic: `cargo xtask bench overhead` runs it beside an
//! agent. Prints `ready`; for each line on standard input one JSON array of all programs' runs so far; ends with it.
#![expect(clippy::print_stdout, reason = "a measurement prints what it found")]

use std::io::BufRead as _;
use std::sync::mpsc::{self, TryRecvError};
use std::time::Duration;

use anyhow::Context as _;
use dprof_agent::source::floor::Floor;

/// As often as an agent looks at its ring under load.
const PAUSE: Duration = Duration::from_millis(2);

fn main() -> anyhow::Result<()> {
    let mut floor = Floor::attach()?;
    let (asked, questions) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if asked.send(line).is_err() {
                return;
            }
        }
    });
    println!("ready");
    loop {
        floor.drain(PAUSE);
        match questions.try_recv() {
            Ok(_) => println!("{}", serde_json::to_string(&floor.runs()).context("print the runs")?),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
    }
}
