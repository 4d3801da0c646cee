//! A cable that delays and loses frames, for dprof's drills.

fn main() -> anyhow::Result<()> {
    dprof_tests::cable::main()
}
