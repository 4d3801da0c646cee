//! The state of a socket: where it is kept, how it begins, and the socket's announcement.
//!
//! In socket storage it dies with the socket. Where programs cannot reach that (probed pointers, kernels without
//! the helper) it is found by the socket's address and removed when the socket is destroyed. What a reader would get
//! wrong: should that have been missed, the next socket at the address must not inherit it, so ports and initial
//! sequence number are compared.

use aya_ebpf::bindings::{BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE};
use aya_ebpf::helpers::bpf_get_current_comm;
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_socket_cookie, bpf_sk_storage_get};
use dprof_common::drop_reason::DropReason;
use dprof_common::event::{EventHeader, EventKind, OpenEvent, flag};
use dprof_common::limits::ARRIVALS_MAX;
use dprof_common::probe_config::gate;

use crate::access::{Access, Ptr};
use crate::emit::{self, Out};
use crate::filter;
use crate::maps::{
    LIMITS, LIMITS_GENERATION, SOCKETS, SOCKETS_BY_ADDRESS, SockState, address, config, state,
};
use crate::sock::{TCP_CLOSE, TcpSock};

/// What a new entry by address begins as. Volatile reads of it are not needed: only its address is used.
#[unsafe(no_mangle)]
static EMPTY_STATE: SockState = SockState::EMPTY;

/// How far two readings of an initial sequence number may lie apart and be the same: one is made while an
/// acknowledgement moves the two counters, by 16 MiB at most.
const ISN_SLACK: u32 = 1 << 24;

/// Whether the state of sockets is found by their address.
#[inline(always)]
fn by_address<A: Access>() -> bool {
    A::PROBED || config!(state_by_address) != 0
}

/// State of this socket, if there is any; null = none.
#[inline(always)]
pub(crate) fn existing<A: Access>(sock: TcpSock<A>) -> *mut SockState {
    if by_address::<A>() {
        let state = SOCKETS_BY_ADDRESS.get_ptr_mut(&sock.sk.0).unwrap_or(core::ptr::null_mut());
        // SAFETY: a value of the map.
        if !state.is_null() && !is_of(sock, unsafe { &*state }) {
            let _ = SOCKETS_BY_ADDRESS.remove(&sock.sk.0);
            return core::ptr::null_mut();
        }
        state
    } else {
        from_storage(sock, 0)
    }
}

/// State of this socket, made when missing; null if it cannot be made, which is counted.
#[inline(always)]
pub(crate) fn made<A: Access>(sock: TcpSock<A>) -> *mut SockState {
    let state = if by_address::<A>() {
        let found = existing(sock);
        if found.is_null() {
            let _ = SOCKETS_BY_ADDRESS.insert(&sock.sk.0, &EMPTY_STATE, BPF_NOEXIST.into());
            SOCKETS_BY_ADDRESS.get_ptr_mut(&sock.sk.0).unwrap_or(core::ptr::null_mut())
        } else {
            found
        }
    } else {
        from_storage(sock, BPF_SK_STORAGE_GET_F_CREATE.into())
    };
    if state.is_null() {
        emit::count(DropReason::NoSocketStorage);
    }
    state
}

/// The socket is destroyed: its state by address goes with it.
#[inline(always)]
pub(crate) fn destroyed(sk: u64) {
    let _ = SOCKETS_BY_ADDRESS.remove(&sk);
}

#[inline(always)]
fn from_storage<A: Access>(sock: TcpSock<A>, flags: u64) -> *mut SockState {
    // SAFETY: the helper takes a socket that the verifier knows and gives memory of the map's type or null.
    unsafe { bpf_sk_storage_get(address(&SOCKETS), sock.sk.0 as *mut _, core::ptr::null_mut(), flags).cast() }
}

/// Whether a state found by address is this socket's.
#[inline(always)]
fn is_of<A: Access>(sock: TcpSock<A>, state: &SockState) -> bool {
    if state.flags & state::READY == 0 {
        return true;
    }
    let isn = sock.write_seq().wrapping_sub(sock.rough_send_pos() as u32);
    let apart = isn.wrapping_sub(state.send_isn).wrapping_add(ISN_SLACK);
    sock.ports() == state.ports && apart < 2 * ISN_SLACK
}

/// State of a socket that the filters want, with its positions; `None` for others.
#[inline(always)]
pub(crate) fn wanted<A: Access>(sock: TcpSock<A>, word: u64) -> Option<&'static mut SockState> {
    let state = if by_address::<A>() {
        let found = existing(sock);
        // Room is limited there: none for what no filter wants, nor for what will not be destroyed any more.
        if !found.is_null() {
            found
        } else if filter::socket_wanted(sock, word) && sock.state() != TCP_CLOSE {
            made(sock)
        } else {
            found
        }
    } else {
        made(sock)
    };
    if state.is_null() {
        return None;
    }
    // SAFETY: state of this socket, which lives as long as the program; the programs' own races on it are harmless:
    // each member has one writer at a time, under the socket's lock or in the reading thread.
    let state = unsafe { &mut *state };
    prepare(sock, state, word);
    if state.flags & state::IGNORED == 0 {
        return Some(state);
    }
    if by_address::<A>() {
        destroyed(sock.sk.0);
    }
    None
}

/// First look at a socket: its cookie, initial sequence numbers, and whether a filter on sockets wants it.
/// Sequence and position must be of one moment. Under the socket's lock they are; some hooks run without, so
/// the counters are read until two readings agree (a reader between the kernel's two writes would need to stay
/// there for both).
#[inline(always)]
fn prepare<A: Access>(sock: TcpSock<A>, state: &mut SockState, word: u64) {
    if state.flags & state::READY != 0 {
        if state.gate != word {
            renew(sock, state, word);
        }
        return;
    }
    state.gate = word;
    state.cookie = cookie(sock, &raw mut state.cookie);
    let mut tries = 0;
    while tries < 4 {
        let copied: u32 = sock.tcp.load(config!(offsets.copied_seq));
        let send = sock.write_seq().wrapping_sub(sock.rough_send_pos() as u32);
        let recv = copied.wrapping_sub(sock.rough_recv_pos() as u32);
        let agreed = send == state.send_isn && recv == state.recv_isn && tries > 0;
        state.send_isn = send;
        state.recv_isn = recv;
        if agreed {
            break;
        }
        tries += 1;
    }
    state.reported_seq = sock.read_seq();
    state.sent_seq = sock.write_seq();
    state.ports = sock.ports();
    state.payload_limit = config!(payload_limit_default);
    state.flags |= state::READY;
    if !filter::socket_wanted(sock, word) {
        ignore(state);
    }
}

/// Capture window, choice of ports, or both are others than when the state was brought up to date.
#[inline(always)]
pub(crate) fn renew<A: Access>(sock: TcpSock<A>, state: &mut SockState, word: u64) {
    let before = state.gate;
    let changed = before ^ word;
    state.gate = word;
    let was_ignored = state.flags & state::IGNORED != 0;
    if changed & gate::CHOICE != 0 {
        // Silent during a choice between the two, it may not have been wanted then: nothing passed unseen, but the
        // agent has let it go. One that the agent still knows may be announced again.
        let is_wanted = filter::socket_wanted(sock, word);
        if !is_wanted || gate::is_skipped(before, word) {
            ignore(state);
        }
        if is_wanted {
            state.flags &= !state::IGNORED;
        }
    }
    // Of a socket that stays watched in the same window everything that was noted holds.
    if changed & gate::WINDOW != 0 || was_ignored {
        forget(sock, state);
    }
}

/// What was noted is of bytes that are long gone.
#[inline(always)]
fn forget<A: Access>(sock: TcpSock<A>, state: &mut SockState) {
    state.segments_out = state.segments_in;
    state.reported_seq = sock.read_seq();
    state.sent_seq = sock.write_seq();
    state.sending_ns = 0;
}

/// The socket is not watched. Should it be one day, it is announced as one that is older than the agent: what was known
/// of its beginning says nothing of where it is by then.
#[inline(always)]
fn ignore(state: &mut SockState) {
    state.flags = state.flags & state::NO_STREAM_POSITION | state::READY | state::IGNORED;
    state.established_ns = 0;
    state.connect_ns = 0;
}

/// The socket's number, unique while the machine runs. `place`: where it will be kept.
#[inline(always)]
fn cookie<A: Access>(sock: TcpSock<A>, place: *mut u64) -> u64 {
    if !A::PROBED && config!(has_cookie) != 0 {
        // SAFETY: the helper takes a socket that the verifier knows.
        return unsafe { bpf_get_socket_cookie(sock.sk.0 as *mut _) };
    }
    // For the verifier (all kernels): through memory, since it allows no arithmetic with a pointer that it knows.
    // SAFETY: state of this socket.
    let address = unsafe {
        place.write_volatile(sock.sk.0);
        place.read_volatile()
    };
    // No socket is seen first at the same nanosecond at the same address as another; the multiplication (Knuth's
    // 64-bit constant) spreads addresses so that the two do not cancel out.
    emit::now_ns() ^ address.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// A socket whose data is wanted, in a thread whose data is wanted.
pub(crate) struct Watched<A> {
    pub(crate) sock: TcpSock<A>,
    pub(crate) state: &'static mut SockState,
    pub(crate) pid_tgid: u64,
}

/// What every hook on data does first: asks the filters, finds the socket's state, announces the socket.
#[inline(always)]
pub(crate) fn watched<A: Access>(out: Out, sk: u64, word: u64) -> Option<Watched<A>> {
    let pid_tgid = filter::thread_wanted()?;
    let sock = TcpSock::new(sk)?;
    let state = wanted(sock, word)?;
    announce(out, sock, state, pid_tgid);
    Some(Watched { sock, state, pid_tgid })
}

/// Announces a socket in the context of the process that uses it.
#[inline(always)]
pub(crate) fn announce<A: Access>(out: Out, sock: TcpSock<A>, state: &mut SockState, pid_tgid: u64) {
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
    let send_pos = sock.send_pos(state);
    let recv_pos = sock.recv_pos_of(state, sock.read_seq());
    let known = &*state;
    let is_out = emit::record(out, |event: *mut OpenEvent| {
        // SAFETY: the room is as large as its type; every member is written.
        unsafe {
            (*event).header =
                EventHeader { kind: EventKind::Open as u8, flags: role, payload_len: 0, size: 0 };
            (*event).sock = known.cookie;
            (*event).time_ns = emit::now_ns();
            (*event).pid_tgid = pid_tgid;
            (*event).send_pos = send_pos;
            (*event).recv_pos = recv_pos;
            // The pair (position, sequence) must give the initial sequence number exactly, whatever moves meanwhile.
            (*event).write_seq = known.send_isn.wrapping_add(send_pos as u32);
            (*event).copied_seq = known.recv_isn.wrapping_add(recv_pos as u32);
            (*event).established_ns = known.established_ns;
            (*event).connect_ns = known.connect_ns;
            (*event).cgroup_id = bpf_get_current_cgroup_id();
            (*event).comm = bpf_get_current_comm().unwrap_or([0; 16]);
            sock.write_flow(&raw mut (*event).flow);
        }
    });
    if is_out {
        state.flags |= state::ANNOUNCED;
    }
}

/// Whether positions are those of the calls' bytes: nothing sits between the calls and TCP.
#[inline(always)]
pub(crate) fn has_stream_position<A: Access>(sock: TcpSock<A>, state: &mut SockState) -> bool {
    let proto: u64 = sock.sk.load(config!(offsets.skc_prot));
    if proto != state.proto {
        state.proto = proto;
        let (send, recv) = (config!(tcp_sendmsg), config!(tcp_recvmsg));
        let functions = Ptr::<A>::new(proto);
        let direct = send == 0
            || functions.load::<u64>(config!(offsets.proto_sendmsg)) == send
                && functions.load::<u64>(config!(offsets.proto_recvmsg)) == recv;
        if direct {
            state.flags &= !state::NO_STREAM_POSITION;
        } else {
            state.flags |= state::NO_STREAM_POSITION;
        }
    }
    state.flags & state::NO_STREAM_POSITION == 0
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
