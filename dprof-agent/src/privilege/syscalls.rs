//! Which system calls remain once everything is attached: what threads, files, sockets, time and the maps of the
//! kernel programs take.
//!
//! What a reader would get wrong: a call that is not listed fails with `ENOSYS`, as on an older kernel, so that the C
//! library takes its next best way (`clone` for `clone3`). There is no way to start a program, to load one into the
//! kernel, to trace, mount, enter a namespace or load a module, whatever capabilities are left.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use anyhow::{Context as _, anyhow};
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Reading, writing and naming files and folders.
const FILES: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_flock,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_mkdirat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_umask,
];

/// The same by their older names, which this architecture has too.
#[cfg(target_arch = "x86_64")]
const OLDER: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_rename,
    libc::SYS_unlink,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_getdents,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_create,
    libc::SYS_eventfd,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[c_long] = &[];

/// Memory, threads, signals, waiting, time, and what a process may ask about itself.
const PROCESS: &[c_long] = &[
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_msync,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
    libc::SYS_prctl,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_getcpu,
    libc::SYS_membarrier,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_times,
    libc::SYS_getrandom,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_adjtimex,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
];

/// Sockets; which families, [`filter`] says.
const SOCKETS: &[c_long] = &[
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
];

/// Families of sockets: the store, the control socket, the metrics, and how the C library resolves names.
const FAMILIES: [libc::c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// What may be asked of `bpf`: the elements of maps that are open, and facts about what is (`enum bpf_cmd`).
const BPF_COMMANDS: [u64; 5] = [
    1,  // BPF_MAP_LOOKUP_ELEM
    2,  // BPF_MAP_UPDATE_ELEM
    3,  // BPF_MAP_DELETE_ELEM
    4,  // BPF_MAP_GET_NEXT_KEY
    15, // BPF_OBJ_GET_INFO_BY_FD
];
/// Types keystrokes into a terminal, for whoever reads it next.
const TERMINAL_INPUT: [u64; 2] = [0x5412 /* TIOCSTI */, 0x541c /* TIOCLINUX */];

/// Filters the calling thread and those that it starts.
pub(super) fn filter() -> anyhow::Result<()> {
    seccompiler::apply_filter(&program()?).context("install the filter")
}

/// Whether this kernel filters system calls by program.
pub fn is_supported() -> bool {
    // SAFETY: asks for the mode of this thread; takes numbers only.
    unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) >= 0 }
}

fn program() -> anyhow::Result<BpfProgram> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = [FILES, OLDER, PROCESS, SOCKETS]
        .concat()
        .into_iter()
        // No rule: whatever the arguments.
        .map(|call| (call, Vec::new()))
        .collect();
    let any = |argument: u8, values: &[u64]| {
        values
            .iter()
            .map(|value| rule(&[(argument, SeccompCmpOp::Eq, *value)]))
            .collect::<Result<Vec<_>, _>>()
    };
    rules.insert(libc::SYS_bpf, any(0, &BPF_COMMANDS)?);
    rules.insert(libc::SYS_socket, any(0, &FAMILIES.map(|family| family as u64))?);
    let is_thread = SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64);
    rules.insert(libc::SYS_clone, vec![rule(&[(0, is_thread, libc::CLONE_THREAD as u64)])?]);
    let others = TERMINAL_INPUT.map(|value| (1, SeccompCmpOp::Ne, value));
    rules.insert(libc::SYS_ioctl, vec![rule(&others)?]);
    let architecture = ARCH.try_into().map_err(|_| anyhow!("no filter for {ARCH}"))?;
    let refused = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, refused, SeccompAction::Allow, architecture)
        .and_then(BpfProgram::try_from)
        .context("compile the filter")
}

/// Holds if all conditions (argument, comparison, value) do.
fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> anyhow::Result<SeccompRule> {
    let conditions = conditions
        .iter()
        .map(|(argument, comparison, value)| {
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, comparison.clone(), *value)
        })
        .collect::<Result<Vec<_>, _>>();
    conditions.and_then(SeccompRule::new).context("compile a condition")
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::process::Command;

    use super::*;

    /// Runs `test` on a thread of its own, which alone is filtered.
    fn filtered<T: Send>(test: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                filter().expect("this kernel filters");
                test()
            });
            run.join().expect("ran")
        })
    }

    /// The error of a raw call.
    fn error_of(result: c_long) -> Option<i32> {
        (result < 0).then(|| std::io::Error::last_os_error().raw_os_error()).flatten()
    }

    #[test]
    fn threads_files_and_connections_go_on() {
        filtered(|| {
            let dir = tempfile::tempdir().expect("a folder");
            let (path, moved) = (dir.path().join("a"), dir.path().join("b"));
            std::fs::write(&path, "x").expect("writes");
            std::fs::rename(&path, &moved).expect("renames");
            assert_eq!(std::fs::read_to_string(&moved).expect("reads"), "x");
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
            let address = listener.local_addr().expect("bound");
            let client = std::thread::spawn(move || {
                std::net::TcpStream::connect(address).and_then(|mut stream| stream.write_all(b"hi"))
            });
            let (mut stream, _) = listener.accept().expect("accepts");
            let mut got = Vec::new();
            stream.read_to_end(&mut got).expect("reads");
            assert_eq!(got, b"hi");
            client.join().expect("a thread of the filtered one").expect("connects");
            std::thread::sleep(std::time::Duration::from_millis(1));
            assert!(std::fs::read_dir("/proc/self/task").expect("lists").count() > 0);
        });
    }

    #[test]
    fn nothing_is_started_traced_mounted_or_loaded() {
        filtered(|| {
            let error = Command::new("/bin/true").status().expect_err("no program starts");
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            // SAFETY: each is refused before it looks at its arguments; none of them could do harm with zeros.
            let errors = unsafe {
                [
                    error_of(libc::syscall(libc::SYS_unshare, 0)),
                    error_of(libc::syscall(libc::SYS_setns, -1, 0)),
                    error_of(libc::syscall(libc::SYS_ptrace, 0, 0, 0, 0)),
                    error_of(libc::syscall(libc::SYS_mount, 0, 0, 0, 0, 0)),
                    error_of(libc::syscall(libc::SYS_process_vm_readv, 0, 0, 0, 0, 0, 0)),
                    error_of(libc::syscall(libc::SYS_execve, 0, 0, 0)),
                    error_of(libc::syscall(libc::SYS_init_module, 0, 0, 0)),
                    error_of(libc::syscall(libc::SYS_io_uring_setup, 0, 0)),
                    error_of(libc::syscall(libc::SYS_socket, libc::AF_PACKET, libc::SOCK_RAW, 0)),
                    // BPF_PROG_LOAD
                    error_of(libc::syscall(libc::SYS_bpf, 5, 0, 0)),
                    error_of(libc::syscall(libc::SYS_ioctl, 0, TERMINAL_INPUT[0], 0)),
                ]
            };
            assert_eq!(errors, [Some(libc::ENOSYS); 11]);
            // SAFETY: an element of no map: the call itself is allowed.
            assert_ne!(error_of(unsafe { libc::syscall(libc::SYS_bpf, 1, 0, 0) }), Some(libc::ENOSYS));
        });
    }
}
