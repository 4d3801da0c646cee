//! The ring: one for all CPUs, in order.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE};
use aya_ebpf::helpers::generated::{
    bpf_ringbuf_output, bpf_ringbuf_query, bpf_ringbuf_reserve, bpf_ringbuf_submit,
};
use dprof_common::drop_reason::DropReason;
use dprof_common::limits::FLOOR_BYTES;

use super::{Out, count};
use crate::maps::{EVENTS, FLOOR, address};

const FLAGS: u64 = BPF_RB_NO_WAKEUP as u64;

/// Writes a record that `fill` writes; whether there was room.
#[inline(always)]
pub(super) fn record<T: 'static>(fill: impl Fn(*mut T)) -> bool {
    // SAFETY: the verifier sees to it that the room is given back.
    unsafe {
        let room = bpf_ringbuf_reserve(address(&EVENTS), size_of::<T>() as u64, 0);
        if room.is_null() {
            count(DropReason::RingFull);
            return false;
        }
        fill(room.cast());
        bpf_ringbuf_submit(room.cast(), FLAGS);
    }
    true
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
