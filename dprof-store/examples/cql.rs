//! Runs one CQL statement and prints its rows: `cargo run -p dprof-store --example cql -- HOST,HOST STATEMENT`.
#![expect(clippy::print_stdout, reason = "prints rows")]

use dprof_store::{Credentials, Hosts};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(hosts), Some(statement)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: cql HOST,HOST STATEMENT");
    };
    let mut hosts = Hosts::from(hosts.split(',').map(str::to_owned).collect::<Vec<_>>());
    hosts.log_in_with(Credentials::read(None)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for line in runtime.block_on(dprof_store::cassandra::cql(&hosts, &statement))? {
        println!("{line}");
    }
    Ok(())
}
