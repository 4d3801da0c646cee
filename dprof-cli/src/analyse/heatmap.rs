//! Latency over time: how many requests of each minute fell into each class of duration.
//!
//! What a reader would get wrong: classes are spaced evenly in the logarithm, so a cell twice as high up is a
//! multiple, not a sum. Made of the counts per minute, before sampling: every request is in it.

use dprof_common::model::{Rollup, Side};
use serde::Serialize;

/// Rows and columns of counts. Field names are the JSON schema.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Heatmap {
    /// Start of the first column, seconds since the epoch.
    pub start_unix_s: u64,
    /// Seconds per column, a multiple of 60.
    pub step_s: u64,
    /// Upper bound of each class, nanoseconds, shortest first.
    pub upper_ns: Vec<u64>,
    /// Count of each class (shortest first) in each column.
    pub cells: Vec<Vec<u64>>,
}

/// How large a map may be.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// At most this many columns.
    pub columns: usize,
    /// At most this many classes.
    pub rows: usize,
}

/// The map of `rollups` (of one `side`); `None` if they hold nothing.
pub fn heatmap(rollups: &[Rollup], side: Side, size: Size) -> Option<Heatmap> {
    let of_side = || rollups.iter().filter(|rollup| rollup.key.side == side && rollup.count > 0);
    let first_s = of_side().map(|rollup| rollup.key.minute_unix_s).min()?;
    let last_s = of_side().map(|rollup| rollup.key.minute_unix_s).max()?;
    let min_ns = of_side().map(|rollup| rollup.min_ns).min()?.max(1);
    let max_ns = of_side().map(|rollup| rollup.max_ns).max()?.max(min_ns + 1);
    let minutes = (last_s - first_s) / 60 + 1;
    let step_s = 60 * minutes.div_ceil(size.columns.max(1) as u64);
    let columns = ((last_s - first_s) / step_s + 1) as usize;
    let rows = size.rows.max(1);
    let (low, high) = ((min_ns as f64).ln(), (max_ns as f64).ln());
    let height = ((high - low) / rows as f64).max(f64::MIN_POSITIVE);
    let mut cells = vec![vec![0; columns]; rows];
    for rollup in of_side() {
        let column = ((rollup.key.minute_unix_s - first_s) / step_s) as usize;
        for (ns, n) in rollup.sketch.values() {
            let row = (((ns.clamp(min_ns, max_ns) as f64).ln() - low) / height) as usize;
            cells[row.min(rows - 1)][column] += n;
        }
    }
    let upper_ns = (1..=rows).map(|row| (low + height * row as f64).exp().round() as u64).collect();
    Some(Heatmap { start_unix_s: first_s, step_s, upper_ns, cells })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dprof_common::model::RollupKey;

    fn rollup(minute: u64, durations_ns: &[u64]) -> Rollup {
        let mut rollup = Rollup::new(RollupKey {
            minute_unix_s: minute * 60,
            service: "redis".into(),
            operation: "GET".into(),
            side: Side::Server,
            protocol: "redis".into(),
        });
        durations_ns.iter().for_each(|ns| rollup.add(*ns, false, 1, 1));
        rollup
    }

    #[test]
    fn every_request_is_in_the_cell_of_its_minute_and_class() {
        // Three classes from 1 us to 1 ms: a factor of ten each.
        let rollups = [rollup(10, &[1_000, 2_000, 50_000]), rollup(12, &[1_000_000, 500_000])];
        let map = heatmap(&rollups, Side::Server, Size { columns: 80, rows: 3 }).expect("not empty");
        assert_eq!((map.start_unix_s, map.step_s), (600, 60));
        assert_eq!(map.upper_ns, [10_000, 100_000, 1_000_000]);
        assert_eq!(map.cells, [[2, 0, 0], [1, 0, 0], [0, 0, 2]]);
    }

    #[test]
    fn long_windows_share_columns_and_nothing_is_none() {
        let rollups: Vec<Rollup> = (0..100).map(|minute| rollup(minute, &[1_000])).collect();
        let map = heatmap(&rollups, Side::Server, Size { columns: 30, rows: 4 }).expect("not empty");
        assert_eq!((map.step_s, map.cells[0].len()), (240, 25));
        assert_eq!(map.cells.iter().flatten().sum::<u64>(), 100);
        assert_eq!(heatmap(&rollups, Side::Client, Size { columns: 30, rows: 4 }), None);
        assert_eq!(heatmap(&[], Side::Server, Size { columns: 30, rows: 4 }), None);
    }
}
