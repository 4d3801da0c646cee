//! Which kernel programs to attach where: a pure function from facts about the kernel to a plan.
//!
//! What a reader would get wrong: nothing here asks for a kernel's version. Distributions move features between
//! versions, so each fact is probed, and `doctor` prints the same facts and the same plan that a run uses.

use std::fmt;

/// A family of hooks that can carry the whole capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Tracepoints with typed arguments.
    TpBtf,
    /// Entry and exit of kernel functions, typed.
    Fentry,
    /// Entry of kernel functions, untyped: the oldest kernels.
    Kprobe,
}

impl Backend {
    /// All, the cheapest first.
    pub const ALL: [Self; 3] = [Self::TpBtf, Self::Fentry, Self::Kprobe];

    /// Name as printed.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a program attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// To a tracepoint, with typed arguments.
    TpBtf(&'static str),
    /// As an iterator.
    Iter(&'static str),
}

/// One program of the object and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Where.
    pub attach: Attach,
    /// What is lost without it; empty if nothing works without it.
    pub without: &'static str,
}

/// The hooks of the `tp_btf` back end.
pub const TP_BTF: &[Hook] = &[
    Hook { program: "on_send", attach: Attach::TpBtf("sock_send_length"), without: "" },
    Hook { program: "on_recv", attach: Attach::TpBtf("sock_recv_length"), without: "" },
    Hook {
        program: "on_send_piece",
        attach: Attach::TpBtf("tcp_sendmsg_locked"),
        without: "the first departure of a call of several segments is approximate",
    },
    Hook {
        program: "on_arrival",
        attach: Attach::TpBtf("sk_data_ready"),
        without: "queue and network are shown as one",
    },
    Hook {
        program: "on_splice",
        attach: Attach::TpBtf("tcp_rcv_space_adjust"),
        without: "bytes that are spliced from a socket are gaps",
    },
    Hook {
        program: "on_state",
        attach: Attach::TpBtf("inet_sock_set_state"),
        without: "roles are guessed and unanswered requests end only by time",
    },
    Hook {
        program: "on_retransmit",
        attach: Attach::TpBtf("tcp_retransmit_skb"),
        without: "retransmissions are not marked",
    },
    Hook {
        program: "each_listener",
        attach: Attach::Iter("tcp"),
        without: "roles of connections older than the agent are guessed",
    },
];

/// What was probed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Why BTF cannot be used; `None` = it can.
    pub btf_error: Option<String>,
    /// Why the agent may not load programs; `None` = it may.
    pub privilege_error: Option<String>,
    /// Members that the programs read and this kernel lacks.
    pub members_missing: Vec<String>,
    /// Tracepoints that this kernel lacks, of those in [`TP_BTF`].
    pub tracepoints_missing: Vec<&'static str>,
    /// Whether the object was built in.
    pub object_missing: bool,
}

/// What a run attaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The back end.
    pub backend: Backend,
    /// Its hooks that this kernel has.
    pub hooks: Vec<Hook>,
    /// What the missing ones cost.
    pub limits: Vec<String>,
}

/// Whether a back end can be used, or why not.
pub fn judge(backend: Backend, facts: &Facts) -> Result<Plan, String> {
    if facts.object_missing {
        return Err(
            "this agent was built without its kernel programs: run cargo xtask build-ebpf and build again"
                .into(),
        );
    }
    if let Some(error) = &facts.privilege_error {
        return Err(error.clone());
    }
    if let Some(error) = &facts.btf_error {
        return Err(error.clone());
    }
    if !facts.members_missing.is_empty() {
        return Err(format!("this kernel has no {}", facts.members_missing.join(", ")));
    }
    match backend {
        Backend::TpBtf => {
            let has = |hook: &Hook| match hook.attach {
                Attach::TpBtf(name) => !facts.tracepoints_missing.contains(&name),
                Attach::Iter(_) => true,
            };
            if let Some(needed) = TP_BTF.iter().find(|hook| hook.without.is_empty() && !has(hook)) {
                let (Attach::TpBtf(name) | Attach::Iter(name)) = needed.attach;
                return Err(format!("this kernel has no tracepoint {name} (6.3 and later have it)"));
            }
            let (hooks, missing): (Vec<Hook>, Vec<Hook>) = TP_BTF.iter().partition(|hook| has(hook));
            let limits =
                missing.iter().map(|hook| format!("without {}: {}", hook.program, hook.without)).collect();
            Ok(Plan { backend, hooks, limits })
        }
        Backend::Fentry | Backend::Kprobe => Err("this version of dprof has no programs for it yet".into()),
    }
}

/// The plan of the first back end that can be used, else why each cannot.
pub fn plan(facts: &Facts) -> Result<Plan, String> {
    let mut reasons = Vec::new();
    for backend in Backend::ALL {
        match judge(backend, facts) {
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

    #[track_caller]
    fn check(facts: &Facts, expected: Result<usize, &str>) {
        match (plan(facts), expected) {
            (Ok(plan), Ok(hooks)) => assert_eq!(plan.hooks.len(), hooks, "{plan:?}"),
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
            (got, expected) => panic!("{got:?} for {expected:?}"),
        }
    }

    #[test]
    fn facts_decide() {
        let facts = Facts::default();
        check(&facts, Ok(8));
        check(&Facts { tracepoints_missing: vec!["sk_data_ready"], ..facts.clone() }, Ok(7));
        check(
            &Facts { tracepoints_missing: vec!["sock_send_length"], ..facts.clone() },
            Err("sock_send_length"),
        );
        check(&Facts { btf_error: Some("no BTF".into()), ..facts.clone() }, Err("no BTF"));
        check(&Facts { privilege_error: Some("not root".into()), ..facts.clone() }, Err("not root"));
        check(
            &Facts { members_missing: vec!["tcp_sock.srtt_us".into()], ..facts.clone() },
            Err("tcp_sock.srtt_us"),
        );
        check(&Facts { object_missing: true, ..facts.clone() }, Err("build-ebpf"));
    }

    #[test]
    fn a_reason_common_to_all_back_ends_is_said_once() {
        let facts = Facts { privilege_error: Some("not root".into()), ..Facts::default() };
        assert_eq!(plan(&facts), Err("tp_btf: not root".into()));
    }
}
