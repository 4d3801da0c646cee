//! Real programs under a running agent on this machine's kernel.

mod between;
mod calls;
pub(crate) mod control;
mod counts;
mod dnode;
mod errors;
mod families;
mod files;
mod hostile;
mod http;
mod lifecycle;
mod memcached;
mod metrics;
mod nat;
mod privilege;
mod proxies;
mod rate;
mod replay;
mod same;
mod sampling;
mod skew;
mod split;
mod tls;
mod tshark;
mod watched;
mod window;
