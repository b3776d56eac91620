//! Line charts: curves over layers or steps, with bands.

use super::axis::{Axis, Scale, airy, range};
use super::drawing::{Anchor, Drawing, Spot, text_width};
use super::labels::spread;
use super::page::{self, LABEL, Plot};
use super::style::{SOFT_TEXT, Style};
use super::{RenderError, Width};

/// Most curves of a panel that carry their names at their ends.
const DIRECT: usize = 5;
/// Room between the last layer's place and the plot's edge, where hollow markers stand.
const HOLLOW_SHIFT: f64 = 7.0;
const CURVE: f64 = 1.15;

/// A value at a place, with its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Layer, step or depth.
    pub x: f64,
    /// The value; `None`, or one that is not finite, breaks the line.
    pub y: Option<f64>,
    /// Lower and upper end of the interval that the band shows.
    pub interval: Option<(f64, f64)>,
}

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name, shown at the curve's end or in the legend.
    pub label: String,
    /// Number of its colour, marker and dash; one run has the same in every panel.
    pub style: usize,
    /// Points in order of `x`.
    pub points: Vec<Point>,
    /// Points that stand beside the curve with a hollow marker: the state after the final norm.
    pub hollow: Vec<Point>,
}

/// One plot of a figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Above the plot; may be empty.
    pub title: String,
    /// What is measured, and in which unit.
    pub y_label: String,
    /// The name and layout of its horizontal axis, where they are not the chart's.
    pub x_axis: Option<(String, Scale)>,
    /// The curves.
    pub series: Vec<Series>,
    /// Values that the axis covers at least; it always covers the data.
    pub y_range: Option<(f64, f64)>,
}

/// A line chart of one or more panels.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// First line.
    pub title: String,
    /// Second line: what, on how many texts.
    pub subtitle: String,
    /// The horizontal axis of every panel.
    pub x_label: String,
    /// How the horizontal axis is laid out.
    pub x_scale: Scale,
    /// The plots, row by row.
    pub panels: Vec<Panel>,
    /// Plots in a row, where their order means something; by default as many as fit well.
    pub columns: Option<usize>,
    /// Lines below the plots: what bands and hollow markers are.
    pub notes: Vec<String>,
    /// Width at print.
    pub width: Width,
}

impl Chart {
    /// Lays the chart out. Values that are not finite leave gaps; a panel without values says so.
    #[must_use]
    pub fn draw(&self) -> Drawing {
        let mut drawing = Drawing::new(self.width.points(), &format!("{}. {}", self.title, self.subtitle));
        let columns = self.columns.unwrap_or_else(|| page::columns(self.width, self.panels.len())).max(1);
        let direct = self.labels_fit(&drawing, columns);
        let height = page::plot_height(self.width, columns, self.panels.len().div_ceil(columns));
        let titles = self.panels.iter().any(|panel| !panel.title.is_empty());
        let mut y = page::heading(&mut drawing, &self.title, &self.subtitle);
        for (index, row) in self.panels.chunks(columns).enumerate() {
            let top = y;
            for (column, panel) in row.iter().enumerate() {
                let below = self.panels.get((index + 1) * columns + column);
                // One label serves a column of plots.
                let x_label = if below.is_some_and(|below| self.x_label(below) == self.x_label(panel)) {
                    ""
                } else {
                    self.x_label(panel)
                };
                let cell = page::cell(&drawing, columns, column);
                let mut plot_top = top + 3.0;
                if titles {
                    page::panel_title(&mut drawing, &panel.title, cell, top);
                    plot_top += page::PANEL_TITLE_HEIGHT;
                }
                y = y.max(self.panel(&mut drawing, (panel, x_label), cell, (plot_top, plot_top + height), direct));
            }
        }
        if !direct {
            y = page::legend(&mut drawing, y, &self.names());
        }
        page::close(&mut drawing, y, &self.notes);
        drawing
    }

    /// The chart as PNG.
    ///
    /// # Errors
    /// As [`Drawing::png`].
    pub fn png(&self) -> Result<Vec<u8>, RenderError> {
        self.draw().png()
    }

    /// The chart as SVG.
    ///
    /// # Errors
    /// As [`Drawing::svg`].
    pub fn svg(&self) -> Result<String, RenderError> {
        self.draw().svg()
    }

    /// Labels and styles over all panels, each once.
    fn names(&self) -> Vec<(String, usize)> {
        let mut names: Vec<(String, usize)> = Vec::new();
        for series in self.panels.iter().flat_map(|panel| &panel.series) {
            let name = (series.label.clone(), series.style);
            // A series without a name is explained in a note.
            if !name.0.is_empty() && !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    fn x_label<'a>(&'a self, panel: &'a Panel) -> &'a str {
        panel.x_axis.as_ref().map_or(&self.x_label, |(label, _)| label)
    }

    fn labels_fit(&self, drawing: &Drawing, columns: usize) -> bool {
        let (left, right) = page::cell(drawing, columns, 0);
        let widest = self.names().iter().map(|(label, _)| text_width(label, LABEL)).fold(0.0, f64::max);
        let named = |panel: &Panel| panel.series.iter().filter(|series| !series.label.is_empty()).count();
        let most = self.panels.iter().map(named).max().unwrap_or(0);
        let scattered = self.panels.iter().flat_map(|panel| &panel.series).any(Series::is_scattered);
        most <= DIRECT && columns < 3 && widest <= 0.32 * (right - left) && !scattered
    }

    /// Draws a panel; gives the place below its axis.
    fn panel(
        &self,
        drawing: &mut Drawing,
        (panel, x_label): (&Panel, &str),
        (left, right): (f64, f64),
        (top, bottom): (f64, f64),
        direct: bool,
    ) -> f64 {
        let points = || panel.series.iter().flat_map(|series| series.points.iter().chain(&series.hollow));
        let values = points().flat_map(|point| {
            let (low, high) = shown(point).and(point.interval).unwrap_or((f64::NAN, f64::NAN));
            [shown(point).unwrap_or(f64::NAN), low, high]
        });
        let wanted = panel.y_range.into_iter().flat_map(|(low, high)| [low, high]);
        let found = range(values.chain(wanted));
        let places = || points().filter(|point| shown(point).is_some()).map(|point| point.x);
        // Room made around a single place does not reach below 0 where no place does.
        let least = if places().any(|x| x < 0.0) { f64::NEG_INFINITY } else { 0.0 };
        let across = range(places()).map(|(low, high)| (low.max(least), high));
        let y = Axis::new(airy(found.unwrap_or((0.0, 1.0))), bottom, top, 19.0, Scale::Linear);

        let labels = panel.series.iter().map(|series| text_width(&series.label, LABEL)).fold(0.0, f64::max);
        let beside = if direct { labels + 10.0 } else { 3.0 };
        let hollow = panel.series.iter().any(|series| series.hollow.iter().any(|point| shown(point).is_some()));
        let plot = Plot {
            left: left + page::y_axis_width(&y, &panel.y_label, bottom - top),
            top,
            right: right - beside,
            bottom,
        };
        let scale = panel.x_axis.as_ref().map_or(self.x_scale, |(_, scale)| *scale);
        let end = plot.right - if hollow { HOLLOW_SHIFT + 4.0 } else { 4.0 };
        let x = Axis::new(across.unwrap_or((0.0, 1.0)), plot.left + 5.0, end, 20.0, scale);

        page::y_axis(drawing, plot, &y, &panel.y_label, left);
        let below = page::x_axis(drawing, plot, &x, x_label, (left, right));
        if found.is_none() || across.is_none() {
            let middle = ((plot.left + plot.right) / 2.0, (top + bottom) / 2.0);
            drawing.text("no values", middle, LABEL, Anchor::Middle, SOFT_TEXT);
            return below;
        }
        let axes = Axes { x, y };
        let (behind, before) = layers(&panel.series);
        for layer in [&behind, &before] {
            layer.iter().for_each(|(_, series)| axes.band(drawing, series));
            layer.iter().for_each(|(_, series)| axes.curve(drawing, series));
            layer.iter().for_each(|(index, series)| axes.markers(drawing, series, *index));
        }
        if direct {
            axes.labels(drawing, &panel.series, plot);
        }
        below
    }
}

/// A series and its place in the panel.
type Placed<'a> = (usize, &'a Series);

/// The series of a panel: those behind (null baselines), and those that may not be hidden by them.
fn layers(series: &[Series]) -> (Vec<Placed<'_>>, Vec<Placed<'_>>) {
    series.iter().enumerate().partition(|(_, series)| Style::is_behind(series.style))
}

impl Series {
    /// Whether it is one value; its name is to stand at it.
    fn is_dot(&self) -> bool {
        matches!(self.points.as_slice(), [_])
    }

    /// Whether it is dots that no line joins: several values, no two of them next to each other.
    fn is_scattered(&self) -> bool {
        let shown: Vec<bool> = self.points.iter().map(|point| shown(point).is_some()).collect();
        shown.iter().filter(|shown| **shown).count() > 1 && !shown.windows(2).any(|pair| pair == [true, true])
    }
}

fn shown(point: &Point) -> Option<f64> {
    point.y.filter(|y| y.is_finite() && point.x.is_finite())
}

struct Axes {
    x: Axis,
    y: Axis,
}

impl Axes {
    fn spot(&self, point: &Point) -> Option<Spot> {
        shown(point).map(|y| (self.x.place(point.x), self.y.place(y)))
    }

    fn interval(&self, point: &Point) -> Option<(f64, f64)> {
        let (low, high) = point.interval.filter(|(low, high)| low.is_finite() && high.is_finite())?;
        Some((self.y.place(low), self.y.place(high)))
    }

    fn band(&self, drawing: &mut Drawing, series: &Series) {
        let style = Style::of(series.style);
        // A point without a value may have a band: what the values are read against.
        let known =
            |point: &Point| Some((self.x.place(point.x), self.interval(point)?)).filter(|_| point.x.is_finite());
        for stretch in series.points.split(|point| known(point).is_none()) {
            let ends: Vec<(f64, (f64, f64))> = stretch.iter().filter_map(known).collect();
            let upper = ends.iter().map(|(x, (_, high))| (*x, *high));
            let lower = ends.iter().rev().map(|(x, (low, _))| (*x, *low));
            drawing.polygon(upper.chain(lower).collect(), style.band());
            // A point alone has no band; its interval is a bar.
            if let [(x, (low, high))] = ends.as_slice() {
                drawing.line((*x, *low), (*x, *high), 0.7, style.ink());
            }
        }
    }

    fn curve(&self, drawing: &mut Drawing, series: &Series) {
        let style = Style::of(series.style);
        for stretch in series.points.split(|point| shown(point).is_none()) {
            let spots: Vec<Spot> = stretch.iter().filter_map(|point| self.spot(point)).collect();
            drawing.dashed(&spots, style.dashes, CURVE, style.ink());
        }
    }

    fn markers(&self, drawing: &mut Drawing, series: &Series, index: usize) {
        let style = Style::of(series.style);
        let spots: Vec<Spot> = series.points.iter().filter_map(|point| self.spot(point)).collect();
        // A curve may rise where it stands: its longer side counts.
        let reach = |side: fn(&Spot) -> f64| {
            spots.last().zip(spots.first()).map_or(0.0, |(last, first)| (side(last) - side(first)).abs())
        };
        let span = reach(|spot| spot.0).max(reach(|spot| spot.1));
        // Markers of a long curve would touch: every k-th is drawn, of each series another one.
        let dense = (7.5 * spots.len() as f64 / span.max(1.0)).ceil().max(1.0) as usize;
        let every = if series.is_scattered() { 1 } else { dense };
        for (place, spot) in spots.iter().enumerate() {
            if place % every == index % every || spots.len() <= 3 {
                style.mark(drawing, *spot, false);
            }
        }
        for point in &series.hollow {
            let Some((x, y)) = self.spot(point) else { continue };
            let x = x + HOLLOW_SHIFT;
            if let Some(last) = spots.last() {
                drawing.dashed(&[*last, (x, y)], &[0.8, 1.2], 0.6, style.ink());
            }
            if let Some((low, high)) = self.interval(point) {
                drawing.line((x, low), (x, high), 0.7, style.ink());
            }
            style.mark(drawing, (x, y), true);
        }
    }

    /// Names at the ends of the curves. A curve that ends well before the others has its name there.
    fn labels(&self, drawing: &mut Drawing, series: &[Series], plot: Plot) {
        let ends: Vec<(&Series, Spot)> = series
            .iter()
            .filter(|series| !series.label.is_empty())
            .filter_map(|series| {
                series.points.iter().rev().find_map(|point| self.spot(point)).map(|spot| (series, spot))
            })
            .collect();
        let full = ends.iter().map(|(_, (x, _))| *x).fold(plot.left, f64::max);
        let width = |series: &Series| text_width(&series.label, LABEL);
        let (at_edge, early): (Vec<_>, Vec<_>) =
            ends.into_iter().partition(|(series, (x, _))| !series.is_dot() && x + width(series) + 12.0 > full);
        let wanted: Vec<f64> = at_edge.iter().map(|(_, (_, y))| *y).collect();
        let places = spread(&wanted, 1.2 * LABEL, plot.top + 0.5 * LABEL, plot.bottom - 0.5 * LABEL);
        for ((series, (x, y)), place) in at_edge.into_iter().zip(places) {
            let style = Style::of(series.style);
            let start = plot.right + 3.0;
            if (place - y).abs() > 1.5 || start - x > 10.0 {
                drawing.line((x + 4.0, y), (start + 3.0, place), 0.35, style.ink());
            }
            drawing.text(&series.label, (start + 4.5, place + 0.36 * LABEL), LABEL, Anchor::Start, style.text());
        }
        let mut taken: Vec<Box4> = Vec::new();
        for (name, (x, y)) in early {
            let beside = if name.hollow.is_empty() { 5.0 } else { HOLLOW_SHIFT + 5.0 };
            let right = [0.0, -8.0, 8.0, -16.0, 16.0, -25.0, 25.0].map(|dy| (beside, dy));
            let left = [0.0, -8.0, 8.0].map(|dy| (-5.0 - width(name), dy));
            let candidates = right.into_iter().chain(left);
            let around = |(dx, dy): Spot| -> Box4 {
                let (left, middle) = (x + dx, y + dy);
                (left, middle - 0.55 * LABEL, left + width(name), middle + 0.55 * LABEL)
            };
            let cost = |place: &Spot| {
                let frame = around(*place);
                let outside = frame.1 < plot.top || frame.3 > plot.bottom || frame.2 > plot.right;
                self.covered(series, frame)
                    + if outside || taken.iter().any(|other| meet(frame, *other)) { 1000 } else { 0 }
            };
            let best = candidates.min_by_key(cost).unwrap_or_default();
            let frame = around(best);
            taken.push(frame);
            let style = Style::of(name.style);
            drawing.text(&name.label, (frame.0, y + best.1 + 0.36 * LABEL), LABEL, Anchor::Start, style.text());
        }
    }

    /// How many sampled places of all curves lie in `frame`.
    fn covered(&self, series: &[Series], frame: Box4) -> usize {
        let inside = |(x, y): Spot| frame.0 <= x && x <= frame.2 && frame.1 <= y && y <= frame.3;
        let samples = |from: Spot, to: Spot| {
            (0..=8).map(move |step| {
                let share = f64::from(step) / 8.0;
                (from.0 + share * (to.0 - from.0), from.1 + share * (to.1 - from.1))
            })
        };
        let step = |from: Spot, to: Spot| samples(from, to).filter(|spot| inside(*spot)).count();
        series
            .iter()
            .map(|series| {
                let spots: Vec<Spot> = series.points.iter().filter_map(|point| self.spot(point)).collect();
                let along: usize = spots.iter().zip(spots.iter().skip(1)).map(|(from, to)| step(*from, *to)).sum();
                let beside = series.hollow.iter().filter_map(|point| {
                    let (x, y) = self.spot(point)?;
                    let (low, high) = self.interval(point).unwrap_or((y + 3.0, y - 3.0));
                    let x = x + HOLLOW_SHIFT;
                    Some(step(*spots.last()?, (x, y)) + step((x, low), (x, high)))
                });
                along + beside.sum::<usize>()
            })
            .sum()
    }
}

/// Left, top, right, bottom.
type Box4 = (f64, f64, f64, f64);

fn meet(a: Box4, b: Box4) -> bool {
    a.0 < b.2 && b.0 < a.2 && a.1 < b.3 && b.1 < a.3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::chart::baseline_of;
    use crate::report::chart::drawing::{Ink, Mark};

    fn series(label: &str, style: usize, points: &[(f64, Option<f64>)]) -> Series {
        let points = points.iter().map(|&(x, y)| Point { x, y, interval: None }).collect();
        Series { label: label.into(), style, points, hollow: Vec::new() }
    }

    fn chart(panels: Vec<Vec<Series>>) -> Chart {
        let panel = |series| Panel { title: "p".into(), y_label: "y".into(), x_axis: None, series, y_range: None };
        Chart {
            title: "t".into(),
            subtitle: "s".into(),
            x_label: "layer".into(),
            x_scale: Scale::Linear,
            panels: panels.into_iter().map(panel).collect(),
            columns: Some(1),
            notes: Vec::new(),
            width: Width::TwoColumn,
        }
    }

    /// Each text with its place.
    fn texts(chart: &Chart) -> Vec<(String, Spot)> {
        let text = |mark| match mark {
            Mark::Text { text, at, .. } => Some((text, at)),
            _ => None,
        };
        chart.draw().marks.into_iter().filter_map(text).collect()
    }

    #[test]
    fn a_run_is_drawn_over_its_baselines() {
        let line = [(0.0, Some(0.1)), (1.0, Some(0.2))];
        let chart = chart(vec![vec![series("run", 0, &line), series("run (shuffled)", baseline_of(0, 2), &line)]]);
        let curve = |mark: &Mark| match mark {
            Mark::Path { thickness, ink, .. } if *thickness == CURVE => Some(*ink),
            _ => None,
        };
        let mut inks: Vec<Ink> = chart.draw().marks.iter().filter_map(curve).collect();
        inks.dedup();
        assert_eq!(inks, [Style::of(baseline_of(0, 2)).ink(), Style::of(0).ink()]);
    }

    #[test]
    fn a_label_serves_a_column_and_a_panel_may_have_its_own() {
        let line = || vec![series("run", 0, &[(0.0, Some(0.1)), (1.0, Some(0.2))])];
        let count = |chart: &Chart, label: &str| texts(chart).iter().filter(|(text, _)| text == label).count();
        let mut two = chart(vec![line(), line()]);
        assert_eq!(count(&two, "layer"), 1);
        two.panels[0].x_axis = Some(("share".into(), Scale::Linear));
        assert_eq!((count(&two, "layer"), count(&two, "share")), (1, 1));
    }

    #[test]
    fn a_dot_has_its_name_beside_it_and_an_axis_of_one_place_stays_above_zero() {
        let line = series("h0", 1, &[(0.0, Some(0.1)), (0.5, Some(0.15)), (1.0, Some(0.2))]);
        let whole = texts(&chart(vec![vec![line, series("trained", 0, &[(0.9, Some(0.19))])]]));
        let at = |name: &str| whole.iter().find(|(text, _)| text == name).map(|(_, at)| *at).unwrap();
        assert!(at("trained").0 < at("h0").0 - 20.0, "inside the plot: {whole:?}");
        let one = texts(&chart(vec![vec![series("trained", 0, &[(0.01, Some(0.19))])]]));
        assert!(!one.iter().any(|(text, _)| text.contains('−')), "{one:?}");
    }

    #[test]
    fn dots_that_nothing_joins_all_have_a_marker() {
        let scattered: Vec<(f64, Option<f64>)> =
            (0..40).flat_map(|i| [(f64::from(i) * 1e-3, Some(f64::from(i))), (1.0, None)]).collect();
        let dots = series("λ", 0, &scattered);
        assert!(dots.is_scattered() && !series("", 0, &[(0.0, Some(0.1)), (1.0, Some(0.2))]).is_scattered());
        let polygons =
            |chart: Chart| chart.draw().marks.iter().filter(|mark| matches!(mark, Mark::Polygon { .. })).count();
        // A rim and a marker each, and those of the legend.
        assert_eq!(polygons(chart(vec![vec![dots]])), 2 * 41);
    }
}
