//! Programs that are loaded and never attached: whether the verifier takes one is a fact about the kernel.

use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_get_socket_cookie, bpf_sk_storage_get, bpf_task_pt_regs,
};
use aya_ebpf::macros::{btf_tracepoint, fentry, kprobe};
use aya_ebpf::programs::{BtfTracePointContext, FEntryContext, ProbeContext};

use crate::access::{Ptr, Typed};
use crate::maps::{SOCKETS, address, config};

/// Socket storage can be reached from tracing programs (5.11).
#[btf_tracepoint(function = "inet_sock_set_state")]
fn fact_socket_storage(ctx: BtfTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    // SAFETY: the verifier checks the socket; nothing is made.
    let state = unsafe { bpf_sk_storage_get(address(&SOCKETS), sk as *mut _, core::ptr::null_mut(), 0) };
    i32::from(state.is_null())
}

/// So can the cookie (5.12).
#[btf_tracepoint(function = "inet_sock_set_state")]
fn fact_socket_cookie(ctx: BtfTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    // SAFETY: the verifier checks the socket.
    unsafe { bpf_get_socket_cookie(sk as *mut _) as i32 }
}

/// Typed tracepoints give registers by helpers (5.15).
#[btf_tracepoint(function = "inet_sock_set_state")]
fn fact_typed_registers(_: BtfTracePointContext) -> i32 {
    registers()
}

/// So do kprobes (5.15).
#[kprobe(function = "release_sock")]
fn fact_probed_registers(_: ProbeContext) -> i32 {
    registers()
}

/// Entries of functions can be attached to with types.
#[fentry(function = "tcp_v4_destroy_sock")]
fn fact_fentry(ctx: FEntryContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    i32::from(Ptr::<Typed>::new(sk).load::<u8>(config!(offsets.skc_state)))
}

#[inline(always)]
fn registers() -> i32 {
    // SAFETY: takes nothing, and then the current task.
    let regs = unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) };
    Ptr::<Typed>::new(regs as u64).load::<u64>(config!(offsets.regs_nr)) as i32
}
