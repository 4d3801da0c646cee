//! What the kernel says about this process.

use std::collections::BTreeMap;
use std::fs;

use crate::clock::process_cpu;

/// Figures of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessFigures {
    /// CPU time, user and system.
    pub cpu_seconds: f64,
    /// When it was started, seconds since the epoch.
    pub start_time_seconds: f64,
    /// Resident memory.
    pub resident_bytes: u64,
    /// Memory that the kernel charges for programs and maps.
    pub kernel_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// Threads.
    pub threads: u64,
}

impl ProcessFigures {
    /// Reads them; what cannot be read is 0.
    pub fn read(started_unix_ns: u64) -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let descriptors: Vec<String> = fs::read_dir("/proc/self/fdinfo")
            .into_iter()
            .flatten()
            .flatten()
            // One that was closed meanwhile counts too.
            .map(|entry| fs::read_to_string(entry.path()).unwrap_or_default())
            .collect();
        Self {
            cpu_seconds: process_cpu().as_secs_f64(),
            start_time_seconds: started_unix_ns as f64 / 1e9,
            resident_bytes: number(&status, "VmRSS:") * 1024,
            kernel_bytes: kernel_bytes(&descriptors),
            open_fds: descriptors.len() as u64,
            threads: number(&status, "Threads:"),
        }
    }
}

/// What maps and programs are charged with; several descriptors may be of one.
fn kernel_bytes(descriptors: &[String]) -> u64 {
    let charged: BTreeMap<_, _> = descriptors
        .iter()
        .filter(|text| text.contains("memlock:"))
        .map(|text| ((number(text, "map_id:"), number(text, "prog_id:")), number(text, "memlock:")))
        .collect();
    charged.values().sum()
}

/// The number behind a name at the start of a line; 0 if there is none.
fn number(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_size_and_a_thread() {
        let figures = ProcessFigures::read(1_500_000_000);
        assert!(
            figures.resident_bytes > 1 << 20 && figures.threads > 0 && figures.open_fds > 2,
            "{figures:?}"
        );
        assert!((figures.start_time_seconds - 1.5).abs() < 1e-9);
    }

    #[test]
    fn numbers_stand_behind_their_names() {
        let ring = "pos:\t0\nmap_type:\t27\nmemlock:\t4194304\nmap_id:\t7\n".to_owned();
        let program = "prog_type:\t5\nmemlock:\t4096\nprog_id:\t7\n".to_owned();
        assert_eq!((number(&ring, "memlock:"), number(&ring, "none:")), (4_194_304, 0));
        assert_eq!(kernel_bytes(&[ring.clone(), program, ring, "pos:\t0\n".to_owned()]), 4_198_400);
    }
}
