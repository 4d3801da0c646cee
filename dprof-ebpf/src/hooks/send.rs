//! Bytes handed to a socket.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use dprof_common::event::{EventHeader, EventKind, FirstDepartureEvent, SendEvent, flag};

use crate::maps::config;
use crate::sock::{self, TcpSock, Typed, Watched};
use crate::{emit, payload};

/// Paced by the fq queueing discipline: the segment leaves after TCP has let it go.
const SK_PACING_FQ: u32 = 2;

/// `tp_btf/sock_send_length` (6.3): after a send, the socket's lock already released.
/// Arguments: `struct sock *sk, int ret, int flags`.
#[btf_tracepoint(function = "sock_send_length")]
fn on_send(ctx: BtfTracePointContext) -> i32 {
    let ret: i32 = ctx.arg(1);
    if ret > 0 {
        send(ctx.arg(0), ret as u32);
    } else {
        nothing_sent(ctx.arg(0));
    }
    0
}

/// `tp_btf/tcp_sendmsg_locked` (6.16): in a send, under the socket's lock, before each piece that is copied.
/// Arguments: `const struct sock *sk, const struct msghdr *msg, const struct sk_buff *skb, int size_goal`.
#[btf_tracepoint(function = "tcp_sendmsg_locked")]
fn on_send_piece(ctx: BtfTracePointContext) -> i32 {
    let left: u64 = Typed(ctx.arg(1)).load(config!(offsets.msg_left));
    let size_goal: i32 = ctx.arg(3);
    large_send(ctx.arg(0), left, size_goal as u64);
    0
}

/// Notes when a call of several segments begins. One that fits a segment leaves when it ends, and `on_send` knows.
#[inline(always)]
fn large_send(sk: u64, left: u64, size_goal: u64) -> Option<()> {
    let sock = TcpSock::new(sk)?;
    // Half the window at a time is pushed out, however large a segment may be (`forced_push`).
    let max_window: u32 = sock.tcp.load(config!(offsets.max_window));
    if left <= size_goal && left <= u64::from(max_window >> 1) {
        return None;
    }
    let state = sock.state_ptr(true);
    if state.is_null() {
        return None;
    }
    // SAFETY: storage of this socket, written under its lock.
    let state = unsafe { &mut *state };
    let write_seq = sock.write_seq();
    // A later piece of the same call; and behind unsent bytes, its first byte leaves when they have.
    if state.sending_ns == 0 && write_seq == sock.snd_nxt() {
        state.sending_ns = emit::now_ns();
        state.sending_seq = write_seq;
    }
    None
}

/// A send failed: if it began as a large one, that is over.
#[inline(always)]
fn nothing_sent(sk: u64) -> Option<()> {
    let state = TcpSock::new(sk)?.state_ptr(false);
    if !state.is_null() {
        // SAFETY: storage of this socket.
        unsafe { (*state).sending_ns = 0 };
    }
    None
}

#[inline(always)]
fn send(sk: u64, size: u32) -> Option<()> {
    let Watched { sock, state, pid_tgid } = sock::watched(sk)?;
    let write_seq = sock.write_seq();
    let unsent = write_seq.wrapping_sub(sock.snd_nxt());
    let end_pos = sock.send_pos(state);
    if state.sending_ns != 0 {
        // With a second writer it may be the other's.
        if state.sending_seq == write_seq.wrapping_sub(size) {
            emit::fixed(&FirstDepartureEvent {
                header: EventHeader {
                    kind: EventKind::FirstDeparture as u8,
                    flags: 0,
                    payload_len: 0,
                    size: 0,
                },
                sock: state.cookie,
                start_pos: end_pos.wrapping_sub(u64::from(size)),
                time_ns: state.sending_ns,
            });
        }
        state.sending_ns = 0;
    }
    let mut flags = 0;
    let time_ns = if unsent < size {
        if unsent == 0 {
            flags |= flag::DEPARTED;
        }
        departed_ns(sock)
    } else {
        emit::now_ns()
    };
    let pacing: u32 = sock.sk.load(config!(offsets.sk_pacing_status));
    if pacing == SK_PACING_FQ {
        flags |= flag::APPROXIMATE;
    }
    let srtt: u32 = sock.tcp.load(config!(offsets.srtt_us));
    let event = SendEvent {
        header: EventHeader { kind: EventKind::Send as u8, flags, payload_len: 0, size },
        sock: state.cookie,
        end_pos,
        pid_tgid,
        time_ns,
        unsent,
        srtt_us: srtt >> 3,
    };
    payload::emit(event, state, pid_tgid as u32, true);
    None
}

/// When the last byte that has left the socket left it.
///
/// `tcp_wstamp_ns` is the last transmission's time, with two exceptions. On a paced socket it is the next departure
/// allowed, in the future: then the clock cache, refreshed before each transmission, is nearer. And whatever comes in
/// refreshes that cache, and whatever goes out (an acknowledgement of it) moves `tcp_wstamp_ns`: a socket whose bytes
/// are all acknowledged has been through that already, and may have been for as long as this thread was off the CPU.
/// It knows better: the delivery-rate sample keeps the transmission time of the segment acknowledged last
/// (`tcp_rate_skb_delivered`), in whole microseconds, taken here from their middle.
#[inline(always)]
fn departed_ns(sock: TcpSock) -> u64 {
    let wstamp: u64 = sock.tcp.load(config!(offsets.tcp_wstamp_ns));
    let cache = sock.clock_cache_ns();
    let latest = if wstamp < cache { wstamp } else { cache };
    if sock.snd_una() != sock.write_seq() {
        return latest;
    }
    let sent_us: u64 = sock.tcp.load(config!(offsets.first_tx_mstamp));
    let sent_ns = sent_us * 1000;
    // The same microsecond: `latest` is exact. An earlier one: it is another transmission's.
    if latest.wrapping_sub(sent_ns) < 1000 { latest } else { sent_ns + 500 }
}
