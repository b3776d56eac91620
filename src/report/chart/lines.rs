//! Line charts: curves over layers or steps, with bands.

use super::axis::{Axis, airy, range};
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
    /// Whether ticks stand at whole numbers only (layers, steps).
    pub integer_x: bool,
    /// The plots, row by row.
    pub panels: Vec<Panel>,
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
        let columns = page::columns(self.width, self.panels.len());
        let direct = self.labels_fit(&drawing, columns);
        let height = page::plot_height(self.width, columns);
        let titles = self.panels.iter().any(|panel| !panel.title.is_empty());
        let mut y = page::heading(&mut drawing, &self.title, &self.subtitle);
        for row in self.panels.chunks(columns) {
            let top = y;
            for (column, panel) in row.iter().enumerate() {
                let cell = page::cell(&drawing, columns, column);
                let mut plot_top = top + 3.0;
                if titles {
                    page::panel_title(&mut drawing, &panel.title, cell, top);
                    plot_top += page::PANEL_TITLE_HEIGHT;
                }
                y = y.max(self.panel(&mut drawing, panel, cell, (plot_top, plot_top + height), direct));
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

    fn labels_fit(&self, drawing: &Drawing, columns: usize) -> bool {
        let (left, right) = page::cell(drawing, columns, 0);
        let widest = self.names().iter().map(|(label, _)| text_width(label, LABEL)).fold(0.0, f64::max);
        let named = |panel: &Panel| panel.series.iter().filter(|series| !series.label.is_empty()).count();
        let most = self.panels.iter().map(named).max().unwrap_or(0);
        most <= DIRECT && columns < 3 && widest <= 0.32 * (right - left)
    }

    /// Draws a panel; gives the place below its axis.
    fn panel(
        &self,
        drawing: &mut Drawing,
        panel: &Panel,
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
        let across = range(points().filter(|point| shown(point).is_some()).map(|point| point.x));
        let y = Axis::new(airy(found.unwrap_or((0.0, 1.0))), bottom, top, 19.0, false);

        let labels = panel.series.iter().map(|series| text_width(&series.label, LABEL)).fold(0.0, f64::max);
        let beside = if direct { labels + 10.0 } else { 3.0 };
        let hollow = panel.series.iter().any(|series| series.hollow.iter().any(|point| shown(point).is_some()));
        let plot = Plot {
            left: left + page::y_axis_width(&y, &panel.y_label, bottom - top),
            top,
            right: right - beside,
            bottom,
        };
        let end = plot.right - if hollow { HOLLOW_SHIFT + 4.0 } else { 4.0 };
        let x = Axis::new(across.unwrap_or((0.0, 1.0)), plot.left + 5.0, end, 20.0, self.integer_x);

        page::y_axis(drawing, plot, &y, &panel.y_label, left);
        let below = page::x_axis(drawing, plot, &x, &self.x_label, (left, right));
        if found.is_none() || across.is_none() {
            let middle = ((plot.left + plot.right) / 2.0, (top + bottom) / 2.0);
            drawing.text("no values", middle, LABEL, Anchor::Middle, SOFT_TEXT);
            return below;
        }
        let axes = Axes { x, y };
        panel.series.iter().for_each(|series| axes.band(drawing, series));
        panel.series.iter().for_each(|series| axes.curve(drawing, series));
        if direct {
            axes.labels(drawing, &panel.series, plot);
        }
        panel.series.iter().enumerate().for_each(|(index, series)| axes.markers(drawing, series, index));
        below
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
        let span = spots.last().zip(spots.first()).map_or(0.0, |(last, first)| last.0 - first.0);
        // Markers of a long curve would touch: every k-th is drawn, of each series another one.
        let every = (7.5 * spots.len() as f64 / span.max(1.0)).ceil().max(1.0) as usize;
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
            ends.into_iter().partition(|(series, (x, _))| x + width(series) + 12.0 > full);
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
            let candidates = [0.0, -8.0, 8.0, -16.0, 16.0, -25.0, 25.0].map(|dy| (beside, dy));
            let around = |(dx, dy): Spot| -> Box4 {
                let (left, middle) = (x + dx, y + dy);
                (left, middle - 0.55 * LABEL, left + width(name), middle + 0.55 * LABEL)
            };
            let cost = |place: &Spot| {
                let frame = around(*place);
                let outside = frame.1 < plot.top || frame.3 > plot.bottom;
                self.covered(series, frame)
                    + if outside || taken.iter().any(|other| meet(frame, *other)) { 1000 } else { 0 }
            };
            let best = candidates.into_iter().min_by_key(cost).unwrap_or_default();
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
