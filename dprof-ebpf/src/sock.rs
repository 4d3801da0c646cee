//! Everything that reads the kernel's structures, and the state of a socket.
//!
//! Loads go through pointers that the verifier knows the type of, at offsets from the frozen configuration: it
//! checks each one, and turns it into a plain load that cannot fault.

use aya_ebpf::bindings::{BPF_RB_NO_WAKEUP, BPF_SK_STORAGE_GET_F_CREATE};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_socket_cookie, bpf_sk_storage_get, bpf_skc_to_tcp_sock,
};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_probe_read_kernel};
use dprof_common::drop_reason::DropReason;
use dprof_common::event::{EventHeader, EventKind, OpenEvent, flag};
use dprof_common::flow::Flow;
use dprof_common::limits::ARRIVALS_MAX;

use crate::maps::{EVENTS, LIMITS, LIMITS_GENERATION, SOCKETS, SockState, address, config, state};
use crate::{emit, filter};

pub(crate) const AF_INET6: u16 = 10;
pub(crate) const TCP_ESTABLISHED: u8 = 1;
pub(crate) const TCP_SYN_SENT: u8 = 2;
pub(crate) const TCP_SYN_RECV: u8 = 3;
pub(crate) const TCP_CLOSE: u8 = 7;
pub(crate) const TCP_LISTEN: u8 = 10;

/// A kernel address of a type that the verifier knows.
#[derive(Clone, Copy)]
pub(crate) struct Typed(pub(crate) u64);

impl Typed {
    /// Loads the member at `offset`.
    #[inline(always)]
    pub(crate) fn load<T: Copy>(self, offset: u32) -> T {
        // SAFETY: the verifier has checked that a T lies at this constant offset of the pointer's type.
        unsafe { core::ptr::read_volatile((self.0 + u64::from(offset)) as *const T) }
    }

    /// Copies a member that plain loads cannot reach (arrays of bytes); zeros if it cannot be read.
    #[inline(always)]
    pub(crate) fn copy<const N: usize>(self, offset: u32) -> [u8; N] {
        // SAFETY: the helper checks the address.
        unsafe { bpf_probe_read_kernel((self.0 + u64::from(offset)) as *const [u8; N]) }.unwrap_or([0; N])
    }
}

/// A `struct sock` and the `struct tcp_sock` around it.
#[derive(Clone, Copy)]
pub(crate) struct TcpSock {
    pub(crate) sk: Typed,
    pub(crate) tcp: Typed,
}

impl TcpSock {
    /// `None` when `sk` is not a full TCP socket.
    #[inline(always)]
    pub(crate) fn new(sk: u64) -> Option<Self> {
        // SAFETY: the hook's argument; the helper answers null for other sockets.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk as *mut _) } as u64;
        if tcp == 0 { None } else { Some(Self { sk: Typed(sk), tcp: Typed(tcp) }) }
    }

    #[inline(always)]
    pub(crate) fn write_seq(self) -> u32 {
        self.tcp.load(config!(offsets.write_seq))
    }

    #[inline(always)]
    pub(crate) fn snd_nxt(self) -> u32 {
        self.tcp.load(config!(offsets.snd_nxt))
    }

    #[inline(always)]
    pub(crate) fn snd_una(self) -> u32 {
        self.tcp.load(config!(offsets.snd_una))
    }

    #[inline(always)]
    pub(crate) fn copied_seq(self) -> u32 {
        self.tcp.load(config!(offsets.copied_seq))
    }

    #[inline(always)]
    pub(crate) fn rcv_nxt(self) -> u32 {
        self.tcp.load(config!(offsets.rcv_nxt))
    }

    #[inline(always)]
    pub(crate) fn clock_cache_ns(self) -> u64 {
        self.tcp.load(config!(offsets.tcp_clock_cache))
    }

    #[inline(always)]
    pub(crate) fn state(self) -> u8 {
        self.sk.load(config!(offsets.skc_state))
    }

    #[inline(always)]
    pub(crate) fn local_port(self) -> u16 {
        self.sk.load(config!(offsets.skc_num))
    }

    #[inline(always)]
    pub(crate) fn peer_port(self) -> u16 {
        u16::from_be(self.sk.load(config!(offsets.skc_dport)))
    }

    #[inline(always)]
    pub(crate) fn netns(self) -> u32 {
        let net: u64 = self.sk.load(config!(offsets.skc_net));
        Typed(net).load(config!(offsets.net_inum))
    }

    /// Fills in place: the stack has no room for a second copy.
    ///
    /// # Safety
    /// `flow` is writable.
    #[inline(always)]
    unsafe fn write_flow(self, flow: *mut Flow) {
        let family: u16 = self.sk.load(config!(offsets.skc_family));
        // SAFETY: by the caller.
        unsafe {
            if family == AF_INET6 {
                (*flow).local_addr = self.sk.copy(config!(offsets.skc_v6_rcv_saddr));
                (*flow).peer_addr = self.sk.copy(config!(offsets.skc_v6_daddr));
            } else {
                (*flow).local_addr = v4_mapped(self.sk.copy(config!(offsets.skc_rcv_saddr)));
                (*flow).peer_addr = v4_mapped(self.sk.copy(config!(offsets.skc_daddr)));
            }
            (*flow).local_port = self.local_port();
            (*flow).peer_port = self.peer_port();
            (*flow).netns = self.netns();
        }
    }

    /// Raw 64-bit position after everything written, as the kernel's counters say it now. Two counters that
    /// change together are read without the socket's lock, so it may be off by an acknowledgement in flight;
    /// its low half is put right with the initial sequence number ([`SockState::exact`]).
    #[inline(always)]
    fn rough_send_pos(self) -> u64 {
        let acked: u64 = self.tcp.load(config!(offsets.bytes_acked));
        let una: u32 = self.tcp.load(config!(offsets.snd_una));
        acked + u64::from(self.write_seq().wrapping_sub(una))
    }

    /// The same for everything read.
    #[inline(always)]
    fn rough_recv_pos(self) -> u64 {
        let received: u64 = self.tcp.load(config!(offsets.bytes_received));
        received.wrapping_sub(u64::from(self.rcv_nxt().wrapping_sub(self.copied_seq())))
    }

    /// Raw position after everything written.
    #[inline(always)]
    pub(crate) fn send_pos(self, state: &SockState) -> u64 {
        exact(self.rough_send_pos(), self.write_seq().wrapping_sub(state.send_isn))
    }

    /// Raw position of a sequence number of the send direction.
    #[inline(always)]
    pub(crate) fn send_pos_of(self, state: &SockState, seq: u32) -> u64 {
        exact(self.rough_send_pos(), seq.wrapping_sub(state.send_isn))
    }

    /// Raw position after everything read.
    #[inline(always)]
    pub(crate) fn recv_pos(self, state: &SockState) -> u64 {
        exact(self.rough_recv_pos(), self.copied_seq().wrapping_sub(state.recv_isn))
    }

    /// State of this socket; made when missing if `create`. Null when there is none.
    #[inline(always)]
    pub(crate) fn state_ptr(self, create: bool) -> *mut SockState {
        let flags = if create { u64::from(BPF_SK_STORAGE_GET_F_CREATE) } else { 0 };
        // SAFETY: the helper takes a socket that the verifier knows and gives memory of the map's type or null.
        unsafe {
            bpf_sk_storage_get(address(&SOCKETS), self.sk.0 as *mut _, core::ptr::null_mut(), flags).cast()
        }
    }
}

/// The 64-bit number nearest to `rough` with these low 32 bits.
#[inline(always)]
fn exact(rough: u64, low: u32) -> u64 {
    let difference = low.wrapping_sub(rough as u32) as i32;
    rough.wrapping_add(difference as i64 as u64)
}

#[inline(always)]
fn v4_mapped(addr: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, addr[0], addr[1], addr[2], addr[3]]
}

/// First look at a socket: its cookie, initial sequence numbers, and whether a filter on sockets wants it.
/// Sequence and position must be of one moment. Under the socket's lock they are; the send hook runs without, so
/// the counters are read until two readings agree (a reader between the kernel's two writes would need to stay
/// there for both).
#[inline(always)]
pub(crate) fn prepare(sock: TcpSock, state: &mut SockState) {
    if state.flags & state::READY != 0 {
        return;
    }
    // SAFETY: the helper takes a socket that the verifier knows.
    state.cookie = unsafe { bpf_get_socket_cookie(sock.sk.0 as *mut _) };
    let mut tries = 0;
    while tries < 4 {
        let send = sock.write_seq().wrapping_sub(sock.rough_send_pos() as u32);
        let recv = sock.copied_seq().wrapping_sub(sock.rough_recv_pos() as u32);
        let agreed = send == state.send_isn && recv == state.recv_isn && tries > 0;
        state.send_isn = send;
        state.recv_isn = recv;
        if agreed {
            break;
        }
        tries += 1;
    }
    state.reported_seq = sock.copied_seq();
    state.payload_limit = config!(payload_limit_default);
    state.flags |= state::READY;
    if !filter::socket_wanted(sock) {
        state.flags |= state::IGNORED;
    }
}

/// A socket whose data is wanted, in a thread whose data is wanted.
pub(crate) struct Watched {
    pub(crate) sock: TcpSock,
    pub(crate) state: &'static mut SockState,
    pub(crate) pid_tgid: u64,
}

/// What every hook on data does first: asks the filters, finds the socket's state, announces the socket.
#[inline(always)]
pub(crate) fn watched(sk: u64) -> Option<Watched> {
    let pid_tgid = filter::thread_wanted()?;
    let sock = TcpSock::new(sk)?;
    let state = sock.state_ptr(true);
    if state.is_null() {
        emit::count(DropReason::NoSocketStorage);
        return None;
    }
    // SAFETY: storage of this socket, which lives as long as the program; the programs' own races on it are harmless
    // (see SockState).
    let state = unsafe { &mut *state };
    prepare(sock, state);
    if state.flags & state::IGNORED != 0 {
        return None;
    }
    announce(sock, state, pid_tgid);
    Some(Watched { sock, state, pid_tgid })
}

/// Announces a socket in the context of the process that uses it.
#[inline(always)]
fn announce(sock: TcpSock, state: &mut SockState, pid_tgid: u64) {
    if state.flags & state::ANNOUNCED != 0 {
        return;
    }
    let mut role = 0;
    if state.flags & state::ACTIVE != 0 {
        role = flag::ACTIVE;
    }
    if state.flags & state::PASSIVE != 0 {
        role = flag::PASSIVE;
    }
    let Some(mut entry) = EVENTS.reserve_untyped::<OpenEvent>(0) else {
        emit::count(DropReason::RingFull);
        return;
    };
    let send_pos = sock.send_pos(state);
    let recv_pos = sock.recv_pos(state);
    let event = entry.as_mut_ptr();
    // SAFETY: the entry is as large as its type; every member is written.
    unsafe {
        (*event).header = EventHeader { kind: EventKind::Open as u8, flags: role, payload_len: 0, size: 0 };
        (*event).sock = state.cookie;
        (*event).time_ns = emit::now_ns();
        (*event).pid_tgid = pid_tgid;
        (*event).send_pos = send_pos;
        (*event).recv_pos = recv_pos;
        // The pair (position, sequence) must give the initial sequence number exactly, whatever moves meanwhile.
        (*event).write_seq = state.send_isn.wrapping_add(send_pos as u32);
        (*event).copied_seq = state.recv_isn.wrapping_add(recv_pos as u32);
        (*event).established_ns = state.established_ns;
        (*event).connect_ns = state.connect_ns;
        (*event).cgroup_id = bpf_get_current_cgroup_id();
        (*event).comm = bpf_get_current_comm().unwrap_or([0; 16]);
        sock.write_flow(&raw mut (*event).flow);
    }
    entry.submit(BPF_RB_NO_WAKEUP.into());
    state.flags |= state::ANNOUNCED;
}

/// The payload limit of this socket, asked again when the agent changed any.
#[inline(always)]
pub(crate) fn payload_limit(state: &mut SockState) -> u32 {
    if let Some(generation) = LIMITS_GENERATION.get(0)
        && *generation != state.limits_generation
    {
        state.limits_generation = *generation;
        // SAFETY: a value of four bytes, copied out at once.
        if let Some(limit) = unsafe { LIMITS.get(&state.cookie) } {
            state.payload_limit = *limit;
        }
    }
    state.payload_limit
}

/// Index of the n-th segment in the ring of unread ones.
#[inline(always)]
pub(crate) const fn segment_idx(n: u32) -> usize {
    n as usize & (ARRIVALS_MAX - 1)
}
