//! What every figure has around its plots: heading, grid of cells, axes, legend, notes.

use super::Width;
use super::axis::Axis;
use super::drawing::{Anchor, Drawing, Spot, balanced, shortened, text_width, wrap};
use super::style::{AXIS, GRID, PAPER, SOFT_TEXT, Style, TEXT};

const TITLE: f64 = 9.0;
const SUBTITLE: f64 = 7.5;
const PANEL_TITLE: f64 = 8.0;
const AXIS_LABEL: f64 = 7.5;
const TICK: f64 = 7.0;
/// Size of labels inside plots and in legends.
pub(super) const LABEL: f64 = 7.0;
const NOTE: f64 = 6.5;
/// Space between the paper's edge and the ink.
pub(super) const MARGIN: f64 = 5.0;
/// Space between cells of the grid.
const GUTTER: f64 = 12.0;

/// The rectangle inside the axes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plot {
    pub left: f64,
    pub top: f64,
    pub right: f64,
    pub bottom: f64,
}

/// Draws title and subtitle; gives the place below.
pub(super) fn heading(drawing: &mut Drawing, title: &str, subtitle: &str) -> f64 {
    let width = drawing.width - 2.0 * MARGIN;
    let mut y = MARGIN;
    for (text, em, ink) in [(title, TITLE, TEXT), (subtitle, SUBTITLE, SOFT_TEXT)] {
        for line in wrap(text, em, width) {
            y += 1.3 * em;
            drawing.text(&line, (MARGIN, y - 0.3 * em), em, Anchor::Start, ink);
        }
    }
    y + 4.0
}

/// Draws the notes below `y` and closes the page.
pub(super) fn close(drawing: &mut Drawing, y: f64, notes: &[String]) {
    let width = drawing.width - 2.0 * MARGIN;
    let mut y = if notes.is_empty() { y } else { y + 3.0 };
    for note in notes {
        for line in wrap(note, NOTE, width) {
            y += 1.3 * NOTE;
            drawing.text(&line, (MARGIN, y - 0.3 * NOTE), NOTE, Anchor::Start, SOFT_TEXT);
        }
    }
    drawing.height = (y + MARGIN).ceil();
}

/// Columns of a grid of `panels` cells.
pub(super) fn columns(width: Width, panels: usize) -> usize {
    match (width, panels) {
        (Width::OneColumn, _) | (_, 0 | 1) => 1,
        (Width::TwoColumn, 2 | 4) => 2,
        (Width::TwoColumn, _) => 3,
    }
}

/// Left and right edge of the cell in `column`.
pub(super) fn cell(drawing: &Drawing, columns: usize, column: usize) -> (f64, f64) {
    let count = columns.max(1) as f64;
    let width = (drawing.width - 2.0 * MARGIN - GUTTER * (count - 1.0)) / count;
    let left = MARGIN + column as f64 * (width + GUTTER);
    (left, left + width)
}

/// Height of a plot in a grid of `columns` and `rows`: a figure of several rows is to fit on a page.
pub(super) fn plot_height(width: Width, columns: usize, rows: usize) -> f64 {
    let alone: f64 = match (width, columns) {
        (Width::OneColumn, _) => 150.0,
        (Width::TwoColumn, 1) => 205.0,
        (Width::TwoColumn, 2) => 165.0,
        (Width::TwoColumn, _) => 130.0,
    };
    match rows {
        ..=3 => alone,
        4 => alone.min(108.0),
        _ => alone.min(84.0),
    }
}

/// Height that [`panel_title`] takes.
pub(super) const PANEL_TITLE_HEIGHT: f64 = 1.6 * PANEL_TITLE;

/// Draws a panel's title at the upper left of its cell.
pub(super) fn panel_title(drawing: &mut Drawing, title: &str, (left, right): (f64, f64), top: f64) {
    let title = shortened(title, PANEL_TITLE, right - left);
    drawing.text(&title, (left, top + PANEL_TITLE), PANEL_TITLE, Anchor::Start, TEXT);
}

/// Width that the vertical axis needs left of the plot.
pub(super) fn y_axis_width(axis: &Axis, label: &str, height: f64) -> f64 {
    let ticks = axis.ticks.iter().map(|(_, text)| text_width(text, TICK)).fold(0.0, f64::max);
    let lines = wrap(label, AXIS_LABEL, height).len() as f64;
    ticks + 4.0 + lines * 1.2 * AXIS_LABEL + if lines > 0.0 { 2.5 } else { 0.0 }
}

/// Draws grid lines, ticks and label of the vertical axis; `left` is the cell's edge.
pub(super) fn y_axis(drawing: &mut Drawing, plot: Plot, axis: &Axis, label: &str, left: f64) {
    for (value, text) in &axis.ticks {
        let y = axis.place(*value);
        let zero = *value == 0.0 && axis.spans(0.0);
        let (ink, thickness) = if zero { (AXIS, 0.5) } else { (GRID, 0.5) };
        drawing.line((plot.left, y), (plot.right, y), thickness, ink);
        drawing.text(text, (plot.left - 3.0, y + 0.36 * TICK), TICK, Anchor::End, TEXT);
    }
    let middle = (plot.top + plot.bottom) / 2.0;
    for (index, line) in balanced(label, AXIS_LABEL, plot.bottom - plot.top).iter().enumerate() {
        let x = left + (0.85 + 1.2 * index as f64) * AXIS_LABEL;
        drawing.text_upwards(line, (x, middle), AXIS_LABEL, TEXT);
    }
}

/// Draws the horizontal axis line with its ticks and label, which may be as wide as the cell; gives the
/// place below.
pub(super) fn x_axis(drawing: &mut Drawing, plot: Plot, axis: &Axis, label: &str, cell: (f64, f64)) -> f64 {
    drawing.line((plot.left, plot.bottom), (plot.right, plot.bottom), 0.7, AXIS);
    for (value, text) in &axis.ticks {
        let x = axis.place(*value);
        drawing.line((x, plot.bottom), (x, plot.bottom + 2.5), 0.6, AXIS);
        drawing.text(text, (x, plot.bottom + 3.5 + TICK), TICK, Anchor::Middle, TEXT);
    }
    let mut y = plot.bottom + 5.0 + TICK;
    let middle = (plot.left + plot.right) / 2.0;
    for line in balanced(label, AXIS_LABEL, 2.0 * (middle - cell.0).min(cell.1 - middle)) {
        y += 1.25 * AXIS_LABEL;
        drawing.text(&line, (middle, y), AXIS_LABEL, Anchor::Middle, TEXT);
    }
    y + 5.0
}

/// Draws a legend of (label, style number) with pieces of line and markers; gives the place below.
pub(super) fn legend(drawing: &mut Drawing, y: f64, entries: &[(String, usize)]) -> f64 {
    legend_of(drawing, y, entries, |drawing, style, (x, middle)| {
        drawing.dashed(&[(x, middle), (x + SAMPLE, middle)], style.dashes, 1.1, style.ink());
        style.mark(drawing, (x + SAMPLE / 2.0, middle), false);
    })
}

/// Draws a legend of (label, style number) with boxes; gives the place below.
pub(super) fn legend_of_fills(drawing: &mut Drawing, y: f64, entries: &[(String, usize)]) -> f64 {
    legend_of(drawing, y, entries, |drawing, style, (x, middle)| {
        let box_of = |half: f64| {
            let (left, right) = (x + SAMPLE - 4.5 - 1.5 * half, x + SAMPLE - 4.5 + 1.5 * half);
            vec![(left, middle - half), (right, middle - half), (right, middle + half), (left, middle + half)]
        };
        drawing.polygon(box_of(3.0), style.ink());
        drawing.polygon(box_of(2.3), PAPER);
        drawing.polygon(box_of(2.3), style.fill());
    })
}

/// Width of the sample before a legend's label.
const SAMPLE: f64 = 18.0;

/// As many of the `most` columns that runs with the same baselines stand below one another.
fn aligned(most: usize, entries: &[(String, usize)]) -> usize {
    let runs: Vec<usize> = (0..entries.len())
        .filter(|place| entries.get(*place).is_some_and(|(_, style)| !Style::is_behind(*style)))
        .collect();
    let [0, period, ..] = runs.as_slice() else { return most };
    let even = runs.iter().enumerate().all(|(index, place)| *place == index * period);
    if even && *period > 1 && most >= *period { most / period * period } else { most }
}

fn legend_of(
    drawing: &mut Drawing,
    y: f64,
    entries: &[(String, usize)],
    sample: impl Fn(&mut Drawing, Style, Spot),
) -> f64 {
    const GAP: f64 = 10.0;
    let room = drawing.width - 2.0 * MARGIN;
    let labels: Vec<String> = entries.iter().map(|(label, _)| shortened(label, LABEL, room - SAMPLE - 4.0)).collect();
    let widest = labels.iter().map(|label| text_width(label, LABEL)).fold(0.0, f64::max);
    let column = SAMPLE + 4.0 + widest + GAP;
    let columns = aligned(((room + GAP) / column).floor().max(1.0) as usize, entries);
    let mut bottom = y;
    for (index, (label, (_, style))) in labels.iter().zip(entries).enumerate() {
        let x = MARGIN + (index % columns) as f64 * column;
        let middle = y + ((index / columns) as f64 + 0.5) * 1.45 * LABEL;
        sample(drawing, Style::of(*style), (x, middle));
        drawing.text(label, (x + SAMPLE + 4.0, middle + 0.36 * LABEL), LABEL, Anchor::Start, TEXT);
        bottom = middle + 0.725 * LABEL;
    }
    bottom + 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::chart::baseline_of;

    #[test]
    fn a_legend_has_each_runs_baselines_in_the_same_columns() {
        let of = |kinds: usize, runs: usize| -> Vec<(String, usize)> {
            let run = |run| std::iter::once(run).chain((0..kinds).map(move |kind| baseline_of(run, kind)));
            (0..runs).flat_map(run).map(|style| (String::new(), style)).collect()
        };
        assert_eq!((aligned(5, &of(2, 3)), aligned(7, &of(2, 3)), aligned(2, &of(2, 3))), (3, 6, 2));
        assert_eq!((aligned(5, &of(0, 3)), aligned(5, &of(3, 1))), (5, 5));
        assert_eq!(aligned(5, &[of(2, 2), of(1, 1)].concat()), 3);
    }
}
