//! From facts about the kernel to what a run attaches: a pure function.
//!
//! What a reader would get wrong: nothing here asks for a kernel's version. Distributions move features between
//! versions, so each fact is probed, and `doctor` prints the same facts and the same plan that a run uses.

use std::collections::BTreeMap;

use super::hooks::{Attach, Backend, Events, Hook, Without};

/// What was probed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Whether the objects with the kernel programs are missing in this binary.
    pub object_missing: bool,
    /// Why the agent may not load programs; `None` = it may.
    pub privilege_error: Option<String>,
    /// Why BTF cannot be used; `None` = it can.
    pub btf_error: Option<String>,
    /// Members that the programs read and this kernel lacks.
    pub members_missing: Vec<String>,
    /// Tracepoints that this kernel lacks, of those that any back end uses.
    pub tracepoints_missing: Vec<&'static str>,
    /// Parameters of the functions that any back end uses and this kernel has.
    pub functions: BTreeMap<&'static str, usize>,
    /// Why programs cannot attach to functions with types; `None` = they can.
    pub fentry_error: Option<String>,
    /// Why kprobes cannot be used; `None` = they can.
    pub kprobe_error: Option<String>,
    /// Why there is no ring buffer; `None` = there is one.
    pub ring_error: Option<String>,
    /// Typed programs reach socket storage.
    pub socket_storage: bool,
    /// Typed programs are told a socket's cookie.
    pub socket_cookie: bool,
    /// Typed programs are told the registers of the running system call.
    pub typed_registers: bool,
    /// So are kprobes.
    pub probed_registers: bool,
    /// Where else those registers lie: bytes above the low end of a thread's stack; `None` = unknown.
    pub registers_on_stack: Option<u32>,
}

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// This back end and no other.
    pub backend: Option<Backend>,
    /// Events this way and no other.
    pub events: Option<Events>,
}

/// What a run attaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The back end.
    pub backend: Backend,
    /// How events come.
    pub events: Events,
    /// Its hooks that this kernel has.
    pub hooks: Vec<Hook>,
    /// What the missing ones cost.
    pub limits: Vec<String>,
    /// The state of sockets is found by their address.
    pub state_by_address: bool,
    /// Sockets are told apart by the kernel's cookie.
    pub has_cookie: bool,
    /// Registers lie this far above the low end of the stack; `None` = a helper says where.
    pub registers_on_stack: Option<u32>,
}

/// Whether a back end can be used, or why not.
pub fn judge(backend: Backend, events: Option<Events>, facts: &Facts) -> Result<Plan, String> {
    if facts.object_missing {
        return Err(
            "this agent was built without its kernel programs: run cargo xtask build-ebpf and build again"
                .into(),
        );
    }
    if let Some(error) = facts.privilege_error.as_ref().or(facts.btf_error.as_ref()) {
        return Err(error.clone());
    }
    if !facts.members_missing.is_empty() {
        return Err(format!("this kernel has no {}", facts.members_missing.join(", ")));
    }
    // The programs of the other back ends are for kernels, too, that lack the instruction that buffers need (5.12).
    let has_cpu_buffers = backend == Backend::TpBtf;
    let events = match (events, &facts.ring_error) {
        (Some(Events::PerCpu | Events::Ring), Some(error)) => {
            return Err(format!("no ring buffer: {error}"));
        }
        (Some(Events::PerCpu), None) if !has_cpu_buffers => {
            return Err("only tp_btf writes a buffer per CPU".into());
        }
        (Some(events), _) => events,
        (None, None) if has_cpu_buffers => Events::PerCpu,
        (None, None) => Events::Ring,
        (None, Some(_)) => Events::Perf,
    };
    let is_probed = backend == Backend::Kprobe;
    let state_by_address = is_probed || !facts.socket_storage;
    let told = if is_probed { facts.probed_registers } else { facts.typed_registers };
    let mut plan = Plan {
        backend,
        events,
        hooks: Vec::new(),
        limits: Vec::new(),
        state_by_address,
        has_cookie: !is_probed && facts.socket_cookie,
        registers_on_stack: if told { None } else { facts.registers_on_stack },
    };
    if !told && facts.registers_on_stack.is_none() {
        return Err("this kernel does not say where a system call's registers are".into());
    }
    for role in backend.roles() {
        if role.without == Without::RefusedByAddress && !state_by_address {
            continue;
        }
        let mut reasons = Vec::new();
        let fits = role.forms.iter().find(|hook| match lacks(hook, facts) {
            None => true,
            Some(reason) => {
                reasons.push(reason);
                false
            }
        });
        match (fits, role.without) {
            (Some(hook), _) => plan.hooks.push(*hook),
            (None, Without::Refused | Without::RefusedByAddress) => return Err(reasons.join("; ")),
            (None, Without::Costs(what)) => plan.limits.push(format!("{}: {what}", reasons.join("; "))),
            (None, Without::Nothing) => {}
        }
    }
    Ok(plan)
}

/// Why a hook cannot be attached; `None` = it can.
fn lacks(hook: &Hook, facts: &Facts) -> Option<String> {
    if let Some(name) = hook.attach.tracepoint() {
        return facts.tracepoints_missing.contains(&name).then(|| format!("no tracepoint {name}"));
    }
    let name = hook.attach.function()?;
    let error = match hook.attach {
        Attach::Kprobe(_) => facts.kprobe_error.as_ref(),
        _ => facts.fentry_error.as_ref(),
    };
    if let Some(error) = error {
        return Some(error.clone());
    }
    match facts.functions.get(name) {
        None => Some(format!("no function {name}")),
        Some(have) if hook.parameters.is_empty() || hook.parameters.contains(have) => None,
        Some(have) => Some(format!("{name} has {have} parameters")),
    }
}

/// The plan that fits the wish: of the first back end that can be used, else why each cannot.
pub fn plan(wish: Wish, facts: &Facts) -> Result<Plan, String> {
    let mut reasons = Vec::new();
    for backend in Backend::ALL.into_iter().filter(|backend| wish.backend.is_none_or(|wish| wish == *backend))
    {
        match judge(backend, wish.events, facts) {
            Ok(plan) => return Ok(plan),
            // A reason that holds for all is said once.
            Err(reason) if !reasons.iter().any(|r: &String| r.ends_with(&reason)) => {
                reasons.push(format!("{backend}: {reason}"));
            }
            Err(_) => {}
        }
    }
    Err(reasons.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that has everything: 6.18 or later as Debian builds it.
    fn newest() -> Facts {
        Facts {
            functions: [
                ("tcp_sendmsg_locked", 3),
                ("tcp_recvmsg", 4),
                ("release_sock", 1),
                ("sock_def_readable", 1),
                ("tcp_v4_destroy_sock", 1),
            ]
            .into(),
            socket_storage: true,
            socket_cookie: true,
            typed_registers: true,
            probed_registers: true,
            registers_on_stack: Some(16216),
            ..Facts::default()
        }
    }

    /// What 6.1 has: no tracepoints on the length of calls, none on readiness.
    fn middle() -> Facts {
        let mut facts = newest();
        facts.functions.extend([("do_tcp_sendpages", 5), ("tcp_recvmsg", 5)]);
        facts.tracepoints_missing =
            vec!["sock_send_length", "sock_recv_length", "sk_data_ready", "tcp_sendmsg_locked"];
        facts
    }

    /// What 5.10 has: also no helpers, and another prototype.
    fn oldest() -> Facts {
        let mut facts = middle();
        facts.functions.insert("tcp_recvmsg", 6);
        Facts {
            socket_storage: false,
            socket_cookie: false,
            typed_registers: false,
            probed_registers: false,
            ..facts
        }
    }

    /// The programs of the plan in order, or a part of the reason why there is none.
    #[track_caller]
    fn check(wish: Option<Backend>, facts: &Facts, expected: Result<&[&str], &str>) {
        let wish = Wish { backend: wish, events: None };
        match (plan(wish, facts), expected) {
            (Ok(plan), Ok(programs)) => {
                let have: Vec<_> = plan.hooks.iter().map(|hook| hook.program).collect();
                assert_eq!(have, programs, "{plan:?}");
            }
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
            (got, expected) => panic!("{got:?} for {expected:?}"),
        }
    }

    const TYPED: [&str; 8] = [
        "on_send",
        "on_recv",
        "on_send_piece",
        "on_arrival",
        "on_splice",
        "on_state",
        "on_retransmit",
        "each_listener",
    ];

    #[test]
    fn the_newest_kernel_has_every_back_end() {
        check(None, &newest(), Ok(&TYPED));
        check(
            Some(Backend::Fentry),
            &newest(),
            Ok(&[
                "on_send_exit",
                "on_recv_exit",
                "on_send_entry",
                "on_arrival",
                "on_splice",
                "on_state",
                "on_retransmit",
                "each_listener",
            ]),
        );
        check(
            Some(Backend::Kprobe),
            &newest(),
            Ok(&[
                "kprobe_send",
                "kprobe_recv",
                "kprobe_release",
                "raw_arrival",
                "raw_state",
                "raw_retransmit",
                "each_listener",
                "kprobe_destroy",
            ]),
        );
    }

    #[test]
    fn without_tracepoints_on_calls_functions_are_entered() {
        check(
            None,
            &middle(),
            Ok(&[
                "on_send_exit",
                "on_sendpages_exit",
                "on_recv_exit_addr",
                "on_send_entry",
                "on_arrival_entry",
                "on_splice",
                "on_state",
                "on_retransmit",
                "each_listener",
            ]),
        );
        check(Some(Backend::TpBtf), &middle(), Err("no tracepoint sock_send_length"));
    }

    #[test]
    fn the_oldest_kernel_keeps_state_by_address_and_reads_registers_off_the_stack() {
        let plan = plan(Wish::default(), &oldest()).expect("fentry can be used");
        assert!(plan.state_by_address && !plan.has_cookie);
        assert_eq!(plan.registers_on_stack, Some(16216));
        let programs: Vec<_> = plan.hooks.iter().map(|hook| hook.program).collect();
        assert!(programs.contains(&"on_recv_exit_nonblock") && programs.contains(&"on_destroy"));
        let unknown = Facts { registers_on_stack: None, ..oldest() };
        check(None, &unknown, Err("registers"));
    }

    #[test]
    fn kprobes_keep_state_by_address_whatever_the_kernel_has() {
        let plan = judge(Backend::Kprobe, None, &newest()).expect("kprobe can be used");
        assert!(plan.state_by_address && !plan.has_cookie && plan.registers_on_stack.is_none());
    }

    #[test]
    fn a_kernel_without_functions_to_enter_uses_tracepoints_alone() {
        let facts = Facts {
            fentry_error: Some("not permitted".into()),
            kprobe_error: Some("not built in".into()),
            ..newest()
        };
        check(None, &facts, Ok(&TYPED));
        check(Some(Backend::Fentry), &facts, Err("not permitted"));
        check(Some(Backend::Kprobe), &facts, Err("not built in"));
    }

    #[test]
    fn what_is_missing_but_not_needed_is_a_limit() {
        let facts = Facts {
            tracepoints_missing: vec!["sk_data_ready", "tcp_rcv_space_adjust"],
            fentry_error: Some("not permitted".into()),
            ..newest()
        };
        let plan = plan(Wish::default(), &facts).expect("tp_btf can be used");
        assert_eq!(plan.hooks.len(), TYPED.len() - 2);
        assert!(
            plan.limits[0].contains("queue and network") && plan.limits[1].contains("spliced"),
            "{plan:?}"
        );
    }

    #[test]
    fn events_go_through_what_is_cheapest_or_what_is_asked_for() {
        let no_ring = Facts { ring_error: Some("no such map".into()), ..newest() };
        let events = |events, facts: &Facts| judge(Backend::TpBtf, events, facts).map(|plan| plan.events);
        assert_eq!(events(None, &newest()), Ok(Events::PerCpu));
        assert_eq!(events(Some(Events::Ring), &newest()), Ok(Events::Ring));
        assert_eq!(events(Some(Events::Perf), &newest()), Ok(Events::Perf));
        assert_eq!(events(None, &no_ring), Ok(Events::Perf));
        assert!(events(Some(Events::Ring), &no_ring).is_err());
        assert!(events(Some(Events::PerCpu), &no_ring).is_err());
        let by_kprobe = |events| judge(Backend::Kprobe, events, &newest()).map(|plan| plan.events);
        assert_eq!(by_kprobe(None), Ok(Events::Ring));
        assert!(by_kprobe(Some(Events::PerCpu)).is_err());
    }

    #[test]
    fn what_stops_every_back_end_is_said_once() {
        let facts = Facts { privilege_error: Some("not root".into()), ..newest() };
        assert_eq!(plan(Wish::default(), &facts), Err("tp_btf: not root".into()));
        check(None, &Facts { btf_error: Some("no BTF".into()), ..newest() }, Err("no BTF"));
        check(None, &Facts { object_missing: true, ..newest() }, Err("build-ebpf"));
        let missing = Facts { members_missing: vec!["tcp_sock.srtt_us".into()], ..newest() };
        check(None, &missing, Err("tcp_sock.srtt_us"));
    }
}
