//! The perf buffer of the CPU, for kernels without a ring: fill, stamp, copy.

use aya_ebpf::bindings::BPF_F_CURRENT_CPU;
use aya_ebpf::helpers::generated::bpf_perf_event_output;
use dprof_common::drop_reason::DropReason;

use super::{Out, STAMP_BYTES, borrow, count, give_back, now_ns};
use crate::maps::{EVENTS, address};

/// A record with its time.
#[repr(C)]
struct Stamped<T> {
    time_ns: u64,
    record: T,
}

#[inline(always)]
fn write(out: Out, stamped: *mut u8, bytes: u64) {
    // SAFETY: the helper and the verifier check memory and length.
    let result =
        unsafe { bpf_perf_event_output(out.ctx, address(&EVENTS), BPF_F_CURRENT_CPU, stamped.cast(), bytes) };
    // The reader is told by the kernel, too, but only once there is room again: counted here alone.
    if result != 0 {
        count(DropReason::RingFull);
    }
}

/// How full a buffer is, programs are not told: a CPU's own records are all that it can push out.
#[inline(always)]
pub(crate) const fn is_busy() -> bool {
    false
}

/// Writes a record that `fill` writes; whether there was room to fill it.
#[inline(always)]
pub(super) fn record<T: 'static>(out: Out, fill: impl Fn(*mut T)) -> bool {
    let Some(room) = borrow() else { return false };
    fill(room);
    output(out, room.cast(), size_of::<T>() as u64);
    give_back();
    true
}

/// Writes a small record: from the stack, which no interruption shares.
#[inline(always)]
pub(super) fn fixed<T: Copy + 'static>(out: Out, event: &T) {
    let mut stamped = Stamped { time_ns: now_ns(), record: *event };
    write(out, (&raw mut stamped).cast(), size_of::<Stamped<T>>() as u64);
}

/// Writes `bytes` bytes from `record` on, memory that the verifier knows to be at least `bytes` long, with
/// [`STAMP_BYTES`] of room before it.
#[inline(always)]
pub(crate) fn output(out: Out, record: *mut u8, bytes: u64) {
    // SAFETY: by the caller there is room before the record.
    unsafe {
        let stamped = record.sub(STAMP_BYTES);
        stamped.cast::<u64>().write(now_ns());
        write(out, stamped, bytes + STAMP_BYTES as u64);
    }
}
