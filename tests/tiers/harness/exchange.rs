//! One request and its response between two threads that read the clock around their system calls, and the check
//! of a span's split against those readings.
//!
//! The split is itself a measurement of time, so here, and only here, times are compared: never with fixed
//! numbers, always with the programs' own readings of the same clock. A call says when something happened only
//! within its own start and end; that interval, and one millisecond (more in an emulated machine), is the margin.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Result, ensure};
use dprof_common::model::{Span, split};
use dprof_tests::clock::monotonic_ns;
use dprof_tests::poll::PATIENCE;

/// How far a part may lie outside of what the programs' own readings allow; more where tests are patient.
const MARGIN_NS: i64 = 1_000_000;

/// Between two clock readings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct When {
    from: u64,
    to: u64,
}

impl When {
    /// From the start of one to the end of another.
    pub(crate) const fn until(self, end: Self) -> Self {
        Self { from: self.from, to: end.to }
    }

    /// How long it may have taken at most.
    pub(crate) const fn length_ns(self) -> u64 {
        self.to - self.from
    }

    /// Bounds of the time from `earlier` to this.
    const fn since(self, earlier: Self) -> (i64, i64) {
        (self.from as i64 - earlier.to as i64, self.to as i64 - earlier.from as i64)
    }
}

/// Does something and says when.
pub(crate) fn timed<T>(work: impl FnOnce() -> std::io::Result<T>) -> Result<(T, When)> {
    let from = monotonic_ns();
    let result = work()?;
    Ok((result, When { from, to: monotonic_ns() }))
}

/// What the client did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientTimes {
    /// The first byte of the request was written.
    pub(crate) wrote_first: When,
    /// The last byte of the request was written.
    pub(crate) wrote_last: When,
    /// The last byte of the response was read.
    pub(crate) read_last: When,
}

/// What the server did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerTimes {
    /// The call that returned the last byte of the request.
    pub(crate) read_last: When,
    /// The call that wrote the first byte of the response.
    pub(crate) wrote_first: When,
    /// The call that wrote the last one, until the client had it if that departs later than the call ends.
    pub(crate) wrote_last: When,
}

/// Writes a request in one call and reads until `response` bytes came, in as many calls as it takes.
pub(crate) fn ask(mut stream: &TcpStream, request: &[u8], response: usize) -> Result<ClientTimes> {
    let ((), wrote) = timed(|| stream.write_all(request))?;
    let read_last = read(stream, response)?;
    Ok(ClientTimes { wrote_first: wrote, wrote_last: wrote, read_last })
}

/// Reads exactly `length` bytes; when the last call was.
pub(crate) fn read(mut stream: &TcpStream, length: usize) -> Result<When> {
    let mut buffer = vec![0; length.min(1 << 20)];
    let mut left = length;
    loop {
        let upto = left.min(buffer.len());
        let (count, when) = timed(|| stream.read(&mut buffer[..upto]))?;
        ensure!(count > 0, "the connection ended {left} bytes early");
        left -= count;
        if left == 0 {
            return Ok(when);
        }
    }
}

/// Fails unless every part of the span's split is what the two programs' clock readings allow, or flagged; the
/// parts sum to the client's duration; none is negative.
#[track_caller]
pub(crate) fn check_split(span: &Span, client: &ClientTimes, server: &ServerTimes) {
    let split = split(span);
    assert!(span.client.is_some() && span.server.is_some(), "one half is missing: {span:#?}");
    for (name, part) in split.parts() {
        assert!(part >= 0, "{name} is {part} ns: {split:#?}");
    }
    let sum: i64 = split.parts().map(|(_, part)| part).sum();
    assert_eq!(sum + split.remainder_ns, span.duration_ns() as i64, "{split:#?}");
    let within = |name: &str, part: Option<i64>, (low, high): (i64, i64)| {
        let Some(part) = part else {
            assert!(split.approximate, "{name} is not known, and nothing says so: {split:#?}");
            return;
        };
        let margin_ns = MARGIN_NS * i64::from(*PATIENCE);
        let allowed = low - margin_ns..=high + margin_ns;
        assert!(
            split.approximate || allowed.contains(&part),
            "{name} is {part} ns, the programs' own clocks say {low} to {high}: {split:#?}\n{client:?}\n{server:?}"
        );
    };
    // On loopback bytes arrive while they are being sent.
    within("request_send", split.request_send_ns, client.wrote_last.since(client.wrote_first));
    within("server_queue", split.server_queue_ns, server.read_last.since(client.wrote_last));
    within("service", split.service_ns, server.wrote_first.since(server.read_last));
    within("streaming", split.streaming_ns, server.wrote_last.since(server.wrote_first));
    within("client_queue", split.client_queue_ns, client.read_last.since(server.wrote_last));
    let sending = |when: When| when.since(when).1;
    within("network", split.network_ns, (0, sending(client.wrote_last) + sending(server.wrote_first)));
    within("remainder", Some(split.remainder_ns), (0, sending(server.wrote_last)));
    within("duration", Some(span.duration_ns() as i64), client.read_last.since(client.wrote_first));
}
