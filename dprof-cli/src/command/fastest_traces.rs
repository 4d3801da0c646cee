//! `fastest-traces`: what the request costs when nothing is in its way.

use dprof_store::Order;

use super::slowest_traces::{self, list};
use crate::context::{Context, Failure};

/// Lists the shortest requests, as slowest-traces does the longest.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    list: slowest_traces::Args,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    list(args.list, Order::Fastest, context).await
}
