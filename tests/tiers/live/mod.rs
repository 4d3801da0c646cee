//! Real programs under a running agent on this machine's kernel.

mod calls;
mod counts;
mod errors;
mod families;
mod hostile;
mod http;
mod lifecycle;
mod rate;
mod replay;
mod split;
