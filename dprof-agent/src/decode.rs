//! Bytes of a record → [`Event`]: the raw event, checked for length and kind, with its payload still borrowed
//! from the block.
//!
//! What a reader would get wrong: a record may be longer than its fixed part and payload together (the kernel
//! reserves fixed sizes); what is over is ignored. A record that is shorter is refused whole.

use bytemuck::{AnyBitPattern, pod_read_unaligned};
use dprof_common::event::{
    Arrival, ArrivalsEvent, ClockEvent, CloseEvent, EventHeader, EventKind, FirstDepartureEvent, ListenEvent,
    LostEvent, OpenEvent, PortsEvent, RecvEvent, RetransmitEvent, SendEvent, WindowEvent,
};
use dprof_common::limits::ARRIVALS_MAX;
use dprof_common::model::ProcessInfo;

/// One record of the event stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// A socket is seen for the first time.
    Open(OpenEvent),
    /// A connection ended.
    Close(CloseEvent),
    /// A call sent data; the first bytes of it.
    Send(SendEvent, &'a [u8]),
    /// A call received data; the first bytes of it.
    Recv(RecvEvent, &'a [u8]),
    /// Arrival times of the `Recv` that follows on the same socket.
    Arrivals(Arrivals<'a>),
    /// First departure of the `Send` that follows on the same socket.
    FirstDeparture(FirstDepartureEvent),
    /// A segment was sent again.
    Retransmit(RetransmitEvent),
    /// A socket listens, or no longer does.
    Listen(ListenEvent),
    /// A process is described.
    Process(ProcessInfo),
    /// Both clocks.
    Clock(ClockEvent),
    /// Events were lost.
    Lost(LostEvent),
    /// The capture window opened or closed.
    Window(WindowEvent),
    /// Other ports are watched.
    Ports(PortsEvent, Ports<'a>),
}

/// The ports of a [`PortsEvent`], still in the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports<'a>(&'a [u8]);

impl Ports<'_> {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.chunks_exact(size_of::<u16>()).map(pod_read_unaligned)
    }
}

/// The filled entries of an [`ArrivalsEvent`], still in the block: most are looked at once, and 272 bytes need
/// not be copied for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrivals<'a> {
    /// Socket cookie.
    pub sock: u64,
    entries: &'a [u8],
}

impl Arrivals<'_> {
    /// The entries, in stream order.
    pub fn iter(&self) -> impl Iterator<Item = Arrival> {
        self.entries.chunks_exact(size_of::<Arrival>()).map(pod_read_unaligned)
    }
}

/// Why a record is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not of a kind that this version knows.
    #[error("record of unknown kind {0}")]
    UnknownKind(u8),
    /// Shorter than its kind or its own header says.
    #[error("record cut short")]
    Short,
    /// A process record whose body is no description.
    #[error("process record does not hold a process")]
    BadProcess,
}

/// Reads one record.
#[inline(never)]
pub fn decode(record: &[u8]) -> Result<Event<'_>, DecodeError> {
    let kind = *record.first().ok_or(DecodeError::Short)?;
    Ok(match EventKind::from_u8(kind).ok_or(DecodeError::UnknownKind(kind))? {
        EventKind::Open => Event::Open(fixed(record)?),
        EventKind::Close => Event::Close(fixed(record)?),
        EventKind::Send => {
            let event: SendEvent = fixed(record)?;
            Event::Send(event, payload(record, size_of::<SendEvent>(), event.header)?)
        }
        EventKind::Recv => {
            let event: RecvEvent = fixed(record)?;
            Event::Recv(event, payload(record, size_of::<RecvEvent>(), event.header)?)
        }
        EventKind::Arrivals => Event::Arrivals(arrivals(record)?),
        EventKind::FirstDeparture => Event::FirstDeparture(fixed(record)?),
        EventKind::Retransmit => Event::Retransmit(fixed(record)?),
        EventKind::Listen => Event::Listen(fixed(record)?),
        EventKind::Process => Event::Process(process(record)?),
        EventKind::Clock => Event::Clock(fixed(record)?),
        EventKind::Lost => Event::Lost(fixed(record)?),
        EventKind::Window => Event::Window(fixed(record)?),
        EventKind::Ports => Event::Ports(fixed(record)?, Ports(ports(record)?)),
    })
}

fn fixed<T: AnyBitPattern>(record: &[u8]) -> Result<T, DecodeError> {
    record.get(..size_of::<T>()).map(pod_read_unaligned).ok_or(DecodeError::Short)
}

/// Captured bytes: never more than the call moved.
fn payload(record: &[u8], at: usize, header: EventHeader) -> Result<&[u8], DecodeError> {
    let bytes = record.get(at..at + usize::from(header.payload_len)).ok_or(DecodeError::Short)?;
    let moved = usize::try_from(header.size).unwrap_or(usize::MAX);
    Ok(&bytes[..bytes.len().min(moved)])
}

fn arrivals(record: &[u8]) -> Result<Arrivals<'_>, DecodeError> {
    const ENTRIES_AT: usize = size_of::<ArrivalsEvent>() - ARRIVALS_MAX * size_of::<Arrival>();
    let header: EventHeader = fixed(record)?;
    let sock = record.get(size_of::<EventHeader>()..).ok_or(DecodeError::Short).and_then(fixed)?;
    let filled = (header.size as usize).min(ARRIVALS_MAX) * size_of::<Arrival>();
    let entries = record.get(ENTRIES_AT..ENTRIES_AT + filled).ok_or(DecodeError::Short)?;
    Ok(Arrivals { sock, entries })
}

fn ports(record: &[u8]) -> Result<&[u8], DecodeError> {
    let header: EventHeader = fixed(record)?;
    let at = size_of::<PortsEvent>();
    record.get(at..at + usize::from(header.payload_len)).ok_or(DecodeError::Short)
}

fn process(record: &[u8]) -> Result<ProcessInfo, DecodeError> {
    let header: EventHeader = fixed(record)?;
    let at = size_of::<EventHeader>();
    let body = record.get(at..at + usize::from(header.payload_len)).ok_or(DecodeError::Short)?;
    serde_json::from_slice(body).map_err(|_| DecodeError::BadProcess)
}

#[cfg(test)]
mod tests {
    use bytemuck::bytes_of;

    use super::*;

    fn send(size: u32, payload_len: u16) -> SendEvent {
        let header = EventHeader { kind: EventKind::Send as u8, flags: 1, payload_len, size };
        SendEvent { header, sock: 7, end_pos: 9, ..SendEvent::default() }
    }

    #[track_caller]
    #[expect(clippy::needless_pass_by_value, reason = "a literal at every call")]
    fn check(record: &[u8], expected: Result<Event<'_>, DecodeError>) {
        assert_eq!(decode(record), expected);
    }

    #[test]
    fn a_send_borrows_its_payload_and_ignores_what_is_over() {
        let event = send(5, 3);
        let record = [bytes_of(&event), b"abcXYZ"].concat();
        check(&record, Ok(Event::Send(event, b"abc")));
        check(&record[1..][..0], Err(DecodeError::Short));
    }

    #[test]
    fn payload_beyond_the_call_is_cut() {
        let event = send(2, 3);
        check(&[bytes_of(&event), b"abc"].concat(), Ok(Event::Send(event, b"ab")));
    }

    #[test]
    fn every_cut_of_a_record_is_refused() {
        let record = [bytes_of(&send(5, 5)), b"abcde"].concat();
        for len in 0..record.len() {
            check(&record[..len], Err(DecodeError::Short));
        }
        for kind in [0, 9, 63, 69, 255] {
            check(&[kind; 300], Err(DecodeError::UnknownKind(kind)));
        }
    }

    #[test]
    fn every_kind_decodes_at_exactly_its_size() {
        let sizes = [(1, 136), (2, 40), (3, 48), (4, 56), (6, 40), (7, 24), (8, 32), (65, 24), (66, 24)];
        for (kind, size) in sizes.into_iter().chain([(67, 16), (68, 16)]) {
            let mut record = vec![0; size];
            record[0] = kind;
            assert!(decode(&record).is_ok(), "kind {kind}");
            check(&record[..size - 1], Err(DecodeError::Short));
        }
    }

    #[test]
    fn arrivals_give_the_filled_entries_only() {
        let header = EventHeader { kind: EventKind::Arrivals as u8, size: 2, ..EventHeader::default() };
        let mut event = ArrivalsEvent { header, sock: 3, arrivals: [Arrival::default(); ARRIVALS_MAX] };
        event.arrivals[1] = Arrival { end_pos: 10, time_ns: 20 };
        let Ok(Event::Arrivals(arrivals)) = decode(bytes_of(&event)) else { panic!("not arrivals") };
        assert_eq!(arrivals.sock, 3);
        assert_eq!(arrivals.iter().collect::<Vec<_>>(), event.arrivals[..2]);
        event.header.size = u32::MAX;
        let Ok(Event::Arrivals(arrivals)) = decode(bytes_of(&event)) else { panic!("not arrivals") };
        assert_eq!(arrivals.iter().count(), ARRIVALS_MAX);
    }

    #[test]
    fn ports_are_as_many_as_the_header_says() {
        let record = |payload_len: u16, ports: &[u8]| {
            let header = EventHeader { kind: EventKind::Ports as u8, payload_len, ..EventHeader::default() };
            [bytes_of(&PortsEvent { header, time_ns: 5 }), ports].concat()
        };
        let six = record(4, &[80, 0, 235, 24, 9, 9]);
        let Ok(Event::Ports(event, ports)) = decode(&six) else { panic!("not ports") };
        assert_eq!((event.time_ns, ports.iter().collect::<Vec<_>>()), (5, vec![80, 6379]));
        check(&record(4, &[80, 0, 235]), Err(DecodeError::Short));
        // Half a port is none.
        let odd = record(3, &[80, 0, 235]);
        let Ok(Event::Ports(_, ports)) = decode(&odd) else { panic!("not ports") };
        assert_eq!(ports.iter().collect::<Vec<_>>(), [80]);
    }

    #[test]
    fn a_process_is_json() {
        let record = |body: &[u8]| {
            let header = EventHeader { kind: 64, payload_len: body.len() as u16, ..EventHeader::default() };
            [bytes_of(&header), body].concat()
        };
        let body = br#"{"pid":1,"comm":"redis-server","service":"redis","container":null}"#;
        let info =
            ProcessInfo { pid: 1, comm: "redis-server".into(), service: "redis".into(), container: None };
        check(&record(body), Ok(Event::Process(info)));
        check(&record(b"{}"), Err(DecodeError::BadProcess));
        check(&record(b"\xff"), Err(DecodeError::BadProcess));
    }
}
