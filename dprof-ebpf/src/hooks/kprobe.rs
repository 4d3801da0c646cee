//! Entries of the kernel's functions by kprobe, and raw tracepoints: arguments are numbers.
//!
//! What a reader would get wrong: there are no return probes. The functions that matter sleep, and the kernel has
//! room for a limited number of pending returns; see [`release`] for how ends are told.

use aya_ebpf::macros::{kprobe, raw_tracepoint};
use aya_ebpf::programs::{ProbeContext, RawTracePointContext};

use crate::access::Probed;
use crate::body::{arrival, conn, release, retransmit};
use crate::emit::Out;
use crate::state;

/// `kprobe/tcp_sendmsg_locked`: see `fentry::on_send_entry`.
#[kprobe(function = "tcp_sendmsg_locked")]
fn kprobe_send(ctx: ProbeContext) -> Option<()> {
    release::send_begins(ctx.arg(0)?, ctx.arg(2)?, true)
}

/// `kprobe/do_tcp_sendpages` (until 6.5): see `fentry::on_sendpages_exit`.
#[kprobe(function = "do_tcp_sendpages")]
fn kprobe_sendpages(ctx: ProbeContext) -> Option<()> {
    release::send_begins(ctx.arg(0)?, ctx.arg(3)?, false)
}

/// `kprobe/tcp_recvmsg` (from 5.19): see `fentry::on_recv_exit` and `on_recv_exit_addr`.
#[kprobe(function = "tcp_recvmsg")]
fn kprobe_recv(ctx: ProbeContext) -> Option<()> {
    release::recv_begins(ctx.arg(0)?, ctx.arg(3)?)
}

/// The same until 5.18: `int nonblock` comes before `flags`.
#[kprobe(function = "tcp_recvmsg")]
fn kprobe_recv_nonblock(ctx: ProbeContext) -> Option<()> {
    release::recv_begins(ctx.arg(0)?, ctx.arg(4)?)
}

/// `kprobe/release_sock`: a thread gives a socket's lock back. Arguments: `struct sock *sk`.
#[kprobe(function = "release_sock")]
fn kprobe_release(ctx: ProbeContext) -> Option<()> {
    release::released(Out::of(&ctx), ctx.arg(0)?)
}

/// `kprobe/sock_def_readable`: see `fentry::on_arrival_entry`.
#[kprobe(function = "sock_def_readable")]
fn kprobe_arrival(ctx: ProbeContext) -> Option<()> {
    arrival::arrived::<Probed>(ctx.arg(0)?)
}

/// `kprobe/tcp_v4_destroy_sock`: see `fentry::on_destroy`.
#[kprobe(function = "tcp_v4_destroy_sock")]
fn kprobe_destroy(ctx: ProbeContext) -> Option<()> {
    state::destroyed(ctx.arg(0)?);
    None
}

/// `raw_tp/sk_data_ready` (6.2): see `tp_btf::on_arrival`.
#[raw_tracepoint(tracepoint = "sk_data_ready")]
fn raw_arrival(ctx: RawTracePointContext) -> i32 {
    arrival::arrived::<Probed>(ctx.arg(0));
    0
}

/// `raw_tp/inet_sock_set_state` (4.16): see `tp_btf::on_state`.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
fn raw_state(ctx: RawTracePointContext) -> i32 {
    let (old, new): (i32, i32) = (ctx.arg(1), ctx.arg(2));
    conn::changed::<Probed>(&ctx, Out::of(&ctx), ctx.arg(0), [old as u8, new as u8]);
    0
}

/// `raw_tp/tcp_retransmit_skb` (4.15): see `tp_btf::on_retransmit`.
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
fn raw_retransmit(ctx: RawTracePointContext) -> i32 {
    retransmit::again::<Probed>(Out::of(&ctx), ctx.arg(0), ctx.arg(1));
    0
}
