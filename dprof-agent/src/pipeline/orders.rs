//! Changes of what a running pipeline obeys, told to the stages that are concerned.
//!
//! What a reader would get wrong: each stage changes between two blocks or batches, so nothing is cut in half; but stages
//! change one after the other, within a twentieth of a second.

use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use dprof_store::Retention;

use super::Question;
use crate::settings::Settings;
use crate::source::window::DutyCycle;

/// What the source's thread is told.
#[derive(Debug)]
pub(super) enum ToSource {
    /// At most so many bytes of payload per call of this socket.
    PayloadLimit(u64, u32),
    /// Capture this part of the time; how that went.
    DutyCycle(DutyCycle, mpsc::SyncSender<Result<(), String>>),
}

/// The way to change what a run obeys.
#[derive(Clone, Debug)]
pub struct Orders {
    engine: mpsc::Sender<Question>,
    source: mpsc::Sender<ToSource>,
    writer: mpsc::Sender<Retention>,
}

/// A stage looks for orders every twentieth of a second; one that does not for this long is stuck.
const OBEYED_WITHIN: Duration = Duration::from_secs(5);

impl Orders {
    pub(super) const fn new(
        engine: mpsc::Sender<Question>,
        source: mpsc::Sender<ToSource>,
        writer: mpsc::Sender<Retention>,
    ) -> Self {
        Self { engine, source, writer }
    }

    /// Has every stage obey `settings`; back when all of them do. Waits: not for a thread that others wait for.
    pub fn obey(&self, settings: &Settings) -> anyhow::Result<()> {
        let (done, source_done) = mpsc::sync_channel(1);
        self.source.send(ToSource::DutyCycle(settings.duty_cycle, done)).context("the source has ended")?;
        let (done, engine_done) = mpsc::sync_channel(1);
        let settings_of_engine = Box::new(settings.clone());
        self.engine
            .send(Question::Obey { settings: settings_of_engine, done })
            .context("the engine has ended")?;
        // None, where there is no embedded store.
        let _ = self.writer.send(settings.retention);
        source_done
            .recv_timeout(OBEYED_WITHIN)
            .context("the source does not answer")?
            .map_err(|error| anyhow!(error))?;
        engine_done.recv_timeout(OBEYED_WITHIN).context("the engine does not answer")
    }
}
