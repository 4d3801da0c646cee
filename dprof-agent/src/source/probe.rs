//! Facts about the running kernel, for the plan and for `doctor`.

use super::btf::Btf;
use super::hooks::{Backend, Hook};
use super::object::{OBJECT, OBJECT_PERF};
use super::offsets::offsets;
use super::plan::Facts;
use super::trial;

/// Effective capabilities that loading and attaching need: `CAP_BPF` and `CAP_PERFMON`, or `CAP_SYS_ADMIN`.
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_PERFMON: u64 = 1 << 38;
const CAP_BPF: u64 = 1 << 39;

/// What was found, with the type information that was read on the way.
#[derive(Debug)]
pub struct Probed {
    /// The facts.
    pub facts: Facts,
    /// The kernel's types, if it has them.
    pub btf: Option<Btf>,
}

/// Looks at this machine. Never fails: what cannot be used is a fact.
pub fn probe() -> Probed {
    let mut facts = Facts { object_missing: OBJECT.is_empty() || OBJECT_PERF.is_empty(), ..Facts::default() };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    facts.privilege_error = privilege_error(&status);
    let btf = match Btf::from_kernel() {
        Ok(btf) => Some(btf),
        Err(error) => {
            facts.btf_error = Some(error.to_string());
            None
        }
    };
    if let Some(btf) = &btf {
        if let Err(missing) = offsets(btf) {
            facts.members_missing =
                missing.iter().map(|error| error.to_string().replace("this kernel has no ", "")).collect();
        }
        for hook in every_hook() {
            if let Some(name) = hook.attach.tracepoint()
                && !btf.has_tracepoint(name)
                && !facts.tracepoints_missing.contains(&name)
            {
                facts.tracepoints_missing.push(name);
            }
            if let Some(name) = hook.attach.function()
                && !facts.functions.contains_key(name)
                && let Some(parameters) = btf.parameters(name)
            {
                facts.functions.insert(name, parameters);
            }
        }
        facts.registers_on_stack = registers_on_stack(btf);
        if facts.privilege_error.is_none() && !facts.object_missing {
            trial::fill(&mut facts, btf);
        }
    }
    Probed { facts, btf }
}

/// Every form of every role of every back end.
pub fn every_hook() -> impl Iterator<Item = &'static Hook> {
    Backend::ALL.into_iter().flat_map(Backend::roles).flat_map(|role| role.forms)
}

/// Where the registers of a thread that is in a system call lie: at the upper end of its kernel stack (`task_pt_regs`
/// of x86). Kernels that put something above them have the helper, so this is not asked there.
fn registers_on_stack(btf: &Btf) -> Option<u32> {
    // `union thread_union` is as large as a stack. Where BTF leaves it out: on x86-64 an interrupt's stack is of the
    // same size, whatever that is (`THREAD_SIZE_ORDER` and `IRQ_STACK_ORDER` both grow with KASAN). Were it wrong, the
    // programs would find no `-ENOSYS` there, and read nothing.
    let stack = btf.size("thread_union").or_else(|| btf.size("irq_stack"))?;
    stack.checked_sub(btf.size("pt_regs")?)
}

/// Why a process with this `/proc/self/status` may not load programs; `None` = it may.
fn privilege_error(status: &str) -> Option<String> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let allowed =
        effective & CAP_SYS_ADMIN != 0 || effective & (CAP_BPF | CAP_PERFMON) == CAP_BPF | CAP_PERFMON;
    (!allowed).then(|| {
        "loading kernel programs needs root (or CAP_BPF and CAP_PERFMON): run it with sudo".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::privilege_error;

    #[track_caller]
    fn check(effective: u64, allowed: bool) {
        let status = format!("Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t{effective:016x}\n");
        assert_eq!(privilege_error(&status).is_none(), allowed, "{status}");
    }

    #[test]
    fn capabilities_decide_not_the_user_id() {
        check(0, false);
        check(1 << 21, true);
        check(1 << 39, false);
        check((1 << 39) | (1 << 38), true);
        check(0x0000_01ff_ffff_ffff, true);
        assert!(privilege_error("").is_some());
    }
}
