//! Options that say which traces are stored.

use super::option;
use crate::config;
use crate::keep::KeepOptions;
use dprof_common::units::parse_part;

#[derive(Debug, clap::Args)]
pub(super) struct KeepArgs {
    /// Store this part of all traces, such as 1/100, and those that failed or were slow [default: 1]
    #[arg(long, value_name = "PART")]
    keep_ratio: Option<String>,
    /// Traces a second and operation that are stored for having failed or been slow [default: 10]
    #[arg(long, value_name = "N")]
    keep_budget: Option<f64>,
}

impl KeepArgs {
    /// Which traces are stored; the configuration's word where the command line has none.
    pub(super) fn options(&self, config: &config::Keep) -> Result<KeepOptions, String> {
        let default = KeepOptions::default();
        let ratio = self
            .keep_ratio
            .as_deref()
            .map(|text| option("--keep-ratio", parse_part(text, 0.0)))
            .transpose()?;
        let budget =
            self.keep_budget.map(|per_s| config::check_budget("--keep-budget", per_s)).transpose()?;
        Ok(KeepOptions {
            ratio: ratio.or(config.ratio).unwrap_or(default.ratio),
            slow: config.slow.unwrap_or(default.slow),
            errors: config.errors.unwrap_or(default.errors),
            budget_per_s: budget.or(config.budget_per_s).unwrap_or(default.budget_per_s),
            ..default
        })
    }
}
