//! A load client that knows what it asked and when, for dprof's tests.

fn main() -> anyhow::Result<()> {
    dprof_tests::client::main()
}
