//! `cargo xtask experiment prevalence`: how long a fault on a share of requests stays out of sight.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dprof_tests::experiment::prevalence::{Cell, run as run_once};

use super::figure::{self, Series};
use super::{RATIOS, folder, print};
use crate::build::Programs;

/// Shares of requests, of a thousand.
const SLOW_PER_MILLE: [u64; 4] = [500, 100, 10, 1];

/// Slows a share of requests, and waits until the slowest traces have one of them, at several keep ratios.
///
/// Prints seconds from the first request on, with keeping slow traces besides the ratio turned off and on. Needs root;
/// up to some minutes.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Which keys are asked for when
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds after which to give up on a cell of the table
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..))]
    within: u64,
    /// Draw the table
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    programs: Programs,
}

/// Runs the cells one after the other.
pub(crate) fn run(options: &Options) -> Result<()> {
    let steps = options.programs.ready()?;
    let within = Duration::from_secs(options.within);
    print(&format!("seed {}", options.seed));
    let mut drawn = Vec::new();
    for keeps_slow in [false, true] {
        print(if keeps_slow { "\nratio, and what is slow besides" } else { "\nratio alone" });
        print(&format!("SLOW    {}", RATIOS.map(|ratio| format!("{ratio:>8}")).join("  ")));
        for slow_per_mille in SLOW_PER_MILLE {
            let mut line = format!("{:>4} %", slow_per_mille as f64 / 10.0);
            let besides = if keeps_slow { ", slow kept besides" } else { "" };
            let name = format!("{} % slow{besides}", slow_per_mille as f64 / 10.0);
            let mut series = Series { name, is_dashed: keeps_slow, points: Vec::new() };
            for ratio in RATIOS {
                steps.interrupt().check()?;
                let folder = folder()?;
                let cell = Cell { slow_per_mille, ratio, keeps_slow, seed: options.seed };
                let shown = run_once(&cell, within, folder.path()).with_context(|| format!("{cell:?}"))?;
                series.points.push(shown.map(|shown| shown.as_secs_f64()));
                let shown = shown.map_or(format!("> {} s", options.within), |shown| {
                    format!("{:.1} s", shown.as_secs_f64())
                });
                line += &format!("  {shown:>8}");
            }
            print(&line);
            drawn.push(series);
        }
    }
    if let Some(path) = &options.svg {
        let title = "How long a fault stays out of sight";
        figure::lines(path, title, "keep ratio", &RATIOS, "seconds until the slowest list shows it", &drawn)?;
    }
    Ok(())
}
