//! Scripts of events → records → the engine → text.
//!
//! A line is `TIME SOCKET OPERATION…`, times in microseconds of the monotonic clock:
//! ```text
//! 0   c open active 10.0.0.1:5000 10.0.0.2:6379 th=7/8   roles: active passive old_active old_passive
//! 10  c send Q3:get                                      options below
//! 12  s recv Q3:get arr=11
//! 90  c close                                            or: close reset
//! 5   - listen 6379 | process 7 redis | tick | lost 3 | window opens | window closes | c resent 0 7
//! ```
//! Options of `open`: `th=PID/TID`, `at=OUT/IN` (bytes gone before), `connect=US`. Of `send` and `recv`: `th=`,
//! `size=N` (the text is the first bytes of N), `pay=N` (captured bytes), `end=POS` (position read by the hook;
//! the stage's own goes on by size), `unsent=N`, `arr=US` or `arr=FIRST,LAST`, `noarr`, `seg=END:US,…`, `first=US`, `approx`,
//! `lost` (the bytes flow, the event does not come). Positions in scripts are those of the wire, without SYN.
//!
//! Every script runs with its records cut into blocks in three ways; all must give the same text.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use bytemuck::bytes_of;
use dprof_common::event::{
    Arrival, ArrivalsEvent, ClockEvent, CloseEvent, EventHeader, EventKind, FirstDepartureEvent, ListenEvent,
    LostEvent, OpenEvent, PortsEvent, RecvEvent, RetransmitEvent, SendEvent, WindowEvent, flag,
};
use dprof_common::flow::Flow;
use dprof_common::limits::ARRIVALS_MAX;
use dprof_common::model::{Half, HostInfo, ProcessInfo, RunId, Span, rpc_identity};

use super::toy;
use crate::engine::{Engine, EngineConfig, EngineCounters, Output};
use crate::link::LinkOptions;
use crate::source::{Block, BlockBuilder};

/// Wall clock less monotonic clock in scripts.
pub(super) const EPOCH_NS: u64 = 1_700_000_000_000_000_000;

/// Network namespace of every socket.
pub(super) const NETNS: u32 = 4_026_531_840;

#[derive(Clone, Default)]
struct StageSocket {
    cookie: u64,
    syn: u64,
    pid_tgid: u64,
    wire: [u64; 2],
}

/// Makes records.
#[derive(Default)]
pub(super) struct Stage {
    sockets: HashMap<String, StageSocket>,
    pub(super) records: Vec<Vec<u8>>,
}

fn header(kind: EventKind, flags: u8, payload_len: usize, size: u32) -> EventHeader {
    EventHeader { kind: kind as u8, flags, payload_len: payload_len as u16, size }
}

fn addr16(addr: &SocketAddr) -> [u8; 16] {
    match addr.ip() {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(ip) => ip.octets(),
    }
}

/// Initial sequence number of the direction from one address to another.
fn isn(from: &SocketAddr, to: &SocketAddr) -> u32 {
    let word = |addr: &SocketAddr| {
        addr16(addr)
            .iter()
            .fold(u32::from(addr.port()), |word, byte| word.wrapping_mul(31) + u32::from(*byte))
    };
    rpc_identity(word(from), word(to), 0).0 as u32
}

fn threads(text: &str) -> u64 {
    let (pid, tid) = text.split_once('/').expect("th=PID/TID");
    pid.parse::<u64>().expect("pid") << 32 | tid.parse::<u64>().expect("tid")
}

fn us(text: &str) -> u64 {
    text.parse::<u64>().expect("microseconds") * 1000
}

impl Stage {
    /// The records of a script, after a first clock record.
    pub(super) fn of(script: &str) -> Self {
        let mut stage = Self::default();
        stage.clock(0);
        script.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(|line| stage.line(line));
        stage
    }

    fn record(&mut self, parts: &[&[u8]]) {
        self.records.push(parts.concat());
    }

    fn clock(&mut self, monotonic_ns: u64) {
        let event = ClockEvent {
            header: header(EventKind::Clock, 0, 0, 0),
            monotonic_ns,
            unix_ns: EPOCH_NS + monotonic_ns,
        };
        self.record(&[bytes_of(&event)]);
    }

    pub(super) fn line(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let mut word = || words.next().unwrap_or_else(|| panic!("'{line}' is cut short"));
        let (time_ns, name, operation) = (us(word()), word(), word());
        match operation {
            "open" => {
                let (role, local, peer) = (word(), word(), word());
                self.open(time_ns, name, role, local, peer, &words.collect::<Vec<_>>());
            }
            "send" | "recv" => {
                let text = word();
                self.call(time_ns, name, operation == "send", text.as_bytes(), &words.collect::<Vec<_>>());
            }
            "close" => {
                let flags = if words.next() == Some("reset") { flag::RESET } else { 0 };
                let socket = &self.sockets[name];
                let event = CloseEvent {
                    header: header(EventKind::Close, flags, 0, 0),
                    sock: socket.cookie,
                    time_ns,
                    send_pos: socket.wire[0] + socket.syn + 1,
                    recv_pos: socket.wire[1] + 1,
                };
                self.record(&[bytes_of(&event)]);
            }
            "resent" => {
                let socket = &self.sockets[name];
                let mut pos = || word().parse::<u64>().expect("position") + socket.syn;
                let event = RetransmitEvent {
                    header: header(EventKind::Retransmit, 0, 0, 0),
                    sock: socket.cookie,
                    time_ns,
                    start_pos: pos(),
                    end_pos: pos(),
                };
                self.record(&[bytes_of(&event)]);
            }
            "listen" => {
                let event = ListenEvent {
                    header: header(EventKind::Listen, 0, 0, 0),
                    time_ns,
                    netns: NETNS,
                    port: word().parse().expect("port"),
                    padding: 0,
                };
                self.record(&[bytes_of(&event)]);
            }
            "process" => {
                let (pid, service) = (word().parse().expect("pid"), word().to_owned());
                let info = ProcessInfo { pid, comm: service.clone(), service, container: None };
                let body = serde_json::to_vec(&info).expect("a process is JSON");
                let header = header(EventKind::Process, 0, body.len(), 0);
                self.record(&[bytes_of(&header), &body]);
            }
            "lost" => {
                let event = LostEvent {
                    header: header(EventKind::Lost, 0, 0, 0),
                    time_ns,
                    count: word().parse().expect("count"),
                };
                self.record(&[bytes_of(&event)]);
            }
            "window" => {
                let flags = if word() == "opens" { flag::OPENED } else { 0 };
                let event = WindowEvent { header: header(EventKind::Window, flags, 0, 0), time_ns };
                self.record(&[bytes_of(&event)]);
            }
            "ports" => {
                let mut flags = if word() == "begin" { flag::BEGINS } else { 0 };
                let list = word();
                if list == "all" {
                    flags |= flag::ALL;
                }
                let ports: Vec<u8> = list
                    .split(',')
                    .filter_map(|port| port.parse::<u16>().ok())
                    .flat_map(u16::to_le_bytes)
                    .collect();
                let event = PortsEvent { header: header(EventKind::Ports, flags, ports.len(), 0), time_ns };
                self.record(&[bytes_of(&event), &ports]);
            }
            "tick" => self.clock(time_ns),
            other => panic!("'{other}' is no operation"),
        }
    }

    fn open(&mut self, time_ns: u64, name: &str, role: &str, local: &str, peer: &str, options: &[&str]) {
        let (local, peer): (SocketAddr, SocketAddr) =
            (local.parse().expect("address"), peer.parse().expect("address"));
        let is_active = role.ends_with("active");
        let cookie = self.sockets.len() as u64 + 1;
        let mut socket = StageSocket {
            cookie,
            syn: u64::from(is_active),
            pid_tgid: (cookie << 32) | cookie,
            wire: [0; 2],
        };
        let mut connect_ns = 0;
        for option in options {
            match option.split_once('=') {
                Some(("th", ids)) => socket.pid_tgid = threads(ids),
                Some(("at", at)) => {
                    let (out, inn) = at.split_once('/').expect("at=OUT/IN");
                    socket.wire = [out.parse().expect("position"), inn.parse().expect("position")];
                }
                Some(("connect", time)) => connect_ns = us(time),
                _ => panic!("'{option}' is no option of open"),
            }
        }
        let flags = match role {
            "active" => flag::ACTIVE,
            "passive" => flag::PASSIVE,
            _ => 0,
        };
        let event = OpenEvent {
            header: header(EventKind::Open, flags, 0, 0),
            sock: cookie,
            time_ns,
            pid_tgid: socket.pid_tgid,
            send_pos: socket.wire[0] + socket.syn,
            recv_pos: socket.wire[1],
            write_seq: isn(&local, &peer).wrapping_add(socket.wire[0] as u32),
            copied_seq: isn(&peer, &local).wrapping_add(socket.wire[1] as u32),
            established_ns: time_ns,
            connect_ns,
            cgroup_id: 1,
            comm: *b"comm\0\0\0\0\0\0\0\0\0\0\0\0",
            flow: Flow {
                local_addr: addr16(&local),
                peer_addr: addr16(&peer),
                local_port: local.port(),
                peer_port: peer.port(),
                netns: NETNS,
            },
        };
        self.sockets.insert(name.to_owned(), socket);
        self.record(&[bytes_of(&event)]);
    }

    pub(super) fn call(&mut self, time_ns: u64, name: &str, is_send: bool, text: &[u8], options: &[&str]) {
        let socket = self.sockets.get_mut(name).unwrap_or_else(|| panic!("socket {name} is not open"));
        let (mut size, mut pay, mut end, mut lost) = (text.len() as u64, text.len(), None, false);
        let (mut unsent, mut pid_tgid, mut flags, mut departing_ns) = (0, socket.pid_tgid, 0, 0);
        let (mut first_ns, mut last_ns, mut segments) = (time_ns - 1000, time_ns - 1000, Vec::new());
        for option in options {
            match option.split_once('=').unwrap_or((option, "")) {
                ("th", ids) => pid_tgid = threads(ids),
                ("size", n) => size = n.parse().expect("size"),
                ("pay", n) => pay = n.parse().expect("bytes"),
                ("end", pos) => end = Some(pos.parse::<u64>().expect("position")),
                ("unsent", n) => unsent = n.parse().expect("bytes"),
                ("arr", times) => {
                    let (first, last) = times.split_once(',').unwrap_or((times, times));
                    (first_ns, last_ns) = (us(first), us(last));
                }
                ("noarr", _) => {
                    (first_ns, last_ns) = (0, 0);
                    flags |= flag::NO_ARRIVAL;
                }
                ("seg", list) => {
                    let segment = |text: &str| {
                        let (end, time) = text.split_once(':').expect("seg=END:US");
                        Arrival { end_pos: end.parse().expect("position"), time_ns: us(time) }
                    };
                    segments = list.split(',').map(segment).collect();
                    first_ns = segments[0].time_ns;
                    last_ns = segments[segments.len() - 1].time_ns;
                }
                ("first", time) => departing_ns = us(time),
                ("approx", _) => flags |= flag::APPROXIMATE,
                ("lost", _) => lost = true,
                _ => panic!("'{option}' is no option of a call"),
            }
        }
        let wire = &mut socket.wire[usize::from(!is_send)];
        *wire += size;
        let end = end.unwrap_or(*wire);
        let (sock, syn) = (socket.cookie, socket.syn);
        if lost {
            return;
        }
        let payload = &text[..pay.min(text.len())];
        if is_send {
            flags |= if unsent == 0 { flag::DEPARTED } else { 0 };
            if departing_ns != 0 {
                let header = header(EventKind::FirstDeparture, 0, 0, 0);
                let start_pos = end + syn - size;
                let event = FirstDepartureEvent { header, sock, start_pos, time_ns: departing_ns };
                self.record(&[bytes_of(&event)]);
            }
            let event = SendEvent {
                header: header(EventKind::Send, flags, payload.len(), size as u32),
                sock,
                end_pos: end + syn,
                pid_tgid,
                time_ns,
                unsent,
                srtt_us: 50,
            };
            self.record(&[bytes_of(&event), payload]);
        } else {
            if !segments.is_empty() {
                let mut arrivals = [Arrival::default(); ARRIVALS_MAX];
                arrivals[..segments.len()].copy_from_slice(&segments);
                let header = header(EventKind::Arrivals, 0, 0, segments.len() as u32);
                self.record(&[bytes_of(&ArrivalsEvent { header, sock, arrivals })]);
            }
            let event = RecvEvent {
                header: header(EventKind::Recv, flags, payload.len(), size as u32),
                sock,
                end_pos: end,
                pid_tgid,
                read_ns: time_ns,
                arrived_first_ns: first_ns,
                arrived_last_ns: last_ns,
            };
            self.record(&[bytes_of(&event), payload]);
        }
    }

    /// The records in blocks of `n`.
    pub(super) fn blocks(&self, n: usize) -> Vec<Block> {
        let mut builder = BlockBuilder::default();
        self.records
            .chunks(n)
            .map(|records| {
                for record in records {
                    builder.push(&[record]);
                }
                builder.take()
            })
            .collect()
    }
}

/// What came of a script.
pub(super) struct Run {
    pub(super) engine: Engine,
    pub(super) out: Output,
    pub(super) counters: EngineCounters,
}

/// Generous limits, short waits.
pub(super) fn config() -> EngineConfig {
    let host = HostInfo { host: "h".into(), run_id: RunId(1), labels: BTreeMap::new() };
    EngineConfig {
        host: Arc::new(host),
        unknown: false,
        max_open_ns: 1_000_000_000,
        hold_ns: 100_000_000,
        open_requests_max: 10_000,
        held_max: 10_000,
        connections_max: 10_000,
        clock_offset_ns: 0,
        clock_drift_ppm: 0.0,
        link: LinkOptions::default(),
    }
}

pub(super) fn run_with(config: EngineConfig, script: &str, block_records: usize) -> Run {
    let mut engine = Engine::with_protocols(config, toy::PROTOCOLS);
    let mut out = Output::default();
    for block in Stage::of(script).blocks(block_records) {
        engine.push(&block, &mut out);
    }
    engine.finish(&mut out);
    let counters = engine.counters();
    Run { engine, out, counters }
}

pub(super) fn run(script: &str) -> Run {
    run_with(config(), script, usize::MAX)
}

/// Runs `script` and compares the spans, one per line, in the order of their start:
/// `OPERATION STATUS c=START..END s=START..END cause extras`, times in microseconds.
#[track_caller]
pub(super) fn check(script: &str, expected: &str) -> Run {
    check_with(&config(), script, expected)
}

#[track_caller]
pub(super) fn check_with(config: &EngineConfig, script: &str, expected: &str) -> Run {
    let run = run_with(config.clone(), script, usize::MAX);
    let lines = |text: &str| {
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    let text = show(&run.out.spans);
    assert_eq!(lines(&text), lines(expected), "\nspans:\n{text}\ncounters: {:#?}", nonzero(&run.counters));
    for block_records in [1, 3] {
        let other = run_with(config.clone(), script, block_records);
        assert_eq!(other.out.spans, run.out.spans, "blocks of {block_records} records");
        assert_eq!(other.out.rollups, run.out.rollups, "blocks of {block_records} records");
        assert_eq!(other.counters, run.counters, "blocks of {block_records} records");
    }
    run
}

pub(super) fn nonzero(counters: &EngineCounters) -> Vec<(&'static str, u64)> {
    counters.iter().filter(|(_, value)| *value != 0).collect()
}

/// Microseconds of the script.
pub(super) fn script_us(unix_ns: u64) -> i64 {
    unix_ns.wrapping_sub(EPOCH_NS) as i64 / 1000
}

/// The spans as text.
pub(super) fn show(spans: &[Span]) -> String {
    let mut spans: Vec<_> = spans.iter().collect();
    spans.sort_by_key(|span| (span.start_ns(), span.nearest().map(|half| half.request_message_id)));
    let name = |id| {
        spans
            .iter()
            .find(|span| span.span_id.0 == id)
            .and_then(|span| span.nearest())
            .map(|h| h.operation.clone())
    };
    let mut text = String::new();
    for span in &spans {
        let nearest = span.nearest().expect("a span has a half");
        let _ = write!(text, "{} {}", nearest.operation, nearest.status.name());
        if !nearest.status_code.is_empty() {
            let _ = write!(text, ":{}", nearest.status_code);
        }
        for (side, half) in [("c", &span.client), ("s", &span.server)] {
            if let Some(half) = half {
                let _ = write!(
                    text,
                    " {side}={}..{}",
                    script_us(half.times.start_ns),
                    script_us(half.times.end_ns)
                );
            }
        }
        match (&span.link, span.root) {
            (Some(link), _) => {
                let cause = name(link.parent.0).unwrap_or_else(|| "gone".into());
                let _ = write!(text, " <{cause}");
            }
            (None, Some(root)) => {
                let _ = write!(text, " {}", root.name());
            }
            (None, None) => text.push_str(" rootless"),
        }
        if span.trace_id != span.span_id.as_root_trace() {
            let trace = name(span.trace_id.0 as u64).unwrap_or_else(|| format!("{:x}", span.trace_id.0));
            let _ = write!(text, " in:{trace}");
        }
        if span.flags.contains(dprof_common::model::SpanFlags::FRAGMENT) {
            text.push_str(" fragment");
        }
        if nearest.batch > 1 {
            let _ = write!(text, " batch={}", nearest.batch);
        }
        for (side, half) in [("c", &span.client), ("s", &span.server)] {
            let names: Vec<_> = half.iter().flat_map(|half| half.flags.names()).collect();
            if !names.is_empty() {
                let _ = write!(text, " {side}:{}", names.join("+"));
            }
        }
        text.push('\n');
    }
    text
}

/// The half of a side, of the only span with this operation.
#[track_caller]
pub(super) fn half<'a>(run: &'a Run, operation: &str, side: &str) -> &'a Half {
    let mut halves = run.out.spans.iter().filter_map(|span| {
        let half = if side == "c" { span.client.as_ref() } else { span.server.as_ref() };
        half.filter(|half| half.operation == operation)
    });
    let half = halves.next().unwrap_or_else(|| panic!("no {side} half of {operation}"));
    assert!(halves.next().is_none(), "several {side} halves of {operation}");
    half
}

/// A client and a server on two addresses of this host.
pub(super) const PAIR: &str = "
    0 c open active 10.0.0.1:5000 10.0.0.2:6379 th=1/1
    0 s open passive 10.0.0.2:6379 10.0.0.1:5000 th=2/2
";
