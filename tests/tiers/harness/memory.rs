//! What a process costs in memory: its own pages and the kernel's behind its maps.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};

/// How often memory is looked at while something runs: often enough for a peak of some tens of milliseconds to be met
/// now and then, seldom enough not to be the load.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Memory of a process, kB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// Proportional resident memory: the event ring and the buffers of CPUs are in it, mapped.
    pub(crate) pss_kb: u64,
    /// What the kernel holds for its maps, those that are mapped left out.
    pub(crate) maps_kb: u64,
}

impl Footprint {
    /// Both.
    pub(crate) const fn total_kb(self) -> u64 {
        self.pss_kb + self.maps_kb
    }
}

/// `BPF_MAP_TYPE_RINGBUF`
const RING: u64 = 27;

/// `BPF_F_MMAPABLE`
const MMAPABLE: u64 = 1 << 10;

/// Memory of a process now.
pub(crate) fn footprint(pid: u32) -> Result<Footprint> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let pss_kb = number(&text, "Pss:").context("no Pss")?;
    let mut maps = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor may be closed meanwhile.
        let Ok(info) = fs::read_to_string(entry?.path()) else { continue };
        if let (Some(kind), Some(id), Some(bytes)) =
            (number(&info, "map_type:"), number(&info, "map_id:"), number(&info, "memlock:"))
            && kind != RING
            && flags(&info) & MMAPABLE == 0
        {
            maps.push((id, bytes));
        }
    }
    maps.sort_unstable();
    maps.dedup();
    Ok(Footprint { pss_kb, maps_kb: maps.iter().map(|(_, bytes)| bytes / 1024).sum() })
}

/// Runs `load`; its result, and the largest memory of `pid` meanwhile.
pub(crate) fn peak_during<T>(pid: u32, load: impl FnOnce() -> Result<T>) -> Result<(T, Footprint)> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| -> Result<Footprint> {
            let mut peak = Footprint::default();
            loop {
                let is_last = done.load(Ordering::Relaxed);
                let now = footprint(pid)?;
                if now.total_kb() > peak.total_kb() {
                    peak = now;
                }
                if is_last {
                    return Ok(peak);
                }
                thread::sleep(LOOK_EVERY);
            }
        });
        let result = load();
        done.store(true, Ordering::Relaxed);
        let peak = watch.join().map_err(|_| anyhow!("the thread that looks at memory panicked"))?;
        Ok((result?, peak?))
    })
}

/// The map's, of its descriptor's lines.
fn flags(info: &str) -> u64 {
    let text = info.lines().find_map(|line| line.strip_prefix("map_flags:")?.trim().strip_prefix("0x"));
    text.and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0)
}

/// The number after `name` at the start of a line.
fn number(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}
