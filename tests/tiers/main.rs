//! dprof's integration tests, a module per tier. A tier is turned on by its variable; `cargo xtask test` turns on
//! all of them and fails if one did not run.
//!
//! | tier | variable | needs |
//! |---|---|---|
//! | live | `DPROF_TEST_LIVE=1` | root, a kernel with BTF, the subjects that `cargo xtask setup` installs |

mod harness;
mod live;
