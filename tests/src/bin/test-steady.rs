//! A steady load, for dprof's drills.

fn main() -> anyhow::Result<()> {
    dprof_tests::steady::main()
}
