//! `dprof-agent`
fn main() {}
