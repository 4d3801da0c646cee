//! `[trace]`: which traces are stored.

use serde::Deserialize;

use super::{FilePart, optional};
use dprof_common::settings::BUDGET_PER_S_MAX;
use dprof_common::units::parse_part;

/// Keys of the section.
pub(super) const KEYS: &[&str] = &["keep_ratio", "keep_slow", "keep_errors", "keep_budget_per_s"];

/// What the section says; overridden by the options of the same meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Keep {
    /// `trace.keep_ratio`
    pub ratio: Option<f64>,
    /// `trace.keep_slow`
    pub slow: Option<bool>,
    /// `trace.keep_errors`
    pub errors: Option<bool>,
    /// `trace.keep_budget_per_s`
    pub budget_per_s: Option<f64>,
}

/// The section as TOML has it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct FileKeep {
    keep_ratio: Option<FilePart>,
    keep_slow: Option<bool>,
    keep_errors: Option<bool>,
    keep_budget_per_s: Option<f64>,
}

pub(super) fn check_keep(file: &FileKeep) -> Result<Keep, String> {
    let ratio = file.keep_ratio.as_ref().map(FilePart::to_text);
    Ok(Keep {
        ratio: optional("trace.keep_ratio", ratio.as_deref(), |text| parse_part(text, 0.0))?,
        slow: file.keep_slow,
        errors: file.keep_errors,
        budget_per_s: file
            .keep_budget_per_s
            .map(|per_s| check_budget("trace.keep_budget_per_s", per_s))
            .transpose()?,
    })
}

/// Checks a budget against its range.
pub(crate) fn check_budget(name: &str, per_s: f64) -> Result<f64, String> {
    if (0.0..=BUDGET_PER_S_MAX).contains(&per_s) {
        return Ok(per_s);
    }
    Err(format!(
        "{name}: {per_s} is out of range: give 0 to {BUDGET_PER_S_MAX} traces a second and operation"
    ))
}
