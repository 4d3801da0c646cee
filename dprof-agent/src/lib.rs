//! The agent: a one-way pipeline from the kernel's events to stored spans.
//!
//! `source` (kernel or recording) → `decode` → `stream` → `protocol` → `span` → `link` → `keep`, `batch` → store.
//! Everything between source and store is pure: time is in the events, and the same events give the same spans.
//! The one arrow back is the payload limit of a socket, which the engine asks the source for.

pub mod args;
pub mod batch;
pub mod clock;
pub mod config;
pub mod control;
pub mod decode;
pub mod deliver;
pub mod doctor;
mod edges;
pub mod engine;
pub mod fleet;
mod heavy_hitters;
pub mod keep;
pub mod link;
pub mod live;
pub mod memory;
pub mod metrics;
mod netns;
pub mod pipeline;
pub mod privilege;
pub mod protocol;
pub mod queue;
pub mod report;
pub mod rollup;
pub mod run;
pub mod settings;
pub mod source;
mod span;
pub mod spool;
mod stream;
pub mod words;
