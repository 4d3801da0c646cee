//! Bytes reach a socket: the only place where the segment's own time is still at hand.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use dprof_common::limits::ARRIVALS_MAX;

use crate::maps::{Segment, state};
use crate::sock::{self, TCP_LISTEN, TcpSock, segment_idx};

/// `tp_btf/sk_data_ready` (6.2): once per data segment put into the receive queue, under the socket's lock,
/// mostly in softirq; not for pure acknowledgements. Arguments: `const struct sock *sk`.
#[btf_tracepoint(function = "sk_data_ready")]
fn on_arrival(ctx: BtfTracePointContext) -> i32 {
    arrival(ctx.arg(0));
    0
}

#[inline(always)]
fn arrival(sk: u64) -> Option<()> {
    let sock = TcpSock::new(sk)?;
    if sock.state() == TCP_LISTEN {
        return None;
    }
    let state = sock.state_ptr(true);
    if state.is_null() {
        return None;
    }
    // SAFETY: storage of this socket. This program is the only writer of `segments_in`, under the lock.
    let state = unsafe { &mut *state };
    sock::prepare(sock, state);
    if state.flags & state::IGNORED != 0 {
        return None;
    }
    let time_ns = sock.clock_cache_ns();
    let end_seq = sock.rcv_nxt();
    let waiting = state.segments_in.wrapping_sub(state.segments_out);
    if waiting < ARRIVALS_MAX as u32 {
        state.segments[segment_idx(state.segments_in)] = Segment { time_ns, end_seq, merged: 0 };
        state.segments_in = state.segments_in.wrapping_add(1);
    } else {
        // Full: the last one takes this segment in. First and last arrival stay exact, those between become
        // upper bounds, and the read says so.
        state.segments[segment_idx(state.segments_in.wrapping_sub(1))] =
            Segment { time_ns, end_seq, merged: 1 };
    }
    None
}
