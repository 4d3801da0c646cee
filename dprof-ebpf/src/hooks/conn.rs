//! The life of a connection.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use dprof_common::event::{CloseEvent, EventHeader, EventKind, ListenEvent, flag};

use crate::maps::{config, state};
use crate::sock::{TCP_CLOSE, TCP_ESTABLISHED, TCP_LISTEN, TCP_SYN_RECV, TCP_SYN_SENT, TcpSock};
use crate::{emit, filter};

const ECONNRESET: u32 = 104;
const EPIPE: u32 = 32;
const ETIMEDOUT: u32 = 110;

/// `tp_btf/inet_sock_set_state` (4.16): a socket changes its TCP state.
/// Arguments: `const struct sock *sk, const int oldstate, const int newstate`.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn on_state(ctx: BtfTracePointContext) -> i32 {
    let old: i32 = ctx.arg(1);
    let new: i32 = ctx.arg(2);
    change(&ctx, ctx.arg(0), old as u8, new as u8);
    0
}

#[inline(always)]
fn change(ctx: &BtfTracePointContext, sk: u64, old: u8, new: u8) -> Option<()> {
    let sock = TcpSock::new(sk)?;
    if config!(debug) != 0 {
        aya_log_ebpf::debug!(ctx, "tcp state {} -> {}, port {}", old, new, sock.local_port());
    }
    // A child of a listener comes from TCP_LISTEN too, as a copy of it, and goes to TCP_SYN_RECV.
    if new == TCP_LISTEN || (old == TCP_LISTEN && new == TCP_CLOSE) {
        emit::fixed(&ListenEvent {
            header: EventHeader {
                kind: EventKind::Listen as u8,
                flags: if new == TCP_LISTEN { 0 } else { flag::GONE },
                payload_len: 0,
                size: 0,
            },
            time_ns: emit::now_ns(),
            netns: sock.netns(),
            port: sock.local_port(),
            padding: 0,
        });
        return None;
    }
    if new == TCP_SYN_SENT || new == TCP_ESTABLISHED {
        if !filter::socket_wanted(sock) {
            return None;
        }
        let state = sock.state_ptr(true);
        if state.is_null() {
            return None;
        }
        // SAFETY: storage of this socket.
        let state = unsafe { &mut *state };
        let now_ns = emit::now_ns();
        if new == TCP_SYN_SENT {
            state.flags |= state::ACTIVE;
            state.established_ns = now_ns;
        } else {
            if old == TCP_SYN_SENT && state.established_ns != 0 {
                state.connect_ns = now_ns - state.established_ns;
            } else if old == TCP_SYN_RECV && state.flags & state::ACTIVE == 0 {
                state.flags |= state::PASSIVE;
            }
            state.established_ns = now_ns;
        }
    } else if new == TCP_CLOSE {
        let state = sock.state_ptr(false);
        if state.is_null() {
            return None;
        }
        // SAFETY: storage of this socket.
        let state = unsafe { &mut *state };
        if state.flags & state::ANNOUNCED == 0 {
            return None;
        }
        let error: u32 = sock.sk.load(config!(offsets.sk_err));
        let reset = error == ECONNRESET || error == EPIPE || error == ETIMEDOUT;
        emit::fixed(&CloseEvent {
            header: EventHeader {
                kind: EventKind::Close as u8,
                flags: if reset { flag::RESET } else { 0 },
                payload_len: 0,
                size: error,
            },
            sock: state.cookie,
            time_ns: emit::now_ns(),
            send_pos: sock.send_pos(state),
            recv_pos: sock.tcp.load(config!(offsets.bytes_received)),
        });
        // A socket may be connected again: it starts anew.
        state.flags = 0;
        state.established_ns = 0;
        state.connect_ns = 0;
        state.segments_out = state.segments_in;
    }
    None
}
