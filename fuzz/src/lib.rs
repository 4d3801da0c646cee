//! Fuzz targets: bytes in, a panic out if something is wrong. Each runs under libFuzzer and in a bounded,
//! seeded loop without coverage ([`mutate`]) on any toolchain.
//!
//! What a reader would get wrong: "no panic" is the least of it. A target knows what must hold: the same messages
//! however the bytes were cut, no message and no pair that the whole conversation has not, no secret behind a mask.

pub mod mutate;
mod parsers;
mod records;
mod redaction;
mod steps;

// What the files below that belong to the agent's tests take from above.
use dprof_agent::protocol::{Direction, MessageKind, Parsed, Parser};

#[allow(dead_code, reason = "times are for those who see time: the engine's tests")]
#[path = "../../dprof-agent/src/engine/tests/dialogue.rs"]
mod dialogue;
#[path = "../../dprof-agent/src/protocol/feeding.rs"]
mod feeding;

/// A target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also for `cargo fuzz run`.
    pub name: &'static str,
    /// Judges one input.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words of the grammar, for mutations.
    pub words: &'static [&'static [u8]],
}

/// All targets.
pub const TARGETS: [Target; 8] = [
    Target { name: "resp", run: parsers::resp, seeds: parsers::resp_seeds, words: parsers::RESP_WORDS },
    Target { name: "http1", run: parsers::http1, seeds: parsers::http1_seeds, words: parsers::HTTP1_WORDS },
    Target {
        name: "memcached",
        run: parsers::memcached,
        seeds: parsers::memcached_seeds,
        words: parsers::MEMCACHED_WORDS,
    },
    Target { name: "dnode", run: parsers::dnode, seeds: parsers::dnode_seeds, words: parsers::DNODE_WORDS },
    Target { name: "tls", run: parsers::tls, seeds: parsers::tls_seeds, words: parsers::TLS_WORDS },
    Target { name: "dialogue", run: parsers::dialogue, seeds: random_seeds, words: &[] },
    Target { name: "redact", run: redaction::redact, seeds: random_seeds, words: &[] },
    Target { name: "events", run: records::events, seeds: records::seeds, words: &[] },
];

/// What the target `dialogue` makes of an input: the conversation, with and without holes, and what is read in both.
pub fn show_dialogue(data: &[u8]) -> String {
    parsers::show_dialogue(data)
}

/// Runs the target of this name.
///
/// # Panics
/// When the target finds a fault, and when there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    (target.run)(data);
}

/// Inputs that are choices: any bytes are good.
fn random_seeds() -> Vec<Vec<u8>> {
    let mut random = mutate::Random::new(1);
    (0..64).map(|n| (0..20 + n * 8).map(|_| random.next() as u8).collect()).collect()
}
