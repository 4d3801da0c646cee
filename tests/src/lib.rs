//! Real programs to observe, and the agent that observes them: started on free loopback ports in folders of their
//! own, waited for by polling, ended by process id. The integration tests and `cargo xtask demo` stand on it.
//! Where no real program can be had or none says who caused whom, programs of our own: a ring that behaves like
//! Dynomite, an HTTP service, a load client.
//!
//! What a reader would get wrong: a child outlives nothing. It ends when its [`Program`](program::Program) is
//! dropped, also by a panic, and the kernel ends it when the thread that started it is gone.

pub mod agent;
pub mod behaviour;
pub mod bottleneck;
pub mod cable;
pub mod cassandra;
pub mod cli;
pub mod client;
pub mod clock;
pub mod cpu_limit;
pub mod dial;
pub mod drill;
pub mod experiment;
pub mod netns;
pub mod poll;
pub mod program;
pub mod ring;
pub mod service;
pub mod socket_option;
pub mod steady;
pub mod subject;
pub mod topology;
pub mod truth;
pub mod wire;
pub mod zipkin;
