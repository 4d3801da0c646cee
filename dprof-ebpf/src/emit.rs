//! Everything that writes events: the ring, or, in the object for kernels without one (feature `perf`), the perf
//! buffer of the CPU. On failure count and return. No wake-up of the ring: the agent looks on its own time, which
//! costs each event 150 to 300 ns less.
//!
//! What a reader would get wrong: the ring has one order over all CPUs, perf buffers have not. So each record in them
//! is preceded by a [`STAMP_BYTES`] long `CLOCK_MONOTONIC` time, by which the agent merges.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use dprof_common::drop_reason::DropReason;

use crate::maps::{DROPS, RECORD, RECORD_BYTES};

#[cfg(not(feature = "perf"))]
pub(crate) use ring::{bare, fixed, is_busy, output, reserve, submit};

#[cfg(feature = "perf")]
pub(crate) use perf::{fixed, is_busy, output, reserve, submit};

/// Room that [`output`] needs before the record.
#[cfg(not(feature = "perf"))]
pub(crate) const STAMP_BYTES: usize = 0;

/// Room that [`output`] needs before the record.
#[cfg(feature = "perf")]
pub(crate) const STAMP_BYTES: usize = dprof_common::event::PERF_STAMP_BYTES;

/// The running program's context: perf buffers are written through it.
#[derive(Clone, Copy)]
pub(crate) struct Out(
    #[cfg_attr(not(feature = "perf"), expect(dead_code, reason = "the ring needs none"))] *mut c_void,
);

impl Out {
    /// Of a program's context.
    #[inline(always)]
    pub(crate) fn of(ctx: &impl EbpfContext) -> Self {
        Self(ctx.as_ptr())
    }
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

/// Reserve, fill, submit.
#[cfg(not(feature = "perf"))]
mod ring {
    use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE};
    use aya_ebpf::helpers::generated::{
        bpf_ringbuf_output, bpf_ringbuf_query, bpf_ringbuf_reserve, bpf_ringbuf_submit,
    };
    use dprof_common::drop_reason::DropReason;
    use dprof_common::limits::FLOOR_BYTES;

    use super::{Out, count};
    use crate::maps::{EVENTS, FLOOR, address};

    const FLAGS: u64 = BPF_RB_NO_WAKEUP as u64;

    /// Room for a `T`, to be filled and given to [`submit`].
    #[inline(always)]
    pub(crate) fn reserve<T: 'static>() -> Option<*mut T> {
        // SAFETY: the verifier sees to it that the room is given back.
        let room = unsafe { bpf_ringbuf_reserve(address(&EVENTS), size_of::<T>() as u64, 0) };
        if room.is_null() {
            count(DropReason::RingFull);
            return None;
        }
        Some(room.cast())
    }

    /// The record is complete.
    #[inline(always)]
    pub(crate) fn submit<T>(_: Out, room: *mut T) {
        // SAFETY: from `reserve`.
        unsafe { bpf_ringbuf_submit(room.cast(), FLAGS) };
    }

    /// Writes a record of fixed size.
    #[inline(always)]
    pub(crate) fn fixed<T: Copy + 'static>(out: Out, record: &T) {
        if let Some(room) = reserve::<T>() {
            // SAFETY: as large as its type.
            unsafe { room.write(*record) };
            submit(out, room);
        }
    }

    /// Whether more than a quarter of the ring waits to be read.
    #[inline(always)]
    pub(crate) fn is_busy() -> bool {
        // SAFETY: the helper takes any map of this type.
        let [waiting, size] = [BPF_RB_AVAIL_DATA, BPF_RB_RING_SIZE]
            .map(|what| unsafe { bpf_ringbuf_query(address(&EVENTS), what.into()) });
        waiting > size / 4
    }

    /// A record of nothing, to compare costs with.
    #[inline(always)]
    pub(crate) fn bare() {
        // SAFETY: the verifier sees to it that the room is given back; it is as large as what is written.
        unsafe {
            let room =
                bpf_ringbuf_reserve(address(&FLOOR), FLOOR_BYTES as u64, 0).cast::<[u64; FLOOR_BYTES / 8]>();
            if !room.is_null() {
                room.write_volatile([0; FLOOR_BYTES / 8]);
                bpf_ringbuf_submit(room.cast(), FLAGS);
            }
        }
    }

    /// Writes `bytes` bytes from `record` on, memory that the verifier knows to be at least `bytes` long.
    #[inline(always)]
    pub(crate) fn output(_: Out, record: *mut u8, bytes: u64) {
        // SAFETY: the helper and the verifier check memory and length.
        if unsafe { bpf_ringbuf_output(address(&EVENTS), record.cast(), bytes, FLAGS) } != 0 {
            count(DropReason::RingFull);
        }
    }
}

/// Fill, stamp, copy.
#[cfg(feature = "perf")]
mod perf {
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
        let result = unsafe {
            bpf_perf_event_output(out.0, address(&EVENTS), BPF_F_CURRENT_CPU, stamped.cast(), bytes)
        };
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

    /// Room for a `T`, to be filled and given to [`submit`].
    #[inline(always)]
    pub(crate) fn reserve<T: 'static>() -> Option<*mut T> {
        borrow()
    }

    /// The record is complete.
    #[inline(always)]
    pub(crate) fn submit<T>(out: Out, room: *mut T) {
        output(out, room.cast(), size_of::<T>() as u64);
        give_back();
    }

    /// Writes a record of fixed size.
    #[inline(always)]
    pub(crate) fn fixed<T: Copy + 'static>(out: Out, record: &T) {
        let mut stamped = Stamped { time_ns: now_ns(), record: *record };
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
}
