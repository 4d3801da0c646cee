//! Segments sent again.

use dprof_common::event::{EventHeader, EventKind, RetransmitEvent};

use crate::access::{Access, Ptr};
use crate::emit::{self, Out};
use crate::maps::{config, open_gate, state};
use crate::sock::TcpSock;
use crate::state as sockets;

/// A segment is sent again.
#[inline(always)]
pub(crate) fn again<A: Access>(out: Out, sk: u64, skb: u64) -> Option<()> {
    open_gate()?;
    let sock = TcpSock::<A>::new(sk)?;
    let state = sockets::existing(sock);
    if state.is_null() {
        return None;
    }
    // SAFETY: state of this socket.
    let state = unsafe { &*state };
    if state.flags & state::ANNOUNCED == 0 {
        return None;
    }
    // TCP_SKB_CB: seq, then end_seq.
    let cb: [u8; 8] = Ptr::<A>::new(skb).copy(config!(offsets.skb_cb));
    let seq = u32::from_ne_bytes([cb[0], cb[1], cb[2], cb[3]]);
    let end_seq = u32::from_ne_bytes([cb[4], cb[5], cb[6], cb[7]]);
    emit::fixed(
        out,
        &RetransmitEvent {
            header: EventHeader {
                kind: EventKind::Retransmit as u8,
                flags: 0,
                payload_len: 0,
                size: end_seq.wrapping_sub(seq),
            },
            sock: state.cookie,
            time_ns: emit::now_ns(),
            start_pos: sock.send_pos_of(state, seq),
            end_pos: sock.send_pos_of(state, end_seq),
        },
    );
    None
}
