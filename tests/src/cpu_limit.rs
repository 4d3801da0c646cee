//! A limit on the CPU time of one process, by a control group of its own, which goes when the limit is dropped.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// Where control groups are: of version 1 with a hierarchy for CPU time, or of version 2.
const V1: &str = "/sys/fs/cgroup/cpu";
const V2: &str = "/sys/fs/cgroup";

/// CPU time is given out for so long, microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;

/// A limit in force.
#[derive(Debug)]
pub struct CpuLimit {
    group: PathBuf,
    root: PathBuf,
    pid: u32,
}

impl CpuLimit {
    /// Gives a process and all of its threads so many hundredths of one CPU.
    pub fn new(pid: u32, percent: u64) -> Result<Self> {
        let is_v1 = fs::exists(format!("{V1}/cpu.cfs_quota_us")).unwrap_or(false);
        let root = PathBuf::from(if is_v1 { V1 } else { V2 });
        let group = root.join(format!("dprof-drill-{pid}"));
        fs::create_dir(&group).with_context(|| format!("create {}", group.display()))?;
        let limit = Self { group, root, pid };
        let quota_us = PERIOD_US * percent / 100;
        if is_v1 {
            limit.write("cpu.cfs_period_us", &PERIOD_US.to_string())?;
            limit.write("cpu.cfs_quota_us", &quota_us.to_string())?;
        } else {
            limit.write("cpu.max", &format!("{quota_us} {PERIOD_US}"))?;
        }
        limit.write("cgroup.procs", &pid.to_string())?;
        Ok(limit)
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.group.join(file);
        fs::write(&path, text).with_context(|| format!("write {text} to {}", path.display()))
    }
}

impl Drop for CpuLimit {
    fn drop(&mut self) {
        // It may have ended: then the group is empty already.
        let moved: io::Result<()> = fs::write(self.root.join("cgroup.procs"), self.pid.to_string());
        drop(moved);
        // A group that stays is empty and does nothing.
        let _ = fs::remove_dir(&self.group);
    }
}
