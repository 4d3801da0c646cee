//! What dprof's kernel programs and its user-space programs agree on.
//!
//! Without features: the records that cross the ring buffer ([`event`]), the configuration that crosses the
//! other way ([`probe_config`]), causes of loss ([`drop_reason`]) and shared limits ([`limits`]); `no_std`.
//! With feature `user`: the [`model`] that the agent, the stores and the command line share, and the [`settings`] of a
//! running fleet.
#![cfg_attr(not(feature = "user"), no_std)]

pub mod cpu_buffer;
pub mod drop_reason;
pub mod event;
pub mod flow;
pub mod limits;
#[cfg(feature = "user")]
pub mod model;
pub mod probe_config;
#[cfg(feature = "user")]
pub mod settings;
#[cfg(feature = "user")]
pub mod units;
