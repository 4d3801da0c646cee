//! Tracepoints with typed arguments.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::access::{Ptr, Typed};
use crate::body::{arrival, conn, recv, retransmit, send};
use crate::emit::Out;
use crate::maps::config;
use crate::payload::InCall;

/// `tp_btf/sock_send_length` (6.3): after a send, the socket's lock already released.
/// Arguments: `struct sock *sk, int ret, int flags`.
#[btf_tracepoint(function = "sock_send_length")]
fn on_send(ctx: BtfTracePointContext) -> i32 {
    let result: i32 = ctx.arg(1);
    send::ended::<Typed>(Out::by_size(&ctx, result), ctx.arg(0), result, InCall::WHOLE);
    0
}

/// `tp_btf/tcp_sendmsg_locked` (6.16): in a send, under the socket's lock, before each piece that is copied.
/// Arguments: `const struct sock *sk, const struct msghdr *msg, const struct sk_buff *skb, int size_goal`.
#[btf_tracepoint(function = "tcp_sendmsg_locked")]
fn on_send_piece(ctx: BtfTracePointContext) -> i32 {
    let left: u64 = Ptr::<Typed>::new(ctx.arg(1)).load(config!(offsets.msg_left));
    send::began::<Typed>(ctx.arg(0), left, Some(ctx.arg(3)));
    0
}

/// `tp_btf/sock_recv_length` (6.3): after a receive, the socket's lock already released.
/// Arguments: `struct sock *sk, int ret, int flags`.
#[btf_tracepoint(function = "sock_recv_length")]
fn on_recv(ctx: BtfTracePointContext) -> i32 {
    let result: i32 = ctx.arg(1);
    recv::ended::<Typed>(Out::by_size(&ctx, result), ctx.arg(0), result, ctx.arg(2), InCall::WHOLE);
    0
}

/// `tp_btf/tcp_rcv_space_adjust` (4.18): in a read, under the socket's lock, once per segment consumed.
/// Arguments: `struct sock *sk`.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
fn on_splice(ctx: BtfTracePointContext) -> i32 {
    recv::consumed::<Typed>(Out::of(&ctx), ctx.arg(0));
    0
}

/// `tp_btf/sk_data_ready` (6.2): once per data segment put into the receive queue, under the socket's lock,
/// mostly in softirq; not for pure acknowledgements. Arguments: `const struct sock *sk`.
#[btf_tracepoint(function = "sk_data_ready")]
fn on_arrival(ctx: BtfTracePointContext) -> i32 {
    arrival::arrived::<Typed>(ctx.arg(0));
    0
}

/// `tp_btf/inet_sock_set_state` (4.16): a socket changes its TCP state.
/// Arguments: `const struct sock *sk, const int oldstate, const int newstate`.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn on_state(ctx: BtfTracePointContext) -> i32 {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    conn::changed::<Typed>(&ctx, Out::of(&ctx), ctx.arg(0), [old as u8, new as u8]);
    0
}

/// `tp_btf/tcp_retransmit_skb` (4.15): a segment is sent again.
/// Arguments: `const struct sock *sk, const struct sk_buff *skb`, from 6.16 also the error.
#[btf_tracepoint(function = "tcp_retransmit_skb")]
fn on_retransmit(ctx: BtfTracePointContext) -> i32 {
    retransmit::again::<Typed>(Out::of(&ctx), ctx.arg(0), ctx.arg(1));
    0
}
