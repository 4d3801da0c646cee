//! The real binary, fed with recordings: what it prints, stores and says, and how it ends.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use dprof_agent::clock::monotonic_ns;
use dprof_common::model::{Side, Span};
use dprof_store::{Order, RunInfo, SpanQuery, StoreUrl, open_reader};
use serde_json::{Value, json};

use crate::traffic::{CLIENT, Machine, SERVER, command, everything};
use crate::{blocks, record, replay};

/// Longest wait for anything: a loaded machine, not a slow program.
const DEADLINE: Duration = Duration::from_mins(1);

fn agent(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dprof-agent"));
    command.args(args).stdin(Stdio::null()).env_remove("RUST_LOG");
    command
}

fn run(args: &[&str]) -> Output {
    agent(args).output().expect("the agent runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder with a recording of everything in it.
fn folder() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("r.dprof");
    record(&path, false, &blocks(&everything(), || 100));
    let path = path.display().to_string();
    (dir, path)
}

fn store_of(dir: &Path) -> (String, StoreUrl) {
    let url = format!("sqlite:{}", dir.join("store").display());
    let parsed = url.parse().expect("a store");
    (url, parsed)
}

fn read_store(url: &StoreUrl) -> (Vec<Span>, Vec<RunInfo>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    runtime.block_on(async {
        let reader = open_reader(url).await.expect("open the store");
        let query = SpanQuery {
            since_unix_ns: 0,
            until_unix_ns: u64::MAX / 2,
            service: None,
            operation: None,
            kind: None,
            status: None,
            min_duration_ns: None,
            roots_only: false,
            order: Order::Newest,
            limit: 10_000,
        };
        let answer = reader.spans(&query).await.expect("read");
        assert_eq!(answer.warnings, [""; 0]);
        (answer.rows, reader.runs().await.expect("runs"))
    })
}

fn count(spans: &[Span], operation: &str) -> usize {
    spans.iter().filter(|span| span.nearest().is_some_and(|half| half.operation == operation)).count()
}

#[test]
fn a_replay_is_stored_under_the_name_of_the_machine_that_was_recorded() {
    let (dir, recording) = folder();
    let (url, store) = store_of(dir.path());
    let output = run(&["--replay", &recording, "--store", &url, "--label", "rack=r9"]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&format!("dprof-agent: ready: backend replay, store {url}\n")), "{said}");
    assert!(said.contains("dprof-agent: lost: none"), "{said}");
    let (spans, runs) = read_store(&store);
    assert_eq!((count(&spans, "GET"), count(&spans, "SET"), count(&spans, "BLPOP")), (100, 21, 1));
    assert_eq!((count(&spans, "POST /cart/{id}"), count(&spans, "HGETALL")), (5, 5));
    assert_eq!((runs[0].host.as_str(), runs[0].backend.as_str()), ("shop1", "replay"));
    assert_eq!((runs[0].labels["dc"].as_str(), runs[0].labels["rack"].as_str()), ("eu", "r9"));
    let nested = spans.iter().find(|span| span.nearest().is_some_and(|half| half.operation == "HGETALL"));
    assert!(nested.expect("stored").link.is_some(), "called on the thread that read the request");
}

#[test]
fn a_summary_needs_no_store() {
    let (dir, recording) = folder();
    let output =
        agent(&["--replay", &recording, "--summary"]).current_dir(dir.path()).output().expect("runs");
    let (table, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("ready: backend replay, no store"), "{said}");
    let row = |service: &str, operation: &str, kind: &str| -> Vec<String> {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
        let found = table.lines().map(words).find(|row| row[..3] == [service, operation, kind]);
        found.unwrap_or_else(|| panic!("no {service} {operation} {kind} in\n{table}"))
    };
    assert!(table.starts_with("SERVICE"), "{table}");
    assert_eq!(row("redis", "GET", "server")[3..5], ["100", "0"]);
    assert_eq!(row("redis", "SET", "server")[3..5], ["21", "1"]);
    assert_eq!(row("web", "GET", "client")[3..5], ["100", "0"]);
    let files: Vec<_> = std::fs::read_dir(dir.path()).expect("folder").collect();
    assert_eq!(files.len(), 1, "nothing but the recording: {files:?}");
}

#[test]
fn a_recording_can_be_redacted_afterwards() {
    let (dir, recording) = folder();
    let masked = dir.path().join("masked.dprof").display().to_string();
    let again = run(&["--replay", &recording, "--record", &masked, "--record-redacted", "--summary"]);
    let said = text(&again.stderr);
    assert!(
        again.status.success() && said.contains("recording to") && said.contains("values masked"),
        "{said}"
    );
    let bytes: Vec<u8> = replay(Path::new(&masked)).iter().flat_map(|block| block.0.to_vec()).collect();
    assert!(!bytes.windows(6).any(|window| window == b"secret"));
    assert_eq!(std::fs::metadata(&masked).expect("file").permissions().mode() & 0o777, 0o600);
    assert_eq!(text(&run(&["--replay", &masked, "--summary"]).stdout), text(&again.stdout));
}

/// What authenticates, in every place that has one, each with a password that stands nowhere else; and a value.
fn secrets() -> Vec<Vec<u8>> {
    let mut machine = Machine::new();
    let (redis, web) = (machine.process(100, "redis"), machine.process(200, "web"));
    machine.listen(6379);
    machine.listen(8080);
    let mut cache = machine.connect(web, redis, 6379);
    let commands: [&[&str]; 8] = [
        &["AUTH", "hunter2"],
        &["AUTH", "joe", "hunter2"],
        &["HELLO", "3", "AUTH", "joe", "hunter2"],
        &["CONFIG", "SET", "requirepass", "hunter2"],
        &["ACL", "SETUSER", "joe", "on", ">hunter2"],
        &["MIGRATE", "h", "1", "key:1", "0", "9", "AUTH", "hunter2"],
        &["SENTINEL", "SET", "m", "auth-pass", "hunter2"],
        &["NOSUCHCOMMAND", "hunter2"],
    ];
    for words in commands {
        machine.message(&mut cache, CLIENT, &command(words), 0);
        machine.message(&mut cache, SERVER, b"-WRONGPASS hunter2\r\n", 0);
    }
    machine.message(&mut cache, CLIENT, b"auth hunter2\r\n", 0);
    machine.message(&mut cache, SERVER, b"+OK\r\n", 0);
    machine.message(&mut cache, CLIENT, &command(&["SET", "key:1", "plainvalue"]), 0);
    machine.message(&mut cache, SERVER, b"+OK\r\n", 0);
    let mut page = machine.connect(web, redis, 8080);
    let request = "GET http://joe:hunter2@shop/a?password=hunter2&api_key=hunter2&q=plainvalue HTTP/1.1\r\nHost: shop\r\n\
                   Cookie: a=hunter2\r\nAuthorization: Basic hunter2\r\nX-Auth-Token: hunter2\r\n\r\n";
    machine.message(&mut page, CLIENT, request.as_bytes(), 0);
    let response = "HTTP/1.1 200 OK\r\nSet-Cookie: hunter2\r\nContent-Length: 7\r\n\r\nhunter2";
    machine.message(&mut page, SERVER, response.as_bytes(), 0);
    machine.wait(500_000_000);
    machine.records
}

#[test]
fn secrets_are_in_no_store_no_log_and_no_recording_but_one_that_was_asked_for() {
    let dir = tempfile::tempdir().expect("folder");
    let at = |name: &str| dir.path().join(name).display().to_string();
    record(&dir.path().join("r"), false, &blocks(&secrets(), || 100));
    let bytes_of = |name: &str| -> Vec<u8> {
        replay(&dir.path().join(name)).iter().flat_map(|block| block.0.to_vec()).collect()
    };
    let has = |bytes: &[u8], word: &str| bytes.windows(word.len()).any(|window| window == word.as_bytes());
    for (name, options, shows_value, shows_key) in [
        ("plain", &[][..], false, true),
        ("open", &["--capture-values"][..], true, true),
        ("closed", &["--capture-keys", "hash"][..], false, false),
        ("both", &["--capture-values", "--capture-keys", "hash"][..], true, false),
    ] {
        let (url, masked) =
            (format!("sqlite:{}", at(&format!("{name}.store"))), at(&format!("{name}.masked")));
        let store = url.parse().expect("a store");
        let args = ["--replay", &at("r"), "--store", &url, "--record", &masked, "-vv", "--summary"];
        let output = run(&[&args[..], options].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        let spans = read_store(&store).0;
        assert_eq!(spans.len(), 11, "{name}");
        let stored = format!("{spans:?}");
        for said in [&stored, &text(&output.stderr), &text(&output.stdout)] {
            assert!(!said.contains("hunter2"), "{name}: {said}");
        }
        assert_eq!(stored.contains("plainvalue"), shows_value, "{name}: {stored}");
        assert_eq!(stored.contains("key:1"), shows_key, "{name}: {stored}");
        let recorded = bytes_of(&format!("{name}.masked"));
        assert!(
            !has(&recorded, "hunter2") && !has(&recorded, "plainvalue") && has(&recorded, "key:1"),
            "{name}"
        );
    }
    let output = run(&["--replay", &at("r"), "--record", &at("payload"), "--record-payload", "--summary"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(has(&bytes_of("payload"), "hunter2"));
}

#[test]
fn of_a_cut_recording_everything_before_the_cut_is_stored() {
    let (dir, recording) = folder();
    let bytes = std::fs::read(&recording).expect("read");
    std::fs::write(&recording, &bytes[..bytes.len() - 3]).expect("write");
    let (url, store) = store_of(dir.path());
    let output = run(&["--replay", &recording, "--store", &url]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ends early") && said.contains("everything before was used"), "{said}");
    assert_eq!(count(&read_store(&store).0, "GET"), 100);
}

/// Checks the exit code and the last line on stderr, which must be the only one with the cause.
#[track_caller]
fn check_error(args: &[&str], code: i32, expected: &str) {
    let output = run(args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    assert!(said.starts_with("dprof-agent: ") && said.contains(expected), "{args:?}: {said}");
}

#[test]
fn errors_are_one_line_with_cause_and_remedy() {
    let (dir, recording) = folder();
    let at = |name: &str| dir.path().join(name).display().to_string();
    check_error(&["--replay", &at("none"), "--summary"], 1, "No such file or directory");
    std::fs::write(at("text"), "not one").expect("write");
    check_error(&["--replay", &at("text"), "--summary"], 1, "is not a recording: make one with");
    check_error(&["--replay", &recording, "--record", &at("text"), "--summary"], 1, "is no recording");
    check_error(&["--replay", &recording, "--store", &format!("sqlite:{}", at("text"))], 1, "text");
    check_error(&["--replay", &recording, "--store", "mysql:x"], 2, "use sqlite:DIR");
    check_error(&["--replay", &recording, "--port", "1"], 2, "see dprof-agent --help");
    std::fs::write(at("bad.toml"), "[limits]\nmax_open = \"1ms\"\n").expect("write");
    check_error(
        &["--replay", &recording, "--config", &at("bad.toml")],
        2,
        "limits.max_open: 1ms is out of range",
    );
    let mut bytes = std::fs::read(&recording).expect("read");
    bytes[8] = 200;
    std::fs::write(at("newer"), bytes).expect("write");
    check_error(&["--replay", &at("newer"), "--summary"], 1, "update dprof");
}

#[test]
fn an_unknown_key_in_the_configuration_warns_and_the_run_goes_on() {
    let (dir, recording) = folder();
    let config = dir.path().join("agent.toml").display().to_string();
    std::fs::write(&config, "stroe = 1\nhost = \"named-in-file\"\n").expect("write");
    let (url, store) = store_of(dir.path());
    let output = run(&["--replay", &recording, "--config", &config, "--store", &url]);
    let said = text(&output.stderr);
    assert!(output.status.success() && said.contains("unknown key 'stroe' is ignored"), "{said}");
    assert_eq!(read_store(&store).1[0].host, "named-in-file");
}

/// The parts of a recording: header and all parts, without the end mark.
fn parts(dir: &Path, records: &[Vec<u8>]) -> Vec<u8> {
    let path = dir.join("parts.dprof");
    record(&path, false, &blocks(records, || 100));
    let mut bytes = std::fs::read(&path).expect("read");
    bytes.truncate(bytes.len() - 8);
    bytes
}

/// An agent that reads a recording that goes on for ever through a pipe, as it would a kernel.
struct Live {
    child: Child,
    said: mpsc::Receiver<String>,
    socket: PathBuf,
    feeder: std::thread::JoinHandle<()>,
    /// Dropped: the feeder stops feeding and keeps the pipe open until its reader is gone.
    feed: Option<mpsc::Sender<()>>,
}

impl Live {
    fn start(dir: &Path, records: &[Vec<u8>], args: &[&str]) -> Self {
        let pipe = dir.join("pipe");
        let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
        assert!(made.success());
        let socket = dir.join("agent.sock");
        let first = parts(dir, records);
        // Time goes on: clock records for ever.
        let mut machine = Machine::new();
        machine.wait(1);
        let idle = parts(dir, &machine.records);
        let header_len = 16 + u32::from_le_bytes(idle[12..16].try_into().expect("four bytes")) as usize;
        let (feed, fed_on) = mpsc::channel::<()>();
        let feeder = {
            let pipe = pipe.clone();
            std::thread::spawn(move || {
                let mut pipe: File = OpenOptions::new().write(true).open(pipe).expect("open the pipe");
                let mut fed = pipe.write_all(&first);
                while fed.is_ok() && fed_on.try_recv() == Err(mpsc::TryRecvError::Empty) {
                    fed = pipe.write_all(&idle[header_len..]);
                }
                await_hang_up(&pipe);
            })
        };
        let (pipe, socket_text) = (pipe.display().to_string(), socket.display().to_string());
        let mut all = vec!["--replay", &pipe, "--socket", &socket_text];
        all.extend(args);
        let mut child =
            agent(&all).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the agent starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let (lines, said) = mpsc::channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).all(|line| lines.send(line).is_ok()));
        let live = Self { child, said, socket, feeder, feed: Some(feed) };
        live.await_line("ready: backend replay");
        live
    }

    fn await_line(&self, wanted: &str) -> String {
        loop {
            let line = self.said.recv_timeout(DEADLINE).expect("the agent says it in time");
            if line.contains(wanted) {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        // The shell's own: a small system has no program `kill`.
        let killed = Command::new("sh").args(["-c", &format!("kill {name} {}", self.child.id())]).status();
        assert!(killed.expect("kill").success());
    }

    /// Exit code, stdout, and what was said after the last line that was waited for.
    fn finish(mut self) -> (Option<i32>, String, String) {
        let mut table = String::new();
        self.child.stdout.take().expect("piped").read_to_string(&mut table).expect("read");
        let status = self.child.wait().expect("wait");
        self.feeder.join().expect("the feeder ends with its reader");
        (status.code(), table, self.said.iter().collect::<Vec<String>>().join("\n"))
    }

    fn ask(&self, line: &str) -> Value {
        let mut socket = UnixStream::connect(&self.socket).expect("connect");
        socket.write_all(format!("{line}\n").as_bytes()).expect("ask");
        let mut answer = String::new();
        BufReader::new(socket).read_line(&mut answer).expect("an answer");
        serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    }
}

/// Two commands that were answered, one that was not.
fn one_open() -> Vec<Vec<u8>> {
    let mut machine = Machine::new();
    let redis = machine.process(100, "redis");
    let web = machine.process(200, "web");
    machine.listen(6379);
    let mut connection = machine.connect(web, redis, 6379);
    for _ in 0..2 {
        machine.message(&mut connection, CLIENT, &command(&["GET", "a"]), 0);
        machine.message(&mut connection, SERVER, b"$-1\r\n", 0);
    }
    machine.message(&mut connection, CLIENT, &command(&["BLPOP", "jobs", "0"]), 0);
    machine.wait(300_000_000);
    machine.records
}

#[test]
fn a_signal_ends_the_run_with_everything_finished_stored() {
    for signal in ["-TERM", "-INT"] {
        let dir = tempfile::tempdir().expect("folder");
        let (url, store) = store_of(dir.path());
        let live = Live::start(dir.path(), &one_open(), &["--store", &url, "--summary"]);
        // Seen is known from the open request behind the finished ones.
        let deadline_ns = monotonic_ns() + DEADLINE.as_nanos() as u64;
        while live.ask(r#"{"request":"open_requests"}"#)["open_requests"] == json!([]) {
            assert!(monotonic_ns() < deadline_ns, "the open request never shows");
        }
        live.signal(signal);
        let socket = live.socket.clone();
        let (code, table, said) = live.finish();
        assert_eq!(code, Some(0), "{signal}: {said}");
        assert!(said.contains("lost: none") && said.contains("still_open 2"), "{said}");
        assert!(table.contains("GET"), "{table}");
        assert!(!socket.exists(), "the socket is removed");
        assert_eq!(count(&read_store(&store).0, "GET"), 2);
    }
}

/// Waits until nobody reads from the pipe any more.
fn await_hang_up(pipe: &File) {
    use std::os::fd::AsRawFd;
    let mut poll = libc::pollfd { fd: pipe.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one valid pollfd, which lives for the call.
    unsafe { libc::poll(&raw mut poll, 1, DEADLINE.as_millis() as i32) };
}

#[test]
fn a_second_signal_ends_an_agent_that_cannot_end() {
    let dir = tempfile::tempdir().expect("folder");
    let mut live = Live::start(dir.path(), &one_open(), &["--summary"]);
    // A source that neither gives nor ends.
    drop(live.feed.take());
    let deadline_ns = monotonic_ns() + DEADLINE.as_nanos() as u64;
    while live.child.try_wait().expect("wait").is_none() {
        assert!(monotonic_ns() < deadline_ns, "the agent does not end");
        live.signal("-TERM");
    }
    let (code, table, _) = live.finish();
    assert_eq!((code, table.as_str()), (Some(130), ""));
}

#[test]
fn a_run_for_a_time_ends_by_itself() {
    let dir = tempfile::tempdir().expect("folder");
    let live = Live::start(dir.path(), &one_open(), &["--summary", "--for", "100ms"]);
    let (code, table, said) = live.finish();
    assert_eq!(code, Some(0), "{said}");
    assert!(table.starts_with("SERVICE"), "{table}");
}

#[test]
fn the_socket_answers_what_is_asked() {
    let dir = tempfile::tempdir().expect("folder");
    let live = Live::start(dir.path(), &one_open(), &["--summary"]);
    let deadline_ns = monotonic_ns() + DEADLINE.as_nanos() as u64;
    let open = loop {
        let answer = live.ask(r#"{"request":"open_requests","limit":1}"#);
        if let Some(open) = answer["open_requests"].as_array().filter(|open| !open.is_empty()) {
            break open.clone();
        }
        assert!(monotonic_ns() < deadline_ns, "{answer}");
    };
    assert_eq!(open.len(), 1, "the limit holds");
    assert_eq!((&open[0]["operation"], &open[0]["query_text"]), (&json!("BLPOP"), &json!("BLPOP jobs ?")));
    assert!(["client", "server"].contains(&open[0]["kind"].as_str().expect("text")), "{open:?}");
    assert!(open[0]["age_ns"].as_u64().is_some_and(|age_ns| age_ns > 100_000_000), "{open:?}");
    let both = live.ask(r#"{"request":"open_requests"}"#);
    assert_eq!(both["open_requests"].as_array().map(Vec::len), Some(2), "both ends wait");
    let counters = live.ask(r#"{"request":"counters"}"#);
    assert_eq!(counters["counters"]["open_requests"], 2, "{counters}");
    for wrong in ["", "x", "{}", r#"{"request":"nonsense"}"#, r#"{"request":"open_requests","limit":-1}"#] {
        assert!(live.ask(wrong)["error"].as_str().is_some_and(|error| !error.is_empty()), "{wrong}");
    }
    let mode = std::fs::metadata(&live.socket).expect("socket").permissions().mode() & 0o777;
    assert_eq!(mode, 0o660);
    // A line without end is cut off, a silent client harms nobody.
    let silent = UnixStream::connect(&live.socket).expect("connect");
    let mut endless = UnixStream::connect(&live.socket).expect("connect");
    // The agent may have hung up before all of it went out.
    let _ = endless.write_all(&vec![b'x'; 100_000]);
    assert_eq!(live.ask(r#"{"request":"open_requests"}"#), both, "no event, no age");
    drop((silent, endless));
    live.signal("-TERM");
    assert_eq!(live.finish().0, Some(0));
}

#[test]
fn a_socket_left_by_a_dead_agent_is_replaced_and_a_living_ones_is_not() {
    let dir = tempfile::tempdir().expect("folder");
    let socket = dir.path().join("agent.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("bind"));
    assert!(socket.exists(), "left over");
    let live = Live::start(dir.path(), &one_open(), &["--summary"]);
    assert!(live.ask(r#"{"request":"counters"}"#)["counters"].is_object());
    let (dir_two, recording) = folder();
    let socket = socket.display().to_string();
    let second = run(&["--replay", &recording, "--summary", "--socket", &socket]);
    let said = text(&second.stderr);
    assert!(second.status.success(), "{said}");
    assert!(said.contains("another agent answers") && said.contains("--socket"), "{said}");
    drop(dir_two);
    assert!(live.ask(r#"{"request":"counters"}"#)["counters"].is_object(), "the first still answers");
    live.signal("-TERM");
    assert_eq!(live.finish().0, Some(0));
}

#[test]
fn the_halves_of_every_stored_span_are_of_the_recorded_host() {
    let (dir, recording) = folder();
    let (url, store) = store_of(dir.path());
    assert!(run(&["--replay", &recording, "--store", &url, "--host", "other"]).status.success());
    let (spans, _) = read_store(&store);
    assert!(spans.iter().any(|span| span.kind() == Side::Server));
    assert!(
        spans
            .iter()
            .flat_map(|span| [&span.client, &span.server])
            .flatten()
            .all(|half| half.host.host == "other")
    );
}
