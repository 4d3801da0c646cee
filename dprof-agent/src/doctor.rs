//! `dprof-agent doctor`: each fact about this machine and each back end: usable, or why not, and which one a run
//! will use. The plan is the one that a run makes, and every program is really loaded (not attached).

use std::fmt::Write;

use std::collections::BTreeSet;

use crate::privilege;
use crate::source::hooks::Backend;
use crate::source::kernel::{Loaded, try_load};
use crate::source::plan::{Facts, Wish, judge, plan};
use crate::source::probe::{every_hook, probe};

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
    for (name, word) in protections() {
        line(name, &word);
    }
    line("kernel programs in this binary", if facts.object_missing { "missing" } else { "present" });
    if facts.btf_error.is_none() {
        for (name, word) in kernel_facts(&facts) {
            line(&name, &word);
        }
    }
    let chosen = plan(Wish::default(), &facts);
    let mut usable = chosen.is_ok();
    for backend in Backend::ALL {
        let judged = judge(backend, None, &facts);
        let word = match &judged {
            Ok(plan) if plan.limits.is_empty() => format!("usable, events by {}", plan.events.name()),
            Ok(plan) => format!("usable, events by {}; {}", plan.events.name(), plan.limits.join("; ")),
            Err(reason) => format!("not usable: {reason}"),
        };
        line(&format!("back end {backend}"), &word);
        let is_chosen = chosen.as_ref().is_ok_and(|plan| plan.backend == backend);
        for (hook, result) in judged.iter().flat_map(try_load) {
            usable &= result.is_ok() || !is_chosen;
            let word = result.map_or_else(|error| last_line(&error), loaded);
            line(&format!("  {}", hook.program), &format!("{}: {word}", hook.attach));
        }
    }
    match chosen {
        Ok(plan) if usable => line("a run uses", plan.backend.name()),
        Ok(_) => line("a run uses", "nothing: a program does not load"),
        Err(reason) => line("a run uses", &format!("nothing: {reason}")),
    }
    Report { text, usable }
}

/// What a run protects the machine by.
fn protections() -> [(&'static str, String); 2] {
    let filters =
        if privilege::filters_are_supported() { "present, used" } else { "missing: system calls stay" };
    // A process that Landlock restricts may read no /proc/PID/exe of one that it does not.
    let landlock = match privilege::landlock_version() {
        Some(version) => format!("version {version}, not used: it forbids reading /proc/PID/exe"),
        None => "missing (it would not be used)".to_owned(),
    };
    [("system-call filter (seccomp)", filters.to_owned()), ("Landlock", landlock)]
}

/// What was found out about the kernel, a line each.
fn kernel_facts(facts: &Facts) -> Vec<(String, String)> {
    let word = |is_there: bool| if is_there { "present" } else { "missing" }.to_owned();
    let mut lines = Vec::new();
    let tracepoints: BTreeSet<_> = every_hook().filter_map(|hook| hook.attach.tracepoint()).collect();
    for name in tracepoints {
        lines.push((format!("tracepoint {name}"), word(!facts.tracepoints_missing.contains(&name))));
    }
    let functions: BTreeSet<_> = every_hook().filter_map(|hook| hook.attach.function()).collect();
    for name in functions {
        let said = facts.functions.get(name).map_or_else(|| word(false), |n| format!("{n} parameters"));
        lines.push((format!("function {name}"), said));
    }
    let or_error = |error: &Option<String>| error.clone().unwrap_or_else(|| word(true));
    lines.push(("fentry and fexit".to_owned(), or_error(&facts.fentry_error)));
    lines.push(("kprobes".to_owned(), or_error(&facts.kprobe_error)));
    lines.push(("ring buffer".to_owned(), or_error(&facts.ring_error)));
    lines.push(("socket storage".to_owned(), word(facts.socket_storage)));
    lines.push(("socket cookie".to_owned(), word(facts.socket_cookie)));
    lines.push(("registers, typed programs".to_owned(), word(facts.typed_registers)));
    lines.push(("registers, kprobes".to_owned(), word(facts.probed_registers)));
    let on_stack = facts.registers_on_stack.map_or_else(|| "unknown".to_owned(), |at| format!("at {at}"));
    lines.push(("registers on the stack".to_owned(), on_stack));
    let members = if facts.members_missing.is_empty() {
        "all found".to_owned()
    } else {
        format!("missing: {}", facts.members_missing.join(", "))
    };
    lines.push(("struct members that are read".to_owned(), members));
    lines
}

fn loaded(loaded: Loaded) -> String {
    let Loaded { instructions, verified } = loaded;
    let verified = if verified == 0 { String::new() } else { format!(", {verified} verified") };
    format!("loads, {instructions} instructions{verified}")
}

/// The verifier's log is thousands of lines; its last words, before the closing statistics, say what is wrong.
fn last_line(error: &str) -> String {
    const STATISTICS: [&str; 3] = ["processed ", "stack depth ", "verification time "];
    let is_statistics = |line: &&str| STATISTICS.iter().any(|start| line.starts_with(start));
    let lines: Vec<&str> = error
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with(": ") && !is_statistics(line))
        .collect();
    lines[lines.len().saturating_sub(LINES_SHOWN)..].join(" | ")
}

/// Lines of a verifier's log that are shown: the instruction and what is wrong with it.
const LINES_SHOWN: usize = 6;
