//! Integration tests of dprof live in the test binary `tiers`; this library is empty on purpose.
