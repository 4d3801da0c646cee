//! dprof's integration tests, a module per tier.
