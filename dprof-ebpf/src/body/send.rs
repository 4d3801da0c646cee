//! Bytes handed to a socket.

use dprof_common::event::{EventHeader, EventKind, FirstDepartureEvent, SendEvent, flag};

use crate::access::Access;
use crate::emit::{self, Out};
use crate::maps::{SockState, config, open_gate};
use crate::payload::{self, InCall};
use crate::sock::TcpSock;
use crate::state::{self, Watched};

/// Paced by the fq queueing discipline: the segment leaves after TCP has let it go.
const SK_PACING_FQ: u32 = 2;

/// A call that handed over `ret` bytes ended, or failed.
#[inline(always)]
pub(crate) fn ended<A: Access>(out: Out, sk: u64, ret: i32, at: InCall) -> Option<()> {
    let word = open_gate()?;
    if ret > 0 {
        let Watched { sock, state, pid_tgid } = state::watched::<A>(out, sk, word)?;
        let end_seq = sock.write_seq();
        report(out, sock, state, Part { pid_tgid, size: ret as u32, end_seq, at });
    } else {
        // If it began as a large one, that is over.
        let state = state::existing(TcpSock::<A>::new(sk)?);
        if !state.is_null() {
            // SAFETY: state of this socket.
            unsafe { (*state).sending_ns = 0 };
        }
    }
    None
}

/// A call of `left` bytes begins, or goes on, under the socket's lock. Notes when one of several segments does: one
/// that fits a segment leaves when it ends, and [`ended`] knows.
#[inline(always)]
pub(crate) fn began<A: Access>(sk: u64, left: u64, size_goal: Option<u32>) -> Option<()> {
    let word = open_gate()?;
    let sock = TcpSock::<A>::new(sk)?;
    if !is_large(sock, left, size_goal) {
        return None;
    }
    note_large(sock, state::wanted(sock, word)?);
    None
}

/// Whether a call leaves in more than one segment.
#[inline(always)]
pub(crate) fn is_large<A: Access>(sock: TcpSock<A>, left: u64, size_goal: Option<u32>) -> bool {
    // Half the window at a time is pushed out, however large a segment may be (`forced_push`).
    let max_window: u32 = sock.tcp.load(config!(offsets.max_window));
    let size_goal = size_goal.unwrap_or_else(|| {
        // What `tcp_xmit_size_goal` made of it the last time; 0 before the first.
        let segment: u32 = sock.tcp.load(config!(offsets.mss_cache));
        let segments: u16 = sock.tcp.load(config!(offsets.gso_segs));
        if segments == 0 { segment } else { segment * u32::from(segments) }
    });
    left > u64::from(size_goal) || left > u64::from(max_window >> 1)
}

/// Notes when a large call begins.
#[inline(always)]
pub(crate) fn note_large<A: Access>(sock: TcpSock<A>, state: &mut SockState) {
    let write_seq = sock.write_seq();
    // A later piece of the same call; and behind unsent bytes, its first byte leaves when they have.
    if state.sending_ns == 0 && write_seq == sock.snd_nxt() {
        state.sending_ns = emit::now_ns();
        state.sending_seq = write_seq;
    }
}

/// A part of a send call: all of it, or what it had handed over when it slept.
pub(crate) struct Part {
    pub(crate) pid_tgid: u64,
    /// Bytes.
    pub(crate) size: u32,
    /// Sequence number after its last byte.
    pub(crate) end_seq: u32,
    pub(crate) at: InCall,
}

/// Writes the events of a part.
#[inline(always)]
pub(crate) fn report<A: Access>(out: Out, sock: TcpSock<A>, state: &mut SockState, part: Part) {
    let Part { pid_tgid, size, end_seq, mut at } = part;
    let unsent = end_seq.wrapping_sub(sock.snd_nxt());
    let end_pos = sock.send_pos_of(state, end_seq);
    if state.sending_ns != 0 {
        // With a second writer it may be the other's.
        if state.sending_seq == end_seq.wrapping_sub(size) {
            emit::fixed(
                out,
                &FirstDepartureEvent {
                    header: EventHeader {
                        kind: EventKind::FirstDeparture as u8,
                        flags: 0,
                        payload_len: 0,
                        size: 0,
                    },
                    sock: state.cookie,
                    start_pos: end_pos.wrapping_sub(u64::from(size)),
                    time_ns: state.sending_ns,
                },
            );
        }
        state.sending_ns = 0;
    }
    let mut flags = 0;
    let time_ns = if unsent < size {
        if unsent == 0 {
            flags |= flag::DEPARTED;
        }
        departed_ns(sock)
    } else {
        emit::now_ns()
    };
    let pacing: u32 = sock.sk.load(config!(offsets.sk_pacing_status));
    if pacing == SK_PACING_FQ {
        flags |= flag::APPROXIMATE;
    }
    if !state::has_stream_position(sock, state) {
        flags |= flag::NO_STREAM_POSITION;
        at.may_read &= !at.below_call;
    }
    let srtt: u32 = sock.tcp.load(config!(offsets.srtt_us));
    let event = SendEvent {
        header: EventHeader { kind: EventKind::Send as u8, flags, payload_len: 0, size },
        sock: state.cookie,
        end_pos,
        pid_tgid,
        time_ns,
        unsent,
        srtt_us: srtt >> 3,
    };
    payload::emit(out, event, state, pid_tgid as u32, at);
}

/// When the last byte that has left the socket left it.
///
/// `tcp_wstamp_ns` is the last transmission's time, with two exceptions. On a paced socket it is the next departure
/// allowed, in the future: then the clock cache, refreshed before each transmission, is nearer. And whatever comes in
/// refreshes that cache, and whatever goes out (an acknowledgement of it) moves `tcp_wstamp_ns`: a socket whose bytes
/// are all acknowledged has been through that already, and may have been for as long as this thread was off the CPU.
/// It knows better: the delivery-rate sample keeps the transmission time of the segment acknowledged last
/// (`tcp_rate_skb_delivered`), in whole microseconds, taken here from their middle.
#[inline(always)]
fn departed_ns<A: Access>(sock: TcpSock<A>) -> u64 {
    let wstamp: u64 = sock.tcp.load(config!(offsets.tcp_wstamp_ns));
    let cache = sock.clock_cache_ns();
    let latest = if wstamp < cache { wstamp } else { cache };
    if sock.snd_una() != sock.write_seq() {
        return latest;
    }
    let sent_us: u64 = sock.tcp.load(config!(offsets.first_tx_mstamp));
    let sent_ns = sent_us * 1000;
    // The same microsecond: `latest` is exact. An earlier one: it is another transmission's.
    if latest.wrapping_sub(sent_ns) < 1000 { latest } else { sent_ns + 500 }
}
