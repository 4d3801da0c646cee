//! A neighbour that keeps a slow link's queue full, for dprof's experiments.

fn main() -> anyhow::Result<()> {
    dprof_tests::bottleneck::main()
}
