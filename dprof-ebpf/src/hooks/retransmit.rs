//! Segments sent again.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use dprof_common::event::{EventHeader, EventKind, RetransmitEvent};

use crate::emit;
use crate::maps::{config, state};
use crate::sock::{TcpSock, Typed};

/// `tp_btf/tcp_retransmit_skb` (4.15): a segment is sent again.
/// Arguments: `const struct sock *sk, const struct sk_buff *skb`, from 6.16 also the error.
#[btf_tracepoint(function = "tcp_retransmit_skb")]
fn on_retransmit(ctx: BtfTracePointContext) -> i32 {
    retransmit(ctx.arg(0), ctx.arg(1));
    0
}

#[inline(always)]
fn retransmit(sk: u64, skb: u64) -> Option<()> {
    let sock = TcpSock::new(sk)?;
    let state = sock.state_ptr(false);
    if state.is_null() {
        return None;
    }
    // SAFETY: storage of this socket.
    let state = unsafe { &*state };
    if state.flags & state::ANNOUNCED == 0 {
        return None;
    }
    // TCP_SKB_CB: seq, then end_seq.
    let cb: [u8; 8] = Typed(skb).copy(config!(offsets.skb_cb));
    let seq = u32::from_ne_bytes([cb[0], cb[1], cb[2], cb[3]]);
    let end_seq = u32::from_ne_bytes([cb[4], cb[5], cb[6], cb[7]]);
    emit::fixed(&RetransmitEvent {
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
    });
    None
}
