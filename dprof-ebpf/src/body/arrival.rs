//! Bytes reach a socket: the only place where the segment's own time is still at hand.

use dprof_common::limits::ARRIVALS_MAX;

use crate::access::Access;
use crate::maps::{Segment, open_gate};
use crate::sock::{TCP_LISTEN, TcpSock};
use crate::state::{self, segment_idx};

/// A data segment is in the receive queue; under the socket's lock, mostly in softirq.
#[inline(always)]
pub(crate) fn arrived<A: Access>(sk: u64) -> Option<()> {
    let word = open_gate()?;
    let sock = TcpSock::<A>::new(sk)?;
    if sock.state() == TCP_LISTEN {
        return None;
    }
    // The only writer of `segments_in`.
    let state = state::wanted(sock, word)?;
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
