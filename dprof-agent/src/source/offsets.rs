//! Where this kernel keeps what the programs read.

use dprof_common::probe_config::Offsets;

use super::btf::{Btf, BtfError};

/// Every offset, or all members that this kernel lacks.
pub fn offsets(btf: &Btf) -> Result<Offsets, Vec<BtfError>> {
    let mut missing = Vec::new();
    let mut of = |name: &str, member: &str| {
        btf.offset(name, member).unwrap_or_else(|error| {
            missing.push(error);
            0
        })
    };
    let offsets = Offsets {
        skc_daddr: of("sock_common", "skc_daddr"),
        skc_rcv_saddr: of("sock_common", "skc_rcv_saddr"),
        skc_dport: of("sock_common", "skc_dport"),
        skc_num: of("sock_common", "skc_num"),
        skc_family: of("sock_common", "skc_family"),
        skc_state: of("sock_common", "skc_state"),
        skc_net: of("sock_common", "skc_net.net"),
        skc_v6_daddr: of("sock_common", "skc_v6_daddr"),
        skc_v6_rcv_saddr: of("sock_common", "skc_v6_rcv_saddr"),
        net_inum: of("net", "ns.inum"),
        sk_err: of("sock", "sk_err"),
        sk_pacing_status: of("sock", "sk_pacing_status"),
        copied_seq: of("tcp_sock", "copied_seq"),
        write_seq: of("tcp_sock", "write_seq"),
        rcv_nxt: of("tcp_sock", "rcv_nxt"),
        snd_nxt: of("tcp_sock", "snd_nxt"),
        snd_una: of("tcp_sock", "snd_una"),
        bytes_received: of("tcp_sock", "bytes_received"),
        bytes_acked: of("tcp_sock", "bytes_acked"),
        tcp_wstamp_ns: of("tcp_sock", "tcp_wstamp_ns"),
        tcp_clock_cache: of("tcp_sock", "tcp_clock_cache"),
        first_tx_mstamp: of("tcp_sock", "first_tx_mstamp"),
        srtt_us: of("tcp_sock", "srtt_us"),
        max_window: of("tcp_sock", "max_window"),
        mss_cache: of("tcp_sock", "mss_cache"),
        gso_segs: of("tcp_sock", "gso_segs"),
        msg_left: of("msghdr", "msg_iter.count"),
        task_flags: of("task_struct", "flags"),
        task_stack: of("task_struct", "stack"),
        regs_nr: of("pt_regs", "orig_ax"),
        regs_arg2: of("pt_regs", "si"),
        regs_arg3: of("pt_regs", "dx"),
        regs_result: of("pt_regs", "ax"),
        skb_cb: of("sk_buff", "cb"),
        sk_protocol: of("sock", "sk_protocol"),
        skc_prot: of("sock_common", "skc_prot"),
        proto_sendmsg: of("proto", "sendmsg"),
        proto_recvmsg: of("proto", "recvmsg"),
        skc_flags: of("sock_common", "skc_flags"),
    };
    if missing.is_empty() { Ok(offsets) } else { Err(missing) }
}
