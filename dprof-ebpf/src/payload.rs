//! Payload: from the running system call's registers to its buffers, no hook on system calls needed.
//!
//! What a reader would get wrong: the hooks run after the copy, in the thread that called, so the buffers are
//! resident and hold the bytes. That is only true inside a plain system call. io_uring runs its work in other
//! calls' exits and in worker threads: on x86-64 `ax` holds `-ENOSYS` exactly while the call itself runs.

use aya_ebpf::helpers::bpf_probe_read_user;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_probe_read_user as read_user, bpf_task_pt_regs,
};
use dprof_common::drop_reason::DropReason;
use dprof_common::event::{EventHeader, RecvEvent, SendEvent, flag};
use dprof_common::limits::{IOVEC_ENTRIES_MAX, PAYLOAD_BYTES_MAX};

use crate::emit;
use crate::maps::{PIECE_BYTES_MAX, SCRATCH, Scratch, SockState, VECTORS, VectorProgress, config};
use crate::sock::{self, Typed};

const PF_IO_WORKER: u32 = 0x10;
const PF_USER_WORKER: u32 = 0x4000;
const PF_KTHREAD: u32 = 0x0020_0000;
const ENOSYS: i64 = 38;

/// `struct iovec`.
#[repr(C)]
#[derive(Clone, Copy)]
struct IoVec {
    base: u64,
    len: u64,
}

/// Start of `struct user_msghdr` as far as it matters.
#[repr(C)]
#[derive(Clone, Copy)]
struct MsgHdr {
    name: u64,
    name_len: u64,
    iov: u64,
    iov_count: u64,
}

/// `sizeof(struct mmsghdr)`: a `user_msghdr` of 56 bytes and a length.
const MMSGHDR_BYTES: u64 = 64;

/// Where the bytes of the running call are.
#[derive(Clone, Copy)]
enum Buffers {
    /// Nowhere that may be read.
    None,
    /// One buffer.
    One(u64),
    /// An array of `iovec`.
    Many { iov: u64, count: u64 },
}

/// A record that its payload follows; at most as large as [`RecvEvent`].
pub(crate) trait DataRecord: Copy + 'static {
    fn header(&mut self) -> &mut EventHeader;
}

impl DataRecord for SendEvent {
    #[inline(always)]
    fn header(&mut self) -> &mut EventHeader {
        &mut self.header
    }
}

impl DataRecord for RecvEvent {
    #[inline(always)]
    fn header(&mut self) -> &mut EventHeader {
        &mut self.header
    }
}

/// Writes `event` with as much of the call's data as the socket is worth. `may_read`: whether the data lies in the
/// buffers of the call.
#[inline(always)]
pub(crate) fn emit<T: DataRecord>(mut event: T, state: &mut SockState, tid: u32, may_read: bool) {
    let size = event.header().size;
    let limit = bounded(sock::payload_limit(state), PAYLOAD_BYTES_MAX as u32);
    let wanted = if size < limit { size } else { limit };
    let buffers = if !may_read {
        event.header().flags |= flag::NO_BUFFER;
        Buffers::None
    } else if wanted == 0 {
        Buffers::None
    } else {
        let buffers = buffers(tid);
        if let Buffers::None = buffers {
            event.header().flags |= flag::NO_BUFFER;
        }
        buffers
    };
    if !matches!(buffers, Buffers::None)
        && let Some(scratch) = scratch()
    {
        let len = gather(scratch, buffers, wanted);
        event.header().payload_len = len as u16;
        let len = bounded(len, PAYLOAD_BYTES_MAX as u32);
        // SAFETY: the fixed part ends where the payload starts, and both lie in the scratch buffer.
        unsafe {
            let fixed = (&raw mut (*scratch).fixed).cast::<u8>().add(size_of::<RecvEvent>() - size_of::<T>());
            fixed.cast::<T>().write(event);
            emit::output(fixed, size_of::<T>() as u64 + u64::from(len));
        }
        done(scratch);
    } else {
        emit::fixed(&event);
    }
}

/// Buffers of the system call that the current thread is in.
#[inline(always)]
fn buffers(tid: u32) -> Buffers {
    // SAFETY: takes nothing; the verifier knows the result's type.
    let task = unsafe { bpf_get_current_task_btf() };
    let flags: u32 = Typed(task as u64).load(config!(offsets.task_flags));
    if flags & (PF_IO_WORKER | PF_USER_WORKER | PF_KTHREAD) != 0 {
        return Buffers::None;
    }
    // SAFETY: the current task.
    let regs = Typed(unsafe { bpf_task_pt_regs(task) } as u64);
    let result: i64 = regs.load(config!(offsets.regs_result));
    if result != -ENOSYS {
        return Buffers::None;
    }
    let nr: u64 = regs.load(config!(offsets.regs_nr));
    let arg2: u64 = regs.load(config!(offsets.regs_arg2));
    match nr {
        // read, write, sendto, recvfrom
        0 | 1 | 44 | 45 => Buffers::One(arg2),
        // readv, writev, preadv2, pwritev2
        19 | 20 | 327 | 328 => one_or_many(arg2, regs.load(config!(offsets.regs_arg3))),
        // sendmsg, recvmsg
        46 | 47 => message(arg2),
        // recvmmsg, sendmmsg
        299 | 307 => {
            let count: u64 = regs.load(config!(offsets.regs_arg3));
            message(arg2 + MMSGHDR_BYTES * u64::from(next_in_vector(tid, arg2, count as u32)))
        }
        _ => Buffers::None,
    }
}

/// Whether the current thread is in `splice` (or in an io worker, which may splice).
#[inline(always)]
pub(crate) fn is_splice() -> bool {
    // SAFETY: as in `buffers`.
    let task = unsafe { bpf_get_current_task_btf() };
    let flags: u32 = Typed(task as u64).load(config!(offsets.task_flags));
    if flags & (PF_IO_WORKER | PF_USER_WORKER | PF_KTHREAD) != 0 {
        return false;
    }
    // SAFETY: the current task.
    let regs = Typed(unsafe { bpf_task_pt_regs(task) } as u64);
    let nr: u64 = regs.load(config!(offsets.regs_nr));
    nr == 275
}

#[inline(always)]
fn message(msghdr: u64) -> Buffers {
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_user(msghdr as *const MsgHdr) } {
        Ok(msg) => one_or_many(msg.iov, msg.iov_count),
        Err(_) => Buffers::None,
    }
}

#[inline(always)]
fn one_or_many(iov: u64, count: u64) -> Buffers {
    if count != 1 {
        return Buffers::Many { iov, count };
    }
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_user(iov as *const IoVec) } {
        Ok(iovec) => Buffers::One(iovec.base),
        Err(_) => Buffers::None,
    }
}

/// Which element of its vector the thread is at. The kernel does not say: each element raises the hook once, so
/// they are counted. A vector given up half-way and then used again at the same address would be counted on from
/// where it stopped: its payload is then of the wrong element, its byte ranges stay right.
#[inline(always)]
fn next_in_vector(tid: u32, vector: u64, count: u32) -> u32 {
    let mut idx = 0;
    if let Some(progress) = VECTORS.get_ptr(&tid) {
        // SAFETY: a value of the map, read at once.
        let progress = unsafe { *progress };
        if progress.vector == vector && progress.count == count && progress.next < count {
            idx = progress.next;
        }
    }
    let _ = VECTORS.insert(&tid, &VectorProgress { vector, next: idx + 1, count }, 0);
    idx
}

/// This CPU's gathering buffer, unless a program that this one interrupted is using it.
#[inline(always)]
fn scratch() -> Option<*mut Scratch> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: this CPU's slot; set back by `done`.
    unsafe {
        if (*scratch).busy != 0 {
            emit::count(DropReason::ScratchBusy);
            return None;
        }
        (*scratch).busy = 1;
    }
    Some(scratch)
}

/// Gives the buffer back.
#[inline(always)]
fn done(scratch: *mut Scratch) {
    // SAFETY: this CPU's slot.
    unsafe { (*scratch).busy = 0 };
}

/// Copies up to `wanted` bytes of the call into the buffer; how many.
#[inline(always)]
fn gather(scratch: *mut Scratch, buffers: Buffers, wanted: u32) -> u32 {
    match buffers {
        Buffers::None => 0,
        Buffers::One(base) => piece(scratch, 0, base, wanted),
        Buffers::Many { iov, count } => {
            // SAFETY: this CPU's slot.
            unsafe {
                (&raw mut (*scratch).iov).write_volatile(iov);
                (&raw mut (*scratch).iov_count).write_volatile(count);
                (&raw mut (*scratch).wanted).write_volatile(wanted);
                (&raw mut (*scratch).offset).write_volatile(0);
            }
            let mut idx = 0_u64;
            while idx < IOVEC_ENTRIES_MAX as u64 {
                if !gather_one(scratch, idx) {
                    break;
                }
                idx += 1;
            }
            // SAFETY: as above.
            unsafe { (&raw const (*scratch).offset).read_volatile() }
        }
    }
}

/// Copies the entry at `idx`; whether there may be more.
#[inline(always)]
fn gather_one(scratch: *mut Scratch, idx: u64) -> bool {
    // SAFETY: this CPU's slot.
    let (iov, count, wanted, offset) = unsafe {
        (
            (&raw const (*scratch).iov).read_volatile(),
            (&raw const (*scratch).iov_count).read_volatile(),
            (&raw const (*scratch).wanted).read_volatile(),
            (&raw const (*scratch).offset).read_volatile(),
        )
    };
    if idx >= count || offset >= wanted {
        return false;
    }
    // SAFETY: the helper checks the address.
    let Ok(iovec) = (unsafe { bpf_probe_read_user((iov + idx * 16) as *const IoVec) }) else {
        emit::count(DropReason::UserReadFailed);
        return false;
    };
    let left = u64::from(wanted - offset);
    let len = if iovec.len < left { iovec.len } else { left } as u32;
    if len == 0 {
        return true;
    }
    let copied = piece(scratch, offset, iovec.base, len);
    // SAFETY: as above.
    unsafe { (&raw mut (*scratch).offset).write_volatile(offset + copied) };
    copied == len
}

/// Copies one piece; how many bytes.
#[inline(always)]
fn piece(scratch: *mut Scratch, offset: u32, base: u64, len: u32) -> u32 {
    // For the verifier (all kernels): bounds of the two numbers separately; their sum is inside by the sizes.
    let offset = bounded(offset, PAYLOAD_BYTES_MAX as u32 - 1);
    let len = bounded(len, PIECE_BYTES_MAX as u32);
    // SAFETY: offset + len <= the payload array, by the two bounds; the helper checks the user address.
    let failed = unsafe {
        let to = (&raw mut (*scratch).payload).cast::<u8>().add(offset as usize);
        read_user(to.cast(), len, base as *const _)
    };
    if failed == 0 {
        len
    } else {
        emit::count(DropReason::UserReadFailed);
        0
    }
}

/// min(value, limit), done so that the compiler can neither argue the comparison away nor load the value again
/// after it: the verifier must see the very register that was compared.
#[inline(always)]
pub(crate) fn bounded(value: u32, limit: u32) -> u32 {
    // SAFETY: a local.
    let value = unsafe { core::ptr::read_volatile(&raw const value) };
    if value > limit { limit } else { value }
}
