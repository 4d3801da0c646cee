//! Questions to a running pipeline, and changes of what it obeys, told to the stages that are concerned.
//!
//! What a reader would get wrong: each stage changes between two blocks or batches, so nothing is cut in half; but stages
//! change one after the other, within a twentieth of a second.

use std::net::IpAddr;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use dprof_store::Retention;

use crate::engine::{EngineCounters, OpenRequest};
use crate::settings::Settings;
use crate::source::Source;
use crate::source::process::ServiceRule;
use crate::source::window::DutyCycle;

/// A question to the running engine, or something else that it is to do from now on.
#[derive(Debug)]
pub enum Question {
    /// Obeys these settings from now on.
    Obey {
        /// What.
        settings: Box<Settings>,
        /// Told when it does.
        done: mpsc::SyncSender<()>,
    },
    /// Requests that are open, oldest first.
    OpenRequests {
        /// At most this many.
        limit: usize,
        /// Where the answer goes.
        answer: mpsc::SyncSender<Vec<OpenRequest>>,
    },
    /// Local addresses of the connections that were watched.
    LocalAddresses {
        /// Where the answer goes.
        answer: mpsc::SyncSender<Vec<IpAddr>>,
    },
    /// Counters now.
    Counters {
        /// Where the answer goes.
        answer: mpsc::SyncSender<EngineCounters>,
    },
}

impl Question {
    /// Asks, and waits `within` for the answer; `None`: the engine has ended, or does not answer.
    pub fn ask<T>(
        questions: &mpsc::Sender<Self>,
        within: Duration,
        question: impl FnOnce(mpsc::SyncSender<T>) -> Self,
    ) -> Option<T> {
        let (answer, answered) = mpsc::sync_channel(1);
        questions.send(question(answer)).ok()?;
        answered.recv_timeout(within).ok()
    }
}

/// What the source's thread is told.
#[derive(Debug)]
pub(super) enum ToSource {
    /// At most so many bytes of payload per call of this socket.
    PayloadLimit(u64, u32),
    /// Capture so from now on.
    Capture(ToCapture),
}

/// What the source obeys.
#[derive(Debug)]
pub(super) struct ToCapture {
    duty_cycle: DutyCycle,
    ports: Vec<u16>,
    service_rules: Vec<ServiceRule>,
    /// Told how that went.
    done: mpsc::SyncSender<Result<(), String>>,
}

impl ToCapture {
    /// Has the source obey.
    pub(super) fn tell(self, source: &mut dyn Source) {
        let Self { duty_cycle, ports, service_rules, done } = self;
        source.set_service_rules(&service_rules);
        let set = source.set_ports(&ports).and_then(|()| source.set_duty_cycle(&duty_cycle));
        // Who asked may have gone away.
        let _ = done.send(set.map_err(|error| format!("{error:#}")));
    }
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
        let order = ToCapture {
            duty_cycle: settings.duty_cycle,
            ports: settings.ports.clone(),
            service_rules: settings.service_rules.clone(),
            done,
        };
        self.source.send(ToSource::Capture(order)).context("the source has ended")?;
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
