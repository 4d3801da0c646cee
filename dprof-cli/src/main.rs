//! `dprof-cli`
fn main() {}
