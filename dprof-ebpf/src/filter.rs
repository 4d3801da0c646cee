//! Which sockets and threads are watched. Asked before anything is read or written.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use dprof_common::probe_config::{filter, gate};

use crate::access::Access;
use crate::maps::{FILTER_CGROUPS, FILTER_NETNS, FILTER_PIDS, FILTER_PORTS, config};
use crate::sock::TcpSock;

/// Depth to which a thread's cgroups are asked: deeper trees than systemd with containers in pods are rare.
const CGROUP_LEVELS_MAX: i32 = 8;

/// Filters on what a socket is, asked once per socket and choice of ports.
#[inline(always)]
pub(crate) fn socket_wanted<A: Access>(sock: TcpSock<A>, word: u64) -> bool {
    let filters = config!(filters);
    if word & gate::PORTS != 0
        && !port_wanted(sock.local_port(), word)
        && !port_wanted(sock.peer_port(), word)
    {
        return false;
    }
    if filters & filter::NETNS != 0 {
        let netns = sock.netns();
        // SAFETY: as above.
        if unsafe { FILTER_NETNS.get(&netns) }.is_none() {
            return false;
        }
    }
    true
}

#[inline(always)]
fn port_wanted(port: u16, word: u64) -> bool {
    let (entry, bit) = gate::place(word, port);
    FILTER_PORTS.get(entry).is_some_and(|bits| bits & bit != 0)
}

/// Process and thread id if the running thread is watched: never the agent itself.
#[inline(always)]
pub(crate) fn thread_wanted() -> Option<u64> {
    let pid_tgid = bpf_get_current_pid_tgid();
    let tgid = (pid_tgid >> 32) as u32;
    if tgid == config!(own_tgid) {
        return None;
    }
    let filters = config!(filters);
    // SAFETY: only whether the key is there is asked.
    if filters & filter::PIDS != 0 && unsafe { FILTER_PIDS.get(&tgid) }.is_none() {
        return None;
    }
    if filters & filter::CGROUPS != 0 && !cgroup_wanted() {
        return None;
    }
    Some(pid_tgid)
}

#[inline(always)]
fn cgroup_wanted() -> bool {
    let mut level = 0;
    while level < CGROUP_LEVELS_MAX {
        // SAFETY: takes a number; 0 when the thread is not that deep.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            return false;
        }
        // SAFETY: only whether the key is there is asked.
        if unsafe { FILTER_CGROUPS.get(&id) }.is_some() {
            return true;
        }
        level += 1;
    }
    false
}
