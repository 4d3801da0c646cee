//! Figures of experiments as SVG.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::combinators::IntoLogRange as _;
use plotters::coord::{CoordTranslate, Shift};
use plotters::prelude::*;

const SIZE: (u32, u32) = (860, 420);
const FONT: &str = "sans-serif";
/// Told apart without colour too, by their order in the legend (Okabe and Ito's palette).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
    RGBColor(0, 0, 0),
];

/// A line of a figure.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) is_dashed: bool,
    /// A value at each place of the x axis, where there is one.
    pub(super) points: Vec<Option<f64>>,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub(super) at: f64,
    pub(super) place: String,
    pub(super) kind: String,
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("draw a figure: {error}")
}

fn canvas(path: &Path) -> Result<DrawingArea<SVGBackend<'_>, Shift>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    Ok(root)
}

fn draw_legend<'a, C: CoordTranslate>(chart: &mut ChartContext<'a, SVGBackend<'a>, C>) -> Result<()> {
    let mut legend = chart.configure_series_labels();
    legend.position(SeriesLabelPosition::UpperRight).label_font((FONT, 12));
    legend.background_style(WHITE.mix(0.9)).border_style(BLACK.mix(0.3));
    legend.draw().map_err(failed)
}

/// Lines over named places, on a logarithmic scale.
pub(super) fn lines(
    path: &Path,
    title: &str,
    x_title: &str,
    x: &[&str],
    y_title: &str,
    series: &[Series],
) -> Result<()> {
    let root = canvas(path)?;
    let values =
        || series.iter().flat_map(|series| series.points.iter().flatten().copied()).filter(|y| *y > 0.0);
    let low = values().fold(f64::INFINITY, f64::min);
    let high = values().fold(0.0, f64::max);
    if high <= 0.0 {
        return Err(failed("there is nothing to draw"));
    }
    let places: Range<f64> = -0.3..x.len() as f64 + 1.4;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(places, (low / 1.3..high * 1.3).log_scale())
        .map_err(failed)?;
    let name = |at: &f64| {
        let is_place = at.fract().abs() < 1e-6 && *at >= 0.0;
        x.get(*at as usize).filter(|_| is_place).map_or(String::new(), |name| (*name).to_owned())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .y_labels(8)
        .x_labels(x.len() + 2)
        .x_label_formatter(&name)
        .x_desc(x_title)
        .y_desc(y_title)
        .draw()
        .map_err(failed)?;
    for (n, series) in series.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let style = colour.stroke_width(if series.is_dashed { 1 } else { 2 });
        let points: Vec<(f64, f64)> = series
            .points
            .iter()
            .enumerate()
            .filter_map(|(n, y)| y.filter(|y| *y > 0.0).map(|y| (n as f64, y)))
            .collect();
        let drawn = if series.is_dashed {
            chart.draw_series(DashedLineSeries::new(points.clone(), 5, 4, style))
        } else {
            chart.draw_series(LineSeries::new(points.clone(), style))
        };
        drawn
            .map_err(failed)?
            .label(&series.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        chart
            .draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))
            .map_err(failed)?;
    }
    draw_legend(&mut chart)?;
    root.present().map_err(failed)
}

/// What happened at which place, over time.
pub(super) fn timeline(path: &Path, title: &str, x_title: &str, marks: &[Mark]) -> Result<()> {
    let root = canvas(path)?;
    let mut places: Vec<&str> = Vec::new();
    for mark in marks {
        if !places.contains(&mark.place.as_str()) {
            places.push(&mark.place);
        }
    }
    let kinds: BTreeSet<&str> = marks.iter().map(|mark| mark.kind.as_str()).collect();
    let end = marks.iter().map(|mark| mark.at).fold(0.0, f64::max).max(0.001);
    let row =
        |place: &str| (places.len() - places.iter().position(|known| *known == place).unwrap_or(0)) as f64;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(120)
        .build_cartesian_2d(-end / 50.0..end * 1.35, 0.5..places.len() as f64 + 0.5)
        .map_err(failed)?;
    let name = |at: &f64| {
        let n = places.len() as f64 - at;
        let is_row = n.fract().abs() < 1e-6 && n >= 0.0;
        places.get(n as usize).filter(|_| is_row).map_or(String::new(), |name| (*name).to_owned())
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .y_labels(places.len() * 2)
        .y_label_formatter(&name)
        .x_desc(x_title)
        .draw()
        .map_err(failed)?;
    for (n, kind) in kinds.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        let of_kind = marks.iter().filter(|mark| mark.kind == *kind);
        chart
            .draw_series(of_kind.map(|mark| Circle::new((mark.at, row(&mark.place)), 5, colour.filled())))
            .map_err(failed)?
            .label(*kind)
            .legend(move |(x, y)| Circle::new((x + 8, y), 5, colour.filled()));
    }
    draw_legend(&mut chart)?;
    root.present().map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lines_and_marks_are_drawn_with_their_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lines.svg");
        let series =
            Series { name: "found".to_owned(), is_dashed: false, points: vec![Some(0.5), None, Some(20.0)] };
        let dashed = Series { is_dashed: true, name: "bound".to_owned(), ..series.clone() };
        lines(&path, "How long", "ratio", &["1", "0.1", "0.01"], "seconds", &[series, dashed])
            .expect("drawn");
        let text = fs::read_to_string(&path).expect("a file");
        for word in ["How long", "ratio", "seconds", "found", "bound", "0.01"] {
            assert!(text.contains(word), "{word}");
        }
        assert!(lines(&path, "", "", &[], "", &[]).is_err(), "nothing to draw");
        let path = folder.path().join("timeline.svg");
        let mark = |at, place: &str| Mark { at, place: place.to_owned(), kind: "written".to_owned() };
        timeline(&path, "A write", "ms", &[mark(0.0, "node1"), mark(3.5, "node2")]).expect("drawn");
        let text = fs::read_to_string(&path).expect("a file");
        for word in ["A write", "node1", "node2", "written"] {
            assert!(text.contains(word), "{word}");
        }
        assert_eq!(text.matches("<circle").count(), 3, "two marks and one of the legend");
    }
}
