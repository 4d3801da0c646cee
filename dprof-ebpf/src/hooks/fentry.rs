//! Entries and exits of the kernel's functions, with typed arguments (5.5 on x86-64).
//!
//! What a reader would get wrong: after an exit's arguments comes the function's result, so its place follows from how
//! many arguments this kernel's function has; where that differs there is a program for each, and BTF says which.

use aya_ebpf::macros::{fentry, fexit};
use aya_ebpf::programs::{FEntryContext, FExitContext};

use crate::access::Typed;
use crate::body::{arrival, recv, send};
use crate::emit::Out;
use crate::payload::InCall;
use crate::state;

/// `fentry/tcp_sendmsg_locked`: a send begins, under the socket's lock.
/// Arguments: `struct sock *sk, struct msghdr *msg, size_t size`.
#[fentry(function = "tcp_sendmsg_locked")]
fn on_send_entry(ctx: FEntryContext) -> i32 {
    send::began::<Typed>(ctx.arg(0), ctx.arg(2), None);
    0
}

/// `fexit/tcp_sendmsg_locked`: a send ends, still under the lock. Result: bytes, or an error.
#[fexit(function = "tcp_sendmsg_locked")]
fn on_send_exit(ctx: FExitContext) -> i32 {
    send::ended::<Typed>(Out::of(&ctx), ctx.arg(0), ctx.arg(3), InCall::OF_TCP);
    0
}

/// `fexit/do_tcp_sendpages` (until 6.5): pages were handed over, as `sendfile` does, under the lock.
/// Arguments: `struct sock *sk, struct page *page, int offset, size_t size, int flags`. Result: bytes, or an error.
#[fexit(function = "do_tcp_sendpages")]
fn on_sendpages_exit(ctx: FExitContext) -> i32 {
    let ret: i64 = ctx.arg(5);
    send::ended::<Typed>(Out::of(&ctx), ctx.arg(0), ret as i32, InCall::NOWHERE);
    0
}

/// `fexit/tcp_recvmsg` (newest): a receive ends, the lock already released.
/// Arguments: `struct sock *sk, struct msghdr *msg, size_t len, int flags`. Result: bytes, or an error.
#[fexit(function = "tcp_recvmsg")]
fn on_recv_exit(ctx: FExitContext) -> i32 {
    recv::ended::<Typed>(Out::of(&ctx), ctx.arg(0), ctx.arg(4), ctx.arg(3), InCall::OF_TCP);
    0
}

/// The same from 5.19 on: `int *addr_len` comes after `flags`.
#[fexit(function = "tcp_recvmsg")]
fn on_recv_exit_addr(ctx: FExitContext) -> i32 {
    recv::ended::<Typed>(Out::of(&ctx), ctx.arg(0), ctx.arg(5), ctx.arg(3), InCall::OF_TCP);
    0
}

/// The same until 5.18: `int nonblock` comes before `flags`, `int *addr_len` after.
#[fexit(function = "tcp_recvmsg")]
fn on_recv_exit_nonblock(ctx: FExitContext) -> i32 {
    recv::ended::<Typed>(Out::of(&ctx), ctx.arg(0), ctx.arg(6), ctx.arg(4), InCall::OF_TCP);
    0
}

/// `fentry/sock_def_readable`: what `sk_data_ready` calls, where there is no such tracepoint (until 6.1).
/// Arguments: `struct sock *sk`.
#[fentry(function = "sock_def_readable")]
fn on_arrival_entry(ctx: FEntryContext) -> i32 {
    arrival::arrived::<Typed>(ctx.arg(0));
    0
}

/// `fentry/tcp_v4_destroy_sock`: a TCP socket of either family is destroyed. Arguments: `struct sock *sk`.
#[fentry(function = "tcp_v4_destroy_sock")]
fn on_destroy(ctx: FEntryContext) -> i32 {
    state::destroyed(ctx.arg(0));
    0
}
