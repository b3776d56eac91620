//! Heat maps: a coloured cell for each pair of labelled rows and columns, with the scale beside.

use super::axis::{Axis, Scale, range};
use super::colours::ColourScale;
use super::drawing::{Anchor, Drawing, Ink, shortened, text_width};
use super::page::{self, LABEL, MARGIN, Plot};
use super::style::{AXIS, SOFT_TEXT, TEXT};
use super::{RenderError, Width};

/// A cell is no larger, in points.
const LARGEST_CELL: f64 = 18.0;
/// Labels stand no closer; where cells are smaller, every k-th has one.
const PITCH: f64 = 6.4;
/// A label is cut to this width.
const LABEL_WIDTH: f64 = 52.0;
/// Most cells a side: a longer one is averaged in blocks, or the SVG would have a million shapes.
const MOST_CELLS: usize = 256;
/// Room for the scale, its numbers and its name.
const SCALE_ROOM: f64 = 56.0;
/// Width of the scale's bar.
const BAR: f64 = 9.0;
/// A cell without a value: neither map has a grey this dark.
const MISSING: Ink = Ink::solid((184, 184, 184));

/// A matrix of values as colours.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// First line.
    pub title: String,
    /// Second line: of what, where.
    pub subtitle: String,
    /// Labels of the rows, from top to bottom.
    pub rows: Vec<String>,
    /// Labels of the columns, from left to right.
    pub columns: Vec<String>,
    /// `[rows, columns]` row by row; `None`, or one that is not finite, is a grey cell and not in the scale.
    pub values: Vec<Option<f64>>,
    /// What is shown, beside the scale.
    pub value_label: String,
    /// Lines below the plot.
    pub notes: Vec<String>,
    /// Width at print.
    pub width: Width,
}

/// The cells that are drawn: each the mean of a block of values.
struct Cells {
    rows: usize,
    columns: usize,
    /// Values a side of a cell.
    block: usize,
    values: Vec<Option<f64>>,
}

impl HeatMap {
    /// Lays the heat map out; a side of more than 256 is averaged in blocks, and a note says so.
    #[must_use]
    pub fn draw(&self) -> Drawing {
        let mut drawing = Drawing::new(self.width.points(), &format!("{}. {}", self.title, self.subtitle));
        let top = page::heading(&mut drawing, &self.title, &self.subtitle) + 2.0;
        let cells = self.cells();
        let names = self.rows.iter().map(|label| text_width(&cut(label), LABEL)).fold(0.0, f64::max);
        let left = MARGIN + names + 4.0;
        let room = (drawing.width - MARGIN - SCALE_ROOM - left).max(20.0);
        let side = (room / cells.columns.max(1) as f64).min(LARGEST_CELL);
        let (right, bottom) = (left + side * cells.columns as f64, top + side * cells.rows as f64);
        let plot = Plot { left, top, right, bottom };

        let shown = range(cells.values.iter().flatten().copied());
        let scale = ColourScale::new(shown.unwrap_or((0.0, 1.0)));
        cells.draw(&mut drawing, &scale, (left, top), side);
        frame(&mut drawing, plot);
        let pitch = side / cells.block as f64;
        labels_left(&mut drawing, &self.rows, plot, pitch);
        let below = labels_below(&mut drawing, &self.columns, plot, pitch);
        let beside = match shown {
            Some(_) => draw_scale(&mut drawing, &scale, &self.value_label, plot),
            None => {
                drawing.text("no values", (right + 6.0, top + LABEL), LABEL, Anchor::Start, SOFT_TEXT);
                top + 2.0 * LABEL
            }
        };
        let mut notes = self.notes.clone();
        if cells.block > 1 {
            let block = cells.block;
            notes.push(format!("Each cell is the mean of {block} × {block} pairs; the table has every pair."));
        }
        page::close(&mut drawing, below.max(beside), &notes);
        drawing
    }

    /// The heat map as PNG.
    ///
    /// # Errors
    /// As [`Drawing::png`].
    pub fn png(&self) -> Result<Vec<u8>, RenderError> {
        self.draw().png()
    }

    /// The heat map as SVG.
    ///
    /// # Errors
    /// As [`Drawing::svg`].
    pub fn svg(&self) -> Result<String, RenderError> {
        self.draw().svg()
    }

    fn cells(&self) -> Cells {
        let block = self.rows.len().max(self.columns.len()).div_ceil(MOST_CELLS).max(1);
        let (rows, columns) = (self.rows.len().div_ceil(block), self.columns.len().div_ceil(block));
        let mut sums = vec![(0.0, 0_u32); rows * columns];
        let known =
            self.values.iter().enumerate().filter_map(|(at, value)| Some((at, value.filter(|v| v.is_finite())?)));
        for (at, value) in known {
            let (row, column) = (at / self.columns.len().max(1), at % self.columns.len().max(1));
            if let Some((sum, count)) = sums.get_mut(row / block * columns + column / block) {
                *sum += value;
                *count += 1;
            }
        }
        let mean = |(sum, count): (f64, u32)| (count > 0).then(|| sum / f64::from(count));
        Cells { rows, columns, block, values: sums.into_iter().map(mean).collect() }
    }
}

impl Cells {
    fn draw(&self, drawing: &mut Drawing, scale: &ColourScale, (left, top): (f64, f64), side: f64) {
        /// Cells reach under their neighbours: viewers would show the paper between them.
        const OVERLAP: f64 = 0.3;
        let (right, bottom) = (left + side * self.columns as f64, top + side * self.rows as f64);
        for (at, value) in self.values.iter().enumerate() {
            let (row, column) = (at / self.columns.max(1), at % self.columns.max(1));
            let (x, y) = (left + side * column as f64, top + side * row as f64);
            let (x_end, y_end) = ((x + side + OVERLAP).min(right), (y + side + OVERLAP).min(bottom));
            let ink = value.map_or(MISSING, |value| scale.ink(value));
            drawing.polygon(vec![(x, y), (x_end, y), (x_end, y_end), (x, y_end)], ink);
        }
    }
}

fn cut(label: &str) -> String {
    shortened(label, LABEL, LABEL_WIDTH)
}

fn frame(drawing: &mut Drawing, plot: Plot) {
    let Plot { left, top, right, bottom } = plot;
    drawing.path(vec![(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], 0.5, AXIS);
}

/// Every how-many-th label is written, and how large.
fn thinned(pitch: f64) -> (usize, f64) {
    let every = (PITCH / pitch.max(1e-6)).ceil().clamp(1.0, 1e6);
    (every as usize, LABEL.min(0.92 * pitch * every))
}

fn labels_left(drawing: &mut Drawing, labels: &[String], plot: Plot, pitch: f64) {
    let (every, em) = thinned(pitch);
    for (index, label) in labels.iter().enumerate().step_by(every) {
        let middle = plot.top + (index as f64 + 0.5) * pitch;
        drawing.text(&cut(label), (plot.left - 3.0, middle + 0.36 * em), em, Anchor::End, TEXT);
    }
}

/// Writes the labels upwards, each ending at the plot; gives the place below the longest.
fn labels_below(drawing: &mut Drawing, labels: &[String], plot: Plot, pitch: f64) -> f64 {
    let (every, em) = thinned(pitch);
    let mut below = plot.bottom + 3.0;
    for (index, label) in labels.iter().enumerate().step_by(every) {
        let label = cut(label);
        let length = text_width(&label, em);
        let middle = plot.left + (index as f64 + 0.5) * pitch;
        drawing.text_upwards(&label, (middle + 0.36 * em, plot.bottom + 3.0 + length / 2.0), em, TEXT);
        below = below.max(plot.bottom + 5.0 + length);
    }
    below
}

/// Draws the bar of colours with its numbers and its name right of the plot; gives the place below.
fn draw_scale(drawing: &mut Drawing, scale: &ColourScale, label: &str, plot: Plot) -> f64 {
    const STEPS: usize = 128;
    let left = plot.right + 10.0;
    let (top, bottom) = (plot.top, plot.bottom.max(plot.top + 70.0));
    let step = (bottom - top) / STEPS as f64;
    for index in 0..STEPS {
        let value = scale.high - (scale.high - scale.low) * (index as f64 + 0.5) / STEPS as f64;
        let (from, to) = (top + step * index as f64, (top + step * (index as f64 + 1.0) + 0.3).min(bottom));
        drawing.polygon(vec![(left, from), (left + BAR, from), (left + BAR, to), (left, to)], scale.ink(value));
    }
    frame(drawing, Plot { left, top, right: left + BAR, bottom });
    let axis = Axis::new((scale.low, scale.high), bottom, top, 19.0, Scale::Linear);
    let mut widest: f64 = 0.0;
    for (value, text) in &axis.ticks {
        let y = axis.place(*value);
        drawing.line((left + BAR, y), (left + BAR + 2.5, y), 0.6, AXIS);
        drawing.text(text, (left + BAR + 4.0, y + 0.36 * LABEL), LABEL, Anchor::Start, TEXT);
        widest = widest.max(text_width(text, LABEL));
    }
    let name = shortened(label, LABEL, bottom - top);
    drawing.text_upwards(&name, (left + BAR + 4.0 + widest + 9.0, (top + bottom) / 2.0), LABEL, SOFT_TEXT);
    bottom + 0.5 * LABEL
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::drawing::Mark;
    use super::*;

    pub(in crate::report::chart) fn map(n: usize, width: Width) -> HeatMap {
        let label = |i: usize| ["␣the", "ing", "⏎", "␣extraordinarily-long-token-that-is-cut", "7"][i % 5].to_owned();
        let value = |i: usize, j: usize| (i != j).then(|| 0.4 + 0.5 * ((i * 7 + j * 3) % 11) as f64 / 11.0);
        HeatMap {
            title: "Token × token cosine".into(),
            subtitle: "base, text 0, layer 3 (block)".into(),
            rows: (0..n).map(label).collect(),
            columns: (0..n).map(label).collect(),
            values: (0..n * n).map(|at| value(at / n.max(1), at % n.max(1))).collect(),
            value_label: "cosine".into(),
            notes: vec!["Grey: a token with itself.".into()],
            width,
        }
    }

    fn polygons(drawing: &Drawing, wanted: (u8, u8, u8)) -> usize {
        drawing.marks.iter().filter(|m| matches!(m, Mark::Polygon { ink, .. } if ink.rgb == wanted)).count()
    }

    #[test]
    fn every_value_has_its_cell_and_what_is_missing_is_grey() {
        let mut small = map(3, Width::TwoColumn);
        small.values =
            [None, Some(0.25), Some(1.0), Some(0.5), None, Some(0.0), Some(f64::NAN), Some(0.0), None].into();
        let drawing = small.draw();
        assert_eq!(polygons(&drawing, MISSING.rgb), 4);
        assert_eq!(polygons(&drawing, (253, 231, 37)), 1, "the largest value");
        assert_eq!(polygons(&drawing, (68, 1, 84)), 2, "the smallest");
        let shapes = drawing.marks.iter().filter(|m| matches!(m, Mark::Polygon { .. })).count();
        assert_eq!(shapes, 9 + 128, "the cells and the scale");
    }

    #[test]
    fn long_sides_are_averaged_and_it_is_said() {
        let n = 300;
        let long = map(n, Width::TwoColumn);
        let cells = long.cells();
        assert_eq!((cells.block, cells.rows, cells.values.len()), (2, 150, 150 * 150));
        let block = [long.values[2], long.values[3], long.values[n + 2], long.values[n + 3]];
        let mean = block.iter().flatten().sum::<f64>() / 4.0;
        assert!((cells.values[1].unwrap() - mean).abs() < 1e-12);
        let words: Vec<String> = texts(&long.draw());
        assert!(words.iter().any(|w| w.starts_with("Each cell is the mean of 2 × 2 pairs")), "{words:?}");
        assert!(words.len() < 2 * 70 + 20, "labels are thinned");
        let empty = map(0, Width::OneColumn).draw();
        assert!(texts(&empty).contains(&"no values".to_owned()));
        assert!(empty.png().is_ok());
    }

    #[test]
    fn sixty_tokens_all_have_their_label() {
        let drawing = map(60, Width::TwoColumn).draw();
        let count = texts(&drawing).iter().filter(|text| *text == "ing").count();
        assert_eq!(count, 2 * 12);
        let smallest = drawing.marks.iter().filter_map(|m| match m {
            Mark::Text { em, .. } => Some(*em),
            _ => None,
        });
        assert!(smallest.fold(f64::INFINITY, f64::min) >= 5.5);
    }

    fn texts(drawing: &Drawing) -> Vec<String> {
        let text = |mark: &Mark| match mark {
            Mark::Text { text, .. } => Some(text.clone()),
            _ => None,
        };
        drawing.marks.iter().filter_map(text).collect()
    }
}
