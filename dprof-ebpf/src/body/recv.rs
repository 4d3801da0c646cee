//! Bytes taken from a socket.

use core::mem::offset_of;

use dprof_common::event::{Arrival, ArrivalsEvent, EventHeader, EventKind, RecvEvent, flag};
use dprof_common::limits::ARRIVALS_MAX;

use crate::access::Access;
use crate::emit::{self, Out};
use crate::maps::{SockState, open_gate};
use crate::payload::{self, InCall};
use crate::sock::TcpSock;
use crate::state::{self as sockets, Watched, segment_idx};

const MSG_OOB: i32 = 0x1;
const MSG_PEEK: i32 = 0x2;
const MSG_TRUNC: i32 = 0x20;
const MSG_ERRQUEUE: i32 = 0x2000;

/// A call that returned `ret` ended.
#[inline(always)]
pub(crate) fn ended<A: Access>(out: Out, sk: u64, ret: i32, flags: i32, mut at: InCall) -> Option<()> {
    let word = open_gate()?;
    if ret <= 0 || flags & (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE) != 0 {
        return None;
    }
    at.may_read &= copies(flags);
    let Watched { sock, state, pid_tgid } = sockets::watched::<A>(out, sk, word)?;
    report(out, sock, state, pid_tgid, ret as u32, at);
    None
}

/// Whether a call with these flags fills its buffers.
#[inline(always)]
pub(crate) fn copies(flags: i32) -> bool {
    flags & MSG_TRUNC == 0
}

/// In a read, under the socket's lock, a segment was consumed. Only of use for `splice` from a socket: its end shows
/// nowhere else.
#[inline(always)]
pub(crate) fn consumed<A: Access>(out: Out, sk: u64) -> Option<()> {
    let word = open_gate()?;
    if !payload::is_splice() {
        return None;
    }
    let sock = TcpSock::<A>::new(sk)?;
    // A socket that is seen for the first time has no earlier position to count from: this makes it one.
    let moved = sock.read_seq().wrapping_sub(sockets::wanted(sock, word)?.reported_seq);
    if moved != 0 && moved < 1 << 31 {
        let Watched { sock, state, pid_tgid } = sockets::watched::<A>(out, sk, word)?;
        report(out, sock, state, pid_tgid, moved, InCall::NOWHERE);
    }
    None
}

/// Writes the events of the last `size` bytes read.
#[inline(always)]
pub(crate) fn report<A: Access>(
    out: Out,
    sock: TcpSock<A>,
    state: &mut SockState,
    pid_tgid: u64,
    size: u32,
    mut at: InCall,
) {
    let read_seq = sock.read_seq();
    let mut flags = 0;
    if !sockets::has_stream_position(sock, state) {
        flags |= flag::NO_STREAM_POSITION;
        at.may_read &= !at.below_call;
    }
    state.reported_seq = read_seq;
    let mut event = RecvEvent {
        header: EventHeader { kind: EventKind::Recv as u8, flags, payload_len: 0, size },
        sock: state.cookie,
        end_pos: sock.recv_pos_of(state, read_seq),
        pid_tgid,
        read_ns: emit::now_ns(),
        arrived_first_ns: 0,
        arrived_last_ns: 0,
    };
    take_arrivals(out, state, read_seq, &mut event);
    payload::emit(out, event, state, pid_tgid as u32, at);
}

/// Takes the segments that the read consumed: all that end at or before `copied_seq`, and looks at the next,
/// whose first bytes may have been read. More than one goes out as a record of its own, before the read's.
#[inline(always)]
fn take_arrivals(out: Out, state: &mut SockState, copied_seq: u32, event: &mut RecvEvent) {
    let waiting = state.segments_in.wrapping_sub(state.segments_out);
    if waiting == 0 {
        event.header.flags |= flag::NO_ARRIVAL;
        return;
    }
    let start_seq = copied_seq.wrapping_sub(event.header.size);
    let first = state.segments_out;
    // The usual case, one segment: no loop, no record.
    let segment = state.segments[segment_idx(first)];
    if waiting == 1 || (copied_seq.wrapping_sub(segment.end_seq) as i32) <= 0 {
        event.arrived_first_ns = segment.time_ns;
        event.arrived_last_ns = segment.time_ns;
        if segment.merged != 0 {
            event.header.flags |= flag::APPROXIMATE;
        }
        if (copied_seq.wrapping_sub(segment.end_seq) as i32) >= 0 {
            state.segments_out = first.wrapping_add(1);
        }
        return;
    }
    // Null, not `None`: the verifier (until 6.2) lets nobody copy the pointer of a `None`, which is undefined.
    let record = emit::borrow::<ArrivalsEvent>().unwrap_or(core::ptr::null_mut());
    let read = Read { copied_seq, start_seq, end_pos: event.end_pos };
    let taken = &raw mut state.taken;
    // SAFETY: state of this socket.
    unsafe { taken.write_volatile(0) };
    let mut turn = 0;
    while turn < ARRIVALS_MAX {
        if !take_one(state, &read, record, event) {
            break;
        }
        turn += 1;
    }
    // SAFETY: as above.
    let taken = unsafe { taken.read_volatile() };
    let n = taken & TAKEN_COUNT;
    event.header.flags |= (taken >> TAKEN_FLAGS_SHIFT) as u8;
    if n == 0 {
        event.header.flags |= flag::NO_ARRIVAL;
    }
    if record.is_null() {
        if n > 1 {
            event.header.flags |= flag::APPROXIMATE;
        }
        return;
    }
    if n > 1 {
        let filled = payload::bounded(n, ARRIVALS_MAX as u32) as usize * size_of::<Arrival>();
        let time_at = offset_of!(ArrivalsEvent, arrivals) + filled;
        // SAFETY: the room is larger than its type by the time; what lies after the first n arrivals does not go out.
        unsafe {
            (*record).header =
                EventHeader { kind: EventKind::Arrivals as u8, flags: 0, payload_len: 0, size: n };
            (*record).sock = event.sock;
            // By the time of the read the agent puts it among others: right before that.
            record.cast::<u8>().add(time_at).cast::<u64>().write(event.read_ns);
            emit::copied(out, record.cast(), (time_at + size_of::<u64>()) as u64);
        }
    }
    emit::give_back();
}

/// Part of [`SockState::taken`] that counts arrivals; above it flags.
const TAKEN_COUNT: u32 = 0xffff;
const TAKEN_FLAGS_SHIFT: u32 = 16;

/// The bytes that a read took.
struct Read {
    /// Sequence number after the last.
    copied_seq: u32,
    /// Of the first.
    start_seq: u32,
    /// Position after the last.
    end_pos: u64,
}

/// Takes the oldest unread segment or looks at it; whether the read may have bytes of the next.
///
/// What is carried from turn to turn lies in the socket's state, not in registers, for the verifier (all kernels): it
/// does not follow the contents of maps, so each turn looks like the last one and the program after it is checked
/// once, not once per number of turns.
#[inline(always)]
fn take_one(state: &mut SockState, read: &Read, record: *mut ArrivalsEvent, event: &mut RecvEvent) -> bool {
    let (out, taken) = (&raw mut state.segments_out, &raw mut state.taken);
    // SAFETY: state of this socket.
    let (idx, mut taken_now) = unsafe { (out.read_volatile(), taken.read_volatile()) };
    if idx == state.segments_in {
        return false;
    }
    let segment = state.segments[segment_idx(idx)];
    let left = read.copied_seq.wrapping_sub(segment.end_seq) as i32;
    // Else left over from an earlier read that took it whole.
    if (read.start_seq.wrapping_sub(segment.end_seq) as i32) < 0 {
        let n = taken_now & TAKEN_COUNT;
        if n == 0 {
            event.arrived_first_ns = segment.time_ns;
        }
        event.arrived_last_ns = segment.time_ns;
        if segment.merged != 0 {
            taken_now |= u32::from(flag::APPROXIMATE) << TAKEN_FLAGS_SHIFT;
        }
        if !record.is_null() {
            // SAFETY: the index is below ARRIVALS_MAX; the room is as large as its type.
            unsafe {
                let arrivals = (&raw mut (*record).arrivals).cast::<Arrival>();
                *arrivals.add(segment_idx(n)) = Arrival {
                    end_pos: read.end_pos.wrapping_sub(left as i64 as u64),
                    time_ns: segment.time_ns,
                };
            }
        }
        // SAFETY: as above.
        unsafe { taken.write_volatile(taken_now + 1) };
    }
    if left < 0 {
        return false;
    }
    // SAFETY: as above.
    unsafe { out.write_volatile(idx.wrapping_add(1)) };
    true
}
