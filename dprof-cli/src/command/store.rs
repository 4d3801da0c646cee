//! `store`: makes, upgrades and describes the store itself. The one command that writes to it.

use clap::Subcommand;
use dprof_store::StoreUrl;
use dprof_store::cassandra::{self, InitOptions};

use crate::context::{Context, Failure, Store};
use crate::units::parse_duration;

/// Makes, upgrades or describes the store itself.
///
/// Only a Cassandra keyspace needs making; agents never change tables.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Make keyspace and tables, unless they are there
    Init {
        /// Replicas: 3, or dc1:3,dc2:2 [default: 3, or as many as there are nodes]
        #[arg(long, value_name = "N", default_value = "", hide_default_value = true)]
        replication: String,
        #[command(flatten)]
        tables: TableArgs,
    },
    /// Bring the tables up to date; lives that are given are set anew
    Upgrade {
        #[command(flatten)]
        tables: TableArgs,
    },
    /// Show schema, replication, consistency and how long rows live
    Info,
}

#[derive(Debug, clap::Args)]
struct TableArgs {
    /// Life of spans; compaction windows are a 28th of it [default: 7d]
    #[arg(long, value_parser = parse_life, value_name = "DURATION")]
    ttl: Option<u64>,
    /// Life of counts by the minute [default: 3d]
    #[arg(long, value_parser = parse_life, value_name = "DURATION")]
    ttl_minutes: Option<u64>,
    /// Life of counts by the hour [default: 30d]
    #[arg(long, value_parser = parse_life, value_name = "DURATION")]
    ttl_hours: Option<u64>,
    /// Partitions of each minute of the index, 1 to 64; never fewer than before [default: one per three nodes]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64), value_name = "N")]
    shards: Option<u16>,
    /// Consistency of agents and readers: local_one or local_quorum [default: a quorum from three replicas on]
    #[arg(long, value_parser = ["local_one", "local_quorum"], value_name = "LEVEL", hide_possible_values = true)]
    consistency: Option<String>,
}

/// Shorter, a row would be gone before anybody asks; longer than Cassandra's own limit of 20 years.
const LIFE_S: (u64, u64) = (60, 20 * 365 * 86_400);

fn parse_life(text: &str) -> Result<u64, String> {
    let seconds = parse_duration(text).map_err(|error| error.to_string())? / 1_000_000_000;
    if (LIFE_S.0..=LIFE_S.1).contains(&seconds) { Ok(seconds) } else { Err("give 1m to 7300d".to_owned()) }
}

impl TableArgs {
    fn over(self, mut options: InitOptions) -> InitOptions {
        options.ttl_s = self.ttl.unwrap_or(options.ttl_s);
        options.ttl_minutes_s = self.ttl_minutes.unwrap_or(options.ttl_minutes_s);
        options.ttl_hours_s = self.ttl_hours.unwrap_or(options.ttl_hours_s);
        options.shards = self.shards.unwrap_or(options.shards);
        options.consistency = self.consistency.unwrap_or(options.consistency);
        options
    }
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let url = url(&context.store)?;
    let text = match args.task {
        Task::Init { replication, tables } => {
            let options = tables.over(InitOptions { replication, ..InitOptions::default() });
            cassandra::init(&url, &options).await?
        }
        Task::Upgrade { tables } => cassandra::upgrade(&url, &tables.over(InitOptions::unchanged())).await?,
        Task::Info => match &url {
            StoreUrl::Cassandra { .. } => cassandra::info(&url).await?,
            StoreUrl::Sqlite(dir) => {
                let runs = context.reader().await?.runs().await?;
                format!("folder       {}\nruns         {}\n", dir.display(), runs.len())
            }
        },
    };
    context.out.write_all(text.as_bytes())?;
    Ok(())
}

#[cfg_attr(not(test), expect(clippy::unnecessary_wraps, reason = "tests have stores without a URL"))]
fn url(store: &Store) -> Result<StoreUrl, Failure> {
    match store {
        Store::Url(url) => Ok(url.clone()),
        #[cfg(test)]
        Store::Ready(_) => Err(Failure::Usage("this store has no URL".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_durations_within_bounds() {
        assert_eq!(parse_life("7d"), Ok(604_800));
        assert_eq!(parse_life("1s"), Err("give 1m to 7300d".to_owned()));
        assert!(parse_life("x").is_err());
    }

    #[test]
    fn what_is_not_given_stays_as_it_is() {
        let none =
            TableArgs { ttl: None, ttl_minutes: None, ttl_hours: None, shards: None, consistency: None };
        assert_eq!(none.over(InitOptions::unchanged()), InitOptions::unchanged());
        let some = TableArgs {
            ttl: Some(60),
            ttl_minutes: None,
            ttl_hours: None,
            shards: Some(4),
            consistency: None,
        };
        let options = some.over(InitOptions::default());
        assert_eq!((options.ttl_s, options.ttl_hours_s, options.shards), (60, 30 * 86_400, 4));
    }
}
