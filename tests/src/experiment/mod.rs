//! The experiments of *Dprof - Distributed System Profiling and Tracing* on real programs, each with a truth that dprof
//! does not know.
//!
//! What a reader would get wrong: an experiment measures and judges; `cargo xtask experiment` chooses, shows and counts.

pub mod prevalence;
pub mod replication;
pub mod sampling;
pub mod window;
