//! A trace as a tree with bars: who called whom, when, and what the time went on.
//!
//! What a reader would get wrong: a bar's stretches are the split of that RPC, on a line where the clocks of
//! different hosts were fitted into each other ([`crate::analyse::place`]); the numbers beside it are exact, the
//! positions of bars on other hosts are not.

use std::io::{self, Write};

use super::rows::{Line, Row};
use super::text::{clean, fit, pad, spaces, width};
use super::{Screen, Tone};
use crate::analyse::latency::Part;
use crate::analyse::place::Placed;
use crate::analyse::row::{failing_half, halves};
use crate::analyse::tree::Tree;
use crate::units;
use dprof_common::model::split;

/// Columns in all for a file or a pipe, where the screen has no width.
const WIDTH_UNLIMITED: usize = 120;

/// `999 ms`, `59m 59s` and a mark before it.
const DURATION_COLUMNS: usize = 9;

/// Below this a bar shows nothing.
const BAR_MIN: usize = 16;

impl Part {
    /// How a stretch of it is drawn.
    const fn glyph(self, unicode: bool) -> char {
        match (self, unicode) {
            (Self::Send, true) => '»',
            (Self::Send, false) => '>',
            (Self::Network, true) => '─',
            (Self::Network, false) => '-',
            (Self::Queue, true) => '▒',
            (Self::Queue, false) => 'q',
            (Self::Service, true) => '█',
            (Self::Service, false) => '#',
            (Self::Streaming, true) => '▄',
            (Self::Streaming, false) => '=',
            (Self::ReplyQueue, true) => '░',
            (Self::ReplyQueue, false) => 'r',
            (Self::Remote | Self::Rest, true) => '╌',
            (Self::Remote | Self::Rest, false) => '?',
        }
    }

    const fn tone(self) -> Tone {
        match self {
            Self::Send | Self::Streaming => Tone::Cyan,
            Self::Network => Tone::Blue,
            Self::Queue | Self::ReplyQueue => Tone::Yellow,
            Self::Service => Tone::Green,
            Self::Remote | Self::Rest => Tone::Magenta,
        }
    }
}

/// The drawn time line: nanoseconds after the first root's start.
#[derive(Clone, Copy, Debug)]
struct Range {
    start: i64,
    length: u64,
}

/// Writes legend, axis and one line per row.
pub(crate) fn write(
    tree: &Tree<'_>,
    placed: &[Placed],
    rows: &[Row],
    screen: Screen,
    out: &mut dyn Write,
) -> io::Result<()> {
    let total = screen.width.unwrap_or(WIDTH_UNLIMITED);
    let number_columns = rows.iter().filter_map(|row| row.number).max().unwrap_or(0).to_string().len().max(1);
    // The tree may take two fifths of the line; deep levels are folded so that names stay legible.
    let label_max = (total * 2 / 5).max(16);
    let labels: Vec<String> =
        rows.iter().map(|row| label(tree, row, label_max / 4, screen.unicode)).collect();
    let label_columns = labels.iter().map(|label| width(label)).max().unwrap_or(0).clamp(9, label_max);
    let bar_columns =
        total.saturating_sub(number_columns + label_columns + DURATION_COLUMNS + 5).max(BAR_MIN);
    let range = range(placed);
    let bars: Vec<Vec<Option<Part>>> = rows.iter().map(|row| bar(placed, row, range, bar_columns)).collect();

    write_legend(&bars, screen, out)?;
    let mut heading = String::new();
    spaces(&mut heading, number_columns + 1 + label_columns + 2);
    heading.push_str(&axis(range.length, bar_columns));
    writeln!(out, "{}", Tone::Dim.paint(screen.colour, heading.trim_end()))?;
    for ((row, label), bar) in rows.iter().zip(&labels).zip(&bars) {
        let mut line = String::new();
        let number = row.number.map_or(String::new(), |number| number.to_string());
        spaces(&mut line, number_columns - number.len());
        line.push_str(&number);
        line.push(' ');
        let (text, tone) = duration(tree, row);
        let label = fit(label, label_columns, screen.unicode);
        if tone == Tone::Red {
            line.push_str(&tone.paint(screen.colour, &label));
            spaces(&mut line, label_columns - width(&label));
        } else {
            pad(&mut line, &label, label_columns);
        }
        let edge = if screen.unicode { "▕" } else { "|" };
        line.push(' ');
        line.push_str(edge);
        draw(&mut line, bar, screen);
        line.push_str(if screen.unicode { "▏" } else { "|" });
        spaces(&mut line, DURATION_COLUMNS.saturating_sub(width(&text)));
        line.push_str(&tone.paint(screen.colour, &text));
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Branches and name: `├ redis GET`, or `└ redis GET × 412, total 3.1 s`.
fn label(tree: &Tree<'_>, row: &Row, levels_max: usize, unicode: bool) -> String {
    let levels = row.continues.len().min(levels_max.max(1));
    // How many levels are folded away.
    let folded = row.depth - levels;
    let mut label = if folded > 0 { format!("+{folded} ") } else { String::new() };
    let shown = &row.continues[row.continues.len() - levels..];
    for (level, continues) in shown.iter().enumerate() {
        let is_own = level + 1 == shown.len();
        label.push_str(match (is_own, continues, unicode) {
            (true, true, true) => "├ ",
            (true, false, true) => "└ ",
            (false, true, true) => "│ ",
            (true, true, false) => "+ ",
            (true, false, false) => "` ",
            (false, true, false) => "| ",
            (false, false, _) => "  ",
        });
    }
    let (idx, more) = match &row.line {
        Line::Span(idx) => (*idx, String::new()),
        Line::Alike(alike) => {
            let total_ns =
                alike.iter().map(|idx| tree.nodes[*idx].span.duration_ns()).fold(0, u64::saturating_add);
            let times = if unicode { "×" } else { "x" };
            let count = units::count(alike.len() as u64);
            (alike[0], format!(" {times} {count}, total {}", units::duration(total_ns)))
        }
    };
    if tree.nodes[idx].parent_missing {
        label.push_str("? ");
    }
    if let Some(near) = tree.nodes[idx].span.nearest() {
        label.push_str(&clean(&near.process.service));
        label.push(' ');
        label.push_str(&clean(&near.operation));
    }
    label.push_str(&more);
    label
}

/// The duration with its mark: `!` failed, `~` approximate; of siblings alike the longest.
fn duration(tree: &Tree<'_>, row: &Row) -> (String, Tone) {
    match &row.line {
        Line::Span(idx) => {
            let span = tree.nodes[*idx].span;
            let text = units::duration(span.duration_ns());
            if failing_half(span).is_some() {
                (format!("!{text}"), Tone::Red)
            } else if split(span).approximate {
                (format!("~{text}"), Tone::Plain)
            } else {
                (text, Tone::Plain)
            }
        }
        Line::Alike(alike) => {
            let longest = alike.iter().map(|idx| tree.nodes[*idx].span.duration_ns()).max().unwrap_or(0);
            let failed = alike.iter().any(|idx| failing_half(tree.nodes[*idx].span).is_some());
            (format!("<{}", units::duration(longest)), if failed { Tone::Red } else { Tone::Dim })
        }
    }
}

fn range(placed: &[Placed]) -> Range {
    let drawn = placed.iter().filter(|placed| placed.client_shift.is_some() || placed.server_shift.is_some());
    let (start, end) = drawn
        .fold((i64::MAX, i64::MIN), |(start, end), placed| (start.min(placed.start), end.max(placed.end())));
    Range {
        start: if start == i64::MAX { 0 } else { start },
        length: end.saturating_sub(start).max(1) as u64,
    }
}

/// The cells of a row's bar: of each the part that covers most of it.
fn bar(placed: &[Placed], row: &Row, range: Range, columns: usize) -> Vec<Option<Part>> {
    let mut cells = vec![None; columns];
    match &row.line {
        Line::Span(idx) => paint(&mut cells, &placed[*idx], range),
        Line::Alike(alike) => alike.iter().for_each(|idx| paint(&mut cells, &placed[*idx], range)),
    }
    cells
}

fn paint(cells: &mut [Option<Part>], placed: &Placed, range: Range) {
    let per_cell = range.length as f64 / cells.len() as f64;
    let at = |ns: i64| ns.saturating_sub(range.start) as f64 / per_cell;
    let last = cells.len() - 1;
    let mut covered = vec![0.0_f64; cells.len()];
    let mut from = at(placed.start);
    for segment in &placed.segments {
        let until = at(segment.until);
        for cell in (from.max(0.0) as usize).min(last)..=(until.max(0.0) as usize).min(last) {
            let overlap = until.min(cell as f64 + 1.0) - from.max(cell as f64);
            if overlap > covered[cell] {
                covered[cell] = overlap;
                cells[cell] = Some(segment.part);
            }
        }
        from = until;
    }
    if placed.segments.is_empty() {
        // It took no time, but it was.
        let cell = &mut cells[(at(placed.start).max(0.0) as usize).min(last)];
        *cell = cell.or(Some(Part::Remote));
    }
}

fn draw(line: &mut String, cells: &[Option<Part>], screen: Screen) {
    for run in cells.chunk_by(|a, b| a == b) {
        match run[0] {
            None => spaces(line, run.len()),
            Some(part) => {
                let glyphs: String = std::iter::repeat_n(part.glyph(screen.unicode), run.len()).collect();
                line.push_str(&part.tone().paint(screen.colour, &glyphs));
            }
        }
    }
}

/// Marks at the start, the quarters (if there is room) and the end.
fn axis(length_ns: u64, columns: usize) -> String {
    let marks: &[u64] = if columns >= 48 { &[0, 1, 2, 3, 4] } else { &[0, 2, 4] };
    let mut axis = String::new();
    for mark in marks {
        let ns = u128::from(length_ns) * u128::from(*mark) / 4;
        let text = if *mark == 0 { "0".to_owned() } else { units::duration(ns as u64) };
        let position = columns * *mark as usize / 4;
        // The end is written before its mark, others centred on it.
        let start = match mark {
            0 => 0,
            4 => columns.saturating_sub(width(&text)),
            _ => position.saturating_sub(width(&text) / 2),
        };
        let gap = start.saturating_sub(width(&axis));
        spaces(&mut axis, gap);
        axis.push_str(&text);
    }
    axis
}

fn write_legend(bars: &[Vec<Option<Part>>], screen: Screen, out: &mut dyn Write) -> io::Result<()> {
    let mut line = String::new();
    for part in Part::ALL {
        if !bars.iter().flatten().any(|cell| *cell == Some(part)) {
            continue;
        }
        if !line.is_empty() {
            line.push_str("  ");
        }
        let glyph: String = std::iter::repeat_n(part.glyph(screen.unicode), 2).collect();
        line.push_str(&part.tone().paint(screen.colour, &glyph));
        line.push(' ');
        line.push_str(part.name());
    }
    if line.is_empty() { Ok(()) } else { writeln!(out, "{line}") }
}

/// What to doubt about a span, in words; empty = nothing.
pub(crate) fn doubts(tree: &Tree<'_>, placed: &Placed, idx: usize) -> String {
    let span = tree.nodes[idx].span;
    let mut doubts: Vec<String> =
        crate::analyse::row::flag_names(span).into_iter().map(|name| name.replace('_', " ")).collect();
    let retransmits: u32 = halves(span).map(|half| half.retransmits).sum();
    if retransmits > 0 {
        doubts.retain(|doubt| doubt != "retransmitted");
        doubts.push(format!("{retransmits} retransmitted"));
    }
    if placed.is_guess {
        doubts.push("place on the line is a guess".to_owned());
    }
    doubts.join(", ")
}
