//! Charts for print: what to show ([`Chart`], [`BarChart`], [`HeatMap`]) and how it becomes PNG or SVG ([`Drawing`]).
//!
//! Sizes are those of a page: one column is 3.5 in wide, two are 7 in, text is 6.5 to 9 pt, PNG has
//! 300 dots an inch. The same input gives the same bytes.

mod axis;
mod bars;
mod colours;
mod drawing;
mod heatmap;
mod labels;
mod lines;
mod page;
mod render;
mod style;

pub use axis::Scale;
pub use bars::{Bar, BarChart, BarGroup, Reference};
pub use drawing::Drawing;
pub use heatmap::HeatMap;
pub use lines::{Chart, Panel, Point, Series};
pub use render::RenderError;
pub(super) use style::{GREY, baseline_of};

/// Width at print, in a paper of two columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 3.5 in, 1,050 pixels.
    OneColumn,
    /// 7 in, 2,100 pixels.
    TwoColumn,
}

impl Width {
    /// Width in points (1/72 in).
    fn points(self) -> f64 {
        match self {
            Self::OneColumn => 252.0,
            Self::TwoColumn => 504.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::drawing::{Anchor, Mark, text_width};
    use super::*;

    fn series(label: &str, style: usize, layers: u32, slope: f64) -> Series {
        let point = |layer: u32| {
            let y = 0.1 + slope * f64::from(layer);
            Point { x: f64::from(layer), y: Some(y), interval: Some((y - 0.02, y + 0.02)) }
        };
        let hollow = vec![Point { y: Some(0.2), ..point(layers) }];
        Series { label: label.into(), style, points: (0..=layers).map(point).collect(), hollow }
    }

    fn chart(width: Width, runs: usize, panels: usize) -> Chart {
        let names = ["base", "vanilla LoRA", "none λ=0.3", "SIBO λ=0.3", "adapter", "adapter SIBO", "full", "IA³"];
        let all: Vec<Series> =
            names.iter().take(runs).enumerate().map(|(i, name)| series(name, i, 30, 0.02 + 1e-4 * i as f64)).collect();
        let panel = |index| Panel {
            title: format!("panel {index}"),
            y_label: "token-wise cosine similarity".into(),
            x_axis: None,
            series: all.clone(),
            y_range: None,
        };
        Chart {
            title: "Token similarity over the layers".into(),
            subtitle: "All tokens; n = 100 texts".into(),
            x_label: "layer (0 = embedding, 1…L = blocks)".into(),
            x_scale: Scale::Whole,
            panels: (0..panels).map(panel).collect(),
            columns: None,
            notes: vec!["Bands: 95 % percentile bootstrap over texts & seeds.".into()],
            width,
        }
    }

    fn bars(width: Width) -> BarChart {
        let bar = |style: usize, label: &str, value: f64| Bar {
            label: label.into(),
            style,
            value: Some(value),
            interval: Some((value - 5.0, value + 5.0)),
            dots: (0..5).map(|seed| value - 4.0 + 2.0 * f64::from(seed)).collect(),
        };
        BarChart {
            title: "Held-out accuracy".into(),
            subtitle: "5 paired seeds".into(),
            y_label: "accuracy (%)".into(),
            groups: vec![BarGroup {
                label: String::new(),
                bars: vec![bar(1, "vanilla LoRA", 61.0), bar(2, "scale control", 63.5), bar(3, "SIBO", 64.25)],
            }],
            references: ["majority", "base"].map(|label| Reference { label: label.into(), value: 9.0 }).to_vec(),
            decimals: 1,
            notes: vec![],
            width,
        }
    }

    /// Ten methods, the last of them with one bar and a long name each.
    fn many_bars() -> BarChart {
        let names =
            ["LoRA", "DoRA", "(IA)³", "Adapter", "Parallel", "Houlsby", "Pfeiffer", "Prefix", "Prompt", "Norms"];
        let bar = |group: usize, arm: usize| {
            let value = 50.0 - 3.0 * group as f64 + 1.7 * arm as f64;
            Bar {
                label: ["vanilla", "none", "SIBO"][arm].into(),
                style: arm,
                value: Some(value),
                interval: None,
                dots: vec![],
            }
        };
        let group = |(index, label): (usize, &&str)| BarGroup {
            label: (*label).into(),
            bars: (0..if index < 7 { 3 } else { 1 }).map(|arm| bar(index, arm)).collect(),
        };
        BarChart { groups: names.iter().enumerate().map(group).collect(), ..bars(Width::TwoColumn) }
    }

    /// Left, top, right, bottom and content of every text.
    fn frames(drawing: &Drawing) -> Vec<(f64, f64, f64, f64, String)> {
        let frame = |mark: &Mark| {
            let Mark::Text { text, at: (x, y), em, anchor, upwards, .. } = mark else { return None };
            let width = text_width(text, *em);
            let before = match anchor {
                Anchor::Start => 0.0,
                Anchor::Middle => width / 2.0,
                Anchor::End => width,
            };
            let (up, down) = (0.75 * em, 0.2 * em);
            Some(if *upwards {
                (x - up, y - width / 2.0, x + down, y + width / 2.0, text.clone())
            } else {
                (x - before, y - up, x - before + width, y + down, text.clone())
            })
        };
        drawing.marks.iter().filter_map(frame).collect()
    }

    #[test]
    fn no_text_covers_another_or_leaves_the_page() {
        let mut drawings = vec![bars(Width::OneColumn).draw(), bars(Width::TwoColumn).draw(), many_bars().draw()];
        for width in [Width::OneColumn, Width::TwoColumn] {
            for (runs, panels) in [(1, 1), (4, 1), (5, 2), (8, 3), (8, 5)] {
                drawings.push(chart(width, runs, panels).draw());
            }
            drawings.extend([0, 1, 2, 7, 24, 60, 100, 400].map(|n| heatmap::tests::map(n, width).draw()));
        }
        for drawing in drawings {
            let frames = frames(&drawing);
            for (index, a) in frames.iter().enumerate() {
                let inside = a.0 >= 0.0 && a.1 >= 0.0 && a.2 <= drawing.width && a.3 <= drawing.height;
                assert!(inside, "{a:?} on {} × {}", drawing.width, drawing.height);
                for b in &frames[index + 1..] {
                    let apart = a.2 <= b.0 || b.2 <= a.0 || a.3 <= b.1 || b.3 <= a.1;
                    assert!(apart, "{a:?} meets {b:?}");
                }
            }
        }
    }

    #[test]
    fn the_svg_holds_every_word_as_text() {
        let svg = chart(Width::TwoColumn, 4, 1).svg().unwrap();
        for word in
            ["SIBO λ=0.3", "token-wise cosine similarity", "n = 100 texts", "layer (0 = embedding", "&amp; seeds", "30"]
        {
            assert!(svg.contains(word), "{word}");
        }
        assert!(svg.starts_with("<svg width=\"504pt\"") && svg.trim_end().ends_with("</svg>"));
        let svg = bars(Width::OneColumn).svg().unwrap();
        assert!(["64.2", "scale", "majority"].iter().all(|word| svg.contains(word)));
    }

    #[test]
    fn the_same_chart_gives_the_same_bytes() {
        let make = || (chart(Width::OneColumn, 3, 1).png().unwrap(), chart(Width::OneColumn, 3, 1).svg().unwrap());
        assert_eq!(make(), make());
    }

    #[test]
    fn a_gap_breaks_the_line_and_nonsense_draws_nothing() {
        let strokes = |chart: &Chart| {
            let thick = |mark: &&Mark| matches!(mark, Mark::Path { thickness, .. } if *thickness > 1.0);
            chart.draw().marks.iter().filter(thick).count()
        };
        let mut one = chart(Width::OneColumn, 1, 1);
        assert_eq!(strokes(&one), 1);
        one.panels[0].series[0].points[10].y = None;
        one.panels[0].series[0].points[20].y = Some(f64::NAN);
        assert_eq!(strokes(&one), 3);
        for value in [f64::NAN, f64::INFINITY, f64::MAX, f64::MIN, 0.0, 5e-324] {
            let mut wild = chart(Width::TwoColumn, 2, 2);
            for (index, point) in wild.panels[0].series[0].points.iter_mut().enumerate() {
                *point = Point {
                    x: if index % 3 == 0 { value } else { point.x },
                    y: Some(value),
                    interval: Some((value, -value)),
                };
            }
            wild.panels[0].y_range = Some((value, 1.0));
            assert!(wild.svg().unwrap().ends_with("</svg>\n"));
            let mut wild = bars(Width::OneColumn);
            wild.groups[0].bars[0] = Bar {
                value: Some(value),
                interval: Some((value, value)),
                dots: vec![value],
                ..wild.groups[0].bars[0].clone()
            };
            wild.references[0].value = value;
            assert!(wild.svg().unwrap().ends_with("</svg>\n"));
        }
        let empty = Chart { panels: vec![], ..chart(Width::OneColumn, 1, 1) };
        assert!(empty.png().is_ok());
    }
}
