//! Records whose payload holds values into records that do not: same lengths, same spans on replay.
//!
//! What a reader would get wrong: only payload is touched. Times, addresses, sizes and process names stay.

use std::mem::size_of;

use dprof_common::event::{
    ArrivalsEvent, ClockEvent, CloseEvent, EventHeader, EventKind, FirstDepartureEvent, ListenEvent,
    LostEvent, OpenEvent, RecvEvent, RetransmitEvent, SendEvent, WindowEvent, flag,
};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::protocol::Direction;
use crate::protocol::redact::ConnectionMask;

/// Sockets followed at once; beyond, all are forgotten and what they carry is masked up to the next sure
/// boundary.
const SOCKETS_MAX: usize = 65_536;
/// Listeners remembered, to know who is the server on older connections.
const LISTENERS_MAX: usize = 65_536;

/// Masks a stream of records.
#[derive(Debug, Default)]
pub struct Redactor {
    sockets: FxHashMap<u64, Socket>,
    /// Namespace and port.
    listeners: FxHashSet<(u32, u16)>,
    record: Vec<u8>,
}

#[derive(Debug)]
struct Socket {
    mask: ConnectionMask,
    /// Raw position after the last byte of each direction; `None` before the first.
    pos: [Option<u64>; 2],
}

impl Redactor {
    /// The record as it may be written.
    pub fn redact<'a>(&'a mut self, record: &'a [u8]) -> &'a [u8] {
        let kind = record.first().copied().and_then(EventKind::from_u8);
        match kind {
            Some(EventKind::Send) => self.redact_payload(record, Direction::Out, size_of::<SendEvent>()),
            Some(EventKind::Recv) => self.redact_payload(record, Direction::In, size_of::<RecvEvent>()),
            Some(EventKind::Open) => {
                if let Some(open) = fixed::<OpenEvent>(record) {
                    self.open(&open);
                }
                first(record, size_of::<OpenEvent>())
            }
            Some(EventKind::Close) => {
                if let Some(close) = fixed::<CloseEvent>(record) {
                    self.sockets.remove(&close.sock);
                }
                first(record, size_of::<CloseEvent>())
            }
            Some(EventKind::Listen) => {
                if let Some(listen) = fixed::<ListenEvent>(record) {
                    self.listen(&listen);
                }
                first(record, size_of::<ListenEvent>())
            }
            Some(EventKind::Arrivals) => first(record, size_of::<ArrivalsEvent>()),
            Some(EventKind::FirstDeparture) => first(record, size_of::<FirstDepartureEvent>()),
            Some(EventKind::Retransmit) => first(record, size_of::<RetransmitEvent>()),
            Some(EventKind::Clock) => first(record, size_of::<ClockEvent>()),
            Some(EventKind::Lost) => first(record, size_of::<LostEvent>()),
            Some(EventKind::Window) => first(record, size_of::<WindowEvent>()),
            Some(EventKind::Process | EventKind::Ports) => record,
            // A kind that we do not know may hold anything: its header alone is kept.
            None => first(record, size_of::<EventHeader>()),
        }
    }

    fn open(&mut self, open: &OpenEvent) {
        let role = match open.header.flags & (flag::ACTIVE | flag::PASSIVE) {
            flag::ACTIVE => Some(Direction::Out),
            flag::PASSIVE => Some(Direction::In),
            _ => self
                .listeners
                .contains(&(open.flow.netns, open.flow.local_port))
                .then_some(Direction::In)
                .or_else(|| {
                    self.listeners.contains(&(open.flow.netns, open.flow.peer_port)).then_some(Direction::Out)
                }),
        };
        let is_joined = open.established_ns == 0;
        self.make_room();
        self.sockets.insert(open.sock, Socket { mask: ConnectionMask::new(role, is_joined), pos: [None; 2] });
    }

    fn listen(&mut self, listen: &ListenEvent) {
        let listener = (listen.netns, listen.port);
        if listen.header.flags & flag::GONE != 0 {
            self.listeners.remove(&listener);
        } else if self.listeners.len() < LISTENERS_MAX {
            self.listeners.insert(listener);
        }
    }

    fn make_room(&mut self) {
        if self.sockets.len() >= SOCKETS_MAX {
            self.sockets.clear();
        }
    }

    /// Send and Recv share the layout up to the position; `payload_at` is where the payload starts.
    fn redact_payload<'a>(
        &'a mut self,
        record: &'a [u8],
        direction: Direction,
        payload_at: usize,
    ) -> &'a [u8] {
        let (Some(header), Some(sock), Some(end_pos)) =
            (fixed::<EventHeader>(record), u64_at(record, 8), u64_at(record, 16))
        else {
            return &[];
        };
        let payload_len = usize::from(header.payload_len).min(header.size as usize);
        self.record.clear();
        self.record.extend_from_slice(first(record, payload_at + payload_len));
        let Some(payload) = self.record.get_mut(payload_at..) else { return &[] };
        if self.sockets.len() >= SOCKETS_MAX {
            self.sockets.clear();
        }
        let socket = self
            .sockets
            .entry(sock)
            .or_insert_with(|| Socket { mask: ConnectionMask::new(None, true), pos: [None; 2] });
        let start = end_pos.wrapping_sub(u64::from(header.size));
        let pos = socket.pos[direction.idx()].replace(end_pos);
        match pos {
            Some(pos) if start > pos => socket.mask.gap(direction, start - pos),
            // A second writer: whose bytes these are shows later, too late for a mask.
            Some(pos) if start < pos => socket.mask.lose(direction),
            _ => {}
        }
        socket.mask.mask(direction, payload);
        socket.mask.gap(direction, u64::from(header.size) - payload_len as u64);
        &self.record
    }
}

/// What lies beyond the fixed part is padding, and padding may hold anything.
fn first(record: &[u8], len: usize) -> &[u8] {
    &record[..len.min(record.len())]
}

fn fixed<T: bytemuck::AnyBitPattern>(record: &[u8]) -> Option<T> {
    record.get(..size_of::<T>()).map(bytemuck::pod_read_unaligned)
}

fn u64_at(record: &[u8], at: usize) -> Option<u64> {
    record.get(at..at + 8).map(bytemuck::pod_read_unaligned)
}
