//! `/metrics`, `/healthz`, `/readyz` over HTTP.
//!
//! What a reader would get wrong: nothing here may cost the capture. Connections are bounded, and a full house drops
//! whoever has been there longest: someone who holds connections open keeps nobody out who asks and goes. Whatever the
//! load, figures are gathered at most four times a second.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::Context as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Mutex;
use tokio::task::{AbortHandle, JoinHandle};

use super::{Figures, ProcessFigures, missing, render};
use crate::clock::monotonic_ns;
use crate::live::{Live, PUBLISH_EVERY_NS};
use crate::pipeline::Question;
use crate::source::recording::RecorderCounters;
use crate::words::Meeting;

/// Connections at once: a scraper has one, a person some.
const CONNECTIONS_MAX: usize = 64;
/// The head of a request is here within this.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// A connection lives for this long at most: one request, one answer.
const CONNECTION_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of a request's head; the least that hyper allows.
const HEAD_BYTES_MAX: usize = 8192;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// The engine answers between two blocks; one that does not for this long is stuck.
const ENGINE_WITHIN: Duration = Duration::from_secs(3);
/// Pause after a connection that could not be accepted (no descriptors are left, most likely).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whom to ask.
pub struct Asked {
    /// The stages.
    pub live: Arc<Live>,
    /// The engine.
    pub questions: mpsc::Sender<Question>,
    /// Other agents; `None`: none are told or heard.
    pub meeting: Option<Meeting>,
    /// The recording.
    pub recording: Option<Box<dyn Fn() -> RecorderCounters + Send + Sync>>,
    /// Where events come from.
    pub backend: &'static str,
    /// Start of the agent, nanoseconds since the epoch.
    pub started_unix_ns: u64,
}

impl std::fmt::Debug for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Asked").field("backend", &self.backend).finish_non_exhaustive()
    }
}

/// A port that is taken, but not yet answered at.
#[derive(Debug)]
pub struct Bound(TcpListener);

/// Takes the port, while the process still may.
pub fn bind(address: SocketAddr) -> anyhow::Result<Bound> {
    let listener = TcpListener::bind(address)
        .with_context(|| format!("listen at {address} for --metrics: give another port"))?;
    listener.set_nonblocking(true).context("prepare the port of --metrics")?;
    Ok(Bound(listener))
}

/// Answers until it is dropped.
#[derive(Debug)]
pub struct Served(JoinHandle<()>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Bound {
    /// Answers from now on, within the running tokio runtime.
    pub fn serve(self, asked: Asked) -> anyhow::Result<Served> {
        let listener =
            tokio::net::TcpListener::from_std(self.0).context("answer at the port of --metrics")?;
        let desk = Arc::new(Desk { asked: Arc::new(asked), last: Mutex::default() });
        Ok(Served(tokio::spawn(accept(listener, desk))))
    }
}

async fn accept(listener: tokio::net::TcpListener, desk: Arc<Desk>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        open.retain(|task| !task.is_finished());
        while open.len() >= CONNECTIONS_MAX {
            open.pop_front().inspect(AbortHandle::abort);
        }
        let desk = Arc::clone(&desk);
        let task = tokio::spawn(async move {
            let service = service_fn(move |request| {
                let desk = Arc::clone(&desk);
                async move { Ok::<_, Infallible>(desk.answer(&request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WITHIN)
                .max_buf_size(HEAD_BYTES_MAX)
                .max_headers(HEADERS_MAX)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            // A client that breaks off, or the rules, is its own affair.
            let _ = tokio::time::timeout(CONNECTION_WITHIN, connection).await;
        });
        open.push_back(task.abort_handle());
    }
}

/// Gathers figures, for all who ask at about the same time at once.
struct Desk {
    asked: Arc<Asked>,
    /// The figures that were gathered last, and when (monotonic).
    last: Mutex<Option<(u64, Arc<Figures>)>>,
}

impl Desk {
    async fn answer(&self, request: &Request<Incoming>) -> Response<String> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
        }
        match request.uri().path() {
            "/metrics" => {
                let mut response = text(StatusCode::OK, render(&*self.figures().await));
                let kind = header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            "/healthz" => match self.figures().await.engine {
                Some(_) => text(StatusCode::OK, "ok\n".to_owned()),
                None => text(StatusCode::SERVICE_UNAVAILABLE, "the engine does not answer\n".to_owned()),
            },
            "/readyz" => {
                let missing = missing(&*self.figures().await);
                if missing.is_empty() {
                    text(StatusCode::OK, "ready\n".to_owned())
                } else {
                    text(StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n")
                }
            }
            _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n".to_owned()),
        }
    }

    async fn figures(&self) -> Arc<Figures> {
        let mut last = self.last.lock().await;
        if let Some((at_ns, figures)) = &*last
            && monotonic_ns() < at_ns + PUBLISH_EVERY_NS
        {
            return Arc::clone(figures);
        }
        let asked = Arc::clone(&self.asked);
        let gathered = tokio::task::spawn_blocking(move || gather(&asked)).await;
        let figures = Arc::new(gathered.unwrap_or_default());
        *last = Some((monotonic_ns(), Arc::clone(&figures)));
        figures
    }
}

fn text(status: StatusCode, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn gather(asked: &Asked) -> Figures {
    Figures {
        version: env!("CARGO_PKG_VERSION"),
        backend: asked.backend,
        live: asked.live.snapshot(),
        engine: Question::ask(&asked.questions, ENGINE_WITHIN, |answer| Question::Counters { answer }),
        words: asked.meeting.as_ref().map(|meeting| (meeting.counters(), meeting.tells())),
        recording: asked.recording.as_ref().map(|counters| counters()),
        process: ProcessFigures::read(asked.started_unix_ns),
    }
}
