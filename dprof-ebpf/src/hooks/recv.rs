//! Bytes taken from a socket.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use dprof_common::event::{Arrival, ArrivalsEvent, EventHeader, EventKind, RecvEvent, flag};
use dprof_common::limits::ARRIVALS_MAX;

use crate::maps::{EVENTS, SockState, state};
use crate::sock::{self, TcpSock, Watched, segment_idx};
use crate::{emit, payload};

const MSG_OOB: i32 = 0x1;
const MSG_PEEK: i32 = 0x2;
const MSG_TRUNC: i32 = 0x20;
const MSG_ERRQUEUE: i32 = 0x2000;

/// `tp_btf/sock_recv_length` (6.3): after a receive, the socket's lock already released.
/// Arguments: `struct sock *sk, int ret, int flags`.
#[btf_tracepoint(function = "sock_recv_length")]
fn on_recv(ctx: BtfTracePointContext) -> i32 {
    let ret: i32 = ctx.arg(1);
    let flags: i32 = ctx.arg(2);
    if ret > 0 && flags & (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE) == 0 {
        recv(ctx.arg(0), ret as u32, flags & MSG_TRUNC == 0);
    }
    0
}

/// `tp_btf/tcp_rcv_space_adjust` (4.18): in a read, under the socket's lock, once per segment consumed. Only of
/// use for `splice` from a socket, which raises no other hook. Arguments: `struct sock *sk`.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
fn on_splice(ctx: BtfTracePointContext) -> i32 {
    if payload::is_splice() {
        splice(ctx.arg(0));
    }
    0
}

#[inline(always)]
fn splice(sk: u64) -> Option<()> {
    let sock = TcpSock::new(sk)?;
    let state = sock.state_ptr(true);
    if state.is_null() {
        return None;
    }
    // SAFETY: storage of this socket.
    let state = unsafe { &mut *state };
    let moved = sock.copied_seq().wrapping_sub(state.reported_seq);
    // A socket that is seen for the first time has no earlier position to count from.
    if state.flags & state::READY != 0 && moved != 0 && moved < 1 << 31 {
        recv(sk, moved, false);
    } else {
        sock::prepare(sock, state);
    }
    None
}

#[inline(always)]
fn recv(sk: u64, size: u32, may_read: bool) -> Option<()> {
    let Watched { sock, state, pid_tgid } = sock::watched(sk)?;
    let copied_seq = sock.copied_seq();
    let end_pos = sock.recv_pos(state);
    state.reported_seq = copied_seq;
    let mut event = RecvEvent {
        header: EventHeader { kind: EventKind::Recv as u8, flags: 0, payload_len: 0, size },
        sock: state.cookie,
        end_pos,
        pid_tgid,
        read_ns: emit::now_ns(),
        arrived_first_ns: 0,
        arrived_last_ns: 0,
    };
    take_arrivals(state, copied_seq, &mut event);
    payload::emit(event, state, pid_tgid as u32, may_read);
    None
}

/// Takes the segments that the read consumed: all that end at or before `copied_seq`, and looks at the next,
/// whose first bytes may have been read. More than one goes out as a record of its own, before the read's.
#[inline(always)]
fn take_arrivals(state: &mut SockState, copied_seq: u32, event: &mut RecvEvent) {
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
    let mut entry = EVENTS.reserve_untyped::<ArrivalsEvent>(0);
    let mut n = 0_u32;
    let mut taken = 0_u32;
    let mut idx = 0_u32;
    while idx < ARRIVALS_MAX as u32 {
        if idx >= waiting {
            break;
        }
        let segment = state.segments[segment_idx(first.wrapping_add(idx))];
        let consumed = (copied_seq.wrapping_sub(segment.end_seq) as i32) >= 0;
        // Left over from an earlier read that took it whole.
        let stale = (start_seq.wrapping_sub(segment.end_seq) as i32) >= 0;
        if !stale {
            if n == 0 {
                event.arrived_first_ns = segment.time_ns;
            }
            event.arrived_last_ns = segment.time_ns;
            if segment.merged != 0 {
                event.header.flags |= flag::APPROXIMATE;
            }
            if let Some(entry) = entry.as_mut() {
                let left = copied_seq.wrapping_sub(segment.end_seq) as i32;
                // SAFETY: idx < ARRIVALS_MAX bounds n; the entry is as large as its type.
                unsafe {
                    let arrivals = (&raw mut (*entry.as_mut_ptr()).arrivals).cast::<Arrival>();
                    *arrivals.add(segment_idx(n)) = Arrival {
                        end_pos: event.end_pos.wrapping_sub(left as i64 as u64),
                        time_ns: segment.time_ns,
                    };
                }
            }
            n += 1;
        }
        if !consumed {
            break;
        }
        taken += 1;
        idx += 1;
    }
    state.segments_out = first.wrapping_add(taken);
    if n == 0 {
        event.header.flags |= flag::NO_ARRIVAL;
    }
    if let Some(mut entry) = entry {
        if n > 1 {
            // SAFETY: the entry is as large as its type; user space reads only the first n arrivals.
            unsafe {
                let record = entry.as_mut_ptr();
                (*record).header =
                    EventHeader { kind: EventKind::Arrivals as u8, flags: 0, payload_len: 0, size: n };
                (*record).sock = event.sock;
            }
            entry.submit(aya_ebpf::bindings::BPF_RB_NO_WAKEUP.into());
        } else {
            entry.discard(aya_ebpf::bindings::BPF_RB_NO_WAKEUP.into());
        }
    }
}
