//! A bar on stderr while a long read goes on: only on a terminal, and only once the read has lasted a while, so that
//! quick answers do not flicker.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::clock::Stopwatch;
use crate::units;

/// Reads shorter than this show nothing.
const SILENT_FOR: Duration = Duration::from_millis(400);

/// Steps of a bar; the store does not say how many rows there will be, so it shows the share of the window read.
const STEPS: u64 = 1_000;

/// How far a read is.
pub(crate) struct Progress {
    bar: ProgressBar,
    since: Stopwatch,
    is_shown: bool,
    wanted: bool,
    rows: u64,
}

impl Progress {
    /// `wanted` = stderr is a terminal.
    pub(crate) fn new(wanted: bool, label: &'static str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::hidden());
        // The template is a constant that a test parses.
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.set_prefix(label);
        Self { bar, since: Stopwatch::start(), is_shown: false, wanted, rows: 0 }
    }

    /// `rows` more were read; `share` of the whole (0 to 1) is done.
    pub(crate) fn advance(&mut self, rows: usize, share: f64) {
        self.rows += rows as u64;
        if !self.wanted {
            return;
        }
        if !self.is_shown && self.since.elapsed() >= SILENT_FOR {
            self.is_shown = true;
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_message(format!("{} rows", units::count(self.rows)));
        self.bar.set_position((share.clamp(0.0, 1.0) * STEPS as f64) as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

const TEMPLATE: &str = "{prefix} {wide_bar} {percent}% {msg}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_valid_and_shares_are_bounded() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
        let mut progress = Progress::new(false, "reading");
        for share in [-1.0, 0.5, 2.0, f64::NAN] {
            progress.advance(10, share);
        }
        assert_eq!(progress.rows, 40);
    }
}
