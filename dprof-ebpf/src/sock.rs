//! Everything that reads a socket's structures, at offsets from the frozen configuration.

use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use dprof_common::flow::Flow;

use crate::access::{Access, Ptr};
use crate::maps::{SockState, config};

const AF_INET: u16 = 2;
pub(crate) const AF_INET6: u16 = 10;
const IPPROTO_TCP: u16 = 6;
pub(crate) const TCP_ESTABLISHED: u8 = 1;
pub(crate) const TCP_SYN_SENT: u8 = 2;
pub(crate) const TCP_SYN_RECV: u8 = 3;
pub(crate) const TCP_CLOSE: u8 = 7;
pub(crate) const TCP_CLOSE_WAIT: u8 = 8;
pub(crate) const TCP_LISTEN: u8 = 10;

/// `SOCK_DONE` of the kernel's `enum sock_flags`, since before git: the peer's FIN came.
const SOCK_DONE: u64 = 1 << 1;

/// A `struct sock` and the `struct tcp_sock` around it.
#[derive(Clone, Copy)]
pub(crate) struct TcpSock<A> {
    pub(crate) sk: Ptr<A>,
    pub(crate) tcp: Ptr<A>,
}

impl<A: Access> TcpSock<A> {
    /// `None` when `sk` is not a full TCP socket.
    #[inline(always)]
    pub(crate) fn new(sk: u64) -> Option<Self> {
        if A::PROBED {
            let sock = Self::known(sk);
            let family: u16 = sock.sk.load(config!(offsets.skc_family));
            let protocol: u16 = sock.sk.load(config!(offsets.sk_protocol));
            return ((family == AF_INET || family == AF_INET6) && protocol == IPPROTO_TCP).then_some(sock);
        }
        // SAFETY: the hook's argument; the helper answers null for other sockets.
        let tcp = unsafe { bpf_skc_to_tcp_sock(sk as *mut _) } as u64;
        if tcp == 0 { None } else { Some(Self { sk: Ptr::new(sk), tcp: Ptr::new(tcp) }) }
    }

    /// The same without a look: the hook is only reached by full TCP sockets. Only for probed pointers.
    #[inline(always)]
    pub(crate) fn known(sk: u64) -> Self {
        Self { sk: Ptr::new(sk), tcp: Ptr::new(sk) }
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

    /// `copied_seq`, less the peer's FIN if that has been read.
    #[inline(always)]
    pub(crate) fn read_seq(self) -> u32 {
        let copied: u32 = self.tcp.load(config!(offsets.copied_seq));
        let flags: u64 = self.sk.load(config!(offsets.skc_flags));
        if flags & SOCK_DONE != 0 && copied == self.rcv_nxt() { copied.wrapping_sub(1) } else { copied }
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

    /// Both ports as one number, to compare.
    #[inline(always)]
    pub(crate) fn ports(self) -> u32 {
        u32::from(self.local_port()) << 16 | u32::from(self.peer_port())
    }

    #[inline(always)]
    pub(crate) fn netns(self) -> u32 {
        let net: u64 = self.sk.load(config!(offsets.skc_net));
        Ptr::<A>::new(net).load(config!(offsets.net_inum))
    }

    /// Fills in place: the stack has no room for a second copy.
    ///
    /// # Safety
    /// `flow` is writable.
    #[inline(always)]
    pub(crate) unsafe fn write_flow(self, flow: *mut Flow) {
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
    /// its low half is put right with the initial sequence number ([`exact`]).
    #[inline(always)]
    pub(crate) fn rough_send_pos(self) -> u64 {
        let acked: u64 = self.tcp.load(config!(offsets.bytes_acked));
        let una: u32 = self.tcp.load(config!(offsets.snd_una));
        acked + u64::from(self.write_seq().wrapping_sub(una))
    }

    /// The same for everything read.
    #[inline(always)]
    pub(crate) fn rough_recv_pos(self) -> u64 {
        let received: u64 = self.tcp.load(config!(offsets.bytes_received));
        let copied: u32 = self.tcp.load(config!(offsets.copied_seq));
        received.wrapping_sub(u64::from(self.rcv_nxt().wrapping_sub(copied)))
    }

    /// Raw position after everything written.
    #[inline(always)]
    pub(crate) fn send_pos(self, state: &SockState) -> u64 {
        self.send_pos_of(state, self.write_seq())
    }

    /// Raw position of a sequence number of the send direction.
    #[inline(always)]
    pub(crate) fn send_pos_of(self, state: &SockState, seq: u32) -> u64 {
        exact(self.rough_send_pos(), seq.wrapping_sub(state.send_isn))
    }

    /// Raw position of a sequence number of the receive direction.
    #[inline(always)]
    pub(crate) fn recv_pos_of(self, state: &SockState, seq: u32) -> u64 {
        exact(self.rough_recv_pos(), seq.wrapping_sub(state.recv_isn))
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
