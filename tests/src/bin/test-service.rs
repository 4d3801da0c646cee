//! An HTTP service with a thread per request, for dprof's tests.

fn main() -> anyhow::Result<()> {
    dprof_tests::service::main()
}
