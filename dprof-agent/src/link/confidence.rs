//! How often a kind of evidence is right in a process: counted where something stronger knows.
//!
//! *The idea.* A confidence that was fitted on someone's benchmark says nothing about this process. But most
//! processes that matter have some RPCs with certain links; on those, weaker evidence is asked blind and its answer
//! compared. The share of agreement, per process, kind and one small feature of the case, is the confidence of the
//! links that rest on it alone. *Why not per kind only*: the same rule is right always with one request open and
//! half the time with ten. *What stays uncertain*: links with certain evidence may be easier than those without.
//! Where nothing was counted the link says `uncalibrated`.
//!
//! What a reader would get wrong: the estimate is `(right + 1) / (n + 2)`, Laplace's rule of succession. It never
//! reaches 1: a confidence of exactly 1 is what certain links have.

use dprof_common::model::EvidenceKind;

use super::remembered::Remembered;

/// Comparisons from which on the share is said: with 20 right of 20 the estimate is 0.95.
const COUNTED_MIN: u32 = 20;
/// Counts are halved here, so that the estimate follows a process that changes.
const COUNTED_MAX: u32 = 8192;
/// Processes with counts, 456 bytes each; all are forgotten when there are more.
const PROCESSES_MAX: usize = 8 * 1024;
/// Kinds of evidence, which are numbered from 1.
const KINDS: usize = EvidenceKind::ALL.len();
/// Features of a kind.
const FEATURES_MAX: usize = 8;

/// Which kinds are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvidenceSet(u8);

impl Default for EvidenceSet {
    fn default() -> Self {
        Self::ALL
    }
}

impl EvidenceSet {
    /// Every kind.
    pub const ALL: Self = Self(u8::MAX);

    /// These kinds.
    pub fn of(kinds: &[EvidenceKind]) -> Self {
        Self(kinds.iter().fold(0, |set, kind| set | bit(*kind)))
    }

    /// All but these.
    #[must_use]
    pub fn without(self, kinds: &[EvidenceKind]) -> Self {
        Self(self.0 & !Self::of(kinds).0)
    }

    /// Whether `kind` is used.
    pub const fn contains(self, kind: EvidenceKind) -> bool {
        self.0 & bit(kind) != 0
    }
}

const fn bit(kind: EvidenceKind) -> u8 {
    1 << (kind as u8 - 1)
}

/// What the user chose.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct LinkOptions {
    /// Kinds of evidence to use.
    pub evidence: EvidenceSet,
    /// Links less sure than this are not made; above 0 those that are uncalibrated are not made either.
    pub min_confidence: f32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    n: u32,
    right: u32,
}

/// The counts.
#[derive(Debug, Default)]
pub(crate) struct Calibration {
    bins: Remembered<[[Bin; FEATURES_MAX]; KINDS]>,
}

impl Calibration {
    /// Counts a comparison.
    pub(crate) fn note(&mut self, tgid: u32, kind: EvidenceKind, feature: u8, right: bool) {
        let (bins, _) = self.bins.get_or_new(tgid, PROCESSES_MAX);
        let Some(bin) = bins[kind as usize - 1].get_mut(usize::from(feature)) else { return };
        bin.n += 1;
        bin.right += u32::from(right);
        if bin.n >= COUNTED_MAX {
            *bin = Bin { n: bin.n / 2, right: bin.right / 2 };
        }
    }

    /// The probability that a link of this kind is right; `None` where too little was counted.
    pub(crate) fn confidence(&self, tgid: u32, kind: EvidenceKind, feature: u8) -> Option<f32> {
        let bins = &self.bins.get(tgid)?[kind as usize - 1];
        let bin = bins.get(usize::from(feature)).filter(|bin| bin.n >= COUNTED_MIN)?;
        Some((bin.right + 1) as f32 / (bin.n + 2) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(right: u32, wrong: u32, expected: Option<f32>) {
        let mut calibration = Calibration::default();
        for n in 0..right + wrong {
            calibration.note(7, EvidenceKind::Order, 0, n < right);
        }
        let found = calibration.confidence(7, EvidenceKind::Order, 0);
        let close = match (found, expected) {
            (Some(found), Some(expected)) => (found - expected).abs() < 0.001,
            (found, expected) => found == expected,
        };
        assert!(close, "{found:?}, expected {expected:?}");
        assert_eq!(calibration.confidence(8, EvidenceKind::Order, 0), None, "another process");
        assert_eq!(calibration.confidence(7, EvidenceKind::Order, 1), None, "another feature");
    }

    #[test]
    fn the_share_of_agreement_is_the_confidence_and_never_certainty() {
        check(0, 0, None);
        check(COUNTED_MIN - 1, 0, None);
        check(COUNTED_MIN, 0, Some(21.0 / 22.0));
        check(30, 10, Some(31.0 / 42.0));
        check(0, 100, Some(1.0 / 102.0));
        check(COUNTED_MAX * 2, 0, Some(0.9998));
    }

    #[test]
    fn sets_of_kinds() {
        let set = EvidenceSet::of(&[EvidenceKind::ExplicitId, EvidenceKind::Order]);
        assert!(set.contains(EvidenceKind::Order) && !set.contains(EvidenceKind::SameThread));
        assert!(EvidenceSet::ALL.contains(EvidenceKind::Timing));
        assert!(!EvidenceSet::ALL.without(&[EvidenceKind::Timing]).contains(EvidenceKind::Timing));
    }
}
