//! What runs inside a virtual machine, and how its console is read.
//!
//! What a reader would get wrong: the only way out is the console. The script prints marked lines between what the
//! programs print, and everything is told from those.

use std::collections::BTreeMap;

/// Ways of capturing that are tried: back end, and how events come.
pub(crate) const WAYS: [(&str, &str); 4] =
    [("tp_btf", "percpu"), ("fentry", "ring"), ("kprobe", "ring"), ("fentry", "perf")];

/// Once per boot: agents of all ways at the same time.
const TEST_ALL: &str = "live::same::";

/// Tests for each way. Each starts an agent, which takes a few seconds under emulation: so these few, of the live
/// tier's many.
const TESTS: [&str; 13] = [
    "live::between::",
    "live::calls::every_form_of_sending_and_receiving_shows_its_bytes",
    "live::calls::bytes_by_sendfile_and_splice_are_counted_exactly",
    "live::families::connections_older_than_the_agent_are_complete_from_its_start",
    "live::privilege::no_thread_holds_more_than_is_documented",
    "live::split::a_server_that_stalls_before_reading_has_a_queue_not_a_network",
    "live::split::a_write_before_the_read_does_not_move_the_arrival",
    "live::split::a_peek_before_the_read_does_not_move_the_arrival",
    "live::split::five_messages_read_at_once_have_five_arrivals",
    "live::split::a_large_request_read_in_one_call_has_the_arrival_of_its_last_byte",
    "live::split::a_large_reply_streams",
    "live::split::a_paced_reply_does_not_depart_in_the_future",
    "live::watched::connections_go_and_come_with_their_ports_whatever_their_age",
];

/// Tests for events by perf buffers: the hooks are those of the other way.
const TESTS_PERF: [&str; 2] = [
    "live::calls::every_form_of_sending_and_receiving_shows_its_bytes",
    "live::split::five_messages_read_at_once_have_five_arrivals",
];

/// Tests for each way in the small form, beside what all watch together: times that a program on the way knows better.
const TESTS_SMALL: [&str; 1] = ["live::split::five_messages_read_at_once_have_five_arrivals"];

/// How much is run in each machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// All of the above.
    Whole,
    /// What fits the budget of a tier among others: one exchange that all ways watch at once, and a test for each.
    Small,
}

impl Form {
    /// Tests for events that come this way.
    fn tests(self, events: &str) -> &'static [&'static str] {
        match (self, events) {
            (Self::Whole, "perf") => &TESTS_PERF,
            (Self::Whole, _) => &TESTS,
            (Self::Small, "perf") => &[],
            (Self::Small, _) => &TESTS_SMALL,
        }
    }
}

/// How many times longer than elsewhere tests may wait: two emulated machines on two busy cores.
const PATIENCE: u32 = 10;

/// Start of a marked line.
const MARK: &str = "@@";

/// The script.
pub(crate) fn script(form: Form) -> String {
    let mut script = format!(
        "for module in /modules/*; do insmod $module 2>/dev/null; done\n\
         echo '{MARK} booted' $(cut -d' ' -f1 /proc/uptime) $(uname -r)\n\
         /dprof/dprof-agent doctor > /tmp/doctor\ncat /tmp/doctor\n\
         export DPROF_TEST_LIVE=1 DPROF_TEST_PATIENCE={PATIENCE}\n\
         echo '{MARK} begin all together'\n\
         /dprof/tiers --test-threads=1 {TEST_ALL}\n\
         echo '{MARK} end all together' $?\n"
    );
    for (backend, events) in WAYS {
        let tests = form.tests(events).join(" ");
        if tests.is_empty() {
            continue;
        }
        script += &format!(
            "if grep -q '^back end {backend} .* usable, ' /tmp/doctor; then\n\
             echo '{MARK} begin {backend} {events}'\n\
             DPROF_TEST_BACKEND={backend} DPROF_TEST_EVENTS={events} /dprof/tiers --test-threads=1 {tests}\n\
             echo '{MARK} end {backend} {events}' $?\n\
             fi\n"
        );
    }
    script + &format!("echo '{MARK} done' $(cut -d' ' -f1 /proc/uptime)\n")
}

/// What a machine said.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Its kernel's own version.
    pub(crate) release: String,
    /// Seconds from power-on to the first program, on the machine's clock.
    pub(crate) booted_s: f64,
    /// Seconds to the end; `None` = it did not come to it.
    pub(crate) done_s: Option<f64>,
    /// Results by way and test.
    pub(crate) tests: BTreeMap<(String, String), bool>,
    /// Ways that were tried, and whether their test binary ended well.
    pub(crate) ways: BTreeMap<String, bool>,
    /// What the doctor said of each back end.
    pub(crate) backends: BTreeMap<String, String>,
    /// Programs that loaded, by back end.
    pub(crate) programs: Vec<Program>,
}

/// One program as the kernel took it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// Of the plan of this back end.
    pub(crate) backend: String,
    /// Its name.
    pub(crate) name: String,
    /// Why it did not load, or instructions as they run and instructions that the verifier looked at (0 = not told).
    pub(crate) loaded: Result<(u64, u64), String>,
}

/// Reads the console.
pub(crate) fn read(console: &str) -> Report {
    let mut report = Report::default();
    let (mut way, mut backend) = (String::new(), String::new());
    for line in console.lines() {
        let line = line.trim_end();
        let words: Vec<&str> = line.split_whitespace().collect();
        // The kernel prints without waiting for the line's end: a mark may come after something else.
        if let Some(at) = line.find(&format!("{MARK} ")) {
            match *line[at..].split_whitespace().collect::<Vec<_>>() {
                [_, "booted", seconds, release] => {
                    report.booted_s = seconds.parse().unwrap_or(0.0);
                    release.clone_into(&mut report.release);
                }
                [_, "begin", name, events] => way = format!("{name} {events}"),
                [_, "end", name, events, code] => {
                    report.ways.insert(format!("{name} {events}"), code == "0");
                }
                [_, "done", seconds] => report.done_s = seconds.parse().ok(),
                _ => {}
            }
        } else if let ["test", name, "...", result, ..] = words[..] {
            report.tests.insert((way.clone(), name.to_owned()), result == "ok");
        } else if let ["back", "end", name, ..] = words[..] {
            name.clone_into(&mut backend);
            report.backends.insert(backend.clone(), words[3..].join(" "));
        } else if let (Some(rest), [name, ..]) = (line.strip_prefix("  "), &words[..])
            && let Some((_, said)) = rest.split_once(": ")
            && words.get(1).is_some_and(|place| place.contains('/'))
        {
            let loaded = instructions(said).ok_or_else(|| said.to_owned());
            report.programs.push(Program { backend: backend.clone(), name: (*name).to_owned(), loaded });
        }
    }
    report
}

/// Of `loads, 1535 instructions, 3884 verified`.
fn instructions(said: &str) -> Option<(u64, u64)> {
    let (run, verified) = said.strip_prefix("loads, ")?.split_once(" instructions")?;
    let verified = verified.strip_prefix(", ").and_then(|rest| rest.strip_suffix(" verified"));
    Some((run.parse().ok()?, verified.and_then(|verified| verified.parse().ok()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::{Program, read};

    const CONSOLE: &str = "SeaBIOS\r\n\
        @@ booted 7.61 5.10.0-32-cloud-amd64\r\n\
        back end tp_btf                    not usable: no tracepoint sock_send_length\r\n\
        back end fentry                    usable, events by ring\r\n\
        \u{20} on_send_exit                     fexit/tcp_sendmsg_locked: loads, 1944 instructions, 77 verified\r\n\
        \u{20} on_destroy                       fentry/tcp_v4_destroy_sock: R5 !read_ok\r\n\
        [    9.0] noise @@ begin fentry ring\r\n\
        test live::split::a_large_reply_streams ... ok\r\n\
        test live::calls::every_form ... FAILED\r\n\
        @@ end fentry ring 101\r\n\
        @@ done 60.5\r\n";

    #[test]
    fn a_console_tells_boot_back_ends_programs_and_tests() {
        let report = read(CONSOLE);
        assert_eq!((report.release.as_str(), report.done_s), ("5.10.0-32-cloud-amd64", Some(60.5)));
        assert_eq!(report.backends["fentry"], "usable, events by ring");
        let program = |name: &str, loaded| Program { backend: "fentry".into(), name: name.into(), loaded };
        let expected =
            [program("on_send_exit", Ok((1944, 77))), program("on_destroy", Err("R5 !read_ok".into()))];
        assert_eq!(report.programs, expected);
        let results: Vec<_> = report.tests.values().copied().collect();
        assert_eq!(results, [false, true]);
        assert!(!report.ways["fentry ring"]);
    }

    #[test]
    fn a_console_cut_short_is_not_done() {
        let report = read(&CONSOLE[..200]);
        assert!(report.done_s.is_none() && report.tests.is_empty());
    }
}
