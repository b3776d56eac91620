//! Bar charts: a value an arm, with its interval and its seeds.

use super::axis::{Axis, Scale, range};
use super::drawing::{Anchor, Drawing, balanced, text_width};
use super::labels::spread;
use super::page::{self, LABEL, Plot};
use super::style::{AXIS, PAPER, SOFT_TEXT, Style, TEXT};
use super::{RenderError, Width};

/// One arm's value.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Name of the arm.
    pub label: String,
    /// Number of its colour.
    pub style: usize,
    /// Mean; `None`, or one that is not finite, draws no bar.
    pub value: Option<f64>,
    /// Interval of the mean.
    pub interval: Option<(f64, f64)>,
    /// The value of each seed.
    pub dots: Vec<f64>,
}

/// Arms that belong together: a task, a method.
#[derive(Debug, Clone, PartialEq)]
pub struct BarGroup {
    /// Name below the bars; may be empty if there is one group.
    pub label: String,
    /// The bars.
    pub bars: Vec<Bar>,
}

/// A horizontal line that bars are read against: chance, the base model.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// Name, at the line's right end.
    pub label: String,
    /// Its value.
    pub value: f64,
}

/// A bar chart.
#[derive(Debug, Clone, PartialEq)]
pub struct BarChart {
    /// First line.
    pub title: String,
    /// Second line: seeds and items.
    pub subtitle: String,
    /// What is measured, and in which unit.
    pub y_label: String,
    /// Groups from left to right.
    pub groups: Vec<BarGroup>,
    /// Lines across.
    pub references: Vec<Reference>,
    /// Decimals of the value written above a bar; fewer where bars are too narrow for them.
    pub decimals: usize,
    /// Lines below the plot.
    pub notes: Vec<String>,
    /// Width at print.
    pub width: Width,
}

impl BarChart {
    /// Lays the chart out. A value that is not finite leaves its place empty.
    #[must_use]
    pub fn draw(&self) -> Drawing {
        let mut drawing = Drawing::new(self.width.points(), &format!("{}. {}", self.title, self.subtitle));
        let top = page::heading(&mut drawing, &self.title, &self.subtitle) + 6.0;
        let bottom = top + page::plot_height(self.width, 1, 1) * 0.8;
        let bars = || self.groups.iter().flat_map(|group| &group.bars);
        let values = bars().flat_map(|bar| {
            let (low, high) = bar.interval.unwrap_or((f64::NAN, f64::NAN));
            [bar.value.unwrap_or(f64::NAN), low, high].into_iter().chain(bar.dots.iter().copied())
        });
        let references = self.references.iter().map(|reference| reference.value);
        let found = range(values.chain(references).chain([0.0]));
        let (low, high) = found.unwrap_or((0.0, 1.0));
        let air = 0.09 * (high - low);
        // A bar's length is its value: the axis starts at 0, whatever that leaves for differences.
        let span = (if low < 0.0 { low - air } else { 0.0 }, if high > 0.0 { high + air } else { 0.0 });
        let y = Axis::new(span, bottom, top, 19.0, Scale::Linear);

        let (left, right) = page::cell(&drawing, 1, 0);
        let names = self.references.iter().map(|reference| text_width(&reference.label, LABEL)).fold(0.0, f64::max);
        let beside = if names > 0.0 { names + 5.0 } else { 0.0 };
        let plot = Plot {
            left: left + page::y_axis_width(&y, &self.y_label, bottom - top),
            top,
            right: right - beside,
            bottom,
        };
        page::y_axis(&mut drawing, plot, &y, &self.y_label, left);
        self.references(&mut drawing, &y, plot);
        let mut below = self.bars(&mut drawing, &y, plot) + 5.0;
        if self.groups.len() > 1 {
            below = page::legend_of_fills(&mut drawing, below, &self.names());
        }
        page::close(&mut drawing, below, &self.notes);
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

    fn names(&self) -> Vec<(String, usize)> {
        let mut names: Vec<(String, usize)> = Vec::new();
        for bar in self.groups.iter().flat_map(|group| &group.bars) {
            let name = (bar.label.clone(), bar.style);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    fn references(&self, drawing: &mut Drawing, y: &Axis, plot: Plot) {
        let known: Vec<&Reference> = self.references.iter().filter(|reference| reference.value.is_finite()).collect();
        let wanted: Vec<f64> = known.iter().map(|reference| y.place(reference.value)).collect();
        let places = spread(&wanted, 1.2 * LABEL, plot.top, plot.bottom - 0.5 * LABEL);
        for ((reference, line), place) in known.iter().zip(&wanted).zip(places) {
            drawing.dashed(&[(plot.left, *line), (plot.right, *line)], &[3.0, 2.0], 0.7, AXIS);
            drawing.line((plot.right, *line), (plot.right + 3.0, place), 0.4, AXIS);
            drawing.text(&reference.label, (plot.right + 4.0, place + 0.36 * LABEL), LABEL, Anchor::Start, SOFT_TEXT);
        }
    }

    /// The widest slot of a bar with which all groups fit into `width`: a group is as wide as its bars or, if that is more,
    /// as the longest word of its name.
    fn slot(&self, width: f64) -> f64 {
        let gaps = self.groups.len().max(1) as f64;
        let count = self.groups.iter().map(|group| group.bars.len()).sum::<usize>().max(1) as f64;
        let widest = (width / (count + GAP * gaps)).min(75.0);
        let taken = |slot: f64| self.groups.iter().map(|group| self.room(group, slot)).sum::<f64>() + GAP * slot * gaps;
        if taken(widest) <= width + 1e-6 {
            return widest;
        }
        let (mut low, mut high) = (0.0, widest);
        for _ in 0..40 {
            let middle = (low + high) / 2.0;
            if taken(middle) <= width { low = middle } else { high = middle }
        }
        low
    }

    /// The width of a group whose bars have slots of `slot`.
    fn room(&self, group: &BarGroup, slot: f64) -> f64 {
        let bars = slot * group.bars.len() as f64;
        let words = group.label.split_whitespace().map(|word| text_width(word, LABEL)).fold(0.0, f64::max);
        // A name may reach into the gaps at both sides.
        if self.groups.len() > 1 { bars.max(words - 0.6 * slot) } else { bars }
    }

    /// Decimals with which every value fits above its bar and none that is not zero is written as zero; `None` if there are
    /// no such.
    fn fitting_decimals(&self, slot: f64) -> Option<usize> {
        let values = || self.groups.iter().flat_map(|group| &group.bars).filter_map(|bar| bar.value);
        let fits = |decimals: usize| {
            values().all(|value| {
                let text = format!("{value:.decimals$}");
                let vanishes = value != 0.0 && text.parse::<f64>().is_ok_and(|read| read == 0.0);
                text_width(&text, LABEL) + 0.5 <= slot && (!vanishes || decimals == self.decimals)
            })
        };
        (0..=self.decimals).rev().find(|&decimals| fits(decimals))
    }

    /// Draws the bars and their names; gives the place below.
    fn bars(&self, drawing: &mut Drawing, y: &Axis, plot: Plot) -> f64 {
        let slot = self.slot(plot.right - plot.left);
        let decimals = self.fitting_decimals(slot);
        let all: f64 = self.groups.iter().map(|group| self.room(group, slot)).sum();
        let mut left =
            (plot.left + plot.right - all - GAP * slot * self.groups.len().max(1) as f64) / 2.0 + GAP / 2.0 * slot;
        let mut below = plot.bottom;
        for group in &self.groups {
            let room = self.room(group, slot);
            let start = left + (room - slot * group.bars.len() as f64) / 2.0;
            let mut x = start;
            for bar in &group.bars {
                draw_bar(drawing, y, x + slot / 2.0, 0.36 * slot, bar, decimals);
                if self.groups.len() == 1 {
                    below = below.max(name(drawing, &bar.label, x + slot / 2.0, slot - 3.0, plot.bottom));
                }
                x += slot;
            }
            if self.groups.len() > 1 {
                below = below.max(name(drawing, &group.label, (start + x) / 2.0, room + 0.6 * slot, plot.bottom));
            }
            left += room + GAP * slot;
        }
        let base = y.place(0.0);
        drawing.line((plot.left, base), (plot.right, base), 0.7, AXIS);
        below
    }
}

/// Between groups lies this share of a bar's slot.
const GAP: f64 = 0.8;

/// Writes a name under its bar or group; gives the place below.
fn name(drawing: &mut Drawing, label: &str, middle: f64, width: f64, bottom: f64) -> f64 {
    let mut y = bottom + 2.0;
    for line in balanced(label, LABEL, width) {
        y += 1.2 * LABEL;
        drawing.text(&line, (middle, y), LABEL, Anchor::Middle, TEXT);
    }
    y
}

fn draw_bar(drawing: &mut Drawing, y: &Axis, middle: f64, half: f64, bar: &Bar, decimals: Option<usize>) {
    let style = Style::of(bar.style);
    let Some(value) = bar.value.filter(|value| value.is_finite()) else {
        let text = y.place(0.0) - 3.0;
        drawing.text("no value", (middle, text), LABEL, Anchor::Middle, SOFT_TEXT);
        return;
    };
    let (top, base) = (y.place(value), y.place(0.0));
    let corners = vec![(middle - half, base), (middle - half, top), (middle + half, top), (middle + half, base)];
    drawing.polygon(corners.clone(), style.fill());
    drawing.path(corners, 0.9, style.ink());
    let mut ends = vec![top];
    // The interval stands left of the middle and the seeds right of it, so that neither hides the other.
    let whisker = middle - 0.68 * half;
    let interval = bar.interval.filter(|(low, high)| low.is_finite() && high.is_finite());
    if let Some((low, high)) = interval {
        let (low, high) = (y.place(low), y.place(high));
        drawing.line((whisker, low), (whisker, high), 0.9, TEXT);
        for end in [low, high] {
            drawing.line((whisker - 2.2, end), (whisker + 2.2, end), 0.9, TEXT);
        }
        ends.extend([low, high]);
    }
    let dots: Vec<f64> = bar.dots.iter().copied().filter(|dot| dot.is_finite()).collect();
    for (index, dot) in dots.iter().enumerate() {
        let share = (index as f64 + 0.5) / dots.len() as f64;
        let x = middle + half * (1.15 * share - 0.25);
        let spot = (x, y.place(*dot));
        drawing.disc(spot, 1.75, style.text());
        drawing.disc(spot, 1.15, PAPER);
        ends.push(spot.1 - 1.0);
    }
    let Some(decimals) = decimals else { return };
    let text = format!("{value:.decimals$}").replace('-', "−");
    let place = if value < 0.0 {
        ends.iter().copied().fold(base, f64::max) + 2.5 + 0.75 * LABEL
    } else {
        ends.iter().copied().fold(base, f64::min) - 3.0
    };
    drawing.text(&text, (middle, place), LABEL, Anchor::Middle, style.text());
}
