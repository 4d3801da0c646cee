//! `tail --open`: requests in flight, asked of the agent that runs on this machine.
//!
//! One line of JSON each way over its local socket: `{"request":"open_requests","limit":N}`, answered by
//! `{"open_requests":[…]}` or `{"error":"…"}`.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dprof_common::model::Side;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::args::{Format, FormatArgs, NameArgs};
use crate::context::{Context, Failure};
use crate::render::table::{Column, Table};
use crate::render::{Tone, json, table::Cell};
use crate::units::{self, parse_duration};

/// The agent answers from memory: if it has not within this time, it hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Room for more requests than an agent lists.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// What is asked for when filters are applied here; an agent lists no more.
const FILTERED_LIMIT: u32 = 10_000;

/// Lists requests that have no answer yet, oldest first, asked of the agent that runs on this machine.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Requests in flight
    #[arg(long, required = true)]
    open: bool,
    /// The agent's socket
    #[arg(long, env = "DPROF_SOCKET", default_value = "/run/dprof/agent.sock", value_name = "PATH")]
    socket: PathBuf,
    #[command(flatten)]
    names: NameArgs,
    /// Only open for at least this long: 250us, 1.5ms, 2s
    #[arg(long, value_parser = parse_duration, value_name = "DURATION")]
    min_duration: Option<u64>,
    /// At most this many
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    limit: u32,
    #[command(flatten)]
    output: FormatArgs,
}

/// A request without an answer, as the agent tells it.
#[derive(Debug, Deserialize)]
struct OpenRequest {
    span_id: String,
    kind: Side,
    service: String,
    operation: String,
    #[serde(default)]
    query_text: String,
    local: SocketAddr,
    peer: SocketAddr,
    start_unix_ns: u64,
    age_ns: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum AgentAnswer {
    OpenRequests(Vec<OpenRequest>),
    Error(String),
}

#[derive(Debug, Serialize)]
struct Question {
    request: &'static str,
    limit: u32,
}

/// What is printed. Field names are the JSON schema.
#[derive(Debug, Serialize)]
struct OpenRow<'a> {
    span_id: &'a str,
    service: &'a str,
    operation: &'a str,
    kind: &'static str,
    start_time: String,
    duration_ns: u64,
    query_text: Option<&'a str>,
    local: SocketAddr,
    peer: SocketAddr,
}

/// Runs it.
pub(crate) async fn run(args: Args, context: &mut Context<'_>) -> Result<(), Failure> {
    let Args { open: _, socket, names, min_duration, limit, output } = args;
    let filtered = names.service.is_some()
        || names.operation.is_some()
        || names.kind.is_some()
        || min_duration.is_some();
    let asked = if filtered { FILTERED_LIMIT } else { limit };
    let mut requests = ask(&socket, asked).await?;
    let named = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    requests.retain(|request| {
        named(&names.service, &request.service)
            && named(&names.operation, &request.operation)
            && names.kind.is_none_or(|kind| kind == request.kind)
            && min_duration.is_none_or(|min_ns| request.age_ns >= min_ns)
    });
    requests.sort_by_key(|request| std::cmp::Reverse(request.age_ns));
    requests.truncate(limit as usize);
    if output.format == Format::Json {
        return json::array(requests.iter().map(row), context.out);
    }
    if requests.is_empty() {
        context.say(if filtered { "no open request passes these filters" } else { "no request is open" });
        return Ok(());
    }
    let mut table = Table::new([
        Column::number("OPEN FOR", 0),
        Column::whole("KIND", 0),
        Column::text("SERVICE", 0),
        Column::text("OPERATION", 0),
        Column::text("STATEMENT", 3),
        Column::whole("LOCAL", 2),
        Column::whole("PEER", 1),
        Column::whole("SINCE (UTC)", 4),
        Column::whole("SPAN", 5),
    ]);
    for request in &requests {
        table.row([
            Cell::toned(units::duration(request.age_ns), Tone::Bold),
            request.kind.name().into(),
            request.service.as_str().into(),
            request.operation.as_str().into(),
            request.query_text.as_str().into(),
            request.local.to_string().into(),
            request.peer.to_string().into(),
            units::date_time(request.start_unix_ns).into(),
            request.span_id.as_str().into(),
        ]);
    }
    table.write(context.screen, context.out)?;
    Ok(())
}

fn row(request: &OpenRequest) -> OpenRow<'_> {
    OpenRow {
        span_id: &request.span_id,
        service: &request.service,
        operation: &request.operation,
        kind: request.kind.name(),
        start_time: units::rfc3339(request.start_unix_ns),
        duration_ns: request.age_ns,
        query_text: Some(request.query_text.as_str()).filter(|text| !text.is_empty()),
        local: request.local,
        peer: request.peer,
    }
}

async fn ask(socket: &Path, limit: u32) -> Result<Vec<OpenRequest>, Failure> {
    let at = socket.display();
    let line = match tokio::time::timeout(ANSWER_TIMEOUT, exchange(socket, limit)).await {
        Ok(Ok(line)) => line,
        Ok(Err(error)) => return Err(unreachable(socket, &error)),
        Err(_) => {
            return Err(Failure::Error(format!(
                "the agent at {at} gave no answer within {} s: is it overloaded or stopped?",
                ANSWER_TIMEOUT.as_secs()
            )));
        }
    };
    match serde_json::from_slice(&line) {
        Ok(AgentAnswer::OpenRequests(requests)) => Ok(requests),
        Ok(AgentAnswer::Error(message)) => Err(Failure::Error(format!("the agent at {at} says: {message}"))),
        Err(error) => Err(Failure::Error(format!(
            "the answer of {at} is not understood ({error}): are dprof-agent and dprof-cli of one version?"
        ))),
    }
}

async fn exchange(socket: &Path, limit: u32) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).await?;
    let mut question = serde_json::to_vec(&Question { request: "open_requests", limit })?;
    question.push(b'\n');
    stream.write_all(&question).await?;
    let mut line = Vec::new();
    BufReader::new(stream).take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line).await?;
    Ok(line)
}

fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    let at = socket.display();
    Failure::Error(match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no agent listens at {at}: start dprof-agent, or name its --socket")
        }
        io::ErrorKind::PermissionDenied => {
            format!("no permission for {at}: run with sudo, or as the agent's user")
        }
        _ => format!("cannot ask the agent at {at}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Memory, T0, run};
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    /// What `tail --open` does when the agent answers with `answer`; also the question it got.
    fn ask_agent(answer: &'static str, args: &str) -> (Result<(), Failure>, String, String, String) {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let agent = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut question = String::new();
            BufReader::new(&stream).read_line(&mut question).expect("a line");
            (&stream).write_all(answer.as_bytes()).expect("a reader");
            question
        });
        let command = format!("tail --open --socket {} {args}", socket.display());
        let (result, out, words) = run(Memory::default(), 120, &command);
        (result, out, words, agent.join().expect("the agent ends"))
    }

    const ANSWER: &str = concat!(
        r#"{"open_requests":[{"span_id":"00000000000000aa","kind":"client","service":"web","operation":"GET","#,
        r#""query_text":"get a","local":"10.0.0.1:4000","peer":"10.0.0.2:6379","#,
        r#""start_unix_ns":1793707200000000000,"age_ns":1500000},"#,
        r#"{"span_id":"00000000000000bb","kind":"server","service":"redis","operation":"BLPOP","query_text":"","#,
        r#""local":"[::1]:6379","peer":"[::1]:4001","start_unix_ns":1793707200000000000,"age_ns":61000000000}]}"#,
        "\n"
    );

    #[test]
    fn open_requests_are_listed_oldest_first() {
        let (result, out, _, question) = ask_agent(ANSWER, "");
        assert!(result.is_ok(), "{result:?}");
        assert_eq!(question, "{\"request\":\"open_requests\",\"limit\":20}\n");
        assert_eq!(
            out,
            "\
OPEN FOR  KIND    SERVICE  OPERATION  STATEMENT  LOCAL          PEER           SINCE (UTC)              SPAN
  1m 01s  server  redis    BLPOP                 [::1]:6379     [::1]:4001     2026-11-03 12:00:00.000  00000000000000bb
 1.50 ms  client  web      GET        get a      10.0.0.1:4000  10.0.0.2:6379  2026-11-03 12:00:00.000  00000000000000aa
"
        );
    }

    #[test]
    fn json_and_filters() {
        let (_, out, _, question) = ask_agent(ANSWER, "--format json --min-duration 1m");
        let rows: serde_json::Value = serde_json::from_str(&out).expect("json");
        assert_eq!(rows.as_array().map(Vec::len), Some(1));
        assert_eq!(rows[0]["duration_ns"], 61_000_000_000_u64);
        assert_eq!(rows[0]["start_time"], units::rfc3339(T0));
        assert_eq!(rows[0]["query_text"], serde_json::Value::Null);
        assert!(question.contains("10000}"));
        let (_, out, words, _) = ask_agent("{\"open_requests\":[]}\n", "");
        assert_eq!((out.as_str(), words.as_str()), ("", "no request is open\n"));
    }

    #[track_caller]
    fn check_failure(answer: &'static str, expected: &str) {
        let message = ask_agent(answer, "").0.expect_err("fails").to_string();
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn whatever_the_agent_answers_the_cause_is_said() {
        check_failure("{\"error\":\"busy\"}\n", "says: busy");
        check_failure("", "is not understood");
        check_failure("[1,2\n", "is not understood");
        check_failure("{\"open_requests\":[{}]}\n", "is not understood");
        let (result, _, _) = run(Memory::default(), 80, "tail --open --socket /nonexistent/agent.sock");
        assert_eq!(
            result.expect_err("no agent").to_string(),
            "no agent listens at /nonexistent/agent.sock: start dprof-agent, or name its --socket"
        );
    }
}
