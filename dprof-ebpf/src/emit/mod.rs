//! Everything that writes events: the buffer of the CPU and the ring, or, in the object for kernels without a ring
//! (feature `perf`), the perf buffer of the CPU. On failure count and return. Nobody is woken up: the agent looks on
//! its own time, which costs each event 150 to 300 ns less.
//!
//! What a reader would get wrong: the ring has one order over all CPUs, the other two have not. Each record in perf
//! buffers is preceded by a [`STAMP_BYTES`] long `CLOCK_MONOTONIC` time, by which the agent merges; in the CPU's own
//! buffer the times that records hold are enough.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_ktime_get_ns;
#[cfg(not(feature = "perf"))]
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use dprof_common::cpu_buffer::{PREFIX_BYTES, RECORD_BYTES_MAX};
use dprof_common::drop_reason::DropReason;
use dprof_common::event::RecvEvent;

use crate::maps::{DROPS, RECORD, RECORD_BYTES};

#[cfg(not(feature = "perf"))]
pub(crate) mod cpu_buffer;
#[cfg(feature = "perf")]
mod perf;
#[cfg(not(feature = "perf"))]
mod ring;

#[cfg(not(feature = "perf"))]
pub(crate) use ring::{bare, is_busy, output};

#[cfg(feature = "perf")]
pub(crate) use perf::{is_busy, output};

/// Room that [`output`] needs before the record.
#[cfg(not(feature = "perf"))]
pub(crate) const STAMP_BYTES: usize = 0;

/// Room that [`output`] needs before the record.
#[cfg(feature = "perf")]
pub(crate) const STAMP_BYTES: usize = dprof_common::event::PERF_STAMP_BYTES;

/// Largest payload that is copied to where its record stays.
pub(crate) const DIRECT_MAX: u32 = (RECORD_BYTES_MAX - PREFIX_BYTES - size_of::<RecvEvent>()) as u32;

/// Where the running program writes.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    /// The program's context: perf buffers are written through it.
    #[cfg_attr(not(feature = "perf"), expect(dead_code, reason = "only perf buffers need it"))]
    ctx: *mut c_void,
    /// Whether it may write the buffer of its CPU.
    #[cfg_attr(feature = "perf", expect(dead_code, reason = "there are none beside perf buffers"))]
    to_cpu_buffer: bool,
}

impl Out {
    /// To the ring, or to perf buffers: of a program's context.
    #[inline(always)]
    pub(crate) fn of(ctx: &impl EbpfContext) -> Self {
        Self { ctx: ctx.as_ptr(), to_cpu_buffer: false }
    }

    /// To the buffer of the CPU where the agent has made them: of a call of `size` bytes, unless its data have no room
    /// there: then all that is said of the call takes the ring, since the two have no order among each other that a
    /// connection's first record would keep. For programs of kernels that have `BPF_XCHG` (5.12) only: older ones refuse
    /// a program for holding it.
    #[inline(always)]
    pub(crate) fn by_size(ctx: &impl EbpfContext, size: i32) -> Self {
        Self { ctx: ctx.as_ptr(), to_cpu_buffer: size <= DIRECT_MAX as i32 }
    }
}

/// Writes a record of fixed size, all of which `fill` writes; whether there was room.
#[inline(always)]
pub(crate) fn record<T: 'static>(out: Out, fill: impl Fn(*mut T)) -> bool {
    #[cfg(not(feature = "perf"))]
    {
        if let Some(slot) = cpu_buffer::begin(out) {
            fill(slot.room().cast());
            slot.end(size_of::<T>());
            return true;
        }
        ring::record(fill)
    }
    #[cfg(feature = "perf")]
    perf::record(out, fill)
}

/// Writes a small record.
#[inline(always)]
pub(crate) fn fixed<T: Copy + 'static>(out: Out, event: &T) {
    #[cfg(not(feature = "perf"))]
    // SAFETY: the room is as large as its type.
    record(out, |room: *mut T| unsafe { room.write(*event) });
    #[cfg(feature = "perf")]
    perf::fixed(out, event);
}

/// Writes `bytes` bytes from `record` on, memory of [`borrow`]: at most [`RECORD_BYTES`].
#[inline(always)]
pub(crate) fn copied(out: Out, record: *mut u8, bytes: u64) {
    #[cfg(not(feature = "perf"))]
    {
        const { assert!(RECORD_BYTES + PREFIX_BYTES <= RECORD_BYTES_MAX) };
        if let Some(slot) = cpu_buffer::begin(out) {
            // SAFETY: the helper and the verifier check memory and length.
            unsafe { bpf_probe_read_kernel(slot.room().cast(), bytes as u32, record.cast()) };
            slot.end(bytes as usize);
            return;
        }
    }
    output(out, record, bytes);
}

/// Counts a loss.
#[inline(always)]
pub(crate) fn count(reason: DropReason) {
    if let Some(counter) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's slot.
        unsafe { *counter += 1 };
    }
}

/// This CPU's room for a record that is too large for the stack, unless a program that this one interrupted fills it.
/// To be given to [`output`] if the record is to go out, and then to [`give_back`].
#[inline(always)]
pub(crate) fn borrow<T: 'static>() -> Option<*mut T> {
    const { assert!(size_of::<T>() <= RECORD_BYTES) };
    let slot = RECORD.get_ptr_mut(0)?;
    // SAFETY: this CPU's slot; set back by `give_back`.
    unsafe {
        if (*slot).busy != 0 {
            count(DropReason::ScratchBusy);
            return None;
        }
        (*slot).busy = 1;
        Some((&raw mut (*slot).record).cast())
    }
}

/// The room of [`borrow`] is free again.
#[inline(always)]
pub(crate) fn give_back() {
    if let Some(slot) = RECORD.get_ptr_mut(0) {
        // SAFETY: this CPU's slot.
        unsafe { (*slot).busy = 0 };
    }
}

/// `CLOCK_MONOTONIC` now.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: takes nothing.
    unsafe { bpf_ktime_get_ns() }
}
