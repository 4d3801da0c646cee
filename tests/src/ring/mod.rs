//! A ring that behaves like Dynomite: a proxy in front of each Redis or memcached, datacenters and racks, DNODE
//! between the nodes.
//!
//! What a reader would get wrong: it is no model of Dynomite but a program of that shape. It stores nothing and
//! knows no gossip; its hops, its system calls and the order of its answers are those seen on real rings, and a
//! test asserts them from a recording.

pub mod dnode;
pub mod node;
pub mod pipe;
pub mod plan;
