//! Bytes handed to a socket.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use dprof_common::event::{EventHeader, EventKind, RecvEvent, SendEvent, flag};

use crate::maps::{config, state};
use crate::payload::{self, Buffers};
use crate::sock::{self, TcpSock};
use crate::{emit, filter};

/// Paced by the fq queueing discipline: the segment leaves after TCP has let it go.
const SK_PACING_FQ: u32 = 2;

/// `tp_btf/sock_send_length` (6.3): after a send, the socket's lock already released.
/// Arguments: `struct sock *sk, int ret, int flags`.
#[btf_tracepoint(function = "sock_send_length")]
fn on_send(ctx: BtfTracePointContext) -> i32 {
    let ret: i32 = ctx.arg(1);
    if ret > 0 {
        send(ctx.arg(0), ret as u32);
    }
    0
}

#[inline(always)]
fn send(sk: u64, size: u32) -> Option<()> {
    let pid_tgid = filter::thread_wanted()?;
    let sock = TcpSock::new(sk)?;
    let state = sock.state_ptr(true);
    if state.is_null() {
        emit::count(dprof_common::drop_reason::DropReason::NoSocketStorage);
        return None;
    }
    // SAFETY: storage of this socket; the programs' own races on it are harmless (see SockState).
    let state = unsafe { &mut *state };
    sock::prepare(sock, state);
    if state.flags & state::IGNORED != 0 {
        return None;
    }
    sock::announce(sock, state, pid_tgid);

    let unsent = sock.write_seq().wrapping_sub(sock.snd_nxt());
    let mut flags = 0;
    let time_ns = if unsent < size {
        if unsent == 0 {
            flags |= flag::DEPARTED;
            // Acknowledged before this hook ran: that refreshed the clock cache, so the time is an upper bound.
            if sock.snd_una() == sock.write_seq() {
                flags |= flag::APPROXIMATE;
            }
        }
        // A paced socket's wstamp is the next departure allowed, in the future; the clock cache is this one's.
        let wstamp: u64 = sock.tcp.load(config!(offsets.tcp_wstamp_ns));
        let cache = sock.clock_cache_ns();
        if wstamp < cache { wstamp } else { cache }
    } else {
        emit::now_ns()
    };
    let pacing: u32 = sock.sk.load(config!(offsets.sk_pacing_status));
    if pacing == SK_PACING_FQ {
        flags |= flag::APPROXIMATE;
    }
    let srtt: u32 = sock.tcp.load(config!(offsets.srtt_us));
    let mut event = SendEvent {
        header: EventHeader { kind: EventKind::Send as u8, flags, payload_len: 0, size },
        sock: state.cookie,
        end_pos: sock.send_pos(state),
        pid_tgid,
        time_ns,
        unsent,
        srtt_us: srtt >> 3,
    };
    let limit = payload::bounded(sock::payload_limit(state), dprof_common::limits::PAYLOAD_BYTES_MAX as u32);
    let wanted = if size < limit { size } else { limit };
    if wanted != 0 {
        let buffers = payload::buffers(pid_tgid as u32);
        if let Buffers::None = buffers {
            event.header.flags |= flag::NO_BUFFER;
        } else if let Some(scratch) = payload::scratch() {
            let len = payload::gather(scratch, buffers, wanted);
            event.header.payload_len = len as u16;
            let len = payload::bounded(len, dprof_common::limits::PAYLOAD_BYTES_MAX as u32);
            // SAFETY: the fixed part ends where the payload starts, and both lie in the scratch buffer.
            unsafe {
                let fixed = (&raw mut (*scratch).fixed)
                    .cast::<u8>()
                    .add(size_of::<RecvEvent>() - size_of::<SendEvent>());
                fixed.cast::<SendEvent>().write(event);
                emit::output(fixed, size_of::<SendEvent>() as u64 + u64::from(len));
            }
            payload::done(scratch);
            return None;
        }
    }
    emit::fixed(&event);
    None
}
