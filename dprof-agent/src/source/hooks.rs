//! Which kernel programs attach where: the roles of each back end, and the forms that can fill each.
//!
//! What a reader would get wrong: a back end is named by how it sees sends and receives. What else it needs (arrivals,
//! states, retransmissions) comes in the best form that this kernel has.

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

    /// Name as printed, and as `--backend` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
        }
    }

    /// The back end of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|backend| backend.name() == name)
    }

    /// What it is made of.
    pub const fn roles(self) -> &'static [Role] {
        match self {
            Self::TpBtf => TP_BTF,
            Self::Fentry => FENTRY,
            Self::Kprobe => KPROBE,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How events come from the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// A buffer per CPU and a ring for large records, merged by time.
    PerCpu,
    /// One ring for all CPUs, in order.
    Ring,
    /// A perf buffer per CPU, merged by time.
    Perf,
}

impl Events {
    /// All, the cheapest first.
    pub const ALL: [Self; 3] = [Self::PerCpu, Self::Ring, Self::Perf];

    /// Name as printed, and as `--events` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PerCpu => "percpu",
            Self::Ring => "ring",
            Self::Perf => "perf",
        }
    }

    /// The one of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|events| events.name() == name)
    }
}

/// How a program attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// To a tracepoint, with typed arguments.
    TpBtf(&'static str),
    /// To a tracepoint, arguments as numbers.
    RawTp(&'static str),
    /// To a function's entry, with typed arguments.
    Fentry(&'static str),
    /// To a function's exit, with typed arguments and the result.
    Fexit(&'static str),
    /// To a function's entry, arguments as numbers.
    Kprobe(&'static str),
    /// As an iterator.
    Iter(&'static str),
}

impl Attach {
    /// The tracepoint that must exist.
    pub const fn tracepoint(self) -> Option<&'static str> {
        match self {
            Self::TpBtf(name) | Self::RawTp(name) => Some(name),
            Self::Fentry(_) | Self::Fexit(_) | Self::Kprobe(_) | Self::Iter(_) => None,
        }
    }

    /// The kernel function that must exist.
    pub const fn function(self) -> Option<&'static str> {
        match self {
            Self::Fentry(name) | Self::Fexit(name) | Self::Kprobe(name) => Some(name),
            Self::TpBtf(_) | Self::RawTp(_) | Self::Iter(_) => None,
        }
    }
}

impl fmt::Display for Attach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TpBtf(name) => write!(f, "tp_btf/{name}"),
            Self::RawTp(name) => write!(f, "raw_tp/{name}"),
            Self::Fentry(name) => write!(f, "fentry/{name}"),
            Self::Fexit(name) => write!(f, "fexit/{name}"),
            Self::Kprobe(name) => write!(f, "kprobe/{name}"),
            Self::Iter(name) => write!(f, "iter/{name}"),
        }
    }
}

/// One program of the object and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Where.
    pub attach: Attach,
    /// How many parameters the kernel's function may have; none given = any.
    pub parameters: &'static [usize],
}

/// What happens without any form of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// The back end cannot be used.
    Refused,
    /// Something is lost.
    Costs(&'static str),
    /// Nothing: kernels without the place do not come by it.
    Nothing,
    /// The back end cannot be used, but only where the state of sockets is kept by address; elsewhere the role is
    /// not filled at all.
    RefusedByAddress,
}

/// Something that a back end sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// The forms that it may take, the best first.
    pub forms: &'static [Hook],
    /// What is lost when no form fits.
    pub without: Without,
}

const fn hook(program: &'static str, attach: Attach) -> Hook {
    Hook { program, attach, parameters: &[] }
}

const fn hook_of(program: &'static str, attach: Attach, parameters: &'static [usize]) -> Hook {
    Hook { program, attach, parameters }
}

const FIRST_DEPARTURE: Without =
    Without::Costs("the first departure of a call of several segments is approximate");
const ARRIVAL: Without = Without::Costs("queue and network are shown as one");
const STATE: Without = Without::Costs("roles are guessed and unanswered requests end only by time");
const RETRANSMIT: Without = Without::Costs("retransmissions are not marked");

const SPLICE: Role = Role {
    forms: &[hook("on_splice", Attach::TpBtf("tcp_rcv_space_adjust"))],
    without: Without::Costs("bytes that are spliced from a socket are gaps"),
};
const TYPED_ARRIVAL: Role = Role {
    forms: &[
        hook("on_arrival", Attach::TpBtf("sk_data_ready")),
        hook("on_arrival_entry", Attach::Fentry("sock_def_readable")),
    ],
    without: ARRIVAL,
};
const TYPED_STATE: Role =
    Role { forms: &[hook("on_state", Attach::TpBtf("inet_sock_set_state"))], without: STATE };
const TYPED_RETRANSMIT: Role =
    Role { forms: &[hook("on_retransmit", Attach::TpBtf("tcp_retransmit_skb"))], without: RETRANSMIT };
const LISTENERS: Role = Role {
    forms: &[hook("each_listener", Attach::Iter("tcp"))],
    without: Without::Costs("roles of connections older than the agent are guessed"),
};

/// Tracepoints of the socket layer, after each call.
const TP_BTF: &[Role] = &[
    Role { forms: &[hook("on_send", Attach::TpBtf("sock_send_length"))], without: Without::Refused },
    Role { forms: &[hook("on_recv", Attach::TpBtf("sock_recv_length"))], without: Without::Refused },
    Role {
        forms: &[
            hook("on_send_piece", Attach::TpBtf("tcp_sendmsg_locked")),
            hook_of("on_send_entry", Attach::Fentry("tcp_sendmsg_locked"), &[3]),
        ],
        without: FIRST_DEPARTURE,
    },
    TYPED_ARRIVAL,
    SPLICE,
    TYPED_STATE,
    TYPED_RETRANSMIT,
    LISTENERS,
    Role {
        forms: &[hook("on_destroy", Attach::Fentry("tcp_v4_destroy_sock"))],
        without: Without::RefusedByAddress,
    },
];

/// TCP's own functions, their exits typed.
const FENTRY: &[Role] = &[
    Role {
        forms: &[hook_of("on_send_exit", Attach::Fexit("tcp_sendmsg_locked"), &[3])],
        without: Without::Refused,
    },
    Role {
        forms: &[hook_of("on_sendpages_exit", Attach::Fexit("do_tcp_sendpages"), &[5])],
        without: Without::Nothing,
    },
    Role {
        forms: &[
            hook_of("on_recv_exit", Attach::Fexit("tcp_recvmsg"), &[4]),
            hook_of("on_recv_exit_addr", Attach::Fexit("tcp_recvmsg"), &[5]),
            hook_of("on_recv_exit_nonblock", Attach::Fexit("tcp_recvmsg"), &[6]),
        ],
        without: Without::Refused,
    },
    Role {
        forms: &[hook_of("on_send_entry", Attach::Fentry("tcp_sendmsg_locked"), &[3])],
        without: FIRST_DEPARTURE,
    },
    TYPED_ARRIVAL,
    SPLICE,
    TYPED_STATE,
    TYPED_RETRANSMIT,
    LISTENERS,
    Role {
        forms: &[hook("on_destroy", Attach::Fentry("tcp_v4_destroy_sock"))],
        without: Without::RefusedByAddress,
    },
];

/// TCP's own functions, their entries only.
const KPROBE: &[Role] = &[
    Role {
        forms: &[hook_of("kprobe_send", Attach::Kprobe("tcp_sendmsg_locked"), &[3])],
        without: Without::Refused,
    },
    Role {
        forms: &[hook_of("kprobe_sendpages", Attach::Kprobe("do_tcp_sendpages"), &[5])],
        without: Without::Nothing,
    },
    Role {
        forms: &[
            hook_of("kprobe_recv", Attach::Kprobe("tcp_recvmsg"), &[4, 5]),
            hook_of("kprobe_recv_nonblock", Attach::Kprobe("tcp_recvmsg"), &[6]),
        ],
        without: Without::Refused,
    },
    Role { forms: &[hook("kprobe_release", Attach::Kprobe("release_sock"))], without: Without::Refused },
    Role {
        forms: &[
            hook("raw_arrival", Attach::RawTp("sk_data_ready")),
            hook("kprobe_arrival", Attach::Kprobe("sock_def_readable")),
        ],
        without: ARRIVAL,
    },
    Role { forms: &[hook("raw_state", Attach::RawTp("inet_sock_set_state"))], without: STATE },
    Role { forms: &[hook("raw_retransmit", Attach::RawTp("tcp_retransmit_skb"))], without: RETRANSMIT },
    LISTENERS,
    Role {
        forms: &[hook("kprobe_destroy", Attach::Kprobe("tcp_v4_destroy_sock"))],
        without: Without::RefusedByAddress,
    },
];
