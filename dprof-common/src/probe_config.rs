//! What the agent tells the kernel programs when it loads them: read-only globals, frozen before the verifier
//! runs, so that an offset is a constant to it and loads through typed kernel pointers are plain loads.

/// Byte offsets of kernel struct members, read from the running kernel's BTF. Rust has no CO-RE: a load with
/// an offset of another kernel reads garbage, so every member that a program touches is here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct Offsets {
    /// `sock_common.skc_daddr`
    pub skc_daddr: u32,
    /// `sock_common.skc_rcv_saddr`
    pub skc_rcv_saddr: u32,
    /// `sock_common.skc_dport` (network order)
    pub skc_dport: u32,
    /// `sock_common.skc_num` (host order)
    pub skc_num: u32,
    /// `sock_common.skc_family`
    pub skc_family: u32,
    /// `sock_common.skc_state`
    pub skc_state: u32,
    /// `sock_common.skc_net.net`
    pub skc_net: u32,
    /// `sock_common.skc_v6_daddr`
    pub skc_v6_daddr: u32,
    /// `sock_common.skc_v6_rcv_saddr`
    pub skc_v6_rcv_saddr: u32,
    /// `net.ns.inum`
    pub net_inum: u32,
    /// `sock.sk_err`
    pub sk_err: u32,
    /// `sock.sk_pacing_status`
    pub sk_pacing_status: u32,
    /// `tcp_sock.copied_seq`
    pub copied_seq: u32,
    /// `tcp_sock.write_seq`
    pub write_seq: u32,
    /// `tcp_sock.rcv_nxt`
    pub rcv_nxt: u32,
    /// `tcp_sock.snd_nxt`
    pub snd_nxt: u32,
    /// `tcp_sock.snd_una`
    pub snd_una: u32,
    /// `tcp_sock.bytes_received`
    pub bytes_received: u32,
    /// `tcp_sock.bytes_acked`
    pub bytes_acked: u32,
    /// `tcp_sock.tcp_wstamp_ns`
    pub tcp_wstamp_ns: u32,
    /// `tcp_sock.tcp_clock_cache`
    pub tcp_clock_cache: u32,
    /// `tcp_sock.first_tx_mstamp`, microseconds
    pub first_tx_mstamp: u32,
    /// `tcp_sock.srtt_us` (shifted left by 3, as the kernel keeps it)
    pub srtt_us: u32,
    /// `tcp_sock.max_window`
    pub max_window: u32,
    /// `tcp_sock.mss_cache`
    pub mss_cache: u32,
    /// `tcp_sock.gso_segs`: segments sent as one, at most
    pub gso_segs: u32,
    /// `msghdr.msg_iter.count`
    pub msg_left: u32,
    /// `task_struct.flags`
    pub task_flags: u32,
    /// `task_struct.stack`: lowest address of the kernel stack
    pub task_stack: u32,
    /// `pt_regs.orig_ax`
    pub regs_nr: u32,
    /// `pt_regs.si`
    pub regs_arg2: u32,
    /// `pt_regs.dx`
    pub regs_arg3: u32,
    /// `pt_regs.ax`: `-ENOSYS` while a system call runs on x86-64
    pub regs_result: u32,
    /// `sk_buff.cb`, where TCP keeps `seq` (+0) and `end_seq` (+4)
    pub skb_cb: u32,
    /// `sock.sk_protocol`
    pub sk_protocol: u32,
    /// `sock_common.skc_prot`: which protocol's functions the socket has
    pub skc_prot: u32,
    /// `proto.sendmsg`
    pub proto_sendmsg: u32,
    /// `proto.recvmsg`
    pub proto_recvmsg: u32,
    /// `sock_common.skc_flags`: bits of the kernel's `enum sock_flags`
    pub skc_flags: u32,
}

impl Offsets {
    /// No offset known: what the programs are compiled with.
    pub const ZERO: Self = Self {
        skc_daddr: 0,
        skc_rcv_saddr: 0,
        skc_dport: 0,
        skc_num: 0,
        skc_family: 0,
        skc_state: 0,
        skc_net: 0,
        skc_v6_daddr: 0,
        skc_v6_rcv_saddr: 0,
        net_inum: 0,
        sk_err: 0,
        sk_pacing_status: 0,
        copied_seq: 0,
        write_seq: 0,
        rcv_nxt: 0,
        snd_nxt: 0,
        snd_una: 0,
        bytes_received: 0,
        bytes_acked: 0,
        tcp_wstamp_ns: 0,
        tcp_clock_cache: 0,
        first_tx_mstamp: 0,
        srtt_us: 0,
        max_window: 0,
        mss_cache: 0,
        gso_segs: 0,
        msg_left: 0,
        task_flags: 0,
        task_stack: 0,
        regs_nr: 0,
        regs_arg2: 0,
        regs_arg3: 0,
        regs_result: 0,
        skb_cb: 0,
        sk_protocol: 0,
        skc_prot: 0,
        proto_sendmsg: 0,
        proto_recvmsg: 0,
        skc_flags: 0,
    };
}

/// The word that the kernel programs ask first, one load: whether data is captured now, and which ports. A socket
/// remembers the word that it was last judged by, so that one comparison tells it that either changed.
pub mod gate {
    /// Number of the capture window; 0 = closed.
    pub const WINDOW: u64 = u32::MAX as u64;
    /// Only sockets whose local or peer port is in `FILTER_PORTS`.
    pub const PORTS: u64 = 1 << 32;
    /// Which half of `FILTER_PORTS` is meant: the other one is free to be written. The lowest bit of the number of
    /// the choice of ports.
    pub const HALF: u64 = 1 << 33;
    /// The choice of ports: whether there is one, and its number.
    pub const CHOICE: u64 = !WINDOW;
    /// Whether a choice lay between these words: what was judged under `before` was not judged under that.
    #[inline]
    pub const fn is_skipped(before: u64, now: u64) -> bool {
        (now & CHOICE & !PORTS).wrapping_sub(before & CHOICE & !PORTS) != HALF
    }

    /// Ports per entry of `FILTER_PORTS`, a bit each.
    pub const PORTS_PER_ENTRY: u32 = 64;
    /// Entries of a half of `FILTER_PORTS`.
    pub const ENTRIES: u32 = (1 << 16) / PORTS_PER_ENTRY;

    /// Entry and bit of a port, under this word.
    #[inline]
    pub const fn place(word: u64, port: u16) -> (u32, u64) {
        let half = if word & HALF == 0 { 0 } else { ENTRIES };
        (half + port as u32 / PORTS_PER_ENTRY, 1 << (port as u32 % PORTS_PER_ENTRY))
    }
}

/// Bits of [`ProbeConfig::filters`]: which filter maps are asked. What of ports, [`gate`] says.
pub mod filter {
    /// Only threads whose process is in `FILTER_PIDS`.
    pub const PIDS: u32 = 1 << 1;
    /// Only threads whose cgroup is in `FILTER_CGROUPS`.
    pub const CGROUPS: u32 = 1 << 2;
    /// Only sockets whose network namespace is in `FILTER_NETNS`.
    pub const NETNS: u32 = 1 << 3;
}

/// Everything that is fixed while the programs are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(bytemuck::Pod, bytemuck::Zeroable))]
pub struct ProbeConfig {
    /// Offsets of this kernel.
    pub offsets: Offsets,
    /// Process id of the agent: its own traffic is never captured.
    pub own_tgid: u32,
    /// Which filters are on: bits of [`filter`].
    pub filters: u32,
    /// Payload limit of a socket that the agent has not judged yet, bytes.
    pub payload_limit_default: u32,
    /// Non-zero: the state of sockets is found by their address, for want of socket storage.
    pub state_by_address: u32,
    /// Non-zero: `bpf_get_socket_cookie` can be called with a socket; else sockets get ids of our own.
    pub has_cookie: u32,
    /// Registers of the running system call: this far above the low end of the kernel stack; 0 = the helper
    /// `bpf_task_pt_regs` says where.
    pub regs_from_stack: u32,
    /// Non-zero: kernel-side debug messages through aya-log (never on the path of data when zero).
    pub debug: u32,
    /// Blocks of each CPU's event buffer (`cpu_buffer`), a power of two; 0 = all events go through the ring.
    pub blocks_per_cpu: u32,
    /// Explicit padding.
    pub padding: u32,
    /// Address of `tcp_sendmsg`: a socket whose calls go elsewhere (kTLS, sockmap) has another stream than the
    /// wire's. 0 = unknown, nothing is said.
    pub tcp_sendmsg: u64,
    /// Address of `tcp_recvmsg`.
    pub tcp_recvmsg: u64,
}
