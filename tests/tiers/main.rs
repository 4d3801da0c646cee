//! dprof's integration tests, a module per tier. A tier is turned on by its variable; `cargo xtask test` turns on
//! all of them and fails if one did not run.
//!
//! | tier | variable | needs |
//! |---|---|---|
//! | cassandra | `DPROF_TEST_CASSANDRA=127.0.0.1,127.0.0.2,127.0.0.3` | `cargo xtask cassandra up --nodes 3 --sync-every-write` |
//! | cassandra::secure | `DPROF_TEST_CASSANDRA_SECURE=127.0.0.1` | `cargo xtask cassandra up --secure` |
//! | live | `DPROF_TEST_LIVE=1` | root, a kernel with BTF, the subjects that `cargo xtask setup` installs |
//! | zipkin | `DPROF_TEST_ZIPKIN=1` | Java, and Zipkin's server as `cargo xtask test` fetches it |
//! | accuracy | `DPROF_TEST_ACCURACY=1` | the same |

mod accuracy;
mod cassandra;
mod harness;
mod live;
mod zipkin;
