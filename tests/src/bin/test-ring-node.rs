//! A node of a ring that behaves like Dynomite, for dprof's tests.

fn main() -> anyhow::Result<()> {
    dprof_tests::ring::node::main()
}
