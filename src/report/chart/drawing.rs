//! A figure as a list of marks in page units, before any file format.

use super::render::{self, RenderError};
use plotters::style::{FontDesc, FontFamily, FontStyle};

/// A place on the page in points (1/72 in) from its upper left corner.
pub(super) type Spot = (f64, f64);

/// A colour and how much it covers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ink {
    pub rgb: (u8, u8, u8),
    pub alpha: f64,
}

impl Ink {
    pub(super) const fn solid(rgb: (u8, u8, u8)) -> Self {
        Self { rgb, alpha: 1.0 }
    }
}

/// Which part of a text its place names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

#[derive(Debug, Clone)]
pub(super) enum Mark {
    Path { spots: Vec<Spot>, thickness: f64, ink: Ink },
    Polygon { spots: Vec<Spot>, ink: Ink },
    Text { text: String, at: Spot, em: f64, anchor: Anchor, upwards: bool, ink: Ink },
}

/// A laid-out figure, ready to be written in either format.
#[derive(Debug, Clone)]
pub struct Drawing {
    pub(super) width: f64,
    pub(super) height: f64,
    pub(super) marks: Vec<Mark>,
    /// What someone who cannot see it is told.
    pub(super) description: String,
}

impl Drawing {
    pub(super) fn new(width: f64, description: &str) -> Self {
        Self { width, height: 0.0, marks: Vec::new(), description: description.to_owned() }
    }

    /// The figure as PNG, 300 dots an inch.
    ///
    /// # Errors
    /// The compiled-in font or the encoder fails, or no temporary file can be made.
    pub fn png(&self) -> Result<Vec<u8>, RenderError> {
        render::png(self)
    }

    /// The figure as SVG with its text as text.
    ///
    /// # Errors
    /// The compiled-in font fails.
    pub fn svg(&self) -> Result<String, RenderError> {
        render::svg(self)
    }

    pub(super) fn line(&mut self, from: Spot, to: Spot, thickness: f64, ink: Ink) {
        self.path(vec![from, to], thickness, ink);
    }

    pub(super) fn path(&mut self, spots: Vec<Spot>, thickness: f64, ink: Ink) {
        if spots.len() > 1 && finite(&spots) {
            self.marks.push(Mark::Path { spots, thickness, ink });
        }
    }

    pub(super) fn polygon(&mut self, spots: Vec<Spot>, ink: Ink) {
        if spots.len() > 2 && finite(&spots) {
            self.marks.push(Mark::Polygon { spots, ink });
        }
    }

    pub(super) fn disc(&mut self, centre: Spot, radius: f64, ink: Ink) {
        self.polygon(disc(centre, radius), ink);
    }

    /// A path broken into `dashes` (lengths of stroke and gap by turns; empty for a solid line).
    pub(super) fn dashed(&mut self, spots: &[Spot], dashes: &[f64], thickness: f64, ink: Ink) {
        if dashes.is_empty() || !finite(spots) {
            self.path(spots.to_vec(), thickness, ink);
            return;
        }
        let mut pattern = dashes.iter().copied().cycle().map(|length| length.max(0.1));
        let mut left = pattern.next().unwrap_or(1.0);
        let mut drawn = true;
        let mut stroke: Vec<Spot> = spots.first().copied().into_iter().collect();
        for ends in spots.windows(2) {
            let (&[mut from, to], true) = (ends, ends.len() == 2) else { continue };
            loop {
                let (dx, dy) = (to.0 - from.0, to.1 - from.1);
                let length = dx.hypot(dy);
                if length <= left {
                    left -= length;
                    stroke.push(to);
                    break;
                }
                from = (from.0 + dx * left / length, from.1 + dy * left / length);
                stroke.push(from);
                if drawn {
                    self.path(std::mem::take(&mut stroke), thickness, ink);
                }
                stroke = vec![from];
                drawn = !drawn;
                left = pattern.next().unwrap_or(1.0);
            }
        }
        if drawn {
            self.path(stroke, thickness, ink);
        }
    }

    /// A text whose baseline starts, is centred or ends `at`.
    pub(super) fn text(&mut self, text: &str, at: Spot, em: f64, anchor: Anchor, ink: Ink) {
        self.push_text(text, at, em, anchor, false, ink);
    }

    /// A text that runs upwards, centred `at`.
    pub(super) fn text_upwards(&mut self, text: &str, at: Spot, em: f64, ink: Ink) {
        self.push_text(text, at, em, Anchor::Middle, true, ink);
    }

    fn push_text(&mut self, text: &str, at: Spot, em: f64, anchor: Anchor, upwards: bool, ink: Ink) {
        if !text.is_empty() && finite(&[at]) {
            self.marks.push(Mark::Text { text: text.to_owned(), at, em, anchor, upwards, ink });
        }
    }
}

/// A circle as a polygon; plotters' own takes whole pixels.
pub(super) fn disc((x, y): Spot, radius: f64) -> Vec<Spot> {
    (0..24)
        .map(|step| {
            let angle = f64::from(step) * std::f64::consts::TAU / 24.0;
            (x + radius * angle.cos(), y + radius * angle.sin())
        })
        .collect()
}

fn finite(spots: &[Spot]) -> bool {
    spots.iter().all(|(x, y)| x.is_finite() && y.is_finite())
}

/// Width of `text` in points when set at `em` points.
pub(super) fn text_width(text: &str, em: f64) -> f64 {
    /// Measured large, since plotters rounds to whole pixels.
    const LARGE: f64 = 1000.0;
    let known = render::register_font().is_ok().then(|| {
        let font = FontDesc::new(FontFamily::Name(render::FONT), LARGE * render::LINE_HEIGHT, FontStyle::Normal);
        font.layout_box(text).ok().map(|((left, _), (right, _))| f64::from(right - left))
    });
    known.flatten().map_or(0.6 * em * text.chars().count() as f64, |width| width / LARGE * em)
}

/// `text` broken at spaces into lines no wider than `width` points; a longer word has its own line.
pub(super) fn wrap(text: &str, em: f64, width: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if text_width(&format!("{line} {word}"), em) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// [`wrap`] with lines of about equal length: no lone word on the last one.
pub(super) fn balanced(text: &str, em: f64, width: f64) -> Vec<String> {
    let mut lines = wrap(text, em, width);
    for step in 1..20 {
        let narrower = wrap(text, em, width * (1.0 - 0.04 * f64::from(step)));
        if narrower.len() > lines.len() {
            break;
        }
        lines = narrower;
    }
    lines
}

/// `text` cut to `width` points with an ellipsis if it is longer.
pub(super) fn shortened(text: &str, em: f64, width: f64) -> String {
    if text_width(text, em) <= width {
        return text.to_owned();
    }
    let mut kept: String = text.to_owned();
    while kept.pop().is_some() {
        let candidate = format!("{}…", kept.trim_end());
        if text_width(&candidate, em) <= width {
            return candidate;
        }
    }
    "…".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_the_fonts_own() {
        // Advance widths of DejaVu Sans in 1/2048 em: i 569, M 1767, λ 1212.
        for (text, units) in [("i", 569.0), ("M", 1767.0), ("λ", 1212.0)] {
            assert!((text_width(text, 10.0) - units / 204.8).abs() < 0.02, "{text}: {}", text_width(text, 10.0));
        }
    }

    #[test]
    fn wrapped_lines_fit_and_lose_nothing() {
        let text = "Bands are 95 % percentile bootstrap intervals over texts, B = 10,000, seed 7";
        let lines = wrap(text, 7.0, 120.0);
        assert!(lines.len() > 1 && lines.iter().all(|line| text_width(line, 7.0) <= 120.0));
        assert_eq!(lines.join(" "), text);
        assert!(text_width(&shortened(text, 7.0, 60.0), 7.0) <= 60.0);
    }

    #[test]
    fn dashes_cover_their_share_of_the_path() {
        let mut drawing = Drawing::new(100.0, "");
        drawing.dashed(&[(0.0, 0.0), (7.0, 0.0), (20.0, 0.0)], &[3.0, 2.0], 1.0, Ink::solid((0, 0, 0)));
        let drawn: f64 = drawing
            .marks
            .iter()
            .map(|mark| match mark {
                Mark::Path { spots, .. } => spots.last().unwrap().0 - spots[0].0,
                _ => 0.0,
            })
            .sum();
        assert!((drawn - 12.0).abs() < 1e-9, "{drawn}");
    }
}
