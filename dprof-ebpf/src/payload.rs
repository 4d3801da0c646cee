//! Payload: from the running system call's registers to its buffers, no hook on system calls needed.
//!
//! What a reader would get wrong: the hooks run after the copy, in the thread that called, so the buffers are
//! resident and hold the bytes. That is only true inside a plain system call. io_uring runs its work in other
//! calls' exits and in worker threads: on x86-64 `ax` holds `-ENOSYS` exactly while the call itself runs.

use aya_ebpf::helpers::bpf_probe_read_user;
#[cfg(not(feature = "perf"))]
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_current_task_btf, bpf_get_smp_processor_id,
    bpf_probe_read_user as read_user, bpf_task_pt_regs,
};
use dprof_common::drop_reason::DropReason;
use dprof_common::event::{EventHeader, RecvEvent, SendEvent, flag};
use dprof_common::limits::{IOVEC_ENTRIES_MAX, PAYLOAD_BYTES_BUSY, PAYLOAD_BYTES_MAX};

use crate::access::{Probed, Ptr, Typed};
#[cfg(not(feature = "perf"))]
use crate::emit::DIRECT_MAX;
use crate::emit::{self, Out, STAMP_BYTES};
use crate::maps::{SCRATCH, Scratch, SockState, VECTORS, VectorProgress, config};
use crate::state;

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

/// Where the bytes of the running call are. Not an enum with data, whose other members would be undefined: the verifier
/// (all kernels) does not let an undefined register be copied.
#[derive(Clone, Copy)]
struct Buffers {
    /// Of [`Buffers::NONE`], [`Buffers::ONE`], [`Buffers::MANY`].
    kind: u32,
    /// Address of the buffer, or of an array of `iovec`.
    at: u64,
    /// Entries of the array.
    count: u64,
}

impl Buffers {
    /// Nowhere that may be read.
    const NONE: u32 = 0;
    const ONE: u32 = 1;
    const MANY: u32 = 2;

    #[inline(always)]
    const fn none() -> Self {
        Self { kind: Self::NONE, at: 0, count: 0 }
    }

    #[inline(always)]
    const fn one(at: u64) -> Self {
        Self { kind: Self::ONE, at, count: 1 }
    }

    #[inline(always)]
    const fn is_none(self) -> bool {
        self.kind == Self::NONE
    }
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

/// Where in the running call's buffers the data of an event lies.
#[derive(Clone, Copy)]
pub(crate) struct InCall {
    /// Whether it lies there at all.
    pub(crate) may_read: bool,
    /// Whether TCP's bytes are counted rather than the call's: what sits between (kTLS) makes others of them.
    pub(crate) below_call: bool,
    /// Bytes of the call before it: the call slept, and these were reported then.
    pub(crate) done: u32,
}

impl InCall {
    /// The call's own bytes, from its buffers' start.
    pub(crate) const WHOLE: Self = Self { may_read: true, below_call: false, done: 0 };
    /// Bytes that TCP moved, of the call's buffers unless something sits between.
    pub(crate) const OF_TCP: Self = Self { may_read: true, below_call: true, done: 0 };
    /// Not in the buffers.
    pub(crate) const NOWHERE: Self = Self { may_read: false, below_call: true, done: 0 };
}

/// Writes `event` with as much of the call's data as the socket is worth.
#[inline(always)]
pub(crate) fn emit<T: DataRecord>(out: Out, mut event: T, state: &mut SockState, tid: u32, at: InCall) {
    let size = event.header().size;
    let limit = bounded(state::payload_limit(state), PAYLOAD_BYTES_MAX as u32);
    let wanted = if size < limit { size } else { limit };
    let buffers = if !at.may_read {
        event.header().flags |= flag::NO_BUFFER;
        Buffers::none()
    } else if wanted == 0 {
        Buffers::none()
    } else {
        let buffers = buffers(tid, at.done != 0);
        if buffers.is_none() {
            event.header().flags |= flag::NO_BUFFER;
        }
        buffers
    };
    if buffers.is_none() {
        emit::fixed(out, &event);
        return;
    }
    #[cfg(not(feature = "perf"))]
    if wanted <= DIRECT_MAX
        && let Some(slot) = emit::cpu_buffer::begin(out)
    {
        // SAFETY: payload comes after the fixed part; both have room in the slot, by DIRECT_MAX.
        unsafe {
            let payload = slot.room().add(size_of::<T>());
            let len = copy(payload, buffers, bounded(wanted, DIRECT_MAX), at.done);
            event.header().payload_len = len as u16;
            slot.room().cast::<T>().write(event);
            slot.end(size_of::<T>() + len as usize);
        }
        return;
    }
    let Some(scratch) = scratch() else {
        emit::fixed(out, &event);
        return;
    };
    let len = gather(scratch, buffers, affordable(wanted), at.done);
    event.header().payload_len = len as u16;
    let len = bounded(len, PAYLOAD_BYTES_MAX as u32);
    // SAFETY: the fixed part ends where the payload starts, and both lie in the scratch buffer, a stamp's room
    // after its start.
    unsafe {
        let fixed = (&raw mut (*scratch).fixed)
            .cast::<u8>()
            .add(STAMP_BYTES + size_of::<RecvEvent>() - size_of::<T>());
        fixed.cast::<T>().write(event);
        emit::output(out, fixed, size_of::<T>() as u64 + u64::from(len));
    }
    done(scratch);
}

/// Copies up to `wanted` bytes of the call, after its first `skip`, to `to`; how many.
///
/// # Safety
/// `to` has room for [`DIRECT_MAX`], and `wanted` is bounded by it.
#[cfg(not(feature = "perf"))]
#[inline(always)]
unsafe fn copy(to: *mut u8, buffers: Buffers, wanted: u32, skip: u32) -> u32 {
    if buffers.kind != Buffers::MANY {
        // SAFETY: by the caller; the helper checks the user address.
        if unsafe { read_user(to.cast(), wanted, (buffers.at + u64::from(skip)) as *const _) } == 0 {
            return wanted;
        }
        emit::count(DropReason::UserReadFailed);
        return 0;
    }
    // What is gathered from several pieces is so in memory that the walk is checked once for.
    let Some(scratch) = scratch() else { return 0 };
    let len = bounded(gather(scratch, buffers, wanted, skip), DIRECT_MAX);
    // SAFETY: by the caller; as much of the payload array was filled.
    unsafe { bpf_probe_read_kernel(to.cast(), len, (&raw const (*scratch).payload).cast()) };
    done(scratch);
    len
}

/// As much of `wanted` as the ring has room for: bulk data must not push out what others have to say.
#[inline(always)]
fn affordable(wanted: u32) -> u32 {
    const BUSY: u32 = PAYLOAD_BYTES_BUSY as u32;
    if wanted > BUSY && emit::is_busy() { BUSY } else { wanted }
}

/// What is asked of the running system call.
#[derive(Clone, Copy)]
struct Registers {
    /// Its number.
    nr: u64,
    /// Second argument.
    arg2: u64,
    /// Third argument.
    arg3: u64,
}

/// Registers of the system call that the current thread is in; `None` in threads of the kernel, and where `ax` says
/// that the call itself does not run.
#[inline(always)]
fn registers() -> Option<Registers> {
    let from_stack = config!(regs_from_stack);
    if from_stack == 0 {
        // SAFETY: takes nothing; the verifier knows the result's type.
        let task = unsafe { bpf_get_current_task_btf() };
        if is_kernel_thread(Ptr::<Typed>::new(task as u64).load(config!(offsets.task_flags))) {
            return None;
        }
        // SAFETY: the current task.
        let regs = Ptr::<Typed>::new(unsafe { bpf_task_pt_regs(task) } as u64);
        let result: i64 = regs.load(config!(offsets.regs_result));
        (result == -ENOSYS).then(|| Registers {
            nr: regs.load(config!(offsets.regs_nr)),
            arg2: regs.load(config!(offsets.regs_arg2)),
            arg3: regs.load(config!(offsets.regs_arg3)),
        })
    } else {
        // The same by hand (`task_pt_regs` of the kernel): they lie at the upper end of the thread's stack.
        // SAFETY: takes nothing.
        let task = Ptr::<Probed>::new(unsafe { bpf_get_current_task() });
        if is_kernel_thread(task.load(config!(offsets.task_flags))) {
            return None;
        }
        let stack: u64 = task.load(config!(offsets.task_stack));
        let regs = Ptr::<Probed>::new(stack + u64::from(from_stack));
        let result: i64 = regs.load(config!(offsets.regs_result));
        (result == -ENOSYS).then(|| Registers {
            nr: regs.load(config!(offsets.regs_nr)),
            arg2: regs.load(config!(offsets.regs_arg2)),
            arg3: regs.load(config!(offsets.regs_arg3)),
        })
    }
}

#[inline(always)]
fn is_kernel_thread(flags: u32) -> bool {
    flags & (PF_IO_WORKER | PF_USER_WORKER | PF_KTHREAD) != 0
}

/// Buffers of the system call that the current thread is in. `again`: part of its message was reported already.
#[inline(always)]
fn buffers(tid: u32, again: bool) -> Buffers {
    let Some(Registers { nr, arg2, arg3 }) = registers() else { return Buffers::none() };
    match nr {
        // read, write, sendto, recvfrom
        0 | 1 | 44 | 45 => Buffers::one(arg2),
        // readv, writev, preadv2, pwritev2
        19 | 20 | 327 | 328 => one_or_many(arg2, arg3),
        // sendmsg, recvmsg
        46 | 47 => message(arg2),
        // recvmmsg, sendmmsg
        299 | 307 => message(arg2 + MMSGHDR_BYTES * u64::from(next_in_vector(tid, arg2, arg3 as u32, again))),
        _ => Buffers::none(),
    }
}

/// Whether the current thread is in `splice`.
#[inline(always)]
pub(crate) fn is_splice() -> bool {
    registers().is_some_and(|registers| registers.nr == 275)
}

#[inline(always)]
fn message(msghdr: u64) -> Buffers {
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_user(msghdr as *const MsgHdr) } {
        Ok(msg) => one_or_many(msg.iov, msg.iov_count),
        Err(_) => Buffers::none(),
    }
}

#[inline(always)]
fn one_or_many(iov: u64, count: u64) -> Buffers {
    if count != 1 {
        return Buffers { kind: Buffers::MANY, at: iov, count };
    }
    // SAFETY: the helper checks the address.
    match unsafe { bpf_probe_read_user(iov as *const IoVec) } {
        Ok(iovec) => Buffers::one(iovec.base),
        Err(_) => Buffers::none(),
    }
}

/// Which element of its vector the thread is at. The kernel does not say: each element raises the hook once, so
/// they are counted. A vector given up half-way and then used again at the same address would be counted on from
/// where it stopped: its payload is then of the wrong element, its byte ranges stay right.
#[inline(always)]
fn next_in_vector(tid: u32, vector: u64, count: u32, again: bool) -> u32 {
    let mut idx = 0;
    if let Some(progress) = VECTORS.get_ptr(&tid) {
        // SAFETY: a value of the map, read at once.
        let progress = unsafe { *progress };
        if progress.vector == vector && progress.count == count {
            if again {
                return progress.next.saturating_sub(1);
            }
            if progress.next < count {
                idx = progress.next;
            }
        }
    }
    let _ = VECTORS.insert(&tid, &VectorProgress { vector, next: idx + 1, count }, 0);
    idx
}

/// This CPU's gathering buffer.
#[inline(always)]
fn of_this_cpu() -> Option<*mut Scratch> {
    // SAFETY: takes nothing.
    SCRATCH.get_ptr_mut(unsafe { bpf_get_smp_processor_id() })
}

/// The same, unless a program that this one interrupted is using it.
#[inline(always)]
fn scratch() -> Option<*mut Scratch> {
    let scratch = of_this_cpu()?;
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

/// Copies up to `wanted` bytes of the call, after its first `skip`, into the buffer; how many.
#[inline(always)]
fn gather(scratch: *mut Scratch, buffers: Buffers, wanted: u32, skip: u32) -> u32 {
    let Buffers { kind, at, count } = buffers;
    if kind != Buffers::MANY {
        return piece(scratch, 0, at + u64::from(skip), wanted);
    }
    // SAFETY: this CPU's slot.
    unsafe {
        (&raw mut (*scratch).iov).write_volatile(at);
        (&raw mut (*scratch).iov_count).write_volatile(count);
        (&raw mut (*scratch).wanted).write_volatile(wanted);
        (&raw mut (*scratch).offset).write_volatile(0);
        (&raw mut (*scratch).skip).write_volatile(u64::from(skip));
    }
    let mut idx = 0_u64;
    while idx < IOVEC_ENTRIES_MAX as u64 {
        if gather_turn(idx) == 0 {
            break;
        }
        idx += 1;
    }
    // SAFETY: as above.
    unsafe { (&raw const (*scratch).offset).read_volatile() }
}

/// Copies the entry at `idx` into this CPU's buffer; zero when there are no more.
///
/// A function that is not inlined, for the verifier (from 5.6): it checks it once, for any number, instead of once for
/// each of the turns and all ways through it. On 5.10 the programs would be beyond its limit otherwise.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn gather_turn(idx: u64) -> u64 {
    of_this_cpu().map_or(0, |scratch| gather_one(scratch, idx).into())
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
    let Ok(mut iovec) = (unsafe { bpf_probe_read_user((iov + idx * 16) as *const IoVec) }) else {
        emit::count(DropReason::UserReadFailed);
        return false;
    };
    // SAFETY: this CPU's slot.
    let skip = unsafe { (&raw const (*scratch).skip).read_volatile() };
    if skip != 0 {
        let passed = if skip < iovec.len { skip } else { iovec.len };
        iovec.base += passed;
        iovec.len -= passed;
        // SAFETY: as above.
        unsafe { (&raw mut (*scratch).skip).write_volatile(skip - passed) };
    }
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

/// Copies one piece, at most [`PAYLOAD_BYTES_MAX`]; how many bytes.
#[inline(always)]
fn piece(scratch: *mut Scratch, offset: u32, base: u64, len: u32) -> u32 {
    // For the verifier (all kernels): bounds of the two numbers separately; their sum is inside by the sizes.
    let offset = bounded(offset, PAYLOAD_BYTES_MAX as u32 - 1);
    let len = bounded(len, PAYLOAD_BYTES_MAX as u32);
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
