//! What this machine did in each minute: two readings of `/proc` into rates, looks at the run queue into a mean.
//!
//! What a reader would get wrong: the counters are of the whole machine (network: of the agent's own namespace), not of
//! what is traced; that is the point, since a neighbour's load is what traces alone cannot show.

use std::fs;
use std::path::Path;

use dprof_store::control::HostMinute;

/// Bytes of a sector in `/proc/diskstats`, whatever the disk's own are.
const SECTOR_BYTES: u64 = 512;
/// Most minutes that wait for a store that is away.
const WAITING_MAX: usize = 120;
const MINUTE_S: u64 = 60;

/// Counters of the machine at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub monotonic_ns: u64,
    n_cpus: u32,
    /// Ticks of all CPUs: all, idle (or waiting for a disk), stolen.
    ticks: u64,
    idle: u64,
    steal: u64,
    /// Tasks that run or want to.
    running: u32,
    load_1m: f64,
    memory_bytes: u64,
    memory_used_bytes: u64,
    disk_read_bytes: u64,
    disk_written_bytes: u64,
    /// Milliseconds in which each disk worked, by name.
    disks_busy_ms: Vec<(String, u64)>,
    net_received_bytes: u64,
    net_sent_bytes: u64,
    net_lost: u64,
}

impl Reading {
    /// Reads them below `proc`; what cannot be read is 0.
    pub fn read(proc: &Path, monotonic_ns: u64) -> Self {
        let text = |name: &str| fs::read_to_string(proc.join(name)).unwrap_or_default();
        let mut reading = Self { monotonic_ns, ..Self::default() };
        reading.take_stat(&text("stat"));
        reading.load_1m =
            text("loadavg").split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
        reading.take_memory(&text("meminfo"));
        reading.take_disks(&text("diskstats"));
        reading.take_interfaces(&text("self/net/dev"));
        reading
    }

    /// `cpu  user nice system idle iowait irq softirq steal guest guest_nice`
    fn take_stat(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("cpu") => {
                    // Guests' time is in user's already.
                    let ticks: Vec<u64> = words.take(8).filter_map(|word| word.parse().ok()).collect();
                    self.ticks = ticks.iter().sum();
                    self.idle = ticks.get(3).unwrap_or(&0) + ticks.get(4).unwrap_or(&0);
                    self.steal = *ticks.get(7).unwrap_or(&0);
                }
                Some("procs_running") => {
                    self.running = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
                }
                Some(name) if name.starts_with("cpu") => self.n_cpus += 1,
                _ => {}
            }
        }
    }

    fn take_memory(&mut self, text: &str) {
        let kib = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        self.memory_bytes = kib("MemTotal:") * 1024;
        self.memory_used_bytes = self.memory_bytes.saturating_sub(kib("MemAvailable:") * 1024);
    }

    /// `major minor name reads merged sectors ms writes merged sectors ms in_flight ms_busy …`; partitions and what is
    /// made of other disks would count twice.
    fn take_disks(&mut self, text: &str) {
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(name), Some(busy_ms)) = (words.get(2), words.get(12)) else { continue };
            if !is_disk(name) {
                continue;
            }
            let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            self.disk_read_bytes += number(5) * SECTOR_BYTES;
            self.disk_written_bytes += number(9) * SECTOR_BYTES;
            self.disks_busy_ms.push(((*name).to_owned(), busy_ms.parse().unwrap_or(0)));
        }
    }

    /// `eth0: bytes packets errs drop fifo frame compressed multicast bytes packets errs drop …`
    fn take_interfaces(&mut self, text: &str) {
        for line in text.lines() {
            let Some((name, rest)) = line.split_once(':') else { continue };
            if name.trim() == "lo" {
                continue;
            }
            let numbers: Vec<u64> = rest.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            let number = |at: usize| numbers.get(at).copied().unwrap_or(0);
            self.net_received_bytes += number(0);
            self.net_sent_bytes += number(8);
            self.net_lost += number(2) + number(3) + number(10) + number(11);
        }
    }
}

/// Whether it is a whole disk: `sda`, `vda`, `nvme0n1`, `mmcblk0`; neither a partition nor made of others.
fn is_disk(name: &str) -> bool {
    let is_letters = |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase());
    if let Some(rest) = ["sd", "vd", "xvd", "hd"].iter().find_map(|kind| name.strip_prefix(kind)) {
        return is_letters(rest);
    }
    (name.starts_with("nvme") || name.starts_with("mmcblk")) && !name.contains('p')
}

/// Readings into minutes.
#[derive(Debug)]
pub struct Minutes {
    host: String,
    minute_s: u64,
    first: Reading,
    last: Reading,
    /// Looks at the run queue, and their sum and most.
    n_looks: u64,
    running: u64,
    running_max: u32,
    waiting: Vec<HostMinute>,
}

impl Minutes {
    /// Starts with a reading of now.
    pub fn new(host: &str, first: Reading, unix_s: u64) -> Self {
        let mut minutes = Self {
            host: host.to_owned(),
            minute_s: unix_s / MINUTE_S * MINUTE_S,
            last: first.clone(),
            first,
            n_looks: 0,
            running: 0,
            running_max: 0,
            waiting: Vec::new(),
        };
        minutes.look();
        minutes
    }

    fn look(&mut self) {
        self.n_looks += 1;
        self.running += u64::from(self.last.running);
        self.running_max = self.running_max.max(self.last.running);
    }

    /// Another reading; the first of a minute ends the one before.
    pub fn add(&mut self, reading: Reading, unix_s: u64) {
        self.last = reading;
        let minute_s = unix_s / MINUTE_S * MINUTE_S;
        if minute_s == self.minute_s {
            self.look();
            return;
        }
        self.close();
        *self = Self {
            waiting: std::mem::take(&mut self.waiting),
            ..Self::new(&self.host, self.last.clone(), unix_s)
        };
    }

    /// The minute as far as it is.
    pub fn close(&mut self) {
        let minute = self.minute();
        if minute.watched_s <= 0.0 {
            return;
        }
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.remove(0);
        }
        self.waiting.push(minute);
    }

    /// Minutes that are over and not yet stored, the oldest first.
    pub fn waiting(&self) -> &[HostMinute] {
        &self.waiting
    }

    /// The oldest was stored.
    pub fn stored(&mut self) {
        if !self.waiting.is_empty() {
            self.waiting.remove(0);
        }
    }

    fn minute(&self) -> HostMinute {
        let (first, last) = (&self.first, &self.last);
        let watched_s = last.monotonic_ns.saturating_sub(first.monotonic_ns) as f64 / 1e9;
        let per_s = |now: u64, before: u64| {
            if watched_s > 0.0 { now.saturating_sub(before) as f64 / watched_s } else { 0.0 }
        };
        let ticks = last.ticks.saturating_sub(first.ticks);
        let share = |now: u64, before: u64| now.saturating_sub(before) as f64 / ticks.max(1) as f64;
        let busy_share = |(name, now_ms): &(String, u64)| {
            let before_ms = first.disks_busy_ms.iter().find(|(before, _)| before == name).map(|(_, ms)| *ms);
            per_s(*now_ms, before_ms.unwrap_or(*now_ms)) / 1e3
        };
        HostMinute {
            host: self.host.clone(),
            minute_unix_s: self.minute_s,
            watched_s,
            n_cpus: last.n_cpus,
            cpu_share: if ticks > 0 { 1.0 - share(last.idle, first.idle) } else { 0.0 },
            steal_share: share(last.steal, first.steal),
            run_queue: self.running as f64 / self.n_looks.max(1) as f64,
            run_queue_max: self.running_max,
            load_1m: last.load_1m,
            memory_bytes: last.memory_bytes,
            memory_used_bytes: last.memory_used_bytes,
            disk_read_per_s: per_s(last.disk_read_bytes, first.disk_read_bytes),
            disk_written_per_s: per_s(last.disk_written_bytes, first.disk_written_bytes),
            disk_busy_share: last.disks_busy_ms.iter().map(busy_share).fold(0.0, f64::max).min(1.0),
            net_received_per_s: per_s(last.net_received_bytes, first.net_received_bytes),
            net_sent_per_s: per_s(last.net_sent_bytes, first.net_sent_bytes),
            net_lost_per_s: per_s(last.net_lost, first.net_lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    /// A folder like `/proc`.
    fn proc(stat: &str, disk: &str, net: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir_all(dir.path().join("self/net")).expect("made");
        for (name, text) in [
            ("stat", stat),
            ("loadavg", "0.75 0.50 0.25 2/345 6789\n"),
            ("meminfo", "MemTotal:       1000 kB\nMemFree:  10 kB\nMemAvailable:    400 kB\n"),
            ("diskstats", disk),
            ("self/net/dev", net),
        ] {
            fs::write(dir.path().join(name), text).expect("written");
        }
        dir
    }

    fn net(received: u64, sent: u64, lost: u64) -> String {
        format!(
            "Inter-|   Receive  |  Transmit\n face |bytes packets errs\n    lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n  \
             eth0: {received} 1 {lost} 0 0 0 0 0 {sent} 1 0 0 0 0 0 0\n"
        )
    }

    #[test]
    fn two_readings_are_a_minute() {
        let before = proc(
            "cpu  100 0 0 100 0 0 0 0 0 0\ncpu0 1\ncpu1 1\nprocs_running 3\n",
            "   8 0 sda 1 0 100 5 1 0 10 5 0 1000 9 0 0\n   8 1 sda1 1 0 999 5 1 0 999 5 0 9999 9\n",
            &net(1_000, 100, 0),
        );
        let after = proc(
            "cpu  150 10 15 200 0 0 0 25 40 0\ncpu0 1\ncpu1 1\nprocs_running 7\n",
            "   8 0 sda 1 0 300 5 1 0 30 5 0 3500 9 0 0\n   8 1 sda1 1 0 999 5 1 0 999 5 0 9999 9\n",
            &net(6_000, 1_100, 20),
        );
        let unix_s = 1_800_000_000;
        let mut minutes = Minutes::new("web-1", Reading::read(before.path(), SECOND_NS), unix_s);
        minutes.add(Reading::read(after.path(), 11 * SECOND_NS), unix_s + 10);
        assert!(minutes.waiting().is_empty(), "the minute is not over");
        minutes.add(Reading::read(after.path(), 11 * SECOND_NS), unix_s + 60);
        let expected = HostMinute {
            host: "web-1".to_owned(),
            minute_unix_s: unix_s,
            watched_s: 10.0,
            n_cpus: 2,
            cpu_share: 0.5,
            steal_share: 0.125,
            run_queue: 5.0,
            run_queue_max: 7,
            load_1m: 0.75,
            memory_bytes: 1_024_000,
            memory_used_bytes: 614_400,
            disk_read_per_s: 10_240.0,
            disk_written_per_s: 1_024.0,
            disk_busy_share: 0.25,
            net_received_per_s: 500.0,
            net_sent_per_s: 100.0,
            net_lost_per_s: 2.0,
        };
        assert_eq!(minutes.waiting(), [expected]);
        minutes.stored();
        assert!(minutes.waiting().is_empty());
    }

    #[test]
    fn minutes_wait_for_a_store_but_not_without_bound() {
        let dir = proc("", "", "");
        let mut minutes = Minutes::new("a", Reading::read(dir.path(), 0), 0);
        for minute in 1..=WAITING_MAX as u64 + 5 {
            minutes.add(Reading::read(dir.path(), minute * 60 * SECOND_NS), minute * 60);
        }
        assert_eq!(minutes.waiting().len(), WAITING_MAX);
        assert_eq!(minutes.waiting()[0].minute_unix_s, 5 * 60);
    }

    #[test]
    fn only_whole_disks_count() {
        for disk in ["sda", "vdb", "xvda", "nvme0n1", "mmcblk0"] {
            assert!(is_disk(disk), "{disk}");
        }
        for other in ["sda1", "vda2", "nvme0n1p1", "mmcblk0p2", "dm-0", "md0", "loop0", "sr0", "ram0", "sd"] {
            assert!(!is_disk(other), "{other}");
        }
    }

    #[test]
    fn this_machine_has_cpus_and_memory() {
        let reading = Reading::read(Path::new("/proc"), 0);
        assert!(reading.n_cpus > 0 && reading.ticks > 0 && reading.memory_bytes > 0, "{reading:?}");
    }
}
