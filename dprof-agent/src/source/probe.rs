//! Facts about the running kernel, for the plan and for `doctor`.

use super::btf::Btf;
use super::hooks::{Attach, Facts, TP_BTF};
use super::object::OBJECT;
use super::offsets::offsets;

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
    let mut facts = Facts { object_missing: OBJECT.is_empty(), ..Facts::default() };
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
        facts.tracepoints_missing = TP_BTF
            .iter()
            .filter_map(|hook| match hook.attach {
                Attach::TpBtf(name) if !btf.has_tracepoint(name) => Some(name),
                Attach::TpBtf(_) | Attach::Iter(_) => None,
            })
            .collect();
    }
    Probed { facts, btf }
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
