//! Which links a reader wants to believe: `--min-confidence`, `--evidence`.
//!
//! What a reader would get wrong: a link that is not believed leaves no gap but a root of kind `unlinked`, exactly as
//! if the agent had not found it. What is stored does not change.

use clap::Args;
use dprof_common::model::{EvidenceKind, Link, RootKind, Span};

/// `--min-confidence`, `--evidence`.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct TrustArgs {
    /// Only links at least this sure, 0 to 1; above 0 none that is uncalibrated
    #[arg(long, value_parser = parse_confidence, value_name = "P")]
    pub(crate) min_confidence: Option<f32>,
    /// Only links on these kinds of evidence: explicit_id, stream_relay, relayed_content, order, same_thread
    #[arg(long, value_parser = str::parse::<EvidenceKind>, value_delimiter = ',', value_name = "KIND")]
    pub(crate) evidence: Vec<EvidenceKind>,
}

fn parse_confidence(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|p| (0.0..=1.0).contains(p))
        .ok_or_else(|| "give a number from 0 to 1".to_owned())
}

impl TrustArgs {
    fn believes(&self, link: &Link) -> bool {
        let min = self.min_confidence.unwrap_or(0.0);
        let is_sure = min <= 0.0 || link.confidence.is_some_and(|confidence| confidence >= min);
        is_sure && (self.evidence.is_empty() || self.evidence.contains(&link.evidence))
    }

    /// Takes out links that are not believed.
    pub(crate) fn apply(&self, spans: &mut [Span]) {
        for span in spans {
            let had = span.link.is_some();
            let mut links = span.link.take().into_iter().chain(std::mem::take(&mut span.further_links));
            span.link = links.by_ref().find(|link| self.believes(link));
            span.further_links = links.filter(|link| self.believes(link)).collect();
            if had && span.link.is_none() {
                span.root = Some(RootKind::Unlinked);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Memory, rpc, run};

    /// RPC 2 hangs under 1 by thread with 0.98; what is left of its link.
    #[track_caller]
    fn check(args: &str, expected: &str) {
        let spans = vec![rpc(1).build(), rpc(2).under(1).build()];
        let (result, out, _) =
            run(Memory::of(spans), 80, &format!("trace 0000000000000001 --format json {args}"));
        assert!(result.is_ok(), "{result:?}");
        let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
        let row = rows.as_array().expect("rows").iter().find(|row| row["span_id"] == "0000000000000002");
        let row = row.expect("RPC 2");
        assert_eq!(format!("{} {}", row["parent_span_id"], row["root"]), expected, "{args}");
    }

    #[test]
    fn links_are_believed_as_far_as_asked() {
        let (kept, cut) = ("\"0000000000000001\" null", "null \"unlinked\"");
        check("", kept);
        check("--min-confidence 0.98", kept);
        check("--min-confidence 0.99", cut);
        check("--evidence same_thread", kept);
        check("--evidence explicit_id,relayed_content", cut);
        check("--evidence order,same_thread --min-confidence 0.5", kept);
    }

    #[test]
    fn a_further_cause_that_is_believed_takes_the_place_of_one_that_is_not() {
        let mut span = rpc(3).under(1).and_under(2).build();
        span.further_links[0].confidence = Some(1.0);
        let trust = TrustArgs { min_confidence: Some(0.99), ..TrustArgs::default() };
        trust.apply(std::slice::from_mut(&mut span));
        assert_eq!(span.link.map(|link| link.parent.0), Some(2));
        assert!(span.further_links.is_empty() && span.root.is_none());
        // Uncalibrated is not sure.
        span.link.as_mut().expect("linked").confidence = None;
        trust.apply(std::slice::from_mut(&mut span));
        assert_eq!((span.link, span.root), (None, Some(RootKind::Unlinked)));
    }
}
