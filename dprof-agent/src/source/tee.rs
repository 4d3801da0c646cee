//! A [`Source`] that also records: every block goes to the recorder before the pipeline sees it.

use std::sync::Arc;
use std::time::Duration;

use super::process::ServiceRule;
use super::recording::Recorder;
use super::window::DutyCycle;
use super::{Block, ProgramRuns, Source, SourceCounters};

/// A source and its recorder.
pub struct Tee {
    /// Where blocks come from.
    pub source: Box<dyn Source>,
    /// Where they go beside the pipeline.
    pub recorder: Arc<Recorder>,
}

impl std::fmt::Debug for Tee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tee").field("backend", &self.source.backend()).finish_non_exhaustive()
    }
}

impl Source for Tee {
    fn backend(&self) -> &'static str {
        self.source.backend()
    }

    fn next_block(&mut self, wait: Duration) -> anyhow::Result<Option<Block>> {
        let block = self.source.next_block(wait)?;
        if let Some(block) = &block {
            self.recorder.offer(block);
        }
        Ok(block)
    }

    fn set_payload_limit(&mut self, sock: u64, bytes: u32) {
        self.source.set_payload_limit(sock, bytes);
    }

    fn set_duty_cycle(&mut self, duty_cycle: &DutyCycle) -> anyhow::Result<()> {
        self.source.set_duty_cycle(duty_cycle)
    }

    fn set_service_rules(&mut self, rules: &[ServiceRule]) {
        self.source.set_service_rules(rules);
    }

    fn counters(&mut self) -> SourceCounters {
        self.source.counters()
    }

    fn check(&mut self) -> anyhow::Result<()> {
        self.source.check()
    }

    fn programs(&mut self) -> Vec<ProgramRuns> {
        self.source.programs()
    }
}
