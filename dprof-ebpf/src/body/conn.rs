//! The life of a connection.

use aya_ebpf::EbpfContext;
use dprof_common::event::{CloseEvent, EventHeader, EventKind, ListenEvent, flag};

use crate::access::Access;
use crate::emit::{self, Out};
use crate::filter;
use crate::maps::{SockState, config, gate_word, state};
use crate::sock::{TCP_CLOSE, TCP_ESTABLISHED, TCP_LISTEN, TCP_SYN_RECV, TCP_SYN_SENT, TcpSock};
use crate::state as sockets;

const ECONNRESET: u32 = 104;
const EPIPE: u32 = 32;
const ETIMEDOUT: u32 = 110;

/// A socket goes from one TCP state to another.
#[inline(always)]
pub(crate) fn changed<A: Access>(
    ctx: &impl EbpfContext,
    out: Out,
    sk: u64,
    [old, new]: [u8; 2],
) -> Option<()> {
    let sock = TcpSock::<A>::new(sk)?;
    if config!(debug) != 0 {
        aya_log_ebpf::debug!(ctx, "tcp state {} -> {}, port {}", old, new, sock.local_port());
    }
    // A child of a listener comes from TCP_LISTEN too, as a copy of it, and goes to TCP_SYN_RECV.
    if new == TCP_LISTEN || (old == TCP_LISTEN && new == TCP_CLOSE) {
        emit::fixed(
            out,
            &ListenEvent {
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
            },
        );
        return None;
    }
    if new == TCP_SYN_SENT || new == TCP_ESTABLISHED {
        if !filter::socket_wanted(sock, gate_word()) {
            return None;
        }
        let state = sockets::made(sock);
        if state.is_null() {
            return None;
        }
        // SAFETY: state of this socket.
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
        let state = sockets::existing(sock);
        if state.is_null() {
            return None;
        }
        // SAFETY: state of this socket.
        let state = unsafe { &mut *state };
        if state.flags & state::ANNOUNCED != 0 {
            closed(out, sock, state);
        }
        // A socket may be connected again: it starts anew.
        state.flags = 0;
        state.established_ns = 0;
        state.connect_ns = 0;
        state.segments_out = state.segments_in;
    }
    None
}

/// Tells that a socket that was announced is closed.
#[inline(always)]
fn closed<A: Access>(out: Out, sock: TcpSock<A>, state: &SockState) {
    let error: u32 = sock.sk.load(config!(offsets.sk_err));
    let reset = error == ECONNRESET || error == EPIPE || error == ETIMEDOUT;
    emit::fixed(
        out,
        &CloseEvent {
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
        },
    );
}
