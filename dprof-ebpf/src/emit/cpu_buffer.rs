//! The buffer of the CPU: a record is put together where it stays, under no lock that another CPU takes.
//!
//! What a reader would get wrong: a program can be interrupted by another on the same CPU, by an interrupt or, where
//! the kernel lets it, by another thread. Only one may write at a time: the other finds the buffer busy and takes the
//! ring. And records become readable by one plain store after they are written, which is an order only on processors
//! that keep stores in order, as x86-64 does.

use core::arch::asm;

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use dprof_common::cpu_buffer::{self, BLOCK_BYTES, CpuBuffer, PREFIX_BYTES, RECORD_BYTES_MAX};

use super::Out;
use crate::maps::{BLOCKS, CPU_BUFFERS, config};

/// Room for one record, at most [`RECORD_BYTES_MAX`] with its prefix. To be given back with [`Slot::end`].
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    buffer: *mut CpuBuffer,
    /// Of the prefix.
    at: *mut u8,
    start: u64,
}

/// Room in the buffer of this CPU; `None` = the record is to go through the ring.
#[inline(always)]
pub(crate) fn begin(out: Out) -> Option<Slot> {
    let blocks = config!(blocks_per_cpu);
    if !out.to_cpu_buffer || blocks == 0 {
        return None;
    }
    // SAFETY: takes nothing.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let buffer = CPU_BUFFERS.get_ptr_mut(cpu)?;
    // SAFETY: an entry of the map, which lives as long as the program.
    if unsafe { exchange(&raw mut (*buffer).busy, 1) } != 0 {
        return None;
    }
    // SAFETY: as above; only the program that set `busy` writes.
    let written = unsafe { (&raw const (*buffer).written).read_volatile() };
    let start = cpu_buffer::start(written);
    // SAFETY: as above. The agent's cache line: looked at where it matters only.
    let is_full = offset_of(start) == 0
        && cpu_buffer::is_full(start, unsafe { (&raw const (*buffer).read).read_volatile() }, blocks);
    let room =
        if is_full { None } else { BLOCKS.get_ptr_mut(cpu * blocks + cpu_buffer::block(start, blocks)) };
    let Some(block) = room else {
        // SAFETY: as above.
        unsafe { (&raw mut (*buffer).busy).write_volatile(0) };
        return None;
    };
    // For the verifier (all kernels): a bound that it can see on the very number that is added.
    let offset = crate::payload::bounded(offset_of(start), (BLOCK_BYTES - RECORD_BYTES_MAX) as u32);
    // SAFETY: inside the block with all of the largest record, by the bound.
    let at = unsafe { block.cast::<u8>().add(offset as usize) };
    Some(Slot { buffer, at, start })
}

/// Offset of the start of a record in its block.
#[inline(always)]
const fn offset_of(start: u64) -> u32 {
    start as u32 & (BLOCK_BYTES as u32 - 1)
}

/// `BPF_XCHG` (5.12): writes `new`, gives what was there, in one step. The compiler has no atomics for this target.
///
/// # Safety
/// `at` is writable and aligned.
#[inline(always)]
unsafe fn exchange(at: *mut u64, new: u64) -> u64 {
    let old: u64;
    // SAFETY: by the caller.
    unsafe {
        asm!("{value} = xchg_64({at} + 0, {value})", at = in(reg) at, value = inout(reg) new => old, options(nostack));
    }
    old
}

impl Slot {
    /// Where the record goes: [`RECORD_BYTES_MAX`] less [`PREFIX_BYTES`], aligned to 8.
    #[inline(always)]
    pub(crate) fn room(&self) -> *mut u8 {
        // SAFETY: inside the block.
        unsafe { self.at.add(PREFIX_BYTES) }
    }

    /// The record, of `bytes`, is complete.
    #[inline(always)]
    pub(crate) fn end(self, bytes: usize) {
        // SAFETY: the room of `begin`; only the program that set `busy` writes. Volatile, in this order.
        unsafe {
            self.at.cast::<u64>().write_volatile(bytes as u64);
            (&raw mut (*self.buffer).written).write_volatile(cpu_buffer::end(self.start, bytes));
            (&raw mut (*self.buffer).busy).write_volatile(0);
        }
    }
}
