//! Pure analysis: spans and rollups in, answers out. No clock, no store, no terminal.

pub mod attribution;
pub mod cause;
pub mod change;
pub mod compare;
pub mod condition;
pub mod critical_path;
pub mod diagnosis;
pub mod edge_counts;
pub mod edges;
pub mod estimate;
pub mod group;
pub mod heatmap;
pub mod latency;
pub mod live;
pub mod message;
pub mod path_profile;
pub mod place;
pub mod repeat;
pub mod replication;
pub mod row;
pub mod stats;
pub mod suggest;
pub mod symptom;
pub mod tree;
pub(crate) mod trust;
pub mod whole;
