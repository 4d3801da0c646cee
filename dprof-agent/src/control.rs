//! The agent's local socket: one line of JSON asks, one line of JSON answers.
//!
//! `{"request":"open_requests","limit":N}` gives `{"open_requests":[…]}`, `{"request":"counters"}` gives
//! `{"counters":{…}}`, anything else `{"error":"…"}`. What a reader would get wrong: the engine answers between
//! two blocks, so a question never stops the stream; and who may ask is decided by the socket's mode and group.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::pipeline::Question;

/// A question is a short line.
const LINE_BYTES_MAX: u64 = 4096;
/// Questions answered at once; further ones wait in the socket's queue.
const CLIENTS_MAX: usize = 16;
/// Open requests listed at most: an answer is one line.
const LIMIT_MAX: usize = 10_000;
/// A client that says nothing for this long is dropped, and the engine is waited for this long.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
enum Request {
    OpenRequests {
        #[serde(default = "limit_default")]
        limit: usize,
    },
    #[serde(alias = "stats")]
    Counters,
}

const fn limit_default() -> usize {
    100
}

/// The listening socket; dropping it removes the file.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A socket that listens, but does not yet answer.
#[derive(Debug)]
pub struct Bound {
    path: PathBuf,
    listener: std::os::unix::net::UnixListener,
}

/// Listens at `path`, while the process still may. A file left by a dead agent is replaced; a live agent's is an
/// error.
pub fn bind(path: &Path) -> anyhow::Result<Bound> {
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        bail!("another agent answers at {}: give this one its own --socket", path.display());
    }
    // Nothing answers: a left-over, or nothing at all.
    let _ = std::fs::remove_file(path);
    let listener = std::os::unix::net::UnixListener::bind(path)
        .with_context(|| format!("listen at {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    listener.set_nonblocking(true)?;
    give_to_caller(path);
    Ok(Bound { path: path.to_owned(), listener })
}

impl Bound {
    /// Answers from now on, within the running tokio runtime.
    pub fn serve(self, questions: mpsc::Sender<Question>) -> anyhow::Result<Control> {
        let listener = UnixListener::from_std(self.listener)?;
        let clients = std::sync::Arc::new(tokio::sync::Semaphore::new(CLIENTS_MAX));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(permit) = std::sync::Arc::clone(&clients).acquire_owned().await else { return };
                let questions = questions.clone();
                tokio::spawn(async move {
                    // A client that goes away early is its own affair.
                    let _ = tokio::time::timeout(PATIENCE, serve(client, questions)).await;
                    drop(permit);
                });
            }
        });
        Ok(Control { path: self.path, task })
    }
}

/// The user who called sudo may ask, and so may those who may read the stores of this machine.
fn give_to_caller(path: &Path) {
    let uid = std::env::var("SUDO_UID").ok().and_then(|id| id.parse::<u32>().ok());
    if let Err(error) = std::os::unix::fs::chown(path, uid, dprof_store::readers_gid()) {
        log::warn!("{} stays with the agent's user: {error}", path.display());
    }
}

async fn serve(client: UnixStream, questions: mpsc::Sender<Question>) -> anyhow::Result<()> {
    let (read, mut write) = client.into_split();
    let mut line = String::new();
    BufReader::new(read.take(LINE_BYTES_MAX)).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(request) => tokio::task::spawn_blocking(move || ask(&request, &questions)).await?,
        Err(error) => Err(anyhow::anyhow!("not a request: {error}")),
    };
    let answer = answer.unwrap_or_else(|error| serde_json::json!({ "error": format!("{error:#}") }));
    write.write_all(format!("{answer}\n").as_bytes()).await?;
    write.shutdown().await?;
    Ok(())
}

fn ask(request: &Request, questions: &mpsc::Sender<Question>) -> anyhow::Result<serde_json::Value> {
    let gone = "the agent is stopping";
    match request {
        Request::OpenRequests { limit } => {
            let limit = (*limit).min(LIMIT_MAX);
            let open = Question::ask(questions, PATIENCE, |answer| Question::OpenRequests { limit, answer });
            Ok(serde_json::json!({ "open_requests": open.context(gone)? }))
        }
        Request::Counters => {
            let counters = Question::ask(questions, PATIENCE, |answer| Question::Counters { answer });
            let counters = counters.context(gone)?;
            let named: serde_json::Map<String, serde_json::Value> =
                counters.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
            Ok(serde_json::json!({ "counters": named }))
        }
    }
}
