//! Describes processes: `/proc` and the cgroup file system into the stream's process records.
//!
//! What a reader would get wrong: a process id may be reused and a process may call `exec`, so a description
//! belongs to (id, start time, `comm`) and is checked again now and then.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustc_hash::FxHashMap;

use super::record::process_record;
pub use super::service_name::{Pattern, ServiceRule};
use super::service_name::{Place, ProcessFacts, describe_facts, place};

/// Processes remembered; beyond, those not seen for longest are forgotten, and described again when they come
/// back, which costs a few file reads.
const PROCESSES_MAX: usize = 16 * 1024;
/// A known process is looked at again after this long: its id may be reused, it may have called `exec`.
const RECHECK_NS: u64 = 1_000_000_000;
/// Bytes of a command line that are read.
const CMDLINE_BYTES_MAX: usize = 4096;
/// Cgroups looked at to find one by id.
const CGROUPS_MAX: usize = 8192;
/// Time between two walks of the cgroup tree: each costs a system call per cgroup.
const CGROUP_WALK_EVERY_NS: u64 = 5_000_000_000;
/// `comm` and start time (clock ticks since boot) from the text of `/proc/PID/stat`. `comm` may itself hold
/// spaces and parentheses: the last `)` ends it.
pub fn parse_stat(text: &str) -> Option<(&str, u64)> {
    const START_TIME_AFTER_COMM: usize = 19;
    let (before, after) = text.rsplit_once(')')?;
    let (_, comm) = before.split_once('(')?;
    Some((comm, after.split_whitespace().nth(START_TIME_AFTER_COMM)?.parse().ok()?))
}

/// The path in the text of `/proc/PID/cgroup`: version 2's, else that of the controller that systemd names.
pub fn parse_cgroup(text: &str) -> &str {
    let path = |wanted: fn(&str) -> bool| {
        text.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            (wanted(controllers) && path != "/").then_some(path)
        })
    };
    path(str::is_empty)
        .or_else(|| path(|names| names == "name=systemd"))
        .or_else(|| path(|_| true))
        .unwrap_or("/")
}

/// Inodes and ports of listening sockets from the text of `/proc/PID/net/tcp` or `tcp6`.
fn parse_listening(text: &str) -> impl Iterator<Item = (u64, u16)> {
    const STATE_LISTEN: &str = "0A";
    text.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_whitespace();
        let port = fields.nth(1)?.rsplit(':').next()?;
        (fields.nth(1)? == STATE_LISTEN).then_some(())?;
        Some((fields.nth(5)?.parse().ok()?, u16::from_str_radix(port, 16).ok()?))
    })
}

/// A process whose socket was seen, as the event tells it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Process id.
    pub tgid: u32,
    /// `comm` of the thread, padded with zeros; empty if the event has none.
    pub comm: &'a [u8],
    /// Cgroup id; 0 if the event has none.
    pub cgroup_id: u64,
    /// Time of the event, monotonic.
    pub time_ns: u64,
}

#[derive(Debug)]
struct Known {
    start_ticks: u64,
    comm: String,
    checked_ns: u64,
}

/// Processes that were described, so that each is described once.
#[derive(Debug)]
pub struct ProcessTable {
    proc_dir: PathBuf,
    cgroup_dir: PathBuf,
    rules: Vec<ServiceRule>,
    own: Place,
    known: FxHashMap<u32, Known>,
    cgroups: FxHashMap<u64, String>,
    cgroups_due_ns: u64,
}

impl ProcessTable {
    /// A table for this machine.
    pub fn new(rules: Vec<ServiceRule>) -> Self {
        Self::at(Path::new("/proc"), Path::new("/sys/fs/cgroup"), rules)
    }

    /// Names services by these rules from now on: every process is described anew when it is seen next.
    pub fn set_rules(&mut self, rules: Vec<ServiceRule>) {
        if self.rules != rules {
            self.rules = rules;
            self.known.clear();
        }
    }

    fn at(proc_dir: &Path, cgroup_dir: &Path, rules: Vec<ServiceRule>) -> Self {
        let own = fs::read_to_string(proc_dir.join("self/cgroup")).unwrap_or_default();
        Self {
            proc_dir: proc_dir.to_owned(),
            cgroup_dir: cgroup_dir.to_owned(),
            rules,
            own: place(parse_cgroup(&own)),
            known: FxHashMap::default(),
            cgroups: FxHashMap::default(),
            cgroups_due_ns: 0,
        }
    }

    /// The record that describes the process, to be put into the stream *before* the event that showed it;
    /// `None` if the stream has it already. Cheap (one lookup) for a process that was checked within the last
    /// second, so it may be called for every event.
    pub fn describe(&mut self, seen: &Seen<'_>) -> Option<Vec<u8>> {
        if let Some(known) = self.known.get(&seen.tgid)
            && seen.time_ns < known.checked_ns.saturating_add(RECHECK_NS)
        {
            return None;
        }
        let stat = fs::read_to_string(self.proc_dir.join(seen.tgid.to_string()).join("stat")).ok();
        let alive = stat.as_deref().and_then(parse_stat);
        if let Some(known) = self.known.get_mut(&seen.tgid) {
            let same = alive.is_none_or(|(comm, start)| start == known.start_ticks && comm == known.comm);
            if same {
                known.checked_ns = seen.time_ns;
                return None;
            }
        }
        let facts = match alive {
            Some((comm, _)) => self.read_facts(seen.tgid, comm),
            None => self.facts_of_the_gone(seen),
        };
        self.make_room(seen.time_ns);
        let known = Known {
            start_ticks: alive.map_or(0, |(_, start)| start),
            comm: facts.comm.clone(),
            checked_ns: seen.time_ns,
        };
        self.known.insert(seen.tgid, known);
        Some(process_record(&describe_facts(seen.tgid, &facts, &self.rules, &self.own)))
    }

    fn read_facts(&self, tgid: u32, comm: &str) -> ProcessFacts {
        let dir = self.proc_dir.join(tgid.to_string());
        let mut cmdline = fs::read(dir.join("cmdline")).unwrap_or_default();
        cmdline.truncate(CMDLINE_BYTES_MAX);
        let cmdline = cmdline.split(|byte| *byte == 0).map(|arg| String::from_utf8_lossy(arg).into_owned());
        let asked = self.rules.iter().any(|rule| rule.port.is_some());
        ProcessFacts {
            comm: comm.to_owned(),
            exe: fs::read_link(dir.join("exe")).ok().map(|exe| exe.to_string_lossy().into_owned()),
            cmdline: cmdline.filter(|arg| !arg.is_empty()).collect(),
            cgroup: parse_cgroup(&fs::read_to_string(dir.join("cgroup")).unwrap_or_default()).to_owned(),
            listening: if asked { listening_ports(&dir) } else { Vec::new() },
        }
    }

    /// A process that ended before we looked: the event's own words, and its cgroup by id.
    fn facts_of_the_gone(&mut self, seen: &Seen<'_>) -> ProcessFacts {
        let comm = seen.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        let comm = if comm.is_empty() { b"unknown".as_slice() } else { comm };
        ProcessFacts {
            comm: String::from_utf8_lossy(comm).into_owned(),
            cgroup: self.cgroup_path(seen.cgroup_id, seen.time_ns).unwrap_or_default(),
            ..ProcessFacts::default()
        }
    }

    /// A cgroup's id is the inode number of its folder.
    fn cgroup_path(&mut self, id: u64, now_ns: u64) -> Option<String> {
        if id == 0 {
            return None;
        }
        if !self.cgroups.contains_key(&id) && now_ns >= self.cgroups_due_ns {
            self.cgroups_due_ns = now_ns + CGROUP_WALK_EVERY_NS;
            self.cgroups = walk_cgroups(&self.cgroup_dir);
        }
        self.cgroups.get(&id).cloned()
    }

    fn make_room(&mut self, now_ns: u64) {
        const RECENT_NS: u64 = 60_000_000_000;
        if self.known.len() >= PROCESSES_MAX {
            self.known.retain(|_, known| known.checked_ns.saturating_add(RECENT_NS) > now_ns);
        }
        if self.known.len() >= PROCESSES_MAX {
            self.known.clear();
        }
    }
}

fn walk_cgroups(root: &Path) -> FxHashMap<u64, String> {
    let mut found = FxHashMap::default();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        if found.len() >= CGROUPS_MAX {
            break;
        }
        if let (Ok(metadata), Ok(path)) = (fs::metadata(&dir), dir.strip_prefix(root)) {
            found.insert(metadata.ino(), format!("/{}", path.display()));
        }
        let children = fs::read_dir(&dir).into_iter().flatten().flatten();
        todo.extend(
            children
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    found
}

fn listening_ports(proc_pid: &Path) -> Vec<u16> {
    let sockets: FxHashMap<u64, u16> = ["net/tcp", "net/tcp6"]
        .iter()
        .filter_map(|name| fs::read_to_string(proc_pid.join(name)).ok())
        .flat_map(|text| parse_listening(&text).collect::<Vec<_>>())
        .collect();
    let mut ports: Vec<u16> = fs::read_dir(proc_pid.join("fd"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok())
        .filter_map(|inode| sockets.get(&inode).copied())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::record::parse_process;
    use dprof_common::model::ProcessInfo;

    #[test]
    fn stat_is_read_although_comm_holds_anything() {
        let numbers = "S 1 2 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 999 888";
        for (comm, text) in [
            ("redis-server", format!("7 (redis-server) {numbers}")),
            ("a) (b", format!("7 (a) (b) {numbers}")),
            ("", format!("7 () {numbers}")),
        ] {
            assert_eq!(parse_stat(&text), Some((comm, 12345)), "{text}");
        }
        for bad in ["", "7 (x", "7 (x) S 1 2", "7 x) S"] {
            assert_eq!(parse_stat(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_cgroup_of_version_two_wins_then_systemds() {
        for (text, expected) in [
            ("0::/system.slice/redis.service\n", "/system.slice/redis.service"),
            ("12:cpu:/x\n1:name=systemd:/system.slice/a.service\n0::/\n", "/system.slice/a.service"),
            ("4:memory:/docker/abc\n", "/docker/abc"),
            ("0::/\n", "/"),
            ("", "/"),
            ("garbage", "/"),
        ] {
            assert_eq!(parse_cgroup(text), expected, "{text}");
        }
    }

    #[test]
    fn listening_sockets_are_found_in_the_tcp_table() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                    0: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1\n   \
                    1: 0100007F:18EB 0100007F:8000 01 00000000:00000000 00:00000000 00000000     0        0 4243 1\n";
        assert_eq!(parse_listening(text).collect::<Vec<_>>(), [(4242, 6379)]);
        assert_eq!(parse_listening("").count(), 0);
    }

    /// A `/proc` of one process in a folder.
    fn write_process(dir: &Path, pid: u32, comm: &str, start: u64) {
        let dir = dir.join(pid.to_string());
        fs::create_dir_all(&dir).expect("folder");
        let stat = format!("{pid} ({comm}) S 1 2 3 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 {start} 9 9");
        fs::write(dir.join("stat"), stat).expect("stat");
        fs::write(dir.join("cmdline"), format!("/usr/bin/{comm}\0--port\x001\0")).expect("cmdline");
        fs::write(dir.join("cgroup"), "0::/user.slice\n").expect("cgroup");
    }

    fn see(table: &mut ProcessTable, tgid: u32, time_ns: u64) -> Option<ProcessInfo> {
        let seen = Seen { tgid, comm: b"short-lived\0\0\0\0\0", cgroup_id: 0, time_ns };
        table.describe(&seen).map(|record| parse_process(&record).expect("a process record"))
    }

    #[test]
    fn a_process_is_described_once_until_its_id_is_reused_or_it_calls_exec() {
        let dir = tempfile::tempdir().expect("folder");
        let mut table = ProcessTable::at(dir.path(), dir.path(), Vec::new());
        write_process(dir.path(), 7, "redis-server", 100);
        let service = |info: Option<ProcessInfo>| info.map(|info| info.service);
        assert_eq!(service(see(&mut table, 7, 0)).as_deref(), Some("redis-server"));
        assert_eq!(see(&mut table, 7, 1), None);
        assert_eq!(see(&mut table, 7, 2 * RECHECK_NS), None, "unchanged");
        write_process(dir.path(), 7, "nginx", 100);
        assert_eq!(see(&mut table, 7, 2 * RECHECK_NS + 1), None, "checked a moment ago");
        assert_eq!(service(see(&mut table, 7, 4 * RECHECK_NS)).as_deref(), Some("nginx"), "exec");
        write_process(dir.path(), 7, "nginx", 200);
        assert_eq!(service(see(&mut table, 7, 6 * RECHECK_NS)).as_deref(), Some("nginx"), "reused id");
        fs::remove_dir_all(dir.path().join("7")).expect("remove");
        assert_eq!(see(&mut table, 7, 8 * RECHECK_NS), None, "gone: the old description stays");
    }

    #[test]
    fn a_process_that_is_gone_is_named_by_its_event() {
        let dir = tempfile::tempdir().expect("folder");
        let cgroups = dir.path().join("system.slice/cron.service");
        fs::create_dir_all(&cgroups).expect("folder");
        let cgroup_id = fs::metadata(&cgroups).expect("inode").ino();
        let mut table = ProcessTable::at(dir.path(), dir.path(), Vec::new());
        let named = see(&mut table, 9, 0).expect("described");
        assert_eq!((named.service.as_str(), named.pid), ("short-lived", 9));
        let seen = Seen { tgid: 10, comm: b"sh", cgroup_id, time_ns: 0 };
        let named = parse_process(&table.describe(&seen).expect("described")).expect("a record");
        assert_eq!((named.service.as_str(), named.comm.as_str()), ("cron", "sh"));
    }

    #[test]
    fn memory_for_processes_is_bounded() {
        let dir = tempfile::tempdir().expect("folder");
        let mut table = ProcessTable::at(dir.path(), dir.path(), Vec::new());
        for tgid in 1..=(PROCESSES_MAX as u32 + 10) {
            see(&mut table, tgid, 5);
        }
        assert!(table.known.len() <= PROCESSES_MAX);
    }

    #[test]
    fn this_very_process_can_be_described() {
        let rule = ServiceRule {
            service: "tests".into(),
            comm: None,
            exe: None,
            cmdline: None,
            unit: None,
            container: None,
            port: Some(listener_port()),
        };
        let mut table = ProcessTable::new(vec![rule]);
        let described = see(&mut table, std::process::id(), 0).expect("described");
        assert_ne!(described.service, "tests", "the listener is closed again");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        let dir = PathBuf::from(format!("/proc/{}", std::process::id()));
        assert!(listening_ports(&dir).contains(&port));
    }

    fn listener_port() -> u16 {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        listener.local_addr().expect("address").port()
    }
}
