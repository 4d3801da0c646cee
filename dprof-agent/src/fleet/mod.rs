//! The agent as one of a fleet: obeys what the store's configuration says of its host, and reports itself and
//! its machine there.
//!
//! Every [`EVERY`] the newest documents are read, judged as a whole, obeyed, kept on disk as the last good copy, and a
//! row about this agent is written. The rows of the others say whom to tell about traces that are kept.
//!
//! What a reader would get wrong: nothing here may stop anything. A store that is away, damaged or slow costs this one
//! thread its time; the pipeline goes on with what is in force.

pub mod addresses;
pub mod copy;
pub mod host;
pub mod meet;
pub mod obey;
pub mod report;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context as _, Result};
use dprof_store::control::{Control, Document, open_control};
use dprof_store::{RunInfo, StoreError, StoreUrl};
use tokio::sync::oneshot;

use crate::args::{Input, Options};
use crate::clock::{process_cpu, read_clocks, wall_clock_error_ns};
use crate::live::Live;
use crate::pipeline::{Orders, Question, Running};
use crate::settings::{self, Settings};
use crate::words::Meeting;

use self::copy::Copy;
use self::host::{Minutes, Reading};
use self::meet::Acquaintances;
use self::obey::Obedience;
use self::report::{Figures, Reporter, Standing};

/// How often the store is asked, and told: a change is in force within this and what the store takes to answer.
pub const EVERY: Duration = Duration::from_secs(2);
/// A store that does not answer for this long is away.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The engine answers between two blocks; one that does not for this long is left out of the row.
const ENGINE_WITHIN: Duration = Duration::from_secs(1);
/// The other agents' rows are read this often for each of them, nanoseconds: 100 agents read 10 rows a second each.
const MEET_EVERY_PER_AGENT_NS: u64 = 100_000_000;
/// At the end of a run the last row is waited for this long.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(2);
/// Folder of the last good copy beside an embedded store, and in the spool's folder beside another.
const STATE_DIR: &str = "state";

/// An agent that has read what it was told before, and has not yet started.
#[derive(Debug)]
pub struct Member {
    store: StoreUrl,
    copy: Copy,
    obedience: Obedience,
    addresses: Vec<String>,
}

/// Reads the last good copy, or an embedded store, and changes `options` by what it says. `None`: this run is of no
/// fleet, since it replays a recording or stores nothing. No thread is started, and nobody waited for.
pub async fn join(options: &mut Options, host: &str) -> Option<Member> {
    let store = options.store.clone()?;
    let Input::Kernel(kernel) = &options.input else { return None };
    let addresses = addresses::addresses(&kernel.netns);
    let dir = options.state.clone().unwrap_or_else(|| state_dir(&store, &options.spool.dir));
    let copy = Copy::of(&dir, host, &store.to_string());
    let mut obedience = Obedience::new(host, Settings::of(options), settings::values(options));
    if let Some(documents) = recall(&store, &copy, &obedience).await
        && let Some(wanted) = obedience.judge(&documents, wall_clock_error_ns().is_some())
    {
        wanted.settings.put(options);
        settings::configure_start(options, &wanted.scoped, host);
        obedience.started(wanted, settings::values(options));
    }
    Some(Member { store, copy, obedience, addresses })
}

fn state_dir(store: &StoreUrl, spool: &Path) -> PathBuf {
    match store {
        StoreUrl::Sqlite(dir) => dir.join(STATE_DIR),
        StoreUrl::Cassandra { .. } => spool.join(STATE_DIR),
    }
}

/// What was in force last; of an embedded store what it says now.
async fn recall(store: &StoreUrl, copy: &Copy, obedience: &Obedience) -> Option<Vec<Document>> {
    if matches!(store, StoreUrl::Sqlite(_)) {
        match heads(store, obedience).await {
            Ok(documents) => return Some(documents),
            // It is made later.
            Err(StoreError::NotFound(_)) => {}
            Err(error) => log::warn!("configuration of {store}: {error}; the last good copy is looked for"),
        }
    }
    match copy.read() {
        Ok(documents) => documents,
        Err(error) => {
            log::warn!("last good configuration: {error:#}; it is left alone");
            None
        }
    }
}

async fn heads(store: &StoreUrl, obedience: &Obedience) -> Result<Vec<Document>, StoreError> {
    heads_of(&*open_control(store, false).await?, obedience).await
}

async fn heads_of(control: &dyn Control, obedience: &Obedience) -> Result<Vec<Document>, StoreError> {
    let mut scopes = control.scopes().await?;
    scopes.retain(|scope| obedience.concerns(scope));
    control.heads(&scopes).await
}

impl Member {
    /// Makes the folder of the copy, while the process may make folders anywhere.
    pub fn prepare(&self) {
        if let Err(error) = self.copy.prepare() {
            log::warn!("no copy of the configuration is kept: {error:#}");
        }
    }

    /// Obeys, reports and meets the others from now on, on a thread of its own. `meeting`: `None` if they are neither told
    /// nor heard.
    pub fn start(self, info: &RunInfo, running: &Running, meeting: Option<Meeting>) -> Result<Serving> {
        let standing = Standing {
            addresses: self.addresses,
            hears: meeting.as_ref().map_or_else(Vec::new, |meeting| meeting.hears().to_vec()),
            boot_id: boot_id(),
        };
        let acquaintances = Acquaintances::new(info.run_id, &standing.boot_id);
        let figures = FigureSource { live: running.live(), questions: running.questions(), meeting };
        let (reading, unix_s) = look_at_host();
        let task = Task {
            reporter: Reporter::new(info.clone(), standing, figures.read()),
            acquaintances,
            meet_at_ns: 0,
            store: self.store,
            copy: self.copy,
            obedience: self.obedience,
            orders: running.orders(),
            minutes: Minutes::new(&info.host, reading, unix_s),
            figures,
            control: None,
        };
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = mpsc::sync_channel(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new()
            .name("dprof-fleet".to_owned())
            .spawn(move || {
                runtime.block_on(task.run(stopped));
                // Nobody may wait any more.
                let _ = end.send(());
            })
            .context("start thread dprof-fleet")?;
        Ok(Serving { stop: Some(stop), ended })
    }
}

/// An agent that obeys and reports.
#[derive(Debug)]
pub struct Serving {
    stop: Option<oneshot::Sender<()>>,
    ended: mpsc::Receiver<()>,
}

impl Serving {
    /// Says the last word, which a store that does not answer is not waited for.
    pub fn stop(mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have panicked; then there is nothing to wait for either.
            let _ = stop.send(());
            let _ = self.ended.recv_timeout(LAST_WORD_WITHIN);
        }
    }
}

/// Where figures about this run come from.
#[derive(Debug)]
struct FigureSource {
    live: Arc<Live>,
    questions: mpsc::Sender<Question>,
    meeting: Option<Meeting>,
}

impl FigureSource {
    fn read(&self) -> Figures {
        let clocks = read_clocks();
        Figures {
            monotonic_ns: clocks.monotonic_ns,
            unix_ns: clocks.unix_ns,
            clock_error_ns: wall_clock_error_ns(),
            cpu_ns: process_cpu().as_nanos() as u64,
            live: self.live.snapshot(),
            engine: self.ask(|answer| Question::Counters { answer }),
            watches: self.watches(),
            tells: self.meeting.as_ref().map_or(0, Meeting::tells),
        }
    }

    /// What others go by; where nobody can be told, nobody needs it.
    fn watches(&self) -> Vec<IpAddr> {
        if self.meeting.is_none() {
            return Vec::new();
        }
        let mut watches = self.ask(|answer| Question::LocalAddresses { answer }).unwrap_or_default();
        watches.retain(|address| !addresses::is_of_no_use(address));
        watches
    }

    fn ask<T>(&self, question: impl FnOnce(mpsc::SyncSender<T>) -> Question) -> Option<T> {
        Question::ask(&self.questions, ENGINE_WITHIN, question)
    }
}

fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

/// The machine's counters, and the time, seconds since the epoch.
fn look_at_host() -> (Reading, u64) {
    let clocks = read_clocks();
    (Reading::read(Path::new("/proc"), clocks.monotonic_ns), clocks.unix_ns / 1_000_000_000)
}

/// The thread.
struct Task {
    store: StoreUrl,
    copy: Copy,
    obedience: Obedience,
    orders: Orders,
    figures: FigureSource,
    reporter: Reporter,
    acquaintances: Acquaintances,
    /// When the others are looked for again, monotonic.
    meet_at_ns: u64,
    minutes: Minutes,
    control: Option<Box<dyn Control>>,
}

impl Task {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            self.look().await;
            self.report(false).await;
            self.meet().await;
            self.report_host().await;
            tokio::select! {
                _ = &mut stopped => break,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
        self.report(true).await;
        self.minutes.close();
        self.store_minutes().await;
    }

    /// Looks at the machine, and stores the minute that is over.
    async fn report_host(&mut self) {
        let (reading, unix_s) = look_at_host();
        self.minutes.add(reading, unix_s);
        self.store_minutes().await;
    }

    async fn store_minutes(&mut self) {
        let Some(control) = &self.control else { return };
        while let Some(minute) = self.minutes.waiting().first() {
            match tokio::time::timeout(ANSWER_WITHIN, control.report_host(minute)).await {
                Ok(Ok(())) => self.minutes.stored(),
                // It waits for the next time.
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// Reads what the store says, and obeys.
    async fn look(&mut self) {
        let documents = match tokio::time::timeout(ANSWER_WITHIN, self.ask()).await {
            Ok(Ok(documents)) => documents,
            Ok(Err(error)) => return self.obedience.store_is_away(error.to_string()),
            Err(_) => return self.obedience.store_is_away("the store does not answer".to_owned()),
        };
        let Some(wanted) = self.obedience.judge(&documents, wall_clock_error_ns().is_some()) else { return };
        if let Err(error) = self.orders.obey(&wanted.settings) {
            return self.obedience.refuse(format!("{error:#}"));
        }
        self.obedience.obeyed(wanted);
        if let Err(error) = self.copy.write(self.obedience.in_force()) {
            log::warn!("no copy of the configuration is kept: {error:#}");
        }
    }

    async fn ask(&mut self) -> Result<Vec<Document>, StoreError> {
        let control = match self.control.take() {
            Some(control) => control,
            None => open_control(&self.store, true).await?,
        };
        let documents = heads_of(&*control, &self.obedience).await;
        // One that failed is opened anew the next time.
        self.control = documents.is_ok().then_some(control);
        documents
    }

    /// Looks for the others. All of a fleet read each other's rows: the more there are, the less often.
    async fn meet(&mut self) {
        let (Some(meeting), Some(control)) = (&self.figures.meeting, &self.control) else { return };
        let clocks = read_clocks();
        if clocks.monotonic_ns < self.meet_at_ns {
            return;
        }
        match tokio::time::timeout(ANSWER_WITHIN, control.agents(clocks.unix_ns)).await {
            Ok(Ok(rows)) => {
                meeting.meet(&self.acquaintances.update(&rows, clocks.unix_ns, clocks.monotonic_ns));
                self.meet_at_ns = clocks.monotonic_ns + MEET_EVERY_PER_AGENT_NS * rows.len() as u64;
            }
            // Those who were known still are.
            Ok(Err(error)) => log::debug!("the other agents' rows: {error}"),
            Err(_) => log::debug!("the other agents' rows: the store does not answer"),
        }
    }

    async fn report(&mut self, ended: bool) {
        let row = self.reporter.row(self.figures.read(), self.obedience.state(), ended);
        let Some(control) = &self.control else { return };
        match tokio::time::timeout(ANSWER_WITHIN, control.report(&row)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::debug!("no row about this agent: {error}"),
            Err(_) => log::debug!("no row about this agent: the store does not answer"),
        }
    }
}
