//! Tables without borders that fit the screen: columns that matter least are left out first, then long text is
//! cut; numbers and ids are never cut.
//!
//! Written by hand because the table libraries wrap text inside cells and share the width evenly, which turns a
//! list of spans into a page of fragments.

use std::io::{self, Write};

use super::text::{clean, fit, spaces, width};
use super::{Screen, Tone};

/// Between columns.
const GAP: usize = 2;

/// Columns that matter less are left out before text is cut below this: `redis-server` stays whole.
const TEXT_MIN: usize = 12;

/// Columns of this rank and above are left out rather than that any text is cut.
const RANK_EXTRA: u8 = 5;

/// How a column behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Left-aligned, may be cut.
    Text,
    /// Left-aligned, never cut.
    Whole,
    /// Right-aligned, never cut.
    Number,
}

/// A column. `rank` 0 is always shown; of the others the highest is left out first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    title: &'static str,
    shape: Shape,
    rank: u8,
}

impl Column {
    /// Text that may be cut.
    pub(crate) const fn text(title: &'static str, rank: u8) -> Self {
        Self { title, shape: Shape::Text, rank }
    }

    /// Text that must stay whole: ids, times.
    pub(crate) const fn whole(title: &'static str, rank: u8) -> Self {
        Self { title, shape: Shape::Whole, rank }
    }

    /// Right-aligned.
    pub(crate) const fn number(title: &'static str, rank: u8) -> Self {
        Self { title, shape: Shape::Number, rank }
    }
}

/// A cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    /// A cell in colour.
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: clean(&text.into()).into_owned(), tone }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: clean(text.as_ref()).into_owned(), tone: Tone::Plain }
    }
}

/// Rows under columns.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds a row: one cell per column.
    pub(crate) fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        let cells = cells.into();
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// Writes heading and rows. Columns without any content are left out.
    pub(crate) fn write(&self, screen: Screen, out: &mut dyn Write) -> io::Result<()> {
        let layout = self.layout(screen.width);
        let heading = layout
            .iter()
            .map(|(idx, _)| Cell { text: self.columns[*idx].title.to_owned(), tone: Tone::Bold });
        self.write_row(screen, &layout, &heading.collect::<Vec<_>>(), out)?;
        for row in &self.rows {
            let cells: Vec<Cell> = layout.iter().map(|(idx, _)| row[*idx].clone()).collect();
            self.write_row(screen, &layout, &cells, out)?;
        }
        Ok(())
    }

    fn write_row(
        &self,
        screen: Screen,
        layout: &[(usize, usize)],
        cells: &[Cell],
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let mut line = String::new();
        let mut owed = 0;
        for ((idx, columns), cell) in layout.iter().zip(cells) {
            let text = fit(&cell.text, *columns, screen.unicode);
            let slack = columns.saturating_sub(width(&text));
            let before = if self.columns[*idx].shape == Shape::Number { slack } else { 0 };
            // Spaces are owed until something follows them: lines do not end in spaces.
            if text.is_empty() {
                owed += columns + GAP;
                continue;
            }
            spaces(&mut line, owed + before);
            line.push_str(&cell.tone.paint(screen.colour, &text));
            owed = slack - before + GAP;
        }
        writeln!(out, "{line}")
    }

    /// Position in `shown` of the column of the highest rank that is at least `rank_min`.
    fn least_wanted(&self, shown: &[(usize, usize)], rank_min: u8) -> Option<usize> {
        let ranks = shown.iter().enumerate().map(|(position, (idx, _))| (self.columns[*idx].rank, position));
        ranks.filter(|(rank, _)| *rank >= rank_min).max().map(|(_, position)| position)
    }

    /// Which columns are shown, and how wide.
    fn layout(&self, screen_width: Option<usize>) -> Vec<(usize, usize)> {
        let natural = |idx: usize| {
            let cells = self.rows.iter().map(|row| width(&row[idx].text));
            cells.max().unwrap_or(0).max(width(self.columns[idx].title))
        };
        let mut shown: Vec<(usize, usize)> = (0..self.columns.len())
            .filter(|idx| self.rows.is_empty() || self.rows.iter().any(|row| !row[*idx].text.is_empty()))
            .map(|idx| (idx, natural(idx)))
            .collect();
        let Some(screen_width) = screen_width else { return shown };
        let total = |widths: usize, columns: usize| widths + GAP * columns.saturating_sub(1);
        let natural_total = |shown: &[(usize, usize)]| total(shown.iter().map(|(_, n)| n).sum(), shown.len());
        while natural_total(&shown) > screen_width {
            let Some(position) = self.least_wanted(&shown, RANK_EXTRA) else { break };
            shown.remove(position);
        }
        let least = |(idx, natural): &(usize, usize)| match self.columns[*idx].shape {
            Shape::Text => (*natural).min(TEXT_MIN.max(width(self.columns[*idx].title))),
            _ => *natural,
        };
        while total(shown.iter().map(least).sum(), shown.len()) > screen_width {
            let Some(position) = self.least_wanted(&shown, 1) else { break };
            shown.remove(position);
        }
        let mut excess = natural_total(&shown).saturating_sub(screen_width);
        while excess > 0 {
            let widest = shown
                .iter_mut()
                .filter(|(idx, columns)| self.columns[*idx].shape == Shape::Text && *columns > TEXT_MIN)
                .max_by_key(|(_, columns)| *columns);
            let Some((_, columns)) = widest else { break };
            *columns -= 1;
            excess -= 1;
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new([
            Column::number("DURATION", 0),
            Column::text("OPERATION", 0),
            Column::text("HOST", 2),
            Column::text("NOTE", 1),
            Column::whole("TRACE", 0),
        ]);
        table.row(["104 ms".into(), "GET".into(), "db-1".into(), "".into(), "00000000000000ab".into()]);
        table.row([
            "9.00 us".into(),
            "LRANGE of a very long list".into(),
            "db-2".into(),
            "".into(),
            Cell::toned("00000000000000cd", Tone::Red),
        ]);
        table
    }

    #[track_caller]
    fn check(width: Option<usize>, colour: bool, expected: &str) {
        let mut out = Vec::new();
        sample().write(Screen { width, height: None, colour, unicode: true }, &mut out).expect("memory");
        assert_eq!(String::from_utf8(out).expect("text"), expected);
    }

    #[test]
    fn a_wide_screen_shows_all_columns_that_say_something() {
        check(
            None,
            false,
            "\
DURATION  OPERATION                   HOST  TRACE
  104 ms  GET                         db-1  00000000000000ab
 9.00 us  LRANGE of a very long list  db-2  00000000000000cd
",
        );
    }

    #[test]
    fn a_narrow_screen_cuts_text_then_drops_columns_but_keeps_ids() {
        check(
            Some(52),
            false,
            "\
DURATION  OPERATION           HOST  TRACE
  104 ms  GET                 db-1  00000000000000ab
 9.00 us  LRANGE of a very …  db-2  00000000000000cd
",
        );
        check(
            Some(40),
            false,
            "\
DURATION  OPERATION     TRACE
  104 ms  GET           00000000000000ab
 9.00 us  LRANGE of a…  00000000000000cd
",
        );
    }

    #[test]
    fn colours_do_not_move_columns() {
        check(
            Some(40),
            true,
            "\
\u{1b}[1mDURATION\u{1b}[0m  \u{1b}[1mOPERATION\u{1b}[0m     \u{1b}[1mTRACE\u{1b}[0m
  104 ms  GET           00000000000000ab
 9.00 us  LRANGE of a…  \u{1b}[31m00000000000000cd\u{1b}[0m
",
        );
    }
}
