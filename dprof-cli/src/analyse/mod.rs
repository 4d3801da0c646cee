//! Pure analysis: spans and rollups in, answers out. No clock, no store, no terminal.

pub mod latency;
pub mod message;
pub mod place;
pub mod row;
pub mod stats;
pub mod suggest;
pub mod tree;
