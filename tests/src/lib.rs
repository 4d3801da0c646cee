//! Real programs to observe, and the agent that observes them: started on free loopback ports in folders of their
//! own, waited for by polling, ended by process id. The integration tests and `cargo xtask demo` stand on it.
//!
//! What a reader would get wrong: a child outlives nothing. It ends when its [`Program`](program::Program) is
//! dropped, also by a panic, and the kernel ends it when the thread that started it is gone.

pub mod agent;
pub mod cli;
pub mod clock;
pub mod poll;
pub mod program;
pub mod subject;
