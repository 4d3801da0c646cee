//! Every map, and the configuration.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, SkStorage};
use aya_ebpf::macros::btf_map;
use dprof_common::drop_reason::DropReason;
use dprof_common::event::RecvEvent;
use dprof_common::limits::{ARRIVALS_MAX, PAYLOAD_BYTES_MAX, SOCKETS_MAX};
use dprof_common::probe_config::{ProbeConfig, gate};

use crate::emit::STAMP_BYTES;

/// Set by the agent before loading; frozen, so its values are constants to the verifier.
#[unsafe(no_mangle)]
static PROBE_CONFIG: ProbeConfig = ProbeConfig {
    offsets: dprof_common::probe_config::Offsets::ZERO,
    own_tgid: 0,
    filters: 0,
    payload_limit_default: 0,
    state_by_address: 0,
    has_cookie: 0,
    regs_from_stack: 0,
    debug: 0,
    blocks_per_cpu: 0,
    padding: 0,
    tcp_sendmsg: 0,
    tcp_recvmsg: 0,
};

/// Reads one member of the configuration. Volatile, or the compiler would fold the initial zeros in.
macro_rules! config {
    ($($member:tt)+) => {
        $crate::maps::read(|config| &config.$($member)+)
    };
}
pub(crate) use config;

/// One member, read where it lies.
#[inline(always)]
pub(crate) fn read<T: Copy + 'static>(member: impl FnOnce(&'static ProbeConfig) -> &'static T) -> T {
    // SAFETY: a static of plain integers.
    unsafe { core::ptr::read_volatile(member(&PROBE_CONFIG)) }
}

/// The event ring.
#[cfg(not(feature = "perf"))]
#[btf_map]
pub(crate) static EVENTS: aya_ebpf::btf_maps::RingBuf<
    u8,
    { dprof_common::limits::RING_BYTES_DEFAULT as usize },
> = aya_ebpf::btf_maps::RingBuf::new();

/// Events of each CPU: where its buffer is written and read. An entry per CPU, made by the agent.
#[cfg(not(feature = "perf"))]
#[btf_map]
pub(crate) static CPU_BUFFERS: Array<
    dprof_common::cpu_buffer::CpuBuffer,
    1,
    { aya_ebpf::bindings::BPF_F_MMAPABLE as usize },
> = Array::new();

/// The memory of those buffers: `blocks_per_cpu` of each CPU after those of the one before.
#[cfg(not(feature = "perf"))]
#[btf_map]
pub(crate) static BLOCKS: Array<
    [u8; dprof_common::cpu_buffer::BLOCK_BYTES],
    1,
    { aya_ebpf::bindings::BPF_F_MMAPABLE as usize },
> = Array::new();

/// The ring of the bare record: a page where nobody measures.
#[cfg(not(feature = "perf"))]
#[btf_map]
pub(crate) static FLOOR: aya_ebpf::btf_maps::RingBuf<u8, 4096> = aya_ebpf::btf_maps::RingBuf::new();

/// The event buffers, one per CPU.
#[cfg(feature = "perf")]
#[btf_map]
pub(crate) static EVENTS: aya_ebpf::btf_maps::PerfEventByteArray =
    aya_ebpf::btf_maps::PerfEventByteArray::new();

/// Where a record is filled that is too large for the stack.
#[btf_map]
pub(crate) static RECORD: PerCpuArray<Record, 1> = PerCpuArray::new();

/// Losses by [`DropReason`].
#[btf_map]
pub(crate) static DROPS: PerCpuArray<u64, { DropReason::COUNT }> = PerCpuArray::new();

/// State of each socket; it dies with the socket, so nothing is inherited through a re-used descriptor or port.
#[btf_map]
pub(crate) static SOCKETS: SkStorage<SockState> = SkStorage::new();

/// The same by the socket's address, where programs cannot reach socket storage: removed when the socket is
/// destroyed, and checked against what is inherited all the same.
#[btf_map]
pub(crate) static SOCKETS_BY_ADDRESS: HashMap<u64, SockState, SOCKETS_MAX> = HashMap::new();

/// The call that each thread is in, where the hooks do not tell: by thread id.
#[btf_map]
pub(crate) static CALLS: LruHashMap<u32, Call, 8192> = LruHashMap::new();

/// Where a record with payload is put together: an entry per CPU. A per-CPU map's values are 32 KiB at most, so it is
/// an ordinary one, which the agent makes as long as there are CPUs.
#[btf_map]
pub(crate) static SCRATCH: Array<Scratch, 1> = Array::new();

/// Payload limits that the agent wants, by socket cookie: as many as the connections it remembers. Asked again only
/// after [`LIMITS_GENERATION`] moved.
#[btf_map]
pub(crate) static LIMITS: LruHashMap<u64, u32, 16384> = LruHashMap::new();

/// Counts the agent's changes to [`LIMITS`].
#[btf_map]
pub(crate) static LIMITS_GENERATION: Array<u32, 1> = Array::new();

/// Capture window and choice of ports ([`gate`]). Turned by the agent, asked first by every program on data.
#[btf_map]
pub(crate) static GATE: Array<u64, 1> = Array::new();

/// The word of [`GATE`]; 0 if there is none.
#[inline(always)]
pub(crate) fn gate_word() -> u64 {
    // The verifier turns this look-up into plain loads (all kernels).
    GATE.get(0).map_or(0, |word| *word)
}

/// The word of [`GATE`] while a capture window is open; `None` = none is.
#[inline(always)]
pub(crate) fn open_gate() -> Option<u64> {
    let word = gate_word();
    if word & gate::WINDOW == 0 { None } else { Some(word) }
}

/// Ports, local or peer, a bit each: two halves, of which the word of [`GATE`] names one.
#[btf_map]
pub(crate) static FILTER_PORTS: Array<u64, { 2 * gate::ENTRIES as usize }> = Array::new();

/// Processes under filter `PIDS`.
#[btf_map]
pub(crate) static FILTER_PIDS: HashMap<u32, u8, 4096> = HashMap::new();

/// Cgroup ids under filter `CGROUPS`; a thread below one of them passes.
#[btf_map]
pub(crate) static FILTER_CGROUPS: HashMap<u64, u8, 1024> = HashMap::new();

/// Network namespaces under filter `NETNS`.
#[btf_map]
pub(crate) static FILTER_NETNS: HashMap<u32, u8, 1024> = HashMap::new();

/// Where a thread is in the vector of its `sendmmsg` or `recvmmsg`.
#[btf_map]
pub(crate) static VECTORS: LruHashMap<u32, VectorProgress, 1024> = LruHashMap::new();

/// Bits of [`SockState::flags`].
pub(crate) mod state {
    /// Positions were read; the socket is judged by the filters.
    pub(crate) const READY: u32 = 1 << 0;
    /// The filters do not want it.
    pub(crate) const IGNORED: u32 = 1 << 1;
    /// Its `Open` record is out.
    pub(crate) const ANNOUNCED: u32 = 1 << 2;
    /// It connected.
    pub(crate) const ACTIVE: u32 = 1 << 3;
    /// It was accepted.
    pub(crate) const PASSIVE: u32 = 1 << 4;
    /// Its calls do not go to TCP directly.
    pub(crate) const NO_STREAM_POSITION: u32 = 1 << 5;
}

/// One unread segment.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) time_ns: u64,
    pub(crate) end_seq: u32,
    /// Non-zero: further segments were merged into this one.
    pub(crate) merged: u32,
}

/// What is kept of a socket: 360 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SockState {
    pub(crate) cookie: u64,
    /// While connecting: when the SYN went out. Then: when the connection was established; 0 if older.
    pub(crate) established_ns: u64,
    pub(crate) connect_ns: u64,
    /// Its protocol's functions as last looked at: they are exchanged when something is put between.
    pub(crate) proto: u64,
    /// `write_seq - position`.
    pub(crate) send_isn: u32,
    /// `copied_seq - position`.
    pub(crate) recv_isn: u32,
    /// `copied_seq` after the last reported read.
    pub(crate) reported_seq: u32,
    pub(crate) flags: u32,
    pub(crate) payload_limit: u32,
    pub(crate) limits_generation: u32,
    /// Segments ever put in; the writer is the receive path under the socket's lock.
    pub(crate) segments_in: u32,
    /// Segments ever taken out; the reader is the reading thread.
    pub(crate) segments_out: u32,
    /// When the running send of several segments began; 0 = none runs.
    pub(crate) sending_ns: u64,
    /// `write_seq` then.
    pub(crate) sending_seq: u32,
    /// `write_seq` after the last reported write; only kept where writes are seen as the socket is released.
    pub(crate) sent_seq: u32,
    /// Ports as the socket holds them: another socket at this address has others.
    pub(crate) ports: u32,
    /// What the running read has taken of `segments`.
    pub(crate) taken: u32,
    /// Word of [`GATE`] under which this was brought up to date.
    pub(crate) gate: u64,
    pub(crate) segments: [Segment; ARRIVALS_MAX],
}

impl SockState {
    /// Of a socket that nothing is known of.
    pub(crate) const EMPTY: Self = Self {
        cookie: 0,
        established_ns: 0,
        connect_ns: 0,
        proto: 0,
        send_isn: 0,
        recv_isn: 0,
        reported_seq: 0,
        flags: 0,
        payload_limit: 0,
        limits_generation: 0,
        segments_in: 0,
        segments_out: 0,
        sending_ns: 0,
        sending_seq: 0,
        sent_seq: 0,
        ports: 0,
        taken: 0,
        gate: 0,
        segments: [Segment { time_ns: 0, end_seq: 0, merged: 0 }; ARRIVALS_MAX],
    };
}

/// See [`CALLS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Call {
    /// Address of the socket.
    pub(crate) sk: u64,
    /// Bytes of the call that were reported already: it slept meanwhile.
    pub(crate) done: u32,
    /// Non-zero: its data lies in its buffers.
    pub(crate) may_read: u32,
    /// Word of [`GATE`] under which it began.
    pub(crate) gate: u64,
}

/// Bytes of the largest record without payload.
pub(crate) const RECORD_BYTES: usize = size_of::<dprof_common::event::ArrivalsEvent>() + size_of::<u64>();

/// See [`RECORD`].
#[repr(C)]
pub(crate) struct Record {
    /// Non-zero while a program fills it.
    pub(crate) busy: u64,
    /// Room for the stamp that perf buffers want.
    pub(crate) stamp: u64,
    pub(crate) record: [u8; RECORD_BYTES],
}

/// See [`VECTORS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct VectorProgress {
    /// User address of the vector.
    pub(crate) vector: u64,
    /// Element that the next message is.
    pub(crate) next: u32,
    /// Length of the vector.
    pub(crate) count: u32,
}

/// See [`SCRATCH`].
#[repr(C)]
pub(crate) struct Scratch {
    /// Non-zero while a program fills it.
    pub(crate) busy: u64,
    /// State of the walk over `iovec`s. In memory rather than in registers for the verifier (all kernels): it
    /// does not follow the contents of maps, so every turn of the loop looks alike to it and is checked once.
    pub(crate) iov: u64,
    pub(crate) iov_count: u64,
    pub(crate) wanted: u32,
    pub(crate) offset: u32,
    /// Bytes of the call still to be passed over: they were reported before it slept.
    pub(crate) skip: u64,
    /// Stamp and fixed part of the record, right-aligned against the payload.
    pub(crate) fixed: [u8; STAMP_BYTES + size_of::<RecvEvent>()],
    /// Twice what goes out: any offset below [`PAYLOAD_BYTES_MAX`] plus a copy of as much lies inside, whatever the
    /// verifier can prove about either.
    pub(crate) payload: [u8; 2 * PAYLOAD_BYTES_MAX],
}

/// Address of a map, as helpers that are not wrapped want it.
#[inline(always)]
pub(crate) const fn address<M>(map: &'static M) -> *mut c_void {
    ptr::from_ref(map).cast_mut().cast()
}
