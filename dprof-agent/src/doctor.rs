//! `dprof-agent doctor`: each fact about this machine and each back end: usable, or why not, and which one a run
//! will use. The plan is the one that a run makes, and every program is really loaded (not attached).

use std::fmt::Write;

use crate::source::hooks::{Attach, Backend, Facts, TP_BTF, judge, plan};
use crate::source::kernel::try_load;
use crate::source::probe::probe;

/// What `doctor` found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// For people, whole lines.
    pub text: String,
    /// Whether a run would work.
    pub usable: bool,
}

/// Looks at this machine.
pub fn run() -> Report {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let facts = probe().facts;
    let mut text = String::new();
    let mut line = |name: &str, word: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<34} {word}");
    };
    line("kernel", kernel.trim());
    line("privilege", facts.privilege_error.as_deref().unwrap_or("enough"));
    line("type information (BTF)", facts.btf_error.as_deref().unwrap_or("present"));
    line("kernel programs in this binary", if facts.object_missing { "missing" } else { "present" });
    if facts.btf_error.is_none() {
        for hook in TP_BTF {
            let (name, word) = fact_of(hook.attach, &facts);
            line(&name, word);
        }
        let members = if facts.members_missing.is_empty() {
            "all found".to_owned()
        } else {
            format!("missing: {}", facts.members_missing.join(", "))
        };
        line("struct members that are read", &members);
    }
    let mut usable = true;
    let chosen = plan(&facts);
    for backend in Backend::ALL {
        let word = match judge(backend, &facts) {
            Ok(plan) if plan.limits.is_empty() => "usable".to_owned(),
            Ok(plan) => format!("usable, {}", plan.limits.join("; ")),
            Err(reason) => format!("not usable: {reason}"),
        };
        line(&format!("back end {backend}"), &word);
    }
    match chosen {
        Ok(plan) => {
            for (hook, result) in try_load(&plan) {
                usable &= result.is_ok();
                let word = result.err().map_or_else(|| "loads".to_owned(), |error| last_line(&error));
                line(&format!("program {}", hook.program), &word);
            }
            let verdict = if usable { plan.backend.name() } else { "nothing: a program does not load" };
            line("a run uses", verdict);
        }
        Err(reason) => {
            usable = false;
            line("a run uses", &format!("nothing: {reason}"));
        }
    }
    Report { text, usable }
}

fn fact_of(attach: Attach, facts: &Facts) -> (String, &'static str) {
    match attach {
        Attach::TpBtf(name) => {
            let missing = facts.tracepoints_missing.contains(&name);
            (format!("tracepoint {name}"), if missing { "missing" } else { "present" })
        }
        Attach::Iter(name) => (format!("iterator {name}"), "tried when loaded"),
    }
}

/// The verifier's log is thousands of lines; its last words say what is wrong.
fn last_line(error: &str) -> String {
    let lines: Vec<&str> = error.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" | ")
}
