//! Options that say which links are made.

use dprof_common::model::EvidenceKind;

use super::option;
use crate::link::{EvidenceSet, LinkOptions};

/// Evidence by name, and the least confidence.
pub(super) fn link_options(evidence: &[String], min_confidence: Option<f32>) -> Result<LinkOptions, String> {
    let mut options = LinkOptions::default();
    if !evidence.is_empty() {
        let kinds: Vec<EvidenceKind> =
            evidence.iter().map(|name| option("--evidence", name.parse())).collect::<Result<_, _>>()?;
        options.evidence = EvidenceSet::of(&kinds);
    }
    if let Some(min) = min_confidence {
        if !(0.0..=1.0).contains(&min) {
            return Err("--min-confidence: give a number from 0 to 1".to_owned());
        }
        options.min_confidence = min;
    }
    Ok(options)
}
