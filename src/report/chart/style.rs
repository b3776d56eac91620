//! Colours, markers and dashes that stay apart in print, in grey, and to colour-blind eyes.

use super::drawing::{Drawing, Ink, Spot, disc};

/// Palette of Okabe and Ito (2008) without its yellow, which is lost on white paper.
const PALETTE: [(u8, u8, u8); 7] =
    [(0, 0, 0), (213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233)];

/// Dashes and gaps in points; the empty one is a solid line.
const DASHES: [&[f64]; 5] = [&[], &[5.0, 1.6], &[1.6, 1.4], &[6.0, 1.4, 1.4, 1.4], &[3.0, 1.4]];

/// Series from this number on are grey and drawn behind the others: what says nothing.
pub(in crate::report) const GREY: usize = 1 << 16;

/// Series from this number on are null baselines, which no one is to mistake for a run.
const PALE: usize = 1 << 17;
/// Numbers that a run's baselines have: at least as many as there are kinds.
const KINDS: usize = 4;

/// The number of a null baseline: the colour of the run's number made pale, the dash and marker of its kind.
pub(in crate::report) fn baseline_of(run: usize, kind: usize) -> usize {
    PALE + run * KINDS + kind % KINDS
}

const GREY_RGB: (u8, u8, u8) = (150, 150, 150);

const MARKERS: [Marker; 6] = [Marker::Circle, Marker::Square, Marker::Up, Marker::Diamond, Marker::Down, Marker::Cross];

pub(super) const TEXT: Ink = Ink::solid((34, 34, 34));
pub(super) const SOFT_TEXT: Ink = Ink::solid((90, 90, 90));
pub(super) const AXIS: Ink = Ink::solid((110, 110, 110));
pub(super) const GRID: Ink = Ink::solid((228, 228, 228));
pub(super) const PAPER: Ink = Ink::solid((255, 255, 255));

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    Circle,
    Square,
    Up,
    Diamond,
    Down,
    Cross,
}

/// How the series number `index` looks, everywhere in a figure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    rgb: (u8, u8, u8),
    marker: Marker,
    /// Dash pattern of the line, in points.
    pub dashes: &'static [f64],
}

impl Style {
    pub(super) fn of(index: usize) -> Self {
        let colour = |run: usize| PALETTE.get(run % PALETTE.len()).copied().unwrap_or_default();
        // The three lists have coprime lengths, so a combination repeats only after 210 series.
        let (rgb, own) = match index {
            PALE.. => (pale(colour((index - PALE) / KINDS)), (index - PALE) % KINDS + 1),
            GREY.. => (GREY_RGB, index - GREY),
            _ => (colour(index), index),
        };
        Self {
            rgb,
            marker: MARKERS.get(own % MARKERS.len()).copied().unwrap_or(Marker::Circle),
            dashes: DASHES.get(own % DASHES.len()).copied().unwrap_or_default(),
        }
    }

    /// Whether the series of that number is drawn behind the others: grey ones and baselines.
    pub(super) fn is_behind(index: usize) -> bool {
        index >= GREY
    }

    pub(super) fn ink(&self) -> Ink {
        Ink::solid(self.rgb)
    }

    pub(super) fn band(&self) -> Ink {
        Ink { rgb: self.rgb, alpha: 0.16 }
    }

    pub(super) fn fill(&self) -> Ink {
        Ink { rgb: self.rgb, alpha: 0.3 }
    }

    /// The colour darkened until small text in it is readable on white.
    pub(super) fn text(&self) -> Ink {
        let darker = |channel: u8| (f64::from(channel) * 0.72) as u8;
        Ink::solid((darker(self.rgb.0), darker(self.rgb.1), darker(self.rgb.2)))
    }

    /// Draws the marker, filled with a white rim, or hollow.
    pub(super) fn mark(&self, drawing: &mut Drawing, at: Spot, hollow: bool) {
        let (x, y) = at;
        let outline = |radius: f64| -> Vec<Spot> {
            let corners: &[Spot] = match self.marker {
                Marker::Circle => return disc(at, radius),
                Marker::Square => &[(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
                Marker::Up => &[(0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
                Marker::Down => &[(0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
                Marker::Diamond => &[(0.0, -1.25), (1.1, 0.0), (0.0, 1.25), (-1.1, 0.0)],
                Marker::Cross => &[
                    (-1.1, -0.38),
                    (-0.38, -0.38),
                    (-0.38, -1.1),
                    (0.38, -1.1),
                    (0.38, -0.38),
                    (1.1, -0.38),
                    (1.1, 0.38),
                    (0.38, 0.38),
                    (0.38, 1.1),
                    (-0.38, 1.1),
                    (-0.38, 0.38),
                    (-1.1, 0.38),
                ],
            };
            corners.iter().map(|(dx, dy)| (x + radius * dx, y + radius * dy)).collect()
        };
        if hollow {
            drawing.polygon(outline(2.7), self.ink());
            drawing.polygon(outline(1.55), PAPER);
        } else {
            drawing.polygon(outline(2.5), PAPER);
            drawing.polygon(outline(1.95), self.ink());
        }
    }
}

/// The colour mixed with white; black becomes the grey of what says nothing.
fn pale((red, green, blue): (u8, u8, u8)) -> (u8, u8, u8) {
    let mixed = |channel: u8| (150.0 + f64::from(channel) * 105.0 / 255.0).round() as u8;
    (mixed(red), mixed(green), mixed(blue))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn baselines_share_their_runs_hue_and_their_kinds_dash() {
        let of = |run, kind| Style::of(baseline_of(run, kind));
        assert_eq!(of(0, 0).rgb, GREY_RGB, "black made pale");
        assert_eq!(of(1, 0).rgb, (238, 189, 150));
        assert_eq!((of(1, 0).rgb, of(1, 0).dashes), (of(1, 2).rgb, of(2, 0).dashes));
        assert_ne!(of(1, 0).dashes, of(1, 1).dashes);
        assert_ne!(of(1, 0).marker, of(1, 1).marker);
        assert!(Style::is_behind(baseline_of(0, 0)) && Style::is_behind(GREY) && !Style::is_behind(5));
    }
}
