//! A small machine as its kernel programs would report it: two Redis servers, a web server and their clients on
//! loopback, every connection seen at both ends. Times are made up; order, positions and sequence numbers are as
//! `dprof-common/src/event.rs` says.

use std::net::Ipv4Addr;

use bytemuck::bytes_of;
use dprof_agent::clock::ClockReading;
use dprof_agent::source::record::{clock_record, lost_record, process_record};
use dprof_common::drop_reason::DropReason;
use dprof_common::event::{
    CloseEvent, EventHeader, EventKind, ListenEvent, OpenEvent, RecvEvent, SendEvent, flag,
};
use dprof_common::flow::Flow;
use dprof_common::model::ProcessInfo;

const NETNS: u32 = 4_026_531_840;
/// Wall clock less monotonic clock.
const EPOCH_NS: u64 = 1_790_000_000_000_000_000;

/// Who takes part.
#[derive(Clone, Copy)]
pub(crate) struct Process(u32);

/// The records so far.
#[derive(Default)]
pub(crate) struct Machine {
    /// One record each, in the order of capture.
    pub(crate) records: Vec<Vec<u8>>,
    now_ns: u64,
    clock_due_ns: u64,
    n_sockets: u64,
}

/// A connection with both its sockets.
pub(crate) struct Connection {
    ends: [End; 2],
    /// Payload bytes so far, per sender: client, server.
    pos: [u64; 2],
    is_announced: bool,
    flow: [Flow; 2],
}

struct End {
    cookie: u64,
    process: Process,
    isn: u32,
}

/// Index of an end.
pub(crate) const CLIENT: usize = 0;
/// Index of an end.
pub(crate) const SERVER: usize = 1;

impl Machine {
    /// A machine that was started a while ago.
    pub(crate) fn new() -> Self {
        let mut machine = Self { now_ns: 5_000_000_000, ..Self::default() };
        machine.wait(1);
        machine
    }

    /// Lets time pass, with the clock records that a source would add.
    pub(crate) fn wait(&mut self, ns: u64) {
        let end_ns = self.now_ns + ns;
        while self.clock_due_ns <= end_ns {
            self.now_ns = self.now_ns.max(self.clock_due_ns);
            let reading = ClockReading { monotonic_ns: self.now_ns, unix_ns: self.now_ns + EPOCH_NS };
            self.push(&[bytes_of(&clock_record(reading))]);
            self.clock_due_ns = self.now_ns + 100_000_000;
        }
        self.now_ns = end_ns;
    }

    fn push(&mut self, parts: &[&[u8]]) {
        self.records.push(parts.concat());
    }

    /// Describes a process.
    pub(crate) fn process(&mut self, pid: u32, service: &str) -> Process {
        let info = ProcessInfo { pid, comm: service.into(), service: service.into(), container: None };
        self.push(&[&process_record(&info)]);
        Process(pid)
    }

    /// A port listens.
    pub(crate) fn listen(&mut self, port: u16) {
        let header = EventHeader { kind: EventKind::Listen as u8, ..EventHeader::default() };
        let event =
            ListenEvent { header, time_ns: self.now_ns, netns: NETNS, port, ..ListenEvent::default() };
        self.push(&[bytes_of(&event)]);
    }

    /// Says that events were lost.
    pub(crate) fn lose(&mut self, n: u64) {
        self.push(&[bytes_of(&lost_record(DropReason::RingFull, n, self.now_ns))]);
    }

    /// A connection from `client` to `server`, announced with its first data.
    pub(crate) fn connect(&mut self, client: Process, server: Process, port: u16) -> Connection {
        self.n_sockets += 2;
        let n = self.n_sockets;
        let addr = Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
        let client_port = 40_000 + n as u16;
        let flow = |local_port, peer_port| Flow {
            local_addr: addr,
            peer_addr: addr,
            local_port,
            peer_port,
            netns: NETNS,
        };
        let end = |cookie, process, isn| End { cookie, process, isn };
        Connection {
            ends: [
                end(n, client, 0xffff_ff00_u32.wrapping_add(n as u32 * 7919)),
                end(n + 1, server, n as u32 * 104_729),
            ],
            pos: [0, 0],
            is_announced: false,
            flow: [flow(client_port, port), flow(port, client_port)],
        }
    }

    /// Raw positions count the SYN on the connecting side's send direction.
    fn raw(end: usize, is_send: bool, pos: u64) -> u64 {
        pos + u64::from(end == CLIENT && is_send)
    }

    fn announce(&mut self, connection: &Connection, end: usize) {
        let role = if end == CLIENT { flag::ACTIVE } else { flag::PASSIVE };
        let own = &connection.ends[end];
        let other = &connection.ends[1 - end];
        let event = OpenEvent {
            header: EventHeader { kind: EventKind::Open as u8, flags: role, ..EventHeader::default() },
            sock: own.cookie,
            time_ns: self.now_ns,
            pid_tgid: tgid(own.process),
            send_pos: Self::raw(end, true, connection.pos[end]),
            recv_pos: connection.pos[1 - end],
            write_seq: own.isn.wrapping_add(1).wrapping_add(connection.pos[end] as u32),
            copied_seq: other.isn.wrapping_add(1).wrapping_add(connection.pos[1 - end] as u32),
            established_ns: self.now_ns - 1000,
            connect_ns: if end == CLIENT { 30_000 } else { 0 },
            flow: connection.flow[end],
            ..OpenEvent::default()
        };
        self.push(&[bytes_of(&event)]);
    }

    /// `end` writes `bytes` in one call and the other end reads them in one call, all but `n_unseen` of them
    /// captured.
    pub(crate) fn message(&mut self, connection: &mut Connection, end: usize, bytes: &[u8], n_unseen: usize) {
        self.send(connection, end, bytes, n_unseen);
        self.wait(10_000);
        self.recv(connection, 1 - end, bytes, n_unseen);
        self.wait(20_000);
    }

    /// `end` writes `bytes` in one call, all but the last `n_unseen` captured.
    pub(crate) fn send(&mut self, connection: &mut Connection, end: usize, bytes: &[u8], n_unseen: usize) {
        if !connection.is_announced {
            connection.is_announced = true;
            self.announce(connection, CLIENT);
            self.announce(connection, SERVER);
        }
        connection.pos[end] += bytes.len() as u64;
        let seen = &bytes[..bytes.len() - n_unseen];
        let header = EventHeader {
            kind: EventKind::Send as u8,
            flags: flag::DEPARTED,
            payload_len: seen.len() as u16,
            size: bytes.len() as u32,
        };
        let own = &connection.ends[end];
        let event = SendEvent {
            header,
            sock: own.cookie,
            end_pos: Self::raw(end, true, connection.pos[end]),
            pid_tgid: tgid(own.process),
            time_ns: self.now_ns,
            unsent: 0,
            srtt_us: 50,
        };
        self.push(&[bytes_of(&event), seen]);
    }

    /// `end` reads `bytes` in one call, all but the last `n_unseen` captured.
    pub(crate) fn recv(&mut self, connection: &Connection, end: usize, bytes: &[u8], n_unseen: usize) {
        let seen = &bytes[..bytes.len() - n_unseen];
        let header = EventHeader {
            kind: EventKind::Recv as u8,
            flags: 0,
            payload_len: seen.len() as u16,
            size: bytes.len() as u32,
        };
        let own = &connection.ends[end];
        let event = RecvEvent {
            header,
            sock: own.cookie,
            end_pos: connection.pos[1 - end],
            pid_tgid: tgid(own.process),
            read_ns: self.now_ns,
            arrived_first_ns: self.now_ns - 5_000,
            arrived_last_ns: self.now_ns - 5_000,
        };
        self.push(&[bytes_of(&event), seen]);
    }

    /// Both ends close, or are reset.
    pub(crate) fn close(&mut self, connection: &Connection, is_reset: bool) {
        for end in [CLIENT, SERVER] {
            let header = EventHeader {
                kind: EventKind::Close as u8,
                flags: if is_reset { flag::RESET } else { 0 },
                ..EventHeader::default()
            };
            let event = CloseEvent {
                header,
                sock: connection.ends[end].cookie,
                time_ns: self.now_ns,
                send_pos: Self::raw(end, true, connection.pos[end]),
                recv_pos: connection.pos[1 - end],
            };
            self.push(&[bytes_of(&event)]);
            self.wait(1_000);
        }
    }
}

fn tgid(process: Process) -> u64 {
    u64::from(process.0) << 32 | u64::from(process.0)
}

/// A command of Redis.
pub(crate) fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len());
    for word in words {
        bytes += &format!("${}\r\n{word}\r\n", word.len());
    }
    bytes.into_bytes()
}

/// A little of everything: pipelines, values over several calls, calls of which not all was captured, errors,
/// nested calls, a reset, a request that is never answered, HTTP, an unknown protocol, lost events.
pub(crate) fn everything() -> Vec<Vec<u8>> {
    let mut machine = Machine::new();
    let redis = machine.process(100, "redis");
    let web = machine.process(200, "web");
    let curl = machine.process(300, "curl");
    machine.listen(6379);
    machine.listen(8080);

    let mut cache = machine.connect(web, redis, 6379);
    for n in 0..20 {
        machine.message(&mut cache, CLIENT, &command(&["SET", &format!("key:{n}"), "secret"]), 0);
        machine.message(&mut cache, SERVER, b"+OK\r\n", 0);
        let get = command(&["GET", &format!("key:{n}")]);
        machine.message(&mut cache, CLIENT, &get.repeat(5), 0);
        machine.message(&mut cache, SERVER, &b"$6\r\nsecret\r\n".repeat(5), 0);
    }
    // A value over three calls, the second of which was not captured to its end.
    let set = command(&["SET", "large", &"secret".repeat(500)]);
    machine.message(&mut cache, CLIENT, &set[..100], 0);
    machine.message(&mut cache, CLIENT, &set[100..2000], 1500);
    machine.message(&mut cache, CLIENT, &set[2000..], 0);
    machine.message(&mut cache, SERVER, b"-OOM command not allowed when secret\r\n", 0);
    machine.message(&mut cache, CLIENT, &command(&["AUTH", "secret"]), 0);
    machine.message(&mut cache, SERVER, b"-WRONGPASS secret\r\n", 0);

    // A web request that calls Redis on the thread that read it.
    let mut page = machine.connect(curl, web, 8080);
    for n in 0..5 {
        let body = "secret".repeat(n);
        let request = format!(
            "POST /cart/{n} HTTP/1.1\r\nHost: shop\r\nCookie: secret\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        machine.message(&mut page, CLIENT, request.as_bytes(), 0);
        machine.message(&mut cache, CLIENT, &command(&["HGETALL", &format!("cart:{n}")]), 0);
        machine.message(&mut cache, SERVER, b"*2\r\n$6\r\nsecret\r\n:42\r\n", 0);
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n";
        machine.message(&mut page, SERVER, chunked.as_bytes(), 0);
    }
    machine.close(&page, false);

    let mut unknown = machine.connect(curl, web, 8080);
    machine.message(&mut unknown, CLIENT, b"\x16\x03\x01secret", 0);
    machine.message(&mut unknown, SERVER, b"\x16\x03\x03secret", 0);
    machine.close(&unknown, false);

    machine.lose(3);
    let mut reset = machine.connect(curl, redis, 6379);
    machine.message(&mut reset, CLIENT, &command(&["PING"]), 0);
    machine.message(&mut reset, SERVER, b"+PONG\r\n", 0);
    machine.message(&mut reset, CLIENT, &command(&["BLPOP", "jobs", "0"]), 0);
    machine.close(&reset, true);

    let mut hanging = machine.connect(curl, redis, 6379);
    machine.message(&mut hanging, CLIENT, &command(&["BRPOP", "jobs", "0"]), 0);
    machine.wait(2_000_000_000);
    machine.close(&cache, false);
    machine.wait(500_000_000);
    machine.records
}
