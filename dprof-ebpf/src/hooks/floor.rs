//! What a program on data costs at the least: nothing, and one bare record. Never loaded by an agent; the measurement
//! of overhead loads both beside an agent and tells its programs' cost as multiples of these.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

/// `tp_btf/sock_send_length` (6.3): does nothing. Arguments: `struct sock *sk, int ret, int flags`.
#[btf_tracepoint(function = "sock_send_length")]
fn floor_empty(_: BtfTracePointContext) -> i32 {
    0
}

/// `tp_btf/sock_send_length` (6.3): writes [`FLOOR_BYTES`] to a ring of its own, without a wake-up. Arguments: as
/// above.
///
/// [`FLOOR_BYTES`]: dprof_common::limits::FLOOR_BYTES
#[cfg(not(feature = "perf"))]
#[btf_tracepoint(function = "sock_send_length")]
fn floor_write(_: BtfTracePointContext) -> i32 {
    crate::emit::bare();
    0
}
