//! Calls whose end no probe on entries shows: they are told by the socket's release.
//!
//! The problem: a kprobe sees a function begin, not end, and a return probe on one that sleeps runs out of room. The
//! idea: whoever moves `write_seq` or `copied_seq` holds the socket's lock and then gives it back through
//! `release_sock`, in the same thread. What has moved since the last release is this thread's. What a reader would
//! get wrong: a call that sleeps gives the lock back, too, so it may be told in several parts; each is exact.

use dprof_common::probe_config::gate;

use crate::access::Probed;
use crate::body::{recv, send};
use crate::emit::Out;
use crate::filter;
use crate::maps::{CALLS, Call, SOCKETS_BY_ADDRESS, open_gate, state};
use crate::payload::InCall;
use crate::sock::{TCP_CLOSE_WAIT, TCP_ESTABLISHED, TcpSock};
use crate::state as sockets;

/// A call begins in the current thread.
#[inline(always)]
fn begins(sk: u64, tid: u32, may_read: bool, word: u64) {
    let call = Call { sk, done: 0, may_read: u32::from(may_read), gate: word };
    let _ = CALLS.insert(&tid, &call, 0);
}

/// A send of `size` bytes begins, under the socket's lock. `may_read`: from the caller's buffers.
#[inline(always)]
pub(crate) fn send_begins(sk: u64, size: u64, may_read: bool) -> Option<()> {
    let word = open_gate()?;
    let pid_tgid = filter::thread_wanted()?;
    let sock = TcpSock::<Probed>::new(sk)?;
    let state = sockets::wanted(sock, word)?;
    if send::is_large(sock, size, None) {
        send::note_large(sock, state);
    }
    // What moved it unseen (a FIN, a thread that no filter wants) is not this call's.
    state.sent_seq = sock.write_seq();
    begins(sk, pid_tgid as u32, may_read, word);
    None
}

/// A receive begins, the socket's lock not yet taken.
#[inline(always)]
pub(crate) fn recv_begins(sk: u64, flags: i32) -> Option<()> {
    let word = open_gate()?;
    let pid_tgid = filter::thread_wanted()?;
    sockets::wanted(TcpSock::<Probed>::new(sk)?, word)?;
    begins(sk, pid_tgid as u32, recv::copies(flags), word);
    None
}

/// The current thread gives the lock of a socket back.
#[inline(always)]
pub(crate) fn released(out: Out, sk: u64) -> Option<()> {
    let word = open_gate()?;
    let state = SOCKETS_BY_ADDRESS.get_ptr_mut(&sk)?;
    // SAFETY: a value of the map; its socket's lock is held.
    let state = unsafe { &mut *state };
    if state.flags & (state::READY | state::IGNORED) != state::READY {
        return None;
    }
    let sock = TcpSock::<Probed>::known(sk);
    if state.gate != word {
        let same_window = (state.gate ^ word) & gate::WINDOW == 0;
        sockets::renew(sock, state, word);
        // The call may have begun before the window opened: what it moved by now is not known.
        if !same_window || state.flags & state::IGNORED != 0 {
            return None;
        }
    }
    let write_seq = sock.write_seq();
    let sent = write_seq.wrapping_sub(state.sent_seq);
    let received = sock.read_seq().wrapping_sub(state.reported_seq);
    if sent == 0 && received == 0 {
        // A large send that came to nothing.
        state.sending_ns = 0;
        return None;
    }
    state.sent_seq = write_seq;
    let Some(pid_tgid) = filter::thread_wanted() else {
        state.reported_seq = state.reported_seq.wrapping_add(received);
        return None;
    };
    let tid = pid_tgid as u32;
    // Data is written in these two states; a SYN and a FIN move the sequence number as the state is left.
    let tcp_state = sock.state();
    let is_data = tcp_state == TCP_ESTABLISHED || tcp_state == TCP_CLOSE_WAIT;
    let is_send = is_data && sent != 0 && sent < 1 << 31;
    let is_recv = received != 0 && received < 1 << 31;
    if !is_send && !is_recv {
        return None;
    }
    let size = if is_send { sent } else { received };
    let at = place(sk, tid, size, word);
    sockets::announce(out, sock, state, pid_tgid);
    if is_send {
        send::report(out, sock, state, send::Part { pid_tgid, size, end_seq: write_seq, at });
    } else {
        recv::report(out, sock, state, pid_tgid, size, at);
    }
    None
}

/// Where in the thread's call its next `size` bytes lie.
#[inline(always)]
fn place(sk: u64, tid: u32, size: u32, word: u64) -> InCall {
    let Some(call) = CALLS.get_ptr_mut(&tid) else { return InCall::NOWHERE };
    // SAFETY: a value of the map, of the running thread alone.
    let call = unsafe { &mut *call };
    if call.sk != sk || (call.gate ^ word) & gate::WINDOW != 0 {
        return InCall::NOWHERE;
    }
    let at = InCall { may_read: call.may_read != 0, below_call: true, done: call.done };
    call.done = call.done.wrapping_add(size);
    at
}
